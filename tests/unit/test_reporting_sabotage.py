"""Sabotage: every claim names a break, only what must rerun does, and survivors are found."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pyarrow as pa
import pytest
from reporting_fakes import use_fakes

from handbook_utils.errors import DataError, RecipeError
from handbook_utils.reporting.claims import breaks
from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS, Sabotage, check_pipeline_claims
from handbook_utils.reporting.claims.sabotage import grouped, is_cheap, main, run_sabotages, stages_to_rerun
from handbook_utils.reporting.runs import read_pipeline
from handbook_utils.runs.atomic import sha256_of
from handbook_utils.schema.stage_table import training_stages

CLAIMS = {each.id: each for each in PIPELINE_CLAIMS}


@pytest.fixture(autouse=True)
def fakes(monkeypatch, tmp_path):
    use_fakes(monkeypatch)
    monkeypatch.setenv("HANDBOOK_CLAIMS_DIR", str(tmp_path / "claims"))


def test_every_claim_of_the_pipeline_has_a_sabotage():
    assert len(PIPELINE_CLAIMS) >= 8
    assert all(each.sabotages for each in PIPELINE_CLAIMS)


def test_every_claim_has_a_cheap_sabotage_for_each_push(finished_pipeline):
    views = read_pipeline(finished_pipeline)
    for each in PIPELINE_CLAIMS:
        assert any(is_cheap(views, sabotage, each) for sabotage in each.sabotages), each.id


def test_claim_ids_are_unique():
    assert len(CLAIMS) == len(PIPELINE_CLAIMS)


def test_sabotages_of_one_name_break_the_same_thing():
    for sabotage, under_it in grouped(PIPELINE_CLAIMS):
        same = [s for each in under_it for s in each.sabotages if s.key == sabotage.key]
        assert all(
            s.changes == sabotage.changes and (s.table is None) == (sabotage.table is None) for s in same
        )


def test_all_claims_hold_on_the_arithmetic_pipeline(finished_pipeline, tmp_path):
    records = check_pipeline_claims(read_pipeline(finished_pipeline))
    assert {record.id for record in records} == set(CLAIMS)
    assert len(list((tmp_path / "claims").glob("*.json"))) == len(CLAIMS)


def test_every_sabotage_makes_its_claim_fail(finished_pipeline):
    outcomes = run_sabotages(finished_pipeline)
    assert len(outcomes) == sum(len(each.sabotages) for each in PIPELINE_CLAIMS)
    assert [(o.claim, o.says, o.detail) for o in outcomes if o.result != "failed" or not o.held_before] == []


def test_sabotage_leaves_the_finished_runs_as_they_were(finished_pipeline, tmp_path):
    def content():
        return {str(p): sha256_of(p) for p in finished_pipeline.rglob("*") if p.is_file()}

    before = content()
    run_sabotages(finished_pipeline, ids=["dpo-beats-sft", "best-of-4-beats-one"])
    assert content() == before
    assert not (tmp_path / "claims").exists()  # a broken figure never becomes a record


def test_only_stages_between_the_break_and_the_claim_run_again(finished_pipeline):
    views = read_pipeline(finished_pipeline)
    swapped = Sabotage("preferences", "swap", breaks.swap_chosen_and_rejected)
    assert stages_to_rerun(views, swapped, CLAIMS["dpo-beats-sft"]) == ["dpo", "evaluate-dpo"]
    untrained = Sabotage("dpo", "no training", changes={"training.learning_rate": 0.0})
    assert stages_to_rerun(views, untrained, CLAIMS["dpo-beats-sft"]) == ["dpo", "evaluate-dpo"]


def test_cheap_means_that_nothing_is_trained(finished_pipeline):
    views = read_pipeline(finished_pipeline)
    claim = CLAIMS["dpo-beats-sft"]
    assert not is_cheap(views, Sabotage("preferences", "swap", breaks.swap_chosen_and_rejected), claim)
    assert not is_cheap(views, Sabotage("dpo", "lr 0", changes={"training.learning_rate": 0.0}), claim)
    assert is_cheap(views, Sabotage("dpo", "one step", changes={"training.max_steps": 1}), claim)
    assert is_cheap(views, Sabotage("evaluate-dpo", "sft", changes={"model.from": "sft"}), claim)


def test_cheap_sabotages_train_nothing(finished_pipeline, monkeypatch):
    from reporting_fakes import STAGES

    def stage_function(stage):
        def run(recipe, folder):
            assert stage not in training_stages() or recipe.training["max_steps"] <= 5
            return STAGES[stage](recipe, folder)

        return run

    monkeypatch.setattr("handbook_utils.pipeline.stages.stage_function", stage_function)
    outcomes = run_sabotages(finished_pipeline, cheap_only=True)
    assert {o.claim for o in outcomes} == set(CLAIMS)
    assert all(o.is_fine for o in outcomes)


def harmless(claim):
    """The claim with a break that breaks nothing."""
    return replace(claim, sabotages=(Sabotage("scores", "nothing at all", lambda table: table),))


def test_a_claim_that_survives_is_reported(finished_pipeline):
    (outcome,) = run_sabotages(finished_pipeline, claims=[harmless(CLAIMS["best-of-4-beats-one"])])
    assert (outcome.result, outcome.is_fine) == ("survived", False)


def test_a_break_that_cannot_be_applied_shows_nothing_and_is_no_success(finished_pipeline):
    wrong = replace(
        CLAIMS["best-of-4-beats-one"], sabotages=(Sabotage("scores", "typo", breaks.negate("prox")),)
    )
    (outcome,) = run_sabotages(finished_pipeline, claims=[wrong])
    assert outcome.result == "error"
    assert "Did you mean 'proxy'?" in outcome.detail


def test_an_unknown_claim_is_refused_with_the_nearest_name(finished_pipeline):
    with pytest.raises(RecipeError, match="Did you mean 'dpo-beats-sft'"):
        run_sabotages(finished_pipeline, ids=["dpo-beat-sft"])


def test_the_command_ends_with_1_when_a_claim_survives(finished_pipeline, monkeypatch, capsys):
    monkeypatch.setattr(
        "handbook_utils.reporting.claims.sabotage.run_sabotages",
        lambda *a, **k: run_sabotages(finished_pipeline, claims=[harmless(CLAIMS["best-of-4-beats-one"])]),
    )
    assert main([str(finished_pipeline), "--no-notebooks", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["result"] == "survived"


def test_the_command_ends_with_0_when_all_fail(finished_pipeline, capsys):
    assert main([str(finished_pipeline), "--cheap", "--only", "best-of-4-beats-one", "--no-notebooks"]) == 0
    assert re.search(r"best-of-4-bea", capsys.readouterr().out)


def test_the_command_ends_with_2_without_runs(tmp_path, capsys):
    assert main([str(tmp_path), "--no-notebooks"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_swapping_moves_gold_with_the_answers():
    pairs = pa.table({"chosen": ["a"], "rejected": ["b"], "gold_chosen": [1.0], "gold_rejected": [0.0]})
    assert breaks.swap_chosen_and_rejected(pairs).to_pylist() == [
        {"chosen": "b", "rejected": "a", "gold_chosen": 0.0, "gold_rejected": 1.0}
    ]


def test_score_breaks_change_one_column_and_no_type():
    table = pa.table({"proxy": [1.0, -2.0], "gold": [0.5, 0.25]})
    assert breaks.negate("proxy")(table)["proxy"].to_pylist() == [-1.0, 2.0]
    assert breaks.constant("proxy")(table)["proxy"].to_pylist() == [0.0, 0.0]
    assert breaks.replace("proxy", "gold")(table)["proxy"].to_pylist() == [0.5, 0.25]
    for change in (breaks.negate("proxy"), breaks.constant("proxy"), breaks.replace("proxy", "gold")):
        assert change(table).schema == table.schema
        assert change(table)["gold"].to_pylist() == [0.5, 0.25]


def test_a_break_of_a_column_that_is_not_there_is_an_error():
    with pytest.raises(DataError, match="Did you mean 'proxy'"):
        breaks.negate("prox")(pa.table({"proxy": [1.0]}))
