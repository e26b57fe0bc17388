"""The reference of DPO and KTO: the model that training starts from, as TRL's trainers are to see it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from handbook_utils.models.logprobs import Floats, Sequenced

# the name TRL gives to the frozen copy of an adapter
REFERENCE_ADAPTER = "ref"
# what TRL's DPO calls the token ids of a row, and the log-probabilities of its answers
PROMPT, CHOSEN, REJECTED = "prompt_ids", "chosen_ids", "rejected_ids"
REFERENCE_LOGPS = ("ref_chosen_logps", "ref_rejected_logps")


def frozen_copy(model: Any, arguments: dict[str, Any]) -> Any:
    """The reference of full fine-tuning; in bfloat16, half the memory, where the policy computes in it."""
    reference = copy.deepcopy(model)
    return reference.to(torch.bfloat16) if _computes_in_bf16(model, arguments) else reference


def _computes_in_bf16(model: Any, arguments: dict[str, Any]) -> bool:
    # TRL turns bf16 on unless fp16 is; `trainer_arguments` turns it off on a CPU
    is_on = arguments.get("bf16", not arguments.get("fp16", False))
    return bool(is_on) and model.device.type == "cuda"


def trained_weights(model: Any) -> Iterator[tuple[str, Any]]:
    """The weights that training moves, by name."""
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def restore_adapter(trainer: Any, before: dict[str, torch.Tensor], *, needs_reference: bool) -> None:
    """Undo what TRL 1.16 does to an adapter it is given.

    It rounds a quantised model's adapter to bfloat16, in which small updates are lost and which fp16 training
    cannot unscale. Its frozen copy of the adapter leaves out what PEFT keeps in dictionaries (adapters on
    embeddings, new tokens). The copy is wasted where it is never used, and where the adapter is untrained:
    there the base is the reference.
    """
    model = trainer.model
    for name, weight in trained_weights(model):
        weight.data = before[name].to(_adapter_dtype(trainer, before[name].dtype))
    if REFERENCE_ADAPTER not in model.peft_config:
        return
    if _is_untrained(model) or not needs_reference:
        model.delete_adapter(REFERENCE_ADAPTER)
        return
    copied = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    set_peft_model_state_dict(model, copied, adapter_name=REFERENCE_ADAPTER)


def _adapter_dtype(trainer: Any, now: torch.dtype) -> torch.dtype:
    plugin = trainer.accelerator.state.deepspeed_plugin
    if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
        shared: torch.dtype = trainer.model.dtype
        return shared  # both gather weights of one dtype only
    return torch.float32 if trainer.args.bf16 or trainer.args.fp16 else now


def _is_untrained(model: Any) -> bool:
    """Whether an adapter changes nothing: the factor that starts at zero is zero, the rest as in the base."""
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, weight in trained_weights(model):
        whole, _, last = name.partition(".modules_to_save.default.")
        if last and not torch.equal(weight, state[f"{whole}.original_module.{last}"]):
            return False
        if name.endswith(".trainable_tokens_delta.default"):
            original = state[name.replace("_tokens_delta.", "_tokens_original.")]
            if not torch.equal(weight, original.to(weight.dtype)):
                return False
        if any(zero in name for zero in (".lora_B.default", ".lora_embedding_A.default")) and weight.any():
            return False
    return True


@dataclass(frozen=True)
class Pairs:
    """Rows as a DPO trainer has prepared them, each a list of sequences whose log-probabilities it needs.

    They are prompt and chosen, prompt and rejected answer, cut as the trainer's collator will cut them. With
    `ld_alpha` each one's beginning follows, with as many tokens of the answer as the shorter answer has.

    Attributes:
        rows: with the trainer's columns.
        limit: most tokens a sequence has; None: any number.
        keeps_end: whether it is the beginning that is cut off.
        ld_alpha: what the tokens count that the longer answer has more; None: they count like others.
    """

    rows: Dataset
    limit: int | None
    keeps_end: bool
    ld_alpha: float | None = None

    def __iter__(self) -> Iterator[list[Sequenced]]:
        names = [PROMPT, CHOSEN, REJECTED]
        for batch in self.rows.select_columns(names).iter(1000):
            for prompt, *answers in zip(*(batch[name] for name in names), strict=True):
                pair = [self._cut(prompt, answer) for answer in answers]
                yield pair if self.ld_alpha is None else [*pair, *_common_lengths(pair)]

    def select(self, rows: Sequence[int]) -> Pairs:
        """Some of the rows, in the order given."""
        return replace(self, rows=self.rows.select(rows))

    def summed(self, logps: Floats) -> Floats:
        """(rows, 2) log-probabilities of chosen and rejected answers from those of all sequences.

        Source: LD-DPO, Liu et al. 2024.
        """
        if self.ld_alpha is None:
            return logps
        whole, common = logps[:, :2], logps[:, 2:]
        return common + self.ld_alpha * (whole - common)

    def _cut(self, prompt: list[int], answer: list[int]) -> Sequenced:
        ids, start = prompt + answer, len(prompt)
        if self.limit is None or len(ids) <= self.limit:
            return ids, start
        if self.keeps_end:
            return ids[-self.limit :], max(0, start - (len(ids) - self.limit))
        return ids[: self.limit], start


def _common_lengths(pair: Sequence[Sequenced]) -> list[Sequenced]:
    # the first token of a sequence is given, never predicted
    begins = [max(start, 1) for _, start in pair]
    shorter = min(len(ids) - begin for (ids, _), begin in zip(pair, begins, strict=True))
    return [(ids[: begin + shorter], start) for (ids, start), begin in zip(pair, begins, strict=True)]


def prepared_pairs(trainer: Any, rows: Dataset) -> Pairs | None:
    """Prepared rows of a DPO trainer; None where it has computed its reference's log-probabilities itself."""
    if set(REFERENCE_LOGPS) <= set(rows.column_names):
        return None
    collator = trainer.data_collator
    keeps_end = collator.truncation_mode == "keep_end"
    return Pairs(rows, collator.max_length, keeps_end, trainer.args.ld_alpha)


def with_reference_columns(rows: Dataset, logps: Floats) -> Dataset:
    """Prepared rows with (rows, 2) log-probabilities of their chosen and rejected answers beside them."""
    columns = dict(zip(REFERENCE_LOGPS, logps.T.astype(np.float32), strict=True))
    return concatenate_datasets([rows, Dataset.from_dict(columns)], axis=1)
