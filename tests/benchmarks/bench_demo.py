"""What `make demo` takes after installation: the whole pipeline into a fresh folder, its time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _record import record

HANDBOOK = str(Path(sys.executable).parent / "handbook")


def main() -> None:
    """Run the demo once and record it; there is no peer that does the same work."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([HANDBOOK, "run", "pocket/pipeline", "--out", f"{folder}/demo"], check=True)
        minutes = (time.perf_counter() - started) / 60
    # of the largest child; kibibytes on Linux, bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    memory = peak / (2**30 if sys.platform == "darwin" else 2**20)
    record(name="demo_minutes", value=minutes, unit="min", goal=8.0)
    record(name="demo_memory", value=memory, unit="GiB", goal=3.0)


if __name__ == "__main__":
    main()
