"""Best of n: the estimator against brute force, and what it refuses."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handbook_utils.errors import DataError
from handbook_utils.evaluation.best_of_n import (
    best_of_n_curve,
    best_of_n_difference,
    best_of_n_gains,
    best_of_n_values,
    best_of_n_weights,
    kl_bound,
)
from handbook_utils.evaluation.statistics import mean_estimate, paired_difference


def brute_force(proxy: list[float], values: list[float], n: int) -> float:
    """Mean over all subsets of n of the value of the best by proxy, ties averaged."""
    picked = []
    for subset in itertools.combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        tied = [values[i] for i in subset if proxy[i] == best]
        picked.append(sum(tied) / len(tied))
    return sum(picked) / len(picked)


@given(
    st.integers(1, 7).flatmap(
        lambda size: st.tuples(
            # few distinct proxies, so that ties are the rule
            st.lists(st.integers(0, 3).map(float), min_size=size, max_size=size),
            st.lists(st.integers(-9, 9).map(float), min_size=size, max_size=size),
        )
    )
)
@settings(max_examples=150)
def test_estimator_equals_enumeration_of_all_subsets_with_ties(case: tuple[list[float], list[float]]) -> None:
    proxy, values = case
    exact = [brute_force(proxy, values, n) for n in range(1, len(proxy) + 1)]
    assert best_of_n_values([proxy], [values])[0].tolist() == pytest.approx(exact)


def test_estimator_equals_enumeration_without_ties() -> None:
    rng = np.random.default_rng(0)
    proxy, values = rng.random((3, 9)), rng.random((3, 9))
    expected = [
        [brute_force(list(p), list(v), n) for n in range(1, 10)] for p, v in zip(proxy, values, strict=True)
    ]
    np.testing.assert_allclose(best_of_n_values(proxy, values), expected)


def test_weights_are_exact_binomials_at_64() -> None:
    weights = best_of_n_weights(64)
    for n, rank in itertools.product((1, 2, 7, 32, 63, 64), (1, 5, 40, 63, 64)):
        exact = float(Fraction(math.comb(rank - 1, n - 1), math.comb(64, n)))
        assert weights[n - 1, rank - 1] == pytest.approx(exact, rel=1e-11, abs=0)


def test_weights_stay_finite_and_sum_to_one_at_1024() -> None:
    weights = best_of_n_weights(1024)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    # the top sample is in a subset of n with probability n / N
    np.testing.assert_allclose(weights[:, -1], np.arange(1, 1025) / 1024, rtol=1e-9)
    # the best of n uniform ranks of N has mean rank n (N + 1) / (n + 1)
    ns = np.arange(1, 1025)
    np.testing.assert_allclose(weights @ np.arange(1.0, 1025), ns * 1025 / (ns + 1), rtol=1e-9)


@given(st.lists(st.lists(st.integers(-5, 5).map(float), min_size=6, max_size=6), min_size=1, max_size=4))
@settings(max_examples=50)
def test_best_of_n_of_the_proxy_itself_never_falls(proxy: list[list[float]]) -> None:
    curve = best_of_n_values(proxy, proxy)
    assert (np.diff(curve, axis=1) >= -1e-9).all()
    np.testing.assert_allclose(curve[:, -1], np.max(proxy, axis=1), atol=1e-9)
    np.testing.assert_allclose(curve[:, 0], np.mean(proxy, axis=1), atol=1e-9)


def test_order_of_samples_changes_nothing_even_with_ties() -> None:
    rng = np.random.default_rng(1)
    proxy, values = rng.integers(0, 3, (5, 8)).astype(float), rng.random((5, 8))
    shuffle = rng.permutation(8)
    one, other = best_of_n_values(proxy, values), best_of_n_values(proxy[:, shuffle], values[:, shuffle])
    np.testing.assert_allclose(one, other)


def test_curve_starts_at_the_plain_mean_over_prompts_and_counts_prompts() -> None:
    rng = np.random.default_rng(0)
    proxy, values = rng.random((40, 16)), rng.random((40, 16))
    curve = best_of_n_curve(proxy, values, ns=[1, 4, 16], unit="gold reward")
    assert list(curve) == [1, 4, 16]
    plain = mean_estimate(values.ravel(), clusters=np.repeat(np.arange(40), 16), unit="gold reward")
    assert (curve[1].value, curve[1].low, curve[1].high) == pytest.approx(
        (plain.value, plain.low, plain.high)
    )
    assert curve[4].n == 40


def test_a_control_that_knows_nothing_gains_nothing_and_the_truth_gains() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((200, 16))
    assert best_of_n_gains(values, values, ns=[4])[4].low > 0.25
    blind = best_of_n_gains(rng.random((200, 16)), values, ns=[4])[4]
    assert blind.low < 0 < blind.high


def test_difference_of_two_ns_is_paired_by_prompt() -> None:
    rng = np.random.default_rng(0)
    proxy = rng.random((60, 8))
    # prompts differ far more than samples do: only pairing sees the gain
    values = proxy + rng.normal(0, 50, (60, 1))
    difference = best_of_n_difference(proxy, values, n_high=8, n_low=2)
    expected = best_of_n_values(proxy, values)
    paired = paired_difference(expected[:, 1], expected[:, 7])
    assert difference.value == pytest.approx(paired.value)
    assert 0 < difference.low < difference.high < 1


def test_rates_keep_their_interval_within_zero_and_one() -> None:
    rng = np.random.default_rng(0)
    refused = (rng.random((80, 8)) < 0.03).astype(float)
    for estimate in best_of_n_curve(rng.random((80, 8)), refused, unit="rate").values():
        assert 0 <= estimate.low <= estimate.high <= 1


def test_more_than_the_samples_at_hand_is_refused() -> None:
    with pytest.raises(DataError, match="best of 5 needs at least 5 samples per prompt, and there are 4"):
        best_of_n_curve(np.zeros((3, 4)), np.zeros((3, 4)), ns=[1, 5])
    with pytest.raises(DataError, match="best of 0"):
        best_of_n_values(np.zeros((3, 4)), np.zeros((3, 4)), ns=[0])
    with pytest.raises(DataError, match="at least one sample"):
        best_of_n_weights(0)


def test_a_score_that_is_not_finite_is_named_by_prompt_and_sample() -> None:
    scores = np.zeros((3, 4))
    scores[1, 2] = math.nan
    with pytest.raises(DataError, match="proxy: sample 2 of prompt 1 is nan"):
        best_of_n_values(scores, np.zeros((3, 4)))
    with pytest.raises(DataError, match="values: sample 2 of prompt 1"):
        best_of_n_curve(np.zeros((3, 4)), scores)
    with pytest.raises(DataError, match="one shape"):
        best_of_n_values(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(DataError, match=r"proxy: expected \(prompts, samples"):
        best_of_n_values([1.0, 2.0], [1.0, 2.0])


def test_kl_bound_bounds_the_divergence_of_a_discrete_policy() -> None:
    # two answers of probability 1 - p and p, the second the better: best of n takes it with 1 - (1-p)^n
    for p, n in itertools.product((0.01, 0.3, 0.9), (1, 2, 8, 64)):
        better = 1 - (1 - p) ** n
        divergence = better * math.log(better / p) + (1 - better) * math.log(
            max(1 - better, 1e-300) / (1 - p)
        )
        assert divergence <= kl_bound(n) + 1e-12
    assert kl_bound(1) == 0
    with pytest.raises(DataError, match="at least 1"):
        kl_bound(0)
