"""Recipes: YAML and `--set` in, a checked recipe out, and errors that say what to write instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from importlib.resources import files
from operator import or_
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from handbook_utils.errors import RecipeError, suggest
from handbook_utils.schema.mistakes import explained, refuse_values
from handbook_utils.schema.sampling import ScorerSection
from handbook_utils.schema.sections import PipelineStage
from handbook_utils.schema.stage_table import STAGES
from handbook_utils.schema.stages import PipelineRecipe, ScoreRecipe
from handbook_utils.schema.training import StageRecipe
from handbook_utils.schema.yaml import parse_yaml

MAX_RECIPE_BYTES = 1 << 20
CARDS_FILE = "cards.yaml"
SCALES = {"pocket": "pocket", "colab": "colab", "gpu": "qwen3-8b", "node": "zephyr-7b-beta"}
Overrides = Mapping[str, Any] | Sequence[str]


def load_recipe(
    recipe: str | Path | StageRecipe, *, overrides: Overrides = (), seed: int | None = None
) -> StageRecipe:
    """Load and check a recipe.

    Args:
        recipe: a packaged name ("pocket/sft"), the path of a YAML file, or a recipe already loaded.
        overrides: `{"training.max_steps": 10}` or `["training.max_steps=10"]`; values in the
            latter form are YAML. List items are reached by position: `data.0.split=dev`.
        seed: replaces the recipe's seed.
    Raises:
        RecipeError: names the file, the key and the nearest valid name.
    """
    if isinstance(recipe, BaseModel):
        content, where = recipe_to_dict(recipe), f"{recipe.stage} recipe"
    else:
        path = find_recipe(str(recipe))
        content, where = read_recipe_file(path), str(recipe)
    for key, value in parse_overrides(overrides).items():
        _set(content, key, value)
    if seed is not None:
        content["seed"] = seed
    return check_recipe(content, where)


def parse_overrides(overrides: Overrides) -> dict[str, Any]:
    """Overrides as values by dotted key; those from a command line are parsed as YAML."""
    if isinstance(overrides, Mapping):
        return dict(overrides)
    parsed = {}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set {item}: write key=value, such as training.max_steps=10.")
        parsed[key] = parse_yaml(f"value: {value}", f"--set {item}")["value"]
    return parsed


def check_recipe(content: Mapping[str, Any], where: str) -> StageRecipe:
    """Check a recipe's content; `where` opens every error message."""
    stage = content.get("stage")
    if stage is None:
        raise RecipeError(f"{where}: the key 'stage' is missing. Choose from: {', '.join(sorted(STAGES))}.")
    if not isinstance(stage, str) or stage not in STAGES:
        raise RecipeError(f"{where}: unknown stage '{stage}'. {suggest(str(stage), STAGES)}")
    refuse_values(content, where)
    kind = STAGES[stage].recipe
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise RecipeError(explained(error, kind, where)) from None


def scorer_sections(scorers: Sequence[str], *, option: str = "--scorer") -> dict[str, ScorerSection]:
    """Scorers of a command line: `NAME=MODEL`, or `NAME={kind: ...}` in YAML.

    Args:
        scorers: as they are written.
        option: where they were given, which opens every error message.
    Raises:
        RecipeError: names the scorer, the key and the nearest valid name.

    >>> scorer_sections(["brief={kind: length, at_most: 80}"])["brief"].at_most
    80
    """
    content = {}
    for item in scorers:
        name, equals, value = item.partition("=")
        if not equals or not name or not value:
            raise RecipeError(f"{option} {item}: write NAME=MODEL, or NAME={{kind: ...}}.")
        parsed = parse_yaml(f"value: {value}", f"{option} {item}")["value"]
        content[name] = parsed if isinstance(parsed, dict) else {"name": str(parsed)}
    recipe = check_recipe({"stage": "score", "data": [{"name": "rows"}], "scorers": content}, option)
    assert isinstance(recipe, ScoreRecipe)  # by its stage
    return dict(recipe.scorers)


def stage_recipe(pipeline: PipelineRecipe, name: str, *, where: str = "pipeline") -> StageRecipe:
    """The recipe of one stage of a pipeline, with the pipeline's seed and changes in it.

    A changed key replaces the recipe's whole key; `training` is merged field by field.
    """
    stage: PipelineStage = pipeline.stages[name]
    content = read_recipe_file(find_recipe(stage.recipe))
    for key, value in stage.changes.items():
        if key == "training" and isinstance(value, Mapping):
            value = {**(content.get("training") or {}), **value}
        content[key] = value
    if "seed" not in stage.changes:
        content["seed"] = pipeline.seed
    return check_recipe(content, f"{where}, stage '{name}' ({stage.recipe})")


