"""Sabotage: every claim names a break, only what must rerun does, and survivors are found."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pytest
from reporting_fakes import use_fakes

from handbook_utils.errors import DataError
from handbook_utils.reporting.claims import breaks
from handbook_utils.reporting.claims.line_breaks import break_package
from handbook_utils.reporting.claims.matrix import surviving
from handbook_utils.reporting.claims.notebook_breaks import MECHANISMS
from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS, Sabotage, check_pipeline_claims
from handbook_utils.reporting.claims.sabotage import grouped, main, stages_to_rerun, try_sabotage
from handbook_utils.reporting.runs import read_pipeline
from handbook_utils.runs.atomic import sha256_of

CLAIMS = {each.id: each for each in PIPELINE_CLAIMS}


@pytest.fixture(autouse=True)
def fakes(monkeypatch, tmp_path):
    use_fakes(monkeypatch)
    monkeypatch.setenv("HANDBOOK_CLAIMS_DIR", str(tmp_path / "claims"))


def test_every_claim_of_the_pipeline_has_breaks_of_two_mechanisms():
    assert len(PIPELINE_CLAIMS) >= 8
    for each in PIPELINE_CLAIMS:
        assert len({sabotage.mechanism for sabotage in each.sabotages}) >= 2, each.id
        assert {sabotage.mechanism for sabotage in each.sabotages} <= set(MECHANISMS)


def test_claim_ids_are_unique():
    assert len(CLAIMS) == len(PIPELINE_CLAIMS)


def test_no_two_sabotages_share_a_name():
    distinct = {id(sabotage): sabotage.name for each in PIPELINE_CLAIMS for sabotage in each.sabotages}
    assert len(set(distinct.values())) == len(distinct)


@pytest.mark.parametrize(
    "changes", [{"training.learning_rate": 0.0}, {"training.max_steps": 1}, {"data": []}], ids=str
)
def test_a_sabotage_that_only_keeps_a_run_from_learning_is_refused(changes):
    with pytest.raises(DataError, match="breaks no mechanism"):
        Sabotage("untrained", "sft", "model", "nothing is learned", changes=changes)


def test_every_break_of_code_fits_the_package(tmp_path):
    broken = [sabotage for sabotage, _ in grouped(PIPELINE_CLAIMS) if sabotage.code]
    assert broken
    for number, sabotage in enumerate(broken):
        break_package(*sabotage.code, tmp_path / str(number))


def test_all_claims_hold_on_the_arithmetic_pipeline(finished_pipeline, tmp_path):
    records = check_pipeline_claims(read_pipeline(finished_pipeline))
    assert {record.id for record in records} == set(CLAIMS)
    assert len(list((tmp_path / "claims").glob("*.json"))) == len(CLAIMS)


def outcomes(pipeline):
    """By name what each sabotage does that breaks no code: arithmetic stages have none of the package's."""
    views = read_pipeline(pipeline)
    return {
        sabotage.name: ([each.id for each in failing], try_sabotage(views, sabotage, failing))
        for sabotage, failing in grouped(PIPELINE_CLAIMS)
        if sabotage.code is None
    }


def test_every_sabotage_makes_its_claims_fail(finished_pipeline):
    found = outcomes(finished_pipeline)
    assert len(found) >= 12
    for name, (failing, tried) in found.items():
        assert surviving({"fails": failing, "claims": tried.claims}) == [], (name, tried)


def test_a_sabotage_judges_every_claim_that_it_reaches(finished_pipeline):
    found = outcomes(finished_pipeline)
    # the SFT model in DPO's place: both claims about DPO, and nothing else was run again
    assert set(found["sft-for-dpo"][1].claims) == {"dpo-beats-sft", "dpo-wins"}
    # with the proxy of another row the proxy goes on rising: that claim alone would not notice
    assert found["proxy-of-the-next"][1].claims["proxy-keeps-rising"] == "held"


