"""The trainer's arguments: what the recipe says, over defaults that fit the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handbook_utils.schema.sections import WITHOUT_REFERENCE
from handbook_utils.schema.training import DpoRecipe, TrainingRecipe
from handbook_utils.training.plan import TrainingPlan, largest_batch, trains_on_cpu

# transformers 5 renamed these and warns about the old names, which recipes still use
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
# steps between two checkpoints where the plan cannot tell how many steps there are
SAVE_STEPS_UNPLANNED = 100


def trainer_arguments(recipe: TrainingRecipe, plan: TrainingPlan, checkpoints: Path) -> dict[str, Any]:
    """Return the keyword arguments of the stage's TRL config.

    Args:
        recipe: its `training` wins over every default here.
        plan: batch sizes and number of steps.
        checkpoints: folder for checkpoints, of this run alone.
    """
    defaults: dict[str, Any] = {
        # TRL checkpoints activations by default; said by its new name, it raises no warning
        "activation_checkpointing": not trains_on_cpu(recipe),
        # two: a kill while the newest is written leaves the one before it
        "save_total_limit": 2,
        "per_device_eval_batch_size": min(plan.per_device_batch, largest_batch(recipe)),
        "report_to": "none",
        # every weight of these models gets a gradient in every step; looking for others costs time
        "ddp_find_unused_parameters": False,
    }
    if trains_on_cpu(recipe):
        # TRL turns bf16 on even here, which makes a step five times slower
        defaults |= {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False}
    if recipe.trainer in WITHOUT_REFERENCE:
        # their collator needs the columns that would be removed; they turn this off with a warning
        defaults["remove_unused_columns"] = False
    if isinstance(recipe, DpoRecipe) and recipe.precomputes_reference:
        defaults["precompute_ref_log_probs"] = True
    given = {RENAMED.get(key, key): value for key, value in recipe.training.items()}
    return (
        defaults
        | given
        | step_arguments(recipe, plan.steps)
        | {
            "output_dir": str(checkpoints),
            "seed": recipe.seed,
            "per_device_train_batch_size": plan.per_device_batch,
            "gradient_accumulation_steps": plan.accumulation,
            # our own bar and records instead; a NaN must show, not be averaged away
            "disable_tqdm": True,
            "logging_nan_inf_filter": False,
            # their batches have no input_ids to count
            "include_num_input_tokens_seen": "no" if recipe.trainer in WITHOUT_REFERENCE else "non_padding",
        }
    )


def evaluates(arguments: Mapping[str, Any]) -> bool:
    """Whether held-out rows are looked at while training."""
    return str(arguments.get("eval_strategy", "no")) != "no" or bool(arguments.get("eval_on_start"))


def step_arguments(recipe: TrainingRecipe, steps: int | None) -> dict[str, Any]:
    """How often is logged and saved: as the recipe says, or by the steps there are.

    Args:
        recipe: of a training stage.
        steps: optimiser steps in all, as far as they are known.
    """
    steps = steps or 10 * SAVE_STEPS_UNPLANNED
    defaults = {"logging_steps": max(1, min(10, steps // 20)), "save_steps": max(1, math.ceil(steps / 10))}
    return {name: recipe.training.get(name, value) for name, value in defaults.items()}
