"""Reward models, ensembles and verifiers: what they give, what they refuse, rows they have no number for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.errors import DataError, ModelError, RecipeError
from handbook_utils.models.load import load_tokenizer
from handbook_utils.pipeline.inputs import sources_of
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.records import Completion
from handbook_utils.runs.state import read_manifest, read_table
from handbook_utils.sampling.scoring.score import NoScore, score
from handbook_utils.sampling.scoring.scorers.load import load_scorers
from handbook_utils.sampling.scoring.scorers.reward_model import combine_scores
from handbook_utils.sampling.scoring.scorers.verifiers import VerifierScorer, regex_check
from handbook_utils.sampling.tables import UnscoredWarning, samples_table
from handbook_utils.schema.recipe import check_recipe, recipe_to_dict

pytestmark = pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")


def sample(text: str, *, prompt_id: str = "p", index: int = 0, tokens: int = 3) -> Completion:
    return Completion(prompt_id, index, [{"role": "user", "content": "Hi"}], text, tokens, "stop", -1.0)


def sections(scorers: dict[str, Any]) -> Any:
    content = {"stage": "score", "data": [{"name": "x"}], "scorers": scorers}
    return check_recipe(content, "test").scorers  # type: ignore[union-attr]


def scores_of(scorer: dict[str, Any], *texts: str, **changes: Any) -> list[float]:
    """What one scorer gives some answers."""
    (loaded,) = load_scorers(sections({"check": scorer}), ResolvedInputs())
    rows = [sample(text, index=index, **changes) for index, text in enumerate(texts)]
    return [row.scores["check"] for row in score(rows, loaded)]


def test_a_regex_is_searched_for_or_has_to_match_the_whole():
    assert scores_of({"kind": "regex", "pattern": r"\d+"}, "a 12", "none") == [1, 0]
    assert scores_of({"kind": "regex", "pattern": r"\d+", "whole": True}, "a 12", "12") == [0, 1]


def test_a_regex_that_takes_for_ever_leaves_the_row_without_a_score(monkeypatch):
    monkeypatch.setattr("handbook_utils.sampling.scoring.scorers.verifiers.PATTERN_S", 0.02)
    scorer = VerifierScorer("check", regex_check(r"(a|aa)+$"))
    first, second = scorer([sample("a" * 60 + "b"), sample("a")])["check"]
    assert isinstance(first, NoScore)
    assert first.reason.startswith("TimeoutError")
    assert second == 1


def test_lengths_are_counted_in_the_unit_and_both_bounds_are_included():
    words = {"kind": "length", "at_least": 2, "at_most": 3}
    assert scores_of(words, "one", "one two", "one two three", "one two three four") == [0, 1, 1, 0]
    assert scores_of({"kind": "length", "unit": "characters", "at_most": 3}, "abc", "abcd") == [1, 0]
    assert scores_of({"kind": "length", "unit": "tokens", "at_most": 3}, "any", tokens=4) == [0]


def test_json_has_to_parse_and_to_fit_the_schema():
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    texts = ['{"a": 1}', '{"a": "1"}', "{}", "no JSON", '{"a": NaN}', "[" * 100_000]
    assert scores_of({"kind": "json_schema", "schema": schema}, *texts) == [1, 0, 0, 0, 0, 0]
    assert scores_of({"kind": "json_schema", "schema": {}}, "[1]", "[1") == [1, 0]


def test_a_schema_that_is_wrong_is_refused_and_one_elsewhere_is_never_fetched():
    with pytest.raises(RecipeError, match=r"scorers.check.schema: .*'numbr' is not valid"):
        scores_of({"kind": "json_schema", "schema": {"type": "numbr"}}, "1")
    (loaded,) = load_scorers(
        sections({"check": {"kind": "json_schema", "schema": {"$ref": "http://127.0.0.1:9/schema"}}}),
        ResolvedInputs(),
    )
    (value,) = loaded([sample("1")])["check"]
    assert isinstance(value, NoScore)
    assert "Unresolvable" in value.reason


@pytest.fixture
def answers(tmp_path) -> dict[str, Any]:
    rows = [
        {"prompt_id": "p", "prompt": "6 * 7?", "answer": 42},
        {"prompt_id": "q", "prompt": "?", "answer": "Paris"},
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {"kind": "answer", "answers": {"name": str(file)}}


def test_an_answer_is_compared_by_value_and_without_regard_to_case(answers):
    assert scores_of(answers, "42", " 42.0 ", "43", "forty-two") == [1, 1, 0, 0]
    assert scores_of(answers, "paris", "PARIS.", "Rome", prompt_id="q") == [1, 1, 0]


def test_the_last_match_of_a_pattern_is_the_answer(answers):
    found = {**answers, "pattern": r"answer is (\S+)"}
    assert scores_of(found, "The answer is 41. No, the answer is 42", "42") == [1, 0]


def test_a_prompt_without_an_answer_on_record_has_no_score_and_two_answers_are_an_error(answers, tmp_path):
    (loaded,) = load_scorers(sections({"check": answers}), ResolvedInputs())
    assert loaded([sample("42", prompt_id="z")])["check"] == [
        NoScore("DataError: no answer is on record for this prompt")
    ]
    file = Path(answers["answers"]["name"])
    file.write_text('{"prompt": "a", "answer": 1}\n{"prompt": "a", "answer": 2}', encoding="utf-8")
    with pytest.raises(DataError, match=r"row 2 has another answer to a prompt"):
        load_scorers(sections({"check": answers}), ResolvedInputs())
    with pytest.raises(DataError, match=r"row 1 has no 'anser'. Did you mean 'answer'"):
        load_scorers(sections({"check": {**answers, "column": "anser"}}), ResolvedInputs())


def test_lists_of_numbers_are_no_numbers_and_a_number_may_have_thousands(tmp_path):
    file = tmp_path / "answers.jsonl"
    rows = [
        {"prompt_id": "roots", "prompt": "a", "answer": "1,2"},
        {"prompt_id": "metres", "prompt": "b", "answer": "1,000"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    boxed = {"kind": "answer", "answers": {"name": str(file)}, "pattern": r"boxed\{(.+)\}"}
    assert scores_of(boxed, r"\boxed{12}", r"\boxed{1,2}", prompt_id="roots") == [0, 1]
    assert scores_of(boxed, r"\boxed{1000}", r"\boxed{1}", prompt_id="metres") == [1, 0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (r"\frac{1", r"row 2: 'answer' cannot be read as an answer: '\\frac\{1' is neither"),
        ("", "row 2: 'answer' cannot be read as an answer: it is empty"),
        (["4", "four"], "row 2: 'answer' is a list. Write one answer as text"),
    ],
)
def test_an_answer_on_record_that_cannot_be_read_is_an_error_with_its_row(tmp_path, answer, message):
    file = tmp_path / "answers.jsonl"
    rows = [{"prompt": "a", "answer": "#### 4"}, {"prompt": "b", "answer": answer}]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_scorers(
            sections({"check": {"kind": "answer", "answers": {"name": str(file)}}}), ResolvedInputs()
        )


@pytest.fixture
def checks(tmp_path, monkeypatch) -> str:
    """A module of a user's own verifiers."""
    (tmp_path / "own_checks.py").write_text(
        "def brief(prompt, completion):\n"
        "    if completion == 'bad':\n"
        "        raise KeyError('no such thing')\n"
        "    return len(completion) < 5 and prompt[-1]['content'] == 'Hi'\n"
        "def endless(prompt, completion):\n    return float('inf')\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_checks", raising=False)
    return "own_checks"


