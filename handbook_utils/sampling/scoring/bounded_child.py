"""The child process of `bounded.py`: calls a function on items under limits, writes what comes of each."""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

MEMORY_BYTES = 4 * 1024**3
# after the limit, in which a function that looks up now and then is stopped without ending the process
_GRACE_S = 2


class _TookTooLongError(BaseException):
    """The alarm went off; no `except Exception` of a library holds it back."""


def main() -> None:
    """Answer requests on standard input until it ends."""
    seconds = float(sys.argv[1])
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is printed is no answer
    signal.signal(signal.SIGALRM, _stop)
    # a terminal's Ctrl-C is for the parent, which ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    loaded: dict[bytes, Callable[[Any], Any]] = {}
    while True:
        try:
            code, items = pickle.load(requests)
        except EOFError:
            return
        if code not in loaded:
            loaded = {code: pickle.loads(code)}
        for item in items:
            pickle.dump(_called(loaded[code], item, seconds), answers)
            answers.flush()


def _called(function: Callable[[Any], Any], item: Any, seconds: float) -> tuple[Any, str | None]:
    """What the function gives, or why it gives nothing."""
    _limit_time(seconds)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return function(item), None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TookTooLongError:
        return None, f"TimeoutError: it took longer than {seconds:g} s"
    except MemoryError:
        return None, "MemoryError: it took more memory than any answer needs"
    except Exception as error:  # noqa: BLE001 - the parent decides what it means
        return None, f"{type(error).__name__}: {error}"


def _stop(signal_number: int, frame: FrameType | None) -> None:
    raise _TookTooLongError


def _limit_time(seconds: float) -> None:
    """Have the system end this process where no alarm is heard, as in one long operation of a library."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    ends = math.ceil(used.ru_utime + used.ru_stime + seconds + _GRACE_S)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (ends if hard < 0 else min(ends, hard), hard))


def _limit_memory() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":  # elsewhere the limit is on address space that is reserved, not used
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES if hard < 0 else min(MEMORY_BYTES, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
