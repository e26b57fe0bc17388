"""Statistics of noisy curves: both ends, noise, and what is smooth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from handbook_utils.diagnosis.curves import Curve

# two windows of five records: fewer say nothing of a trend, nor of an average (see `ends`)
WINDOW = 5
FEWEST = 2 * WINDOW
# a share of a run at either end; the facts on healthy runs are given for the last fifth as well
END_SHARE = 0.2
# of a normal distribution: standard deviation from the median absolute deviation
_MAD = 1.4826


@dataclass(frozen=True)
class Ends:
    """The first and the last stretch of a curve.

    Attributes:
        first: median of the first stretch.
        last: median of the last one.
        error: standard error of their difference, from the noise between neighbours.
        steps: first and last step of the curve.
    """

    first: float
    last: float
    error: float
    steps: tuple[float, float]

    @property
    def change(self) -> float:
        """Last minus first."""
        return self.last - self.first

    @property
    def z(self) -> float:
        """The change in standard errors."""
        return self.change / self.error if self.error > 0 else math.copysign(math.inf, self.change)


def ends(curve: Curve) -> Ends | None:
    """Both ends of a curve's finite values, a fifth of it each and at least five records; None: too few.

    >>> import numpy as np
    >>> found = ends(Curve(np.arange(20.0), np.linspace(2.0, 1.0, 20)))
    >>> round(found.first, 2), round(found.last, 2)
    (1.89, 1.11)
    """
    values = curve.finite.values
    if len(values) < FEWEST:
        return None
    size = max(WINDOW, int(len(values) * END_SHARE))
    error = noise(values) * math.sqrt(2 / size)
    first, last = float(np.median(values[:size])), float(np.median(values[-size:]))
    return Ends(first, last, error, span(curve))


def mean_ends(curve: Curve) -> Ends | None:
    """Both ends as means: of rates and rewards, whose median stays at a bound while their mean moves."""
    values = curve.finite.values
    if len(values) < FEWEST:
        return None
    size = max(WINDOW, int(len(values) * END_SHARE))
    error = float(np.std(np.diff(values))) / math.sqrt(size)  # of differences: sqrt(2) times the noise
    return Ends(float(np.mean(values[:size])), float(np.mean(values[-size:])), error, span(curve))


def noise(values: npt.NDArray[np.float64]) -> float:
    """Standard deviation of a curve's noise, from differences of neighbours, which no trend moves."""
    if len(values) < 3:
        return 0.0
    differences = np.abs(np.diff(values))
    middle = float(np.median(differences)) * _MAD / math.sqrt(2)
    # of values that are mostly equal the median says 0
    return middle or float(np.mean(differences)) / math.sqrt(2)


def jitter(values: npt.NDArray[np.float64]) -> float:
    """Standard deviation of the noise around a curve, from second differences, which no slope moves."""
    if len(values) < FEWEST:
        return 0.0
    return float(np.median(np.abs(np.diff(values, 2)))) * _MAD / math.sqrt(6)


def counted(number: int, what: str = "record") -> str:
    """A number of things in words.

    >>> counted(1), counted(2, "epoch")
    ('1 record', '2 epochs')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def span(curve: Curve) -> tuple[float, float]:
    """First and last step."""
    return (float(curve.steps[0]), float(curve.steps[-1])) if len(curve) else (0.0, 0.0)


def rolling_median(values: npt.NDArray[np.float64], size: int = 2 * WINDOW + 1) -> npt.NDArray[np.float64]:
    """(n,) median of `size` neighbours; the ends repeat their outermost full window."""
    if len(values) <= size:
        return np.full(len(values), np.median(values) if len(values) else np.nan)
    inner = np.median(np.lib.stride_tricks.sliding_window_view(values, size), axis=1)
    half = size // 2
    return np.concatenate(
        [np.full(half, inner[0]), inner, np.full(len(values) - half - len(inner), inner[-1])]
    )


def thinned(curve: Curve, most: int = 20_000) -> Curve:
    """At most `most` places of a long curve, evenly spread: medians of long windows cost too much there."""
    if len(curve) <= most:
        return curve
    places = np.linspace(0, len(curve) - 1, most).astype(np.int64)
    return Curve(curve.steps[places], curve.values[places], curve.name, curve.unit)


def smooth(curve: Curve, size: int = WINDOW) -> Curve:
    """Means of `size` records that follow each other, finite ones only."""
    finite = curve.finite
    if len(finite) < size:
        return finite
    means = np.lib.stride_tricks.sliding_window_view(finite.values, size).mean(axis=1)
    return Curve(finite.steps[size - 1 :], means, curve.name, curve.unit)


def late(curve: Curve, share: float = 1 / 3) -> Curve:
    """The last part of a curve, at least one record."""
    finite = curve.finite
    size = max(1, round(len(finite) * share))
    return Curve(finite.steps[-size:], finite.values[-size:], curve.name, curve.unit)


def early(curve: Curve, share: float = 1 / 3) -> Curve:
    """The first part of a curve, at least one record."""
    finite = curve.finite
    size = max(1, round(len(finite) * share))
    return Curve(finite.steps[:size], finite.values[:size], curve.name, curve.unit)


def median(curve: Curve) -> float:
    """Median of the finite values; NaN where there is none."""
    values = curve.finite.values
    return float(np.median(values)) if len(values) else math.nan


def mean(curve: Curve) -> float:
    """Mean of the finite values; NaN where there is none."""
    values = curve.finite.values
    return float(np.mean(values)) if len(values) else math.nan
