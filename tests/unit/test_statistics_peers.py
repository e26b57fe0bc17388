"""Statistics against other implementations: scipy, and figures that statsmodels 0.15.0 gave on the same data.

statsmodels is no dependency. What it gave is written beside each figure, to the digits that it printed.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit

from handbook_utils.evaluation.judged.length_control import length_controlled_win_rate
from handbook_utils.evaluation.power import achieved_power, plan_from_pilot, prompts_for
from handbook_utils.evaluation.reward.calibration import best_temperature, calibration
from handbook_utils.evaluation.reward.comparisons import Scores
from handbook_utils.evaluation.reward.report import holm
from handbook_utils.evaluation.win_rate import win_rate


def judged_rows() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two rows for each of 400 prompts: preferences with ties, both lengths, prompts."""
    rng, n = np.random.default_rng(0), 800
    lengths_a = rng.normal(100, 30, n)
    lengths_b = lengths_a + rng.normal(10, 25, n)
    longer = lengths_b - lengths_a
    likes = (rng.random(n) < expit(0.4 + 0.9 * np.tanh(longer / longer.std()))).astype(float)
    likes[::17] = 0.5
    return likes, lengths_a, lengths_b, np.repeat(np.arange(n // 2), 2)


def plain_logistic(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients without a penalty, and standard errors clustered by group, the sandwich written out."""

    def below(theta: np.ndarray) -> float:
        return float(np.sum(np.logaddexp(0, x @ theta) - y * (x @ theta)))

    theta = optimize.minimize(below, np.zeros(x.shape[1]), method="BFGS", options={"gtol": 1e-8}).x
    mean = expit(x @ theta)
    bread = np.linalg.inv((x * (mean * (1 - mean))[:, None]).T @ x)
    scores = np.stack([(x * (y - mean)[:, None])[groups == group].sum(0) for group in np.unique(groups)])
    return theta, np.sqrt(np.diag(bread @ scores.T @ scores @ bread))


def test_the_length_controlled_rate_is_a_plain_logistic_fits_but_for_its_penalty() -> None:
    """Firth's penalty moves it by a few thousandths at 400 prompts; a plain fit has no finite one at few."""
    y, lengths_a, lengths_b, prompts = judged_rows()
    longer = lengths_b - lengths_a
    x = np.column_stack([np.ones(len(y)), np.tanh(longer / longer.std())])
    theta, errors = plain_logistic(x, y, prompts)
    # statsmodels' GLM with cov_type="cluster": 0.57550, 0.81596, errors 0.07522, 0.12065, with a factor
    # 400 / 399 * 799 / 798 on the variance
    factor = np.sqrt(400 / 399 * 799 / 798)
    assert theta == pytest.approx([0.57550, 0.81596], abs=2e-5)
    assert errors * factor == pytest.approx([0.07522, 0.12065], abs=2e-5)
    found = length_controlled_win_rate(y, lengths_a, lengths_b, clusters=prompts)
    assert found.win_rate.value == pytest.approx(expit(theta[0]), abs=0.002)
    low, high = expit(theta[0] - 1.959964 * errors[0]), expit(theta[0] + 1.959964 * errors[0])
    assert (found.win_rate.low, found.win_rate.high) == pytest.approx((low, high), abs=0.002)
    assert found.length_effect.value == pytest.approx(theta[1], abs=0.01)


@pytest.mark.parametrize(
    ("effect", "sd", "prompts", "theirs"),
    [
        # statsmodels' TTestPower().power(effect / sd, prompts, 0.05)
        (0.02, 0.3, 1768, 0.8000188068564004),
        (0.5, 1.0, 20, 0.5645044184390203),
        (0.1, 0.3, 75, 0.8130350147024027),
        (0.3, 1.0, 9, 0.1251740534980905),
    ],
)
def test_power_is_that_of_statsmodels(effect: float, sd: float, prompts: int, theirs: float) -> None:
    assert achieved_power(effect, sd, prompts) == pytest.approx(theirs, abs=1e-12)


def test_holms_p_values_are_those_of_statsmodels() -> None:
    # multipletests([0.5, 0.01, 0.03, 0.02, 0.04], method="holm")
    assert holm([0.5, 0.01, 0.03, 0.02, 0.04]) == pytest.approx([0.5, 0.05, 0.09, 0.08, 0.09])


def test_a_pilots_range_is_from_the_chi_square_interval_of_its_spread() -> None:
    values = np.random.default_rng(0).normal(0.02, 0.3, 60)
    plan = plan_from_pilot(values, effect=0.05)
    sums = 59 * values.var(ddof=1)
    low, high = (np.sqrt(sums / stats.chi2.ppf(q, 59)) for q in (0.975, 0.025))
    assert (plan.prompts_low, plan.prompts_high) == (prompts_for(0.05, low), prompts_for(0.05, high))


def test_a_win_rate_without_ties_has_wilsons_interval_widened_for_few_prompts() -> None:
    """scipy's takes the normal quantile, and is a little narrower at 120 prompts."""
    rng = np.random.default_rng(0)
    a = {f"p{n}": [float(value)] for n, value in enumerate(rng.normal(0, 1, 120))}
    b = {name: [value[0] + (0.5 if rng.random() < 0.6 else -0.5)] for name, value in a.items()}
    wins = sum(b[name] > a[name] for name in a)
    found = win_rate(a, b)
    peer = stats.binomtest(wins, 120).proportion_ci(method="wilson")
    assert found.value == wins / 120
    assert found.low < peer.low < peer.high < found.high
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.002)


def test_the_best_temperature_is_the_inverse_slope_of_a_logistic_fit() -> None:
    """Of being right on the margin, without a constant."""
    rng = np.random.default_rng(0)
    margin = np.abs(rng.normal(0, 2, 500))
    signed = np.where(rng.random(500) < expit(margin / 2.5), margin, -margin)

    def below(slope: np.ndarray) -> float:
        return float(np.logaddexp(0, -signed * slope[0]).sum())

    slope = optimize.minimize(below, [1.0], method="BFGS", options={"gtol": 1e-9}).x[0]
    assert best_temperature(signed) == pytest.approx(1 / slope, rel=1e-4)


def test_the_calibration_errors_interval_is_scipys_basic_bootstrap() -> None:
    rng = np.random.default_rng(0)
    margin = np.abs(rng.normal(0, 2, 400))
    signed = np.where(rng.random(400) < expit(margin / 3), margin, -margin)
    scores = Scores(signed, np.zeros(400))
    found = calibration(scores, np.arange(400)).error
    confidence = expit(np.abs(signed))
    place = np.empty(400, dtype=int)
    place[np.argsort(confidence, kind="stable")] = np.arange(400) * 10 // 400
    gaps = (signed > 0) - confidence

    def error(rows: np.ndarray) -> float:
        return float(np.abs(np.bincount(place[rows], gaps[rows], 10)).sum() / len(rows))

    peer = stats.bootstrap(
        (np.arange(400),),
        error,
        method="basic",
        n_resamples=2000,
        vectorized=False,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.value == pytest.approx(error(np.arange(400)))
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.015)
