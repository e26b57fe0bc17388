"""Several conversations in one training row: TRL packs them; where that changes no loss, and such batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from handbook_utils.errors import ModelError
from handbook_utils.libraries.transformers_internals import attention_of
from handbook_utils.models.load import read_config
from handbook_utils.schema.training import BatchedRecipe, TrainingRecipe

LOGGER = logging.getLogger("handbook_utils")
# Models that keep the conversations of a row apart by positions that start again: a test holds each of them.
# Others, such as opt, gpt_oss and all with a state along the row, let them look at each other in silence.
PACKED = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text"),
    *("smollm3", "starcoder2", "phi3", "olmo2", "olmo3", "granite", "cohere2", "glm4", "gpt2", "gpt_neox"),
)
# training fields that say of rows what packing would change, and the values under which it does not
_SAYS_NO: dict[str, tuple[tuple[Any, ...], str]] = {
    "dataset_kwargs": ((None,), "rows may come prepared"),
    "neftune_noise_alpha": ((None,), "that noise depends on a row's length"),
    "packing_strategy": (("bfd",), "that cuts conversations in pieces"),
    "padding_free": ((False,), "that joins whole batches"),
    "train_sampling_strategy": (("random",), "that puts conversations in an order of its own"),
    "truncation_mode": (("keep_start",), "packing keeps the start of what is too long"),
}


def with_packing(recipe: TrainingRecipe, source: str) -> tuple[TrainingRecipe, dict[str, Any]]:
    """Settle `training.packing` of an sft recipe that does not say it: on where no loss changes by it.

    Args:
        recipe: of a training stage; others than sft are returned as they are.
        source: the start model's name or folder; only its configuration is read.
    Returns:
        The recipe, and what the manifest says of it.
    """
    if recipe.stage != "sft" or "packing" in recipe.training:
        return recipe, {}
    reason = why_not_packed(recipe, source)
    done = f"not packed: {reason}" if reason else "packed, and the batch counts rows"
    LOGGER.info("conversations are %s", done)
    training = {**recipe.training, "packing": reason is None}
    note = {"packing": reason is None, **({"packing_off": reason} if reason else {})}
    return recipe.model_copy(update={"training": training}), note


def why_not_packed(recipe: TrainingRecipe, source: str) -> str | None:
    """Why conversations each have a row of their own; None where packing them changes no loss.

    A model that is not at hand counts as one that can: loading it tells more.
    """
    for name, (fitting, why) in _SAYS_NO.items():
        value = recipe.training.get(name, fitting[0])
        if value not in fitting:
            return f"training.{name} is {value!r}, and {why}"
    if recipe.training.get("max_length", 0) is None:
        return "training.max_length is null, so there is no row to fill"
    if recipe.streaming:
        return "a stream has no end to pack towards"
    if isinstance(recipe, BatchedRecipe) and (recipe.length_batching or recipe.max_tokens_per_batch):
        return "the recipe makes batches by the length of conversations"
    try:
        return why_leaky(read_config(source, revision=recipe.model.revision))
    except ModelError:
        return None


def why_leaky(config: Any) -> str | None:
    """Why the conversations of a row may change each other's loss in a model; None where they do not."""
    if config.model_type not in PACKED:
        return f"no test holds that a {config.model_type} model keeps the conversations of a row apart"
    # TRL adds it wherever its coefficient is not 0, whatever the model's own default
    coefficient = getattr(config, "router_aux_loss_coef", 0)
    if coefficient and hasattr(config, "output_router_logits"):
        return "the router's auxiliary loss is that of a whole batch; set router_aux_loss_coef to 0"
    return None


def keep_rows_apart(trainer: Any) -> None:
    """Let packed rows stand in a batch one below the other, where the attention takes a mask.

    TRL joins them to one row, which flash-attention wants. Other attention pays for such a row by the square
    of its length: eight rows of 1024 tokens took more than four times as long on a CPU.
    """
    config = trainer.model.config
    is_joined = getattr(trainer.args, "packing", False) and trainer.padding_free
    if is_joined and not attention_of(config).startswith("flash") and why_leaky(config) is None:
        old = trainer.data_collator
        trainer.data_collator = PackedRows(old.pad_token_id, old.pad_to_multiple_of or 1)


class PackedRows:
    """Makes a batch of packed rows, each with positions that start again at every conversation.

    No mask goes with it: a model that gets one takes a row for one conversation.
    """

    def __init__(self, pad_token_id: int, multiple_of: int = 1) -> None:
        self.pad_token_id, self.multiple_of = pad_token_id, multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels`, `position_ids`, each (rows, width).

        Args:
            rows: `input_ids` and `labels` (tokens,), `seq_lengths` (conversations,) of each.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        width = -(-longest // self.multiple_of) * self.multiple_of
        ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        positions = torch.zeros((len(rows), width), dtype=torch.long)  # padding: each a row by itself
        for line, row in enumerate(rows):
            tokens = len(row["input_ids"])
            ids[line, :tokens] = torch.as_tensor(row["input_ids"])
            labels[line, :tokens] = torch.as_tensor(row["labels"])
            positions[line, :tokens] = torch.cat([torch.arange(length) for length in row["seq_lengths"]])
        labels[positions == 0] = -100  # nothing comes before a first token
        return {"input_ids": ids, "labels": labels, "position_ids": positions}
