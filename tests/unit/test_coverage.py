"""The stored table of measured coverage: complete, reproducible, and able to catch a broken method."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from handbook_utils.errors import DataError
from handbook_utils.evaluation import coverage
from handbook_utils.evaluation.coverage_table import (
    CoverageRow,
    coverage_rows,
    nearest_coverage,
    nearest_distribution,
    write_coverage_rows,
)
from handbook_utils.evaluation.statistics import mean_estimate

DATA_SETS = 400


def stored(setting: coverage.SimulatedSetting, method: str = "auto") -> CoverageRow:
    [row] = [
        row
        for row in coverage_rows()
        if row.method == method
        and (row.distribution, row.prompts, row.rows, row.design)
        == (setting.distribution, setting.prompts, setting.rows, setting.design)
    ]
    return row


def is_reproduced(row: CoverageRow, setting: coverage.SimulatedSetting, method: str) -> bool:
    """Whether 400 fresh data sets agree with a stored coverage; wrongly no once in 10,000 times."""
    again = coverage.measure(setting, method, batches=1, batch=DATA_SETS, seed=1000)
    hits = round(again.coverage * DATA_SETS)
    # the stored figure has an error of its own, a quarter of the fresh one's: widen by it
    edges = [min(max(row.coverage + side * 4 * row.mc_error, 1e-6), 1 - 1e-6) for side in (-1, 1)]
    return bool(
        stats.binom.cdf(hits, DATA_SETS, edges[0]) > 5e-5
        and stats.binom.sf(hits - 1, DATA_SETS, edges[1]) > 5e-5
    )


@pytest.mark.parametrize(
    "choice",
    [
        ("gold-like", 30, 8, "unpaired"),
        ("bernoulli-0.05", 30, 1, "unpaired"),
        ("log-normal", 30, 1, "paired"),
        ("bernoulli-0.5", 30, 8, "win-rate"),
    ],
)
def test_stored_coverage_is_reproduced_by_fresh_data_sets(choice: tuple[str, int, int, str]) -> None:
    setting = coverage.SimulatedSetting(*choice)
    assert is_reproduced(stored(setting), setting, "auto")


def test_a_broken_method_would_not_reproduce_the_stored_coverage() -> None:
    setting = coverage.SimulatedSetting("gold-like", 6, 8, "unpaired")
    row = stored(setting)
    assert is_reproduced(row, setting, "auto")
    assert not is_reproduced(row, setting, "percentile")
    assert stored(setting, "percentile").coverage < 0.9


@pytest.mark.parametrize("distribution", coverage.DISTRIBUTIONS)
def test_what_is_measured_is_what_the_functions_give(distribution: str) -> None:
    setting = coverage.SimulatedSetting(distribution, 30, 1, "unpaired")
    x, _ = coverage.simulate(setting, 3, seed=5)
    low, high = coverage.measured_intervals(x, setting, "auto")
    for i in range(3):
        estimate = mean_estimate(x[:, i])
        assert (estimate.low, estimate.high) == pytest.approx((low[i], high[i]))


def test_the_table_holds_every_setting_the_package_promises() -> None:
    rows = coverage_rows()
    found = {(row.method, row.distribution, row.prompts, row.rows, row.design) for row in rows}
    wanted = itertools.product(
        coverage.MEASURED_METHODS, coverage.DISTRIBUTIONS, (6, 30, 200), (1, 8), coverage.DESIGNS
    )
    assert found == set(wanted)
    assert len(rows) == len(found)
    assert all(row.data_sets >= 2000 and math.isfinite(row.mean_width) for row in rows)


def test_at_200_prompts_every_automatic_interval_covers_93_to_97_percent() -> None:
    rows = [row for row in coverage_rows() if row.method == "auto" and row.prompts == 200]
    assert len(rows) == 24
    assert [row for row in rows if not row.is_in_band] == []


def test_monte_carlo_error_is_the_binomial_one() -> None:
    for row in coverage_rows():
        expected = math.sqrt(row.coverage * (1 - row.coverage) / row.data_sets)
        assert row.mc_error == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("distribution", coverage.DISTRIBUTIONS)
@pytest.mark.parametrize("arm", [0, 1])
def test_simulated_scores_have_the_mean_they_are_measured_against(distribution: str, arm: int) -> None:
    scores = coverage.score_rows(distribution, np.random.default_rng(arm).standard_normal(400_000), arm=arm)
    error = float(scores.std()) / math.sqrt(len(scores))
    assert coverage.true_mean(distribution, arm=arm) == pytest.approx(float(scores.mean()), abs=4.5 * error)


def test_true_win_rate_of_log_normal_arms_is_the_closed_form() -> None:
    # P(0.3 + sqrt(1-r) (e_b - e_a) > 0) = Phi(0.3 / sqrt(2 (1 - 0.5)))
    assert coverage.true_win_rate("log-normal") == pytest.approx(stats.norm.cdf(0.3), abs=2e-3)


def test_rows_of_one_prompt_are_correlated() -> None:
    one, _ = coverage.simulate(coverage.SimulatedSetting("gold-like", 200, 1, "unpaired"), 50, seed=0)
    eight, _ = coverage.simulate(coverage.SimulatedSetting("gold-like", 200, 8, "unpaired"), 50, seed=0)
    # independent rows would leave an eighth of the variance
    assert eight.var() > 0.35 * one.var()


def test_the_nearest_setting_is_chosen_on_a_log_scale() -> None:
    def nearest(prompts: int, rows: float) -> tuple[int, int] | None:
        row = nearest_coverage("auto", distribution="gold-like", prompts=prompts, rows=rows, design="paired")
        return (row.prompts, row.rows) if row else None

    assert nearest(5, 1) is None
    assert nearest(13, 1) == (6, 1)
    assert nearest(14, 2) == (30, 1)
    assert nearest(77, 64) == (30, 8)
    assert nearest(78, 4) == (200, 8)
    assert nearest(10_000, 1) == (200, 1)


def test_scores_are_classed_by_rate_and_skewness() -> None:
    rng = np.random.default_rng(0)
    assert nearest_distribution(rng.random(100), rate=None) == "gold-like"
    assert nearest_distribution(np.exp(rng.standard_normal(100)), rate=None) == "log-normal"
    assert nearest_distribution(-np.exp(rng.standard_normal(100)), rate=None) == "log-normal"
    assert nearest_distribution(np.zeros(3), rate=0.98) == "bernoulli-0.05"
    assert nearest_distribution(np.zeros(3), rate=0.4) == "bernoulli-0.5"


def test_a_table_survives_being_written_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "coverage.json"
    write_coverage_rows(coverage_rows()[:3], path)
    assert coverage_rows(path) == coverage_rows()[:3]
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"rows": [{"method": "auto"}]}')
    with pytest.raises(DataError, match=r"damaged\.json: cannot read the table"):
        coverage_rows(damaged)
