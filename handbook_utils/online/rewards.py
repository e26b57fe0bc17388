"""Rewards of sampled answers by a recipe's scorers: numbers that a policy can be trained on, or an error."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from handbook_utils.errors import TrainingError
from handbook_utils.records import Completion, ScoredCompletion
from handbook_utils.runs.log import warn_and_log
from handbook_utils.sampling.scoring.score import ScoreFailure, Scorer, score

LOGGER = logging.getLogger("handbook_utils")
# answers that are scored twice at the start
TWICE = 4
# differences by rounding of another batch
ROUNDING = 1e-3


class UnscoredAnswersWarning(UserWarning):
    """Answers that a scorer has no number for: they are not learned from."""


class EqualRewardsWarning(UserWarning):
    """All answers of a step have one reward: nothing can be learned from them."""


@dataclass
class Rewards:
    """Scores answers by every scorer of a recipe.

    Attributes:
        scorers: by the name of the column that is the reward; what else a scorer gives is kept beside it.
        weights: of each in the reward, 1 unless told.
    """

    scorers: Mapping[str, Scorer]
    weights: Mapping[str, float] = field(default_factory=dict)
    _failed_once: set[str] = field(default_factory=set)
    _was_equal: bool = False

    def of(self, completions: Sequence[Completion], *, step: int) -> list[ScoredCompletion]:
        """The answers with their scores; NaN where a scorer has no number.

        Raises:
            TrainingError: a scorer has no number for any answer.
            DataError: a score is a number but not a finite one.
        """
        scored: Sequence[Completion] = completions
        for name, scorer in self.scorers.items():
            failures: list[ScoreFailure] = []
            scored = score(scored, scorer, failed=failures.append)
            self._check(name, scored, failures, step)
        return list(scored)  # type: ignore[arg-type]  # there is a scorer

    def table(self, scored: Sequence[ScoredCompletion]) -> NDArray[np.float64]:
        """(answers, scorers) each scorer's number."""
        return np.array([[row.scores[name] for name in self.scorers] for row in scored])

    def total(self, scored: Sequence[ScoredCompletion]) -> NDArray[np.float64]:
        """(answers,) the weighted sum; NaN where no scorer has a number."""
        table = self.table(scored)
        weights = np.array([self.weights.get(name, 1.0) for name in self.scorers])
        total: NDArray[np.float64] = np.nansum(table * weights, axis=1)
        total[np.isnan(table).all(axis=1)] = np.nan
        return total

    def check_repeats(self, scored: Sequence[ScoredCompletion]) -> None:
        """Refuse a scorer that gives the same answers other numbers the second time: it keeps state.

        Raises:
            TrainingError: names the scorer and both numbers.
        """
        first = scored[:TWICE]
        plain = [Completion(**{name: getattr(row, name) for name in FIELDS}) for row in first]
        for name, scorer in self.scorers.items():
            again = score(plain, scorer, failed=lambda _: None)
            for before, now in zip(first, again, strict=True):
                one, two = before.scores[name], now.scores[name]
                if not (np.isnan(one) and np.isnan(two)) and not abs(one - two) <= ROUNDING * max(
                    1, abs(one)
                ):
                    raise TrainingError(
                        f"scorers.{name}: the same answer to prompt '{now.prompt_id}' has the score {one:g} "
                        f"and then {two:g}. A reward has to be a function of prompt and answer: let it keep "
                        "no state between calls and draw nothing at random."
                    )

    def tell_equal(self, total: NDArray[np.float64], samples: int, *, step: int) -> bool:
        """Whether no group of a step has answers of different reward, which is said the first time."""
        groups = total.reshape(-1, samples)
        spread = np.nanmax(groups, axis=1, initial=-np.inf) - np.nanmin(groups, axis=1, initial=np.inf)
        is_equal = not bool((spread > 1e-9).any())
        if is_equal and not self._was_equal:
            self._was_equal = True
            warn_and_log(
                f"step {step + 1}: the {samples} answers to each prompt have equal rewards, so nothing can "
                "be learned from them. Easier or harder prompts, or a finer scorer, tell them apart.",
                EqualRewardsWarning,
            )
        return is_equal

    def _check(
        self, name: str, scored: Sequence[Completion], failures: Sequence[ScoreFailure], step: int
    ) -> None:
        own = [failure for failure in failures if failure.scorer == name]
        if not own:
            return
        place = f"prompt '{own[0].prompt_id}', sample {own[0].sample_index}"
        if len(own) == len(scored):
            raise TrainingError(
                f"scorers.{name} has no number for any of the {len(scored)} answers of step {step + 1}; the "
                f"first is {place}: {own[0].reason}. Mend the scorer, then run again: the answers are kept."
            )
        if name not in self._failed_once:
            self._failed_once.add(name)
            warn_and_log(
                f"step {step + 1}: scorers.{name} has no number for {len(own)} of {len(scored)} answers, "
                f"which are not learned from by it; the first is {place}: {own[0].reason}",
                UnscoredAnswersWarning,
            )


FIELDS = tuple(Completion.__dataclass_fields__)
