"""The report on reward models: planted biases are found, and what cannot be ranked is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from typer.testing import CliRunner

from handbook_utils.cli.app import app
from handbook_utils.errors import DataError, RecipeError
from handbook_utils.evaluation.reward.bias import matched_difference
from handbook_utils.evaluation.reward.calibration import best_temperature, calibration
from handbook_utils.evaluation.reward.comparisons import LENGTH, RANDOM, Scores, reduce_scores
from handbook_utils.evaluation.reward.report import holm, reward_report, sign_test
from handbook_utils.pipeline import reward_pairs
from handbook_utils.pipeline.reward_pairs import read_comparisons

quiet = pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")


def pairs(count: int = 1200, *, liking: float = 0.05) -> list[dict[str, Any]]:
    """Two pairs per prompt; "long" likes length, "fair" does not, and both know the quality alike."""
    rng = np.random.default_rng(0)
    made = []
    for row in range(count):
        quality = rng.normal(0.5, 1)
        words = rng.integers(3, 40, 2)
        noise = rng.normal(size=2)
        made.append(
            {
                "prompt": f"question {row // 2}",
                "subset": ("chat", "maths")[row % 2],
                "chosen": f"{row} " + "a " * int(words[0] - 1),
                "rejected": f"{row} " + "b " * int(words[1] - 1),
                "long.chosen": quality + noise[0] + liking * float(words[0] - words[1]),
                "long.rejected": 0.0,
                "fair.chosen": quality + noise[1],
                "fair.rejected": 0.0,
                "gold.chosen": quality,
                "gold.rejected": 0.0,
            }
        )
    return made


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_a_liking_for_length_is_found_and_its_absence_too(tmp_path: Path) -> None:
    report = reward_report(read_comparisons(write(tmp_path / "p.jsonl", pairs())))
    long, fair = (report.models[name].figures for name in ("long", "fair"))
    assert long["length_effect"].low > 0.2
    assert long["length_bias"].low > 0.05
    assert long["prefers_longer"].low > 0.5
    assert fair["length_effect"].low < 0 < fair["length_effect"].high
    assert fair["length_bias"].low < 0 < fair["length_bias"].high
    assert fair["accuracy"].n == 600  # prompts, of two rows each


def test_rulers_stand_beside_and_models_beat_them(tmp_path: Path) -> None:
    report = reward_report(read_comparisons(write(tmp_path / "p.jsonl", pairs())))
    for ruler in (LENGTH, RANDOM):
        assert report.rulers[ruler][""].low < 0.5 < report.rulers[ruler][""].high
        assert set(report.rulers[ruler]) == {"", "chat", "maths"}
    assert report.models["fair"].figures["gain_over_length_ruler"].low > 0.05
    assert list(report.models["fair"].subsets) == ["chat", "maths"]
    assert report.models["fair"].figures["agreement_with_gold"].low > 0.6
    assert report.models["fair"].distribution["rank_correlation_with_gold"] > 0.4


def test_two_models_are_compared_by_prompt_with_holm_and_seen_as_an_ensemble(tmp_path: Path) -> None:
    report = reward_report(read_comparisons(write(tmp_path / "p.jsonl", pairs())))
    assert [(each.a, each.b, each.subset) for each in report.comparisons] == [
        ("long", "fair", part) for part in ("", "chat", "maths")
    ]
    overall = report.comparisons[0]
    expected = report.models["fair"].figures["accuracy"].value
    expected -= report.models["long"].figures["accuracy"].value
    assert overall.difference.value == pytest.approx(expected)
    assert overall.p_holm == pytest.approx(holm([each.p_value for each in report.comparisons])[0])
    ensemble = report.ensemble
    assert ensemble["accuracy_where_unanimous"].low > ensemble["accuracy_where_split"].high
    assert ensemble["correlation_of_margins"][0][1] == pytest.approx(ensemble["correlation_of_margins"][1][0])
    json.dumps(report.to_json(), allow_nan=False)


def test_holm_is_the_step_down_of_bonferroni() -> None:
    # sorted 0.01 * 4, 0.02 * 3, 0.03 * 2 (raised to the one before), 0.5 * 1
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_sign_test_is_scipys_binomial_test() -> None:
    differences = np.r_[np.ones(14), -np.ones(5), np.zeros(81)]
    assert sign_test(differences) == pytest.approx(stats.binomtest(14, 19).pvalue)
    assert sign_test(np.zeros(9)) == 1.0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_calibration_finds_a_planted_temperature(temperature: float) -> None:
    rng = np.random.default_rng(0)
    margin = np.abs(rng.normal(0, 2, 6000))
    is_right = rng.random(6000) < expit(margin / temperature)
    found = calibration(Scores(np.where(is_right, margin, 0), np.where(is_right, 0, margin)), np.arange(6000))
    true_error = float(np.mean(np.abs(expit(margin) - expit(margin / temperature))))
    assert found.temperature == pytest.approx(temperature, rel=0.12)
    assert found.error.low - 0.003 <= true_error <= found.error.high + 0.003
    assert [each.rows for each in found.bins] == [600] * 10
    assert (found.error.low < 0.01) == (temperature == 1.0)


def test_margins_that_say_nothing_have_no_temperature() -> None:
    assert math.isinf(best_temperature(np.array([1.0, -1.0, -1.0])))
    assert best_temperature(np.zeros(3)) == 1.0


def test_the_error_interval_follows_prompts_not_rows() -> None:
    rng = np.random.default_rng(0)
    margin = np.where(rng.random(300) < 0.7, 1.0, -1.0) * rng.random(300)
    once = calibration(Scores(margin, np.zeros(300)), np.arange(300)).error
    often = calibration(Scores(np.repeat(margin, 8), np.zeros(2400)), np.repeat(np.arange(300), 8)).error
    assert often.n == 300
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.25)


def test_the_matched_difference_of_one_stratum_is_welchs() -> None:
    rng = np.random.default_rng(0)
    values, is_in = rng.normal(size=400), rng.random(400) < 0.5
    found = matched_difference(values, is_in, np.zeros(400, int), np.arange(400))
    peer = stats.ttest_ind(values[is_in], values[~is_in], equal_var=False).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), rel=0.02)
    assert matched_difference(values, np.ones(400, bool), np.zeros(400, int), np.arange(400)) is None


def test_the_best_of_four_is_found_where_it_beats_all_three() -> None:
    scores = np.array([3.0, 1, 2, 0, 3.0, 1, 4, 0])
    is_right = np.array([True, False, False, False] * 2)
    assert reduce_scores(scores, np.array([0, 4]), is_right).margin.tolist() == [1.0, -1.0]


@quiet
def test_rows_of_rewardbench_2_are_read_and_chance_is_one_in_four(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": str(number),
            "prompt": f"q{number}",
            "subset": "Factuality",
            "chosen": ["right"],
            "rejected": ["wrong 1", "wrong 2", "wrong 3"],
            "m.chosen": [float(rng.normal())],
            "m.rejected": rng.normal(size=3).tolist(),
        }
        for number in range(400)
    ]
    comparisons = read_comparisons(write(tmp_path / "p.jsonl", rows))
    report = reward_report(comparisons)
    for accuracy in (report.rulers[RANDOM][""], report.models["m"].figures["accuracy"]):
        assert accuracy.low < 0.25 < accuracy.high
    assert report.models["m"].calibration is None


@quiet
def test_rows_of_rewardbench_are_scored_by_a_model_that_is_named(tmp_path: Path) -> None:
    # the columns of RewardBench; the pocket world's gold reward is a scorer that loads no model
    rows = [
        {
            "prompt": f"Tell me {number} words.",
            "chosen": "Here are some words for you.",
            "chosen_model": "a",
            "rejected": f"No {number}.",
            "rejected_model": "b",
            "subset": "alpacaeval-easy",
            "id": number,
        }
        for number in range(12)
    ]
    name = write(tmp_path / "p.jsonl", rows)
    seen: list[int] = []
    found = read_comparisons(
        name, models=["brief={kind: length, at_most: 3}"], advance=lambda _, done: seen.append(done)
    )
    # six words are more than three; two are not: the rejected answer always scores higher
    assert found.models["brief"].margin.tolist() == [-1.0] * 12
    assert seen == [24]
    with pytest.raises(DataError, match=r"rows have no scores of a model. Give --model"):
        read_comparisons(name)


def test_conversations_and_their_order_are_read(tmp_path: Path) -> None:
    def said(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]

    rows = [
        {
            "chosen": said(f"yes {n}"),
            "rejected": said("no"),
            "m.chosen": 1,
            "m.rejected": n % 2,
            "first": side,
        }
        for n, side in enumerate(["chosen", "rejected"] * 6)
    ]
    found = read_comparisons(write(tmp_path / "p.jsonl", rows))
    assert found.words_right.tolist() == [2.0] * 12
    effect = reward_report(found).models["m"].figures["position_effect"]
    assert effect.value == pytest.approx(0.5)  # always right where it was first, a tie where it was last


def test_a_reward_run_is_scored_on_its_own_held_out_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = {"stage": "reward", "recipe": {"eval_data": [{"name": "x.jsonl", "split": "test"}]}}
    monkeypatch.setattr(reward_pairs, "read_manifest", lambda path: manifest)
    folder = str(tmp_path / "reward-1")
    assert reward_pairs._of_run(folder, "train", []) == ("x.jsonl", "test", [f"reward-1={folder}"])
    manifest["recipe"] = {"eval_data": [{"from": "held-out", "split": "train"}]}
    (tmp_path / "held-out").mkdir()
    assert reward_pairs._of_run(folder, "train[:9]", [])[:2] == (str(tmp_path / "held-out"), "train[:9]")
    manifest["recipe"] = {"eval_data": []}
    with pytest.raises(DataError, match="names no `eval_data`"):
        reward_pairs._of_run(folder, "train", [])
    manifest["stage"] = "sft"
    with pytest.raises(DataError, match="trained no reward model"):
        reward_pairs._of_run(folder, "train", [])


ROW = {"prompt": "q", "chosen": "a b", "rejected": "c", "m.chosen": 1.0, "m.rejected": 0.5}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROW, "rejected": None}], "row 1 has no 'rejected'"),
        ([ROW, ROW], "rows 1 and 2 are the same pair"),
        ([{**ROW, "id": 7}, {**ROW, "id": 7, "chosen": "x"}], "row 2 repeats id '7' of row 1"),
        ([{**ROW, "m.chosen": None}], "row 1 has no number for 'm'"),
        ([{**ROW, "m.chosen": [1.0, 2.0]}], "2 scores in 'm.chosen' for 1 answers"),
        ([{**ROW, "chosen": 3}], "'chosen' is no text"),
        ([{**ROW, "first": "left"}], "'first' 'left'"),
        ([{**ROW, "m.chosen": 0.5}], "gives every answer the score 0.5"),
        ([{k.replace("m.", "gold."): v for k, v in ROW.items()}], "no scores of a model"),
    ],
)
def test_rows_that_cannot_be_reported_on_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        reward_report(read_comparisons(write(tmp_path / "p.jsonl", rows)))


@quiet
def test_gold_rewards_of_an_earlier_stage_are_read(tmp_path: Path) -> None:
    rows = [{**ROW, "prompt": f"q{n}", "gold_chosen": 0.1, "gold_rejected": 0.2 + n} for n in range(20)]
    report = reward_report(read_comparisons(write(tmp_path / "p.jsonl", rows)))
    assert report.models["m"].figures["agreement_with_gold"].value == 0.0


def test_one_prompt_is_reported_with_cautions(tmp_path: Path) -> None:
    report = reward_report(read_comparisons(write(tmp_path / "p.jsonl", [ROW])))
    assert report.prompts == 1
    assert report.models["m"].figures["accuracy"].low < 0.3
    assert report.cautions


def test_a_model_without_a_name_is_an_error_of_the_option_that_was_given(tmp_path: Path) -> None:
    name = write(tmp_path / "p.jsonl", pairs(20))
    with pytest.raises(RecipeError, match="--model foo: write NAME=MODEL") as error:
        read_comparisons(name, models=["foo"])
    assert "--scorer" not in str(error.value)


def test_the_command_writes_a_page_that_needs_nothing_and_escapes_all(tmp_path: Path) -> None:
    rows = [
        {
            key.replace("long", "<b>long"): f"<script>{value}" if key == "subset" else value
            for key, value in row.items()
        }
        for row in pairs(80)
    ]
    name, page = write(tmp_path / "p.jsonl", rows), tmp_path / "r.html"
    shown = CliRunner().invoke(app, ["reward-report", name, "--out", str(page)])
    assert shown.exit_code == 0, shown.output
    assert "next: open the report" in shown.output
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<b>long" not in html
    assert "&lt;script&gt;chat" in html
    assert "src=" not in html
    assert '<link rel="stylesheet' not in html
    again = CliRunner().invoke(app, ["reward-report", name, "--out", str(page), "--json"])
    found = json.loads(again.output)
    assert found["report"] == str(page)
    assert found["models"]["fair"]["figures"]["accuracy"]["n"] == 40
