"""How many prompts an evaluation needs to see an effect, from the spread that a pilot showed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from handbook_utils.errors import DataError
from handbook_utils.evaluation.prompt_rows import finite_rows

FEWEST_PILOT = 10
MOST_PROMPTS = 100_000_000


@dataclass(frozen=True)
class Power:
    """What it takes to see an effect, or what can be seen.

    Attributes:
        effect: true difference between the two models (a win rate's distance from 0.5), in the unit of `sd`.
        sd: standard deviation between prompts of the paired difference, or of a prompt's win (0, 0.5, 1).
        prompts: prompts needed for `power`.
        prompts_low: the same with the low end of the pilot's 95 % interval of `sd`; equal where `sd` was
            given.
        prompts_high: the same with its high end. Plan with this one.
        power: chance that the interval excludes "no effect", where the effect is as large as `effect`.
        level: of the interval that is to exclude it.
        pilot_prompts: prompts in the pilot; 0 where `sd` was given.
        smallest_effect: least effect that the pilot's own number of prompts shows with `power`; None
            without one.
    """

    effect: float
    sd: float
    prompts: int
    prompts_low: int
    prompts_high: int
    power: float
    level: float
    pilot_prompts: int = 0
    smallest_effect: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def prompts_for(effect: float, sd: float, *, power: float = 0.8, level: float = 0.95) -> int:
    """Prompts for which a paired interval excludes zero with this power: the exact power of the t test.

    Args:
        effect: true mean of the differences; its sign does not matter.
        sd: standard deviation of the differences between prompts, in the same unit.
        power: chance of seeing it, in (0, 1).
        level: confidence level of the interval.
    Raises:
        DataError: a number out of range, or more than a hundred million prompts.
    Source: Cohen 1988, "Statistical Power Analysis", chapter 2; the noncentral t distribution of scipy.

    >>> prompts_for(0.1, 0.3), prompts_for(0.05, 0.3)
    (73, 285)
    """
    _check(effect, sd, power, level)
    normal = float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power))
    guess = (normal * sd / abs(effect)) ** 2
    if guess > MOST_PROMPTS:
        raise DataError(
            f"an effect of {effect:g} beside a standard deviation of {sd:g} needs about {guess:.2g} prompts. "
            "Ask for an effect that would change what you do."
        )
    low = high = max(2, math.ceil(guess))
    while achieved_power(effect, sd, high, level=level) < power:
        low, high = high, high + max(1, high // 50)
    low = 2 if low == high else low
    while low < high:
        middle = (low + high) // 2
        if achieved_power(effect, sd, middle, level=level) >= power:
            high = middle
        else:
            low = middle + 1
    return high


def achieved_power(effect: float, sd: float, prompts: int, *, level: float = 0.95) -> float:
    """Chance that Student's interval over so many prompts excludes zero, on either side.

    >>> round(achieved_power(0.1, 0.3, 73), 3)
    0.802
    """
    degrees = prompts - 1
    edge = float(stats.t.ppf((1 + level) / 2, degrees))
    shift = abs(effect) / sd * math.sqrt(prompts)
    both = stats.nct.sf(edge, degrees, shift) + stats.nct.cdf(-edge, degrees, shift)
    # far out scipy's noncentral t gives NaN where the answer is 1
    return 1.0 if math.isnan(both) else float(both)


def smallest_effect(sd: float, prompts: int, *, power: float = 0.8, level: float = 0.95) -> float:
    """Least true effect that so many prompts show with this power, in the unit of `sd`.

    >>> round(smallest_effect(0.3, 73), 4)
    0.0997
    """
    _check(1.0, sd, power, level)
    if prompts < 2:
        raise DataError(f"an interval needs at least 2 prompts, got {prompts}")
    low, high = 0.0, sd
    while achieved_power(high, sd, prompts, level=level) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if achieved_power(middle, sd, prompts, level=level) >= power else (middle, high)
        )
    return high


def win_rate_sd(rate: float, *, ties: float = 0.0) -> float:
    """Standard deviation of one prompt's win (1), tie (0.5) or loss (0).

    Args:
        rate: win rate of B, ties half.
        ties: share of prompts that tie.
    Raises:
        DataError: a share outside [0, 1], or such a share of ties cannot have that win rate.

    >>> win_rate_sd(0.5), round(win_rate_sd(0.5, ties=0.5), 4)
    (0.5, 0.3536)
    """
    for name, value in (("rate", rate), ("ties", ties)):
        if not 0 <= value <= 1:
            raise DataError(f"{name} is {value:g} and must be between 0 and 1: write 55 % as 0.55.")
    wins = rate - ties / 2
    if not (0 <= ties < 1 and 0 < rate < 1 and wins >= 0 and wins + ties <= 1):
        raise DataError(f"a win rate of {rate:g} with {ties:.0%} ties is not possible (ties count half)")
    return math.sqrt(wins + ties / 4 - rate**2)


def plan_from_pilot(values: ArrayLike, *, effect: float, power: float = 0.8, level: float = 0.95) -> Power:
    """Prompts needed, from a pilot's values per prompt.

    Args:
        values: (prompts,) paired differences, or wins minus 0.5; one value per prompt.
        effect: true mean to see.
        power: chance of seeing it.
        level: confidence level of the interval.
    Raises:
        DataError: fewer than 10 prompts, constant values, or a number out of range.
    Source: the pilot's own interval for its standard deviation is the chi-square one, which is exact for
        normal differences and rough for others.

    >>> plan = plan_from_pilot(np.random.default_rng(0).normal(0, 0.3, 50), effect=0.1)
    >>> plan.prompts, plan.prompts_low, plan.prompts_high
    (62, 44, 95)
    """
    pilot = finite_rows(values, "pilot")
    if len(pilot) < FEWEST_PILOT:
        raise DataError(
            f"a pilot needs at least {FEWEST_PILOT} prompts, got {len(pilot)}. Measure more, or give --sd."
        )
    sd = float(pilot.std(ddof=1))
    if sd <= 1e-9 * max(float(np.abs(pilot).max()), 1e-300):
        raise DataError(
            f"all {len(pilot)} prompts of the pilot have the same value, so it shows no spread. Give --sd."
        )
    free = len(pilot) - 1
    low, high = (sd * math.sqrt(free / float(stats.chi2.ppf(tail, free))) for tail in (0.975, 0.025))
    needed, fewest, most = (prompts_for(effect, each, power=power, level=level) for each in (sd, low, high))
    seen = smallest_effect(sd, len(pilot), power=power, level=level)
    return Power(effect, sd, needed, fewest, most, power, level, len(pilot), seen)


def plan_from_sd(effect: float, sd: float, *, power: float = 0.8, level: float = 0.95) -> Power:
    """Prompts needed, from a standard deviation that is known or assumed; raises as `prompts_for`."""
    needed = prompts_for(effect, sd, power=power, level=level)
    return Power(effect, sd, needed, needed, needed, power, level)


def _check(effect: float, sd: float, power: float, level: float) -> None:
    if not (math.isfinite(effect) and effect != 0):
        raise DataError(f"the effect to see must be a number other than 0, got {effect:g}")
    if not (math.isfinite(sd) and sd > 0):
        raise DataError(f"the standard deviation must be above 0, got {sd:g}")
    for name, value in (("power", power), ("level", level)):
        if not 0 < value < 1:
            raise DataError(f"{name} must be between 0 and 1, got {value:g}")
