"""Rows tokenized by several processes: this one and workers, each taking the next batch when it is free.

The workers are programs of their own and no forks, so that all is the same in a notebook, in a script
without a main guard and beside threads. Batches come in order, and each is the same whoever has made it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from typing import Any

import pyarrow as pa
from datasets import Dataset, Json, List, Value

from handbook_utils.errors import HandbookError, TrainingError
from handbook_utils.processes import processes_here, usable_cores
from handbook_utils.training.rows.label_worker import DONE, READY, as_bytes

LOGGER = logging.getLogger("handbook_utils")
# batches in the time that a worker needs to start
WORTH_SHARING = 20
_MODULE = "handbook_utils.training.rows.label_worker"
# makes the tokens of a batch in this process; it is given the batch's number, from 0
Tokenize = Callable[[int, pa.Table], pa.RecordBatch]


def useful_processes(batches: int, asked: int | None = None) -> int:
    """How many processes are to tokenize so many batches.

    Args:
        batches: of rows.
        asked: what the recipe says (`training.dataset_num_proc`); None leaves it to the machine.
    Returns:
        At most the cores that each process of a launch has to itself; 1 where a worker would hardly have
        started when all is done.
    """
    if asked is not None:
        return max(1, min(asked, batches))
    return max(1, min(usable_cores() // processes_here(), batches // WORTH_SHARING + 1))


def json_columns(rows: Dataset) -> list[str] | None:
    """The columns that hold JSON as text; None where other columns are not what Arrow says they are."""
    found = [name for name, feature in rows.features.items() if isinstance(feature, Json)]
    is_plain = all(_is_plain(feature) for name, feature in rows.features.items() if name not in found)
    return found if is_plain else None


def _is_plain(feature: Any) -> bool:
    if isinstance(feature, dict):
        return all(map(_is_plain, feature.values()))
    return _is_plain(feature.feature) if isinstance(feature, List) else isinstance(feature, Value)


def shared_out(
    tokenizer: Any, batches: Iterable[pa.Table], as_json: list[str], tokenize: Tokenize, *, processes: int
) -> Iterator[pa.RecordBatch]:
    """Tokens of each batch, in order.

    Args:
        tokenizer: sent to the workers. Where that fails, this process does all, and the log says so.
        batches: rows as Arrow keeps them.
        as_json: the columns that hold JSON as text.
        tokenize: makes a batch in this process, and raises what is wrong with it.
        processes: this one included.
    Raises:
        TrainingError: a worker was ended from outside.
    """
    work = _Work(batches)
    helpers: list[_Helper] = []
    try:
        try:
            sent = pickle.dumps((tokenizer, as_json))
            helpers += [_Helper(work, sent) for _ in range(processes - 1)]
        except Exception as error:  # noqa: BLE001 - a tokenizer of somebody's own may raise anything
            work.say_alone(f"{type(error).__name__}: {error}")
        yield from work.results(tokenize)
    finally:
        work.end()
        for helper in helpers:
            helper.close()


class _Work:
    """Batches to be taken by whoever is free, and what has come of them."""

    def __init__(self, batches: Iterable[pa.Table]) -> None:
        self._batches = enumerate(batches)
        # a batch itself is what is left of it where it failed
        self._made: dict[int, pa.RecordBatch | pa.Table] = {}
        self._taken = 0
        self._failure: Exception | None = None
        self._is_said = False
        self._ready = threading.Condition()

    def take(self) -> tuple[int, pa.Table] | None:
        """The next batch that nobody has taken; None where there is none."""
        with self._ready:
            taken = None if self._failure else next(self._batches, None)
            self._taken += taken is not None
            return taken

    def give(self, number: int, made: pa.RecordBatch | pa.Table) -> None:
        """Hand in what was made of a batch; the batch itself where that failed."""
        with self._ready:
            self._made[number] = made
            self._ready.notify_all()

    def fail(self, error: Exception) -> None:
        """Have the process that waits for results raise an error."""
        with self._ready:
            self._failure = error
            self._ready.notify_all()

    def end(self) -> None:
        """Let nobody take anything any more."""
        with self._ready:
            self._batches = enumerate(())

    def say_alone(self, why: str) -> None:
        """Say, once, that one process has to do it all."""
        with self._ready:
            is_said, self._is_said = self._is_said, True
        if not is_said:
            LOGGER.info("rows are tokenized by one process, because no other can load the tokenizer: %s", why)

    def results(self, tokenize: Tokenize) -> Iterator[pa.RecordBatch]:
        """Yield what is made of each batch, in order; where there is nothing yet, make the next one here."""
        number = 0
        while True:
            while number not in self._made:
                taken = self.take()
                if taken is not None:
                    self.give(taken[0], self._tried(tokenize, *taken, is_due=taken[0] == number))
                elif number == self._taken and self._failure is None:
                    return
                else:
                    self._wait(number)
            made = self._made.pop(number)
            # a worker's error is raised here, by the same batch, when all before it are done
            yield tokenize(number, made) if isinstance(made, pa.Table) else made
            number += 1

    @staticmethod
    def _tried(
        tokenize: Tokenize, number: int, table: pa.Table, *, is_due: bool
    ) -> pa.RecordBatch | pa.Table:
        try:
            return tokenize(number, table)
        except HandbookError:
            if is_due:
                raise
            return table

    def _wait(self, number: int) -> None:
        with self._ready:
            self._ready.wait_for(lambda: number in self._made or self._failure is not None)
            if number not in self._made and self._failure is not None:
                raise self._failure


class _Helper:
    """A worker, and the thread of this process that hands batches to it."""

    def __init__(self, work: _Work, sent: bytes) -> None:
        self._work, self._sent = work, sent
        self._connection, theirs = Pipe()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        # a session of its own: Ctrl-C reaches this process, which ends its workers
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._words,
            stderr=self._words,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
        theirs.close()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        is_ready = False
        try:
            self._connection.send_bytes(self._sent)
            is_ready = self._connection.recv_bytes() == READY
            while is_ready and (taken := self._work.take()) is not None:
                number, table = taken
                self._connection.send_bytes(as_bytes(table))
                self._work.give(number, self._answer() or table)
        except (EOFError, OSError):
            status = self._process.wait()
            if is_ready or status < 0:
                self._work.fail(_ended(status, self._last_words()))
                return
        if not is_ready:
            self._work.say_alone(self._last_words() or "a worker could not read it")

    def _answer(self) -> pa.RecordBatch | None:
        """The worker's tokens of a batch; None where it failed."""
        if self._connection.recv_bytes() != DONE:
            return None
        return pa.ipc.open_stream(self._connection.recv_bytes()).read_next_batch()

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """End the worker, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._connection.close()
        self._words.close()


def _ended(status: int, words: str) -> TrainingError:
    how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
    said = f" Its last words: {words}." if words else ""
    return TrainingError(
        f"a worker process that tokenizes rows was ended {how}; the usual cause is too little memory.{said} "
        "Run it again with fewer processes: `training.dataset_num_proc: 1` does all in this one."
    )
