"""Prepare conversations once with whatever package is on the path: one side of `bench_preparation.py`.

`python _prepare.py DATA TOKENIZER` prints seconds, CPU seconds, peak GiB, conversations, and a checksum of
the rows as a number.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import resource
import sys
import threading
import time
from typing import Any

import psutil
from transformers import PreTrainedTokenizerFast

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.data.training_data import load_training_data
from handbook_utils.schema.recipe import check_recipe

try:
    from handbook_utils.training.rows.labelled import check_rows, training_rows
except ModuleNotFoundError:  # the package of before
    from handbook_utils.training.rows import check_rows, training_rows

CORES, LOOK_EVERY_S = 2, 0.05


class PeakMemory(threading.Thread):
    """Bytes of memory of this process and its children that are no other process's, at most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._is_over = 0, threading.Event()

    def run(self) -> None:
        """Look until told to stop."""
        me = psutil.Process()
        while not self._is_over.wait(LOOK_EVERY_S):
            held = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    held += process.memory_full_info().uss
                except psutil.Error:
                    continue  # it has just ended
            self.peak = max(self.peak, held)

    def stop(self) -> int:
        """The peak."""
        self._is_over.set()
        self.join()
        return self.peak


def measure(data: str, tokenizer: str) -> None:
    """Prepare once, and print the figures."""
    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    if hasattr(os, "sched_setaffinity"):  # macOS has none
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    memory = PeakMemory()
    memory.start()
    began, used = time.perf_counter(), cpu_seconds()
    rows = prepare(data, fast)
    seconds, used = time.perf_counter() - began, cpu_seconds() - used
    peak = memory.stop() / 2**30
    print(seconds, used, peak, len(rows), checksum(rows))


def cpu_seconds() -> float:
    """Of this process and the children that have ended."""
    return sum(
        each.ru_utime + each.ru_stime
        for each in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def checksum(rows: Any) -> int:
    """A number of 48 bits, which a float holds exactly, of the rows as they lie in memory."""
    digest = hashlib.sha256()
    for column in rows.data.table.columns:
        for buffer in (part for chunk in column.chunks for part in chunk.buffers() if part is not None):
            digest.update(buffer)
    return int.from_bytes(digest.digest()[:6], "big")


def prepare(path: str, tokenizer: Any) -> Any:
    """The rows that an SFT stage hands to its trainer."""
    content = {"stage": "sft", "model": {"name": "none"}, "data": [{"name": path}], "global_batch_size": 8}
    recipe: Any = check_recipe(content, "benchmark")
    kind = {"kind": "conversation"} if "kind" in inspect.signature(load_training_data).parameters else {}
    data = load_training_data(recipe, ResolvedInputs(), **kind)
    data.notes()
    with quiet_libraries():
        check_rows(tokenizer, data.train)
        return training_rows(recipe, tokenizer, data.train)


if __name__ == "__main__":
    measure(*sys.argv[1:])