def function(name: str) -> dict[str, Any]:
    return {"kind": "function", "function": name, "allow_code": True}


def test_a_function_of_ones_own_is_run_only_where_the_recipe_allows_it(checks):
    assert scores_of(function(f"{checks}:brief"), "tiny", "a long answer") == [1, 0]
    with pytest.raises(RecipeError, match="is code that would be run"):
        sections({"check": {"kind": "function", "function": f"{checks}:brief"}})
    assert "own_checks" in sys.modules


def test_a_function_that_is_not_there_names_the_nearest(checks):
    with pytest.raises(RecipeError, match=r"has no function 'breif'. Did you mean 'brief'"):
        scores_of(function(f"{checks}:breif"), "x")
    with pytest.raises(RecipeError, match=r"'own_chekcs' cannot be imported"):
        scores_of(function("own_chekcs:brief"), "x")


def test_a_verifier_that_raises_records_the_row_and_goes_on(checks, caplog):
    (loaded,) = load_scorers(sections({"check": function(f"{checks}:brief")}), ResolvedInputs())
    rows = [sample("tiny"), sample("bad", index=1), sample("also", index=2)]
    seen: list[Any] = []
    values = [row.scores["check"] for row in score(rows, loaded, failed=seen.append)]
    assert values[0] == values[2] == 1
    assert np.isnan(values[1])
    assert [(one.prompt_id, one.sample_index, one.reason) for one in seen] == [
        ("p", 1, "KeyError: 'no such thing'")
    ]
    score(rows, loaded)
    assert "1 rows have no score 'check'; the first is prompt 'p', sample 1: KeyError" in caplog.text


