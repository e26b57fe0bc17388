"""The log diagnosed while it grows: a warning at the moment when a run goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from handbook_utils.diagnosis.diagnose import diagnose_table
from handbook_utils.diagnosis.finding import Finding
from handbook_utils.diagnosis.table import Table

LOGGER = logging.getLogger("handbook_utils")
# the log is read when it has grown by a quarter: often enough early, and some thirty times in a long run
FIRST, GROWTH = 5, 1.25


class WatchLog(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Warns of each caution and fault that the log shows, once; what a rule is not sure of is left out.

    Args:
        say: shows one line to the user; the run's log has it anyway.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._table = Table()
        self._next = float(FIRST)
        self._said: set[tuple[str, str]] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Keep the record, and look at all of them when they have become a quarter more."""
        if "train_loss" in logs or not state.is_world_process_zero:
            return
        self._table.add({**logs, "step": state.global_step})
        if self._table.records >= self._next:
            self._next = self._table.records * GROWTH
            self._look(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look once more, at the whole log."""
        if state.is_world_process_zero:
            self._look(state.global_step)

    def _look(self, step: int) -> None:
        for finding in diagnose_table(self._table).findings:
            key = (finding.rule, finding.severity)
            if finding.severity == "note" or finding.confidence == "low" or key in self._said:
                continue
            self._said.add(key)
            text = warning(finding, step)
            LOGGER.warning(text)
            if self._say is not None:
                self._say(text)


def warning(finding: Finding, step: int) -> str:
    """A finding in one line, with what to try."""
    return f"step {step}: {finding.severity}: {finding.rule}: {finding.evidence}. Try: {finding.remedy}."
