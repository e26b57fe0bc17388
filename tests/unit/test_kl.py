"""KL to the reference: against a policy whose divergence is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from handbook_utils.errors import DataError
from handbook_utils.evaluation.kl import estimate_kl
from handbook_utils.evaluation.statistics import CoverageWarning


def test_estimate_holds_the_known_divergence_of_a_categorical_policy() -> None:
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
    exact = float(np.sum(policy * np.log(policy / reference)))
    drawn = np.random.default_rng(0).choice(3, size=(500, 4), p=policy)
    prompts = np.repeat(np.arange(500), 4)
    estimate = estimate_kl(np.log(policy)[drawn].ravel(), np.log(reference)[drawn].ravel(), clusters=prompts)
    assert estimate.low < exact < estimate.high
    assert estimate.high - estimate.low < 0.1
    assert (estimate.n, estimate.unit) == (500, "nats")


def test_swapping_policy_and_reference_turns_the_sign() -> None:
    rng = np.random.default_rng(0)
    policy = -10 * rng.random(40)
    reference = policy - rng.random(40)
    assert estimate_kl(policy, reference).low > 0
    assert estimate_kl(reference, policy).high < 0


def test_a_policy_equal_to_its_reference_is_at_zero_with_a_warning() -> None:
    logprobs = -10 * np.random.default_rng(0).random(100)
    with pytest.warns(CoverageWarning, match="same value"):
        estimate = estimate_kl(logprobs, logprobs)
    assert estimate.value == 0
    assert -1 < estimate.low < 0 < estimate.high < 1


def test_impossible_logprobs_are_named() -> None:
    with pytest.raises(DataError, match=r"policy_logprobs: row 1 is 0\.5"):
        estimate_kl([-1.0, 0.5], [-1.0, -1.0])
    with pytest.raises(DataError, match="reference_logprobs: row 0 is -inf"):
        estimate_kl([-1.0, -2.0], [-math.inf, -1.0])
    with pytest.raises(DataError, match="got 2 of the policy and 1"):
        estimate_kl([-1.0, -2.0], [-1.0])
