"""What a pilot showed, one value per prompt: from run folders, a file of scores, or a judge's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handbook_utils.data.sources import Origin, read_rows
from handbook_utils.data.split import parse_split
from handbook_utils.errors import DataError, suggest
from handbook_utils.evaluation.judged.summary import summarise_judgements
from handbook_utils.evaluation.prompt_rows import prompt_means
from handbook_utils.pipeline.judgements import read_judgements
from handbook_utils.pipeline.tables import run_scores
from handbook_utils.runs.state import require_finished

Values = NDArray[np.float64]
Scores = Mapping[str, Values]


def pilot_values(sources: Sequence[str], *, by: str, minus: str | None = None, wins: bool = False) -> Values:
    """Paired differences per prompt, or wins minus one half.

    Args:
        sources: two run folders (A, then B) of `evaluate` or `score`; or one file of scores with
            `prompt_id` and two columns; or, for wins, a judge's rows.
        by: the score column (of B, where the columns stand in one file).
        minus: the column of A in a file of scores.
        wins: how often B is higher, minus one half, ties half.
    Raises:
        RunFolderError: a run that is not finished: its prompts are not all there.
        DataError: the prompts of the two are not the same (one is named), a prompt comes twice, or a
            column is missing.
    """
    if len(sources) == 2:
        for source in sources:
            require_finished(source)
        a, b = (run_scores(Path(source), by) for source in sources)
        return _paired(a, b, wins=wins)
    if len(sources) != 1:
        raise DataError(
            f"a pilot is two run folders (A, then B) or one file of scores, got {len(sources)} names"
        )
    if wins and minus is None:
        judged = read_judgements(sources[0])
        summarise_judgements(judged)  # refuses what cannot be paired
        return prompt_means(judged.preferences, judged.prompt_ids) - 0.5
    if minus is None:
        raise DataError(
            f"{sources[0]}: which column is A's? Give --minus COLUMN beside --by COLUMN, or two run folders."
        )
    return _of_file(sources[0], by, minus, wins=wins)


def _of_file(name: str, by: str, minus: str, *, wins: bool) -> Values:
    first, rows = read_rows(Origin(name, parse_split("train")))
    sides: tuple[dict[str, Values], dict[str, Values]] = ({}, {})
    for number, row in enumerate(rows, start=first):
        prompt = row.get("prompt_id", row.get("prompt"))
        if prompt is None:
            raise DataError(f"{name}: row {number} has no 'prompt_id'. {suggest('prompt_id', map(str, row))}")
        if str(prompt) in sides[0]:
            raise DataError(f"{name}: row {number} repeats prompt id '{prompt}'. Each may come once.")
        for side, column in zip(sides, (minus, by), strict=True):
            value = row.get(column)
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                hint = "" if column in row else f" {suggest(column, map(str, row))}"
                raise DataError(f"{name}: row {number} has no number in '{column}': {value!r}.{hint}")
            side[str(prompt)] = np.array([float(value)])
    return _paired(*sides, wins=wins)


def _paired(a: Scores, b: Scores, *, wins: bool) -> Values:
    lone = sorted(a.keys() ^ b.keys())
    if lone:
        side = "A" if lone[0] in a else "B"
        raise DataError(
            f"prompt '{lone[0]}' has scores of {side} only ({len(lone)} prompts are not in both). "
            "A paired pilot needs the same prompts."
        )
    if wins:
        shares = [(np.sign(b[prompt][:, None] - a[prompt]).mean()) / 2 for prompt in sorted(a)]
    else:
        shares = [b[prompt].mean() - a[prompt].mean() for prompt in sorted(a)]
    return np.array(shares, dtype=np.float64)
