"""Details of the estimators that no other test noticed: each was changed once."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from handbook_utils.errors import DataError
from handbook_utils.evaluation import best_of_n, coverage
from handbook_utils.evaluation.best_of_n import best_of_n_curve
from handbook_utils.evaluation.coverage_table import coverage_rows
from handbook_utils.evaluation.intervals import (
    MOST_SINGLE_PROMPTS,
    _resample_blocks,
    _tail_quantiles,
    is_constant,
)
from handbook_utils.evaluation.judged import coverage as judged_coverage
from handbook_utils.evaluation.judged import summary
from handbook_utils.evaluation.judged.corrected import corrected_win_rate
from handbook_utils.evaluation.judged.length_control import fit_fractional, length_controlled_win_rate
from handbook_utils.evaluation.judged.summary import Judgements, summarise_judgements
from handbook_utils.evaluation.kl import estimate_kl
from handbook_utils.evaluation.power import smallest_effect

RNG = np.random.default_rng(11)


def test_a_curve_says_how_many_samples_a_prompt_has(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = []
    estimate = best_of_n.estimate_columns
    monkeypatch.setattr(
        best_of_n, "estimate_columns", lambda x, given: settings.append(given) or estimate(x, given)
    )
    best_of_n_curve(RNG.random((30, 4)), RNG.random((30, 4)))
    assert settings[0].rows == 4


def test_the_shipped_tables_hold_every_setting_that_is_simulated() -> None:
    shipped = {(r.distribution, r.prompts, r.rows, r.design) for r in coverage_rows() if r.method == "auto"}
    assert shipped == {dataclasses.astuple(setting) for setting in coverage.settings()}
    judged = coverage_rows(judged_coverage.TABLE)
    simulated = {(*name, prompts) for name in judged_coverage.SETTINGS for prompts in judged_coverage.PROMPTS}
    assert {(row.method, row.distribution, row.prompts) for row in judged} == simulated
    assert all(row.rows == judged_coverage.SETTINGS[row.method, row.distribution][1] for row in judged)


@pytest.mark.parametrize(
    ("distribution", "expected"),
    # the logarithms of log-normal scores are 0.3 apart, and each has a variance of one half given the prompt
    [("log-normal", float(ndtr(0.3))), ("bernoulli-0.5", 0.55), ("bernoulli-0.05", 0.525)],
)
def test_true_win_rates_are_exact_to_four_digits(distribution: str, expected: float) -> None:
    assert coverage.true_win_rate(distribution) == pytest.approx(expected, abs=1e-4)


def test_a_simulated_pair_differs_prompt_by_prompt() -> None:
    alone, paired = (
        coverage.simulate(coverage.SimulatedSetting("bernoulli-0.5", 6, 8, design), 20, seed=1)[0]
        for design in ("unpaired", "paired")
    )
    better = (alone + paired) * 8
    assert better == pytest.approx(np.round(better))
    assert better.min() >= 0
    assert better.max() <= 8


@pytest.mark.parametrize("measure", ["plain", "judged"])
def test_a_row_of_coverage_is_rounded_to_four_digits_with_its_monte_carlo_error(measure: str) -> None:
    if measure == "plain":
        setting = coverage.SimulatedSetting("log-normal", 6, 1, "unpaired")
        row = coverage.measure(setting, "student-t", batches=1, batch=48)
    else:
        row = judged_coverage.measure("two-level", "3-seeds-apart", 30, data_sets=48)
    share = round(row.coverage * 48) / 48
    assert share < 1
    assert row.coverage == round(share, 4)
    assert row.mc_error == round(float(np.sqrt(share * (1 - share) / 48)), 4)


def test_what_counts_as_constant_grows_with_the_bounds() -> None:
    x = np.array([[0.0], [5e-9]])
    assert is_constant(x, (0.0, 10.0)).all()
    assert not is_constant(x, (0.0, 1.0)).any()


def test_quantiles_of_the_tails_are_numpys() -> None:
    samples = RNG.exponential(size=(37, 2))
    samples[:5, 1] = np.nan
    found = _tail_quantiles(samples, 0.9)
    assert found == pytest.approx(np.nanquantile(samples, [0.05, 0.95], axis=0), rel=1e-12)


def test_resampled_blocks_have_the_variances_and_the_covariance_of_resampled_prompts() -> None:
    """Unsorted values vary mostly within blocks, so what is added to their means has to be right."""
    x = RNG.exponential(size=(2 * MOST_SINGLE_PROMPTS, 1))
    total, squares = _resample_blocks(x, seed=0, draws=20_000)
    found = np.cov(total[:, 0], squares[:, 0]) / len(x)
    assert found == pytest.approx(np.cov(x[:, 0], x[:, 0] ** 2), rel=0.05)


def test_an_error_begins_with_the_name_of_the_argument() -> None:
    with pytest.raises(DataError, match=r"^policy_logprobs: row 1 "):
        estimate_kl([-1.0, 2.0], [-1.0, -2.0])


def test_two_prompts_are_enough_for_an_effect() -> None:
    assert smallest_effect(0.1, 2) > 0.5
    with pytest.raises(DataError, match="at least 2 prompts, got 1"):
        smallest_effect(0.1, 1)


def test_agreement_leaves_out_what_either_side_calls_a_tie() -> None:
    people = np.array([1.0, 0.0] * 20 + [0.5, 1.0, 0.0])
    judge = np.array([1.0, 0.0] * 20 + [1.0, 0.5, 0.25])
    found = corrected_win_rate(judge, people, RNG.random(30))
    assert found.agreement is not None
    assert (found.agreement.n, found.agreement.value) == (41, 1.0)


def test_the_simulated_judge_says_b_where_it_is_wrong_and_its_people_say_it_six_times_in_ten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []
    real = judged_coverage.corrected_win_rate
    monkeypatch.setattr(
        judged_coverage, "corrected_win_rate", lambda *rows: given.append(rows) or real(*rows)
    )
    judged_coverage.SETTINGS["corrected", "judge-right-0.6"][0](np.random.default_rng(0), 2000)
    judge, people, rest = given[0]
    assert set(judge) == {0.0, 1.0}
    assert judge[people == 1].min() == 1.0
    assert people.mean() == pytest.approx(0.6, abs=0.04)
    assert (judge[people == 0] == 0).mean() == pytest.approx(0.6, abs=0.05)
    assert len(rest) == 10_000


@pytest.mark.parametrize(
    ("name", "seeds"), [("3-seeds-alike", 3), ("3-seeds-apart", 3), ("5-seeds-apart", 5)]
)
def test_simulated_seeds_are_as_many_and_as_spread_as_said(
    name: str, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    real = judged_coverage.mean_over_prompts_and_seeds
    monkeypatch.setattr(
        judged_coverage, "mean_over_prompts_and_seeds", lambda rows: given.append(rows) or real(rows)
    )
    judged_coverage.SETTINGS["two-level", name][0](np.random.default_rng(0), 4000)
    assert given[0].shape == (seeds, 4000)
    assert given[0].std(axis=1) == pytest.approx(0.3 * np.sqrt(2), rel=0.05)
    shared = np.cov(given[0])[np.triu_indices(seeds, 1)]
    assert shared == pytest.approx(0.09, rel=0.1)


def test_simulated_answers_of_a_have_one_length_and_those_of_b_are_longer_on_average() -> None:
    rows = judged_coverage.judged_rows(np.random.default_rng(0), 3000, rate=0.6, bias=1.0)
    assert set(rows["lengths_a"]) == {300.0}
    longer = rows["lengths_b"] - rows["lengths_a"]
    assert (longer.mean(), longer.std()) == pytest.approx((50, 100), abs=6)


@pytest.mark.parametrize("seed", [41, 76, 117])
def test_a_fit_whose_full_steps_overshoot_still_finds_the_maximum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(8), np.tanh(10 * rng.standard_cauchy((8, 2)))])
    y = (rng.random(8) < 0.3) * 1.0

    def height(theta: np.ndarray) -> float:
        mean = 1 / (1 + np.exp(-x @ theta))
        information = (x * (mean * (1 - mean))[:, None]).T @ x
        fit = np.sum(y * np.log(mean) + (1 - y) * np.log(1 - mean))
        return float(fit + np.linalg.slogdet(information)[1] / 2)

    found = fit_fractional(x, y, np.ones(8))
    around = [height(found + np.array(step)) for step in itertools.product((-1e-3, 0, 1e-3), repeat=3)]
    assert height(found) == pytest.approx(max(around), abs=1e-10)


def test_where_b_always_wins_there_is_no_caution_about_length() -> None:
    found = length_controlled_win_rate(np.ones(40), np.full(40, 10.0), RNG.normal(10, 3, 40))
    assert found.caution == ""


def judgements(*, seeds: int = 1, ties: int = 0, prompts: int = 12) -> Judgements:
    """Each prompt in both orders for each seed; the first `ties` prompts are ties throughout."""
    rows = [(p, s, first) for p in range(prompts) for s in range(seeds) for first in (0.0, 1.0)]
    liked = [0.5 if p < ties else float((p + s) % 3 > 0) for p, s, _ in rows]
    return Judgements(
        prompt_ids=[f"p{p}" for p, _, _ in rows],
        preferences=np.array(liked),
        lengths_a=np.full(len(rows), 20.0),
        lengths_b=np.array([20.0 + (5 * p) % 7 for p, _, _ in rows]),
        b_first=np.array([first for _, _, first in rows]),
        seeds=[f"s{s}" for _, s, _ in rows],
    )


def test_every_figure_of_judgements_is_at_the_level_that_is_asked_for() -> None:
    report = summarise_judgements(judgements(seeds=5), level=0.5)
    assert {"order_agreement", "position_bias", "win_rate_over_seeds", "win_rate"} <= report.metrics.keys()
    assert {figure.level for figure in report.metrics.values()} == {0.5}


def test_seeds_give_an_interval_from_three_on() -> None:
    assert "win_rate_over_seeds" in summarise_judgements(judgements(seeds=5)).metrics
    two = summarise_judgements(judgements(seeds=2))
    assert any("2 training seeds are too few" in caution for caution in two.cautions)


def test_agreement_between_orders_counts_prompts_however_many_seeds_were_judged() -> None:
    assert summarise_judgements(judgements(seeds=5)).metrics["order_agreement"].n == 12


def test_ties_make_a_win_rate_rarer_for_its_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = []
    estimate = summary.estimate_columns
    monkeypatch.setattr(
        summary, "estimate_columns", lambda x, given: settings.append(given) or estimate(x, given)
    )
    summarise_judgements(judgements(ties=9))
    assert settings[0].base_rate == pytest.approx(3 / 12 / 2)


def test_a_report_of_judgements_cannot_be_changed() -> None:
    report = summarise_judgements(judgements())
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows = 1  # type: ignore[misc]
