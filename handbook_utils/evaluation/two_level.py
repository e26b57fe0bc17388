"""Means over prompts and training seeds: what another prompt and another run would give."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from handbook_utils.errors import DataError
from handbook_utils.records import Estimate

FEWEST_SEEDS = 3


@dataclass(frozen=True)
class TwoLevelMean:
    """A mean over prompts and seeds, and where its uncertainty comes from.

    Attributes:
        mean: with an interval for other prompts and other seeds; its `n` counts prompts.
        seeds: training runs.
        seed_sd: standard deviation of the figure between seeds, prompts' noise taken out; 0 where none is
            seen.
        share_of_seeds: share of the mean's variance that is due to there being so few seeds.
    """

    mean: Estimate
    seeds: int
    seed_sd: float
    share_of_seeds: float


def mean_over_prompts_and_seeds(
    values: ArrayLike, *, unit: str = "score", level: float = 0.95
) -> TwoLevelMean:
    """Mean of a figure measured on the same prompts for several seeds, with both as sources of chance.

    In a two-way table with one cell per prompt and seed, both random, the mean's variance has the parts
    MS_prompts / (n k) and (MS_seeds - MS_rest) / (n k). Each part gets its own Student quantile, with n -
    1 and k - 1 degrees of freedom, and the two reaches are added in squares. An interval over prompts alone
    holds for these trained models only.

    Args:
        values: (seeds, prompts) finite figures, such as paired differences or wins of each seed's run.
        unit: unit of the figures.
        level: confidence level.
    Raises:
        DataError: not such a table, fewer than three seeds or two prompts, a value that is not finite, or
            no spread.
    Source: Searle, Casella & McCulloch 1992, "Variance Components", chapter 4 (the mean squares); Howe
        1974, JASA 69, on adding reaches of independent parts in squares. Coverage: `judged/coverage.json`.

    >>> table = np.array([[0.1, 0.4, 0.3, 0.6], [0.3, 0.5, 0.6, 0.7], [0.2, 0.3, 0.5, 0.8]])
    >>> found = mean_over_prompts_and_seeds(table)
    >>> str(found.mean), found.seeds, round(found.share_of_seeds, 2)
    ('0.442 [0.063, 0.821]', 3, 0.15)
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < FEWEST_SEEDS or table.shape[1] < 2:
        raise DataError(
            f"expected (seeds, prompts) with at least {FEWEST_SEEDS} seeds and 2 prompts, got shape "
            f"{table.shape}. "
            "Train more seeds; for one run mean_estimate gives an interval over prompts."
        )
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        raise DataError(f"prompt {bad[0][1]} of seed {bad[0][0]} is {table[tuple(bad[0])]}. Score it again.")
    seeds, prompts = table.shape
    grand = float(table.mean())
    by_seed, by_prompt = table.mean(axis=1), table.mean(axis=0)
    rest = table - by_seed[:, None] - by_prompt + grand
    mean_square_prompts = seeds * float(np.sum((by_prompt - grand) ** 2)) / (prompts - 1)
    mean_square_seeds = prompts * float(np.sum((by_seed - grand) ** 2)) / (seeds - 1)
    mean_square_rest = float(np.sum(rest**2)) / ((prompts - 1) * (seeds - 1))
    of_prompts = mean_square_prompts / (prompts * seeds)
    of_seeds = max(mean_square_seeds - mean_square_rest, 0.0) / (prompts * seeds)
    if of_prompts + of_seeds <= 1e-24 * max(float(np.abs(table).max()) ** 2, 1e-300):
        raise DataError("all prompts and seeds have the same value: nothing can be said of others")
    quantiles = [float(stats.t.ppf((1 + level) / 2, count - 1)) for count in (prompts, seeds)]
    reach = math.sqrt(quantiles[0] ** 2 * of_prompts + quantiles[1] ** 2 * of_seeds)
    return TwoLevelMean(
        Estimate(grand, grand - reach, grand + reach, level, prompts, unit, "two-way-t"),
        seeds,
        math.sqrt(of_seeds * seeds),
        of_seeds / (of_prompts + of_seeds),
    )
