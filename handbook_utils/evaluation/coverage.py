"""Measure how often the intervals hold the truth: `python -m handbook_utils.evaluation.coverage`.

Scores are simulated from distributions whose mean is known. Rows of one prompt share a latent quality of the
prompt (a Gaussian copula, correlation 0.5), as do the two sides of a pair. The functions of this package look
their own setting up in the table that this writes, and warn where it is off.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from handbook_utils.evaluation.coverage_table import TABLE, CoverageRow, write_coverage_rows
from handbook_utils.evaluation.intervals import (
    Array,
    Interval,
    automatic_method,
    is_constant,
    mean_intervals,
    rule_of_three,
)

DISTRIBUTIONS = ("gold-like", "bernoulli-0.5", "bernoulli-0.05", "log-normal")
PROMPTS = (6, 30, 200)
ROWS = (1, 8)
DESIGNS = ("unpaired", "paired", "win-rate")
MEASURED_METHODS = ("auto", "percentile", "student-t")
# four batches of 2,000: the Monte-Carlo error is 0.24 points at 95 %
BATCHES = 4
BATCH = 2000
CORRELATION = 0.5
LEVEL = 0.95


@dataclass(frozen=True)
class SimulatedSetting:
    """One setting of the table: what is drawn, how much of it, and what is estimated."""

    distribution: str
    prompts: int
    rows: int
    design: str


def settings() -> Iterator[SimulatedSetting]:
    """Every setting of the table."""
    for choice in itertools.product(DISTRIBUTIONS, PROMPTS, ROWS, DESIGNS):
        yield SimulatedSetting(*choice)


def score_rows(distribution: str, latent: Array, *, arm: int) -> Array:
    """Scores from standard normal latents, higher for higher. Arm 0 is the baseline; arm 1 is better.

    gold-like: 0 with probability 0.25 (arm 1: 0.15), else Beta(2, 2). bernoulli: 0 or 1, with a rate of 0.5
    (0.6) or 0.05 (0.1). log-normal: exp of the latent (plus 0.3 in arm 1).

    >>> score_rows("bernoulli-0.5", np.array([-1.0, 1.0]), arm=0).tolist()
    [0.0, 1.0]
    """
    if distribution == "log-normal":
        return np.asarray(np.exp(latent + 0.3 * arm))
    share = ndtr(latent)
    if distribution == "gold-like":
        zeros = (0.25, 0.15)[arm]
        inner = np.clip((share - zeros) / (1 - zeros), 0, 1)
        # the quantile function of Beta(2, 2), where it has one in closed form: it solves 3x² - 2x³ = u
        return np.where(share < zeros, 0.0, 0.5 - np.sin(np.arcsin(1 - 2 * inner) / 3))
    rate = {"bernoulli-0.5": (0.5, 0.6), "bernoulli-0.05": (0.05, 0.1)}[distribution][arm]
    return np.asarray((share > 1 - rate).astype(np.float64))


def true_mean(distribution: str, *, arm: int) -> float:
    """Mean of `score_rows` over its distribution.

    >>> true_mean("gold-like", arm=1)
    0.425
    """
    if distribution == "gold-like":
        return (1 - (0.25, 0.15)[arm]) / 2
    if distribution == "log-normal":
        return float(np.exp(0.3 * arm + 0.5))
    return {"bernoulli-0.5": (0.5, 0.6), "bernoulli-0.05": (0.05, 0.1)}[distribution][arm]


def true_win_rate(distribution: str) -> float:
    """Probability that a row of arm 1 beats one of arm 0 on the same prompt, ties half, by quadrature."""
    # given the prompt's quality the two rows are independent: average over quality, compare on a grid
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    quantiles = np.linspace(0, 1, 2001)[1:] - 0.5 / 2000
    noise = ndtri(quantiles)
    total = 0.0
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        latent = np.sqrt(CORRELATION) * node + np.sqrt(1 - CORRELATION) * noise
        a = np.sort(score_rows(distribution, latent, arm=0))
        b = score_rows(distribution, latent, arm=1)
        below, up_to = (np.searchsorted(a, b, side=side).mean() for side in ("left", "right"))
        total += weight * (below + up_to) / (2 * len(a))
    return float(total)


def simulate(setting: SimulatedSetting, data_sets: int, *, seed: int) -> tuple[Array, float]:
    """Draw data sets of prompts' values, (prompts, data_sets), and return them with the true mean."""
    rng = np.random.default_rng([seed, PROMPTS[-1] * setting.prompts + setting.rows])
    quality = rng.standard_normal((setting.prompts, 1, data_sets))
    arms = []
    for arm in (0, 1):
        noise = rng.standard_normal((setting.prompts, setting.rows, data_sets))
        latent = np.sqrt(CORRELATION) * quality + np.sqrt(1 - CORRELATION) * noise
        arms.append(score_rows(setting.distribution, latent, arm=arm))
    mean_a, mean_b = (true_mean(setting.distribution, arm=arm) for arm in (0, 1))
    if setting.design == "unpaired":
        return arms[0].mean(axis=1), mean_a
    if setting.design == "paired":
        return arms[1].mean(axis=1) - arms[0].mean(axis=1), mean_b - mean_a
    wins = np.zeros((setting.prompts, data_sets))
    for i, j in itertools.product(range(setting.rows), repeat=2):
        wins += (np.sign(arms[1][:, i] - arms[0][:, j]) + 1) / 2
    return wins / setting.rows**2, true_win_rate(setting.distribution)


