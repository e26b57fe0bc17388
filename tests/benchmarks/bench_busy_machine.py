"""Training steps on two threads beside three busy programs: as `handbook` waits, and by default.

OpenMP's threads spin while they wait for each other. Beside other work, that takes the core from the thread
that they wait for. Both ways in turn, each in a process of its own; then the same on a quiet machine, where
nothing may be lost.

    python tests/benchmarks/bench_busy_machine.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from _record import record

from handbook_utils.processes import PATIENT

ROUNDS, SECONDS = 5, 6.0
STEPS = f"""
import time, torch
torch.set_num_threads(2)
layer = torch.nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True)
rows = torch.randn(16, 64, 256)
layer(rows).sum().backward()
began, steps = time.perf_counter(), 0
while time.perf_counter() - began < {SECONDS}:
    layer(rows).sum().backward()
    steps += 1
print(steps / (time.perf_counter() - began))
"""


def steps_per_second(settings: dict[str, str]) -> float:
    """Of a process with these environment variables."""
    environment = {name: value for name, value in os.environ.items() if name not in PATIENT}
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        **{"env": environment | settings, "capture_output": True, "text": True, "check": True},
    )
    return float(done.stdout)


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Keep that many cores busy with plain loops."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> None:
    """Measure and record."""
    for name, others, goal in (("busy", 3, 1.5), ("quiet", 0, 0.9)):
        with busy_cores(others):
            pairs = [(steps_per_second(PATIENT), steps_per_second({})) for _ in range(ROUNDS)]
        ratios = [ours / default for ours, default in pairs]
        record(
            name=f"threads_{name}_machine",
            value=statistics.median(ratios),
            spread=(max(ratios) - min(ratios)) / 2,
            unit="x",
            goal=goal,
            better="higher",
            peer={"name": "PyTorch's default waiting", "value": 1.0},
        )
        print(f"{name}: " + ", ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
