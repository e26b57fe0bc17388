"""Seconds and memory of selecting among the samples of a million prompts, on one core.

Four samples per prompt in files of 4,000 prompts, each with an answer of twenty words and a score. The best
of each prompt and its random control are written, figures with intervals included. Selecting runs in a
process of its own, whose peak memory is what counts. `python tests/benchmarks/bench_select.py [prompts]`.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _record import record

from handbook_utils.sampling.tables import SAMPLES

PROMPTS, SAMPLES_EACH, PROMPTS_PER_FILE = 1_000_000, 4, 4_000
GOAL_S, GOAL_GIB = 180, 1.0
PROGRAM = """
import sys
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.schema.recipe import check_recipe
recipe = check_recipe({"stage": "select", "data": [{"name": sys.argv[1]}]}, "benchmark")
result = run_stage(recipe, sys.argv[2], progress=False)
print({name: str(figure) for name, figure in result.final_metrics.items()})
"""


def write_samples(folder: Path, prompts: int) -> None:
    """Write the files; a file's texts are those of every other, its ids and scores are its own."""
    folder.mkdir()
    size = min(PROMPTS_PER_FILE, prompts)
    rng = np.random.default_rng(0)
    words = np.array(["river", "moon", "says", "please", "twice", "never", "again", "thank"])
    texts = [" ".join(row) for row in words[rng.integers(0, len(words), (size * SAMPLES_EACH, 20))]]
    asked = [[{"role": "user", "content": f"Say it {number} times."}] for number in range(size)]
    rows = np.repeat(np.arange(size), SAMPLES_EACH)
    fixed = {
        "sample_index": np.tile(np.arange(SAMPLES_EACH), size),
        "prompt": pa.array(asked, SAMPLES.field("prompt").type).take(pa.array(rows)),
        "completion": texts,
        "tokens": np.full(len(rows), 21),
        "finish_reason": ["stop"] * len(rows),
        "logprob": rng.normal(-20, 3, len(rows)),
    }
    for number in range(prompts // size):
        ids = [f"prompt-{number * size + row:08d}" for row in rows]
        table = pa.table({"prompt_id": ids, **fixed}).select(SAMPLES.names).cast(SAMPLES)
        table = table.append_column("proxy", pa.array(rng.normal(size=len(rows))))
        pq.write_table(table, folder / f"part-{number:05d}.parquet")


def main(prompts: int) -> None:
    """Measure and record."""
    folder = Path(tempfile.mkdtemp(prefix="bench-select-"))
    try:
        write_samples(folder / "samples", prompts)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", PROGRAM, folder / "samples", folder / "run"], check=True)
        seconds = time.perf_counter() - started
        chosen = sum(pq.read_metadata(file).num_rows for file in (folder / "run" / "selected").glob("*"))
        assert chosen == prompts, f"{chosen} selected of {prompts}"
    finally:
        shutil.rmtree(folder)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak_gib, cpu_s = used.ru_maxrss / 2**20, used.ru_utime + used.ru_stime
    if prompts == PROMPTS:
        record(name="select_1m_prompts_s", value=seconds, unit="s", goal=GOAL_S)
        record(name="select_1m_prompts_gib", value=peak_gib, unit="GiB", goal=GOAL_GIB)
    print(f"{prompts:,} prompts: {seconds:.1f} s ({cpu_s:.1f} s of one core), {peak_gib:.2f} GiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else PROMPTS)
