"""What a training stage will do, in numbers, before any model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from handbook_utils.errors import RecipeError
from handbook_utils.processes import is_launched, world_size
from handbook_utils.schema.fields import trainer_fields
from handbook_utils.schema.training import TrainingRecipe
from handbook_utils.training.rows.prepared import Counted

# rows per forward pass where the recipe does not say: small models on a CPU like larger ones
LARGEST_CPU_BATCH, LARGEST_GPU_BATCH = 32, 8


@dataclass(frozen=True)
class TrainingPlan:
    """The size of a training run.

    Attributes:
        examples: training examples, before any is left out for its length; None on a stream.
        rows: what is trained on: examples that are left, or rows they were packed into; None: not counted.
        tokens: tokens of all rows, without padding; None without a tokenizer.
        steps_per_epoch: optimiser steps in one pass over the rows; the last one may be smaller.
        steps: optimiser steps in all; None where rows are packed and not yet counted.
        epochs: passes over the rows.
        per_device_batch: rows per forward pass on each device; a mean where `max_tokens_per_batch` is set.
        max_tokens_per_batch: most tokens per forward pass on each device; None: any number.
        accumulation: forward passes per optimiser step.
        processes: processes that train together.
        effective_batch: rows per optimiser step.
        warmup_steps: steps in which the learning rate rises from 0.
        learning_rate: its peak.
        schedule: how it goes on from there.
        device: "cpu" or "cuda".
    """

    examples: int | None
    rows: int | None
    tokens: int | None
    steps_per_epoch: int | None
    steps: int | None
    epochs: float
    per_device_batch: int
    max_tokens_per_batch: int | None
    accumulation: int
    processes: int
    effective_batch: int
    warmup_steps: int | None
    learning_rate: float
    schedule: str
    device: str


def make_plan(
    recipe: TrainingRecipe, examples: int | None, *, counted: Counted | None = None
) -> TrainingPlan:
    """Plan a run.

    Args:
        recipe: of a training stage.
        examples: training examples; None on a stream.
        counted: what the trainer has prepared; None before that, when rows that are not packed are taken to
            be the examples.
    Raises:
        RecipeError: as `batch_plan`, or there is no full batch and `dataloader_drop_last` drops all others.
    """
    per_device, accumulation, processes = batch_plan(recipe)
    if counted is None:
        counted = Counted(None if setting(recipe, "packing") else examples, None)
    rows = counted.rows
    an_epoch = None if rows is None else _steps_per_epoch(recipe, rows, per_device * processes, accumulation)
    steps = None if an_epoch is None else math.ceil(setting(recipe, "num_train_epochs") * an_epoch)
    if setting(recipe, "max_steps") > 0:
        steps = int(setting(recipe, "max_steps"))
    warmup = setting(recipe, "warmup_steps")
    if warmup < 1:
        warmup = None if steps is None and warmup else math.ceil((steps or 0) * warmup)
    return TrainingPlan(
        examples=examples,
        rows=rows,
        tokens=counted.tokens,
        steps_per_epoch=an_epoch,
        steps=steps,
        epochs=_epochs(recipe, steps, an_epoch),
        per_device_batch=math.ceil(per_device / counted.passes) if counted.passes else per_device,
        max_tokens_per_batch=getattr(recipe, "max_tokens_per_batch", None),
        accumulation=counted.passes or accumulation,
        processes=processes,
        effective_batch=recipe.global_batch_size,
        warmup_steps=None if warmup is None else int(warmup),
        learning_rate=setting(recipe, "learning_rate"),
        schedule=setting(recipe, "lr_scheduler_type"),
        device="cpu" if trains_on_cpu(recipe) else "cuda",
    )


def _steps_per_epoch(recipe: TrainingRecipe, rows: int, rows_per_pass: int, accumulation: int) -> int:
    if not setting(recipe, "dataloader_drop_last"):
        # the last batch may be smaller, and so may be the last step: both count
        return max(1, math.ceil(math.ceil(rows / rows_per_pass) / accumulation))
    passes = rows // rows_per_pass
    if passes == 0:
        raise RecipeError(
            f"'training.dataloader_drop_last' leaves nothing: {rows} rows are less than one pass of "
            f"{rows_per_pass}. Lower 'global_batch_size' or 'training.per_device_train_batch_size'."
        )
    return math.ceil(passes / accumulation)


def _epochs(recipe: TrainingRecipe, steps: int | None, steps_per_epoch: int | None) -> float:
    """Passes over the rows: as the recipe says, or what its `max_steps` come to."""
    if setting(recipe, "max_steps") > 0 and steps and steps_per_epoch:
        return round(steps / steps_per_epoch, 4)
    return float(setting(recipe, "num_train_epochs"))


def setting(recipe: TrainingRecipe, name: str) -> Any:
    """A training field's value: the recipe's, or TRL's default from the stored snapshot."""
    return recipe.training.get(name, trainer_fields(recipe.trainer).get(name, {}).get("default"))


