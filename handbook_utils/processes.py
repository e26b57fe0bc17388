"""Which of the processes that train together this one is, as their launcher says in the environment."""

from __future__ import annotations

import os


def is_launched() -> bool:
    """Whether a launcher (accelerate, torchrun) started this process as one of several."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size() -> int:
    """How many processes train together, over all nodes."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def rank() -> int:
    """This process's number; 0 owns the run folder."""
    return int(os.environ.get("RANK", "0")) if is_launched() else 0
