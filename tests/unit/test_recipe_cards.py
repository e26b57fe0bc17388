"""Every packaged recipe has a card: sources for all it sets, and no claim that nobody has checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.cli.recipes import card_sections
from handbook_utils.convert.flat import convert_recipe
from handbook_utils.errors import RecipeError
from handbook_utils.schema.cards import NOT_LOADED, card_names, hyperparameters, recipe_card
from handbook_utils.schema.recipe import SCALES, find_recipe, read_recipe_file, recipe_for_scale, recipe_names

ROOT = Path(__file__).parents[2]
# hyperparameters of huggingface/alignment-handbook, recipes/ at commit 925acdf, Apache-2.0
FACTS = json.loads((ROOT / "tests" / "data" / "upstream_recipes.json").read_text(encoding="utf-8"))["recipes"]
FROM_UPSTREAM = [name for name in recipe_names() if recipe_card(name).upstream]


@pytest.mark.parametrize("name", recipe_names())
def test_every_hyperparameter_has_a_source(name: str) -> None:
    for key, _, source in hyperparameters(name):
        assert len(source) > 3, key


def test_every_card_belongs_to_a_recipe() -> None:
    families = {name.partition("/")[0] for name in recipe_names()}
    assert len(families) > 12
    cards = {name for family in families for name in card_names(family)}
    assert cards == set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_card_says_that_no_published_model_or_data_was_ever_loaded(name: str) -> None:
    shown = dict(card_sections(recipe_card(name)))
    assert shown["Not run here"] == [NOT_LOADED]
    assert "No published checkpoint, tokenizer or data set was ever loaded in our tests" in NOT_LOADED
    assert shown["Hardware"][0]


def test_what_was_measured_is_in_the_books_results() -> None:
    places = [place for name in recipe_names() for place in recipe_card(name).measured]
    assert len(places) > 10
    for place in places:
        file, _, run = place.partition(":")
        assert run in json.loads((ROOT / "book" / "results" / f"{file}.json").read_text())["cost"], place


def test_all_22_upstream_recipes_are_packaged_each_once() -> None:
    files = [recipe_card(name).upstream for name in FROM_UPSTREAM]
    assert len(files) == 22
    assert sorted(files) == sorted(name for name in FACTS if not name.startswith("accelerate_configs/"))


def dotted(content: dict[str, Any]) -> dict[str, Any]:
    """Keys of sections as `section.key`; `launch` stays whole."""
    flat = {}
    for key, value in content.items():
        if isinstance(value, dict) and key != "launch":
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


@pytest.mark.parametrize("name", FROM_UPSTREAM)
def test_a_packaged_upstream_recipe_is_what_convert_gives_but_for_what_its_card_says(name: str) -> None:
    card = recipe_card(name)
    stage = card.upstream.split("/")[1]
    converted, _ = convert_recipe(FACTS[card.upstream], stage=stage, processes=card.processes)
    ours = dotted(read_recipe_file(find_recipe(name)))
    theirs = dotted(converted)
    del ours["description"]
    differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert differing == set(card.changed)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "pipeline"])
def test_every_scale_has_the_recipes_of_a_whole_course(scale: str, stage: str) -> None:
    assert recipe_for_scale(stage, scale) == f"{SCALES[scale]}/{stage}"


@pytest.mark.parametrize(
    ("stage", "scale", "message"),
    [
        ("sft", "colap", "unknown scale 'colap'. Did you mean 'colab'?"),
        ("sfft", "gpu", "the scale 'gpu' has no recipe 'qwen3-8b/sfft'. Did you mean 'qwen3-8b/sft'?"),
    ],
)
def test_a_scale_or_recipe_that_is_not_there_names_the_nearest(stage: str, scale: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_for_scale(stage, scale)
    assert str(caught.value) == message


def test_a_card_of_a_file_of_ones_own_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("stage: sft\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="not a packaged recipe"):
        recipe_card(str(file))


def test_a_misspelt_card_names_the_nearest_recipe() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'zephyr-7b-beta/dpo'"):
        recipe_card("zephyr-7b-beta/dpoo")
