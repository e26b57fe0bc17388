"""What diagnosing costs: a log of 50 MB in CPU seconds and memory, and the watch's share of a pocket run.

The peer of the long log is `json.loads` of the same lines: what reading them costs any program.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _record import record
from bench_sampling import SFT_STEPS

from handbook_utils.pipeline.stages import run_stage
from handbook_utils.training.watch import WatchLog

BYTES, REPEATS = 50_000_000, 3
CHILD = """
import json, re, sys, time
from pathlib import Path
start = time.process_time()
if sys.argv[2] == "diagnose":
    from handbook_utils import diagnose
    found = diagnose(Path(sys.argv[1])).records
else:
    with open(sys.argv[1]) as stream:
        found = sum(1 for line in stream if json.loads(line))
# getrusage would give the parent's peak, from before this program was loaded
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps([found, time.process_time() - start, peak / 1024]))
"""


def write_log(path: Path) -> None:
    """An SFT log of 50 MB, as the handbook writes it."""
    drawn, written, step = random.Random(0), 0, 0
    with path.open("w", encoding="utf-8") as stream:
        while written < BYTES:
            step += 1
            loss = round(1 + 2 / step**0.1 + drawn.gauss(0, 0.1), 4)
            line = {
                "step": step,
                "loss": loss,
                "grad_norm": drawn.random(),
                "learning_rate": 1e-5 * drawn.random(),
            }
            line |= {
                "entropy": drawn.random(),
                "mean_token_accuracy": drawn.random(),
                "num_tokens": 512.0 * step,
            }
            written += stream.write(json.dumps(line) + "\n")


def read(path: Path, how: str) -> tuple[int, float, float]:
    """Records, CPU seconds and MiB at most, in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(path), how]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records, seconds, mebibytes = json.loads(found)
    return records, seconds, mebibytes


def measure_long_log(folder: Path) -> None:
    """CPU seconds and memory for 50 MB."""
    path = folder / "metrics.jsonl"
    write_log(path)
    ours = [read(path, "diagnose") for _ in range(REPEATS)]
    peers = [read(path, "json") for _ in range(REPEATS)]
    assert {records for records, _, _ in ours} == {records for records, _, _ in peers}
    seconds = sorted(cpu for _, cpu, _ in ours)
    peer = {"name": "json.loads of each line", "value": sorted(cpu for _, cpu, _ in peers)[REPEATS // 2]}
    spread = (seconds[-1] - seconds[0]) / 2
    record(
        name="diagnose_50mb_cpu",
        value=seconds[REPEATS // 2],
        spread=spread,
        unit="CPU s",
        goal=3.0,
        peer=peer,
    )
    record(name="diagnose_50mb_memory", value=max(mib for _, _, mib in ours), unit="MiB", goal=300.0)


def measure_watch(folder: Path) -> None:
    """Share of a pocket SFT run's CPU time that is spent watching its log."""
    spent = 0.0

    def timed(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent += time.process_time() - start

        return call

    WatchLog.on_log = timed(WatchLog.on_log)  # type: ignore[method-assign]
    WatchLog.on_train_end = timed(WatchLog.on_train_end)  # type: ignore[method-assign]
    start = time.process_time()
    run_stage(
        "pocket/sft", folder / "sft", overrides={**SFT_STEPS, "training.logging_steps": 1}, progress=False
    )
    record(
        name="watch_share", value=100 * spent / (time.process_time() - start), unit="% of training", goal=1.0
    )


def main() -> None:
    """Measure and record."""
    with tempfile.TemporaryDirectory(prefix="bench-diagnosis-") as scratch:
        measure_long_log(Path(scratch))
        measure_watch(Path(scratch))


if __name__ == "__main__":
    main()
