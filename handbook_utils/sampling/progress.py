"""Progress bars of sampling and scoring: answers, tokens per second, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def answer_bar(
    label: str, total: int | None, *, done: int = 0, show: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr while the block runs; give the function that moves it.

    Args:
        label: what is being done.
        total: answers in all; None where they are not counted before.
        done: answers of an earlier, interrupted session.
        show: False for no bar at all.
    Returns:
        A function of (new tokens, newly finished answers).
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("answers  {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    started, tokens_so_far = time.monotonic(), 0
    console = Console(stderr=True)
    hidden = not (show and console.is_terminal)  # in a file a bar is only blank lines
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(label, total=total, completed=done, speed="")

        def advance(tokens: int, answers: int) -> None:
            nonlocal tokens_so_far
            tokens_so_far += tokens
            rate = tokens_so_far / max(time.monotonic() - started, 1e-6)
            bar.update(task, advance=answers, speed=f"{rate:,.0f} tokens/s " if tokens_so_far else "")

        yield advance
