"""CPU seconds to load 200,000 rows of prompt and completion from JSONL, CSV and Parquet: now and at eed40be.

Each side is a process of its own. Much is checked now that was not then, and plain rows, which most
are, should hardly pay for it.

    bench_reading.py [--rows 20000]
    bench_reading.py --side FOLDER      what measures one side
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
import time
from pathlib import Path

ROWS, GOAL = 200_000, 2.0
PROMPT_WORDS, ANSWER_WORDS = 12, 40
FILES = ("rows.jsonl", "rows.csv", "rows.parquet")


def write_files(folder: Path, rows: int) -> None:
    """The same rows in each type of file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(2000)]
    lengths = {"prompt": PROMPT_WORDS, "completion": ANSWER_WORDS}
    made = [{name: " ".join(draw.choices(words, k=k)) for name, k in lengths.items()} for _ in range(rows)]
    lines = "".join(json.dumps(row) + "\n" for row in made)
    (folder / FILES[0]).write_text(lines, encoding="utf-8")
    with (folder / FILES[1]).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(lengths))
        writer.writeheader()
        writer.writerows(made)
    pq.write_table(pa.Table.from_pylist(made), folder / FILES[2])


def measure_side(folder: str) -> None:
    """Print the CPU seconds of each file."""
    from handbook_utils import load_dataset

    load_dataset(str(Path(folder) / FILES[0]), kind="conversation", split="train[:2]")  # imports are done
    seconds = []
    for name in FILES:
        began = time.process_time()
        load_dataset(str(Path(folder) / name), kind="conversation")
        seconds.append(time.process_time() - began)
    print(*seconds)


def main() -> None:
    """Measure both sides and record."""
    from _before import figures_of, package_before
    from _record import record

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="bench-reading-") as folder:
        scratch = Path(folder)
        write_files(scratch, rows)
        old = figures_of(__file__, "--side", scratch, path=package_before(scratch))
        new = figures_of(__file__, "--side", scratch)
    for name, before, now in zip(FILES, old, new, strict=True):
        kind = name.partition(".")[2]
        peer = {"name": f"commit eed40be: {before:.1f} s, now {now:.1f} s for {rows:,} rows", "value": 1.0}
        record(name=f"read_{kind}_over_eed40be", value=now / before, unit="x", goal=GOAL, peer=peer)
        print(f"{kind}: {before:.2f} s before, {now:.2f} s now: {now / before:.2f} times")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        measure_side(sys.argv[2])
    else:
        main()
