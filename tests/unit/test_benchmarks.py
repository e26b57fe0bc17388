"""Benchmarks without the harness: what becomes of its results. `tests/contract/test_lm_eval.py` has the rest.

`tests/data/lm_eval_results.json` is what lm-eval 0.4.13 gave for three local tasks of eight questions each.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from handbook_utils.benchmarks import tasks as benchmark_tasks
from handbook_utils.benchmarks.run import RECORD, TASKS, asked_otherwise, read_benchmarks
from handbook_utils.benchmarks.scores import BenchmarkScore, compare_benchmarks, scored
from handbook_utils.benchmarks.tasks import named_tasks
from handbook_utils.errors import DataError, RecipeError, RunFolderError
from handbook_utils.evaluation.statistics import CoverageWarning

RECORDED = Path(__file__).parents[1] / "data" / "lm_eval_results.json"
pytestmark = pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return content


def changed(results: dict[str, Any], task: str, metric: str, values: list[float]) -> dict[str, Any]:
    """The results with other scores of some questions, and the harness's mean of them."""
    other = copy.deepcopy(results)
    rows = other["samples"][task]
    for row, value in zip(rows, values, strict=False):
        row[metric] = value
    other["results"][task][f"{metric},none"] = sum(row[metric] for row in rows) / len(rows)
    return other


def of(scores: list[BenchmarkScore], name: str) -> BenchmarkScore:
    (found,) = [score for score in scores if score.name == name]
    return found


