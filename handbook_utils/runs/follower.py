"""The run folder as seen by all training processes but the first: to read from, never to write to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.training import StageRecipe


class FollowedRun(RunFolder):
    """A run folder that process 0 owns: its lock, manifest, metrics and result are left to that one."""

    is_main = False

    def __init__(self, path: Path, recipe: StageRecipe, inputs: Mapping[str, Path]) -> None:
        super().__init__(path, recipe, inputs, {}, progress=False)

    def log_metrics(self, record: Mapping[str, Any]) -> None:
        """Leave it to process 0, which logs the mean over all."""

    def count_tokens(self, tokens: int) -> None:
        """Leave it to process 0, which counts those of all."""

    def note(self, **facts: Any) -> None:
        """Leave it to process 0, which sees the same rows."""
