"""Direct preference optimisation: preference pairs, with the start model as the reference."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from handbook_utils.recipe_schema import DpoRecipe
from handbook_utils.records import Estimate
from handbook_utils.run_folder import RunFolder
from handbook_utils.training.figures import implicit_reward_figures
from handbook_utils.training.fit import fit, load_rows
from handbook_utils.training.plan import setting
from handbook_utils.training.start import load_reference


def run_dpo(recipe: DpoRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Train on preference pairs into `model/` (Rafailov et al. 2023).

    Returns:
        Where the recipe has `eval_data`: `accuracy` and `margin` of the implicit reward on held-out pairs.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    Book: chapter "Direct preference optimisation".
    """
    train, held_out = load_rows(recipe, run, kind="preference")

    def measure(model: Any, tokenizer: Any, rows: Dataset) -> dict[str, Estimate]:
        models, beta = (model, load_reference(recipe, run)), float(setting(recipe, "beta"))
        return implicit_reward_figures(models, tokenizer, rows, beta=beta, seed=recipe.seed)

    return fit(recipe, run, train=train, evaluation=held_out, measure=measure)
