"""Time and memory of a full best-of-n curve: 10,000 prompts, 64 samples, every n, 1,000 bootstrap draws."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import numpy as np
from _record import record
from scipy import stats

from handbook_utils.evaluation.best_of_n import best_of_n_curve, best_of_n_values
from handbook_utils.evaluation.intervals import DRAWS

PROMPTS, SAMPLES, REPEATS = 10_000, 64, 5
# the peer resamples one n of 500 prompts; the full work is 64 * 20 times as much
PEER_PROMPTS, PEER_NS = 500, 1


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_memory_gib() -> float:
    """Highest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kibibytes on Linux, bytes on macOS
    return float(peak) / (2**30 if sys.platform == "darwin" else 2**20)


def scipy_bootstrap_t(proxy: np.ndarray, values: np.ndarray) -> None:
    """The same interval by the plain route: scipy's resampling, the t-statistic spelled out."""
    for column in best_of_n_values(proxy, values, ns=range(2, 2 + PEER_NS)).T:
        centre, count = column.mean(), len(column)

        def t(x: np.ndarray, axis: int, centre: float = centre, count: int = count) -> np.ndarray:
            return (x.mean(axis=axis) - centre) / (x.std(axis=axis, ddof=1) / np.sqrt(count))

        drawn = stats.bootstrap((column,), t, n_resamples=DRAWS, method="percentile", random_state=0)
        np.quantile(drawn.bootstrap_distribution, [0.025, 0.975])


def main() -> None:
    """Measure and record."""
    rng = np.random.default_rng(0)
    proxy = rng.standard_normal((PROMPTS, SAMPLES))
    # gold-like: rounded, so that samples tie; correlated with the proxy
    values = np.clip(np.round(0.5 + 0.2 * (proxy + rng.standard_normal(proxy.shape)), 2), 0, 1)
    times = [seconds(lambda: best_of_n_curve(proxy, values, unit="gold reward")) for _ in range(REPEATS)]
    memory = peak_memory_gib()
    small = proxy[:PEER_PROMPTS], values[:PEER_PROMPTS]
    scale = PROMPTS / PEER_PROMPTS * SAMPLES / PEER_NS
    peer = scale * min(seconds(lambda: scipy_bootstrap_t(*small)) for _ in range(3))
    record(
        name="best_of_n_curve_seconds",
        value=float(np.median(times)),
        spread=(max(times) - min(times)) / 2,
        unit="s",
        goal=5.0,
        better="lower",
        peer={
            "name": f"scipy.stats.bootstrap, one n of {PEER_PROMPTS} prompts scaled up {scale:.0f} times",
            "value": peer,
        },
    )
    record(name="best_of_n_curve_memory", value=memory, unit="GiB", goal=1.0, better="lower")
    print(f"{PROMPTS} prompts x {SAMPLES} samples, {DRAWS} draws: {times}, {memory:.2f} GiB")


if __name__ == "__main__":
    main()
