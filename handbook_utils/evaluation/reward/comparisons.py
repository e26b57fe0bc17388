"""Scores of compared answers as arrays, beside two rulers that know nothing of quality: length and chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handbook_utils.errors import DataError
from handbook_utils.evaluation.intervals import Array

LENGTH, RANDOM = "length ruler", "random ruler"


@dataclass(frozen=True)
class Scores:
    """What one scorer says of all rows, (rows,) each.

    Attributes:
        right: score of the answer that should win; of several the lowest.
        wrong: score of the answer that should lose; of several the highest.
    """

    right: Array
    wrong: Array

    @property
    def margin(self) -> Array:
        """By how much the right answer leads; a row counts as correct above 0, half at 0."""
        return self.right - self.wrong

    @property
    def correct(self) -> Array:
        """1 where the right answer scores higher, 0.5 where both score alike, else 0."""
        return np.asarray((np.sign(self.margin) + 1) / 2)


@dataclass(frozen=True)
class Comparisons:
    """Rows of compared answers with their scores.

    Attributes:
        prompts: (rows,) number of each row's prompt.
        subsets: (rows,) name of the part of the benchmark; "" without parts.
        models: by name, in the order given.
        words_right: (rows,) words of the answer that should win.
        words_wrong: (rows,) words of the answer that should lose.
        rulers: `LENGTH` and `RANDOM`, scored and reduced as the models are.
        gold: the true reward of both, where it is known.
        chosen_first: (rows,) 1 where the winning answer was shown first, 0 where last; None where not known.
        is_pair: every row has one answer on each side.
    """

    prompts: NDArray[np.intp]
    subsets: Sequence[str]
    models: Mapping[str, Scores]
    words_right: Array
    words_wrong: Array
    rulers: Mapping[str, Scores]
    gold: Scores | None = None
    chosen_first: Array | None = None
    is_pair: bool = True

    def subset_rows(self) -> dict[str, NDArray[np.intp]]:
        """The rows of each part, in the order of first appearance; {} where there is one part."""
        names, first, codes = np.unique(np.asarray(self.subsets), return_index=True, return_inverse=True)
        if len(names) < 2:
            return {}
        order = np.argsort(codes, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(codes))[:-1])
        return {str(names[i]): parts[i] for i in np.argsort(first)}


def ruler_scores(words: Array, starts: NDArray[np.intp], is_right: NDArray[np.bool_]) -> dict[str, Scores]:
    """Both rulers' scores, reduced as a model's: a longer answer scores higher, or a random one does.

    Args:
        words: (answers,) words of all rows' answers, row after row.
        starts: (rows,) place of each row's first answer.
        is_right: (answers,) which of them should win.
    """
    chance = np.random.default_rng(0).random(len(words))
    return {LENGTH: reduce_scores(words, starts, is_right), RANDOM: reduce_scores(chance, starts, is_right)}


def reduce_scores(scores: Array, starts: NDArray[np.intp], is_right: NDArray[np.bool_]) -> Scores:
    """The lowest score of each row's right answers beside the highest of its wrong ones.

    So a row counts as correct where every right answer beats every wrong one: with one of each, where the
    chosen beats the rejected; with one and three, where the best of four is found.

    >>> found = reduce_scores(np.array([3.0, 1.0, 2.0]), np.array([0]), np.array([True, False, False]))
    >>> found.margin.tolist()
    [1.0]
    """
    right = np.minimum.reduceat(np.where(is_right, scores, np.inf), starts)
    wrong = np.maximum.reduceat(np.where(is_right, -np.inf, scores), starts)
    return Scores(right, wrong)


def check_scores(name: str, scores: Scores) -> None:
    """Refuse scores that say nothing.

    Raises:
        DataError: no rows, a score that is not finite (its row named), or the same score everywhere.
    """
    both = np.concatenate([scores.right, scores.wrong])
    if not len(both):
        raise DataError("there are no pairs to report on")
    bad = np.flatnonzero(~np.isfinite(both))
    if len(bad):
        row = int(bad[0]) % len(scores.right) + 1
        raise DataError(f"'{name}' has the score {both[bad[0]]} in row {row}. Score it again, or drop it.")
    if np.ptp(both) == 0:
        raise DataError(
            f"'{name}' gives every answer the score {both[0]:g}, so it cannot rank any. "
            "Is its score head the trained one?"
        )
