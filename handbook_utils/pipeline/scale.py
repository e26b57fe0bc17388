"""A short training run at a scale: what a notebook does with a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handbook_utils.errors import RecipeError
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.records import RunResult
from handbook_utils.schema.recipe import Overrides, load_recipe, recipe_for_scale
from handbook_utils.schema.training import TrainingRecipe

HELD_OUT_SHARE = 5  # a fifth as many held-out rows


def train_at_scale(
    stage: str,
    scale: str,
    out: str | Path,
    *,
    max_rows: int = 1000,
    overrides: Overrides = (),
    seed: int | None = None,
) -> RunResult:
    """Train by a scale's recipe on at most `max_rows` rows of each source, before all of them are paid for.

    Everything else stays as in the recipe: model, precision, adapter, batch, learning rate. For the whole
    run, call `run_stage(recipe_for_scale(stage, scale), out)`.

    Args:
        stage: a training stage's recipe: "sft", "reward", "dpo".
        scale: "pocket", "colab", "gpu" or "node".
        out: the run folder; a `from: NAME` in the recipe reads the folder NAME beside it.
        max_rows: of each source of `data`, drawn by the seed; of `eval_data` a fifth of it.
        overrides: changes to the recipe, as for `run_stage`; they come before the rows are drawn.
        seed: replaces the recipe's seed.
    Returns:
        As `run_stage`.
    Raises:
        RecipeError: unknown scale, no such recipe at it, or one that trains nothing.
    """
    name = recipe_for_scale(stage, scale)
    recipe = load_recipe(name, overrides=overrides, seed=seed)
    if not isinstance(recipe, TrainingRecipe):
        raise RecipeError(f"{name}: its stage is '{recipe.stage}', which trains nothing. Use run_stage.")
    limits: dict[str, Any] = {
        f"{section}.{index}.max_rows": min(limit, source.max_rows or limit)
        for section, sources, limit in (
            ("data", recipe.data, max_rows),
            ("eval_data", recipe.eval_data, max(1, max_rows // HELD_OUT_SHARE)),
        )
        for index, source in enumerate(sources)
    }
    return run_stage(load_recipe(recipe, overrides=limits), out)
