"""Recipe cards: where each hyperparameter is from, what hardware it is for, and what was measured by whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from handbook_utils.errors import RecipeError
from handbook_utils.schema.recipe import CARDS_FILE, find_recipe, read_recipe_file, recipe_names
from handbook_utils.schema.yaml import parse_yaml

# shown on every card, so that no card can leave it out
NOT_LOADED = (
    "No published checkpoint, tokenizer or data set was ever loaded in our tests. What they do with a "
    "training recipe: check it against its trainer's own configuration, and train a shrunk random model of "
    "its architecture for two steps on a few made-up rows of its data's form."
)
# sections and keys that are no choice of a number: what is read, and how much at once
NOT_A_HYPERPARAMETER = {
    *("stage", "description", "data", "eval_data", "reference", "scorers", "baselines", "launch", "stages"),
    *("prompts_per_part", "rows_per_batch", "model.name", "model.from", "model.revision", "model.adapter"),
    *("annotator", "arms", "measures", "by", "seed", "model.chat_template"),
    *("engine", "bad_prompts", "long_prompts", "executor", "select.by"),
    *("train.stage", "train.launch", "evaluate.data", "evaluate.samples", "evaluate.scorers"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Published(_Strict):
    """A figure that others report. It is theirs: nothing here has reproduced it."""

    figure: str
    source: str


class RecipeCard(_Strict):
    """What to know before running a recipe.

    Attributes:
        hardware: what it is meant for.
        runs_here: whether the tests run it as it is, its own model and data included.
        about: what the family is.
        upstream: the alignment-handbook's file it is converted from, at commit 925acdf.
        processes: GPUs that file's per-device batch size is meant for.
        sources: where hyperparameters are from, by key; "*" for all that are not named.
        changed: what differs from the converted file, by dotted key, and why.
        remarks: what a reader should know, such as where paper, model card and file disagree.
        measured: figures of our own, as places in the book's results; none where nothing was run.
        published: what others report.
    """

    hardware: str
    runs_here: bool = False
    about: str = ""
    upstream: str = ""
    processes: int = 8
    sources: dict[str, str] = Field(default_factory=dict)
    changed: dict[str, str] = Field(default_factory=dict)
    remarks: list[str] = Field(default_factory=list)
    measured: list[str] = Field(default_factory=list)
    published: list[Published] = Field(default_factory=list)

    @property
    def status(self) -> str:
        """For lists: how far it was ever run by us."""
        if self.measured:
            return "measured here"
        return "runs here" if self.runs_here else "never run here at scale"


def recipe_card(name: str) -> RecipeCard:
    """The card of a packaged recipe: its family's values, and its own over them.

    Raises:
        RecipeError: no such packaged recipe, or it has no card.
    """
    if name not in recipe_names():
        find_recipe(name)  # raises with the nearest name, unless it is a file of the reader's own
        raise RecipeError(f"{name}: not a packaged recipe, so it has no card.")
    family, _, short = name.partition("/")
    shared = _family_cards(family)
    own = shared["recipes"].get(short)
    if own is None:
        raise RecipeError(f"recipes/{family}/{CARDS_FILE}: no card for '{short}'.")
    merged = {key: value for key, value in shared.items() if key != "recipes"}
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    try:
        return RecipeCard.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"recipes/{family}/{CARDS_FILE}, '{short}': {error}") from None


def card_names(family: str) -> list[str]:
    """The recipes that a family's cards speak of."""
    return [f"{family}/{short}" for short in _family_cards(family)["recipes"]]


def hyperparameters(name: str) -> list[tuple[str, Any, str]]:
    """Every hyperparameter a packaged recipe sets: (dotted key, value, where it is from).

    Raises:
        RecipeError: one of them has no source.
    """
    card = recipe_card(name)
    content = read_recipe_file(find_recipe(name))
    return [(key, value, _source(name, card, key)) for key, value in _flat(content, "")]


def _source(name: str, card: RecipeCard, key: str) -> str:
    """The most particular statement about a key: its own, its section's, the file's, everything's."""
    for stated in (card.changed, card.sources):
        for part in (key, key.partition(".")[0]):
            if part in stated:
                return stated[part]
    if card.upstream:
        return f"alignment-handbook, {card.upstream}"
    if "*" in card.sources:
        return card.sources["*"]
    raise RecipeError(f"{name}: the card does not say where '{key}' is from.")


def _flat(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        if dotted in NOT_A_HYPERPARAMETER:
            continue
        if isinstance(value, Mapping) and not prefix:
            yield from _flat(value, f"{key}.")
        else:
            yield dotted, value


@cache
def _family_cards(family: str) -> dict[str, Any]:
    place = files("handbook_utils").joinpath("recipes", family, CARDS_FILE)
    if not place.is_file():
        raise RecipeError(f"recipes/{family}: there is no {CARDS_FILE}.")
    content = parse_yaml(place.read_text(encoding="utf-8"), f"recipes/{family}/{CARDS_FILE}")
    return {"recipes": {}, **content}
