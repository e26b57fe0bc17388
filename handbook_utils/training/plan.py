"""What a training stage will do, in numbers, before any model is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.data.recognise import Kind
from handbook_utils.data.training_data import load_training_data
from handbook_utils.errors import RecipeError
from handbook_utils.recipe_schema import TrainingRecipe, trainer_fields

KINDS: dict[str, Kind] = {
    "pretrain": "text",
    "sft": "conversation",
    "reward": "preference",
    "dpo": "preference",
    "orpo": "preference",
    "kto": "feedback",
}
# rows a forward pass where the recipe does not say: small models on a CPU like larger ones
LARGEST_CPU_BATCH, LARGEST_GPU_BATCH = 32, 8


@dataclass(frozen=True)
class TrainingPlan:
    """The size of a training run.

    Attributes:
        examples: training examples, before any is left out for its length; None on a stream.
        steps: optimiser steps in all; None where rows are packed, and only then counted.
        epochs: times each example is seen.
        per_device_batch: examples a forward pass on each device.
        accumulation: forward passes an optimiser step.
        processes: processes that train together.
        effective_batch: examples an optimiser step: the product of the three above.
        warmup_steps: steps in which the learning rate rises from 0.
        learning_rate: its peak.
        schedule: how it goes on from there.
        device: "cpu" or "cuda".
    """

    examples: int | None
    steps: int | None
    epochs: float
    per_device_batch: int
    accumulation: int
    processes: int
    effective_batch: int
    warmup_steps: int | None
    learning_rate: float
    schedule: str
    device: str


def plan_training(recipe: TrainingRecipe, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Plan a training stage for `--dry-run`: data is read, no model is.

    Args:
        recipe: of a training stage.
        inputs: the run folder each `from:` of the recipe names.
    Returns:
        `TrainingPlan` as a dictionary, what each source gives (`sources`), and how many examples are left out
        because they are tested on (`test_rows_left_out`).
    Raises:
        DataError: as `load_dataset`.
        RecipeError: as `batch_plan`.
    """
    batch_plan(recipe)  # before the data: a wrong batch size is told at once
    kind = KINDS[recipe.stage]  # type: ignore[attr-defined]  # each training recipe has one
    data = load_training_data(recipe, ResolvedInputs(inputs), kind=kind)
    plan = asdict(make_plan(recipe, data.rows))
    return plan | {"sources": [str(report) for report in data.sources], "test_rows_left_out": data.left_out}


def make_plan(recipe: TrainingRecipe, examples: int | None) -> TrainingPlan:
    """Plan a run over that many examples.

    Raises:
        RecipeError: as `batch_plan`.
    """
    per_device, accumulation, processes = batch_plan(recipe)
    steps = _steps(recipe, examples, per_pass=per_device * processes, accumulation=accumulation)
    warmup = setting(recipe, "warmup_steps")
    if warmup < 1:
        warmup = None if steps is None and warmup else math.ceil((steps or 0) * warmup)
    return TrainingPlan(
        examples=examples,
        steps=steps,
        epochs=setting(recipe, "num_train_epochs"),
        per_device_batch=per_device,
        accumulation=accumulation,
        processes=processes,
        effective_batch=recipe.global_batch_size,
        warmup_steps=None if warmup is None else int(warmup),
        learning_rate=setting(recipe, "learning_rate"),
        schedule=setting(recipe, "lr_scheduler_type"),
        device="cpu" if trains_on_cpu(recipe) else "cuda",
    )


def _steps(recipe: TrainingRecipe, examples: int | None, *, per_pass: int, accumulation: int) -> int | None:
    """Optimiser steps in all; None where packing makes rows that are not counted yet."""
    if setting(recipe, "max_steps") > 0:
        return int(setting(recipe, "max_steps"))
    if examples is None or setting(recipe, "packing"):
        return None
    # the last batch of an epoch may be smaller, and is a step all the same
    batches = examples / per_pass
    batches = math.floor(batches) if setting(recipe, "dataloader_drop_last") else math.ceil(batches)
    steps: int = math.ceil(setting(recipe, "num_train_epochs") * max(1, math.ceil(batches / accumulation)))
    return steps


def setting(recipe: TrainingRecipe, name: str) -> Any:
    """A training field's value: the recipe's, or TRL's default from the stored snapshot."""
    return recipe.training.get(name, trainer_fields(recipe.trainer).get(name, {}).get("default"))


def trains_on_cpu(recipe: TrainingRecipe) -> bool:
    """Whether the run is on the CPU: there is no CUDA GPU, or the recipe says so."""
    return bool(recipe.training.get("use_cpu")) or not torch.cuda.is_available()


def batch_plan(recipe: TrainingRecipe) -> tuple[int, int, int]:
    """Split the global batch into (examples a device, accumulation steps, processes).

    Raises:
        RecipeError: it cannot be split evenly; the sizes that work are listed.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    total = recipe.global_batch_size
    if total % processes:
        near = f"{total // processes * processes or processes} or {(total // processes + 1) * processes}"
        raise RecipeError(
            f"'global_batch_size' {total} cannot be split over {processes} processes. "
            f"Sizes that work: {near}."
        )
    share = total // processes
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    given = recipe.training.get("per_device_train_batch_size")
    if given is None:
        largest = LARGEST_CPU_BATCH if trains_on_cpu(recipe) else LARGEST_GPU_BATCH
        given = max(size for size in divisors if size <= largest)
    if given not in divisors:
        raise RecipeError(
            f"'global_batch_size' {total} is no multiple of 'training.per_device_train_batch_size' {given} "
            f"times {processes} processes. Sizes a device that work: {', '.join(map(str, divisors))}."
        )
    if recipe.trainer == "kto" and given < 2 and setting(recipe, "loss_type") == "kto":
        raise RecipeError(
            "kto measures its KL on answers swapped within a batch, so a device needs at least 2: raise "
            "'training.per_device_train_batch_size' or 'global_batch_size', or take 'training.loss_type' "
            "apo_zero_unpaired."
        )
    return given, share // given, processes