def test_sabotage_leaves_the_finished_runs_as_they_were(finished_pipeline, tmp_path):
    def content():
        return {str(p): sha256_of(p) for p in finished_pipeline.rglob("*") if p.is_file()}

    before = content()
    outcomes(finished_pipeline)
    assert content() == before
    assert not (tmp_path / "claims").exists()  # a broken figure never becomes a record


def test_only_stages_between_the_break_and_the_claim_run_again(finished_pipeline):
    views = read_pipeline(finished_pipeline)
    swapped = Sabotage("swap", "preferences", "labels", "swap", breaks.swap_chosen_and_rejected)
    assert stages_to_rerun(views, swapped, CLAIMS["dpo-beats-sft"]) == ["dpo", "evaluate-dpo"]
    from_base = Sabotage("base", "dpo", "model", "from the base", changes={"model": {"name": "pocket:base"}})
    assert stages_to_rerun(views, from_base, CLAIMS["dpo-beats-sft"]) == ["dpo", "evaluate-dpo"]


def broken(views, claim, **how):
    """What the claim does under one break of the scores."""
    sabotage = Sabotage("test", "scores", "judge", "a test", **how)
    return try_sabotage(views, sabotage, [claim])


def test_a_claim_that_survives_is_reported(finished_pipeline):
    claim = CLAIMS["best-of-4-beats-one"]
    tried = broken(read_pipeline(finished_pipeline), claim, table=lambda table: table)
    assert tried.claims[claim.id] == "held"
    assert surviving({"fails": [claim.id], "claims": tried.claims}) == [claim.id]


def test_a_break_that_cannot_be_applied_shows_nothing_and_is_no_success(finished_pipeline):
    claim = CLAIMS["best-of-4-beats-one"]
    tried = broken(read_pipeline(finished_pipeline), claim, table=breaks.negate("prox"))
    assert tried.claims[claim.id] is None
    assert "Did you mean 'proxy'?" in tried.stopped[0]
    assert surviving({"fails": [claim.id], "claims": tried.claims}) == [claim.id]


def harmless(monkeypatch, table):
    """One claim and one break, as all that there is."""
    sabotage = Sabotage("nothing", "scores", "judge", "nothing at all", table)
    claims = (replace(CLAIMS["best-of-4-beats-one"], sabotages=(sabotage,)),)
    monkeypatch.setattr("handbook_utils.reporting.claims.sabotage.PIPELINE_CLAIMS", claims)


@pytest.mark.parametrize(("table", "status"), [(lambda table: table, 1), (breaks.negate("proxy"), 0)])
def test_the_command_ends_with_1_when_a_claim_survives(
    finished_pipeline, monkeypatch, tmp_path, table, status
):
    harmless(monkeypatch, table)
    results = tmp_path / "sabotage.json"
    assert main([str(finished_pipeline), "--only", "pipeline", "--results", str(results)]) == status
    stored = json.loads(results.read_text())["places"]["pipeline"]["nothing"]
    assert stored["claims"]["best-of-4-beats-one"] == ("held" if status else "failed")
    assert stored["line"] == "tables of scores: nothing at all"


def test_the_command_ends_with_2_without_runs(tmp_path, capsys):
    results = ["--results", str(tmp_path / "x.json")]
    assert main([str(tmp_path), "--only", "pipeline", *results]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert main(["--only", "pipeline", *results]) == 2
    assert "name it first" in capsys.readouterr().err


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
    assert breaks.shift("proxy")(table)["proxy"].to_pylist() == [-2.0, 1.0]
    assert breaks.swap("proxy", "gold")(table)["gold"].to_pylist() == [1.0, -2.0]
    for change in (breaks.negate("proxy"), breaks.constant("proxy"), breaks.replace("proxy", "gold")):
        assert change(table).schema == table.schema
        assert change(table)["gold"].to_pylist() == [0.5, 0.25]


def test_a_break_of_a_column_that_is_not_there_is_an_error():
    with pytest.raises(DataError, match="Did you mean 'proxy'"):
        breaks.negate("prox")(pa.table({"proxy": [1.0]}))
