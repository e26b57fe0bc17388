"""What passes without gradients hold at their highest moments: sampling answers, and scoring them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import Cache

from handbook_utils.models.logprobs import LOGITS_PER_PASS
from handbook_utils.planning.live_bytes import ACTIVATIONS, LiveBytes
from handbook_utils.planning.rollouts.layout import Asked, first_prompts, scored_together, step_shares
from handbook_utils.planning.skeleton import Step, skeleton, text_config
from handbook_utils.planning.step import DEPTHS, HEAD, Batch, computing, deepened, hidden_states
from handbook_utils.sampling.generation.engines.batches import Batch as Prompts
from handbook_utils.sampling.generation.engines.cache import with_room
from handbook_utils.sampling.generation.engines.drawing import draw_tokens
from handbook_utils.sampling.generation.engines.rows import (
    Forward,
    left_padded,
)
from handbook_utils.shared_prefix.prompt_attention import (
    NotExactError,
    decoding,
    prompts_of,
    reading,
    why_not_once,
)
from handbook_utils.shared_prefix.prompt_cache import ROOM, PromptBlock, PromptCache

KEYS = "keys and values"
# rows of a pass that measures log-probabilities, as `sequence_logprob_sums` takes them
LOGPROB_ROWS = 64
Moment = dict[str, int]
_Pass = Callable[[Any, LiveBytes], Any]


def sampling_bytes(step: Step, asked: Asked) -> Moment:
    """Bytes beside weights at the highest moment of sampling, as our engine samples: by part.

    The last token of all answers is computed at once, so keys and values are as long as they can be.
    """
    return _highest(step, lambda model, counter: _sampled(step, asked, model, counter))


def scoring_bytes(step: Step, asked: Asked) -> Moment:
    """Bytes beside weights while a reward model scores answers."""
    batch = scored_together(asked, asked.rows, text_config(step.config).hidden_size, shares=step_shares(step))
    return _highest(step, lambda model, _: _passed(step, batch, model))


def logprob_bytes(step: Step, asked: Asked) -> Moment:
    """Bytes beside weights while a model gives answers their log-probabilities, logits in full."""
    text = text_config(step.config)
    most = max(1, LOGITS_PER_PASS // ((max(asked.prompts) + asked.new_tokens) * text.vocab_size))
    batch = scored_together(asked, min(LOGPROB_ROWS, most), text.hidden_size, shares=step_shares(step))

    def measure(model: Any, counter: LiveBytes) -> None:
        hidden = _passed(step, batch, model)
        with counter.named(HEAD), computing(step, is_padded=batch.is_padded):
            logits = model.get_output_embeddings()(hidden[:, -asked.new_tokens - 1 :])
            logps = torch.log_softmax(logits[:, :-1].float(), dim=-1)
            del logits, logps

    return _highest(step, measure)


def _highest(step: Step, work: _Pass) -> Moment:
    """The highest moment of some work, of the whole model from two shallow ones."""
    layers = text_config(step.config).num_hidden_layers
    depths = DEPTHS if layers > DEPTHS[1] else (layers, layers)
    shallow, deeper = (_peaks(step, depth, work) for depth in depths)
    moments = deepened(shallow, deeper, layers - depths[0]).values()
    return max(moments, key=lambda parts: sum(parts.values()))


def _peaks(step: Step, layers: int, work: _Pass) -> dict[str, Moment]:
    model = skeleton(replace(step, checkpointing=False), layers).eval()
    counter = LiveBytes()
    with counter, torch.inference_mode():
        counter.count([*model.parameters(), *model.buffers()], "held")
        counter.peaks.clear()
        work(model, counter)
    return {
        phase: {name: size for name, size in parts.items() if name != "held"}
        for phase, parts in counter.peaks.items()
    }


def _passed(step: Step, batch: Batch, model: Any) -> torch.Tensor:
    with computing(step, is_padded=batch.is_padded):
        return hidden_states(batch, model, step)


def _sampled(step: Step, asked: Asked, model: Any, counter: LiveBytes) -> None:
    batches = first_prompts(step, asked)
    count = sum(batch.rows for batch in batches)
    own = torch.empty(2, count, asked.new_tokens, dtype=torch.float64, device="meta")
    counter.count([own], ACTIVATIONS)  # the tokens so far, and the random numbers of those to come
    forward = Forward(model)
    rows: _Shared | _Copied | None = None
    if forward.takes_positions and why_not_once(model, max(asked.prompts) + asked.new_tokens) is None:
        try:
            rows = _Shared(step, asked, forward, counter, batches)
        except NotExactError:
            counter.peaks.clear()
    if rows is None:
        rows = _Copied(step, asked, forward, counter, batches)
    counter.phase = "last token"
    rows.logits = [rows.step()]  # those of the token before stay until these are there
    counter.phase = "draw"
    _draw(rows.logits, counter)


def _draw(logits: list[torch.Tensor], counter: LiveBytes) -> None:
    with counter.named(HEAD), torch.device("meta"):
        together = torch.cat(logits) if len(logits) > 1 else logits[0]
        draw_tokens(together, torch.empty(len(together), dtype=torch.float64))


class _Block(PromptBlock):
    """A block whose rows are all there, which needs no look at numbers that are not."""

    counter: LiveBytes

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        with self.counter.named(KEYS):
            super().append(layer, keys, values)

    def _arrange(self) -> None:
        self._order = self._back = None
        self._most = self.rows // len(self._prompts[0][0])


class _Shared:
    """As the engine's `SharedRows` at the last token: prompts once, answers in rows of their own."""

    def __init__(
        self, step: Step, asked: Asked, forward: Forward, counter: LiveBytes, batches: Sequence[Prompts]
    ) -> None:
        self._step, self._forward, self._counter = step, forward, counter
        self._blocks: list[PromptBlock] = []
        self.logits = [self._read(asked, batch) for batch in batches]
        self._cache = PromptCache(len(self._prompts))
        self._cache.blocks += self._blocks
        counter.phase = "draw"
        _draw(self.logits, counter)
        counter.phase = "growth"
        self._grow(asked.new_tokens)

    def _read(self, asked: Asked, batch: Prompts) -> torch.Tensor:
        self._counter.phase = "reading"
        is_padded = len({len(prompt.token_ids) for prompt in batch.prompts}) > 1
        with computing(self._step, is_padded=is_padded):
            ids, mask = left_padded(batch.prompts, self._forward.model.device)
            kept = mask if is_padded else None
            with reading(self._forward.model) as seen:
                logits, cache = self._forward(ids, mask, kept, None)
            self._prompts = prompts_of(cache, seen, ids.shape[1], asked.new_tokens)
            block = _Block(self._prompts, None if kept is None else kept.bool(), len(batch.samples))
            block.counter = self._counter
            self._blocks.append(block)
            self._counter.count([each for states in self._prompts for each in states], KEYS)
            return logits.repeat_interleave(len(batch.samples), 0)

    def _grow(self, new_tokens: int) -> None:
        """Give the answers tokens up to the moment before their buffers grow for the last time."""
        full = (new_tokens - 1) // (ROOM + 1) * (ROOM + 1)
        for block in self._blocks if full else ():
            for layer, states in enumerate(self._prompts):
                for size in (full - ROOM, ROOM):
                    keys, values = (_like(each, block.rows, size) for each in states)
                    block.append(layer, keys, values)

    def step(self) -> torch.Tensor:
        """Logits of all rows for one more token."""
        rows = sum(block.rows for block in self._blocks)
        with computing(self._step, is_padded=True), decoding(self._forward.model, self._cache):
            places = torch.empty(rows, 1, dtype=torch.long)
            logits, _ = self._forward(places, places, None, self._cache)
        return logits


