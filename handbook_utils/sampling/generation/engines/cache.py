"""A key-value cache with room to grow: a new token is written into it, the others stay where they are."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from handbook_utils.shared_prefix.prompt_cache import longer


def with_room(cache: Cache) -> Cache:
    """Give the plain layers of a cache room to grow; other kinds (sliding, convolutional) stay as they are.

    `DynamicCache` concatenates at each step, which copies the whole cache for every token.
    """
    cache.layers = [_with_room(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _with_room(layer: DynamicLayer) -> CacheLayerMixin:
    if not layer.is_initialized:  # as where layers share their keys and values
        return layer
    roomy = RoomyLayer()
    roomy.update(layer.keys, layer.values)
    return roomy


class RoomyLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers ships no types
    """Keys and values, each (rows, heads, tokens, width), as views of buffers that are longer.

    It has the whole interface of a cache layer and none of transformers' own code, whose attributes change
    between releases.
    """

    is_sliding = False
    is_croppable = True
    keys: torch.Tensor | None
    values: torch.Tensor | None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Begin with no token, in the shape, dtype and device of these states."""
        self.device = key_states.device
        self._length = 0
        self._buffers = [states[..., :0, :] for states in (key_states, value_states)]
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states of new tokens; return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = [longer(buffer[..., :start, :], end) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self._length = end
        return self._show()

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self._length if self.is_initialized else 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys, and the place of the first, for a mask of `query_length` new tokens."""
        return self.get_seq_length() + query_length, 0

    def reset(self) -> None:
        """Forget every token."""
        self.keys = self.values = None
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens: -2 forgets two."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens, not {tokens_to_remove}")
        if self.is_initialized:
            self._length = max(0, self._length + tokens_to_remove)
            self._show()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows, in this order; an index given twice copies its row."""
        if self.is_initialized:
            self._buffers = [buffer.index_select(0, beam_idx.to(buffer.device)) for buffer in self._buffers]
            self._show()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Copy each row, its copies beside it."""
        if self.is_initialized:
            rows = torch.arange(len(self._buffers[0]), device=self._buffers[0].device)
            self.reorder_cache(rows.repeat_interleave(repeats))

    def offload(self) -> None:
        """Move the states to the CPU."""
        self._move(torch.device("cpu"))

    def prefetch(self) -> None:
        """Move the states back to where they are computed with."""
        if self.is_initialized:
            self._move(self.device)

    def _move(self, device: torch.device) -> None:
        if self.is_initialized:
            self._buffers = [buffer.to(device, non_blocking=True) for buffer in self._buffers]
            self._show()

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (buffer[..., : self._length, :] for buffer in self._buffers)
        self.keys, self.values, self.is_initialized = keys, values, True
        return keys, values
