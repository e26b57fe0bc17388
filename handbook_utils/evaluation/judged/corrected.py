"""A judge's win rate corrected by people's labels on some of the prompts, and what is left of its bias."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from handbook_utils.errors import DataError
from handbook_utils.evaluation.intervals import Array
from handbook_utils.evaluation.prompt_rows import finite_rows
from handbook_utils.evaluation.statistics import proportion_estimate
from handbook_utils.records import Estimate

FEWEST_LABELS = 10


@dataclass(frozen=True)
class CorrectedRate:
    """What people would say of all prompts, from a judge on all and people on some.

    Attributes:
        rate: the corrected win rate.
        bias: the judge's mean minus the people's on the labelled prompts: what the correction takes away.
        trust: weight of the judge in the correction, 0 to 1: near 0 it tells nothing that the labels do not.
        people_only: the win rate from the labels alone. The corrected interval is shorter where the judge
            helps.
        agreement: how often judge and people name the same winner where neither ties; None without such
            prompts.
    """

    rate: Estimate
    bias: Estimate
    trust: float
    people_only: Estimate
    agreement: Estimate | None


def corrected_win_rate(
    judge_labelled: ArrayLike, people: ArrayLike, judge_rest: ArrayLike, *, level: float = 0.95
) -> CorrectedRate:
    """Win rate as people would give it, from a judge's preferences on all prompts and people's on some.

    rate = λ mean(judge, unlabelled) + mean(people - λ judge, labelled). It is unbiased for any judge where
    the labelled prompts are a random sample of all; λ is estimated to make the interval short.

    Args:
        judge_labelled: (labelled prompts,) the judge's mean preference for B per prompt, in [0, 1].
        people: (labelled prompts,) people's preference for B on the same prompts, in [0, 1].
        judge_rest: (other prompts,) the judge's on the prompts without a label.
        level: confidence level.
    Raises:
        DataError: lengths differ, a value outside [0, 1], fewer than 10 labels, no other prompts, or
            labels that are all equal.
    Source: Angelopoulos, Bates, Fannjiang, Jordan & Zrnic 2023, Science 382, "Prediction-powered inference";
        Angelopoulos, Duchi & Zrnic 2023, "PPI++" (the weight λ). Student's t in place of the normal quantile.
        Coverage: `judged/coverage.json`.

    >>> rng = np.random.default_rng(0)
    >>> people = (rng.random(1000) < 0.6) * 1.0
    >>> judge = np.where(rng.random(1000) < 0.8, people, 1.0)  # one time in five it says B, whatever is true
    >>> found = corrected_win_rate(judge[:200], people[:200], judge[200:])
    >>> round(float(judge.mean()), 2), str(found.rate), round(found.bias.value, 2)
    (0.67, '0.569 [0.521, 0.616]', 0.1)
    """
    labelled, truth, rest = (
        _rates(values, name)
        for values, name in (
            (judge_labelled, "judge_labelled"),
            (people, "people"),
            (judge_rest, "judge_rest"),
        )
    )
    n, others = len(truth), len(rest)
    if len(labelled) != n:
        raise DataError(
            f"labelled prompts need one value of each, got {len(labelled)} of the judge and {n} labels"
        )
    if n < FEWEST_LABELS:
        raise DataError(
            f"a judge is corrected by at least {FEWEST_LABELS} labelled prompts, got {n}. Label more."
        )
    if not np.ptp(truth):
        raise DataError(
            f"all {n} labels are {truth[0]:g}, so they say nothing about the judge. Label more prompts."
        )
    trust = _weight(labelled, truth, others)
    residual = truth - trust * labelled
    variance = float(residual.var(ddof=1)) / n + trust**2 * float(rest.var(ddof=1)) / others
    centre = float(residual.mean() + trust * rest.mean())
    quantile = float(stats.t.ppf((1 + level) / 2, n - 1))
    rate = _estimate(centre, quantile * float(np.sqrt(variance)), level, n + others, "prediction-powered-t")
    gap = labelled - truth
    decided = (labelled != 0.5) & (truth != 0.5)
    same = int(np.count_nonzero((labelled > 0.5)[decided] == (truth > 0.5)[decided]))
    return CorrectedRate(
        rate=rate,
        bias=_estimate(float(gap.mean()), quantile * _error(gap), level, n, "student-t"),
        trust=trust,
        people_only=_estimate(float(truth.mean()), quantile * _error(truth), level, n, "student-t"),
        agreement=proportion_estimate(same, int(decided.sum()), level=level) if decided.any() else None,
    )


def _weight(judge: Array, people: Array, others: int) -> float:
    """λ that makes the variance least, kept within [0, 1]; 0 for a judge that says the same everywhere."""
    spread = float(judge.var(ddof=1))
    if spread <= 1e-12:
        return 0.0
    covariance = float(np.cov(judge, people)[0, 1])
    return float(np.clip(covariance / ((1 + len(people) / others) * spread), 0.0, 1.0))


def _error(values: Array) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _estimate(value: float, reach: float, level: float, prompts: int, method: str) -> Estimate:
    return Estimate(value, value - reach, value + reach, level, prompts, "rate", method)


def _rates(values: ArrayLike, name: str) -> Array:
    rows = finite_rows(values, name)
    if name == "judge_rest" and len(rows) < 2:
        raise DataError("judge_rest: there are no prompts without a label. Use the labels alone: win_rate.")
    bad = np.flatnonzero((rows < 0) | (rows > 1))
    if len(bad):
        raise DataError(f"{name}: row {bad[0]} is {rows[bad[0]]:g}. A preference for B lies between 0 and 1.")
    return rows
