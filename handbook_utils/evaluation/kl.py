"""How far a policy has moved from its reference, in nats per response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from handbook_utils.errors import DataError
from handbook_utils.evaluation.intervals import Array
from handbook_utils.evaluation.prompt_rows import finite_rows, prompt_means
from handbook_utils.evaluation.statistics import Setting, estimate_columns
from handbook_utils.records import Estimate

# a certain token may come out a rounding above probability 1
_ROUNDING = 1e-3


def estimate_kl(
    policy_logprobs: ArrayLike,
    reference_logprobs: ArrayLike,
    *,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """KL divergence of a policy from its reference, from responses that the policy sampled.

    KL(policy || reference) = E[log policy(y|x) - log reference(y|x)] over prompts x and y ~ policy: the mean
    log-ratio of whole responses. It is unbiased, so it may come out below zero where the two are close.
    Responses must be sampled from the policy at temperature 1 without top-p, and their log-probabilities
    include the end of turn.

    Args:
        policy_logprobs: (rows,) natural log, summed over the tokens of each response.
        reference_logprobs: (rows,) the same responses under the reference.
        clusters: (rows,) prompt id of each row; None where each row is a prompt of its own.
        level: confidence level.
        seed: seed of the resampling.
    Returns:
        Nats a response, every prompt counting once.
    Raises:
        DataError: other lengths, a log-probability that is not finite or is above zero (its row named).
    Warns:
        CoverageWarning: as `statistics.mean_estimate`.
    Source: Schulman 2020, "Approximating KL divergence" (the estimator k1).

    >>> estimate = estimate_kl([-5.0, -7.0, -6.0, -9.0, -4.0, -8.0], [-6.0, -7.5, -6.0, -10.0, -6.5, -8.0])
    >>> round(estimate.value, 4), estimate.unit
    (0.8333, 'nats')
    """
    policy = _logprobs(policy_logprobs, "policy_logprobs")
    reference = _logprobs(reference_logprobs, "reference_logprobs")
    if len(policy) != len(reference):
        raise DataError(f"one response per row in both: got {len(policy)} of the policy and {len(reference)}")
    ratios = prompt_means(policy - reference, clusters)
    reach = float(np.ptp(np.concatenate([policy, reference])))
    setting = Setting(
        unit="nats",
        rows=len(policy) / len(ratios),
        bounds=(-reach, reach) if reach else None,
        level=level,
        seed=seed,
    )
    return estimate_columns(ratios[:, None], setting)[0]


def _logprobs(values: ArrayLike, name: str) -> Array:
    rows = finite_rows(values, name)
    if rows.max() > _ROUNDING:
        worst = int(rows.argmax())
        raise DataError(f"{name}: row {worst} is {rows[worst]:g}, but no log-probability is above 0.")
    return rows