def _like(states: torch.Tensor, rows: int, tokens: int) -> torch.Tensor:
    """Keys or values, (rows, heads, tokens, width), in the form of others."""
    return states.new_empty(rows, states.shape[1], tokens, states.shape[3])


class _Copied:
    """As the engine's `CopiedRows` at the last token: one batch, the prompt's cache copied for each row."""

    def __init__(
        self, step: Step, asked: Asked, forward: Forward, counter: LiveBytes, batches: Sequence[Prompts]
    ) -> None:
        self._step, self._forward, self._counter = step, forward, counter
        counter.phase = "reading"
        # without bounds for padding the engine reads all prompts together
        prompts = [prompt for batch in batches for prompt in batch.prompts]
        rows = sum(batch.rows for batch in batches)
        with computing(step, is_padded=True):
            ids, mask = left_padded(prompts, forward.model.device)
            logits, cache = forward(ids, mask, mask, None)
            owners = torch.empty(rows, dtype=torch.long)
            cache.reorder_cache(owners)
            self._cache: Cache = with_room(cache)
            for layer in self._cache.layers:
                self._fill(layer, asked.new_tokens - 1)
            self.logits = [logits[owners]]
        counter.phase = "draw"
        _draw(self.logits, counter)
        self._tokens = ids.shape[1] + asked.new_tokens

    def _fill(self, layer: Any, tokens: int) -> None:
        if tokens > 0:
            keys, values = (_like(each, len(each), tokens) for each in (layer.keys, layer.values))
            layer.update(keys, values)
        self._counter.count([layer.keys, layer.values], KEYS)

    def step(self) -> torch.Tensor:
        """Logits of all rows for one more token."""
        rows = len(self.logits[0])
        with computing(self._step, is_padded=True):
            places, mask = (
                torch.empty(rows, 1, dtype=torch.long),
                torch.ones(rows, self._tokens, dtype=torch.long),
            )
            logits, self._cache = self._forward(places, places, mask, self._cache)
        return logits
