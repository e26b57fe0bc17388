"""One training step on tensors without data: what is alive at its highest moment, by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from handbook_utils.planning.kernels import AsComputed, LossHead, LowRank, PackedLinear
from handbook_utils.planning.live_bytes import ACTIVATIONS, GRADIENTS, LiveBytes
from handbook_utils.schema.sections import WITHOUT_REFERENCE, LoraSection

HEAD = "loss head"
WEIGHTS, ADAPTERS, QUANTISED = "weights", "adapters", "quantised weights"
# layers of which a step is computed; what deeper models take grows by the same amount with each layer
DEPTHS = (2, 3)
BYTES_PER_WEIGHT = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "fp4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
# the name of one of TRL's trainers, as `TrainingRecipe.trainer` has it
Trainer = str


@dataclass(frozen=True)
class Batch:
    """The rows of one forward pass on one device.

    Attributes:
        rows: sequences, of pairs both.
        width: tokens of the longest, to which the others are padded.
        loss_tokens: tokens of all rows that carry a loss.
        is_padded: whether any row is shorter.
        shared: (rows, width) as the decoder computes them, where a pair's prompt stands once; None: as above.
    """

    rows: int
    width: int
    loss_tokens: int
    is_padded: bool = True
    shared: tuple[int, int] | None = None


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
    layers = _text(step.config).num_hidden_layers
    if layers <= DEPTHS[1]:
        traced = _trace(step, batch, layers)
        return _bytes([traced, traced], 0, step.gradient_share)
    return _bytes([_trace(step, batch, depth) for depth in DEPTHS], layers - DEPTHS[0], step.gradient_share)


def step_weights(step: Step) -> int:
    """Bytes of the weights alone."""
    layers = _text(step.config).num_hidden_layers
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

    moments = []
    for phase in shallow.peaks.keys() & deeper.peaks.keys():
        low, high = shallow.peaks[phase], deeper.peaks[phase]
        moments.append(
            {name: grown(low.get(name, 0), high.get(name, 0)) for name in low.keys() | high.keys()}
        )
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


def _text(config: Any) -> Any:
    return config.get_text_config()


def shallow_config(config: Any, layers: int) -> Any:
    """A copy of a configuration with so many layers, which are as its first ones."""
    copied = type(config).from_dict(config.to_dict())
    copied._attn_implementation = config._attn_implementation
    text = _text(copied)
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
    with _computing(step, batch):
        if step.trainer == "reward":
            return _scores(batch, model, step).float().sum()
        if step.trainer in WITHOUT_REFERENCE:
            return _full_logits(batch, model, step, counter)
        hidden = _hidden(batch, model, step)
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
    flat = hidden[:, :-1].reshape(-1, hidden.shape[-1])
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


def _hidden(batch: Batch, model: Any, step: Step) -> torch.Tensor:
    hidden: torch.Tensor = model.base_model(**_inputs(batch, model, step), use_cache=False).last_hidden_state
    return hidden if batch.shared is None else _restored(hidden, batch)


def _restored(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Hidden states of rows that were computed together, at their own places."""
    places = torch.empty(batch.rows, batch.width, dtype=torch.long)
    taken = hidden.flatten(0, 1)[places]
    return taken * (places != 0)[..., None]


def _scores(batch: Batch, model: Any, step: Step) -> torch.Tensor:
    scores: torch.Tensor = model.score(_hidden(batch, model, step))
    return scores[:, 0]


def _full_logits(batch: Batch, model: Any, step: Step, counter: LiveBytes) -> torch.Tensor:
    """ORPO's and CPO's loss: all logits, the chosen ones once more, log-probabilities of all of them."""
    hidden = _hidden(batch, model, step)
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
def _computing(step: Step, batch: Batch) -> Iterator[None]:
    how = AsComputed(step.half, is_padded=batch.is_padded, drops=step.folds)
    with how, torch.device("meta"):
        yield


def _checkpoint(step: Step, batch: Batch, model: Any) -> None:
    """Compute a layer's activations again in the backward pass, and then as in the forward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), _computing(step, batch))})
    if step.lora is not None:
        model.enable_input_require_grads()
