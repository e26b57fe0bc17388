"""Keys and values of prompts, each held once, and the tokens of their answers, each in a row of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

# tokens by which a full buffer grows; few, since attention is slower over rows that lie far apart (on a CPU)
ROOM = 8
# a prompt without rows stays in its block until this share of the block's prompts has none
PRUNE_AT = 1 / 4
States = tuple[torch.Tensor, torch.Tensor]


class Tail:
    """Keys and values of the tokens that rows have had since their prompt, in one layer.

    All rows have as many. `keys` and `values`, each (rows, heads, tokens, width), are views of buffers that
    are longer, so that a new token is written and nothing copied.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._length = 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Append one token per row, each (rows, heads, 1, width)."""
        if not self._buffers:
            self._buffers = [states[..., :0, :] for states in (keys, values)]
        start, end = self._length, self._length + keys.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = [longer(buffer[..., :start, :], end) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            buffer[..., start:end, :] = states
        self._length = end

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows."""
        self._buffers = [buffer.index_select(0, rows.to(buffer.device)) for buffer in self._buffers]

    @property
    def states(self) -> States:
        """Keys and values so far."""
        keys, values = (buffer[..., : self._length, :] for buffer in self._buffers)
        return keys, values

    @property
    def held_bytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)


class PromptBlock:
    """Prompts of like length that were read together, and the rows that answer them, all at the same step.

    Args:
        prompts: per layer, keys and values, each (prompts, heads, tokens, width), padded on the left.
        kept: (prompts, tokens) False at padding; None without any.
        samples: rows of each prompt at first. They stand prompt by prompt.
    """

    def __init__(self, prompts: Sequence[States], kept: torch.Tensor | None, samples: int) -> None:
        self._prompts = list(prompts)
        self._padding = None if kept is None else ~kept[:, None, None]
        self._tails = [Tail() for _ in prompts]
        device, count = prompts[0][0].device, len(prompts[0][0])
        self._owners = torch.arange(count, device=device).repeat_interleave(samples)
        self._arrange()

    @property
    def rows(self) -> int:
        """Rows it has."""
        return len(self._owners)

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values, of the prompts and of the rows."""
        prompts = sum(states.nbytes for layer in self._prompts for states in layer)
        return prompts + sum(tail.held_bytes for tail in self._tails)

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Append one token per row in a layer, each (rows, heads, 1, width)."""
        self._tails[layer].append(keys, values)

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in ascending order; the others' tokens are freed, and prompts without rows."""
        self._owners = self._owners[rows]
        for tail in self._tails:
            tail.select(rows)
        count = len(self._prompts[0][0])
        alive = torch.bincount(self._owners, minlength=count).nonzero().squeeze(1)
        if count - len(alive) >= max(1, PRUNE_AT * count):
            self._owners = torch.searchsorted(alive, self._owners)
            self._padding = None if self._padding is None else self._padding[alive]
            self._prompts = [
                (keys.index_select(0, alive.to(keys.device)), values.index_select(0, alive.to(values.device)))
                for keys, values in self._prompts
            ]
        self._arrange()

    def attend(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        """Attention of one token per row over its prompt and its own tokens, in one softmax.

        Args:
            layer: number of the layer.
            query: (rows, heads, width), scaled; as many heads as the keys have, or a multiple.
        Returns:
            (rows, heads, width of the values).
        """
        keys, values = self._prompts[layer]
        own_keys, own_values = self._tails[layer].states
        rows, (count, heads, tokens, width) = len(query), keys.shape
        grouped = query.reshape(rows, heads, -1, width)
        by_prompt = self._by_prompt(grouped)
        over_prompt = torch.bmm(by_prompt, keys.flatten(0, 1).transpose(1, 2))
        if self._padding is not None:
            by_head = over_prompt.view(count, heads, -1, tokens)
            by_head.masked_fill_(self._padding.to(keys.device), float("-inf"))
        over_own = torch.bmm(grouped.flatten(0, 1), own_keys.flatten(0, 1).transpose(1, 2))
        scores = torch.cat(
            [over_prompt, self._by_prompt(over_own.view(rows, heads, *over_own.shape[1:]))], -1
        )
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype)
        read = torch.bmm(weights[..., :tokens], values.flatten(0, 1))
        own_weights = self._by_row(weights[..., tokens:], heads).flatten(0, 1)
        own = torch.bmm(own_weights, own_values.flatten(0, 1))
        both: torch.Tensor = self._by_row(read, heads) + own.view(rows, heads, *own.shape[1:])
        return both.flatten(1, 2)

    def _arrange(self) -> None:
        """Work out where each row stands among its prompt's, for one matrix product per prompt."""
        count = len(self._prompts[0][0])
        rows = torch.bincount(self._owners, minlength=count)
        self._most = int(rows.max())
        self._order = self._back = None
        if self._most * count != self.rows:
            first = rows.cumsum(0) - rows
            number = torch.arange(self.rows, device=rows.device)
            self._back = self._owners * self._most + number - first[self._owners]
            # a place without a row is computed from row 0, and nobody asks for the result
            self._order = torch.zeros(count * self._most, dtype=torch.long, device=rows.device)
            self._order[self._back] = number

    def _by_prompt(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, heads, group, size) as (prompts * heads, rows per prompt * group, size)."""
        if self._order is not None:
            states = states[self._order.to(states.device)]
        _, heads, group, size = states.shape
        several = states.view(-1, self._most, heads, group, size).transpose(1, 2)
        return several.reshape(-1, self._most * group, size)

    def _by_row(self, states: torch.Tensor, heads: int) -> torch.Tensor:
        """(prompts * heads, rows per prompt * group, size) as (rows, heads, group, size)."""
        size = states.shape[-1]
        several = states.view(-1, heads, self._most, states.shape[1] // self._most, size).transpose(1, 2)
        by_row = several.flatten(0, 1)
        return by_row if self._back is None else by_row[self._back.to(states.device)]


class PromptCache(Cache):  # type: ignore[misc]  # transformers ships no types
    """The cache of one batch of rows: blocks, one after the other in the order of the batch's rows."""

    def __init__(self, layers: int) -> None:
        self.blocks: list[PromptBlock] = []
        super().__init__(layers=[_Layer(self, number) for number in range(layers)])
        # of the token that is computed: the layer that was asked last, and what it was given
        self.latest: tuple[int, torch.Tensor] | None = None

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Append one token per row in a layer, each (rows, heads, 1, width)."""
        sizes = [block.rows for block in self.blocks]
        for block, own_keys, own_values in zip(
            self.blocks, torch.split(keys, sizes), torch.split(values, sizes), strict=True
        ):
            block.append(layer, own_keys, own_values)
        self.latest = layer, keys

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        """Attention in the layer that was asked last: (rows, heads, width) in, (rows, heads, width) out."""
        assert self.latest is not None
        layer = self.latest[0]
        parts = torch.split(query, [block.rows for block in self.blocks])
        return torch.cat([block.attend(layer, part) for block, part in zip(self.blocks, parts, strict=True)])

    @property
    def held_bytes(self) -> int:
        """Bytes held in keys and values."""
        return sum(block.held_bytes for block in self.blocks)


class _Layer(CacheLayerMixin):  # type: ignore[misc]  # transformers ships no types
    """One layer as the model sees it: it shows no more than the token that is computed.

    So a mask that transformers makes covers that token alone; the attention that is used with it knows the
    rest from the blocks.
    """

    is_sliding = False

    def __init__(self, cache: PromptCache, number: int) -> None:
        super().__init__()
        self._cache, self._number = cache, number

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to prepare."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> States:
        """Append the states of one token per row, and return them."""
        self._cache.append(self._number, key_states, value_states)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """None before the token that is computed."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys, and the place of the first, for a mask."""
        return query_length, 0


def longer(states: torch.Tensor, tokens: int) -> torch.Tensor:
    """A buffer for `tokens` tokens and some more that begins with `states`."""
    buffer = states.new_empty(*states.shape[:-2], tokens + ROOM, states.shape[-1])
    buffer[..., : states.shape[-2], :] = states
    return buffer
