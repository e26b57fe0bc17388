"""A short run at a scale is the scale's recipe with fewer rows, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handbook_utils import train_at_scale
from handbook_utils.errors import RecipeError
from handbook_utils.pipeline import scale as module
from handbook_utils.schema.recipe import SCALES, check_recipe, load_recipe, recipe_for_scale, recipe_to_dict


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The recipes that would have been run."""
    recipes: list[Any] = []
    monkeypatch.setattr(module, "run_stage", lambda recipe, out: recipes.append(recipe))
    return recipes


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_only_the_rows_differ_from_the_scales_recipe(
    stage: str, scale: str, asked: list[Any], tmp_path: Path
) -> None:
    train_at_scale(stage, scale, tmp_path / "run", max_rows=100)
    short = recipe_to_dict(asked[0])
    whole = recipe_to_dict(load_recipe(recipe_for_scale(stage, scale)))
    assert [source.pop("max_rows") for source in short["data"]] == [100] * len(whole["data"])
    assert {source.pop("max_rows") for source in short["eval_data"]} <= {20}
    for source in (*whole["data"], *whole["eval_data"]):
        source.pop("max_rows", None)
    assert short == whole


def test_a_recipe_that_draws_fewer_rows_keeps_its_number(asked: list[Any], tmp_path: Path) -> None:
    train_at_scale("sft", "colab", tmp_path / "run", overrides={"data.0.max_rows": 7}, seed=3)
    assert asked[0].data[0].max_rows == 7
    assert asked[0].eval_data[0].max_rows == 200
    assert asked[0].seed == 3


def test_a_recipe_that_trains_nothing_is_refused(asked: list[Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="pocket/evaluate: its stage is 'evaluate', which trains nothing"):
        train_at_scale("evaluate", "pocket", tmp_path / "run")
    assert asked == []


def test_an_evaluation_without_scorers_compares_with_no_baseline() -> None:
    content = {"stage": "evaluate", "model": {"name": "pocket:base"}, "data": [{"name": "pocket:prompts"}]}
    assert check_recipe(content | {"scorers": {}}, "here")
    with pytest.raises(RecipeError, match="`baselines` are compared by the first of `scorers`"):
        check_recipe(content | {"scorers": {}, "baselines": [{"from": "before"}]}, "here")
