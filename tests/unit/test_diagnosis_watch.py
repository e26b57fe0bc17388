"""Warnings while training: at the step where a run goes wrong, once, on the terminal and in the run's log."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest

from handbook_utils.training.watch import WatchLog


def train(values: list[float], say: Any, *, main: bool = True) -> None:
    watch = WatchLog(say)
    for step, loss in enumerate(values, 1):
        state = SimpleNamespace(global_step=step, is_world_process_zero=main)
        watch.on_log(
            None, state, None, {"loss": loss, "learning_rate": 1e-5, "grad_norm": 1.0, "epoch": step / 99}
        )
    watch.on_log(None, state, None, {"train_loss": 1.0, "train_runtime": 3.0})
    watch.on_train_end(None, state, None)


def test_a_run_that_goes_wrong_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []
    with caplog.at_level(logging.WARNING, logger="handbook_utils"):
        train([2.0 - n / 40 for n in range(20)] + [9.0 + n / 9 for n in range(30)], said.append)
    assert [text.split(": ")[1:3] for text in said] == [["fault", "diverged"]]
    step = int(said[0].split()[1].rstrip(":"))
    assert 20 < step <= 40
    assert said[0] in caplog.text


def test_a_healthy_run_is_left_in_peace() -> None:
    said: list[str] = []
    train([1 + math.exp(-n / 9) + 0.01 * math.sin(n * n) for n in range(60)], said.append)
    assert said == []


def test_only_the_main_process_warns() -> None:
    said: list[str] = []
    train([math.nan] * 20, said.append, main=False)
    assert said == []
