"""A scorer that kills the first process that uses it: what tests let workers on a cluster do."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def length_of_the_survivors(messages: object, text: str) -> float:
    """The number of characters; whoever comes first to the folder KILL_ONCE does not live to tell it."""
    folder = os.environ.get("KILL_ONCE")
    try:
        if folder:
            (Path(folder) / "killed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    except FileExistsError:
        pass
    return float(len(text))
