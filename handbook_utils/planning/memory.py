"""Memory of a training run on each device, by part, and what sharding makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from handbook_utils.planning.gpus import GIB
from handbook_utils.planning.skeleton import Step, Trainer
from handbook_utils.planning.step import Batch, Bytes, step_bytes
from handbook_utils.schema.sections import LoraSection

# what only a GPU shows, and nobody has measured here: the context and workspaces of CUDA and NCCL, and the
# share of the rest that an allocator loses to fragmentation
MARGIN_BYTES, MARGIN_SHARE = GIB, 0.05
# bytes of an optimiser's states per trained weight, of its own size where it keeps states like the weight
OPTIMISERS: dict[str, float | str] = {
    "adamw_torch_fused": "twice",
    "adamw_torch": "twice",
    "adamw_apex_fused": "twice",
    "adamw_hf": "twice",
    "stable_adamw": "twice",
    "lion_32bit": "once",
    "adamw_bnb_8bit": 2.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 0.0,
    "paged_adamw_32bit": 0.0,
    "paged_adamw": 0.0,
    "lion_8bit": 1.0,
    "adafactor": 0.0,
    "sgd": 0.0,
    "rmsprop": "once",
    "adagrad": "once",
}
SPLITS_GRADIENTS = ("fsdp2", "zero2", "zero3")
Reference = Literal["none", "copy", "bfloat16 copy"]
Strategy = Literal["none", "ddp", "fsdp2", "zero2", "zero3"]


@dataclass(frozen=True)
class Setup:
    """What decides the memory of a training run, beside its batches.

    Attributes:
        config: the model's, as transformers reads it, with its attention set.
        trainer: sft, reward, dpo, orpo, cpo, kto, grpo or rloo.
        held_in: number format of weights.
        half: number format that is computed in where that is another (mixed precision); None: as held.
        checkpointing: activations are computed again in the backward pass.
        lora: an adapter is trained; None: all weights.
        quantization: of the linear layers.
        reference: whether another copy of the weights is held.
        second_pass: whether the rows pass through a reference while training, held twice or not.
        accumulates: whether a step of the optimiser has several passes.
        optimiser: `training.optim`.
        dropout: whether the model's own dropout is left on, as SFT leaves it.
        strategy: how processes share the model.
        processes: that train together, one on each device.
        on_cpu: count the tiles of the loss head as a CPU computes them, and no margin of a GPU.
    """

    config: Any
    trainer: Trainer
    held_in: torch.dtype = torch.float32
    half: torch.dtype | None = None
    checkpointing: bool = True
    lora: LoraSection | None = None
    quantization: str = "none"
    reference: Reference = "none"
    second_pass: bool = False
    accumulates: bool = False
    optimiser: str = "adamw_torch_fused"
    dropout: bool = False
    strategy: Strategy = "ddp"
    processes: int = 1
    on_cpu: bool = False

    @property
    def step(self) -> Step:
        """How a step of it is computed."""
        return Step(
            self.config,
            self.trainer,
            held_in=self.held_in,
            half=self.half,
            checkpointing=self.checkpointing,
            lora=self.lora,
            quantization=self.quantization,
            reference=self.second_pass,
            accumulates=self.accumulates,
            gradient_share=1 / self.processes if self.strategy in SPLITS_GRADIENTS else 1.0,
            dropout=self.dropout,
            folds=not self.on_cpu,
        )


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each device at the highest moment of a step, by part; 0 where there is none.

    Attributes:
        weights: of the model; of a quantised one, packed weights and those that stay whole.
        adapters: low-rank adapters.
        reference: the frozen copy of the start model.
        gradients: of what is trained.
        optimiser: its states.
        activations: what the forward pass keeps and passes need for themselves.
        loss_head: logits, or tiles of them, and what their gradients take.
        communication: of several processes: buckets of gradients, or layers gathered from their shards.
        margin: what only a GPU shows: not measured.
        trained: weights that are trained, a count over all devices.
        parameters: weights of the model, a count.
        scorers: weights of the reward models that an online stage scores with.
        keys_and_values: of prompts and answers that are being sampled.
        moment: what is going on at that moment, where a run does more than learn.
    """

    weights: int
    adapters: int
    reference: int
    gradients: int
    optimiser: int
    activations: int
    loss_head: int
    communication: int
    margin: int
    trained: int
    parameters: int
    scorers: int = 0
    keys_and_values: int = 0
    moment: str = "learning"

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, in the order in which they are shown."""
        return {
            "weights": self.weights,
            "adapters": self.adapters,
            "reference": self.reference,
            "scorers": self.scorers,
            "gradients": self.gradients,
            "optimiser": self.optimiser,
            "activations": self.activations,
            "loss head": self.loss_head,
            "keys and values": self.keys_and_values,
            "communication": self.communication,
            "margin, not measured": self.margin,
        }

    @property
    def counted(self) -> int:
        """All bytes but the margin."""
        return sum(self.parts.values()) - self.margin

    @property
    def total(self) -> int:
        """All bytes."""
        return self.counted + self.margin


def plan_memory(setup: Setup, batch: Batch) -> MemoryPlan:
    """Memory of a run on each device, in a step with this batch.

    A step is computed on tensors without data, as the trainers compute it, and each tensor counted while it
    is alive. What processes share is arithmetic: see `MemoryPlan.communication`.
    """
    found = step_bytes(setup.step, batch)
    size = 2 if setup.reference == "bfloat16 copy" else setup.held_in.itemsize
    reference = 0 if setup.reference == "none" else found.weights * size // setup.held_in.itemsize
    plan = MemoryPlan(
        weights=found.weights,
        adapters=found.adapters,
        reference=reference,
        gradients=found.gradients,
        optimiser=_optimiser(setup, found),
        activations=found.activations,
        loss_head=found.loss_head,
        communication=0,
        margin=0,
        trained=found.trained,
        parameters=found.parameters,
    )
    # a step of the optimiser needs no activations, but all gradients
    if (
        setup.step.gradient_share == 1
        and found.gradients_in_full > plan.gradients + plan.activations + plan.loss_head
    ):
        plan = replace(plan, gradients=found.gradients_in_full, activations=0, loss_head=0)
    return with_margin(_shared_out(plan, setup, found), setup)


def with_margin(plan: MemoryPlan, setup: Setup) -> MemoryPlan:
    """The plan with the margin of what is counted; on a CPU there is none."""
    if setup.on_cpu:
        return plan
    return replace(plan, margin=MARGIN_BYTES + int(MARGIN_SHARE * plan.counted))


def _optimiser(setup: Setup, found: Bytes) -> int:
    each = OPTIMISERS.get(setup.optimiser, "twice")
    if isinstance(each, str):
        return found.gradients_in_full * (2 if each == "twice" else 1)
    return int(each * found.trained)


def _shared_out(plan: MemoryPlan, setup: Setup, found: Bytes) -> MemoryPlan:
    """What processes split between them, and what they need to do so."""
    count = setup.processes
    if count == 1 or setup.strategy == "none":
        return plan
    if setup.strategy == "ddp":
        # gradients are copied into buckets, which are averaged while the backward pass goes on
        return replace(plan, communication=found.gradients_in_full)
    split: dict[str, Any] = {
        "gradients": found.gradients_in_full // count,
        "optimiser": plan.optimiser // count,
    }
    computed = (setup.half or setup.held_in).itemsize
    layer = found.largest_layer * computed
    if setup.strategy == "zero2":
        return replace(plan, **split, communication=2 * layer)
    split |= {"weights": plan.weights // count, "reference": plan.reference // count}
    split["adapters"] = plan.adapters // count
    # two layers at once, one of them fetched ahead, the gradient of one, and all that is outside of layers
    outside = found.outside_layers * computed
    return replace(plan, **split, communication=3 * layer + outside)
