"""A model without data, as a stage trains it: layers, adapters and packed weights, none of them filled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from handbook_utils.planning.kernels import LowRank, PackedLinear
from handbook_utils.schema.sections import LoraSection

# of packed weights, with their scales
BYTES_PER_WEIGHT = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "fp4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
# the name of one of TRL's trainers, as `TrainingRecipe.trainer` has it
Trainer = str


@dataclass(frozen=True)
class Step:
    """How a step is computed.

    Attributes:
        config: the model's, as transformers reads it; its attention is "eager" or a fused one.
        trainer: which loss.
        held_in: number format of weights.
        half: number format that is computed in where that is another; None: as held.
        checkpointing: whether a layer's activations are computed again in the backward pass.
        lora: an adapter is trained; None: all weights.
        quantization: of the linear layers: "none", "int8", "nf4", "fp4".
        reference: whether a second pass without gradients is made for a reference.
        accumulates: whether gradients of an earlier pass are there already.
        gradient_share: of the gradients, what this device keeps: less than 1 where they are split.
        dropout: whether the model's own dropout is left on.
        folds: whether kernels of a GPU fold the loss head's tiles and drop attention weights.
    """

    config: Any
    trainer: Trainer
    held_in: torch.dtype = torch.float32
    half: torch.dtype | None = None
    checkpointing: bool = False
    lora: LoraSection | None = None
    quantization: str = "none"
    reference: bool = False
    accumulates: bool = False
    gradient_share: float = 1.0
    dropout: bool = False
    folds: bool = True


def text_config(config: Any) -> Any:
    """The part of a configuration that is the language model's."""
    return config.get_text_config()


def shallow_config(config: Any, layers: int) -> Any:
    """A copy of a configuration with so many layers, which are as its first ones."""
    copied = type(config).from_dict(config.to_dict())
    copied._attn_implementation = config._attn_implementation
    text = text_config(copied)
    text.num_hidden_layers = layers
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(text, name, None):
            setattr(text, name, list(getattr(text, name))[:layers])
    return copied


def skeleton(step: Step, layers: int) -> Any:
    """The model without data, with its adapter and its packed layers."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.initialization import no_init_weights

    is_reward = step.trainer == "reward"
    auto = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
    config = shallow_config(step.config, layers)
    if is_reward:
        config.num_labels = 1
    with torch.device("meta"), no_init_weights():
        model = auto.from_config(config, dtype=step.held_in)
    model.tie_weights()
    for module in () if step.dropout else model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if step.quantization != "none":
        _replace_layers(model, lambda layer: _packed(layer, step))
    if step.lora is not None:
        model.requires_grad_(False)
        _replace_layers(model, lambda layer: _adapted(layer, step), targets=step.lora.targets)
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in (*step.lora.modules_to_save, *(("score",) if is_reward else ())):
                module.requires_grad_(True)
    return model.train()


def _packed(layer: torch.nn.Linear, step: Step) -> PackedLinear:
    return PackedLinear(layer, BYTES_PER_WEIGHT[step.quantization], step.half or step.held_in)


def _adapted(layer: Any, step: Step) -> LowRank:
    assert step.lora is not None
    # the trainers hold adapters in float32 where they compute in half precision
    dtype = torch.float32 if step.half is not None else step.held_in
    return LowRank(layer, step.lora.rank, step.lora.dropout, dtype)


def _replace_layers(model: Any, make: Callable[[Any], Any], *, targets: Any = "all-linear") -> None:
    """Put another layer in the place of each linear one below the head."""
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        is_linear = isinstance(module, (torch.nn.Linear, PackedLinear)) or type(module).__name__ == "Conv1D"
        last = name.rpartition(".")[2]
        wanted = targets == "all-linear" or last in targets
        if is_linear and wanted and module is not head and last != "score":
            if not hasattr(module, "in_features"):
                module.in_features, module.out_features = module.weight.shape
            model.set_submodule(name, make(module))
