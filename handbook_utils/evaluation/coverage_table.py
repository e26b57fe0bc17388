"""The measured coverage of the intervals (coverage.json), and which setting is nearest to given scores."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import stats

from handbook_utils.errors import DataError
from handbook_utils.evaluation.intervals import Array

TABLE = Path(__file__).with_name("coverage.json")

# the aim at 95 %; outside it a function warns
BAND = (0.93, 0.97)

# the geometric mean of the two measured rates, 0.05 and 0.5
RARE_BELOW = math.sqrt(0.05 * 0.5)
SKEWED_ABOVE = 1.0


@dataclass(frozen=True)
class CoverageRow:
    """How often an interval of nominally 95 % held the true mean in simulated data sets of one setting.

    Attributes:
        method: "auto" (what the functions use by default), "percentile" or "student-t".
        distribution: of a single row: "gold-like", "bernoulli-0.5", "bernoulli-0.05" or "log-normal".
        prompts: independent prompts in a data set.
        rows: rows per prompt, correlated within the prompt.
        design: "unpaired" (a mean), "paired" (difference of two means on the same prompts), "win-rate".
        coverage: share of data sets whose interval held the truth.
        mc_error: standard error of `coverage` from the number of data sets.
        mean_width: mean length of the interval, in the distribution's unit.
        data_sets: simulated data sets.
    """

    method: str
    distribution: str
    prompts: int
    rows: int
    design: str
    coverage: float
    mc_error: float
    mean_width: float
    data_sets: int

    @property
    def is_in_band(self) -> bool:
        """Whether the measured coverage is within `BAND`."""
        return BAND[0] <= self.coverage <= BAND[1]


@cache
def coverage_rows(path: Path = TABLE) -> tuple[CoverageRow, ...]:
    """Read the measured table. `python -m handbook_utils.evaluation.coverage` writes it.

    Raises:
        DataError: the table is missing or has other columns.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return tuple(CoverageRow(**record) for record in records)
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "Reinstall the package or run `python -m handbook_utils.evaluation.coverage`."
        raise DataError(f"{path}: cannot read the table of measured coverage ({error}). {remedy}") from error


def write_coverage_rows(rows: Sequence[CoverageRow], path: Path = TABLE) -> None:
    """Write the table, one row per line, so that a change reads well in a diff."""
    lines = ",\n  ".join(json.dumps(vars(row)) for row in rows)
    path.write_text(f'{{"level": 0.95, "rows": [\n  {lines}\n]}}\n', encoding="utf-8")


def nearest_coverage(
    method: str, *, distribution: str, prompts: int, rows: float, design: str
) -> CoverageRow | None:
    """Return the measured setting of that distribution and design with the nearest sizes (on a log scale).

    None where the method was not measured, or with fewer prompts than any measured setting has.
    """
    alike = [
        row
        for row in coverage_rows()
        if row.method == method and row.distribution == distribution and row.design == design
    ]
    if not alike or prompts < min(row.prompts for row in alike):
        return None

    def distance(row: CoverageRow) -> tuple[float, float]:
        return abs(math.log(row.prompts / prompts)), abs(math.log(row.rows / max(rows, 1.0)))

    return min(alike, key=distance)


def nearest_distribution(prompt_values: Array, *, rate: float | None) -> str:
    """Name the measured distribution most like these prompts.

    Args:
        prompt_values: (prompts,) means or differences.
        rate: how often the event happens, for scores of 0 and 1 only; None for other scores.

    >>> nearest_distribution(np.array([0.0, 0.0, 1.0]), rate=0.02)
    'bernoulli-0.05'
    >>> nearest_distribution(np.array([0.2, 0.4, 0.5, 0.9]), rate=None)
    'gold-like'
    """
    if rate is not None:
        return "bernoulli-0.05" if min(rate, 1 - rate) < RARE_BELOW else "bernoulli-0.5"
    if np.ptp(prompt_values) == 0:
        return "gold-like"
    return "log-normal" if abs(float(stats.skew(prompt_values))) > SKEWED_ABOVE else "gold-like"
