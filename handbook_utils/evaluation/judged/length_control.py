"""A win rate at equal length: what a judge would prefer if both answers were equally long.

A logistic regression of the preference on the standardised difference in length, as in AlpacaEval 2, is
read off where that difference is zero. Each prompt counts once, and the interval is over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit, logit

from handbook_utils.errors import DataError
from handbook_utils.evaluation.intervals import Array, rule_of_three
from handbook_utils.evaluation.prompt_rows import finite_rows
from handbook_utils.records import Estimate

FEWEST_PROMPTS = 10
_STEPS, _TOLERANCE = 100, 1e-8


@dataclass(frozen=True)
class LengthControlled:
    """What a win rate is once length is taken out of it.

    Attributes:
        win_rate: of B at equal length. Its interval is [0, 1] where length alone decides every row.
        length_effect: how much the log-odds of preferring B rise per standard deviation of difference in
            length, for small differences; 0 for a judge that ignores length.
        longer: share of prompts for which B's answers are longer, equal lengths half.
        caution: what to know before relying on it; empty where there is nothing.
    """

    win_rate: Estimate
    length_effect: Estimate
    longer: float
    caution: str = ""


def length_controlled_win_rate(
    preferences: ArrayLike,
    lengths_a: ArrayLike,
    lengths_b: ArrayLike,
    *,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
    b_first: ArrayLike | None = None,
    level: float = 0.95,
) -> LengthControlled:
    """How often B would be preferred to A if both were equally long.

    Fits logit P(B preferred) = θ + φ tanh(d / sd(d)) (+ ψ o), with d the length of B minus that of A and o
    = ±1/2 as B or A was shown first, and returns σ(θ). Jeffreys' prior (Firth's penalty) keeps the fit
    finite where length decides nearly every row.

    Args:
        preferences: (rows,) 1 where B was preferred, 0 where A was, 0.5 for a tie, or a probability.
        lengths_a: (rows,) length of A's answer, in any unit.
        lengths_b: (rows,) length of B's answer, in the same unit.
        clusters: (rows,) prompt id of each row; None where each row is a prompt of its own.
        b_first: (rows,) whether the judge saw B's answer first; None where not known.
        level: confidence level.
    Returns:
        The win rate with an interval from leverage-corrected standard errors over prompts (Student's t);
        where all preferences are alike it is theirs, with the interval of `rule_of_three`.
    Raises:
        DataError: other lengths, values outside [0, 1], fewer than 10 prompts, no difference in length
            anywhere.
    Source: Dubois et al. 2024, "Length-Controlled AlpacaEval", Eq. 2 without the term for the prompt's
        difficulty, which is fitted on many models; Papke & Wooldridge 1996 (fractional responses); Firth
        1993, Biometrika 80(1); Mancl & DeRouen 2001, Biometrics 57(1) (standard errors). Coverage:
        `judged/coverage.json`.

    >>> rng = np.random.default_rng(0)
    >>> longer = rng.normal(50, 100, 400)
    >>> likes = rng.random(400) < expit(0.4 + 1.5 * np.tanh(longer / 100))
    >>> found = length_controlled_win_rate(likes, np.full(400, 300.0), 300 + longer)
    >>> round(float(likes.mean()), 2), str(found.win_rate)
    (0.68, '0.603 [0.546, 0.658]')
    """
    y, codes = _checked(preferences, clusters)
    x, longer = _design(y, lengths_a, lengths_b, b_first)
    weights = 1 / np.bincount(codes)[codes]
    theta = fit_fractional(x, y, weights)
    prompts = int(codes.max()) + 1
    covariance = _cluster_covariance(x, y, weights, theta, codes)
    reach = float(stats.t.ppf((1 + level) / 2, prompts - x.shape[1])) * np.sqrt(np.diag(covariance))
    caution = _decided_by_length(x[:, 1], y)
    rate, method = float(expit(theta[0])), "logit-cluster-t"
    low, high = (expit(theta[0] + side * reach[0]) for side in (-1, 1))
    if caution:
        low, high = 0.0, 1.0
    elif not np.ptp(y):
        # nothing for length to explain; the fit's own residuals would say that all is known
        rate, method = float(y[0]), "rule-of-three"
        low, high = (end[0] for end in rule_of_three(y[:1], prompts, (0.0, 1.0), level=level))
    return LengthControlled(
        Estimate(rate, float(low), float(high), level, prompts, "rate", method),
        Estimate(
            float(theta[1]),
            float(theta[1] - reach[1]),
            float(theta[1] + reach[1]),
            level,
            prompts,
            "log-odds per sd",
            method,
        ),
        float(np.average(longer, weights=weights)),
        caution,
    )


def fit_fractional(x: Array, y: Array, weights: Array) -> Array:
    """Coefficients of a logistic regression for responses in [0, 1], with Firth's penalty, (columns,)."""
    rate = float(np.clip(np.average(y, weights=weights), 0.02, 0.98))
    theta = np.zeros(x.shape[1])
    theta[0] = logit(rate)
    height = _penalised(x, y, weights, theta)
    for _ in range(_STEPS):
        mean = expit(x @ theta)
        inverse = _inverse(x, weights * mean * (1 - mean))
        leverage = weights * mean * (1 - mean) * np.einsum("ij,jk,ik->i", x, inverse, x)
        step = inverse @ (x.T @ (weights * (y - mean) + leverage * (0.5 - mean)))
        step *= min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-300))
        # halve a step that overshoots
        while _penalised(x, y, weights, theta + step) < height - 1e-12 and np.abs(step).max() > _TOLERANCE:
            step = step / 2
        theta = theta + step
        height = _penalised(x, y, weights, theta)
        if np.abs(step).max() <= _TOLERANCE:
            break
    return theta


