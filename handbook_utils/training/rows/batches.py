"""How a trainer's rows are computed together: like lengths in a batch, a prompt once for its answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModel
from transformers.trainer_pt_utils import BatchRebalanceSampler

from handbook_utils.errors import ModelError, RecipeError
from handbook_utils.libraries.transformers_internals import set_attention
from handbook_utils.models.load import read_config
from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.training import BatchedRecipe, PairRecipe, TrainingRecipe
from handbook_utils.shared_prefix.batching import LengthBatches
from handbook_utils.shared_prefix.decoder import (
    ROUTER_LOSS,
    shared_prefixes,
    why_not_shared,
    why_padded,
    without_padding,
)
from handbook_utils.training.plan import TrainingPlan
from handbook_utils.training.rows.prepared import row_costs

LOGGER = logging.getLogger("handbook_utils")


class LengthBatchSampler(BatchRebalanceSampler):  # type: ignore[misc]  # transformers ships no types
    """One process's batches, for transformers' trainer.

    The trainer takes a sampler of this parent for batches that are dealt to the processes already, and tells
    it each epoch's number; nothing else of the parent is used.
    """

    def __init__(self, batches: LengthBatches, rank: int) -> None:
        self.batches, self.rank, self.epoch = batches, rank, 0

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the epoch that was set last."""
        return iter(self.batches.epoch(self.epoch, self.rank))

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.batches)


def length_batches(recipe: TrainingRecipe, plan: TrainingPlan, trainer: Any) -> LengthBatches | None:
    """The batches the recipe asks for, over the rows as prepared; None where they are left to chance.

    Raises:
        RecipeError: a row by itself does not keep within `max_tokens_per_batch`.
    """
    if not isinstance(recipe, BatchedRecipe):
        return None
    limit = recipe.max_tokens_per_batch
    if not (recipe.length_batching or limit):
        return None
    batches = LengthBatches(
        row_costs(trainer, is_shared=why_apart(recipe, trainer) is None),
        step_rows=plan.effective_batch,
        processes=plan.processes,
        passes=plan.accumulation,
        max_tokens=limit,
        seed=recipe.seed,
        drop_last=trainer.args.dataloader_drop_last,
    )
    if limit is None:
        return batches
    epochs = math.ceil(plan.steps / max(1, len(batches) // batches.passes)) if plan.steps else 1
    try:
        return replace(batches, passes=batches.passes_needed(epochs))
    except ValueError as problem:
        raise RecipeError(
            f"'max_tokens_per_batch' {limit}: {problem}. Raise it, or lower 'training.max_length'."
        ) from None


def why_apart(recipe: TrainingRecipe, trainer: Any) -> str | None:
    """Why a stage computes every row by itself; None where a prompt is computed once for both its answers."""
    if not isinstance(recipe, PairRecipe):
        return "its rows are no pairs"
    if recipe.shared_prefix == "off":
        return "the recipe says so"
    if getattr(trainer, "aux_loss_enabled", False):  # TRL asks for it whatever the model's own default
        return ROUTER_LOSS
    return why_not_shared(trainer.model)


def check_shared_prefix(recipe: TrainingRecipe, source: str) -> None:
    """Refuse `shared_prefix: on` for a model that cannot share exactly, by its configuration alone.

    Raises:
        RecipeError: with the reason.
    """
    if not isinstance(recipe, PairRecipe) or recipe.shared_prefix != "on":
        return
    try:
        config = read_config(source, revision=recipe.model.revision)
    except ModelError:
        return  # loading tells what is wrong
    if recipe.model.attention != "auto":
        set_attention(config, recipe.model.attention)
    with torch.device("meta"):  # no weights
        reason = why_not_shared(AutoModel.from_config(config))
    if reason:
        raise RecipeError(_refused(reason))


def _refused(reason: str) -> str:
    return f"'shared_prefix: on' would not be exact: {reason}. Write auto, which shares where it is."


@contextmanager
def without_waste(recipe: TrainingRecipe, run: RunFolder, trainer: Any) -> Iterator[None]:
    """Within it the policy and its reference compute a pair's prompt once, and rows without their padding.

    Both change no number but by rounding. Whether they are done, and why not, goes into log and manifest.

    Raises:
        RecipeError: `shared_prefix: on` or `skip_padding: on`, and it would not be exact.
    """
    apart = why_apart(recipe, trainer)
    if isinstance(recipe, PairRecipe):
        if apart and recipe.shared_prefix == "on":
            raise RecipeError(_refused(apart))
        run.note(shared_prefix=apart is None, **({"shared_prefix_off": apart} if apart else {}))
        LOGGER.info("a pair's prompt is computed %s", f"twice: {apart}" if apart else "once")
    padded = _why_padded(recipe, trainer)
    if padded and recipe.skip_padding == "on":
        raise RecipeError(f"'skip_padding: on' would not be exact: {padded}. Write auto.")
    run.note(skip_padding=padded is None, **({"skip_padding_off": padded} if padded else {}))
    LOGGER.info("padding is computed, too: %s", padded) if padded else LOGGER.info("padding is left out")
    models = [trainer.model, getattr(trainer, "ref_model", None)]
    with ExitStack() as stack:
        for model in filter(None, models):
            unwrapped = trainer.accelerator.unwrap_model(model)
            if apart is None:
                stack.enter_context(shared_prefixes(unwrapped, skip_padding=padded is None))
            elif padded is None:
                stack.enter_context(without_padding(unwrapped))
        yield


def _why_padded(recipe: TrainingRecipe, trainer: Any) -> str | None:
    """Why padding is computed with its rows; None where rows of different width are computed apart."""
    if recipe.skip_padding == "off":
        return "the recipe says so"
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "processes that share the weights have to make the same passes"
    if getattr(trainer, "aux_loss_enabled", False):
        return ROUTER_LOSS
    if recipe.skip_padding != "on" and trainer.args.device.type != "cpu":
        return "on a GPU it was not measured; `skip_padding: on` asks for it"
    return why_padded(trainer.model)
