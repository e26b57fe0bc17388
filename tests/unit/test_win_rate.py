"""Win rates and paired comparisons: alignment by prompt, ties, and how sure."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from handbook_utils.errors import DataError
from handbook_utils.evaluation.statistics import CoverageWarning
from handbook_utils.evaluation.win_rate import (
    compare_paired,
    scores_by_prompt,
    sign_flip_p_value,
    win_rate,
)

IDS = [f"p{i}" for i in range(40)]
quiet = pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")


@quiet
def test_ties_count_half_and_all_pairs_within_a_prompt_are_compared() -> None:
    a = {"x": [1.0, 2.0], "y": [5.0]}
    b = {"y": [5.0], "x": [2.0, 0.0, 3.0]}
    # x: 2 beats 1 and ties 2 (1.5), 0 loses both, 3 beats both (2): 3.5 of 6; y: a tie
    assert win_rate(a, b).value == pytest.approx((3.5 / 6 + 0.5) / 2)


@quiet
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20),
)
@settings(max_examples=40)
def test_win_rates_of_either_side_add_to_one(pairs: list[tuple[int, int]]) -> None:
    ids = [f"p{i}" for i in range(len(pairs))]
    a, b = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    forward, backward = win_rate(a, b, prompt_ids=ids), win_rate(b, a, prompt_ids=ids)
    assert forward.value + backward.value == pytest.approx(1)
    assert (forward.low, forward.high) == pytest.approx((1 - backward.high, 1 - backward.low))
    assert 0 <= forward.low <= forward.high <= 1


def test_a_run_against_itself_is_undecided() -> None:
    scores = dict(zip(IDS, np.random.default_rng(0).random((40, 4)), strict=True))
    with pytest.warns(CoverageWarning, match="same value"):
        result = compare_paired(scores, scores)
    assert result.verdict == "undecided"
    assert (result.difference.value, result.win_rate.value, result.p_value) == (0, 0.5, 1.0)
    assert result.win_rate.low < 0.5 < result.win_rate.high


def test_prompts_are_aligned_by_id_not_by_order() -> None:
    rng = np.random.default_rng(0)
    a = dict(zip(IDS, rng.normal(0, 10, (40, 2)), strict=True))
    b = {prompt: rows + 1 + rng.normal(0, 0.1, 2) for prompt, rows in reversed(list(a.items()))}
    result = compare_paired(a, b)
    assert result.difference.value == pytest.approx(1, abs=0.05)
    assert result.n == result.difference.n == result.win_rate.n == 40


def test_a_clear_gain_is_found_better_and_the_reverse_worse() -> None:
    rng = np.random.default_rng(0)
    a = dict(zip(IDS, rng.random((40, 3)), strict=True))
    b = {prompt: rows + 0.3 for prompt, rows in a.items()}
    b["p0"] = b["p0"] + 0.01
    assert compare_paired(a, b).verdict == "B is better"
    back = compare_paired(b, a)
    assert back.verdict == "A is better"
    assert back.difference.high < 0
    assert back.p_value < 0.001


@quiet
def test_sides_may_have_different_numbers_of_samples() -> None:
    result = compare_paired({"x": [1.0, 3.0], "y": [0.0]}, {"x": [4.0], "y": [1.0, 3.0]})
    # x: 4 - 2; y: 2 - 0
    assert result.difference.value == 2
    assert result.win_rate.value == 1


def test_an_unpaired_prompt_is_named() -> None:
    with pytest.raises(DataError, match=r"prompt 'lonely' has scores in b only \(1 prompts"):
        compare_paired({"x": [1.0]}, {"x": [1.0], "lonely": [2.0]})
    with pytest.raises(DataError, match="'x' has scores in a only"):
        win_rate({"x": [1.0]}, {})
    with pytest.raises(DataError, match="no prompts"):
        compare_paired({}, {})


def test_a_duplicate_prompt_id_is_named_with_its_row() -> None:
    with pytest.raises(DataError, match="row 2 repeats prompt id 'x'"):
        scores_by_prompt(["x", "y", "x"], [1, 2, 3])
    with pytest.raises(DataError, match="row 1 repeats prompt id 'x' with sample index 0"):
        scores_by_prompt(["x", "x"], [1, 2], sample_indices=[0, 0])
    with pytest.raises(DataError, match="row 1 repeats id 'x' of row 0"):
        win_rate([1, 2], [1, 2], prompt_ids=["x", "x"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_named_with_its_prompt(bad: float) -> None:
    with pytest.raises(DataError, match=r"run B: row 1 \(prompt 'y'\) is (nan|inf)"):
        scores_by_prompt(["x", "y"], [1.0, bad], name="run B")
    with pytest.raises(DataError, match="b: prompt 'y' needs at least one score, all finite"):
        compare_paired({"x": [1.0], "y": [1.0]}, {"x": [1.0], "y": [bad]})
    with pytest.raises(DataError, match="needs at least one score"):
        compare_paired({"x": [1.0], "y": []}, {"x": [1.0], "y": [1.0]})


def test_arrays_without_ids_or_of_other_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="Pass prompt_ids"):
        win_rate([1.0], [2.0])
    with pytest.raises(DataError, match="a row for each of 2 prompt ids"):
        win_rate([1.0], [2.0], prompt_ids=["x", "y"])
    with pytest.raises(DataError, match="a row needs one of each"):
        scores_by_prompt(["x", "y"], [1.0])


@pytest.mark.parametrize("prompts", [7, 60])
def test_p_value_agrees_with_scipys_permutation_test(prompts: int) -> None:
    differences = np.random.default_rng(1).normal(0.25, 1, prompts)
    peer = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=10_000, vectorized=True,
        random_state=np.random.default_rng(0),
    )  # fmt: skip
    assert sign_flip_p_value(differences) == pytest.approx(peer.pvalue, abs=0.02 if prompts > 12 else 1e-9)


def test_p_value_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    small = [sign_flip_p_value(rng.standard_normal(10)) < 0.05 for _ in range(600)]
    # 600 trials at 5 %: mean 30, standard deviation 5.3
    assert 12 <= sum(small) <= 48


def test_a_p_value_from_drawn_flips_counts_the_data_themselves_and_is_never_0() -> None:
    # of 2^40 flips two give so large a mean, so none of the 10,000 that are drawn does
    assert sign_flip_p_value(np.ones(40)) == pytest.approx(1 / 10_001)


def of_thirty_prompts(values: dict[int, float], *, others: float) -> dict[str, list[float]]:
    """Eight samples for each prompt: the first has the value given for its prompt, all else has `others`."""
    return {f"p{i}": [values.get(i, others)] + [others] * 7 for i in range(30)}


@pytest.mark.parametrize(
    ("base", "ours"),
    [
        # all ties but an eighth of six prompts: 2.5 % of pairs decide, and half of them are won
        (of_thirty_prompts({}, others=1), of_thirty_prompts({0: 2, 1: 2, 2: 2, 3: 0, 4: 0, 5: 0}, others=1)),
        # all lost but an eighth of six prompts, and all won but as many
        (of_thirty_prompts({}, others=1), of_thirty_prompts(dict.fromkeys(range(6), 2.0), others=0)),
        (of_thirty_prompts({}, others=1), of_thirty_prompts(dict.fromkeys(range(6), 0.0), others=2)),
    ],
    ids=["few decide", "few are won", "few are lost"],
)
def test_a_win_rate_that_rests_on_rare_events_warns_by_the_coverage_of_rare_ones(base, ours) -> None:
    with pytest.warns(CoverageWarning, match=r"bernoulli-0\.05, win-rate, 30 prompts, rows per prompt: 8"):
        win_rate(base, ours)


def test_a_win_rate_that_rests_on_frequent_events_does_not_warn() -> None:
    base = {f"p{i}": [1.0] * 8 for i in range(30)}
    win_rate(base, {f"p{i}": [2.0] * (2 + i % 5) + [0.0] * (6 - i % 5) for i in range(30)})
