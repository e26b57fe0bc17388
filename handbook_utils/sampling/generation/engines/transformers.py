"""Decode loop for any transformers causal language model: the prompt is paid for once.

What makes it quicker than `model.generate`, with the same distribution:

- each prompt is read once, and its keys and values stand once for all its samples (`rows.py` says where not);
- prompts of like length share a batch, so little padding is computed;
- rows that ended leave, and the next prompts take their places;
- tokens are drawn by inverse CDF (`torch.multinomial` takes as long as a small model's forward pass).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from handbook_utils.errors import ModelError
from handbook_utils.records import REJECTED
from handbook_utils.sampling.generation.engines.batches import Batch
from handbook_utils.sampling.generation.engines.drawing import draw_tokens
from handbook_utils.sampling.generation.engines.interface import Progress, SamplingSettings
from handbook_utils.sampling.generation.engines.rows import first_rows
from handbook_utils.sampling.generation.rendering import TokenPrompt
from handbook_utils.sampling.generation.speculative import Watch
from handbook_utils.sampling.noise import keyed_generator

# A row's tokens are copied when a batch is compacted; waiting for an eighth of the rows keeps the copies
# below the cost of computing dead rows (measured: an eighth to a quarter are alike, half is slower).
COMPACT_AT = 1 / 8


@dataclass(frozen=True)
class SampledTokens:
    """One sampled answer: its token ids, the stop token included when it was drawn."""

    prompt_id: str
    sample_index: int
    token_ids: list[int]
    finish_reason: str
    logprob: float


def sample_tokens(
    model: PreTrainedModel,
    prompts: Sequence[TokenPrompt],
    *,
    settings: SamplingSettings,
    stop_ids: frozenset[int],
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> list[SampledTokens]:
    """Sample answers to every prompt.

    Args:
        model: a causal language model; evaluated without dropout, its mode is put back afterwards.
        prompts: with distinct ids.
        settings: how to draw.
        stop_ids: a drawn token among these ends its row.
        progress: called after each step with new tokens and newly finished answers.
        watch: stops answers on their way; the others are those that would come without it.
    Returns:
        One record per sample, in order of prompts, then sample index.
    Raises:
        ModelError: the model keeps no cache, or gives logits that are not numbers.
    """
    stops = torch.tensor(sorted(stop_ids), device=model.device)
    with torch.inference_mode(), _evaluating(model):
        made = _decode(model, prompts, settings=settings, stops=stops, progress=progress, watch=watch)
    found = {(row.prompt_id, row.sample_index): row for row in made}
    return [found[prompt.prompt_id, index] for prompt in prompts for index in range(settings.samples)]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[TokenPrompt],
    *,
    settings: SamplingSettings,
    stops: torch.Tensor,
    progress: Progress | None,
    watch: Watch | None,
) -> list[SampledTokens]:
    """Decode until every answer has ended, is cut, or is stopped by the watch."""
    rows, waiting, begun = first_rows(model, prompts, settings)
    made: list[SampledTokens] = []
    running: list[_Answers] = []
    logits: list[torch.Tensor] = []
    while True:
        running += [_Answers(batch, settings, stops) for batch, _ in begun]
        logits += [first for _, first in begun]
        if not running:
            return made
        drawn, logps = draw_tokens(
            torch.cat(logits) if len(logits) > 1 else logits[0],
            torch.cat([answers.noise for answers in running]),
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        sizes = [len(answers.alive) for answers in running]
        counts = [
            answers.take(own, own_logps, watch)
            for answers, own, own_logps in zip(
                running, torch.split(drawn, sizes), torch.split(logps, sizes), strict=True
            )
        ]
        if progress is not None:
            progress(sum(tokens for tokens, _ in counts), sum(finished for _, finished in counts))
        for place in reversed(range(len(running))):
            if running[place].done:
                made += running.pop(place).records()
                rows.drop(place)
            elif (keep := running[place].leave()) is not None:
                rows.keep(place, keep)
        logits = [rows.step(torch.cat([answers.newest for answers in running]))] if running else []
        begun = rows.begin(waiting, sum(len(answers.alive) for answers in running))


class _Answers:
    """The answers of one batch: their tokens so far, and which rows are still computed."""

    def __init__(self, batch: Batch, settings: SamplingSettings, stops: torch.Tensor) -> None:
        device = stops.device
        self._batch = batch
        self._stops = stops
        self._limit = settings.max_new_tokens
        self._step = 0
        self._uniforms = _uniforms(batch, settings).to(device)
        self._tokens = torch.full((batch.rows, self._limit), -1, device=device)
        self._logprobs = torch.zeros(batch.rows, dtype=torch.float64, device=device)
        # `alive` names the rows that are computed; those that have ended stay until it pays to drop them
        self.alive = torch.arange(batch.rows, device=device)
        self._ended, self._rejected = torch.zeros(2, batch.rows, dtype=torch.bool, device=device)
        self._count_ended = 0

    @property
    def noise(self) -> torch.Tensor:
        """(rows computed,) float64: the uniform number of each row's next token."""
        return self._uniforms[self.alive, self._step]

    @property
    def done(self) -> bool:
        """Whether all have ended or are cut."""
        return self._count_ended == len(self.alive) or self._step == self._limit

    def take(self, drawn: torch.Tensor, logps: torch.Tensor, watch: Watch | None) -> tuple[int, int]:
        """Take the next token of each row; return how many tokens are new and how many answers finished."""
        self._logprobs[self.alive] += logps.double().masked_fill(self._ended, 0.0)
        self._tokens[self.alive, self._step] = drawn.masked_fill(self._ended, -1)
        self._step += 1
        self.newest = drawn
        self._ended = self._ended | torch.isin(drawn, self._stops)
        if watch is not None and self._step in watch.after and self._step < self._limit:
            hopeless = self._hopeless(watch)
            self._rejected[self.alive] |= hopeless
            self._ended = self._ended | hopeless
        before, self._count_ended = self._count_ended, int(self._ended.sum())
        # rows that are cut are finished as well
        finished = len(self.alive) if self._step == self._limit else self._count_ended
        return len(self.alive) - before, finished - before

    def leave(self) -> torch.Tensor | None:
        """Drop the rows that have ended where it pays; return those kept, or None for all."""
        if self._count_ended < COMPACT_AT * len(self.alive):
            return None
        keep: torch.Tensor = (~self._ended).nonzero().squeeze(1)
        self.alive, self.newest, self._ended = self.alive[keep], self.newest[keep], self._ended[keep]
        self._count_ended = 0
        return keep

    def _hopeless(self, watch: Watch) -> torch.Tensor:
        """(rows computed,) True for those that the watch stops; it is not shown those that have ended."""
        places = (~self._ended).nonzero().squeeze(1)
        rows, streams = self.alive[places], self._batch.streams
        beginnings = self._tokens[rows, : self._step].tolist()
        goes_on = watch.goes_on([streams[row] for row in rows.tolist()], beginnings)
        hopeless = torch.zeros_like(self._ended)
        hopeless[places] = ~torch.from_numpy(goes_on).to(hopeless.device)
        return hopeless

    def records(self) -> list[SampledTokens]:
        """Each answer as a record.

        Raises:
            ModelError: the logits of one were not numbers.
        """
        lengths = (self._tokens >= 0).sum(1)
        last = self._tokens.gather(1, lengths[:, None] - 1).squeeze(1)
        stopped, rejected = torch.isin(last, self._stops).tolist(), self._rejected.tolist()
        table, totals = self._tokens.tolist(), self._logprobs.tolist()
        records = []
        for row, (prompt_id, index) in enumerate(self._batch.streams):
            if math.isnan(totals[row]):
                raise ModelError(
                    f"prompt '{prompt_id}', sample {index}: the model's logits are not numbers. Its weights "
                    "may be damaged, its training may have diverged, or its dtype overflows (try float32)."
                )
            reason = "stop" if stopped[row] else REJECTED if rejected[row] else "length"
            tokens = table[row][: int(lengths[row])]
            records.append(SampledTokens(prompt_id, index, tokens, reason, totals[row]))
        return records


def _uniforms(batch: Batch, settings: SamplingSettings) -> torch.Tensor:
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
