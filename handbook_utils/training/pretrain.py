"""Pre-training: next-token training on plain text, each passage closed by the end-of-sequence token."""

from __future__ import annotations

from handbook_utils.data.load import load_sources
from handbook_utils.recipe_schema import PretrainRecipe
from handbook_utils.records import Estimate
from handbook_utils.run_folder import RunFolder
from handbook_utils.training.figures import text_loss
from handbook_utils.training.fit import fit
from handbook_utils.training.plan import batch_plan


def run_pretrain(recipe: PretrainRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Train on plain text into `model/`; `training.packing` puts several passages into one row.

    Returns:
        `eval_loss` where the recipe has `eval_data`: nats a token of held-out passages.
    Raises:
        RecipeError, DataError, ModelError: before any training.
        TrainingError: the loss is no longer a number.
    """
    batch_plan(recipe)
    train = load_sources(recipe.data, run, kind="text", seed=recipe.seed)
    held_out = None
    if recipe.eval_data:
        held_out = load_sources(recipe.eval_data, run, kind="text", seed=recipe.seed)
    model, tokenizer = fit(recipe, run, train=train, evaluation=held_out)
    if held_out is None:
        return {}
    return {"eval_loss": text_loss(model, tokenizer, held_out["text"], seed=recipe.seed)}
