"""One training step on tensors without data: what is alive at its highest moment, by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from handbook_utils.libraries.transformers_internals import cache_name
from handbook_utils.planning.kernels import AsComputed, LossHead
from handbook_utils.planning.live_bytes import ACTIVATIONS, GRADIENTS, LiveBytes
from handbook_utils.planning.skeleton import Step, skeleton, text_config
from handbook_utils.schema.sections import WITHOUT_REFERENCE

HEAD = "loss head"
WEIGHTS, ADAPTERS, QUANTISED = "weights", "adapters", "quantised weights"
# layers of which a step is computed; what deeper models take grows by the same amount with each layer
DEPTHS = (2, 3)


@dataclass(frozen=True)
class Batch:
    """The rows of one forward pass on one device.

    Attributes:
        rows: sequences, of pairs both.
        width: tokens of the longest, to which the others are padded.
        loss_tokens: tokens of all rows that carry a loss.
        is_padded: whether any row is shorter.
        shared: (rows, width) as computed, where a prompt stands once for its answers; None: as above.
        cached: (rows, width) of prompts that fill a cache first, from which the rows, answers alone, go on.
    """

    rows: int
    width: int
    loss_tokens: int
    is_padded: bool = True
    shared: tuple[int, int] | None = None
    cached: tuple[int, int] | None = None


@dataclass(frozen=True)
class Bytes:
    """Bytes of a step, by part.

    Attributes:
        weights: all that is held of the model, adapters apart.
        adapters: of the adapters.
        trained: weights that are trained, a count.
        largest_layer: weights of one decoder layer, a count.
        outside_layers: weights outside of decoder layers: embeddings, head; a count.
        parameters: weights of the model, a count.
        gradients: at the highest moment.
        activations: at the highest moment, without the loss head.
        loss_head: at the highest moment, what the loss head made.
        gradients_in_full: of all trained weights.
    """

    weights: int
    adapters: int
    trained: int
    largest_layer: int
    outside_layers: int
    parameters: int
    gradients: int
    activations: int
    loss_head: int
    gradients_in_full: int


def step_bytes(step: Step, batch: Batch) -> Bytes:
    """Bytes of one training step at its highest moment.

    A model deeper than three layers is computed with two and with three: its layers are alike, so each moment
    of the step (the end of the forward pass, the last layer's backward pass, the first layer's) takes the
    same amount more with each layer.
    """
    layers = text_config(step.config).num_hidden_layers
    if layers <= DEPTHS[1]:
        traced = _trace(step, batch, layers)
        return _bytes([traced, traced], 0, step.gradient_share)
    return _bytes([_trace(step, batch, depth) for depth in DEPTHS], layers - DEPTHS[0], step.gradient_share)


def step_weights(step: Step) -> int:
    """Bytes of the weights alone."""
    layers = text_config(step.config).num_hidden_layers
    sizes = []
    for depth in (layers, layers) if layers <= DEPTHS[1] else DEPTHS:
        model = skeleton(step, depth)
        held = {id(each): each for each in [*model.parameters(), *model.buffers()]}
        sizes.append(sum(each.numel() * each.element_size() for each in held.values()))
    return int(sizes[0] + (layers - DEPTHS[0]) * (sizes[1] - sizes[0]))


@dataclass(frozen=True)
class _Traced:
    held: dict[str, int]
    peaks: dict[str, dict[str, int]]
    trained: int
    parameters: int
    layer: int
    layers: int
    gradients: int


def _bytes(traced: list[_Traced], more: int, share: float) -> Bytes:
    """Bytes of a model with so many layers more than the first of two that differ by one."""
    shallow, deeper = traced

    def grown(one: float, other: float) -> int:
        return int(one + more * (other - one))

    moments = deepened(shallow.peaks, deeper.peaks, more).values()
    highest = max(moments, key=lambda parts: sum(parts.values()) - (1 - share) * parts.get(GRADIENTS, 0))
    held = {name: grown(size, deeper.held[name]) for name, size in shallow.held.items()}
    return Bytes(
        weights=held[WEIGHTS],
        adapters=held[ADAPTERS],
        trained=grown(shallow.trained, deeper.trained),
        largest_layer=shallow.layer,
        outside_layers=max(0, shallow.parameters - shallow.layers * shallow.layer),
        parameters=grown(shallow.parameters, deeper.parameters),
        gradients=highest.get(GRADIENTS, 0),
        activations=highest.get(ACTIVATIONS, 0),
        loss_head=highest.get(HEAD, 0),
        gradients_in_full=grown(shallow.gradients, deeper.gradients),
    )


def deepened(
    shallow: Mapping[str, Mapping[str, int]], deeper: Mapping[str, Mapping[str, int]], more: int
) -> dict[str, dict[str, int]]:
    """Bytes of each moment with so many layers more than the first of two models that differ by one."""
    return {
        phase: {
            name: low.get(name, 0) + more * (high.get(name, 0) - low.get(name, 0))
            for name in low.keys() | high.keys()
        }
        for phase, low, high in (
            (each, shallow[each], deeper[each]) for each in shallow.keys() & deeper.keys()
        )
    }


def _trace(step: Step, batch: Batch, layers: int) -> _Traced:
    model = skeleton(step, layers)
    held = list(model.parameters()) + list(model.buffers())
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    adapters = [weight for weight in trained if step.lora is not None]
    counter = LiveBytes()
    with counter:
        counter.count(held, WEIGHTS)
        counter.count(adapters, ADAPTERS)
        weights = {WEIGHTS: counter.live.get(WEIGHTS, 0), ADAPTERS: counter.live.get(ADAPTERS, 0)}
        counter.peaks.clear()
        counter.watch_gradients(trained)
        if step.accumulates:
            for weight in trained:
                weight.grad = torch.empty_like(weight)
                counter.count([weight.grad], GRADIENTS)
        _watch_layers(model, counter, layers)
        _pass(step, batch, model, counter)
    decoder = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layer = max((sum(w.numel() for w in each[0].parameters()) for each in decoder if len(each)), default=0)
    return _Traced(
        held=weights,
        peaks={
            phase: {name: size for name, size in parts.items() if name not in (WEIGHTS, ADAPTERS)}
            for phase, parts in counter.peaks.items()
        },
        trained=sum(weight.numel() for weight in trained),
        parameters=sum(weight.numel() for weight in model.parameters()),
        layer=layer,
        layers=layers,
        gradients=sum(weight.numel() * weight.element_size() for weight in trained),
    )


def _watch_layers(model: Any, counter: LiveBytes, layers: int) -> None:
    """Name the moments of the backward pass: the last layer's, those between, and the first layer's."""
    left: dict[int, int] = {}

    def taken(number: int) -> Callable[[Any], None]:
        def after(_: Any) -> None:
            left[number] -= 1
            if left[number] == 0 and number > 0:
                counter.phase = "first layer" if number == 1 else "between"

        return after

    stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers)
    for number, layer in enumerate(stack):
        weights = [weight for weight in layer.parameters() if weight.requires_grad]
        left[number] = len(weights)
        for weight in weights:
            weight.register_post_accumulate_grad_hook(taken(number))  # type: ignore[no-untyped-call]


def _pass(step: Step, batch: Batch, model: Any, counter: LiveBytes) -> None:
    """A forward and a backward pass."""
    if step.checkpointing:
        _checkpoint(step, batch, model)
    counter.phase = "forward"
    loss = _loss(step, batch, model, counter)
    if step.reference:
        with torch.no_grad():
            kept = _loss(replace(step, checkpointing=False), batch, model.eval(), counter)
        loss = loss + kept
        model.train()
    counter.phase = "last layer"
    loss.backward()  # type: ignore[no-untyped-call]


def _loss(step: Step, batch: Batch, model: Any, counter: LiveBytes) -> torch.Tensor:
    with computing(step, is_padded=batch.is_padded):
        if step.trainer == "reward":
            return _scores(batch, model, step).float().sum()
        if step.trainer in WITHOUT_REFERENCE:
            return _full_logits(batch, model, step, counter)
        hidden = hidden_states(batch, model, step)
        with counter.named(HEAD):
            picked = _picked(hidden, batch)
            compute = step.half or hidden.dtype
            weight = model.get_output_embeddings().weight
            named = partial(counter.named, HEAD)
            logps: torch.Tensor = LossHead.apply(  # type: ignore[no-untyped-call]
                picked, weight, compute, step.folds, named
            )
        return logps.sum()


def _picked(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Hidden states of the tokens that carry a loss."""
    # the last token of a row predicts nothing; behind a cached prompt a row begins one token earlier
    predicting = hidden if batch.cached is not None else hidden[:, :-1]
    flat = predicting.reshape(-1, hidden.shape[-1])
    places = torch.empty(min(batch.loss_tokens, len(flat)), dtype=torch.long)
    return flat[places]


