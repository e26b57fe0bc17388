"""Details of comparing, annotating and selecting that no other test noticed: each was changed once."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from handbook_utils.errors import DataError, RecipeError
from handbook_utils.evaluation import coverage, statistics
from handbook_utils.evaluation import win_rate as comparisons
from handbook_utils.evaluation.coverage_table import CoverageRow, coverage_rows
from handbook_utils.evaluation.intervals import is_constant
from handbook_utils.evaluation.judged.summary import JudgedReport
from handbook_utils.evaluation.statistics import CoverageWarning, mean_estimate, with_cautions
from handbook_utils.evaluation.win_rate import PairedComparison, compare_paired, win_rate
from handbook_utils.pipeline.compare import Comparison
from handbook_utils.pipeline.evaluate import score_means
from handbook_utils.records import Completion, Estimate, ScoredCompletion
from handbook_utils.sampling.rows import read_answered
from handbook_utils.sampling.selection.annotate import annotate, load_annotator
from handbook_utils.sampling.selection.choose import Rule, choose
from handbook_utils.sampling.selection.distinct import first_of_each_text, first_of_the_alike
from handbook_utils.sampling.selection.groups import group_rows
from handbook_utils.sampling.selection.rows import select_rows
from handbook_utils.sampling.selection.select import select
from handbook_utils.sampling.selection.stage import check_chosen
from handbook_utils.schema.recipe import load_recipe

ANSWERS = {"p0": ["Moon.", "River.", "Stone."], "p1": ["Moon.", "Moon."], "p2": ["River.", "River.", "Moon."]}


def samples() -> list[Completion]:
    prompt = [{"role": "user", "content": "Say river two times, then say moon once."}]
    return [
        Completion(name, place, prompt, text, 2, "stop", -1.0)
        for name, texts in ANSWERS.items()
        for place, text in enumerate(texts)
    ]


def test_an_annotator_compares_the_first_two_texts_and_skips_prompts_that_have_one() -> None:
    found = annotate(samples(), load_annotator("pocket:unbiased-annotator"))
    assert found.skipped == ["p1"]
    assert [pair.prompt_id for pair in found.pairs] == ["p0", "p2"]
    assert all({pair.chosen, pair.rejected} == {"Moon.", "River."} for pair in found.pairs)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.skipped = []  # type: ignore[misc]


def test_an_unknown_annotator_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        RecipeError, match=r"unknown annotator 'pocket:anotator'\. Did you mean 'pocket:annotator'"
    ):
        load_annotator("pocket:anotator")


@pytest.mark.parametrize(("rule", "shape"), [(Rule(), (0,)), (Rule("pairs"), (0, 2))])
def test_where_no_sample_has_a_score_nothing_is_chosen_by_numbers_of_rows(
    rule: Rule, shape: tuple[int, ...]
) -> None:
    table = pa.table(
        {"prompt_id": ["p", "p"], "sample_index": [0, 1], "completion": ["a", "b"], "proxy": [math.nan] * 2}
    )
    found = choose(table, "proxy", rule)
    assert found.chosen.shape == found.control.shape == shape
    assert found.chosen.dtype == found.control.dtype == np.int64
    assert found.unscored.tolist() == [0, 1]


def test_both_kinds_of_refusals_are_counted_where_rows_of_both_kinds_are_there() -> None:
    flags = {"refused": [1.0, 0.0, 1.0, 0.0], "benign": [1.0, 1.0, 0.0, 0.0], "advice": [1.0] * 4}
    columns = {f"gold.{name}": values for name, values in flags.items()}
    table = pa.table({"prompt_id": list("abcd"), "sample_index": [0] * 4, "gold": [0.5] * 4, **columns})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        found = score_means(table)
    rates = ("refusal_rate_benign", "compliance_rate_harmful")
    assert [(found[name].value, found[name].n) for name in rates] == [(0.5, 2), (0.5, 2)]


def test_a_comparison_as_json_has_all_its_parts() -> None:
    found = Comparison(
        Path("a"), Path("b"), "gold", "undecided", {}, 0.5, ["seed"], ("few prompts",)
    ).to_json()
    assert found.keys() == {field.name for field in dataclasses.fields(Comparison)}
    assert (found["changes"], found["cautions"]) == (["seed"], ["few prompts"])


def test_an_interval_that_ends_at_zero_decides_nothing() -> None:
    rate = Estimate(0.5, 0.4, 0.6, 0.95, 20, "rate", "wilson")
    for low, high, verdict in ((0.0, 0.2, "undecided"), (-0.2, 0.0, "undecided"), (0.1, 0.2, "B is better")):
        difference = Estimate((low + high) / 2, low, high, 0.95, 20, "score", "bootstrap-t")
        assert PairedComparison(difference, rate, 0.05, 20).verdict == verdict


def test_a_comparison_counts_the_samples_of_a_prompt_on_each_side(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    real = comparisons.paired_setting

    def kept(values: Any, **options: Any) -> Any:
        given.append(options["rows"])
        return real(values, **options)

    monkeypatch.setattr(comparisons, "paired_setting", kept)
    rng = np.random.default_rng(0)
    a, b = ({f"p{n}": rng.random(4) for n in range(30)} for _ in range(2))
    compare_paired(a, b)
    assert given == [4.0]


def test_an_error_of_a_win_rate_begins_with_the_side_that_it_is_about() -> None:
    ids, fine, broken = ["p", "q"], [1.0, 2.0], [1.0, math.nan]
    for a, b, side in ((broken, fine, "a"), (fine, broken, "b")):
        with pytest.raises(DataError, match=rf"^{side}\b"):
            win_rate(a, b, prompt_ids=ids)


def test_one_draw_is_enough_and_none_is_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        assert mean_estimate([0.1, 0.4, 0.3] * 10, draws=1).n == 30
        with pytest.raises(DataError, match="draws must be at least 1, got 0"):
            mean_estimate([0.1, 0.4, 0.3], draws=0)


def test_of_several_settings_the_one_farthest_from_95_percent_is_told() -> None:
    rows = [
        CoverageRow("auto", name, 30, 1, "unpaired", coverage, 0.002, 1.0, 8000)
        for name, coverage in (("log-normal", 0.92), ("gold-like", 0.85), ("bernoulli-0.05", 0.99))
    ]
    with pytest.warns(CoverageWarning, match=r"covered 85\.0 .*gold-like.*too narrow"):
        statistics._warn(30, [(row, "") for row in rows])


def test_cautions_are_kept_once_each_and_other_warnings_are_shown() -> None:
    def measure() -> int:
        for text in ("few prompts", "few prompts", "odd scores"):
            warnings.warn(text, CoverageWarning, stacklevel=1)
        warnings.warn("look here", UserWarning, stacklevel=1)
        return 3

    with pytest.warns(UserWarning, match="look here"):
        assert with_cautions(measure) == (3, ("few prompts", "odd scores"))


def answered(folder: Path, *rows: dict[str, Any]) -> list[Any]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_answered(str(file))


def scored(*scores: float | None) -> list[dict[str, Any]]:
    """Rows of two prompts, in turns."""
    return [
        {"prompt": f"Question {n % 2}?", "completion": "abcdefgh"[n], "judge": score}
        for n, score in enumerate(scores)
    ]


def test_the_best_row_of_each_prompt_is_taken_as_it_was(
    tmp_path: Path,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        found = select_rows(
            answered(tmp_path, *scored(1.0, 5.0, 3.0, 2.0, None, 4.0)), by="judge", rule=Rule()
        )
    assert [(row["completion"], row["judge"]) for row in found.chosen] == [("c", 3.0), ("b", 5.0)]
    assert len(found.control) == 2
    assert found.unscored == 1
    assert found.metrics["judge"].value == 4.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.unscored = 0  # type: ignore[misc]


def test_pairs_of_rows_are_messages_and_their_margin_is_between_best_and_worst(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        found = select_rows(answered(tmp_path, *scored(1.0, 5.0, 3.0, 2.0)), by="judge", rule=Rule("pairs"))
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found.chosen] == [
        ("c", "a"),
        ("b", "d"),
    ]
    assert (found.metrics["margin.judge"].value, found.metrics["margin.judge"].n) == (2.5, 2)


def test_rows_that_are_pairs_are_not_selected_among(tmp_path: Path) -> None:
    rows = answered(tmp_path, {"prompt": "Q?", "chosen": "good", "rejected": "bad", "judge": 1.0})
    with pytest.raises(DataError, match="the rows are pairs already"):
        select_rows(rows, by="judge", rule=Rule())


def test_a_score_that_is_missing_is_named_beside_the_nearest_column_of_numbers() -> None:
    table = pa.table({"prompt_id": ["p"], "sample_index": [0], "completion": ["a"], "sample_score": [1.0]})
    with pytest.raises(DataError, match=r"no score 'sample_indx'\. .*sample_score") as refused:
        choose(table, "sample_indx", Rule())
    assert "sample_index" not in str(refused.value).replace("sample_indx", "")


def test_equal_texts_of_two_prompts_are_two_texts() -> None:
    groups = group_rows(pa.chunked_array([["p", "p", "q", "q"]]), np.array([0, 1, 0, 1]))
    kept = first_of_each_text(groups, np.arange(4), np.array([0, 1, 1, 1]))
    assert kept.tolist() == [True, True, True, False]
    kept = first_of_each_text(groups, np.arange(4), np.array([0, 2, 2, 0]))
    assert kept.tolist() == [True] * 4


def test_texts_as_similar_as_allowed_are_both_kept() -> None:
    groups = group_rows(pa.chunked_array([["p", "p"]]), np.array([0, 1]))
    texts = ["a b c d", "a b c e"]  # one run of three in common, of three
    for most, expected in ((1 / 3, [True, True]), (0.33, [True, False])):
        assert first_of_the_alike(groups, np.arange(2), texts, max_similarity=most).tolist() == expected


def test_one_kind_of_refusals_alone_has_one_rate_and_flags_have_no_mean() -> None:
    flags = {"gold.refused": [1.0, 0.0], "gold.benign": [1.0, 1.0], "gold.advice": [1.0, 1.0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        found = score_means(pa.table({"prompt_id": ["a", "b"], "sample_index": [0, 0], **flags}))
    assert list(found) == ["refusal_rate_benign"]
    assert found["refusal_rate_benign"].value == 0.5


def test_a_selection_without_a_seed_is_that_of_seed_0() -> None:
    rows = [
        ScoredCompletion(f"p{number}", place, [], f"answer {place}", 1, "stop", 0.0, {"proxy": 0.0})
        for number in range(40)
        for place in range(4)
    ]
    chosen = [
        select(rows, by="random", strategy="random", **seed) for seed in ({}, {"seed": 0}, {"seed": -1})
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_nothing_to_select_from_and_nothing_selected_are_told_apart() -> None:
    recipe = load_recipe("pocket/rft-best")
    with pytest.raises(DataError, match=r"no samples to select from\. Check the `data`"):
        check_chosen(recipe, samples=0, chosen=0, unscored=0)
    with pytest.raises(DataError, match="none of 4 samples has a score"):
        check_chosen(recipe, samples=4, chosen=0, unscored=0)


def test_a_judged_report_cannot_be_changed() -> None:
    report = JudgedReport({}, 0, 0, ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows = 1  # type: ignore[misc]


def test_the_same_text_of_another_prompt_is_no_repetition() -> None:
    groups = group_rows(["a", "b", "c"], [0, 0, 0])
    kept = first_of_each_text(groups, np.arange(3), np.array([1, 0, 0]))
    assert kept.all()


def test_equal_up_to_rounding_is_meant_on_the_scale_of_the_bounds() -> None:
    apart = np.array([[50.0], [50.0 + 5e-8]])
    assert is_constant(apart, (0.0, 100.0))[0]
    assert not is_constant(apart, (0.0, 1.0))[0]


def test_the_stored_coverage_is_of_the_settings_that_are_measured() -> None:
    stored = coverage_rows()
    assert {row.rows for row in stored} == set(coverage.ROWS)
    assert {row.prompts for row in stored} >= set(coverage.PROMPTS)
