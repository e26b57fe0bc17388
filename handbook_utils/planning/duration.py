"""How long a run takes, roughly: operations of model and rows, over a share of a GPU's rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from handbook_utils.planning.lengths import Lengths
from handbook_utils.planning.memory import MemoryPlan, Setup

# share of a GPU's dense rate that training reaches: nothing here has measured it
MFU = (0.2, 0.45)


@dataclass(frozen=True)
class Duration:
    """Operations of a run, and the hours they take.

    Attributes:
        flops: floating-point operations in all.
        tokens: of all rows, over all epochs.
        hours: (fastest, slowest); None where the GPU's rate is unknown, or hours cannot be told from it.
        unknown: why they cannot be told even where the rate is known; "" where they can.
    """

    flops: float
    tokens: float
    hours: tuple[float, float] | None
    unknown: str = ""


@dataclass(frozen=True)
class Costs:
    """Operations of a model's forward pass.

    Attributes:
        token: of a token through its weights, the head apart.
        head: of a token that is projected to the vocabulary.
        pair: of attention, for a row, per squared token; half the pairs are masked.
    """

    token: float
    head: float
    pair: float


def costs_of(setup: Setup, plan: MemoryPlan) -> Costs:
    """Two operations per weight and token (Kaplan et al. 2020); attention two per pair and channel, twice."""
    text = setup.config.get_text_config()
    head = text.vocab_size * text.hidden_size
    body = max(0, active_parameters(text, plan.parameters) - head * (1 if text.tie_word_embeddings else 2))
    return Costs(2.0 * body, 2.0 * head, 2.0 * text.num_hidden_layers * _channels(text))


def estimate_duration(
    setup: Setup,
    plan: MemoryPlan,
    rows: Lengths,
    *,
    passes: float,
    tflops: float | None,
    mfu: tuple[float, float] = MFU,
) -> Duration:
    """Operations of a run over its rows, without padding.

    The forward pass takes what `costs_of` says. The backward pass takes twice as much, or once where an
    adapter is trained; checkpointing one forward pass more, a reference one more.

    Args:
        setup: how it is trained.
        plan: for its numbers of weights.
        rows: as `max_length` has cut them.
        passes: epochs, times the rows there are for each of these.
        tflops: the GPU's rate; None: unknown.
        mfu: (lowest, highest) share of it that training reaches.
    """
    costs = costs_of(setup, plan)
    sequences = rows.sequences.astype(np.float64)
    each = costs.token * sequences + costs.pair * sequences**2
    loss = 0.0 if setup.trainer == "reward" else costs.head * float(rows.answers.sum())
    forward = float(each.sum()) + loss
    flops = forward * (learning_passes(setup) + (1 if setup.second_pass else 0)) * passes
    hours = None
    if tflops is not None:
        slowest, fastest = (flops / (setup.processes * tflops * 1e12 * rate * 3600) for rate in mfu)
        hours = (fastest, slowest)
    return Duration(flops=flops, tokens=float(sequences.sum()) * passes, hours=hours)


def learning_passes(setup: Setup) -> int:
    """Forward and backward pass in units of the forward pass."""
    return 1 + (1 if setup.lora is not None else 2) + (1 if setup.checkpointing else 0)


def active_parameters(text: Any, parameters: int) -> int:
    """Weights that a token passes through: of a mixture of experts, those of the experts it is sent to."""
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    chosen = getattr(text, "num_experts_per_tok", None)
    if not (experts and chosen):
        return parameters
    inner = getattr(text, "moe_intermediate_size", None) or text.intermediate_size
    idle = 3 * text.hidden_size * inner * (experts - chosen) * text.num_hidden_layers
    return int(max(parameters - idle, parameters // experts))


def _channels(text: Any) -> int:
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(size * text.num_attention_heads)
