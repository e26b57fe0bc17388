"""Several local processes that sample for one run, watched by the run's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from handbook_utils import errors
from handbook_utils.errors import HandbookError, RunFolderError
from handbook_utils.sampling.execution.shards import ShardRecord, read_records

LOOK_EVERY_S = 0.5
EXPECTED = 2  # a worker's exit status after an error that it has described


Worker = subprocess.Popen[bytes]


def run_workers(count: int, folder: Path, location: str) -> Iterator[ShardRecord]:
    """Have so many processes make the missing shards; yield the record of each as it is made.

    All stop when one of them fails. When one is killed the others make its shards.

    Args:
        count: processes; on GPUs each takes one, in turns.
        folder: the run folder, with a plan.
        location: the model.
    Raises:
        HandbookError: what a worker raised; or one was killed and the others could not make up for it.
    """
    known = set(read_records(folder))
    with ExitStack() as stack:
        workers = [_start(stack, number, folder, location) for number in range(count)]
        is_over = False
        while not is_over:
            is_over = all(worker.poll() is not None for worker in workers)
            yield from _new_records(folder, known)
            _raise_failure(workers)
            if not is_over:
                time.sleep(LOOK_EVERY_S)
        killed = [-worker.returncode for worker in workers if worker.returncode < 0]
        if len(killed) == count:
            raise RunFolderError(
                f"{folder}: all {count} workers were killed (signal {killed[0]}; 9: often out of memory). "
                "What was finished is kept; run it again to go on, perhaps with fewer workers."
            )


def _start(stack: ExitStack, number: int, folder: Path, location: str) -> Worker:
    command = [sys.executable, "-m", "handbook_utils.sampling.execution.worker", str(folder), location]
    # a session of its own: Ctrl-C reaches this process, which ends the workers by closing their input
    worker = stack.enter_context(
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(number),
            start_new_session=True,
        )
    )
    return worker


def _environment(number: int) -> dict[str, str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(each) for each in range(torch.cuda.device_count())]
    # the last digit of a sum depends on the number of threads, so each worker has as many as this process
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **device_of(number, devices)}


def device_of(number: int, devices: Sequence[str]) -> dict[str, str]:
    """What a worker finds in its environment, so that workers share the GPUs out in turns.

    >>> device_of(3, ["0", "2"]), device_of(3, [])
    ({'CUDA_VISIBLE_DEVICES': '2'}, {})
    """
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}


def _new_records(folder: Path, known: set[int]) -> Iterator[ShardRecord]:
    for number, record in read_records(folder).items():
        if number not in known:
            known.add(number)
            yield record


def _raise_failure(workers: Sequence[Worker]) -> None:
    """Raise what a worker has ended with, other than by a signal."""
    for number, worker in enumerate(workers):
        status = worker.poll()
        if status is None or status <= 0:
            continue
        assert worker.stdout is not None
        if status == EXPECTED and (words := worker.stdout.read()):
            name, message = json.loads(words)
            kind: type[HandbookError] = getattr(errors, name)
            raise kind(message)
        raise RunFolderError(
            f"worker {number} ended with status {status}; its traceback is above. What was finished is kept."
        )
