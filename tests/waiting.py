"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_for(
    condition: Callable[[], object], *, timeout_s: float = 60, failure: str = "it never came"
) -> None:
    """Return as soon as the condition holds; it may raise what it finds wrong itself.

    Args:
        condition: looked at every hundredth of a second.
        timeout_s: after which the test fails.
        failure: what it fails with.
    """
    last = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < last, failure
        time.sleep(0.01)