def _checked(
    preferences: ArrayLike, clusters: Sequence[Any] | NDArray[Any] | None
) -> tuple[Array, NDArray[np.intp]]:
    y = finite_rows(preferences, "preferences")
    bad = np.flatnonzero((y < 0) | (y > 1))
    if len(bad):
        raise DataError(
            f"preferences: row {bad[0]} is {y[bad[0]]:g}. Write 1 where B was preferred, 0 where A was, "
            "0.5 for a tie."
        )
    ids = np.arange(len(y)) if clusters is None else np.asarray(clusters)
    if ids.shape != y.shape:
        raise DataError(f"clusters: expected one prompt id per row ({len(y)}), got shape {ids.shape}")
    codes = np.unique(ids.astype(str) if ids.dtype == object else ids, return_inverse=True)[1]
    prompts = int(codes.max()) + 1
    if prompts < FEWEST_PROMPTS:
        raise DataError(
            f"a length-controlled win rate needs at least {FEWEST_PROMPTS} prompts, got {prompts}. "
            "Judge more prompts, or use the plain win rate."
        )
    return y, codes


def _design(
    y: Array, lengths_a: ArrayLike, lengths_b: ArrayLike, b_first: ArrayLike | None
) -> tuple[Array, Array]:
    """The regression's columns, and for each row whether B is longer (equal lengths half)."""
    a, b = finite_rows(lengths_a, "lengths_a"), finite_rows(lengths_b, "lengths_b")
    if not len(a) == len(b) == len(y):
        raise DataError(f"a row needs one of each, got {len(y)} preferences, {len(a)} and {len(b)} lengths")
    difference = b - a
    spread = float(difference.std(ddof=1))
    if spread <= 1e-9 * max(float(np.abs(difference).max()), 1e-300):
        raise DataError(
            "A and B differ in length by the same amount in every row, so length cannot be told from "
            "quality. "
            "Use the plain win rate."
        )
    columns = [np.ones_like(y), np.tanh(difference / spread)]
    if b_first is not None:
        first = finite_rows(b_first, "b_first")
        if len(first) != len(y):
            raise DataError(f"b_first: expected one value per row ({len(y)}), got {len(first)}")
        if np.ptp(first):
            columns.append(np.where(first > 0, 0.5, -0.5))
    x = np.column_stack(columns)
    if np.linalg.matrix_rank(x, tol=1e-6) < x.shape[1]:
        raise DataError(
            "length and order of presentation cannot be told apart in these rows: the longer answer was "
            "always "
            "shown at the same place. Judge each pair in both orders."
        )
    return x, (np.sign(difference) + 1) / 2


def _decided_by_length(x: Array, y: Array) -> str:
    """Why σ(θ) cannot be known where a difference in length separates wins of B from losses around zero."""
    wins, losses = x[y > 0.5], x[y < 0.5]
    if not len(wins) or not len(losses):
        return ""
    for lower, upper in ((losses, wins), (wins, losses)):
        if lower.max() < upper.min() and lower.max() < 0 < upper.min():
            return (
                "length alone decides every preference, so what the judge would say at equal length is "
                "not known. "
                "Judge pairs of nearly equal length."
            )
    return ""


def _cluster_covariance(x: Array, y: Array, weights: Array, theta: Array, codes: NDArray[np.intp]) -> Array:
    """Covariance of the coefficients from prompts' scores, residuals corrected for their leverage."""
    mean = expit(x @ theta)
    variance = weights * mean * (1 - mean)
    bread = _inverse(x, variance)
    leverage = np.einsum("ij,jk,ik->i", x, bread, x) * variance
    # a prompt's rows pull the fit together: their leverage is added up
    pulled = np.minimum(np.bincount(codes, leverage), 0.9)
    scores = np.zeros((int(codes.max()) + 1, x.shape[1]))
    np.add.at(scores, codes, x * (weights * (y - mean))[:, None])
    scores = scores / (1 - pulled)[:, None]
    return np.asarray(bread @ (scores.T @ scores) @ bread)


def _inverse(x: Array, weights: Array) -> Array:
    return np.asarray(np.linalg.pinv((x * weights[:, None]).T @ x, hermitian=True))


def _penalised(x: Array, y: Array, weights: Array, theta: Array) -> float:
    eta = x @ theta
    mean = expit(eta)
    fit = float(np.sum(weights * (y * eta - np.logaddexp(0, eta))))
    sign, log_determinant = np.linalg.slogdet((x * (weights * mean * (1 - mean))[:, None]).T @ x)
    return fit + float(log_determinant) / 2 if sign > 0 else -np.inf
