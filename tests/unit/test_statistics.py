"""Intervals: what they count, what they refuse, how they behave at the edges."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from handbook_utils.errors import DataError
from handbook_utils.evaluation import intervals
from handbook_utils.evaluation.statistics import (
    CoverageWarning,
    mean_estimate,
    mean_over_seeds,
    paired_difference,
    proportion_estimate,
)
from handbook_utils.records import Estimate

# few prompts are the point of most of these tests; the warning has tests of its own
quiet = pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")

scores = st.lists(st.integers(-50, 50).map(float), min_size=3, max_size=25)


def test_every_prompt_counts_once_however_many_rows_it_has() -> None:
    values = [1.0] * 9 + [3.0] + [float(i) for i in range(18)]
    ids = ["many"] * 9 + ["few"] + [f"p{i}" for i in range(18)]
    estimate = mean_estimate(values, clusters=ids)
    # (1 + 3 + (0 + 1 + ... + 17)) / 20 = (4 + 153) / 20
    assert estimate.value == pytest.approx(7.85)
    assert estimate.n == 20


def test_repeating_each_row_within_its_prompt_narrows_nothing() -> None:
    values = np.random.default_rng(3).random(40)
    once = mean_estimate(values, clusters=np.arange(40))
    eightfold = mean_estimate(np.repeat(values, 8), clusters=np.repeat(np.arange(40), 8))
    assert (eightfold.low, eightfold.high, eightfold.n) == pytest.approx((once.low, once.high, 40))
    rows_as_prompts = mean_estimate(np.repeat(values, 8))
    assert rows_as_prompts.high - rows_as_prompts.low < 0.5 * (once.high - once.low)


def test_zeros_and_ones_get_the_wilson_interval_of_scipy() -> None:
    values = np.r_[np.ones(13), np.zeros(37)]
    expected = stats.binomtest(13, 50).proportion_ci(0.95, method="wilson")
    for estimate in (mean_estimate(values, unit="rate"), proportion_estimate(13, 50)):
        assert estimate.method == "wilson"
        assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
        assert estimate.seed is None


def test_five_seeds_get_students_interval_with_four_degrees_of_freedom() -> None:
    # mean 0.3; deviations -0.2 -0.1 0 0.1 0.2, squares 0.04 0.01 0 0.01 0.04: variance 0.1 / 4 = 0.025,
    # standard error sqrt(0.025 / 5) = 0.0707; t(0.975, 4) = 2.7764: 0.3 -+ 0.1963
    found = mean_over_seeds([0.5, 0.1, 0.3, 0.2, 0.4], unit="gold reward")
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.1037, 0.4963), abs=1e-4)
    assert (found.n, found.level, found.unit, found.method) == (5, 0.95, "gold reward", "student-t")


def test_seeds_that_all_agree_leave_no_interval() -> None:
    found = mean_over_seeds([0.25, 0.25, 0.25])
    assert (found.low, found.high) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[0.3], [], [0.3, math.inf]])
def test_an_interval_over_seeds_needs_two_finite_figures(values: list[float]) -> None:
    with pytest.raises(DataError):
        mean_over_seeds(values)


def test_correlated_rows_of_a_prompt_widen_a_rate() -> None:
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.integers(0, 2, 60), 8)
    clustered = mean_estimate(alike, clusters=np.repeat(np.arange(60), 8))
    assert clustered.method == "wilson-effective"
    assert clustered.high - clustered.low > 2 * (lambda e: e.high - e.low)(mean_estimate(alike))


@quiet
def test_bootstrap_t_is_never_narrower_than_student_and_longer_towards_the_tail() -> None:
    values = np.exp(np.random.default_rng(1).standard_normal(40))
    skewed, student = mean_estimate(values), mean_estimate(values, method="student-t")
    assert skewed.low <= student.low
    assert skewed.high > student.high
    assert skewed.high - skewed.value > 1.2 * (skewed.value - skewed.low)


def test_student_interval_matches_scipy() -> None:
    values = np.random.default_rng(2).random(20)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    estimate = mean_estimate(values, method="student-t", level=0.9)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_percentile_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(4).random((50, 1))
    low, high = intervals.percentile(values, level=0.95, seed=0, draws=20_000)
    peer = stats.bootstrap(
        (values[:, 0],),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    width = peer.high - peer.low
    assert low[0] == pytest.approx(peer.low, abs=0.03 * width)
    assert high[0] == pytest.approx(peer.high, abs=0.03 * width)


@quiet
@given(scores, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_order_of_prompts_changes_nothing(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = mean_estimate(values), mean_estimate(shuffled)
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


@quiet
@given(scores, st.integers(-20, 20), st.sampled_from([0.25, 2.0, 1000.0]))
@settings(max_examples=40)
def test_interval_follows_shift_and_scale(values: list[float], shift: int, scale: float) -> None:
    # Wilson's interval is for zeros and ones, which a shift takes away: keep to real scores
    base = [value + 0.5 for value in values]
    one = mean_estimate(base)
    moved = mean_estimate([scale * value + shift for value in base])
    for end in ("value", "low", "high"):
        expected = scale * getattr(one, end) + shift
        assert getattr(moved, end) == pytest.approx(expected, rel=1e-6, abs=1e-6 * scale)


@quiet
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 7.0, -3.0, 1e-9, 1e12]), min_size=1, max_size=12),
    st.integers(1, 4),
)
@settings(max_examples=80)
def test_an_interval_always_holds_its_value_and_is_never_nan(values: list[float], rows: int) -> None:
    ids = np.arange(len(values)) // rows
    for estimate in (
        mean_estimate(values, clusters=ids),
        paired_difference(values, values[::-1], clusters=ids),
        mean_estimate(values, method="percentile"),
    ):
        assert estimate.low <= estimate.value <= estimate.high


def test_a_rate_never_seen_still_has_an_upper_end() -> None:
    estimate = mean_estimate(np.zeros(400), clusters=np.repeat(np.arange(50), 8), unit="rate")
    # Clopper-Pearson on 50 prompts, not 400 rows: 1 - 0.025^(1/50)
    assert (estimate.low, estimate.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 50)))
    assert estimate.method == "rule-of-three"


def test_equal_runs_of_zeros_and_ones_differ_by_at_most_the_unseen_share() -> None:
    same = [0.0, 1.0] * 20
    with pytest.warns(CoverageWarning, match="same value"):
        estimate = paired_difference(same, same)
    share = 1 - 0.025 ** (1 / 40)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.0, -share, share))


def test_one_prompt_or_equal_scores_of_unknown_range_bound_nothing() -> None:
    for values in ([4.2], [4.2] * 30):
        with pytest.warns(CoverageWarning, match="same value"):
            estimate = mean_estimate(values)
        assert (estimate.low, estimate.high) == (-math.inf, math.inf)
        assert Estimate.from_json(estimate.to_json()) == estimate


def test_two_prompts_get_students_wide_interval_and_a_warning() -> None:
    with pytest.warns(CoverageWarning, match="not measured below 6 prompts"):
        estimate = mean_estimate([1.0, 2.0])
    # t(0.975, 1 degree of freedom) = 12.706; standard error = 0.5
    assert (estimate.low, estimate.high) == pytest.approx((1.5 - 12.706 * 0.5, 1.5 + 12.706 * 0.5), rel=1e-3)


def test_few_skewed_prompts_warn_with_the_measured_coverage() -> None:
    with pytest.warns(CoverageWarning, match=r"covered 89\.\d ± 0\.\d % .*log-normal, unpaired, 6 prompts"):
        mean_estimate([0.1, 0.2, 0.3, 0.2, 0.4, 9.0])


def test_many_symmetric_prompts_do_not_warn() -> None:
    values = np.random.default_rng(0).random(200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean_estimate(values)
        paired_difference(values, values[::-1])
        proportion_estimate(100, 200)


def test_the_percentile_bootstrap_warns_where_the_automatic_method_does_not() -> None:
    values = np.random.default_rng(0).random(8)
    mean_estimate(values)
    with pytest.warns(CoverageWarning, match="too narrow"):
        mean_estimate(values, method="percentile")


def test_paired_difference_is_b_minus_a_and_uses_the_pairing() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0, 10, 60)
    b = a + 1 + rng.normal(0, 0.1, 60)
    estimate = paired_difference(a, b)
    assert 0.9 < estimate.low < estimate.value < estimate.high < 1.1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_named_by_its_row(bad: float) -> None:
    with pytest.raises(DataError, match=r"values: row 2 is -?(nan|inf)"):
        mean_estimate([1.0, 2.0, bad])
    with pytest.raises(DataError, match="b: row 1"):
        paired_difference([1.0, 2.0], [1.0, bad])


def test_misuse_is_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match="at least one score"):
        mean_estimate([])
    with pytest.raises(DataError, match="got 2 of a and 3 of b"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="one prompt id per row"):
        mean_estimate([1, 2, 3], clusters=["a", "b"])
    with pytest.raises(DataError, match="Did you mean 'bootstrap-t'"):
        mean_estimate([1.0, 2.0, 4.0], method="bootstrap_t")
    with pytest.raises(DataError, match="zeros and ones"):
        mean_estimate([1.0, 2.0, 4.0], method="wilson")
    with pytest.raises(DataError, match="level"):
        mean_estimate([1.0, 2.0, 4.0], level=95)
    with pytest.raises(DataError, match="3 of 2"):
        proportion_estimate(3, 2)


def test_a_seed_gives_one_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).random(30)
    assert mean_estimate(values, seed=1) == mean_estimate(values, seed=1)
    assert mean_estimate(np.exp(5 * values), seed=1).high != mean_estimate(np.exp(5 * values), seed=2).high


def test_the_rate_of_few_prompts_takes_students_quantile_for_the_normal_one() -> None:
    # four rows each; rates 1/4, 1/2, 3/4, 1/2, 1: mean p = 0.6, squares of deviations sum to 0.325,
    # se^2 = 0.325 / 4 / 5 = 0.01625, so p (1 - p) / se^2 = 0.24 / 0.01625 = 14.769 trials
    rows = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    with pytest.warns(CoverageWarning):
        found = mean_estimate(np.ravel(rows), clusters=np.repeat(np.arange(5), 4), unit="rate")
    assert found.method == "wilson-effective"
    # t(0.975, 4) = 2.7764 in (p + t^2/2n -+ t sqrt(p(1-p)/n + t^2/4n^2)) / (1 + t^2/n); 1.96 gives 0.36, 0.80
    assert (found.low, found.high) == pytest.approx((0.2767, 0.8546), abs=1e-3)


def test_repeating_each_pair_within_its_prompt_narrows_no_difference() -> None:
    a, b = np.random.default_rng(4).random((2, 40))
    once = paired_difference(a, b, clusters=np.arange(40))
    eightfold = paired_difference(np.repeat(a, 8), np.repeat(b, 8), clusters=np.repeat(np.arange(40), 8))
    assert (eightfold.low, eightfold.high, eightfold.n) == pytest.approx((once.low, once.high, 40))
    rows_as_prompts = paired_difference(np.repeat(a, 8), np.repeat(b, 8))
    assert rows_as_prompts.high - rows_as_prompts.low < 0.5 * (once.high - once.low)


@pytest.mark.parametrize("shape", ["normal", "log-normal", "three values"])
def test_blocks_of_many_prompts_give_the_interval_of_whole_resamples(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    drawn = {
        "normal": rng.normal(size=1500),
        "log-normal": np.exp(1.5 * rng.normal(size=1500)),
        "three values": rng.choice([-1.0, 0.0, 1.0], 1500, p=[0.02, 0.9, 0.08]),
    }[shape]
    blocks = intervals.bootstrap_t(drawn[:, None], level=0.95, seed=0, draws=20_000)
    monkeypatch.setattr(intervals, "MOST_SINGLE_PROMPTS", 10_000)
    whole = intervals.bootstrap_t(drawn[:, None], level=0.95, seed=1, draws=20_000)
    width = float((whole[1] - whole[0])[0])
    # 20,000 draws know an end to about 1 % of the width
    assert np.ravel(blocks) == pytest.approx(np.ravel(whole), abs=0.02 * width)


def test_more_draws_are_taken_where_they_are_asked_for_and_none_are_refused() -> None:
    # skewed, so that the upper end is the draws' and not Student's
    a, b = np.exp(np.random.default_rng(0).normal(size=(2, 200)) * [[0.1], [1.5]])
    few, many = (paired_difference(a, b, draws=draws) for draws in (1000, 10_000))
    assert few.value == many.value
    assert few.high != many.high
    assert many.high == pytest.approx(few.high, rel=0.1)
    with pytest.raises(DataError, match="draws must be at least 1"):
        mean_estimate(a, draws=0)
