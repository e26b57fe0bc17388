"""Rows and what they attend to: prompts held once or copied for each where they must be."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from transformers import Cache, PreTrainedModel

from handbook_utils.errors import ModelError
from handbook_utils.libraries.transformers_internals import cache_name
from handbook_utils.sampling.generation.engines.batches import Batch, Waiting
from handbook_utils.sampling.generation.engines.cache import with_room
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.rendering import TokenPrompt
from handbook_utils.shared_prefix.prompt_attention import (
    NotExactError,
    decoding,
    prompts_of,
    reading,
    why_not_once,
)
from handbook_utils.shared_prefix.prompt_cache import PromptBlock, PromptCache

LOGGER = logging.getLogger("handbook_utils")
# Multiply-adds for which a batch of its own is worth its operations: some 60 microseconds per layer and step.
# On a GPU, where it was not measured, arithmetic is so much cheaper that padding hardly counts.
WORTH_ON_CPU, WORTH_ELSEWHERE = 2.0**19, 2.0**28
# of models whose prompts are copied for each row: why, which is said once
_said: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
# models of which only reading a prompt showed it
_seen: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class Rows(Protocol):
    """The rows that are being computed, in batches; a batch's rows are all at the same step."""

    def begin(self, waiting: Waiting, running: int) -> list[tuple[Batch, torch.Tensor]]:
        """Read the prompts that may begin now; their rows come after those there are.

        Args:
            waiting: prompts.
            running: rows there are.
        Returns:
            Each batch with the logits of its rows, (rows, vocab).
        """

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per row, (rows,); return the next logits, (rows, vocab)."""

    def keep(self, place: int, rows: torch.Tensor) -> None:
        """Keep these rows of a batch, in ascending order."""

    def drop(self, place: int) -> None:
        """Drop a batch; the later ones move up."""


class Forward:
    """A model's forward pass over the newest tokens of rows."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        # an adapter hands on what it does not know
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.takes_positions = "position_ids" in inspect.signature(whole.forward).parameters
        self._cache_name = cache_name(model)

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None
    ) -> tuple[torch.Tensor, Cache]:
        """Logits of the last token, (rows, vocab), and the cache.

        Raises:
            ModelError: the model returns no cache.
        """
        extra: dict[str, Any] = {"position_ids": positions} if self.takes_positions else {}
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=1,
            **extra | {self._cache_name: cache},
        )
        cache = getattr(output, self._cache_name, None)
        if not isinstance(cache, Cache):
            raise ModelError(
                f"{type(self.model).__name__} returns no key-value cache, which sampling continues from. "
                f"Use a decoder whose `{self._cache_name}` is a transformers Cache."
            )
        return output.logits[:, -1], cache


