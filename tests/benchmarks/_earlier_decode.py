"""The decode loop of eed40be, which copies a prompt's keys and values for each sample; a peer to measure.

As it was, but for what transformers calls its cache since, and without watches and progress.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import Cache, PreTrainedModel

from handbook_utils.errors import ModelError
from handbook_utils.libraries.transformers_internals import cache_name
from handbook_utils.sampling.generation.engines.cache import with_room
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.engines.transformers import SampledTokens
from handbook_utils.sampling.generation.rendering import TokenPrompt
from handbook_utils.sampling.noise import keyed_generator

# A row's cache is copied when the batch is compacted; waiting for an eighth of the rows keeps the copies
# below the cost of computing dead rows (measured: an eighth to a quarter are alike, half is slower).
COMPACT_AT = 1 / 8


@dataclass(frozen=True)
class _Batch:
    """Prompts prefilled together and the sample indices each of them is continued with."""

    prompts: list[TokenPrompt]
    samples: range

    @property
    def streams(self) -> list[tuple[str, int]]:
        """(rows,) prompt id and sample index."""
        return [(prompt.prompt_id, index) for prompt in self.prompts for index in self.samples]


def sample_tokens(
    model: PreTrainedModel,
    prompts: Sequence[TokenPrompt],
    *,
    settings: SamplingSettings,
    stop_ids: frozenset[int],
) -> list[SampledTokens]:
    """Sample answers to every prompt, in order of prompts, then sample index."""
    found: dict[tuple[str, int], SampledTokens] = {}
    stops = torch.tensor(sorted(stop_ids), device=model.device)
    with torch.inference_mode(), _evaluating(model):
        for batch in _batches(prompts, settings):
            rows = _decode(model, batch, settings=settings, stops=stops)
            found |= {(row.prompt_id, row.sample_index): row for row in rows}
    return [found[prompt.prompt_id, index] for prompt in prompts for index in range(settings.samples)]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _batches(prompts: Sequence[TokenPrompt], settings: SamplingSettings) -> Iterator[_Batch]:
    """Prompts of like length together, longest first: a batch too large for the memory fails at once."""
    ordered = sorted(prompts, key=lambda prompt: -len(prompt.token_ids))
    at_once = max(1, settings.rows_per_batch // settings.samples)
    samples_at_once = min(settings.samples, settings.rows_per_batch)
    for start in range(0, len(ordered), at_once):
        for first in range(0, settings.samples, samples_at_once):
            indices = range(first, min(first + samples_at_once, settings.samples))
            yield _Batch(ordered[start : start + at_once], indices)


class _Rows:
    """The rows still in a batch: cache, mask and positions, kept in step as rows leave."""

    def __init__(self, model: PreTrainedModel, batch: _Batch) -> None:
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._cache_name = cache_name(model)
        ids, mask = _left_padded(batch.prompts, model.device)
        self._lengths = mask.sum(1)
        # rows of equal length need no mask, which lets attention take its quicker path
        self._mask = None if bool(mask.all()) else mask
        self._cache: Cache | None = None
        self.logits = self._forward(ids, (mask.cumsum(1) - 1).clamp_(min=0))
        repeats = torch.arange(len(batch.prompts), device=model.device)
        self.select(repeats.repeat_interleave(len(batch.samples)))
        self._cache = with_room(self._cache)

    def select(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; an index given twice copies its row."""
        assert self._cache is not None
        # of all ways to index a cache this is the one that every kind of layer has, linear ones too
        self._cache.reorder_cache(indices)
        self.logits = self.logits[indices]
        self._lengths = self._lengths[indices]
        self._mask = None if self._mask is None else self._mask[indices]

    def step(self, tokens: torch.Tensor) -> None:
        """Append one token per row and compute the next logits."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self.logits = self._forward(tokens[:, None], self._lengths[:, None])
        self._lengths = self._lengths + 1

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        extra: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            use_cache=True,
            logits_to_keep=1,
            **extra | {self._cache_name: self._cache},
        )
        self._cache = getattr(output, self._cache_name, None)
        if not isinstance(self._cache, Cache):
            raise ModelError(
                f"{type(self._model).__name__} returns no key-value cache, which sampling continues from. "
                f"Use a decoder whose `{self._cache_name}` is a transformers Cache."
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def _decode(
    model: PreTrainedModel,
    batch: _Batch,
    *,
    settings: SamplingSettings,
    stops: torch.Tensor,
) -> list[SampledTokens]:
    """Decode one batch until every row has ended or is cut."""
    rows = _Rows(model, batch)
    uniforms = _uniforms(batch, settings).to(model.device)
    count, limit = uniforms.shape
    tokens = torch.full((count, limit), -1, device=model.device)
    logprobs = torch.zeros(count, dtype=torch.float64, device=model.device)
    # `alive` names the rows that are computed; those that have ended stay until it pays to drop them
    alive = torch.arange(count, device=model.device)
    ended = torch.zeros(count, dtype=torch.bool, device=model.device)
    for step in range(limit):
        drawn, logps = draw_tokens(
            rows.logits, uniforms[alive, step], temperature=settings.temperature, top_p=settings.top_p
        )
        logprobs[alive] += logps.double().masked_fill(ended, 0.0)
        tokens[alive, step] = drawn.masked_fill(ended, -1)
        ended = ended | torch.isin(drawn, stops)
        ended_now = int(ended.sum())
        if ended_now == len(alive) or step + 1 == limit:
            break
        if ended_now >= COMPACT_AT * len(alive):
            keep = (~ended).nonzero().squeeze(1)
            rows.select(keep)
            alive, drawn, ended = alive[keep], drawn[keep], ended[keep]
        rows.step(drawn)
    return _records(batch, tokens, logprobs, stops=stops)


def _left_padded(prompts: Sequence[TokenPrompt], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both (prompts, longest) int64; padding on the left, so all rows end together.

    What stands in the padding is masked, so any valid id will do.
    """
    longest = max(len(prompt.token_ids) for prompt in prompts)
    pads = [longest - len(prompt.token_ids) for prompt in prompts]
    ids = [[0] * pad + prompt.token_ids for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _uniforms(batch: _Batch, settings: SamplingSettings) -> torch.Tensor:
    """(rows, max_new_tokens) float64: the number of (seed, prompt, sample, step), whatever the batch."""
    if settings.temperature == 0:
        return torch.zeros(len(batch.streams), settings.max_new_tokens, dtype=torch.float64)
    numbers = [
        keyed_generator("sample", settings.seed, prompt_id=prompt_id, stream=index).random(
            settings.max_new_tokens
        )
        for prompt_id, index in batch.streams
    ]
    return torch.from_numpy(np.stack(numbers))


def _records(
    batch: _Batch,
    tokens: torch.Tensor,
    logprobs: torch.Tensor,
    *,
    stops: torch.Tensor,
) -> list[SampledTokens]:
    lengths = (tokens >= 0).sum(1).tolist()
    last = tokens.gather(1, (tokens >= 0).sum(1, keepdim=True) - 1).squeeze(1)
    stopped = torch.isin(last, stops).tolist()
    table, totals = tokens.tolist(), logprobs.tolist()
    records = []
    for row, (prompt_id, index) in enumerate(batch.streams):
        if math.isnan(totals[row]):
            raise ModelError(
                f"prompt '{prompt_id}', sample {index}: the model's logits are not numbers. Its weights may "
                "be damaged, its training may have diverged, or its dtype overflows (try float32)."
            )
        reason = "stop" if stopped[row] else "length"
        records.append(SampledTokens(prompt_id, index, table[row][: lengths[row]], reason, totals[row]))
    return records


def draw_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor, *, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and log-probabilities at temperature 1 and without top-p, as benchmarks sample."""
    assert temperature == top_p == 1
    probabilities = torch.softmax(logits.float(), dim=-1)
    running = probabilities.cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(running, uniforms[:, None] * running[:, -1:], right=True).squeeze(1)
    tokens = tokens.clamp_(max=probabilities.shape[-1] - 1)
    return tokens, probabilities.gather(1, tokens[:, None]).squeeze(1).log()
