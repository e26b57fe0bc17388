"""This process: which of those that train together it is, its cores and threads, its garbage collector."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


def is_launched() -> bool:
    """Whether a launcher (accelerate, torchrun) started this process as one of several."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size() -> int:
    """How many processes train together, over all nodes."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def rank() -> int:
    """This process's number; 0 owns the run folder."""
    return int(os.environ.get("RANK", "0")) if is_launched() else 0


def processes_here() -> int:
    """How many of the processes that train together run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_launched() else 1


def usable_cores() -> int:
    """Cores that this process may use, which are fewer than the machine's where a scheduler says so."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# OpenMP's own name; GNU's and LLVM's libraries read it once, when torch is imported
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


def wait_without_spinning() -> None:
    """Let PyTorch's threads sleep while they wait, and not spin; to be called before torch is imported.

    As soon as another program runs too, a thread that spins keeps a core from the one it waits for. A user's
    own setting is kept.
    """
    for name, value in PATIENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def without_collector() -> Iterator[None]:
    """Look for no circular garbage while a block runs: many plain objects are made, and all are kept.

    Python would look through all of them again and again, which takes a third of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