def recipe_names() -> list[str]:
    """Names of the packaged recipes, such as "pocket/sft"."""
    root = files("handbook_utils").joinpath("recipes")
    families = sorted((entry for entry in root.iterdir() if entry.is_dir()), key=lambda entry: entry.name)
    return [
        f"{family.name}/{file.name.removesuffix('.yaml')}"
        for family in families
        for file in sorted(family.iterdir(), key=lambda entry: entry.name)
        if file.name.endswith(".yaml") and file.name != CARDS_FILE
    ]


def recipe_for_scale(stage: str, scale: str) -> str:
    """The packaged recipe of a stage at a scale: pocket, colab, gpu or node.

    Raises:
        RecipeError: unknown scale, or its family has no such recipe; the nearest is named.

    >>> recipe_for_scale("dpo", "gpu")
    'qwen3-8b/dpo'
    """
    if scale not in SCALES:
        raise RecipeError(f"unknown scale '{scale}'. {suggest(scale, SCALES)}")
    name, names = f"{SCALES[scale]}/{stage}", recipe_names()
    if name not in names:
        in_family = [other for other in names if other.startswith(f"{SCALES[scale]}/")]
        raise RecipeError(f"the scale '{scale}' has no recipe '{name}'. {suggest(name, in_family)}")
    return name


def find_recipe(name: str) -> Path:
    """The file of a packaged recipe or of a path."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise _no_such_file(path)
        return path
    names = recipe_names()
    if name not in names:
        raise _no_such_recipe(name, names)
    return Path(str(files("handbook_utils").joinpath("recipes", f"{name}.yaml")))


def _no_such_recipe(name: str, names: Sequence[str]) -> RecipeError:
    if Path(name).is_dir():
        hint = "Name a packaged recipe or a YAML file."
        if (Path(name) / "manifest.json").exists():
            hint += f" To have it read this run, add --set model.from={name}."
        return RecipeError(f"{name}: a folder, not a recipe. {hint}")
    hint = suggest(name, names)
    if hint.startswith("There are"):
        hint = "None is close to it; `handbook recipes` lists them all."
    return RecipeError(f"no packaged recipe is called '{name}'. {hint}")


def _no_such_file(path: Path) -> RecipeError:
    near = [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    hint = f" {suggest(str(path), near)}" if near else ""
    return RecipeError(f"{path}: no such file.{hint}")


def read_recipe_file(path: Path) -> dict[str, Any]:
    """A recipe file's mapping, before it is checked."""
    try:
        size = path.stat().st_size
        if size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: {size:,} bytes; a recipe has at most {MAX_RECIPE_BYTES:,}.")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    except FileNotFoundError:
        raise _no_such_file(path) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from None
    return parse_yaml(text, str(path))


def recipe_to_dict(recipe: BaseModel) -> dict[str, Any]:
    """Plain content of a recipe, every effective value written out."""
    content = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"stage": content.pop("stage"), **content}


def recipe_to_yaml(recipe: BaseModel) -> str:
    """A recipe as YAML; loading it gives the same recipe."""
    content = recipe_to_dict(recipe)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    # PyYAML folds a few rare line breaks (U+0085, U+2028) when it may write Unicode
    return text if yaml.safe_load(text) == content else yaml.safe_dump(content, sort_keys=False)


def recipe_json_schema() -> dict[str, Any]:
    """JSON schema of all recipes, for editors that complete and check YAML."""
    recipes: Any = reduce(or_, (stage.recipe for stage in STAGES.values()))
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[recipes, Field(discriminator="stage")])
    return adapter.json_schema()


def _set(content: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b.0.c` in nested dictionaries and lists; missing dictionaries are made."""
    *parents, last = dotted.split(".")
    node: Any = content
    for part in parents:
        if isinstance(node, list):
            node = node[_position(node, part, dotted)]
        elif isinstance(node, dict):
            node[part] = {} if node.get(part) is None else node[part]
            node = node[part]
        else:
            raise RecipeError(f"--set {dotted}: '{part}' is inside a plain value.")
    if isinstance(node, list):
        node[_position(node, last, dotted)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"--set {dotted}: '{last}' is inside a plain value.")


def _position(items: list[Any], part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise RecipeError(f"--set {dotted}: '{part}' is no position in a list of {len(items)}.")
    return int(part)
