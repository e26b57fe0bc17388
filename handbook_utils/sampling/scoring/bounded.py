"""Checks under a limit of time and memory: in child processes, so that none can hold up or end a run.

What is checked is text that a model wrote, by patterns, schemas and algebra that take for ever on some texts.
A time limit inside a process works in its main thread only, and not while a library computes without looking
up; the end of a child works always. `bounded_child.py` is the other side.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from handbook_utils.errors import HandbookError
from handbook_utils.processes import usable_cores
from handbook_utils.sampling.scoring.score import NoScore

# more children than this have no use: each loads the library it checks with
MOST_PROCESSES = 4
_AT_ONCE = 64


class BoundedPool:
    """Calls functions in child processes, one item after the other, each call under a limit.

    Args:
        seconds: for one item.
        processes: children at once; None: one for each core that this process may use, at most 4.
    """

    def __init__(self, *, seconds: float, processes: int | None = None) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        count = processes or min(MOST_PROCESSES, usable_cores())
        self._children = [_Child(seconds) for _ in range(count)]

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any | NoScore]:
        """What the function gives for each item; `NoScore` where it raises, or breaks a limit.

        Args:
            function: one that can be pickled: of a module, or an object of a class of a module.
            items: what it is called with.
        """
        code, results = pickle.dumps(function), [NoScore("")] * len(items)
        starts: queue.SimpleQueue[int] = queue.SimpleQueue()
        for start in range(0, len(items), _AT_ONCE):
            starts.put(start)

        def work(child: _Child) -> None:
            while not starts.empty():  # whoever is free takes the next ones
                with contextlib.suppress(queue.Empty):
                    start = starts.get_nowait()
                    for place, result in enumerate(child.run(code, items[start : start + _AT_ONCE]), start):
                        results[place] = result

        wanted = self._children[: max(math.ceil(len(items) / _AT_ONCE), 1)]
        with self._lock, ThreadPoolExecutor(len(wanted)) as threads:
            try:
                list(threads.map(work, wanted))
            finally:  # where one fails or the run is interrupted, the others take no more
                while not starts.empty():
                    starts.get_nowait()
        return results


class _Child:
    """A child process, started when there is work, and again after it was ended."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, code: bytes, items: Sequence[Any]) -> Iterator[Any | NoScore]:
        """Results of the items in their order."""
        left = list(items)
        while left:
            process = self._started()
            done = 0
            for result in _answers(process, code, left):
                done += 1
                yield result
            left = left[done:]
            if left:  # the child has ended on the first of them
                yield NoScore(self._ended(process))
                left = left[1:]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                # -P: the folder that the run was started in is no place to import from
                [sys.executable, "-P", "-m", f"{__package__}.bounded_child", str(self._seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # the same modules as here, those of a folder that was added to the path as well
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
            weakref.finalize(self, _close, self._process)
        return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> str:
        code = process.wait()
        if code == -signal.SIGXCPU:
            return f"TimeoutError: it took longer than {self._seconds:g} s"
        if code < 0:
            return f"the process that checked it was ended by {signal.Signals(-code).name}"
        raise HandbookError(
            f"a process that checks answers ended with code {code}; what it said stands above."
        )


def _answers(process: subprocess.Popen[bytes], code: bytes, items: Sequence[Any]) -> Iterator[Any | NoScore]:
    """Results as they come; fewer than items where the child ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump((code, list(items)), process.stdin)
        process.stdin.flush()
        for _ in items:
            value, reason = pickle.load(process.stdout)
            yield value if reason is None else NoScore(reason)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        return


def _close(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # what was not read any more
                stream.close()
