"""Several training processes without a launcher: forked from a test that has imported what they need."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable

Task = Callable[[], object]

# exit code of a process that found another gone, before it was ended itself
LOST_PEER = 3
_GONE = re.compile(r"gloo/transport/tcp/.*(Connection (reset|closed) by peer|Broken pipe)", re.DOTALL)


def run_ranks(
    task: Task, *, count: int = 2, kill_after_s: float | None = None, timeout_s: float = 600
) -> list[int]:
    """Run `task` in forked processes that meet as those of a launcher do.

    When one fails the others are killed, as a launcher does. One alone is forked, but not launched.

    Args:
        task: what each does; its rank is in the environment.
        count: processes.
        kill_after_s: SIGKILL the last one at that moment, if it still runs.
        timeout_s: a test that hangs is a failure.
    Returns:
        Each process's exit code, by rank; negative: the signal that killed it; LOST_PEER: it failed because
        its connection to another broke, and for no other reason; 1: any other error.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [_forked(task, (rank, count, port), timeout_s) for rank in range(count)]
    started = time.monotonic()
    codes: dict[int, int] = {}
    while len(codes) < count:
        for rank, pid in enumerate(children):
            if rank not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        spent_s = time.monotonic() - started
        if kill_after_s is not None and spent_s > kill_after_s and count - 1 not in codes:
            os.kill(children[-1], signal.SIGKILL)
            kill_after_s = None
        if any(codes.values()) or spent_s > timeout_s:
            for rank in set(range(count)) - codes.keys():
                os.kill(children[rank], signal.SIGKILL)
                codes[rank] = os.waitstatus_to_exitcode(os.waitpid(children[rank], 0)[1])
        time.sleep(0.005)
    assert time.monotonic() - started < timeout_s, f"killed after {timeout_s} s: {codes}"
    return [codes[rank] for rank in range(count)]


def _forked(task: Task, place: tuple[int, int, int], timeout_s: float) -> int:
    with warnings.catch_warnings():
        # from 3.12 on Python warns of forks beside threads; those of a test are idle
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    faulthandler.dump_traceback_later(0.9 * timeout_s)  # where it hangs
    try:
        _join(*place)
        task()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:  # noqa: BLE001  # a forked test must end here, whatever happens
        traceback.print_exc()
        code = LOST_PEER if isinstance(error, RuntimeError) and _GONE.search(str(error)) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _join(rank: int, count: int, port: int) -> None:
    if count == 1:
        return
    from accelerate.state import AcceleratorState

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",  # else accelerate warns that it chooses a number
    }
    AcceleratorState._reset_state(reset_partial_state=True)  # the parent may have trained, alone
