"""A key-value cache with room to grow: a new token is written into it, the others stay where they are."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

# tokens by which a full buffer grows; few, since attention is slower over rows that lie far apart (on a CPU)
ROOM = 8


def with_room(cache: Cache) -> Cache:
    """Give the plain layers of a cache room to grow; other kinds (sliding, convolutional) stay as they are.

    `DynamicCache` concatenates at each step, which copies the whole cache for every token.
    """
    cache.layers = [
        RoomyLayer(layer) if type(layer) is DynamicLayer and layer.is_initialized else layer
        for layer in cache.layers
    ]
    return cache


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers ships no types
    """Keys and values, (rows, heads, tokens, width), as views of buffers that are longer."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._length = layer.keys.shape[-2]
        self._buffers = [_longer(part, self._length) for part in (layer.keys, layer.values)]
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states of new tokens; return all keys and values."""
        end = self._length + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = [_longer(buffer[..., : self._length, :], end) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., self._length : end, :] = states
        self._length = end
        self._show()
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows, in this order; an index given twice copies its row."""
        self._buffers = [buffer.index_select(0, beam_idx) for buffer in self._buffers]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (buffer[..., : self._length, :] for buffer in self._buffers)


def _longer(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """A buffer for `tokens` tokens and some more that begins with `states`."""
    buffer = states.new_empty(*states.shape[:-2], tokens + ROOM, states.shape[-1])
    buffer[..., : states.shape[-2], :] = states
    return buffer
