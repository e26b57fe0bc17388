"""What the best of n samples is worth, exactly, for every n up to the number of samples.

With N samples of a prompt, the best of n is the average, over all subsets of n, of the value of the sample
with the highest proxy. No subset is drawn: the r-th lowest proxy of N wins in a known share of the subsets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from handbook_utils.errors import DataError
from handbook_utils.evaluation.intervals import Array
from handbook_utils.evaluation.prompt_rows import sample_table, value_bounds
from handbook_utils.evaluation.statistics import Setting, estimate_columns, paired_setting
from handbook_utils.records import Estimate


def best_of_n_weights(samples: int) -> Array:
    """Share of the subsets of n in which the sample of each rank wins.

    w[n-1, r-1] = C(r-1, n-1) / C(N, n), r = 1 the lowest: the other n - 1 must come from the r - 1 below.
    Binomials are taken in logs, so N in the thousands neither overflows nor loses digits.

    Args:
        samples: N, samples per prompt.
    Returns:
        (N, N): row n-1 holds the weights of ranks 1..N and sums to 1.
    Raises:
        DataError: no samples.
    Source: Nakano et al. 2021 (WebGPT), Appendix I. Book: chapter "Rejection sampling".

    >>> best_of_n_weights(3).round(3).tolist()
    [[0.333, 0.333, 0.333], [0.0, 0.333, 0.667], [0.0, 0.0, 1.0]]
    """
    if samples < 1:
        raise DataError(f"best-of-n needs at least one sample per prompt, got {samples}")
    below, others = np.meshgrid(np.arange(samples), np.arange(samples))  # r - 1 by column, n - 1 by row
    possible = below >= others
    log_weights = np.full((samples, samples), -np.inf)
    log_weights[possible] = _log_binomial(below[possible], others[possible])
    # dividing by the row's sum is dividing by C(N, n), and leaves no rounding in the total
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def best_of_n_values(proxy: ArrayLike, values: ArrayLike, *, ns: Sequence[int] | None = None) -> Array:
    """Expected value of the best of n by proxy, prompt by prompt.

    Samples whose proxies tie share their weight: whichever of them is picked, it is picked at random.

    Args:
        proxy: (prompts, N) the score that selects, finite.
        values: (prompts, N) the score of what is selected, finite; may be the proxy itself.
        ns: the n wanted; all of 1..N unless told.
    Returns:
        (prompts, len(ns)).
    Raises:
        DataError: shapes differ, a score is not finite (prompt and sample named), or an n is not in 1..N.
    Source: `best_of_n_weights`.

    >>> best_of_n_values([[1.0, 3.0, 2.0]], [[10.0, 30.0, 20.0]]).round(2).tolist()
    [[20.0, 26.67, 30.0]]
    """
    proxies, scores = sample_table(proxy, "proxy"), sample_table(values, "values")
    if proxies.shape != scores.shape:
        raise DataError(f"proxy and values need one shape, got {proxies.shape} and {scores.shape}")
    wanted = _check_ns(ns, proxies.shape[1])
    order = np.argsort(proxies, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    averaged = _average_ties(np.take_along_axis(proxies, order, axis=1), ranked)
    return np.asarray(averaged @ best_of_n_weights(proxies.shape[1])[np.array(wanted) - 1].T)


def best_of_n_curve(
    proxy: ArrayLike,
    values: ArrayLike,
    *,
    ns: Sequence[int] | None = None,
    unit: str = "score",
    level: float = 0.95,
    seed: int = 0,
) -> dict[int, Estimate]:
    """Mean over prompts of the best of n by proxy, for each n, with intervals over prompts.

    Args:
        proxy: (prompts, N) the score that selects.
        values: (prompts, N) the score of what is selected.
        ns: the n wanted; all of 1..N unless told.
        unit: unit of `values`.
        level: confidence level of each point by itself, not of the curve as a whole.
        seed: seed of the resampling; all points share their draws.
    Raises:
        DataError: as `best_of_n_values`.
    Warns:
        CoverageWarning: once, as `statistics.mean_estimate`.

    >>> curve = best_of_n_curve([[0, 1], [1, 0], [0, 1]] * 10, [[0, 1], [1, 0], [1, 0]] * 10, unit="rate")
    >>> {n: round(estimate.value, 3) for n, estimate in curve.items()}
    {1: 0.5, 2: 0.667}
    """
    expected = best_of_n_values(proxy, values, ns=ns)
    rows = np.asarray(values, dtype=np.float64)
    setting = Setting(
        unit=unit,
        rows=rows.shape[1],
        is_rate=bool(np.isin(rows, (0.0, 1.0)).all()),
        bounds=value_bounds(rows.ravel()),
        level=level,
        seed=seed,
    )
    return dict(zip(_check_ns(ns, rows.shape[1]), estimate_columns(expected, setting), strict=True))


def best_of_n_gains(
    proxy: ArrayLike,
    values: ArrayLike,
    *,
    ns: Sequence[int] | None = None,
    unit: str = "score",
    level: float = 0.95,
    seed: int = 0,
) -> dict[int, Estimate]:
    """Best of n minus a random sample (best of 1) of the same prompt, for each n, paired by prompt.

    Args:
        proxy: (prompts, N) the score that selects.
        values: (prompts, N) the score of what is selected.
        ns: the n wanted; all of 1..N unless told.
        unit: unit of `values`.
        level: confidence level of each point by itself.
        seed: seed of the resampling.
    Raises:
        DataError: as `best_of_n_values`.

    >>> gains = best_of_n_gains([[0, 1], [1, 0], [0, 1]] * 10, [[0, 1], [1, 0], [1, 0]] * 10, ns=[2])
    >>> round(gains[2].value, 3)
    0.167
    """
    rows = sample_table(values, "values")
    expected = best_of_n_values(proxy, rows, ns=ns)
    setting = paired_setting(rows.ravel(), rows=rows.shape[1], unit=unit, level=level, seed=seed)
    estimates = estimate_columns(expected - rows.mean(axis=1, keepdims=True), setting)
    return dict(zip(_check_ns(ns, rows.shape[1]), estimates, strict=True))


def best_of_n_difference(
    proxy: ArrayLike, values: ArrayLike, *, n_high: int, n_low: int, unit: str = "score", seed: int = 0
) -> Estimate:
    """Best of `n_high` minus best of `n_low` of the same prompts, paired by prompt, at 95 %.

    Raises:
        DataError: as `best_of_n_values`.

    >>> round(best_of_n_difference([[0, 1]] * 20, [[5, 7], [5, 6]] * 10, n_high=2, n_low=1).value, 4)
    0.75
    """
    rows = sample_table(values, "values")
    high, low = best_of_n_values(proxy, rows, ns=[n_high, n_low]).T
    setting = paired_setting(rows.ravel(), rows=rows.shape[1], unit=unit, level=0.95, seed=seed)
    return estimate_columns((high - low)[:, None], setting)[0]


def kl_bound(n: int) -> float:
    """Upper bound on the KL divergence of the best-of-n policy from its reference: log n - (n-1)/n, in nats.

    Exact only where no two samples can be alike (a continuous policy); for language models the divergence is
    at most this, and can be far below it where answers repeat.

    Raises:
        DataError: n below 1.
    Source: Stiennon et al. 2020 (formula); Beirami et al. 2024, "Theoretical guarantees on the best-of-n
        alignment policy" (that it is a bound, not the divergence).

    >>> [round(kl_bound(n), 4) for n in (1, 4, 64)]
    [0.0, 0.6363, 3.1745]
    """
    if n < 1:
        raise DataError(f"best-of-n needs n of at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def _log_binomial(n: NDArray[np.integer[Any]], k: NDArray[np.integer[Any]]) -> Array:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def _average_ties(ordered: Array, ranked: Array) -> Array:
    """Replace each value by the mean over its prompt's samples of the same proxy; both (prompts, N)."""
    new = np.ones(ordered.shape, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    if new.all():
        return ranked
    # every row starts a group, so no group spans two prompts
    group = np.cumsum(new.ravel()) - 1
    means = np.bincount(group, weights=ranked.ravel()) / np.bincount(group)
    return np.asarray(means[group].reshape(ranked.shape))


def _check_ns(ns: Sequence[int] | None, samples: int) -> list[int]:
    wanted = list(range(1, samples + 1)) if ns is None else [int(n) for n in ns]
    for n in wanted:
        if not 1 <= n <= samples:
            raise DataError(
                f"best of {n} needs at least {n} samples per prompt, and there are {samples}. "
                f"Choose n between 1 and {samples}, or draw more samples."
            )
    return wanted
