"""Details of the report on reward models that no other test noticed: each was changed once."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from handbook_utils.errors import DataError
from handbook_utils.evaluation.prompt_rows import finite_rows
from handbook_utils.evaluation.reward.bias import length_bias, matched_difference
from handbook_utils.evaluation.reward.calibration import calibration
from handbook_utils.evaluation.reward.comparisons import Comparisons, Scores, check_scores, ruler_scores
from handbook_utils.evaluation.reward.report import reward_report
from handbook_utils.evaluation.statistics import Setting


def comparisons(models: dict[str, Scores], *, rows: int = 200, seed: int = 0) -> Comparisons:
    """Rows of one prompt each, whose answers have random lengths."""
    words = np.random.default_rng(seed).integers(1, 60, (2, rows)).astype(float)
    starts, is_right = np.arange(0, 2 * rows, 2), np.tile([True, False], rows)
    rulers = ruler_scores(words.T.ravel(), starts, is_right)
    return Comparisons(np.arange(rows), [""] * rows, models, words[0], words[1], rulers)


def scored(rows: int = 200, *, right: float = 0.7, seed: int = 1) -> Scores:
    """A model that is right so often, with margins that mean it."""
    rng = np.random.default_rng(seed)
    sign = np.where(rng.random(rows) < right, 1.0, -1.0)
    return Scores(sign * math.log(right / (1 - right)) + rng.normal(0, 0.01, rows), np.zeros(rows))


def test_scores_are_taken_as_float64() -> None:
    assert finite_rows([1, 2], "scores").dtype == np.float64


def test_a_setting_is_at_95_percent_and_from_seed_0() -> None:
    assert (Setting(unit="rate").level, Setting(unit="rate").seed) == (0.95, 0)


def test_two_rows_on_each_side_make_a_stratum_and_one_makes_none() -> None:
    values, is_in = np.array([1.0, 0.5, 0.0, 0.5]), np.array([True, True, False, False])
    found = matched_difference(values, is_in, np.zeros(4, int), np.array([0, 1, 0, 1]))
    assert found is not None
    assert found.value == pytest.approx(0.5)
    # influences 4 * (0.25, -0.25, 0.25, -0.25) / 2 / 4, added up by prompt: 0.25 and -0.25, over two prompts
    error = math.sqrt((0.25**2 + 0.25**2) * 2 / 1)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 1) * error)
    assert matched_difference(values[:3], is_in[:3], np.zeros(3, int), np.arange(3)) is None


def test_the_effect_of_length_is_taken_within_fifths_of_the_ratio_of_lengths() -> None:
    rows, scores = comparisons({}), scored()
    unequal = rows.words_right != rows.words_wrong
    ratio = np.abs(np.log((rows.words_right[unequal] + 1) / (rows.words_wrong[unequal] + 1)))
    fifth = np.array([np.sum(ratio[i] > np.quantile(ratio, [0.2, 0.4, 0.6, 0.8])) for i in range(len(ratio))])
    longer = (rows.words_right > rows.words_wrong)[unequal]
    by_hand = [
        (len(here), correct[is_longer].mean() - correct[~is_longer].mean())
        for here in (np.flatnonzero(fifth == n) for n in range(5))
        for correct, is_longer in [(scores.correct[unequal][here], longer[here])]
    ]
    expected = sum(size * effect for size, effect in by_hand) / sum(size for size, _ in by_hand)
    assert length_bias(rows, scores)["length_effect"].value == pytest.approx(expected)


def test_the_interval_of_the_calibration_error_reaches_above_it() -> None:
    overconfident = Scores(3 * scored().right, np.zeros(200))
    found = calibration(overconfident, np.arange(200)).error
    assert found.unit == "rate"
    assert found.low < found.value < found.high


def test_the_row_of_a_score_that_is_no_number_is_counted_from_one_on_either_side() -> None:
    for side in ("right", "wrong"):
        sides = {"right": np.arange(5.0), "wrong": np.zeros(5)}
        sides[side][2] = np.nan
        with pytest.raises(DataError, match=r"'judge' has the score nan in row 3\."):
            check_scores("judge", Scores(**sides))


def test_a_temperature_is_a_number_in_json_where_it_is_finite_and_else_null() -> None:
    right, wrong = scored(), Scores(-scored().right, np.zeros(200))
    report = reward_report(comparisons({"right": right, "wrong": wrong}))
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))["models"]
    assert found["right"]["calibration"]["temperature"] == pytest.approx(1.0, abs=0.5)
    assert found["wrong"]["calibration"]["temperature"] is None


def test_models_that_are_always_right_are_so_together() -> None:
    always = Scores(np.linspace(1, 2, 200), np.zeros(200))
    report = reward_report(comparisons({"a": always, "b": Scores(2 * always.right, always.wrong)}))
    assert report.ensemble["accuracy_of_mean"].value == 1.0
    assert report.ensemble["unanimous"].value == 1.0


@pytest.mark.parametrize("field", ["rows", "models"])
def test_reports_and_their_parts_cannot_be_changed(field: str) -> None:
    report = reward_report(comparisons({"a": scored()}))
    calibrated = report.models["a"].calibration
    assert calibrated is not None
    for part, name in ((report, field), (scored(), "right"), (calibrated.bins[0], "rows")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, None)
