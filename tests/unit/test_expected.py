"""What the pocket recipes give with other seeds: the file fits the recipes, and a stray result is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.pipeline.run import resolve_pipeline
from handbook_utils.records import Estimate, RunResult
from handbook_utils.reporting import expected
from handbook_utils.reporting.claims.claim import project_root
from handbook_utils.reporting.expected import PIPELINE, expected_results, pipeline_settings, unexpected
from handbook_utils.schema.cards import recipe_card
from handbook_utils.schema.recipe import recipe_to_dict


def figure(value: float, unit: str = "nats per token") -> Estimate:
    return Estimate(value, value, value, 0.95, 200, unit, "bootstrap-t")


def recipes() -> dict[str, dict[str, Any]]:
    return {name: recipe_to_dict(recipe) for name, recipe in resolve_pipeline(PIPELINE)[1].items()}


def test_the_stored_figures_are_those_of_the_recipes_as_they_are_now() -> None:
    stored = json.loads(expected.FILE.read_text(encoding="utf-8"))
    measured = {stage: found["settings"] for stage, found in stored.items()}
    assert measured == pipeline_settings(), "measure them anew: make calibrate"
    assert all(each["n"] >= 5 for found in stored.values() for each in found["figures"].values())


def test_the_results_of_the_book_lie_within_what_other_seeds_give() -> None:
    results = json.loads((project_root() / "book" / "results" / "demo.json").read_text(encoding="utf-8"))
    checked = 0
    for section in ("training", "models", "reward_models"):
        for stage, figures in results[section].items():
            for name, each in expected_results(f"demo:{stage}").items():
                assert each.low <= figures[name]["value"] <= each.high, f"{stage}: {name}"
                checked += 1
    assert checked >= 7


@pytest.mark.parametrize(
    ("changes", "value", "told"),
    [
        ({}, "value", False),
        ({"seed": 7, "description": "mine"}, "high", False),
        ({}, "above", True),
        ({"seed": 7}, "above", True),
        ({"global_batch_size": 32}, "above", False),  # a recipe of one's own: nobody knows what it gives
    ],
)
def test_a_figure_is_told_where_hardly_any_run_of_the_same_recipe_gives_it(
    changes: dict[str, Any], value: str, told: bool
) -> None:
    known = expected_results("demo:sft")["eval_loss"]
    found = known.high + 1e-3 if value == "above" else getattr(known, value)
    lines = unexpected(recipes()["sft"] | changes, {"eval_loss": figure(found), "words": figure(0)})
    assert [line.partition(" ")[0] for line in lines] == ["eval_loss"] * told
    if told:
        assert f"{known.low:.3f} to {known.high:.3f}" in lines[0]


def test_the_command_line_says_what_is_out_of_the_ordinary(tmp_path: Path, capsys: Any) -> None:
    from handbook_utils.cli.view import show_result

    manifest = {"format": 1, "stage": "sft", "status": "finished", "recipe": recipes()["sft"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    result = RunResult("sft", tmp_path, {"eval_loss": figure(3.0)}, 1.0, 1.0)
    show_result(result, json=False)
    assert "caution: eval_loss is 3.000" in capsys.readouterr().out
    show_result(result, json=True)
    assert json.loads(capsys.readouterr().out)["cautions"][0].startswith("eval_loss is 3.000")
    show_result(replace(result, final_metrics={}), json=True)
    assert json.loads(capsys.readouterr().out)["cautions"] == []


def test_a_card_shows_what_to_expect(handbook: Any) -> None:
    code, out, _ = handbook("recipes", "pocket/sft")
    assert code == 0
    assert "demo:sft: eval_loss" in " ".join(out.split())
    assert "with another seed" in " ".join(out.split())
    # every place that a card of the pipeline's names is a stage of it
    for name in ("sft", "reward", "dpo", "rft"):
        for place in recipe_card(f"pocket/{name}").measured:
            assert place.removeprefix("demo:") in recipes()
