"""Is a reward model as right as its margins say: reliability by bin, and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.special import expit

from handbook_utils.evaluation.intervals import Array
from handbook_utils.evaluation.reward.comparisons import Scores
from handbook_utils.records import Estimate

BINS, DRAWS, MOST_GROUPS = 10, 1000, 1000


@dataclass(frozen=True)
class Bin:
    """Rows of like confidence.

    Attributes:
        confidence: their mean confidence, from 0.5 to 1.
        accuracy: how often the answer that the model prefers is the right one.
        rows: how many they are.
    """

    confidence: float
    accuracy: float
    rows: int


@dataclass(frozen=True)
class Calibration:
    """How a model's confidence compares with how often it is right.

    Attributes:
        bins: of equally many rows, from the least confident.
        error: expected calibration error: the mean distance of accuracy from confidence over the bins.
        temperature: dividing margins by it fits confidence to accuracy best; above 1 for an overconfident
            model.
    """

    bins: tuple[Bin, ...]
    error: Estimate
    temperature: float


def calibration(
    scores: Scores, prompts: NDArray[np.intp], *, level: float = 0.95, seed: int = 0
) -> Calibration:
    """Calibration of σ(margin), the Bradley-Terry probability that a reward model means by its scores.

    Args:
        scores: of pairs of answers.
        prompts: (rows,) number of each row's prompt, from 0.
        level: confidence level.
        seed: seed of the resampling over prompts.
    Returns:
        The error's interval is the basic bootstrap's, [2 e - upper, 2 e - lower], which takes out the
        upward bias that few rows per bin cause; it ends at 0.
    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks"; Nguyen & O'Connor 2015 (bins of
        equally many rows); Davison & Hinkley 1997, chapter 5 (the basic bootstrap).
    """
    confidence = expit(np.abs(scores.margin))
    right = scores.correct
    order = np.argsort(confidence, kind="stable")
    count = min(BINS, len(order))
    place = np.empty(len(order), dtype=np.intp)
    place[order] = np.arange(len(order)) * count // len(order)
    gaps = right - confidence
    bins = tuple(
        Bin(float(c / n), float(a / n), int(n))
        for c, a, n in zip(
            np.bincount(place, confidence), np.bincount(place, right), np.bincount(place), strict=True
        )
    )
    error = float(np.abs(np.bincount(place, gaps)).sum() / len(gaps))
    drawn = _resampled_errors(gaps, place, prompts, count, seed)
    tail = (1 - level) / 2
    upper, lower = np.quantile(drawn, [1 - tail, tail])
    ends = sorted((max(0.0, 2 * error - float(upper)), max(0.0, 2 * error - float(lower))))
    number = len(np.unique(prompts))
    estimate = Estimate(
        error, min(ends[0], error), max(ends[1], error), level, number, "rate", "basic-bootstrap", seed
    )
    return Calibration(bins, estimate, best_temperature(scores.margin))


def best_temperature(margin: Array) -> float:
    """The divisor of margins under which -log σ(margin / T) is least; infinite where a model is right at
    most half.

    >>> round(best_temperature(np.array([2.0, 2.0, 2.0, -2.0])), 3)  # right 3 of 4 times: log(3) = 2 / T
    1.82
    """
    scale = float(np.abs(margin).mean())
    if scale == 0:
        return 1.0

    def loss(log_inverse: float) -> float:
        return float(np.logaddexp(0, -margin / scale * np.exp(log_inverse)).mean())

    found = optimize.minimize_scalar(loss, bounds=(-8, 8), method="bounded", options={"xatol": 1e-6})
    return float("inf") if found.x < -7.9 else float(scale / np.exp(found.x))


def _resampled_errors(
    gaps: Array, place: NDArray[np.intp], prompts: NDArray[np.intp], count: int, seed: int
) -> Array:
    """The error in resamples of prompts, (draws,): a prompt's rows stay in their bins and are drawn together.

    Of many prompts random groups are drawn, which are independent and alike as prompts are.
    """
    number = int(prompts.max()) + 1
    groups = min(number, MOST_GROUPS)
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(number) % groups)[prompts]
    sums = np.bincount(group * count + place, gaps, groups * count).reshape(groups, count)
    rows = np.bincount(group, minlength=groups)
    drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=DRAWS).astype(np.float64)
    return np.asarray(np.abs(drawn @ sums).sum(axis=1) / np.maximum(drawn @ rows, 1))