def measured_intervals(x: Array, setting: SimulatedSetting, method: str) -> Interval:
    """Intervals of each data set, as `statistics` would give for such scores; "auto" as it would choose."""
    is_rate = setting.design == "win-rate" or (
        setting.design == "unpaired" and setting.distribution.startswith("bernoulli")
    )
    if method == "auto":
        is_single = setting.rows == 1 and setting.design == "unpaired"
        method = automatic_method(is_rate=is_rate, is_single=is_single)
    if method == "wilson":
        return mean_intervals(x, method, level=LEVEL, seed=0)
    bounds: tuple[float, float] | None = (-1.0 if setting.design == "paired" else 0.0, 1.0)
    if setting.distribution == "log-normal" and not is_rate:
        bounds = None
    flat = is_constant(x, bounds)
    low, high = rule_of_three(x.mean(axis=0), len(x), bounds, level=LEVEL)
    if not flat.all():
        low[~flat], high[~flat] = mean_intervals(x[:, ~flat], method, level=LEVEL, seed=0)
    return low, high


def measure(
    setting: SimulatedSetting, method: str, *, batches: int = BATCHES, batch: int = BATCH, seed: int = 0
) -> CoverageRow:
    """Coverage of one method in one setting, with its Monte-Carlo error.

    Args:
        setting: what to simulate.
        method: one of `MEASURED_METHODS`, or of `intervals.METHODS`.
        batches: how many batches of data sets to draw; more take longer, not more memory.
        batch: data sets in each.
        seed: seed of the first batch; the next ones count up.
    """
    hits, widths = [], []
    for step in range(batches):
        x, truth = simulate(setting, batch, seed=seed + step)
        low, high = measured_intervals(x, setting, method)
        hits.append((low <= truth) & (truth <= high))
        widths.append(high - low)
    data_sets = batches * batch
    coverage = float(np.mean(hits))
    return CoverageRow(
        method=method,
        distribution=setting.distribution,
        prompts=setting.prompts,
        rows=setting.rows,
        design=setting.design,
        coverage=round(coverage, 4),
        mc_error=round(float(np.sqrt(coverage * (1 - coverage) / data_sets)), 4),
        mean_width=float(f"{np.mean(widths):.4g}"),
        data_sets=data_sets,
    )


def main() -> None:
    """Measure every setting and write the table that the package ships."""
    rows = [measure(setting, method) for setting in settings() for method in MEASURED_METHODS]
    write_coverage_rows(rows)
    automatic = [row for row in rows if row.method == "auto"]
    inside = sum(row.is_in_band for row in automatic)
    print(f"{TABLE}: {len(rows)} rows; {inside} of {len(automatic)} automatic intervals cover 93-97 %")


if __name__ == "__main__":
    main()