def test_a_verifier_that_gives_no_finite_number_leaves_the_row_without_a_score(checks):
    (loaded,) = load_scorers(sections({"check": function(f"{checks}:endless")}), ResolvedInputs())
    assert loaded([sample("x")])["check"] == [NoScore("the verifier gave inf")]


def test_a_run_counts_the_rows_without_a_score_and_keeps_the_reasons(checks, tmp_path):
    rows = [
        sample(text, prompt_id=f"p{row}") for row, text in enumerate(["tiny", "bad", "also", "a long one"])
    ]
    pq.write_table(samples_table(rows), tmp_path / "samples.parquet")
    content = {
        "stage": "score",
        "data": [{"name": str(tmp_path / "samples.parquet")}],
        "scorers": {"check": function(f"{checks}:brief")},
    }
    with pytest.warns(UnscoredWarning, match="scorers.check: 1 of 4 samples got no score"):
        result = run_stage(check_recipe(content, "test"), tmp_path / "run", progress=False, allow_code=True)
    # 1, none, 1, 0
    assert result.final_metrics["check"].value == pytest.approx(2 / 3)
    assert result.final_metrics["check_failed_rate"].value == 1 / 4
    assert read_manifest(tmp_path / "run")["notes"]["failed"] == {"check": 1}
    (failure,) = json.loads((tmp_path / "run" / "failures" / "part-00000.json").read_text(encoding="utf-8"))
    assert failure == {
        "scorer": "check",
        "prompt_id": "p1",
        "sample_index": 0,
        "reason": "KeyError: 'no such thing'",
    }
    assert np.isnan(read_table(tmp_path / "run" / "scores")["check"].to_numpy()[1])
    select = {
        "stage": "select",
        "data": [{"from": "run"}],
        "by": "check",
        "strategy": "threshold",
        "threshold": 0,
    }
    with pytest.warns(UnscoredWarning, match="1 of 4 samples have no score 'check' and are left out"):
        run_stage(check_recipe(select, "test"), tmp_path / "select", progress=False)
    assert read_table(tmp_path / "select" / "selected")["prompt_id"].to_pylist() == ["p0", "p2", "p3"]


def test_a_scorer_that_scores_no_row_at_all_is_an_error(checks, tmp_path):
    pq.write_table(samples_table([sample("bad")]), tmp_path / "samples.parquet")
    content = {
        "stage": "score",
        "data": [{"name": str(tmp_path / "samples.parquet")}],
        "scorers": {"check": function(f"{checks}:brief")},
    }
    with pytest.raises(
        DataError, match=r"scorers.check: none of 1 samples got a score. The first, prompt 'p'"
    ):
        run_stage(check_recipe(content, "test"), tmp_path / "run", progress=False, allow_code=True)


def test_an_ensemble_is_the_mean_the_minimum_or_the_mean_less_deviations():
    scores = np.array([[1.0, 5.0], [3.0, 5.0]])
    assert combine_scores(scores, "mean").tolist() == [2, 5]
    assert combine_scores(scores, "minimum").tolist() == [1, 5]
    # the standard deviation of 1 and 3 about their mean is 1
    assert combine_scores(scores, "mean_minus_std", k=2).tolist() == [0, 5]


