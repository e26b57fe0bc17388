"""How near `plan` comes to counted peaks over the whole grid, and what a plan of an 8B model costs.

Eight shapes (four fixed, four drawn anew) x SFT, reward, DPO x eager, SDPA x float32, bfloat16, mixed x with
and without checkpointing; every tensor of a real training step on the CPU is counted. About 40 minutes.
`python tests/benchmarks/bench_planning.py 24` measures so many cells, drawn at random.
"""

from __future__ import annotations

import itertools
import random
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

from _record import record

sys.path.insert(0, str(Path(__file__).parents[1]))
import online_peaks
from training_peaks import FIXED, Cell, drawn, error_of

REPEATS, ONLINE = 5, 12
_IMPORTS = "import time; import torch, transformers; begun = time.process_time()"
_PLAN = """
import numpy as np
from transformers import Qwen3Config
from handbook_utils.planning.changes import Run
from handbook_utils.planning.lengths import Lengths
from handbook_utils.planning.memory import Setup
import torch
imported = time.process_time()
draw = np.random.default_rng(0)
rows = Lengths(draw.integers(50, 900, 1_000_000), draw.integers(20, 1100, (1_000_000, 1)))
start = time.process_time()
config = Qwen3Config(vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
    num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=False)
config._attn_implementation = "sdpa"
setup = Setup(config, "sft", half=torch.bfloat16)
run = Run(setup, rows, per_device=8, accumulation=4, max_length=2048)
assert run.memory.total > 2**30
print(imported - begun, time.process_time() - start)
"""


def seconds() -> tuple[float, float]:
    """CPU seconds of one process: for our imports beyond torch and transformers, and for the plan itself."""
    command = [sys.executable, "-c", _IMPORTS + _PLAN]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    imports, planned = map(float, out.split()[-2:])
    return imports, planned


def main(cells: int | None = None) -> None:
    """Measure and record."""
    warnings.simplefilter("ignore")
    seed = time.time_ns() % 2**32
    shapes = [*FIXED, *drawn(seed)]
    grid = [
        Cell(*each)
        for each in itertools.product(
            shapes,
            ("sft", "reward", "dpo"),
            ("eager", "sdpa"),
            ("float32", "bfloat16", "mixed"),
            (False, True),
        )
    ]
    chosen = grid if cells is None else random.Random(seed).sample(grid, cells)
    errors = []
    for cell in chosen:
        errors.append(error_of(cell))
        print(f"{errors[-1]:+.1%} {cell}", flush=True)
    worst, median = max(map(abs, errors)), statistics.median(map(abs, errors))
    print(f"seed {seed}, {len(errors)} runs: median error {median:.1%}, worst {worst:.1%}")
    record(name="plan_error_worst", value=worst, unit="of the peak", goal=0.10)
    record(name="plan_error_median", value=median, unit="of the peak")
    online = []
    for run in online_peaks.drawn(seed, ONLINE):
        found = online_peaks.errors_of(run)
        online += map(abs, found.values())
        print(found, run, flush=True)
    record(name="plan_online_error_worst", value=max(online), unit="of the peak", goal=0.10)
    spent = [sum(seconds()) for _ in range(REPEATS)]
    record(
        name="plan_8b_cpu_seconds",
        value=statistics.median(spent),
        spread=(max(spent) - min(spent)) / 2,
        unit="s",
        goal=2.0,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
