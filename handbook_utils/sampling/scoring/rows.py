"""Anyone's rows with scores beside them, and the metrics of each score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.errors import DataError, RecipeError
from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.records import Estimate
from handbook_utils.sampling.metrics import mean_metrics
from handbook_utils.sampling.private_data import row_text, urls_elsewhere, warn_of_private_data
from handbook_utils.sampling.rows import AnsweredRow
from handbook_utils.sampling.scoring.instructions.accuracy import instruction_metrics
from handbook_utils.sampling.scoring.score import ScoreFailure, score
from handbook_utils.sampling.scoring.scorers.load import load_scorers
from handbook_utils.schema.sampling import LengthSection, ScorerSection

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class ScoredRows:
    """What became of some rows.

    Attributes:
        rows: as they were, with a column per score; of pairs `NAME.chosen`, `NAME.rejected` and
            `NAME.margin`.
        metrics: means over prompts; of pairs also `NAME.accuracy`, how often the chosen answer scores higher
            (ties count half).
        failures: rows that a scorer had no number for.
    """

    rows: list[dict[str, Any]]
    metrics: dict[str, Estimate]
    failures: list[ScoreFailure]


def score_rows(
    answered: Sequence[AnsweredRow],
    scorers: Mapping[str, ScorerSection],
    *,
    rows_per_batch: int = 256,
    advance: Callable[[int, int], None] = lambda tokens, rows: None,
) -> ScoredRows:
    """Score rows of anyone's data.

    Args:
        answered: as `rows.read_answered` gives them.
        scorers: by the name of their column.
        rows_per_batch: answers per forward pass of a reward model.
        advance: told of (0, rows) as they are scored.
    Raises:
        DataError: a column of that name is there already; a score is not a finite number.
        RecipeError: a scorer that cannot be loaded, or does not fit such rows.
        ModelError: no such model, or one that gives no score.
    """
    _check(answered, scorers)
    loaded = load_scorers(scorers, ResolvedInputs(), rows_per_batch=rows_per_batch)
    for url in urls_elsewhere(scorers.values()):
        warn_of_private_data(url, (row_text(each) for row in answered for each in row.answers.values()))
    sides = list(answered[0].answers)
    rows: list[dict[str, Any]] = [{}] * len(answered)
    failures: list[ScoreFailure] = []
    for batch in _batches(answered):
        # all answers of some rows at once: like lengths share a forward pass
        scored: Any = [answered[row].answers[side] for row in batch for side in sides]
        for scorer in loaded:
            scored = score(scored, scorer, failed=failures.append)
        for place, row in enumerate(batch):
            found = [one.scores for one in scored[place * len(sides) : (place + 1) * len(sides)]]
            rows[row] = {**answered[row].row, **_columns(found, sides)}
        advance(0, len(batch))
    names = [name for name in _columns(found, sides) if name in rows[0]]
    prompts = np.unique([row.answers[sides[0]].prompt_id for row in answered], return_inverse=True)[1]
    columns = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}
    return ScoredRows(rows, _metrics(columns, prompts), failures)


def _batches(answered: Sequence[AnsweredRow]) -> Iterator[list[int]]:
    """Row numbers, some at a time, all of a prompt together: a judge compares them with each other."""
    by_prompt: dict[str, list[int]] = {}
    for number, row in enumerate(answered):
        by_prompt.setdefault(next(iter(row.answers.values())).prompt_id, []).append(number)
    batch: list[int] = []
    for numbers in by_prompt.values():
        batch += numbers
        if len(batch) >= ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _columns(scores: Sequence[Mapping[str, float]], sides: Sequence[str]) -> dict[str, float]:
    """Scores of a row's answers by column; `words` is no one's scorer."""
    names = [name for name in scores[0] if name != "words"]
    if len(sides) == 1:
        return {name: scores[0][name] for name in names}
    columns = {
        f"{name}.{side}": found[name] for name in names for side, found in zip(sides, scores, strict=True)
    }
    return columns | {f"{name}.margin": scores[0][name] - scores[1][name] for name in names}


def _metrics(columns: Mapping[str, Any], prompts: Any) -> dict[str, Estimate]:
    metrics = mean_metrics(columns, prompts) | instruction_metrics(columns, prompts)
    for name, values in columns.items():
        if name.endswith(".margin") and np.isfinite(values).any():
            there = np.isfinite(values)
            higher = np.where(values[there] > 0, 1.0, np.where(values[there] == 0, 0.5, 0.0))
            accuracy = mean_estimate(higher, clusters=prompts[there], unit="rate")
            metrics[f"{name.removesuffix('.margin')}.accuracy"] = accuracy
    return metrics


def _check(answered: Sequence[AnsweredRow], scorers: Mapping[str, ScorerSection]) -> None:
    for name, section in scorers.items():
        taken = [c for c in answered[0].row if c == name or c.startswith(f"{name}.")]
        if taken:
            raise DataError(f"the rows have a column '{taken[0]}' already. Give the scorer another name.")
        if isinstance(section, LengthSection) and section.unit == "tokens":
            raise RecipeError(
                f"scorers.{name}: such rows do not say how many tokens an answer has. Take words."
            )


def failed_counts(failures: Sequence[ScoreFailure]) -> dict[str, int]:
    """Rows without a score, by scorer."""
    counts: dict[str, int] = {}
    for failure in failures:
        counts[failure.scorer] = counts.get(failure.scorer, 0) + 1
    return counts
