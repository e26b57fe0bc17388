"""What ties the processes of one launch together: none outlives its parent, each failure is written down."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handbook_utils.errors import HandbookError
from handbook_utils.processes import is_launched

# the process id of whoever started this one; the report of a failure the watching process reads
PARENT, REPORT = "HANDBOOK_PARENT_PROCESS", "HANDBOOK_LAUNCH_REPORT"
# torchrun names the file in which it looks for a process's last words
WORKER_ERROR = "TORCHELASTIC_ERROR_FILE"
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, however that ends (Linux)."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it was gone before the kernel was asked
        os._exit(1)


@contextmanager
def failure_told() -> Iterator[None]:
    """In one of several launched processes: write down what ends it; elsewhere nothing.

    Under our own launcher an expected error is not printed here: the watching process prints it, once.
    """
    if not is_launched():
        yield
        return
    die_with_parent()
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except HandbookError as error:
        write_last_words(error)
        if REPORT in os.environ:
            raise SystemExit(2) from None
        raise
    except Exception as error:
        write_last_words(error)
        raise


def write_last_words(error: BaseException) -> None:
    """Leave the error where torchrun looks for it, with a time fine enough to tell which came first."""
    file = os.environ.get(WORKER_ERROR)
    if file is None:
        return
    words = str(error) if isinstance(error, HandbookError) else f"{type(error).__name__}: {error}"
    now = time.time_ns()
    details = {
        "py_callstack": "".join(traceback.format_exception(error)),
        "timestamp": now // 10**9,
        "time_ns": now,
    }
    Path(file).write_text(json.dumps({"message": {"message": words, "extraInfo": details}}), encoding="utf-8")
