"""How safe a claim is: its margin over fresh seeds, and the false-alarm rate that extrapolates from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student_t

from handbook_utils.evaluation.statistics import mean_over_seeds

ENOUGH_MARGIN_SD = 4.0
ENOUGH_SEEDS = 5


def distances(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """How far each seed's interval end is on the claimed side of the bound; positive where it holds.

    >>> distances([{"relation": "<", "bound": 0.0, "low": -0.3, "high": -0.1}])
    [0.1]
    """
    signed = []
    for record in records:
        end = record["low"] if record["relation"] == ">" else record["high"]
        distance = -math.inf if end is None else end - record["bound"]
        signed.append(distance if record["relation"] == ">" or end is None else -distance)
    return signed


def margin_sd(found: Sequence[float]) -> float | None:
    """Mean distance from the bound in standard deviations over seeds; None where it is not defined.

    >>> margin_sd([1.0, 2.0, 3.0])
    2.0
    """
    if len(found) < 2 or not all(map(math.isfinite, found)):
        return None
    spread = stdev(found)
    return fmean(found) / spread if spread > 0 else None


def false_alarm_rate(found: Sequence[float]) -> float | None:
    """Chance that one more seed fails the claim, extrapolated; None where it is not defined.

    The prediction interval of a normal sample: the next distance minus the mean, over
    sd * sqrt(1 + 1/k), follows Student's t with k - 1 degrees of freedom. Five seeds cannot show
    that distances are normal in the tail, so the rate is an extrapolation, and is called one.
    """
    margin = margin_sd(found)
    if margin is None:
        return None
    seeds = len(found)
    return float(student_t.cdf(-margin / math.sqrt(1 + 1 / seeds), df=seeds - 1))


def wording(found: Sequence[float]) -> str:
    """How the book may word it.

    "claim": at least five seeds, all hold, and the margin is at least four standard deviations.
    "does not hold": it fails in half of the seeds or more.
    "observation": anything between.

    >>> wording([0.1, 0.11, 0.1, 0.12, 0.11]), wording([0.1, -0.2, -0.1])
    ('claim', 'does not hold')
    """
    held = sum(distance > 0 for distance in found)
    if 2 * held <= len(found):
        return "does not hold"
    # no spread at all: every seed measured the same, so nothing can be said against it
    margin = margin_sd(found)
    is_safe = margin >= ENOUGH_MARGIN_SD if margin is not None else len(set(found)) == 1
    is_enough = len(found) >= ENOUGH_SEEDS and held == len(found)
    return "claim" if is_enough and is_safe else "observation"


def spread_over_seeds(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of the figure with its t interval over seeds, and its range; {} for a single seed.

    >>> found = spread_over_seeds([{"value": value, "unit": "nats"} for value in (1.0, 2.0, 3.0)])
    >>> found["value"], round(found["low"], 3), found["n"], found["lowest"], found["highest"]
    (2.0, -0.484, 3, 1.0, 3.0)
    """
    values = [record["value"] for record in records]
    if len(values) < 2 or None in values:
        return {}
    mean = mean_over_seeds(values, unit=records[0]["unit"]).to_json()
    return mean | {"lowest": min(values), "highest": max(values)}


def repeats_of(by_seed: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """The records to summarise: a claim that was measured several times in one run has these for its seeds.

    Timing is such a figure: it varies with the computer's other work, not with the seed.
    """
    first = next(iter(by_seed.values()))
    return (
        {str(number): each for number, each in enumerate(first["repeats"], 1)}
        if "repeats" in first
        else by_seed
    )


def summarise(by_seed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One claim over seeds, or over repeats in one run.

    Args:
        by_seed: the claim's record of each seed, as `_build/claims/<id>.json` holds it.
    """
    by_seed = repeats_of(by_seed)
    records = list(by_seed.values())
    found = distances(records)
    first = records[0]
    return {
        "says": first["says"],
        "relation": first["relation"],
        "bound": first["bound"],
        "unit": first["unit"],
        **spread_over_seeds(records),
        "over": "repeats" if "repeat" in first else "seeds",
        "wording": wording(found),
        "held": sum(distance > 0 for distance in found),
        "of": len(found),
        "mean_distance": fmean(found) if all(map(math.isfinite, found)) else None,
        "margin_sd": margin_sd(found),
        "false_alarm_rate_extrapolated": false_alarm_rate(found),
        "by_seed": dict(by_seed),
    }
