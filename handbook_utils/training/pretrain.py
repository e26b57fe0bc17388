"""Pre-training: next-token training on plain text, each passage closed by the end-of-sequence token."""

from __future__ import annotations

from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.training import PretrainRecipe
from handbook_utils.training.figures import text_loss
from handbook_utils.training.fit import fit, load_rows


def run_pretrain(recipe: PretrainRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Train on plain text into `model/`; `training.packing` puts several passages into one row.

    Returns:
        `eval_loss` where the recipe has `eval_data`: nats a token of held-out passages.
    Raises:
        RecipeError, DataError, ModelError: before any training.
        TrainingError: the loss is no longer a number.
    """
    train, held_out = load_rows(recipe, run, kind="text")
    return fit(
        recipe,
        run,
        train=train,
        evaluation=held_out,
        measure=lambda model, tokenizer, rows: {
            "eval_loss": text_loss(model, tokenizer, rows["text"], seed=recipe.seed)
        },
    )
