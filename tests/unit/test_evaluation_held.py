"""What callers of the statistics rely on: units, levels, seeds, and when flips are drawn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from handbook_utils.evaluation.best_of_n import best_of_n_curve, best_of_n_difference, best_of_n_gains
from handbook_utils.evaluation.kl import estimate_kl
from handbook_utils.evaluation.statistics import (
    mean_estimate,
    mean_over_seeds,
    paired_difference,
    proportion_estimate,
)
from handbook_utils.evaluation.win_rate import compare_paired, sign_flip_p_value, win_rate
from handbook_utils.records import Estimate

RNG = np.random.default_rng(3)
A, B = RNG.normal(size=(2, 40)), RNG.normal(0.3, 1, size=(2, 40))
PROXY, VALUES = RNG.normal(size=(30, 4)), RNG.normal(size=(30, 4))
ONE, OTHER = ({f"p{n}": rows[:, n] for n in range(40)} for rows in (A, B))

# name: (what gives an estimate, its unit, whether a seed makes its interval)
DEFAULTS: dict[str, tuple[Callable[..., Estimate], str, bool]] = {
    "mean": (lambda **given: mean_estimate(A[0], **given), "score", True),
    "difference": (lambda **given: paired_difference(A[0], B[0], **given), "score", True),
    "kl": (lambda **given: estimate_kl(-np.abs(A[0]), -np.abs(B[0]), **given), "nats", True),
    "proportion": (lambda **given: proportion_estimate(40, 90, **given), "rate", False),
    "over seeds": (lambda **given: mean_over_seeds(A[0][:5], **given), "score", False),
    "best of n": (lambda **given: best_of_n_curve(PROXY, VALUES, ns=[2], **given)[2], "score", True),
    "gains": (lambda **given: best_of_n_gains(PROXY, VALUES, ns=[2], **given)[2], "score", True),
    "best of n, less": (
        lambda **given: best_of_n_difference(PROXY, VALUES, n_high=4, n_low=2, **given),
        "score",
        True,
    ),
    "win rate": (lambda **given: win_rate(ONE, OTHER, **given), "rate", False),
    "comparison": (lambda **given: compare_paired(ONE, OTHER, **given).difference, "score", True),
}


@pytest.fixture(autouse=True)
def any_coverage() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_estimate_of_which_nothing_is_said_is_at_95_percent_in_its_unit_and_from_seed_0(name: str) -> None:
    estimate, unit, is_drawn = DEFAULTS[name]
    plain = estimate()
    assert (plain.unit, plain.level) == (unit, 0.95)
    if name != "best of n, less":  # which is always at 95 %
        assert estimate(level=0.95) == plain
        narrow = estimate(level=0.5)
        assert narrow.high - narrow.low < plain.high - plain.low
    if is_drawn:
        assert estimate(seed=0) == plain
        assert estimate(seed=1) != plain


def test_a_comparison_from_seed_0_has_its_p_value_too() -> None:
    assert compare_paired(ONE, OTHER) == compare_paired(ONE, OTHER, seed=0)
    assert compare_paired(ONE, OTHER).p_value != compare_paired(ONE, OTHER, seed=1).p_value


def test_up_to_12_prompts_all_flips_are_counted_and_beyond_10_000_are_drawn() -> None:
    # as many differences of one size: only two of all flips are as far from zero
    assert sign_flip_p_value(np.ones(12)) == 2 / 2**12
    drawn = sign_flip_p_value(np.ones(13)) * 10_001
    assert drawn == pytest.approx(round(drawn))
    assert 1 <= round(drawn) <= 10  # of 10,000, 2.4 on average, and the data themselves


def test_flips_are_as_many_and_the_same_however_many_prompts_there_are() -> None:
    # where nothing differs every flip is as far: of 300 prompts they are drawn in two parts
    assert sign_flip_p_value(np.zeros(300)) == 1.0
    values = RNG.normal(0.2, 1, size=21)
    draws = 2.0 * np.random.default_rng(4).integers(0, 2, (10_000, 21), dtype=np.int8) - 1.0
    extreme = np.count_nonzero(np.abs(draws @ np.sort(values)) >= abs(values.sum()) * (1 - 1e-9))
    assert sign_flip_p_value(values, seed=4) == (extreme + 1) / 10_001
    assert sign_flip_p_value(values[::-1], seed=4) == sign_flip_p_value(values, seed=4)


def test_scores_of_several_samples_may_come_as_a_table_beside_their_prompts() -> None:
    ids = list(ONE)
    assert win_rate(A.T, B.T, prompt_ids=ids) == win_rate(ONE, OTHER)
    assert win_rate(A[0], B[0], prompt_ids=ids) == win_rate(
        {name: rows[:1] for name, rows in ONE.items()}, {name: rows[:1] for name, rows in OTHER.items()}
    )
