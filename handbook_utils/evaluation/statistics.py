"""Means, differences and rates with intervals over prompts, and a warning where intervals are known off."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from handbook_utils.errors import DataError
from handbook_utils.evaluation.coverage_table import BAND, CoverageRow, nearest_coverage, nearest_distribution
from handbook_utils.evaluation.intervals import (
    DRAWS,
    Array,
    automatic_method,
    is_constant,
    mean_intervals,
    rule_of_three,
)
from handbook_utils.evaluation.prompt_rows import finite_rows, prompt_means, value_bounds
from handbook_utils.records import Estimate

FEWEST_MEASURED = 6
Value = TypeVar("Value")


class CoverageWarning(UserWarning):
    """The interval is known, or must be feared, not to cover as often as its level says."""


class EqualSamplesWarning(CoverageWarning):
    """Samples that were to differ are equal, so the figures are of one answer per prompt."""


@dataclass(frozen=True)
class Setting:
    """What the intervals of some figures rest on, shared by all of them.

    Attributes:
        unit: unit of the figures.
        design: "unpaired", "paired" or "win-rate", as in `CoverageRow`.
        rows: rows per prompt (their mean where unequal).
        is_rate: the figures are means of zeros and ones.
        base_rate: how often the event happens that a difference or win rate rests on; None where unknown.
        bounds: lowest and highest possible value of a prompt, as far as known.
        level: confidence level.
        seed: seed of the resampling.
        method: "auto" or one of `intervals.METHODS`.
        draws: resamples of the bootstrap methods.
    """

    unit: str
    design: str = "unpaired"
    rows: float = 1.0
    is_rate: bool = False
    base_rate: float | None = None
    bounds: tuple[float, float] | None = None
    level: float = 0.95
    seed: int = 0
    method: str = "auto"
    draws: int = DRAWS


def mean_estimate(
    values: ArrayLike,
    *,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    unit: str = "score",
    level: float = 0.95,
    seed: int = 0,
    method: str = "auto",
    draws: int = DRAWS,
) -> Estimate:
    """Mean over prompts, every prompt counting once however many rows it has.

    Args:
        values: (rows,) finite scores.
        clusters: (rows,) prompt id of each row; None where each row is a prompt of its own.
        unit: unit of the scores.
        level: confidence level.
        seed: seed of the resampling.
        method: "auto" takes Wilson's interval for zeros and ones (with the effective number of trials where
            a prompt has several rows) and bootstrap-t for all else; or a name in `intervals.METHODS`.
        draws: resamples of the bootstrap methods; 1,000 suffice to decide by, 10,000 for a stable last digit.
    Returns:
        The estimate; its `n` counts prompts. Infinite where all values are equal and not 0 or 1.
    Raises:
        DataError: no rows, a score that is not finite (its row named), other lengths, unknown method.
    Warns:
        CoverageWarning: the nearest measured setting covers less than 93 % or more than 97 %.
    Source: `intervals.bootstrap_t`, `intervals.wilson_effective`. Book: chapter "Which metrics to watch".

    >>> estimate = mean_estimate([0.1, 0.4, 0.3, 0.9, 0.6, 0.2, 0.7, 0.5], unit="gold reward")
    >>> estimate.n, round(estimate.value, 4), estimate.method
    (8, 0.4625, 'bootstrap-t')
    """
    rows = finite_rows(values, "values")
    means = prompt_means(rows, clusters)
    is_rate = bool(np.isin(rows, (0.0, 1.0)).all())
    setting = Setting(
        unit=unit,
        rows=len(rows) / len(means),
        is_rate=is_rate,
        bounds=value_bounds(rows),
        level=level,
        seed=seed,
        method=method,
        draws=draws,
    )
    return estimate_columns(means[:, None], setting)[0]


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    unit: str = "score",
    level: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
) -> Estimate:
    """Mean of `b` minus `a` over prompts: positive where `b` is higher.

    Args:
        a: (rows,) finite scores.
        b: (rows,) scores of the same rows, in the same order.
        clusters: (rows,) prompt id of each row; None where each row is a prompt of its own.
        unit: unit of the scores.
        level: confidence level.
        seed: seed of the resampling.
        draws: resamples of the bootstrap.
    Raises:
        DataError: other lengths, or a score that is not finite (its row named). For scores by prompt id,
            which may come in any order, see `win_rate.compare_paired`.
    Warns:
        CoverageWarning: as `mean_estimate`.

    >>> estimate = paired_difference([1, 2, 3, 4, 5, 6, 7], [2, 2, 4, 6, 5, 7, 9])
    >>> round(estimate.value, 3), estimate.low > 0
    (1.0, True)
    """
    rows_a, rows_b = finite_rows(a, "a"), finite_rows(b, "b")
    if len(rows_a) != len(rows_b):
        raise DataError(f"paired scores need equal lengths, got {len(rows_a)} of a and {len(rows_b)} of b")
    differences = prompt_means(rows_b - rows_a, clusters)
    rows = len(rows_a) / len(differences)
    setting = paired_setting(np.concatenate([rows_a, rows_b]), rows=rows, unit=unit, level=level, seed=seed)
    setting = replace(setting, draws=draws)
    return estimate_columns(differences[:, None], setting)[0]


def proportion_estimate(successes: int, trials: int, *, unit: str = "rate", level: float = 0.95) -> Estimate:
    """Rate of independent trials (one row per prompt) with Wilson's interval, from scipy.

    Raises:
        DataError: no trials, or successes outside 0..trials.
    Source: Wilson 1927; `scipy.stats.binomtest(...).proportion_ci(method="wilson")`.

    >>> str(proportion_estimate(0, 100))
    '0.000 [0.000, 0.037]'
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise DataError(f"a rate needs trials >= 1 and 0 <= successes <= trials, got {successes} of {trials}")
    interval = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    rate = successes / trials
    row, few = _measured("auto", "unpaired", _rate_name(rate), trials, 1.0)
    _warn(trials, [(row, few)])
    return Estimate(
        rate, min(float(interval.low), rate), max(float(interval.high), rate), level, trials, unit, "wilson"
    )