def classifier(source: Path, folder: Path, *, labels: int = 1, seed: int = 0) -> Path:
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=labels)
    model.save_pretrained(folder)
    load_tokenizer(str(source)).save_pretrained(folder)
    return folder


def test_an_ensemble_of_reward_models_keeps_its_members_scores(tiny_model_folder, tmp_path):
    folders = [classifier(tiny_model_folder, tmp_path / str(seed), seed=seed) for seed in range(2)]
    models = [{"name": str(folder)} for folder in folders]
    ensemble = {"kind": "ensemble", "models": models, "combine": "minimum"}
    rows = [sample("River."), sample("Moon moon.", index=1)]
    loaded, *alone = load_scorers(
        sections({"all": ensemble, "a": models[0], "b": models[1]}), ResolvedInputs()
    )
    for scorer in (loaded, *alone):
        rows = score(rows, scorer)  # type: ignore[assignment]
    for row in rows:
        found = row.scores  # type: ignore[attr-defined]
        assert (found["all.1"], found["all.2"]) == (found["a"], found["b"])
        assert found["all"] == min(found["a"], found["b"])
    assert rows[0].scores["a"] != rows[0].scores["b"]  # type: ignore[attr-defined]


def test_a_classifier_with_two_labels_is_refused_before_it_is_loaded(
    tiny_model_folder, tmp_path, monkeypatch
):
    folder = classifier(tiny_model_folder, tmp_path / "two", labels=2)
    monkeypatch.setattr("handbook_utils.sampling.scoring.scorers.reward_model.load_pair", None)
    with pytest.raises(
        ModelError, match=r"a classifier with 2 labels \(LABEL_0, LABEL_1\); a reward model has one"
    ):
        scores_of({"name": str(folder)}, "x")


def test_a_language_model_is_refused_as_a_scorer_its_head_would_be_noise(tiny_model_folder):
    with pytest.raises(ModelError, match="LlamaForCausalLM, so it has no score"):
        scores_of({"name": str(tiny_model_folder)}, "x")


def test_what_is_wrong_with_any_scorer_is_found_before_a_model_is_loaded(
    tiny_model_folder, tmp_path, monkeypatch
):
    folder = classifier(tiny_model_folder, tmp_path / "one")
    monkeypatch.setattr("handbook_utils.sampling.scoring.scorers.reward_model.load_pair", None)
    both = {"proxy": {"name": str(folder)}, "check": {"kind": "json_schema", "schema": {"type": "numbr"}}}
    with pytest.raises(RecipeError, match=r"scorers.check.schema"):
        load_scorers(sections(both), ResolvedInputs())


def test_the_members_of_an_ensemble_are_inputs_of_the_run():
    ensemble = {"kind": "ensemble", "models": [{"from": "a"}, {"from": "b"}]}
    content = {"stage": "score", "data": [{"name": "x"}], "scorers": {"proxy": ensemble}}
    recipe: Any = check_recipe(content, "test")
    named = {key: source.from_ or source.name for key, source in sources_of(recipe)}
    assert named == {"data.0": "x", "scorers.proxy.models.0": "a", "scorers.proxy.models.1": "b"}
    assert check_recipe(recipe_to_dict(recipe), "again") == recipe


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (
            {"kind": "ensembel", "models": []},
            "unknown value 'ensembel' for 'scorers.s.kind'. Did you mean 'ensemble'",
        ),
        ({"kind": "regex", "patern": "x"}, "unknown key 'patern' under 'scorers.s'. Did you mean 'pattern'"),
        ({"kind": "regex", "pattern": "("}, "is no regular expression"),
        ({"name": "x", "dtyp": "auto"}, "unknown key 'dtyp' under 'scorers.s'. Did you mean 'dtype'"),
        (
            {"kind": "ensemble", "models": [{"name": "a", "dtyp": 1}, {"name": "b"}]},
            "under 'scorers.s.models.0'",
        ),
        ({"kind": "function", "function": "nowhere", "allow_code": True}, "write package.module:name"),
        ("pocket:gold", "is a section with keys of its own"),
    ],
)
def test_a_scorer_that_is_misspelt_names_the_nearest(scorer, message):
    with pytest.raises(RecipeError, match=message):
        sections({"s": scorer})
