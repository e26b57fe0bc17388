"""Win rates by a judge: length, order, seeds and people's labels, each against a planted truth."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit, logit
from typer.testing import CliRunner

from handbook_utils.cli.app import app
from handbook_utils.errors import DataError
from handbook_utils.evaluation.coverage_table import coverage_rows
from handbook_utils.evaluation.judged import coverage
from handbook_utils.evaluation.judged.corrected import corrected_win_rate
from handbook_utils.evaluation.judged.length_control import fit_fractional, length_controlled_win_rate
from handbook_utils.evaluation.judged.summary import Judgements, summarise_judgements
from handbook_utils.evaluation.two_level import mean_over_prompts_and_seeds
from handbook_utils.pipeline.judgements import read_judgements

MANY = 4000


def rows(**planted: float) -> dict[str, Any]:
    return coverage.judged_rows(np.random.default_rng(3), MANY, **planted)


def test_a_judge_that_likes_only_length_gives_one_half_at_equal_length() -> None:
    given = rows(rate=0.5, bias=2.0)
    found = length_controlled_win_rate(**given)
    assert given["preferences"].mean() > 0.6  # B is longer, so the plain rate is fooled
    assert found.win_rate.low < 0.5 < found.win_rate.high
    assert found.win_rate.high - found.win_rate.low < 0.06
    assert found.length_effect.low > 1.5


@pytest.mark.parametrize("position", [0.0, 1.5])
def test_a_true_rate_of_0_6_is_found_under_a_length_bias_and_a_position_bias(position: float) -> None:
    found = length_controlled_win_rate(**rows(rate=0.6, bias=1.0, position=position))
    assert found.win_rate.value == pytest.approx(0.6, abs=0.025)
    assert found.win_rate.low < 0.6 < found.win_rate.high


def test_a_judge_that_ignores_length_keeps_its_rate() -> None:
    given = rows(rate=0.6, bias=0.0)
    found = length_controlled_win_rate(**given)
    assert found.win_rate.value == pytest.approx(given["preferences"].mean(), abs=0.01)
    assert found.length_effect.low < 0 < found.length_effect.high


def test_the_fit_is_the_maximum_of_the_penalised_likelihood_by_scipy() -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(60), np.tanh(rng.normal(size=60))])
    y = np.round(rng.random(60) * 2) / 2

    def below(theta: np.ndarray) -> float:
        mean = expit(x @ theta)
        information = (x * (mean * (1 - mean))[:, None]).T @ x
        fit = np.sum(y * np.log(mean) + (1 - y) * np.log(1 - mean))
        return -float(fit + np.linalg.slogdet(information)[1] / 2)

    peer = optimize.minimize(
        below, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}
    )
    assert fit_fractional(x, y, np.ones(60)) == pytest.approx(peer.x, abs=1e-5)


def test_repeating_every_row_of_a_prompt_narrows_nothing() -> None:
    given = coverage.judged_rows(np.random.default_rng(1), 150, rate=0.6, bias=1.0)
    once = length_controlled_win_rate(**given)
    thrice = length_controlled_win_rate(
        **{name: np.tile(values, 3) for name, values in given.items()}, clusters=np.tile(np.arange(150), 3)
    )
    assert thrice.win_rate.n == 150
    width = once.win_rate.high - once.win_rate.low
    assert thrice.win_rate.high - thrice.win_rate.low == pytest.approx(width, rel=0.02)


def test_swapping_a_and_b_mirrors_the_rate() -> None:
    given = coverage.judged_rows(np.random.default_rng(1), 150, rate=0.7, bias=1.0)
    one = length_controlled_win_rate(**given).win_rate
    other = length_controlled_win_rate(
        1 - given["preferences"], given["lengths_b"], given["lengths_a"]
    ).win_rate
    assert (1 - other.value, 1 - other.high) == pytest.approx((one.value, one.low))


@pytest.mark.parametrize(
    ("always", "low", "high"), [(0.5, 0.456, 0.544), (1.0, 0.912, 1.0), (0.0, 0.0, 0.088)]
)
def test_a_judge_that_always_says_the_same_leaves_open_what_the_next_prompts_would_say(
    always: float, low: float, high: float
) -> None:
    longer = np.random.default_rng(0).normal(size=40)
    found = length_controlled_win_rate(np.full(40, always), np.full(40, 9.0), 9 + longer).win_rate
    assert found.value == always
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


def test_a_judge_decided_by_length_alone_leaves_the_rate_unknown_and_says_so() -> None:
    longer = np.random.default_rng(0).normal(size=200)
    found = length_controlled_win_rate((longer > 0) * 1.0, np.full(200, 9.0), 9 + longer)
    assert (found.win_rate.low, found.win_rate.high) == (0.0, 1.0)
    assert "length alone decides" in found.caution


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferences": [2.0] * 20}, "row 0 is 2"),
        ({"preferences": [math.nan] * 20}, "row 0 is nan"),
        ({"lengths_b": [5.0] * 20, "lengths_a": [3.0] * 20}, "same amount in every row"),
        ({"lengths_b": [5.0] * 19}, "a row needs one of each"),
        ({"clusters": ["one"] * 20}, "at least 10 prompts, got 1"),
        ({"clusters": ["one"] * 3}, "one prompt id per row"),
        ({"b_first": [1.0] * 3}, "one value per row"),
    ],
)
def test_what_cannot_be_length_controlled_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"preferences": [0.0, 1.0] * 10, "lengths_a": range(20), "lengths_b": [7.0] * 20, **change}
    with pytest.raises(DataError, match=message):
        length_controlled_win_rate(**given)


def test_the_longer_answer_always_shown_first_cannot_be_told_from_order() -> None:
    longer = np.r_[np.full(20, 4.0), np.full(20, -4.0)]
    with pytest.raises(DataError, match="both orders"):
        length_controlled_win_rate(np.tile([0.0, 1.0], 20), np.full(40, 9.0), 9 + longer, b_first=longer > 0)


def test_a_biased_judge_is_corrected_to_what_people_say() -> None:
    rng = np.random.default_rng(0)
    people = (rng.random(8000) < 0.6) * 1.0
    judge = np.where(rng.random(8000) < 0.8, people, 1.0)
    found = corrected_win_rate(judge[:2000], people[:2000], judge[2000:])
    assert judge.mean() > 0.65
    assert found.rate.low < people.mean() < found.rate.high
    assert found.bias.low > 0.05
    assert found.rate.high - found.rate.low < 0.8 * (found.people_only.high - found.people_only.low)


def test_the_corrected_rate_is_the_published_formula() -> None:
    judge, people, rest = (
        np.array([1.0, 1, 0, 1, 0, 0, 1, 1, 1, 0]),
        np.array([1.0, 0, 0, 1, 0, 1, 1, 1, 0, 0]),
        np.array([1.0, 0, 1, 1, 1]),
    )
    found = corrected_win_rate(judge, people, rest)
    # cov(judge, people) = (4 - 10 * 0.6 * 0.5) / 9 = 1/9, var(judge) = 10 * 0.24 / 9; weight = cov / ((1 +
    # 10/5) var)
    weight = (1 / 9) / (3 * 2.4 / 9)
    assert found.trust == pytest.approx(weight)
    assert found.rate.value == pytest.approx(weight * 0.8 + 0.5 - weight * 0.6)
    # sure of the judge's bias as scipy's paired t interval is
    peer = stats.ttest_rel(judge, people).confidence_interval(0.95)
    assert (found.bias.low, found.bias.high) == pytest.approx((peer.low, peer.high))


def test_a_judge_that_tells_nothing_is_not_trusted() -> None:
    rng = np.random.default_rng(0)
    people = (rng.random(100) < 0.6) * 1.0
    found = corrected_win_rate(np.ones(100), people, np.ones(400))
    assert found.trust == 0
    assert str(found.rate) == str(found.people_only)


@pytest.mark.parametrize(
    ("labelled", "people", "rest", "message"),
    [
        ([1.0] * 9, [1.0] * 9, [1.0] * 9, "at least 10 labelled"),
        ([1.0] * 10, [1.0] * 9, [1.0] * 9, "one value of each"),
        ([1.0] * 12, [1.0] * 12, [1.0] * 9, "all 12 labels are 1"),
        ([1.0] * 12, [0.0, 1.0] * 6, [1.0], "no prompts without a label"),
        ([3.0] * 12, [0.0, 1.0] * 6, [1.0, 0.0], "row 0 is 3"),
    ],
)
def test_labels_that_cannot_correct_a_judge_are_refused(
    labelled: list[float], people: list[float], rest: list[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        corrected_win_rate(labelled, people, rest)


def test_seeds_that_agree_leave_the_interval_over_prompts() -> None:
    values = np.random.default_rng(0).normal(size=100)
    found = mean_over_prompts_and_seeds(np.tile(values, (4, 1)))
    peer = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.mean.low, found.mean.high) == pytest.approx((peer.low, peer.high))
    assert (found.seed_sd, found.share_of_seeds) == pytest.approx((0, 0), abs=1e-6)


def test_seeds_that_differ_widen_it_to_students_interval_between_seeds() -> None:
    shifts = np.array([0.0, 1.0, 3.0, 4.0])
    values = np.random.default_rng(0).normal(size=500) * 1e-6 + shifts[:, None]
    found = mean_over_prompts_and_seeds(values)
    peer = stats.ttest_1samp(shifts, 0).confidence_interval(0.95)
    assert (found.mean.low, found.mean.high) == pytest.approx((peer.low, peer.high), rel=1e-4)
    assert found.seed_sd == pytest.approx(shifts.std(ddof=1), rel=1e-4)
    assert found.share_of_seeds == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones((2, 9)), "at least 3 seeds"),
        (np.ones((3, 1)), "at least 3 seeds"),
        (np.ones((3, 9)), "all prompts and seeds"),
        (np.array([[1.0, 2], [3, np.nan], [5, 6]]), "prompt 1 of seed 1"),
    ],
)
def test_a_table_without_an_interval_is_refused(table: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        mean_over_prompts_and_seeds(table)


def test_at_200_prompts_every_judged_interval_covers_93_to_97_percent() -> None:
    stored = [row for row in coverage_rows(coverage.TABLE) if row.prompts == 200]
    assert {(row.method, row.distribution) for row in stored} == set(coverage.SETTINGS)
    assert [row for row in stored if not row.is_in_band] == []
    assert all(row.data_sets >= 1000 for row in stored)


@pytest.mark.parametrize(
    "setting", [("length-controlled", "likes-only-length"), ("corrected", "judge-right-0.6")]
)
def test_stored_coverage_is_reproduced_by_fresh_data_sets(setting: tuple[str, str]) -> None:
    again = coverage.measure(*setting, 200, data_sets=200, seed=1000)
    [row] = [
        r for r in coverage_rows(coverage.TABLE) if (r.method, r.distribution, r.prompts) == (*setting, 200)
    ]
    hits = round(again.coverage * 200)
    # wrongly red once in 2,000 times on either side
    assert stats.binom.cdf(hits, 200, row.coverage - 4 * row.mc_error) > 5e-4
    assert stats.binom.sf(hits - 1, 200, min(row.coverage + 4 * row.mc_error, 1)) > 5e-4


def both_orders(prompts: int = 40) -> list[dict[str, Any]]:
    """Rows of a judge that takes the answer shown first on every fourth prompt, and B else."""
    made = []
    for prompt in range(prompts):
        for first in "ab":
            liked = first if prompt % 4 == 0 else "b"
            made.append({"prompt_id": f"p{prompt}", "preference": liked, "first": first})
    return made


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")
def test_position_bias_and_agreement_are_counted_over_prompts(tmp_path: Path) -> None:
    report = summarise_judgements(read_judgements(write(tmp_path / "j.jsonl", both_orders())))
    # ten prompts of forty: first always, so 1 - 0.5; the other thirty are for B in both orders, so 0 on
    # average
    assert report.metrics["position_bias"].value == pytest.approx(0.125)
    assert report.metrics["order_agreement"].value == pytest.approx(0.75)
    assert report.metrics["win_rate"].value == pytest.approx(0.875)
    assert report.metrics["win_rate"].n == 40
    assert report.details["pairs_in_both_orders"] == 40
    assert any("no lengths are given" in caution for caution in report.cautions)


def test_one_order_only_is_a_caution(tmp_path: Path) -> None:
    report = summarise_judgements(read_judgements(write(tmp_path / "j.jsonl", both_orders()[:-1])))
    assert any("1 of 40 pairs were judged in one order only" in caution for caution in report.cautions)


def test_alpaca_evals_annotations_are_read_as_they_are(tmp_path: Path) -> None:
    records = [
        {"instruction": "i", "output_1": "xx", "output_2": "yyyy", "preference": 1.75, "annotator": "j"},
        {"instruction": "k", "output_1": "xx", "output_2": "y", "preference": 0, "annotator": "j"},
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    judged = read_judgements(str(path))
    assert judged.preferences.tolist() == [0.75, 0.5]
    assert judged.lengths_a is not None
    assert judged.lengths_b is not None
    assert (judged.lengths_a.tolist(), judged.lengths_b.tolist()) == ([2, 2], [4, 1])
    records[1]["preference"] = 3
    path.write_text(json.dumps(records), encoding="utf-8")
    with pytest.raises(DataError, match="row 2 has the preference 3"):
        read_judgements(str(path))


def test_seeds_and_labels_give_their_figures() -> None:
    rng = np.random.default_rng(0)
    ids = np.tile([f"p{i:03}" for i in range(120)], 3)
    liked = (rng.random(360) < 0.6) * 1.0
    labels = np.where(np.arange(360) < 60, (rng.random(360) < 0.5) * 1.0, np.nan)
    judged = Judgements(ids.tolist(), liked, seeds=np.repeat(["0", "1", "2"], 120).tolist(), labels=labels)
    report = summarise_judgements(judged)
    assert report.metrics["win_rate_over_seeds"].value == pytest.approx(liked.mean())
    assert report.details["seeds"] == 3
    assert report.details["labelled_prompts"] == 60
    assert report.metrics["corrected_win_rate"].n == 120
    json.dumps(report.to_json())


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"prompt_id": "p", "preference": "a"}] * 2, "row 1 repeats prompt id 'p' of row 0"),
        ([{"prompt_id": "p", "preference": "c"}], "row 1 has the preference 'c'"),
        ([{"prompt_id": "p", "preference": 1.5}], "row 1 has the preference 1.5"),
        (
            [{"prompt_id": "p", "preferrence": 1}],
            "no column 'preference'; 'preferrence' looks like it: rename it",
        ),
        ([{"preference": 1}], "no column 'prompt_id'"),
        ([{"prompt_id": None, "preference": 1}], "no 'prompt_id' or 'prompt'"),
        ([{"promt_id": "p", "prefrence": 1}], "'prefrence' looks like .*'promt_id' looks like it"),
        ([{"prompt_version": 1, "preference": 1}], r"no column 'prompt_id'\. The columns are"),
        ([{"prompt_id": "p", "preference": 1, "first": "left"}], "'first' 'left'"),
        ([{"prompt_id": "p", "preference": 1, "length_a": -1, "length_b": 1}], "-1 for 'length_a'"),
        (
            [{"prompt_id": p, "preference": 1, "prompt_version": v} for p, v in (("p", "1"), ("q", "2"))],
            "2 versions of the judge",
        ),
        (
            [{"prompt_id": p, "preference": 1, "seed": s} for p, s in (("p", 0), ("q", 0), ("p", 1))],
            "seed '1' was not judged on prompt 'q'",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, records: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        summarise_judgements(read_judgements(write(tmp_path / "j.jsonl", records)))


@pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")
def test_one_prompt_gives_a_rate_with_an_honest_interval_and_cautions(tmp_path: Path) -> None:
    name = write(tmp_path / "j.jsonl", [{"prompt_id": "p", "preference": "b", "length_a": 1, "length_b": 2}])
    report = summarise_judgements(read_judgements(name))
    assert (report.metrics["win_rate"].n, report.metrics["win_rate"].value) == (1, 1.0)
    assert report.metrics["win_rate"].low < 0.05
    assert any("at least 10 prompts" in caution for caution in report.cautions)


def test_the_command_prints_figures_cautions_and_json(tmp_path: Path) -> None:
    name = write(tmp_path / "j.jsonl", both_orders())
    shown = CliRunner().invoke(app, ["win-rate", name])
    assert shown.exit_code == 0, shown.output
    assert "position_bias" in shown.output
    assert "next: B is preferred" in shown.output
    found = json.loads(CliRunner().invoke(app, ["win-rate", name, "--json"]).output)
    assert found["metrics"]["win_rate"]["value"] == pytest.approx(0.875)
    assert logit(0.5) == 0


def advised(name: str, *more: str) -> tuple[str, list[str]]:
    """The last line of `win-rate`, and the command in it with a rate that a user might choose."""
    shown = CliRunner().invoke(app, ["win-rate", name, *more])
    assert shown.exit_code == 0, shown.output
    line = shown.output.strip().splitlines()[-1]
    command = re.search(r"handbook (power [^;]*)", line)
    return line, [] if command is None else shlex.split(command[1].replace("RATE", "0.55"))


@pytest.mark.parametrize("prompts", [4, 40])
@pytest.mark.parametrize("has_ties", [False, True])
def test_an_undecided_judge_is_told_a_command_that_works(
    tmp_path: Path, prompts: int, has_ties: bool
) -> None:
    sides = ["a", "b", "tie", "tie"] if has_ties else ["a", "b"]
    rows = [{"prompt_id": str(p), "preference": sides[p % len(sides)]} for p in range(prompts)]
    line, command = advised(write(tmp_path / "my rows.jsonl", rows))
    assert "undecided" in line
    assert "0.51" not in line, "no rate is made up"
    assert ("--ties 0.5" in line) == (has_ties and prompts < 10), "a pilot's file shows its ties itself"
    planned = CliRunner().invoke(app, command)
    assert planned.exit_code == 0, planned.output
    if prompts >= 10:
        seen = re.search(r"smallest effect seen that often is (\d\.\d+)", planned.output)
        assert seen is not None
        assert f"{0.5 + float(seen[1]):.2f}" in line


def test_a_bias_that_peoples_labels_show_is_in_the_verdict(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    people = (rng.random(400) < 0.5).astype(int)
    judge = people | (rng.random(400) < 0.4)
    rows = [
        {"prompt_id": str(p), "preference": "ab"[judge[p]]} | ({"label": "ab"[people[p]]} if p < 200 else {})
        for p in range(400)
    ]
    line, _ = advised(write(tmp_path / "j.jsonl", rows))
    assert "undecided" in line, "the judge alone says B"
    assert "the judge favours B (judge_bias" in line
    unlabelled = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    line, _ = advised(write(tmp_path / "j.jsonl", unlabelled))
    assert "B is preferred; check the judge against people: add `label`" in line