def mean_over_seeds(values: ArrayLike, *, unit: str = "score", level: float = 0.95) -> Estimate:
    """Mean of one figure over training runs of different seeds, with Student's t interval between them.

    Each run is one observation, whatever interval over prompts it has of its own. With so few of them
    Student's quantile is wide (2.776 for five), and no warning is needed: n says how few they are.

    Args:
        values: (seeds,) finite figures, one for each run.
        unit: unit of the figures.
        level: confidence level.
    Returns:
        The estimate, with n - 1 degrees of freedom; its `n` counts seeds.
    Raises:
        DataError: fewer than two seeds, or a figure that is not finite.

    >>> str(mean_over_seeds([1.0, 2.0, 3.0]))
    '2.000 [-0.484, 4.484]'
    """
    figures = finite_rows(values, "values")
    if len(figures) < 2:
        raise DataError(f"an interval over seeds needs at least two of them, got {len(figures)}")
    low, high = mean_intervals(figures[:, None], "student-t", level=level, seed=0)
    return Estimate(
        float(figures.mean()), float(low[0]), float(high[0]), level, len(figures), unit, "student-t"
    )


def estimate_columns(prompt_values: Array, setting: Setting) -> list[Estimate]:
    """One estimate a column of (prompts, columns); warns once for all of them.

    Raises:
        DataError: unknown method, level outside (0, 1), no draws, or a Wilson interval asked for what is
            no rate.
    """
    if not 0 < setting.level < 1:
        raise DataError(f"level must be between 0 and 1, got {setting.level}")
    if setting.draws < 1:
        raise DataError(f"draws must be at least 1, got {setting.draws}")
    if setting.method.startswith("wilson") and not setting.is_rate:
        raise DataError("Wilson's interval is for zeros and ones. Use method='auto' or 'bootstrap-t'.")
    method = _choose(setting)
    prompts, columns = prompt_values.shape
    values = prompt_values.mean(axis=0)
    constant = is_constant(prompt_values, setting.bounds) & (method != "wilson")
    low, high = rule_of_three(values, prompts, setting.bounds, level=setting.level)
    if not constant.all():
        spread = prompt_values[:, ~constant]
        low[~constant], high[~constant] = mean_intervals(
            spread, method, level=setting.level, seed=setting.seed, draws=setting.draws
        )
    _warn(prompts, [_check(prompt_values[:, i], bool(constant[i]), setting) for i in range(columns)])
    names = ["rule-of-three" if flat else method for flat in constant]
    drawn = [name in ("bootstrap-t", "percentile") for name in names]
    return [
        Estimate(
            # the interval is [min, max] with its value even after rounding
            float(values[i]),
            float(min(low[i], values[i])),
            float(max(high[i], values[i])),
            setting.level,
            prompts,
            setting.unit,
            names[i],
            setting.seed if drawn[i] else None,
        )
        for i in range(columns)
    ]