class CopiedRows:
    """One batch after the other, the prompt's cache copied for each row: exact for every kind of cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._forward = Forward(model)
        self._cache: Cache | None = None

    def begin(self, waiting: Waiting, running: int) -> list[tuple[Batch, torch.Tensor]]:
        """Read the next batch once the one before it is done."""
        begun = [] if running else list(waiting.take(0, worth=float("inf")))
        return [(batch, self._read(batch)) for batch in begun]

    def _read(self, batch: Batch) -> torch.Tensor:
        ids, mask = left_padded(batch.prompts, self._forward.model.device)
        self._lengths = mask.sum(1)
        # rows of equal length need no mask, which lets attention take its quicker path
        self._mask = None if bool(mask.all()) else mask
        logits, self._cache = self._forward(ids, (mask.cumsum(1) - 1).clamp_(min=0), self._mask, None)
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(len(batch.samples))
        self._select(rows)
        self._cache = with_room(self._cache)
        return logits[rows]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per row, (rows,); return the next logits, (rows, vocab)."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        logits, self._cache = self._forward(tokens[:, None], self._lengths[:, None], self._mask, self._cache)
        self._lengths = self._lengths + 1
        return logits

    def keep(self, place: int, rows: torch.Tensor) -> None:
        """Keep these rows."""
        self._select(rows)

    def drop(self, place: int) -> None:
        """Free the batch."""
        self._cache = None

    def _select(self, rows: torch.Tensor) -> None:
        assert self._cache is not None
        # of all ways to index a cache this is the one that every kind of layer has, linear ones too
        self._cache.reorder_cache(rows)
        self._lengths = self._lengths[rows]
        self._mask = None if self._mask is None else self._mask[rows]


class SharedRows:
    """Batches side by side: each prompt's keys and values once, and the next begins where rows have ended."""

    def __init__(self, model: PreTrainedModel, new_tokens: int) -> None:
        self._forward = Forward(model)
        self._new_tokens = new_tokens
        self._cache: PromptCache | None = None
        self._lengths: list[torch.Tensor] = []
        worth = WORTH_ON_CPU if model.device.type == "cpu" else WORTH_ELSEWHERE
        self._worth = worth / model.get_input_embeddings().weight.shape[-1]

    def begin(self, waiting: Waiting, running: int) -> list[tuple[Batch, torch.Tensor]]:
        """Read the prompts that may begin now.

        Raises:
            NotExactError: only at the first prompts; this model's attention would give other numbers.
        """
        return [(batch, self._read(batch)) for batch in waiting.take(running, worth=self._worth)]

    def _read(self, batch: Batch) -> torch.Tensor:
        model, samples = self._forward.model, len(batch.samples)
        ids, mask = left_padded(batch.prompts, model.device)
        kept = None if bool(mask.all()) else mask
        with reading(model) as seen:
            logits, cache = self._forward(ids, (mask.cumsum(1) - 1).clamp_(min=0), kept, None)
        prompts = prompts_of(cache, seen, ids.shape[1], self._new_tokens)
        if self._cache is None:
            self._cache = PromptCache(len(prompts))
        self._cache.blocks.append(PromptBlock(prompts, None if kept is None else kept.bool(), samples))
        self._lengths.append(mask.sum(1).repeat_interleave(samples))
        return logits.repeat_interleave(samples, 0)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token per row, (rows,); return the next logits, (rows, vocab)."""
        assert self._cache is not None
        with decoding(self._forward.model, self._cache):
            logits, _ = self._forward(tokens[:, None], torch.cat(self._lengths)[:, None], None, self._cache)
        self._lengths = [lengths + 1 for lengths in self._lengths]
        return logits

    def keep(self, place: int, rows: torch.Tensor) -> None:
        """Keep these rows of a batch; the tokens of the others are freed."""
        assert self._cache is not None
        self._cache.blocks[place].select(rows)
        self._lengths[place] = self._lengths[place][rows]

    def drop(self, place: int) -> None:
        """Free a batch."""
        assert self._cache is not None
        del self._cache.blocks[place], self._lengths[place]


def first_rows(
    model: PreTrainedModel, prompts: Sequence[TokenPrompt], settings: SamplingSettings
) -> tuple[Rows, Waiting, list[tuple[Batch, torch.Tensor]]]:
    """Rows with their first prompts read; each is held once if that is exact and it has several samples.

    Returns:
        The rows, the prompts that wait, and the first batches with their logits.
    """
    waiting = Waiting(prompts, settings)
    if settings.samples == 1:  # nothing to share, and one batch after another takes fewer operations
        rows: Rows = CopiedRows(model)
        return rows, waiting, rows.begin(waiting, 0)
    reason = _why_copied(model, prompts, settings)
    if reason is None:
        rows = SharedRows(model, settings.max_new_tokens)
        try:
            return rows, waiting, rows.begin(waiting, 0)
        except NotExactError as error:
            reason = _seen[model] = str(error)
    if _said.get(model) != reason:
        name = type(model).__name__
        LOGGER.info("%s: every sample has its own copy of the prompt's keys and values: %s", name, reason)
        _said[model] = reason
    waiting, rows = Waiting(prompts, settings), CopiedRows(model)
    return rows, waiting, rows.begin(waiting, 0)


def _why_copied(
    model: PreTrainedModel, prompts: Sequence[TokenPrompt], settings: SamplingSettings
) -> str | None:
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    reason = _seen.get(model) or why_not_once(model, longest + settings.max_new_tokens)
    if reason is None and not Forward(model).takes_positions:
        return "it takes no position_ids"
    return reason


def left_padded(prompts: Sequence[TokenPrompt], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (prompts, longest) int64; padding on the left, so all rows end together.

    What stands in the padding is masked, so any valid id will do.
    """
    longest = max(len(prompt.token_ids) for prompt in prompts)
    pads = [longest - len(prompt.token_ids) for prompt in prompts]
    ids = [[0] * pad + prompt.token_ids for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
