"""A decoder that computes what its rows have in common once, and answers as if it had not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from handbook_utils.libraries.transformers_internals import attention_of, given_cache, is_recurrent
from handbook_utils.shared_prefix.layout import (
    PADDING,
    PREFIX,
    SharedRows,
    attention,
    rows_apart,
    runs_of_like_width,
    share_rows,
)

_ATTENTIONS = ("sdpa", "eager", "flex_attention")
_LAYERS = {"full_attention", "sliding_attention"}
# arguments that ask for something of the whole batch
_OF_THE_BATCH = ("use_cache", "output_router_logits", "output_hidden_states", "output_attentions")
ROUTER_LOSS = "the router's auxiliary loss counts tokens; set the model's router_aux_loss_coef to 0"


@contextmanager
def shared_prefixes(
    model: Any, groups: Sequence[int] | None = None, *, skip_padding: bool = False
) -> Iterator[None]:
    """Within it, the model's decoder lays the rows of a group out as one row.

    What comes out has the rows, columns and values it has without, so that head, loss and metrics stay as
    they are; hidden states at padding are zero. A batch that cannot be shared exactly (padded on the left,
    with a cache, longer than a sliding window) runs as ever.

    Args:
        model: any decoder of transformers with a head, with or without an adapter.
        groups: the group of each row of a batch; absent: pairs as TRL lays them out, the chosen rows and then
            the rejected ones.
        skip_padding: also compute rows of different width apart, as `without_padding` does.
    Raises:
        ValueError: this model cannot share, see `why_not_shared`.
    """
    if reason := why_not_shared(model):
        raise ValueError(f"the prompt cannot be shared exactly: {reason}.")
    with _replaced(decoder_of(model), groups, shares=True, skip_padding=skip_padding):
        yield


@contextmanager
def without_padding(model: Any) -> Iterator[None]:
    """Within it, the model's decoder computes rows of different width apart, each about as wide as it is.

    A row's numbers never depend on the other rows of its batch, so what comes out has the values it has
    without, and zeros at padding. The decoder runs more than once, where less padding is worth that. A batch
    that is padded on the left, or comes with a cache, runs as ever.

    Args:
        model: any decoder of transformers with a head, with or without an adapter.
    Raises:
        ValueError: rows would change each other, see `why_padded`.
    """
    if reason := why_padded(model):
        raise ValueError(f"rows cannot be computed apart exactly: {reason}.")
    with _replaced(decoder_of(model), None, shares=False, skip_padding=True):
        yield


@contextmanager
def _replaced(
    decoder: Any, groups: Sequence[int] | None, *, shares: bool, skip_padding: bool
) -> Iterator[None]:
    """The decoder's `forward` with another layout of its rows, and the same answer."""
    original, hooked = decoder.forward, "forward" in vars(decoder)

    def forward(
        input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **rest: Any
    ) -> Any:
        as_given = {"input_ids": input_ids, "attention_mask": attention_mask, **rest}
        lengths = _lengths(input_ids, attention_mask, rest)
        if input_ids is None or lengths is None:
            return original(**as_given)
        rows = _shared(decoder, input_ids, lengths, groups) if shares else None
        is_shared = rows is not None
        if rows is None and not skip_padding:
            return original(**as_given)
        rows = rows or rows_apart(input_ids.shape, lengths)
        runs = [np.arange(len(rows.widths))]
        if skip_padding:
            runs = runs_of_like_width(rows.widths, pass_overhead(decoder.config.hidden_size))
        if len(runs) == 1 and not is_shared:
            return original(**as_given)
        inputs = [_inputs(decoder, input_ids, rows.only(run), is_shared=is_shared) for run in runs]
        outputs = [original(**rest | each) for each in inputs]
        hidden = [each.last_hidden_state for each in outputs]
        return type(outputs[0])(last_hidden_state=_restored(hidden, rows, runs))

    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward
        if hooked:  # as accelerate does to move inputs between devices
            decoder.forward = original


def pass_overhead(hidden_size: int) -> float:
    """What running the decoder once more costs, in tokens.

    Measured with Llamas on a CPU, forward and backward: 125 tokens at hidden size 128, 49 at 256, 37 at 512.

    >>> [round(pass_overhead(size)) for size in (128, 256, 4096)]
    [171, 43, 32]
    """
    return max(32.0, 2**26 / (24 * hidden_size**2))


def why_not_shared(model: Any) -> str | None:
    """Why a model's rows cannot be shared without changing its numbers; None where they can."""
    decoder = decoder_of(model)
    config = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    if is_recurrent(decoder) or kinds:
        return f"{config.model_type} keeps a state along the row ({', '.join(sorted(kinds)) or 'recurrent'})"
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return f"{config.model_type} takes no position_ids"
    if attention_of(config) not in _ATTENTIONS:
        return f"attention '{attention_of(config)}' takes no mask of its own; sdpa does"
    if getattr(config, "output_router_logits", False) and getattr(config, "router_aux_loss_coef", 0):
        return ROUTER_LOSS
    return None


