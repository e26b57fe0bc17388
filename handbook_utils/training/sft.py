"""Supervised fine-tuning: next-token training on conversations, loss on the answers only."""

from __future__ import annotations

from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.training import SftRecipe
from handbook_utils.training.figures import answer_loss
from handbook_utils.training.fit import fit, load_rows


def run_sft(recipe: SftRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Fine-tune on conversations into `model/`; each answer is learned with the token that ends it.

    Returns:
        `eval_loss` where the recipe has `eval_data`: nats a token of held-out answers.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    Book: chapter "Supervised fine-tuning".
    """
    train, held_out = load_rows(recipe, run, kind="conversation")
    return fit(
        recipe,
        run,
        train=train,
        evaluation=held_out,
        measure=lambda model, tokenizer, rows: {
            "eval_loss": answer_loss(model, tokenizer, rows, seed=recipe.seed)
        },
    )
