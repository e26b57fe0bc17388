"""Reward models: one score a conversation, trained so that chosen answers score higher."""

from __future__ import annotations

from functools import partial

from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.training import RewardRecipe
from handbook_utils.training.figures import reward_accuracy
from handbook_utils.training.fit import fit, load_rows


def run_reward(recipe: RewardRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Train a reward model on preference pairs into `model/`.

    The loss is -log sigmoid(r(chosen) - r(rejected)) (Bradley and Terry 1952).

    Returns:
        Where the recipe has `eval_data`: `accuracy` against the annotator, and `accuracy_gold` where the
        pairs have gold rewards.
    Raises:
        RecipeError, DataError, ModelError, TemplateError: before any training.
        TrainingError: the loss is no longer a number.
    """
    train, held_out = load_rows(recipe, run, kind="preference")
    measure = partial(reward_accuracy, seed=recipe.seed)
    return fit(recipe, run, train=train, evaluation=held_out, measure=measure, head="reward")
