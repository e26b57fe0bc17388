"""The attention that reads a prompt held once, as transformers takes it, and for which models it is exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from handbook_utils.libraries.transformers_internals import attention_of, is_recurrent, set_attention
from handbook_utils.shared_prefix.decoder import decoder_of
from handbook_utils.shared_prefix.prompt_cache import PromptCache, States

NAME = "handbook_prompt_once"
_PLAIN = "sdpa"
# what models hand to their attention besides queries, keys, values, mask, scaling and dropout, and which does
# not change the result, or (a sliding window) is looked at in the cache; anything else may change it
_HARMLESS = {"position_ids", "use_cache", "is_causal", "sliding_window", "cu_seq_lens_q", "cu_seq_lens_k"}


class NotExactError(Exception):
    """This model's attention over a prompt held once would give other numbers; the text says why."""


@dataclass
class _Reading:
    """What attention was given while prompts were read: states per layer, and settings not known here."""

    states: list[States] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)


# what the thread's attention works on: a cache of prompts held once, or prompts that are being read
_current: ContextVar[PromptCache | _Reading | None] = ContextVar("prompt attention", default=None)


def why_not_once(model: Any, tokens: int) -> str | None:
    """Why this model's prompts cannot be held once without changing its numbers; None where they can.

    More is seen when a prompt is read: see `reading`.

    Args:
        model: a causal language model, with or without an adapter.
        tokens: of the longest prompt and its answer together.
    """
    decoder = decoder_of(model)
    config = decoder.config
    if is_recurrent(decoder):
        return f"{config.model_type} keeps a state along the row"
    if attention_of(config) != _PLAIN:
        return f"attention '{attention_of(config)}' is not '{_PLAIN}'"
    return _why_not_cached(DynamicCache(config=config), tokens)


@contextmanager
def _using(model: Any, state: PromptCache | _Reading) -> Iterator[None]:
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, AttentionMaskInterface()[_PLAIN])
    config = decoder_of(model).config
    set_attention(config, NAME)
    token = _current.set(state)
    try:
        yield
    finally:
        _current.reset(token)
        set_attention(config, _PLAIN)


@contextmanager
def decoding(model: Any, cache: PromptCache) -> Iterator[None]:
    """Within it, the model's attention reads the prompts of this cache, which it has to be given."""
    with _using(model, cache):
        yield


@contextmanager
def reading(model: Any) -> Iterator[_Reading]:
    """Within it, the model reads prompts as ever, and what its attention is given is looked at."""
    with _using(model, seen := _Reading()):
        yield seen


def prompts_of(cache: Cache, seen: _Reading, tokens: int, new_tokens: int) -> list[States]:
    """Keys and values of prompts that were read, per layer.

    Args:
        cache: as the model returned it.
        seen: by `reading`.
        tokens: of the longest prompt.
        new_tokens: most tokens of an answer.
    Raises:
        NotExactError: the model's attention is of a kind that would give other numbers.
    """
    if seen.unknown:
        raise NotExactError(f"its attention takes {', '.join(sorted(seen.unknown))}")
    if reason := _why_not_cached(cache, tokens + new_tokens):
        raise NotExactError(reason)
    prompts = [(layer.keys, layer.values) for layer in cache.layers]
    if any(keys.shape[-2] != tokens for keys, _ in prompts):
        raise NotExactError("its cache holds other tokens than the prompt's")
    if len(prompts) != len(seen.states) or not all(map(_same, prompts, seen.states)):
        raise NotExactError("not every layer attends, by transformers' interface, to what its cache holds")
    return prompts


def _same(cached: States, attended: States) -> bool:
    """Whether two pairs of tensors are the same memory."""
    return all(
        mine.data_ptr() == theirs.data_ptr() and mine.shape == theirs.shape
        for mine, theirs in zip(cached, attended, strict=True)
    )


def _why_not_cached(cache: Cache, tokens: int) -> str | None:
    for layer in cache.layers:
        if type(layer) is DynamicSlidingWindowLayer:
            # up to the window, sliding attention is full attention
            if tokens > layer.sliding_window:
                return (
                    f"prompt and answer are longer than its sliding window of {layer.sliding_window} tokens"
                )
        elif type(layer) is not DynamicLayer:
            return f"its cache has a layer of another kind, {type(layer).__name__}"
    return None


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: (rows, heads, tokens, width) in, (rows, tokens, heads, width) out."""
    state = _current.get()
    if not isinstance(state, PromptCache):
        if state is not None:
            state.states.append((key, value))
            given = {name for name, setting in rest.items() if setting is not None and setting is not False}
            state.unknown |= given - _HARMLESS | ({"dropout"} if dropout else set())
        plain: Any = AttentionInterface()[_PLAIN]
        found: tuple[torch.Tensor, None] = plain(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest
        )
        return found
    if state.latest is None or state.latest[1] is not key:
        raise RuntimeError("a layer attends to other keys than it put into its cache, or by another model")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return state.attend(query.squeeze(2) * scale)[:, None], None
