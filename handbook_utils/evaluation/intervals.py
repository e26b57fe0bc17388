"""Confidence intervals for the mean of independent prompts, one column per estimate. Arrays in, arrays out.

Every function takes `x` of shape (prompts, columns) and returns `(low, high)`, each of shape (columns,).
Columns are separate figures on the same prompts (the points of a curve, say); they share their resamples, so
that a thousand draws cost one matrix product. How well each method does is measured in `coverage.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from handbook_utils.errors import DataError, suggest

Array = NDArray[np.float64]
Interval = tuple[Array, Array]

DRAWS = 1000
METHODS = ("bootstrap-t", "percentile", "student-t", "wilson", "wilson-effective")

# counts of one batch of resamples: 16 MiB, whatever the number of prompts
_BATCH_CELLS = 2_000_000
# above this, prompts of neighbouring scores are drawn as blocks
MOST_SINGLE_PROMPTS = 1000
# a block that has r prompts further out on its side holds about r / 8
_BLOCK_SHARE = 8


def student_t(x: Array, *, level: float) -> Interval:
    """Student's t interval, mean ± t · s / √n with n - 1 degrees of freedom.

    >>> low, high = student_t(np.array([[1.0], [2.0], [3.0]]), level=0.95)
    >>> round(float(low[0]), 3), round(float(high[0]), 3)
    (-0.484, 4.484)
    """
    reach = float(stats.t.ppf((1 + level) / 2, len(x) - 1)) * _standard_error(x)
    centre = x.mean(axis=0)
    return centre - reach, centre + reach


def percentile(x: Array, *, level: float, seed: int, draws: int = DRAWS) -> Interval:
    """Percentile bootstrap over prompts. Too narrow for few prompts; kept for comparison.

    Source: Efron 1979; its coverage beside the other methods is in coverage.json.
    """
    shift, _ = _resample(x, seed, draws)
    low, high = _tail_quantiles(shift, level)
    return x.mean(axis=0) + low, x.mean(axis=0) + high


def bootstrap_t(x: Array, *, level: float, seed: int, draws: int = DRAWS) -> Interval:
    """Bootstrap-t over prompts, neither side shorter than Student's t.

    The draws estimate quantiles of t* = (mean* - mean) / se*, and the interval is
    [mean - t*(upper) se, mean - t*(lower) se]: a long right tail in the scores makes the upper side longer.
    A draw without spread has no t* and is left out. Where the estimated quantile is nearer zero than
    Student's, Student's is used: without that floor the interval is too narrow for few and skewed prompts,
    and symmetric scores pay about 2 % of width for it.

    Source: Efron 1981, "Nonparametric standard errors and confidence intervals"; Hall 1988, Annals of
    Statistics 16(3), on why it is second-order correct where the percentile is not. The floor is ours.
    """
    shift, error = _resample(x, seed, draws)
    # relative to the column's own spread, so that changing the scores' unit changes nothing
    flat = error <= 1e-6 * _standard_error(x)
    t = np.divide(shift, error, out=np.full_like(shift, np.nan), where=~flat)
    low, high = _tail_quantiles(t, level)
    floor = float(stats.t.ppf((1 + level) / 2, len(x) - 1))
    centre, scale = x.mean(axis=0), _standard_error(x)
    return centre - np.fmax(high, floor) * scale, centre - np.fmin(low, -floor) * scale


def wilson(rate: Array, trials: Array | float, *, quantile: float) -> Interval:
    """Wilson's score interval for a rate from so many independent trials; `trials` need not be whole.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), with z the normal quantile.

    Source: Wilson 1927, JASA 22(158).

    >>> low, high = wilson(np.array([0.3]), 10.0, quantile=1.959964)
    >>> round(float(low[0]), 4), round(float(high[0]), 4)
    (0.1078, 0.6032)
    """
    spread = quantile**2 / trials
    centre = (rate + spread / 2) / (1 + spread)
    reach = quantile / (1 + spread) * np.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    # at p = 0 and p = 1 rounding may leave the interval a hair off its own estimate
    return np.minimum(centre - reach, rate), np.maximum(centre + reach, rate)


def wilson_effective(x: Array, *, level: float) -> Interval:
    """Wilson's interval for a mean of prompts' rates in [0, 1], with the effective number of trials.

    The trials that would give the standard error seen between prompts: n_eff = p(1-p) / se². Student's
    quantile with n - 1 degrees of freedom stands in for the normal one: se is estimated from n prompts.

    Source: Korn & Graubard 1998, Survey Methodology 24(2) (effective sample size); Dean & Pagano 2015,
    Journal of Survey Statistics and Methodology 3(4) (with Wilson's interval).
    """
    rate = np.clip(x.mean(axis=0), 0.0, 1.0)
    trials = rate * (1 - rate) / _standard_error(x) ** 2
    return wilson(rate, trials, quantile=float(stats.t.ppf((1 + level) / 2, len(x) - 1)))


def rule_of_three(
    value: Array, prompts: int, bounds: tuple[float, float] | None, *, level: float
) -> Interval:
    """Interval where all prompts agree: so many agreeing prompts bound how many others disagree.

    With n alike, at most p = 1 - (α/2)^(1/n) of all prompts differ (Clopper-Pearson for no events; near 3.7/n
    at 95 %), each by no more than the bounds allow. Without bounds the interval is infinite.

    Source: Clopper & Pearson 1934; Hanley & Lippman-Hand 1983, "If nothing goes wrong, is everything all
    right?".

    >>> low, high = rule_of_three(np.array([0.0]), 100, (0.0, 1.0), level=0.95)
    >>> float(low[0]), round(float(high[0]), 4)
    (0.0, 0.0362)
    """
    if bounds is None:
        return np.full_like(value, -np.inf), np.full_like(value, np.inf)
    others = 1 - ((1 - level) / 2) ** (1 / prompts)
    floor, ceiling = np.minimum(value, bounds[0]), np.maximum(value, bounds[1])
    return value - others * (value - floor), value + others * (ceiling - value)


def is_constant(x: Array, bounds: tuple[float, float] | None) -> NDArray[np.bool_]:
    """Which columns hold one value only, up to rounding: (columns,)."""
    tolerance = 1e-9 * (bounds[1] - bounds[0]) if bounds else 1e-12 * np.abs(x).max(axis=0)
    return np.asarray(np.ptp(x, axis=0) <= tolerance)


def automatic_method(*, is_rate: bool, is_single: bool) -> str:
    """Method that did best where it was measured.

    Args:
        is_rate: the figure is a mean of rates in [0, 1].
        is_single: each prompt has one row of 0 or 1.
    """
    if is_rate:
        return "wilson" if is_single else "wilson-effective"
    return "bootstrap-t"


def mean_intervals(x: Array, method: str, *, level: float, seed: int, draws: int = DRAWS) -> Interval:
    """Interval of every column by the named method, one of `METHODS`. Columns must have spread.

    Rows are sorted within each column first: a seed gives one interval in whatever order the prompts come.
    `draws` is how many resamples the bootstrap methods take.

    Raises:
        DataError: no such method.
    """
    x = np.sort(x, axis=0)
    if method == "bootstrap-t":
        return bootstrap_t(x, level=level, seed=seed, draws=draws)
    if method == "percentile":
        return percentile(x, level=level, seed=seed, draws=draws)
    if method == "student-t":
        return student_t(x, level=level)
    if method == "wilson":
        return wilson(x.mean(axis=0), float(len(x)), quantile=float(stats.norm.ppf((1 + level) / 2)))
    if method == "wilson-effective":
        return wilson_effective(x, level=level)
    raise DataError(f"unknown interval method '{method}'. {suggest(method, (*METHODS, 'auto'))}")


def _standard_error(x: Array) -> Array:
    return np.asarray(x.std(axis=0, ddof=1) / np.sqrt(len(x)))


def _resample(x: Array, seed: int, draws: int) -> Interval:
    """Shift of the mean and its standard error in each resample of prompts, both (draws, columns)."""
    prompts = len(x)
    centred = x - x.mean(axis=0)
    if prompts > MOST_SINGLE_PROMPTS:
        total, squares = _resample_blocks(np.sort(centred, axis=0), seed, draws)
    else:
        both = np.concatenate([centred, centred**2], axis=1)
        sums = np.concatenate([counts @ both for counts in _resample_counts(prompts, seed, draws)])
        total, squares = np.split(sums, 2, axis=1)
    shift, square = total / prompts, squares / prompts
    return shift, np.sqrt(np.maximum(square - shift**2, 0.0) / max(prompts - 1, 1))


def _resample_blocks(ordered: Array, seed: int, draws: int) -> Interval:
    """Sums of many sorted prompts and of their squares in each resample, both (draws, columns).

    How often a block of neighbours is drawn is exactly multinomial. What its draws add to that many times the
    block's mean is a sum of many small independent terms; it is taken as normal, with its exact covariance.
    At the ends a block is one prompt, so that the tails, which make an interval longer on one side, are
    exact.
    """
    starts = _block_starts(len(ordered))
    sizes = np.diff([*starts, len(ordered)])

    def block_means(values: Array) -> Array:
        return np.asarray(np.add.reduceat(values, starts, axis=0) / sizes[:, None])

    first, second = block_means(ordered), block_means(ordered**2)
    rest = ordered - np.repeat(first, sizes, axis=0)
    rest_of_square = ordered**2 - np.repeat(second, sizes, axis=0)
    within = [block_means(rest**2), block_means(rest * rest_of_square), block_means(rest_of_square**2)]
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(ordered), sizes / len(ordered), size=draws).astype(np.float64)
    sums = counts @ np.concatenate([first, second, *within], axis=1)
    total, squares, variance, covariance, variance_of_square = np.split(sums, 5, axis=1)
    noise = rng.standard_normal((2, draws, 1))
    deviation = np.sqrt(np.maximum(variance, 0.0))
    slope = np.divide(covariance, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    own = np.sqrt(np.maximum(variance_of_square - slope**2, 0.0))
    return total + deviation * noise[0], squares + slope * noise[0] + own * noise[1]


def _block_starts(prompts: int) -> list[int]:
    """Where blocks of sorted prompts begin: single at both ends, the larger the nearer to the middle.

    >>> _block_starts(40)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 25, 26, 27, 28, 29, 30, 31, \
32, 33, 34, 35, 36, 37, 38, 39]
    """
    low = [0]
    while low[-1] < prompts // 2:
        low.append(low[-1] + max(1, low[-1] // _BLOCK_SHARE))
    low = [place for place in low if place <= prompts // 2]
    return sorted({*low, *(prompts - place for place in low if place)})


def _resample_counts(prompts: int, seed: int, draws: int) -> Iterator[Array]:
    """How often each prompt was drawn, (a batch of draws, prompts), until there are `draws` draws."""
    rng = np.random.default_rng(seed)
    batch = max(1, _BATCH_CELLS // prompts)
    for start in range(0, draws, batch):
        size = min(batch, draws - start)
        cells = rng.integers(0, prompts, (size, prompts)) + np.arange(size)[:, None] * prompts
        counts = np.bincount(cells.ravel(), minlength=size * prompts)
        yield counts.reshape(size, prompts).astype(np.float64)


def _tail_quantiles(samples: Array, level: float) -> Interval:
    """Both tails' quantiles of each column, NaN left out; NaN where a column holds nothing else."""
    ordered = np.sort(samples, axis=0)  # NaN goes last
    last = np.count_nonzero(~np.isnan(ordered), axis=0) - 1
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        place = np.maximum(last, 0) * share
        below = np.floor(place).astype(np.intp)
        above = np.minimum(below + 1, np.maximum(last, 0))
        lower = np.take_along_axis(ordered, below[None], axis=0)[0]
        upper = np.take_along_axis(ordered, above[None], axis=0)[0]
        ends.append(lower + (place - below) * (upper - lower))
    return ends[0], ends[1]
