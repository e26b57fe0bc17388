"""Kahneman-Tversky optimisation: answers marked good or bad, with the start model as the reference."""

from __future__ import annotations

from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.training import KtoRecipe
from handbook_utils.training.figures import against_reference, feedback_figures
from handbook_utils.training.fit import fit, load_rows


def run_kto(recipe: KtoRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Train on marked answers into `model/`; of a preference pair, chosen is good and rejected is bad.

    Returns:
        Where the recipe has `eval_data`: the mean implicit reward of held-out good and bad answers, and
        `accuracy`: how often its sign is the mark's.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    Source: Ethayarajh et al. 2024, arXiv 2402.01306.
    """
    train, held_out = load_rows(recipe, run, kind="feedback")
    # TRL reads KTO's rows in order, for its KL is measured on neighbours: unshuffled, a pair's two answers
    # would be each other's, and one source's marks would come all at once
    train = train.shuffle(seed=recipe.seed)
    measure = against_reference(recipe, run, feedback_figures)
    return fit(recipe, run, train=train, evaluation=held_out, measure=measure)