def paired_setting(scores: Array, *, rows: float, unit: str, level: float, seed: int) -> Setting:
    """Setting of differences between scores of which `scores` are all, of either side."""
    bounds = value_bounds(scores)
    reach = bounds[1] - bounds[0] if bounds else None
    is_binary = bool(np.isin(scores, (0.0, 1.0)).all())
    return Setting(
        unit=unit,
        design="paired",
        rows=rows,
        base_rate=float(scores.mean()) if is_binary else None,
        bounds=None if reach is None else (-reach, reach),
        level=level,
        seed=seed,
    )


def _choose(setting: Setting) -> str:
    if setting.method != "auto":
        return setting.method
    is_single = setting.rows == 1 and setting.design == "unpaired"
    return automatic_method(is_rate=setting.is_rate, is_single=is_single)


def _check(values: Array, constant: bool, setting: Setting) -> tuple[CoverageRow | None, str]:
    if constant:
        # for a rate the interval is exact (Clopper-Pearson), whatever was measured for rates that vary
        exact = setting.is_rate and setting.bounds == (0.0, 1.0)
        return (
            None,
            "" if exact else "all prompts have the same value: only the scores' range bounds the figure",
        )
    rate = setting.base_rate
    if setting.is_rate and rate is None:
        rate = float(values.mean())
    distribution = nearest_distribution(values, rate=rate)
    return _measured(setting.method, setting.design, distribution, len(values), setting.rows)


def _rate_name(rate: float) -> str:
    return nearest_distribution(np.zeros(1), rate=rate)


def _measured(
    method: str, design: str, distribution: str, prompts: int, rows: float
) -> tuple[CoverageRow | None, str]:
    if method not in ("percentile", "student-t"):
        method = "auto"
    row = nearest_coverage(method, distribution=distribution, prompts=prompts, rows=rows, design=design)
    return row, "" if row else f"coverage was not measured below {FEWEST_MEASURED} prompts"


def _warn(prompts: int, checks: list[tuple[CoverageRow | None, str]]) -> None:
    """One warning for all columns: the reason given, or the setting farthest from 95 %."""
    reasons = sorted({reason for _, reason in checks if reason})
    off = [row for row, _ in checks if row is not None and not row.is_in_band]
    if off:
        worst = max(off, key=lambda row: abs(row.coverage - sum(BAND) / 2))
        side = "narrow" if worst.coverage < BAND[0] else "wide"
        reasons.append(
            f"intervals of 95 % covered {100 * worst.coverage:.1f} ± {100 * worst.mc_error:.1f} % of the "
            f"time in the nearest measured setting ({worst.distribution}, {worst.design}, "
            f"{worst.prompts} prompts, rows per prompt: {worst.rows}), so this one is likely too {side}"
        )
    if reasons:
        message = f"{prompts} prompts: {'; '.join(reasons)}. Use more prompts for an interval to rely on."
        warnings.warn(message, CoverageWarning, stacklevel=4)


def with_cautions(measure: Callable[[], Value]) -> tuple[Value, tuple[str, ...]]:
    """What `measure` returns, and the coverage warnings it gave; all others are shown at once, as ever."""
    cautions: list[str] = []
    show = warnings.showwarning

    def keep_or_show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, CoverageWarning):
            cautions.append(str(message))
        else:
            show(message, category, *place, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("always", CoverageWarning)
        warnings.showwarning = keep_or_show
        value = measure()
    return value, tuple(dict.fromkeys(cautions))
