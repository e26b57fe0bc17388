"""The reference of DPO and KTO: the model that training starts from, as TRL's trainers are to see it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

# the name TRL gives to the frozen copy of an adapter
REFERENCE_ADAPTER = "ref"


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


def restore_adapter(trainer: Any, before: dict[str, torch.Tensor]) -> None:
    """Undo what TRL 1.16 does to an adapter it is given.

    It rounds a quantised model's adapter to bfloat16, in which small updates are lost and which fp16 training
    cannot unscale. Its frozen copy of the adapter leaves out what PEFT keeps in dictionaries (adapters on
    embeddings, new tokens), and is a waste where the adapter is untrained: there the base is the reference.
    """
    model = trainer.model
    for name, weight in trained_weights(model):
        weight.data = before[name].to(_adapter_dtype(trainer, before[name].dtype))
    if REFERENCE_ADAPTER not in model.peft_config:
        return
    if _is_untrained(model):
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
    # LoRA's second factor starts at zero, so the product changes nothing until it has been trained
    return not any(weight.any() for name, weight in model.named_parameters() if ".lora_B.default" in name)
