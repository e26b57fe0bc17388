"""Direct preference optimisation: preference pairs, with the start model as the reference."""

from __future__ import annotations

from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.training import DpoRecipe
from handbook_utils.training.figures import against_reference, implicit_reward_figures
from handbook_utils.training.fit import fit, load_rows


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
    measure = against_reference(recipe, run, implicit_reward_figures)
    return fit(recipe, run, train=train, evaluation=held_out, measure=measure)
