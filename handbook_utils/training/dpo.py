"""Direct preference optimisation: preference pairs, with the start model as the reference."""

from __future__ import annotations

from handbook_utils.data.load import load_sources
from handbook_utils.models.load import load_model
from handbook_utils.recipe_schema import DpoRecipe
from handbook_utils.records import Estimate
from handbook_utils.run_folder import RunFolder
from handbook_utils.training.figures import implicit_reward_figures
from handbook_utils.training.fit import fit
from handbook_utils.training.plan import batch_plan, setting


def run_dpo(recipe: DpoRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Train on preference pairs into `model/` (Rafailov et al. 2023).

    Returns:
        Where the recipe has `eval_data`: `accuracy` and `margin` of the implicit reward on held-out pairs.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    Book: chapter "Direct preference optimisation".
    """
    batch_plan(recipe)
    train = load_sources(recipe.data, run, kind="preference", seed=recipe.seed)
    held_out = None
    if recipe.eval_data:
        held_out = load_sources(recipe.eval_data, run, kind="preference", seed=recipe.seed)
    model, tokenizer = fit(recipe, run, train=train, evaluation=held_out)
    if held_out is None:
        return {}
    section = recipe.model
    reference = load_model(run.locate(section), dtype=section.dtype, revision=section.revision)
    beta = float(setting(recipe, "beta"))
    return implicit_reward_figures((model, reference), tokenizer, held_out, beta=beta, seed=recipe.seed)
