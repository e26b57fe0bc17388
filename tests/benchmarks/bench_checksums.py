"""What comparing a samples folder with its manifest's checksums costs beside reading it: 1,000,000 rows.

A stage compares the files of an earlier run before it reads them. Reading is to records, as scoring reads,
file by file; CPU seconds of one process, the files in the system's cache.

    python tests/benchmarks/bench_checksums.py [--rows 100000]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from _record import record

from handbook_utils.runs.atomic import write_json
from handbook_utils.runs.checksums import _checksum
from handbook_utils.runs.state import check_unaltered, output_checksums, read_part
from handbook_utils.sampling.tables import SAMPLES, samples_at

ROWS, PART, GOAL_PERCENT = 1_000_000, 10_000, 5.0
PROMPT_WORDS, ANSWER_WORDS = 16, 60


def write_run(folder: Path, rows: int) -> None:
    """A finished run that left samples in shards, four for each prompt, of random words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(2000)]
    (folder / "samples").mkdir(parents=True)
    for start in range(0, rows, PART):
        places = range(start, min(start + PART, rows))
        prompts = {place // 4: " ".join(draw.choices(words, k=PROMPT_WORDS)) for place in places}
        columns = {
            "prompt_id": [f"p{place // 4}" for place in places],
            "sample_index": [place % 4 for place in places],
            "prompt": [[{"role": "user", "content": prompts[place // 4]}] for place in places],
            "completion": [" ".join(draw.choices(words, k=ANSWER_WORDS)) for _ in places],
            "tokens": [draw.randint(20, 200) for _ in places],
            "finish_reason": ["stop"] * len(places),
            "logprob": [-100 * draw.random() for _ in places],
        }
        table = pa.Table.from_pydict(columns, schema=SAMPLES)
        pq.write_table(table, folder / "samples" / f"{start // PART:05}.parquet")
    manifest = {
        "format": 1,
        "stage": "sample",
        "status": "finished",
        "recipe": {},
        "outputs": output_checksums(folder, leave_out=()),
    }
    write_json(folder / "manifest.json", manifest)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="bench-checksums-") as scratch:
        folder = Path(scratch) / "samples"
        write_run(folder, rows)
        size = sum(file.stat().st_size for file in (folder / "samples").iterdir())
        _checksum.cache_clear()  # what wrote them knows their checksums
        began = time.process_time()
        check_unaltered(folder)
        checked_s = time.process_time() - began
        began = time.process_time()
        assert sum(1 for _ in samples_at(str(folder))) == rows
        read_s = time.process_time() - began
        began = time.process_time()
        assert sum(len(read_part(file)) for file in sorted((folder / "samples").iterdir())) == rows
        tables_s = time.process_time() - began
    percent = 100 * checked_s / read_s
    peer = {"name": f"{rows:,} rows, {size / 1e6:.0f} MB: read in {read_s:.1f} s", "value": 0.0}
    record(name="samples_checked_percent", value=percent, unit="%", goal=GOAL_PERCENT, peer=peer)
    # selection goes through Arrow tables alone, which is many times quicker
    peer = {"name": f"read as Arrow tables in {tables_s:.2f} s", "value": 0.0}
    record(name="samples_checked_percent_of_tables", value=100 * checked_s / tables_s, unit="%", peer=peer)
    print(
        f"{rows} rows: read in {read_s:.2f} s, checked in {checked_s:.2f} s: {percent:.1f} % more; "
        f"as tables read in {tables_s:.2f} s"
    )


if __name__ == "__main__":
    main()
