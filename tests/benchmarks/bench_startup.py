"""How long `import handbook_utils` and `handbook --help` take, beside the same of TRL and transformers."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from _record import record

REPEATS = 7
BIN = Path(sys.executable).parent


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def python(code: str) -> list[str]:
    """A process that runs one line."""
    return [sys.executable, "-c", code]


def main() -> None:
    """Measure and record; the sides take turns, and what Python itself needs is taken off an import."""
    empty, ours, theirs, help_ours = [], [], [], []
    for _ in range(REPEATS):
        empty.append(seconds(python("pass")))
        ours.append(seconds(python("import handbook_utils")))
        theirs.append(seconds(python("import transformers")))
        help_ours.append(seconds([str(BIN / "handbook"), "--help"]))
    base = statistics.median(empty)
    help_trl = min(seconds([str(BIN / "trl"), "dpo", "--help"]) for _ in range(2))
    record(
        name="import_seconds",
        value=statistics.median(ours) - base,
        spread=(max(ours) - min(ours)) / 2,
        unit="s",
        goal=0.15,
        peer={"name": "import transformers", "value": statistics.median(theirs) - base},
    )
    record(
        name="help_seconds",
        value=statistics.median(help_ours),
        spread=(max(help_ours) - min(help_ours)) / 2,
        unit="s",
        goal=0.5,
        peer={"name": "trl dpo --help", "value": help_trl},
    )


if __name__ == "__main__":
    main()
