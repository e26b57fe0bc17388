"""Trainers that take turns, a step each, in one process: a machine that slows down for a while slows all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

Conditions = Callable[[], AbstractContextManager[None]]


class Turn(TrainerCallback):
    """One side's turns and its CPU seconds: a step, then the next side's step, until all have trained."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions, self.mine = conditions, threading.Semaphore(0)
        self.held = ExitStack()
        self.steps: list[float] = []

    @property
    def seconds(self) -> float:
        """From the first step's beginning to the end of training, the others' turns left out."""
        return sum(self.steps)

    def take(self) -> None:
        """Wait for the turn."""
        self.mine.acquire()
        self.held.enter_context(self.conditions())

    def give(self) -> None:
        """Let the next side do its step."""
        self.held.close()
        self.next.mine.release()

    def _count(self) -> None:
        now = time.thread_time()
        self.steps.append(now - self.began)
        self.began = now

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.thread_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._count()
        self.give()
        self.take()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._count()


def in_turns(
    sides: Mapping[str, Conditions],
    make: Callable[[str, Turn], Trainer],
    around: Callable[[str, Trainer], AbstractContextManager[None]] = lambda *_: nullcontext(),
) -> tuple[dict[str, Turn], dict[str, Trainer]]:
    """Train one trainer per side.

    Args:
        sides: under which conditions each side's steps run.
        make: builds a side's trainer, with its turn among the callbacks.
        around: what is held around a side's whole training.
    """
    turns = {side: Turn(conditions) for side, conditions in sides.items()}
    for turn, after in zip(turns.values(), [*turns.values()][1:] + [*turns.values()][:1], strict=True):
        turn.next = after
    trainers = {side: make(side, turn) for side, turn in turns.items()}
    threads = [
        threading.Thread(target=_train, args=(trainers[side], turn, around(side, trainers[side])))
        for side, turn in turns.items()
    ]
    for thread in threads:
        thread.start()
    next(iter(turns.values())).mine.release()
    for thread in threads:
        thread.join()
    return turns, trainers


def _train(trainer: Trainer, turn: Turn, around: AbstractContextManager[None]) -> None:
    """Train on this thread; hand the turn on even where training fails, or the others would wait forever."""
    torch.set_num_threads(1)
    turn.take()
    try:
        with around:
            trainer.train()
    finally:
        turn.give()
