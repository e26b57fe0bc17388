"""Scores for sampled answers: what a scorer is, and how its numbers are put beside the answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from handbook_utils.errors import DataError
from handbook_utils.libraries.versions import naming_untested_versions
from handbook_utils.records import REJECTED, Completion, Message, ScoredCompletion

LOGGER = logging.getLogger("handbook_utils")


@dataclass(frozen=True)
class NoScore:
    """Stands in a column where a scorer has no number for a row, and says why."""

    reason: str


class Scorer(Protocol):
    """Gives one or more columns of numbers, one number a completion."""

    def __call__(
        self, completions: Sequence[Completion]
    ) -> Mapping[str, Sequence[float | NoScore] | Sequence[float | NoScore | None] | NDArray[np.float64]]:
        """Return columns by name, each as long as `completions`.

        None in a column: no number, and another column of the same scorer says why.
        """
        ...


@dataclass(frozen=True)
class ScoreFailure:
    """A row that a scorer had no number for."""

    scorer: str
    prompt_id: str
    sample_index: int
    reason: str

    def to_json(self) -> dict[str, str | int]:
        """Plain values."""
        return asdict(self)


@naming_untested_versions
def score(
    completions: Sequence[Completion],
    scorer: Scorer,
    *,
    failed: Callable[[ScoreFailure], None] | None = None,
) -> list[ScoredCompletion]:
    """Score every completion; scores it had before are kept, `words` (of its text) is always there.

    What speculative rejection stopped is a beginning and no answer: its scores are NaN.

    Args:
        completions: samples, scored already or not.
        scorer: such as `GoldScorer()` or `RewardModelScorer(model, tokenizer)`.
        failed: told of each row that the scorer has no number for (a verifier that raises, a judge without
            a verdict); such a row's score is NaN, and no selection takes it. Not given: a warning tells.
    Returns:
        New records in the same order.
    Raises:
        DataError: a score is a number but not a finite one; prompt, sample and column are named.
    """
    columns = _columns(completions, scorer)
    failures: list[ScoreFailure] = []
    scored = []
    for place, row in enumerate(completions):
        found: dict[str, float] = {}
        for name, column in columns.items():
            value = column[place]
            if value is None:
                found[name] = math.nan
            elif isinstance(value, NoScore):
                failures.append(ScoreFailure(name, row.prompt_id, row.sample_index, value.reason))
                found[name] = math.nan
            else:
                found[name] = _finite(row, name, float(value))
        earlier = row.scores if isinstance(row, ScoredCompletion) else {}
        base = {field.name: getattr(row, field.name) for field in fields(Completion)}
        words = math.nan if row.finish_reason == REJECTED else float(len(row.completion.split()))
        scores = {**earlier, **found, "words": words}
        scored.append(ScoredCompletion(**base, scores=scores))
    _tell(failures, failed)
    return scored


def _columns(
    completions: Sequence[Completion], scorer: Scorer
) -> Mapping[str, Sequence[float | NoScore | None]]:
    """The scorer's columns; None for beginnings that were never finished, which it is not asked about."""
    finished = [place for place, row in enumerate(completions) if row.finish_reason != REJECTED]
    columns: dict[str, list[float | NoScore | None]] = {}
    for name, values in scorer([completions[place] for place in finished]).items():
        columns[name] = [None] * len(completions)
        for place, value in zip(finished, values, strict=True):
            columns[name][place] = value
    return columns


def prompt_text(messages: Sequence[Message]) -> str:
    """What the user said last: the text that the pocket world reads a prompt from.

    >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    'Hello'
    """
    for message in reversed(messages):
        if message["role"] == "user":
            return message["content"]
    raise DataError("a prompt has no message of role 'user', so the pocket world cannot read it.")


def _tell(failures: Sequence[ScoreFailure], failed: Callable[[ScoreFailure], None] | None) -> None:
    if failed is not None:
        for failure in failures:
            failed(failure)
    elif failures:
        first = failures[0]
        LOGGER.warning(
            "%d rows have no score '%s'; the first is prompt '%s', sample %d: %s",
            len(failures),
            first.scorer,
            first.prompt_id,
            first.sample_index,
            first.reason,
        )


def _finite(row: Completion, name: str, value: float) -> float:
    if not math.isfinite(value):
        raise DataError(
            f"prompt '{row.prompt_id}', sample {row.sample_index}: the score '{name}' is {value}. A "
            "reward model gives this when its training diverged or its dtype overflows (try float32)."
        )
    return value