def why_padded(model: Any) -> str | None:
    """Why a model's rows have to be computed together; None where they can be computed apart."""
    config = decoder_of(model).config
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
        return f"{config.model_type} is no decoder on its own"
    if getattr(config, "output_router_logits", False):
        return "its router's logits are asked for, of the whole batch"
    return None


def decoder_of(model: Any) -> Any:
    """The part of a model between token ids and hidden states, below adapters and head."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return whole.get_decoder() if hasattr(whole, "get_decoder") else whole.base_model


def _lengths(
    ids: torch.Tensor | None, mask: torch.Tensor | None, rest: dict[str, Any]
) -> NDArray[np.int64] | None:
    """(rows,) tokens of each row of a batch, or None where it has to run as it is."""
    if ids is None or given_cache(rest) is not None or any(rest.get(name) for name in _OF_THE_BATCH):
        return None
    if rest.get("position_ids") is not None or (mask is not None and mask.dim() != 2):
        return None
    kept = np.ones(ids.shape, dtype=bool) if mask is None else mask.cpu().numpy().astype(bool)
    lengths = kept.sum(axis=1)
    is_padded_on_the_right = (kept == (np.arange(ids.shape[1]) < lengths[:, None])).all()
    return lengths if is_padded_on_the_right and lengths.min(initial=1) > 0 else None


def _shared(
    decoder: Any, ids: torch.Tensor, lengths: NDArray[np.int64], groups: Sequence[int] | None
) -> SharedRows | None:
    """The layout of a batch whose rows share what they can, or None where nothing can be shared."""
    window = getattr(decoder.config, "sliding_window", None)
    if window is not None and lengths.max() > window:
        return None
    if groups is None:
        groups = [row % (len(ids) // 2) for row in range(len(ids))]
    rows = share_rows(ids.cpu().numpy(), lengths, groups)
    return rows if rows.tokens < lengths.sum() else None


def _inputs(decoder: Any, ids: torch.Tensor, rows: SharedRows, *, is_shared: bool) -> dict[str, Any]:
    """What the decoder is given instead of the batch."""
    sources = torch.from_numpy(rows.sources).to(ids.device)
    is_padding = sources == PADDING
    laid_out = torch.where(is_padding, decoder.config.pad_token_id or 0, ids.flatten()[sources.clamp(min=0)])
    if not is_shared:
        return {"input_ids": laid_out, "attention_mask": (~is_padding).long()}
    return {
        "input_ids": laid_out,
        "attention_mask": _mask(decoder, rows, ids.device),
        "position_ids": torch.from_numpy(rows.positions).to(ids.device),
    }


def _mask(decoder: Any, rows: SharedRows, device: torch.device) -> Any:
    """Who may attend to whom, in the form that the decoder's attention takes."""
    kind = attention_of(decoder.config)
    if kind == "flex_attention":
        return _block_mask(torch.from_numpy(rows.parts).to(device))
    allowed = torch.from_numpy(attention(rows.parts)).to(device)[:, None]
    if kind == "sdpa":
        return allowed
    lowest = torch.finfo(decoder.dtype).min  # eager attention adds its mask
    return torch.zeros(allowed.shape, dtype=decoder.dtype, device=device).masked_fill(~allowed, lowest)


def _block_mask(parts: torch.Tensor) -> Any:
    """The same as `attention`, in blocks of tokens: those in which no token may attend cost nothing."""
    from torch.nn.attention.flex_attention import create_block_mask

    def may_attend(
        row: torch.Tensor, _: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        own = parts[row, key]
        return (query >= key) & ((own == PREFIX) | (own == parts[row, query]))

    rows, width = parts.shape
    return create_block_mask(may_attend, rows, None, width, width, device=str(parts.device))


def _restored(
    hidden: Sequence[torch.Tensor], rows: SharedRows, runs: Sequence[NDArray[np.int64]]
) -> torch.Tensor:
    """Hidden states of each run, (rows, width, size), at the places of the batch's rows."""
    begins, at = np.zeros(len(rows.widths), np.int64), 0
    for run, states in zip(runs, hidden, strict=True):
        begins[run] = at + states.shape[1] * np.arange(len(run))
        at += states.shape[0] * states.shape[1]
    row, column = np.divmod(rows.places, rows.sources.shape[1])
    found = np.where(rows.places == PADDING, at, begins[row] + column)
    size = hidden[0].shape[-1]
    flat = torch.cat([*(states.flatten(0, 1) for states in hidden), hidden[0].new_zeros(1, size)])
    return flat[torch.from_numpy(found).to(flat.device)]
