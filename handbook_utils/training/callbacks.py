"""What happens beside training: records for metrics.jsonl, a progress bar, a count of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

# what else happens beside training, made of the model as it starts and its tokenizer: handed down by
# `pipeline`, for what samples or scores lies in rooms that training does not import
Beside = Sequence[Callable[[Any, Any], TrainerCallback]]
# timings differ from run to run; what counts of them is in result.json
NOT_RECORDED = ("_runtime", "_per_second", "total_flos")


class MetricsRun(Protocol):
    """What the callback needs of a run folder."""

    def log_metrics(self, record: dict[str, Any], /) -> None:
        """Append one record."""

    def count_tokens(self, tokens: int, /) -> None:
        """Add to this session's tokens."""


class RecordMetrics(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Writes each logged step to the run folder, and counts the tokens of this session."""

    def __init__(self, run: MetricsRun) -> None:
        self._run = run
        self._tokens_before = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remember what earlier sessions have counted."""
        self._tokens_before = state.num_input_tokens_seen

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Store one record a logged step; the closing summary is no step."""
        if "train_loss" in logs:
            return
        record = {key: _plain(value) for key, value in logs.items() if not key.endswith(NOT_RECORDED)}
        self._run.log_metrics({"step": state.global_step, **record})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the run how many tokens were trained on in this session."""
        self._run.count_tokens(int(state.num_input_tokens_seen - self._tokens_before))


class ShowProgress(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """One bar on stderr: steps done, loss, time left."""

    def __init__(self, label: str) -> None:
        self._label = label
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,  # in a file a bar is only blank lines
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar, at the step a resumed run goes on from."""
        self._task = self._bar.add_task(
            self._label, total=state.max_steps, completed=state.global_step, loss=""
        )
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Show the newest loss."""
        if "loss" in logs:
            self._bar.update(self._task, loss=f"loss {float(logs['loss']):.3f} ")

    def say(self, text: str) -> None:
        """Print a warning above the bar."""
        self._bar.console.print(text, style="yellow", markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar away, whether training ended well or not."""
        self._bar.stop()


def _plain(value: Any) -> Any:
    """A value JSON can hold: what is not finite becomes null (a loss that is not stops the run itself)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