def _inputs(batch: Batch, model: Any, step: Step) -> dict[str, Any]:
    """What the decoder is given."""
    rows, width = batch.shared or (batch.rows, batch.width)
    ids = torch.empty(rows, width, dtype=torch.long)
    if batch.shared is None:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    positions = torch.empty_like(ids)
    if step.config._attn_implementation == "eager":
        mask = torch.zeros(rows, 1, width, width, dtype=step.held_in)
    else:
        mask = torch.ones(rows, 1, width, width, dtype=torch.bool)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def hidden_states(batch: Batch, model: Any, step: Step) -> torch.Tensor:
    """What the decoder gives for the rows of a batch, each at its own place."""
    if batch.cached is not None:
        return _continued(batch, batch.cached, model)
    hidden: torch.Tensor = model.base_model(**_inputs(batch, model, step), use_cache=False).last_hidden_state
    return hidden if batch.shared is None else _restored(hidden, batch)


def _restored(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Hidden states of rows that were computed together, at their own places."""
    places = torch.empty(batch.rows, batch.width, dtype=torch.long)
    taken = hidden.flatten(0, 1)[places]
    return taken * (places != 0)[..., None]


def _continued(batch: Batch, prompts: tuple[int, int], model: Any) -> torch.Tensor:
    """Hidden states of answers that go on from a cache of their prompts, each copied for its answers."""
    given, owners = torch.empty(prompts, dtype=torch.long), torch.empty(batch.rows, dtype=torch.long)
    mask = torch.ones_like(given) if batch.is_padded else None
    filled = model.base_model(input_ids=given, attention_mask=mask, use_cache=True, position_ids=given)
    name = cache_name(model.base_model)
    cache = getattr(filled, name)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[owners], layer.values[owners]
    ids = torch.empty(batch.rows, batch.width, dtype=torch.long)
    seen = torch.ones(batch.rows, prompts[1] + batch.width, dtype=torch.long)
    answered = model.base_model(input_ids=ids, attention_mask=seen, position_ids=ids, **{name: cache})
    hidden: torch.Tensor = answered.last_hidden_state
    return hidden


def _scores(batch: Batch, model: Any, step: Step) -> torch.Tensor:
    scores: torch.Tensor = model.score(hidden_states(batch, model, step))
    return scores[:, 0]


def _full_logits(batch: Batch, model: Any, step: Step, counter: LiveBytes) -> torch.Tensor:
    """ORPO's and CPO's loss: all logits, the chosen ones once more, log-probabilities of all of them."""
    hidden = hidden_states(batch, model, step)
    with counter.named(HEAD):
        logits = model.get_output_embeddings()(hidden)
        if step.half is not None:
            logits = logits.float()
        chosen = logits[: batch.rows // 2, :-1].contiguous().flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(chosen, torch.zeros(len(chosen), dtype=torch.long))
        shifted = logits[:, :-1].log_softmax(-1)
        picked = shifted.gather(2, torch.zeros(batch.rows, batch.width - 1, 1, dtype=torch.long))
        total: torch.Tensor = loss + picked.sum()
        return total


@contextmanager
def computing(step: Step, *, is_padded: bool) -> Iterator[None]:
    """Within it, a model without data allocates what a real one does, on no device."""
    with AsComputed(step.half, is_padded=is_padded, drops=step.folds), torch.device("meta"):
        yield


def _checkpoint(step: Step, batch: Batch, model: Any) -> None:
    """Compute a layer's activations again in the backward pass, and then as in the forward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(
        {
            "use_reentrant": False,
            "context_fn": lambda: (nullcontext(), computing(step, is_padded=batch.is_padded)),
        }
    )
    if step.lora is not None:
        model.enable_input_require_grads()