def trains_on_cpu(recipe: TrainingRecipe) -> bool:
    """Whether the run is on the CPU: there is no CUDA GPU, or the recipe says so."""
    return bool(recipe.training.get("use_cpu")) or not torch.cuda.is_available()


def largest_batch(recipe: TrainingRecipe) -> int:
    """Rows a forward pass where the recipe does not say."""
    return LARGEST_CPU_BATCH if trains_on_cpu(recipe) else LARGEST_GPU_BATCH


def planned_processes(recipe: TrainingRecipe) -> int:
    """Processes that train together: those that were started, or else those the recipe asks for."""
    if is_launched():
        return world_size()
    launch = recipe.launch
    if launch.strategy == "none":
        return 1
    if launch.processes != "auto":
        return launch.processes
    devices = 1 if trains_on_cpu(recipe) else torch.cuda.device_count()
    rows = launch.nodes * recipe.training.get("per_device_train_batch_size", 1)
    # three GPUs share no batch of 16: two of them do
    shares = (size for size in range(devices, 0, -1) if recipe.global_batch_size % (size * rows) == 0)
    return launch.nodes * next(shares, devices)


def batch_plan(recipe: TrainingRecipe) -> tuple[int, int, int]:
    """Split the global batch into (examples per device, accumulation steps, processes).

    Raises:
        RecipeError: it cannot be split evenly; the sizes that work are listed.
    """
    return split_batch(recipe, planned_processes(recipe), largest_batch(recipe))


def split_batch(recipe: TrainingRecipe, processes: int, largest: int) -> tuple[int, int, int]:
    """As `batch_plan`, for so many processes; at most `largest` examples where the recipe does not say."""
    total = recipe.global_batch_size
    if total % processes:
        near = sorted({total // processes * processes or processes, (total // processes + 1) * processes})
        raise RecipeError(
            f"'global_batch_size' {total} cannot be split over {processes} processes. "
            f"Sizes that work: {' or '.join(map(str, near))}."
        )
    share = total // processes
    small = [size for size in range(1, math.isqrt(share) + 1) if share % size == 0]
    divisors = sorted({*small, *(share // size for size in small)})
    given = recipe.training.get("per_device_train_batch_size")
    if getattr(recipe, "max_tokens_per_batch", None):
        given = share  # cut into passes when the rows are counted
    group = getattr(recipe, "samples", 1)  # answers to one prompt stay together
    if share % group:
        raise RecipeError(
            f"{total // group} prompts per step cannot be split over {processes} processes: change "
            "'prompts_per_step', or the number of processes."
        )
    divisors = [size for size in divisors if size % group == 0]
    if given is None:
        given = max((size for size in divisors if size <= largest), default=group)
    if given not in divisors:
        raise RecipeError(
            f"'global_batch_size' {total} is no multiple of 'training.per_device_train_batch_size' {given} "
            f"times {processes} processes. Sizes per device that work: {', '.join(map(str, divisors))}."
        )
    if recipe.trainer == "kto" and given < 2 and setting(recipe, "loss_type") == "kto":
        raise RecipeError(
            "kto measures its KL on answers swapped within a batch, so a device needs at least 2: raise "
            "'training.per_device_train_batch_size' or 'global_batch_size', or take 'training.loss_type' "
            "apo_zero_unpaired."
        )
    return given, share // given, processes
