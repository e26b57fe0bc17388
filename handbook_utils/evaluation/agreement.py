"""Do people agree: Cohen's kappa, Krippendorff's alpha and plain agreement, with intervals over items.

Both coefficients are one minus a ratio: how often judgements of one item differ, over how often they would
differ if the same judgements were dealt to the items at random. 1 is perfect agreement, 0 is chance.

The interval is of the logarithm of that ratio, by the delta method with items as independent units. It
never ends above 1, and where few items differ it covers better than resampling does (its coverage is tested
in `tests/unit/test_agreement.py`). Where no item differs there is nothing to take a logarithm of: then the
lower end follows from the exact upper bound of the share of items that differ (Clopper and Pearson 1934).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from handbook_utils.errors import DataError, suggest
from handbook_utils.evaluation.intervals import Array
from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.records import Estimate

DISTANCES = ("nominal", "interval")
FEWEST_ITEMS = 2


@dataclass(frozen=True)
class _Disagreement:
    """Observed over expected disagreement, and how each item moves its logarithm.

    Attributes:
        observed: share of pairs of judgements that differ, or their mean distance.
        expected: the same if judgements were dealt at random.
        influence: (items,) of the logarithm of their ratio.
        most: the largest disagreement that an item can have.
    """

    observed: float
    expected: float
    influence: Array
    most: float = 1.0


def cohen_kappa(first: ArrayLike, second: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Cohen's kappa of two people on the items that both judged.

    Args:
        first: (items,) the first person's judgements as numbers; NaN where there is none.
        second: (items,) the second person's.
        level: confidence level.
    Returns:
        Kappa; its `n` counts the items that both judged.
    Raises:
        DataError: other lengths, fewer than two common items, or only one judgement was ever given, so that
            chance and perfect agreement are the same.
    Source: Cohen 1960. Book: chapter "Data: collect, mix, clean".

    >>> kappa = cohen_kappa([1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    >>> round(kappa.value, 3), kappa.n
    (0.4, 50)
    """
    one, other = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if one.ndim != 1 or one.shape != other.shape:
        raise DataError(f"expected two lists of the same length, got shapes {one.shape} and {other.shape}")
    common = ~(np.isnan(one) | np.isnan(other))
    _check_items(int(common.sum()))
    categories, codes = np.unique(np.stack([one[common], other[common]]), return_inverse=True)
    left, right = np.eye(len(categories))[codes.reshape(2, -1)]
    differs = 1.0 - (left * right).sum(axis=1)
    mine, theirs = left.mean(axis=0), right.mean(axis=0)
    expected = 1.0 - float(mine @ theirs)
    _check_expected(expected)
    observed = float(differs.mean())
    # of the product of the two people's shares, each item moves both
    moved = 2 * float(mine @ theirs) - left @ theirs - right @ mine
    pull = differs / observed - 1.0 if observed else np.zeros_like(differs)
    found = _Disagreement(observed, expected, pull - moved / expected)
    return _estimate(found, "kappa", level)


def krippendorff_alpha(values: ArrayLike, *, distance: str = "nominal", level: float = 0.95) -> Estimate:
    """Krippendorff's alpha of any number of people, each of whom may have judged any of the items.

    Args:
        values: (items, people) judgements as numbers; NaN where there is none.
        distance: "nominal" counts all different judgements alike, "interval" by their squared gap.
        level: confidence level.
    Returns:
        Alpha; its `n` counts the items with at least two judgements.
    Raises:
        DataError: no such distance, fewer than two items with two judgements, or only one judgement was ever
            given, so that chance and perfect agreement are the same.
    Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).

    >>> round(krippendorff_alpha([[0, 0], [1, 1], [0, 1], [0, 0]]).value, 3)
    0.533
    """
    if distance not in DISTANCES:
        raise DataError(f"distance: unknown value '{distance}'. {suggest(distance, DISTANCES)}")
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise DataError(f"values: expected items by people, got shape {table.shape}")
    table = table[(~np.isnan(table)).sum(axis=1) >= 2]
    _check_items(len(table))
    categories = np.unique(table[~np.isnan(table)])
    counts = np.stack([(table == category).sum(axis=1) for category in categories], axis=1).astype(np.float64)
    gaps = np.subtract.outer(categories, categories)
    apart = gaps**2 if distance == "interval" else (gaps != 0).astype(np.float64)
    judged = counts.sum(axis=1)
    # twice the distance of each pair of an item's judgements, over the others that each was compared with
    differs = np.einsum("ic,ck,ik->i", counts, apart, counts) / (judged - 1)
    totals, number = counts.sum(axis=0), float(judged.sum())
    at_random = float(totals @ apart @ totals)
    _check_expected(at_random)
    observed = float(differs.sum()) / number
    items = len(table)
    pull = items * differs / differs.sum() if observed else np.zeros(items)
    influence = pull + items * judged / (number - 1) - 2 * items * (counts @ apart @ totals) / at_random
    expected = at_random / (number * (number - 1))
    return _estimate(_Disagreement(observed, expected, influence, float(apart.max())), "alpha", level)


def plain_agreement(values: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Share of pairs of judgements of one item that are equal, every item counting once.

    Args:
        values: (items, people) judgements as numbers; NaN where there is none.
        level: confidence level.
    Raises:
        DataError: no item has two judgements.

    >>> plain_agreement([*[[0, 0], [1, 1], [0, 1], [0, 0]] * 20, [1, float("nan")]]).value
    0.75
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[(~np.isnan(table)).sum(axis=1) >= 2]
    _check_items(len(table))
    return mean_estimate([_equal_share(row[~np.isnan(row)]) for row in table], unit="rate", level=level)


def _equal_share(judgements: Array) -> float:
    counts = np.unique(judgements, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (len(judgements) * (len(judgements) - 1)))


def _check_items(items: int) -> None:
    if items < FEWEST_ITEMS:
        raise DataError(
            f"{items} items were judged by two people or more, and agreement needs at least {FEWEST_ITEMS}. "
            "Let people judge more of the same items."
        )


def _check_expected(expected: float) -> None:
    if expected <= 0:
        raise DataError(
            "all judgements are the same one, so agreement beyond chance has no value: chance does as well."
        )


def _estimate(found: _Disagreement, unit: str, level: float) -> Estimate:
    items = len(found.influence)
    value = 1.0 - found.observed / found.expected
    lowest = 1.0 - found.most / found.expected  # where everybody disagreed about everything
    if not found.observed:
        share = float(stats.beta.ppf(level, 1, items))  # of items that differ at most, where none of them did
        low = 1.0 - share * found.most / found.expected
        return Estimate(value, low, 1.0, level, items, unit, "exact bound")
    spread = math.sqrt(float((found.influence**2).sum()) / (items * (items - 1)))
    reach = min(float(stats.t.ppf((1 + level) / 2, items - 1)) * spread, 700.0)
    ratio = found.observed / found.expected
    low = max(1.0 - ratio * math.exp(reach), lowest)
    return Estimate(value, low, 1.0 - ratio * math.exp(-reach), level, items, unit, "log delta")
