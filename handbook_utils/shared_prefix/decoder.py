"""A decoder that computes what its rows have in common once, and answers as if it had not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from handbook_utils.libraries.transformers_internals import attention_of, given_cache, is_recurrent
from handbook_utils.shared_prefix.layout import PADDING, PREFIX, SharedRows, attention, share_rows

_ATTENTIONS = ("sdpa", "eager", "flex_attention")
_LAYERS = {"full_attention", "sliding_attention"}
ROUTER_LOSS = "the router's auxiliary loss counts tokens; set the model's router_aux_loss_coef to 0"


@contextmanager
def shared_prefixes(model: Any, groups: Sequence[int] | None = None) -> Iterator[None]:
    """Within it, the model's decoder lays the rows of a group out as one row.

    What comes out has the rows, columns and values it has without, so that head, loss and metrics stay as
    they are; hidden states at padding are zero. A batch that cannot be shared exactly (padded on the left,
    with a cache, longer than a sliding window) runs as ever.

    Args:
        model: any decoder of transformers with a head, with or without an adapter.
        groups: the group of each row of a batch; absent: pairs as TRL lays them out, the chosen rows and then
            the rejected ones.
    Raises:
        ValueError: this model cannot share, see `why_not_shared`.
    """
    if reason := why_not_shared(model):
        raise ValueError(f"the prompt cannot be shared exactly: {reason}.")
    decoder = decoder_of(model)
    original, hooked = decoder.forward, "forward" in vars(decoder)

    def forward(
        input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **rest: Any
    ) -> Any:
        rows = _shared(decoder, input_ids, attention_mask, rest, groups)
        if input_ids is None or rows is None:
            return original(input_ids=input_ids, attention_mask=attention_mask, **rest)
        output = original(**rest | _inputs(decoder, input_ids, rows))
        output.last_hidden_state = _restored(output.last_hidden_state, rows)
        return output

    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward
        if hooked:  # as accelerate does to move inputs between devices
            decoder.forward = original


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


def decoder_of(model: Any) -> Any:
    """The part of a model between token ids and hidden states, below adapters and head."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return whole.get_decoder() if hasattr(whole, "get_decoder") else whole.base_model


def _shared(
    decoder: Any,
    ids: torch.Tensor | None,
    mask: torch.Tensor | None,
    rest: dict[str, Any],
    groups: Sequence[int] | None,
) -> SharedRows | None:
    """The layout of a batch, or None where it has to run as it is."""
    has_cache = given_cache(rest) is not None or rest.get("use_cache")
    if ids is None or has_cache or rest.get("position_ids") is not None or rest.get("output_router_logits"):
        return None
    if mask is not None and mask.dim() != 2:
        return None
    kept = np.ones(ids.shape, dtype=bool) if mask is None else mask.cpu().numpy().astype(bool)
    lengths = kept.sum(axis=1)
    if not (kept == (np.arange(ids.shape[1]) < lengths[:, None])).all():
        return None  # padded on the left, or with holes
    window = getattr(decoder.config, "sliding_window", None)
    if window is not None and lengths.max() > window:
        return None
    if groups is None:
        groups = [row % (len(ids) // 2) for row in range(len(ids))]
    rows = share_rows(ids.cpu().numpy(), lengths, groups)
    return rows if rows.tokens < lengths.sum() else None


def _inputs(decoder: Any, ids: torch.Tensor, rows: SharedRows) -> dict[str, torch.Tensor]:
    """What the decoder is given instead of the batch."""
    sources = torch.from_numpy(rows.sources).to(ids.device)
    padding = decoder.config.pad_token_id or 0
    shared = torch.where(sources == PADDING, padding, ids.flatten()[sources.clamp(min=0)])
    return {
        "input_ids": shared,
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


def _restored(hidden: torch.Tensor, rows: SharedRows) -> torch.Tensor:
    """Hidden states of the shared rows, (shared rows, width, size), at the places of the rows."""
    places = torch.from_numpy(rows.places).to(hidden.device)
    taken = hidden.flatten(0, 1)[places.clamp(min=0)]
    return taken * (places != PADDING)[..., None]
