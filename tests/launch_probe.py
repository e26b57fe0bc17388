"""A program for the launcher that imports next to nothing: each process does what it is told and says so.

python -m launch_probe FOLDER ACTION: leaves its process id in FOLDER/<rank>.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from handbook_utils.errors import DataError
from handbook_utils.launch.lifeline import failure_told
from handbook_utils.processes import rank, world_size


def main() -> None:
    folder, action = Path(sys.argv[1]), sys.argv[2]
    with failure_told():
        (folder / f"{rank()}").write_text(str(os.getpid()), encoding="utf-8")
        # in one piece, or the line of another process may come between it and its end
        sys.stderr.write(f"here is {rank()} of {world_size()}\n")
        while len(list(folder.iterdir())) < world_size():
            time.sleep(0.01)
        if action == "end":
            return
        if rank() == 1:
            do(action)
        time.sleep(60)  # as one that waits for the other


def do(action: str) -> None:
    if action == "expected error":
        raise DataError("rows.jsonl: line 3 is not JSON.")
    if action == "bug":
        raise ValueError("tensors of different shapes")
    if action == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
