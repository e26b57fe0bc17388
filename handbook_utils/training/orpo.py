"""Odds ratio preference optimisation: learn the chosen answer and push it above the rejected one, at once."""

from __future__ import annotations

from functools import partial

from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.training import OrpoRecipe
from handbook_utils.training.figures import odds_ratio_figures
from handbook_utils.training.fit import fit, load_rows


def run_orpo(recipe: OrpoRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Train on preference pairs into `model/`, without a reference model (Hong et al. 2024).

    Returns:
        Where the recipe has `eval_data`: `accuracy` and `log_odds_ratio` of held-out pairs.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    Source: Hong, Lee and Thorne 2024, arXiv 2403.07691.
    """
    train, held_out = load_rows(recipe, run, kind="preference")
    measure = partial(odds_ratio_figures, seed=recipe.seed)
    return fit(recipe, run, train=train, evaluation=held_out, measure=measure)
