"""What a stage of online reinforcement learning will do, in numbers, before any model is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.online.checks import checked_prompts, require_prompts
from handbook_utils.schema.training import OnlineRecipe
from handbook_utils.training.plan import TrainingPlan, batch_plan, setting, trains_on_cpu


def plan_online(recipe: OnlineRecipe, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Plan a stage for `--dry-run`; data, tokenizer and scorers are looked at, no weight is.

    Args:
        recipe: of the stage.
        inputs: the run folder each `from:` of the recipe names.
    Returns:
        `TrainingPlan` as a dictionary, what each source gives, and how many answers are sampled in all.
    Raises:
        RecipeError, DataError, TemplateError: as the stage itself.
    """
    with quiet_libraries():
        prompts = checked_prompts(recipe, ResolvedInputs(inputs))
    if recipe.held_out is not None:
        require_prompts(prompts.held_out)
    plan = online_plan(recipe, len(prompts.train.prompts))
    rollouts = -(-recipe.steps // int(recipe.training.get("num_iterations", 1)))
    return asdict(plan) | {
        "sources": [str(report) for report in prompts.data.sources],
        "test_rows_left_out": prompts.data.left_out,
        "answers": rollouts * recipe.global_batch_size,
        "longest_prompt": max(len(prompt.token_ids) for prompt in prompts.train.tokens),
    }


def online_plan(recipe: OnlineRecipe, prompts: int) -> TrainingPlan:
    """What a run will do, in numbers.

    Raises:
        RecipeError: as `batch_plan`.
    """
    per_device, accumulation, processes = batch_plan(recipe)
    iterations = int(setting(recipe, "num_iterations"))
    an_epoch = prompts // recipe.prompts_per_step * iterations
    warmup = setting(recipe, "warmup_steps")
    return TrainingPlan(
        examples=prompts,
        rows=prompts,
        tokens=None,
        steps_per_epoch=an_epoch,
        steps=recipe.steps,
        epochs=round(recipe.steps / max(1, an_epoch), 4),
        per_device_batch=per_device,
        max_tokens_per_batch=None,
        accumulation=accumulation,
        processes=processes,
        effective_batch=recipe.global_batch_size,
        warmup_steps=math.ceil(recipe.steps * warmup) if 0 < warmup < 1 else int(warmup),
        learning_rate=setting(recipe, "learning_rate"),
        schedule=setting(recipe, "lr_scheduler_type"),
        device="cpu" if trains_on_cpu(recipe) else "cuda",
    )
