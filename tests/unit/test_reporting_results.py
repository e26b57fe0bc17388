"""Results: the demo's figures as data and as tables, and where they come from."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from handbook_utils.errors import DataError, RunFolderError
from handbook_utils.reporting.results import (
    device_name,
    model_rows,
    pipeline_results,
    training_curves,
    write_pipeline_results,
    write_result,
)
from handbook_utils.reporting.runs import read_pipeline
from handbook_utils.reporting.summary import summary_table


@pytest.fixture
def book(tmp_path, monkeypatch):
    (tmp_path / "_config.yml").touch()
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "book" / "results"


def test_a_result_says_where_it_comes_from(book):
    path = write_result("toy", {"tokens_per_s": 5}, seeds=[0, 1])
    assert path == book / "toy.json"
    stored = json.loads(path.read_text())
    assert stored["tokens_per_s"] == 5
    assert stored["seeds"] == [0, 1]
    assert stored["versions"]["python"]
    assert {"commit", "device", "date"} <= stored.keys()


def test_a_payload_cannot_hide_where_it_comes_from(book):
    with pytest.raises(DataError, match="device"):
        write_result("toy", {"device": "a better one"}, seeds=[0])


def test_a_pipelines_results_hold_every_section(finished_pipeline):
    results = pipeline_results(finished_pipeline)
    assert set(results["models"]) == {
        "evaluate-base", "evaluate-sft", "evaluate-rft", "evaluate-rft-control", "evaluate-dpo",
    }  # fmt: skip
    assert results["models"]["evaluate-dpo"]["label"] == "DPO"
    assert results["models"]["evaluate-dpo"]["gold"]["low"] > 0
    assert results["reward_models"]["reward"]["accuracy_gold"]["value"] == 0.75
    assert results["best_of_n"]["best-of-n"]["proxy.gold@64"]["n"] == 60
    assert results["claims"]["dpo-beats-sft"]["holds"] is True
    assert results["training"]["sft"]["eval_loss"]["unit"] == "nats per token"
    assert results["cost"]["sft"]["tokens_per_s"] > 0
    assert results["total"]["runtime_s"] >= results["cost"]["sft"]["runtime_s"]
    json.dumps(results, allow_nan=False)


def test_the_books_results_carry_the_runs_own_versions(finished_pipeline, book):
    stored = json.loads(write_pipeline_results(finished_pipeline).read_text())
    manifest = json.loads((finished_pipeline / "sft" / "manifest.json").read_text())
    assert stored["versions"] == manifest["versions"]
    assert stored["seeds"] == [manifest["seed"]]


def test_a_models_gain_is_over_its_first_baseline_and_others_follow(finished_pipeline):
    rows = {row.name: row for row in model_rows(read_pipeline(finished_pipeline))}
    rft = rows["evaluate-rft"]
    metrics = read_pipeline(finished_pipeline)["evaluate-rft"].final_metrics
    assert rft.baseline == "SFT"
    assert rft.metrics["gain"] == metrics["gold_gain_vs_evaluate-sft"]
    assert [label for label, _ in rft.others] == ["tuned on random samples (control)"]
    assert rft.others[0][1]["gain"] == metrics["gold_gain_vs_evaluate-rft-control"]
    assert "gain" not in rows["evaluate-base"].metrics


def test_curves_of_preference_training_are_kept_and_other_runs_have_none(finished_pipeline):
    views = read_pipeline(finished_pipeline)
    curves = training_curves(views["dpo"])
    assert curves["step"] == [50]
    assert curves["rewards/margins"] == [0.5]
    assert training_curves(views["sft"]) == {}


def shown(folder, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(summary_table(folder))
    return stream.getvalue()


def test_the_demos_table_shows_models_reward_models_and_both_arms_with_intervals(finished_pipeline):
    text = shown(finished_pipeline, 100)
    gold = read_pipeline(finished_pipeline)["evaluate-dpo"].final_metrics["gold"]
    value, interval = str(gold).split(" ", 1)
    assert value in text
    assert interval in text
    assert "selected by proxy" in text
    assert "selected by control" in text
    assert "as the gold reward" in text
    for n in (1, 2, 4, 8, 16, 32, 64):
        assert f"\n  {n} " in text


def test_the_demos_table_fits_a_terminal_of_80_columns(finished_pipeline):
    lines = shown(finished_pipeline, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        pipeline_results(tmp_path)


def test_a_machine_is_named_by_its_gpus_where_it_has_any():
    assert device_name({"cpu": "x", "cores": 8, "gpus": ["H200", "H200"]}) == "2 x H200"
    assert device_name({"cpu": "x", "cores": 8}) == "x, 8 cores"