def test_our_mean_is_the_harnesss_to_the_last_digit_and_has_wilsons_interval(results):
    score = of(scored(results), "pocket_colours: acc,none")
    assert score.mean.value == score.theirs == results["results"]["pocket_colours"]["acc,none"]
    assert score.stderr == results["results"]["pocket_colours"]["acc_stderr,none"]
    # three of eight right
    expected = stats.binomtest(3, 8).proportion_ci(method="wilson")
    assert (score.mean.low, score.mean.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_harnesss_standard_error_is_that_of_its_samples(results):
    """What stands beside our interval: the deviation over questions by the root of their number."""
    score = of(scored(results), "pocket_colours: acc,none")
    values = list(score.values.values())
    assert score.stderr == pytest.approx(stats.sem(values), abs=1e-12)


def test_what_is_no_mean_over_questions_has_the_harnesss_figure_alone(results):
    score = of(scored(results), "pocket_roll: bits_per_byte,none")
    assert (score.mean, score.values, score.stderr) == (None, {}, None)
    assert score.theirs == results["results"]["pocket_roll"]["bits_per_byte,none"]


def test_a_mean_that_is_not_that_of_the_samples_gets_no_interval(results):
    other = copy.deepcopy(results)
    other["results"]["pocket_colours"]["acc,none"] += 1e-6
    assert of(scored(other), "pocket_colours: acc,none").mean is None


def test_a_question_that_comes_twice_is_refused(results):
    other = copy.deepcopy(results)
    other["samples"]["pocket_colours"].append(other["samples"]["pocket_colours"][0])
    with pytest.raises(DataError, match="question 0 was answered twice"):
        scored(other)


def test_a_score_that_is_no_number_leaves_its_metric_without_an_interval(results):
    other = changed(results, "pocket_colours", "acc", [math.nan])
    other["results"]["pocket_colours"]["acc,none"] = 0.5
    assert of(scored(other), "pocket_colours: acc,none").mean is None


def test_scores_are_read_back_as_they_were_written(results):
    for score in scored(results):
        assert BenchmarkScore.from_json(json.loads(json.dumps(score.to_json()))) == score


def test_two_models_are_compared_question_by_question(results):
    """All eight right against three: five questions differ, all one way. Two-sided by sign flips: 2 / 2^5."""
    better = changed(results, "pocket_colours", "acc", [1.0] * 8)
    compared, _ = compare_benchmarks(scored(results), scored(better))
    row = next(row for row in compared if row.name == "pocket_colours: acc,none")
    assert row.paired.difference.value == pytest.approx(5 / 8)
    assert row.paired.p_value == pytest.approx(2 / 2**5)
    assert row.paired.n == 8
    assert row.higher_is_better is True


def test_p_values_are_corrected_for_all_that_is_compared(results):
    """Three metrics are compared, so the smallest p-value counts threefold."""
    better = changed(results, "pocket_colours", "acc", [1.0] * 8)
    compared, left_out = compare_benchmarks(scored(results), scored(better))
    assert len(compared) == 3
    smallest = min(compared, key=lambda row: row.paired.p_value)
    assert smallest.p_holm == pytest.approx(3 * smallest.paired.p_value)
    assert left_out == [
        "pocket_roll: bits_per_byte,none: not a mean over questions",
        "pocket_roll: word_perplexity,none: not a mean over questions",
    ]


def test_other_questions_under_one_name_are_refused(results):
    other = copy.deepcopy(results)
    other["samples"]["pocket_say"][4]["doc_hash"] = "another"
    with pytest.raises(DataError, match=r"pocket_say: exact_match,none: 2 questions .* such as number 4"):
        compare_benchmarks(scored(results), scored(other))


def test_nothing_to_compare_says_why(results):
    only = [score for score in scored(results) if score.task == "pocket_roll"]
    with pytest.raises(DataError, match="not a mean over questions"):
        compare_benchmarks(only, only)
    with pytest.raises(DataError, match="no metrics on either side"):
        compare_benchmarks([], [])


def test_a_constant_score_has_an_interval_and_a_warning(results):
    same = changed(results, "pocket_say", "exact_match", [0.5] * 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CoverageWarning)
        with pytest.raises(CoverageWarning):
            scored(same)


# folders


def write(folder: Path, results: dict[str, Any], **identity: Any) -> Path:
    (folder / TASKS).mkdir(parents=True)
    settings = {"weights": "w", "harness": "0.4.13", "shots": None, "limit": None, **identity}
    (folder / RECORD).write_text(json.dumps({"model": "m", "identity": settings}), encoding="utf-8")
    for task in results["results"]:
        rows = [score.to_json() for score in scored(results) if score.task == task]
        content = {"task": task, "scores": rows, "cut": 0}
        (folder / TASKS / f"{task}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_stored_result_says_what_to_know_before_it_is_compared(results, tmp_path):
    a, b = (
        read_benchmarks(write(tmp_path / str(shots), results, shots=shots, limit=8)) for shots in (None, 5)
    )
    assert a.cautions == ["only the first 8 questions of each task were asked (--limit)"]
    assert asked_otherwise(a, a) == []
    assert asked_otherwise(a, b) == ["asked otherwise than the baseline: shots is 5, there it is None"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="not the folder of benchmarks"):
        read_benchmarks(tmp_path)
    write(tmp_path / "empty", {"results": {}})
    with pytest.raises(RunFolderError, match="no task is finished yet"):
        read_benchmarks(tmp_path / "empty")


# what is asked for


def test_the_harness_without_its_extra_is_told_by_the_name_of_the_extra(handbook, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_tasks, "find_spec", lambda name: None)
    code, _, err = handbook("evaluate", "pocket:base", "--tasks", "arc_easy", "--out", tmp_path / "out")
    assert code == 2
    assert "pip install 'handbook-utils[lm-eval]'" in err
    assert not (tmp_path / "out").exists()


def test_names_and_files_are_sorted_out_and_commas_divide_them(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("task: mine\nprocess_docs: !function utils.process\n", encoding="utf-8")
    tasks = named_tasks(["arc_easy, hellaswag", str(file)], allow_code=True)
    assert (tasks.names, tasks.folders, tasks.has_packaged) == (
        ["arc_easy", "hellaswag", "mine"],
        [tmp_path],
        True,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such file"), ("group: x\n", "no line `task: NAME`"), ("task: [", "cannot be read as a task")],
)
def test_a_file_that_is_no_task_is_told(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        named_tasks([str(file)], allow_code=True)


def test_a_task_file_is_code_and_wants_to_be_allowed(tmp_path):
    with pytest.raises(RecipeError, match="--allow-code"):
        named_tasks([str(tmp_path / "mine.yaml")], allow_code=False)


@pytest.mark.parametrize("wanted", [["arc_easy", "arc_easy"], [" , "]])
def test_no_task_and_one_task_twice_are_refused(wanted):
    with pytest.raises(RecipeError, match="--tasks"):
        named_tasks(wanted, allow_code=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--limit", "3"], "--limit: belongs to benchmarks"),
        (["--tasks", "arc_easy", "--set", "samples=2"], "--set: belongs to recipes"),
        (["--tasks", "arc_easy", "--dry-run"], "--dry-run: belongs to recipes"),
    ],
)
def test_options_of_the_other_kind_of_evaluation_are_refused(handbook, options, words):
    code, _, err = handbook("evaluate", "pocket/evaluate", *options)
    assert (code, words in err) == (2, True)
