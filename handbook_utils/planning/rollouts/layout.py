"""How answers to a few prompts are laid out where they are sampled, scored and learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from handbook_utils.planning.skeleton import Step, skeleton, text_config
from handbook_utils.planning.step import Batch
from handbook_utils.sampling.generation.engines.batches import Batch as Prompts
from handbook_utils.sampling.generation.engines.batches import Waiting
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.engines.rows import WORTH_ELSEWHERE, WORTH_ON_CPU
from handbook_utils.sampling.generation.rendering import TokenPrompt
from handbook_utils.shared_prefix.answers import AnswerRows, Layout, cheaper_layout
from handbook_utils.shared_prefix.decoder import why_not_shared
from handbook_utils.shared_prefix.layout import rows_together


@dataclass(frozen=True)
class Asked:
    """Prompts that are answered, or whose answers are scored.

    Attributes:
        prompts: tokens of each, the longest first.
        samples: answers to each.
        new_tokens: of each answer: all are taken to be cut at the limit.
        rows: answers decoded, or scored, at once.
    """

    prompts: Sequence[int]
    samples: int
    new_tokens: int
    rows: int

    @property
    def width(self) -> int:
        """Tokens of the longest prompt with an answer."""
        return max(self.prompts) + self.new_tokens

    @property
    def is_padded(self) -> bool:
        """Whether any prompt is shorter than another."""
        return len(set(self.prompts)) > 1


def first_prompts(step: Step, asked: Asked) -> list[Prompts]:
    """The prompts that the engine reads first, the longest ones, those of like length together."""
    worth = WORTH_ELSEWHERE if step.folds else WORTH_ON_CPU
    prompts = [TokenPrompt(str(place), [0] * size) for place, size in enumerate(asked.prompts)]
    settings = SamplingSettings(
        samples=asked.samples, max_new_tokens=asked.new_tokens, rows_per_batch=asked.rows
    )
    return list(Waiting(prompts, settings).take(0, worth=worth / text_config(step.config).hidden_size))


def step_shares(step: Step) -> bool:
    """Whether the prompt of several answers can be computed once without changing a number."""
    return why_not_shared(skeleton(step, 1)) is None


def scored_together(asked: Asked, rows: int, hidden_size: int, *, shares: bool) -> Batch:
    """The widest pass over prompts with their answers, no gradients: at most so many answers.

    Args:
        asked: the answers.
        rows: of one pass.
        hidden_size: of the model that scores.
        shares: whether a prompt is computed once for its answers.
    """
    together = _together(asked, hidden_size) if shares else 1
    count = min(rows, len(asked.prompts) * asked.samples)
    units = max(1, count // together)
    return _batch(asked, units, together, is_padded=asked.is_padded)


def learned_together(step: Step, asked: Asked, *, shares: bool, layout: Layout | None = None) -> Batch:
    """The pass that learns from the answers to some prompts, laid out as the stage lays them out.

    Args:
        step: how it is computed; checkpointing leaves one layout only.
        asked: the answers.
        shares: whether a prompt is computed once for its answers.
        layout: in which; None: in the cheaper one, as the stage chooses.
    """
    loss = len(asked.prompts) * asked.samples * asked.new_tokens
    if shares and (layout or _layout(step, asked)) == "cache":
        return Batch(
            rows=len(asked.prompts) * asked.samples,
            width=asked.new_tokens,
            loss_tokens=loss,
            is_padded=asked.is_padded,
            cached=(len(asked.prompts), max(asked.prompts) - 1),
        )
    together = _together(asked, text_config(step.config).hidden_size) if shares else 1
    units = len(asked.prompts) * math.ceil(asked.samples / together)
    return _batch(asked, units, together, loss_tokens=loss, is_padded=asked.is_padded)


def _batch(asked: Asked, units: int, together: int, *, loss_tokens: int = 0, is_padded: bool = True) -> Batch:
    """So many rows of the decoder, in each a prompt and some of its answers."""
    shared = (units, max(asked.prompts) + together * asked.new_tokens) if together > 1 else None
    rows = min(units * together, len(asked.prompts) * asked.samples)
    return Batch(rows, asked.width, loss_tokens, is_padded=is_padded, shared=shared)


def _together(asked: Asked, hidden_size: int) -> int:
    """Answers that share a row of the decoder, where a prompt's are split evenly over the cheapest rows."""
    mean = sum(asked.prompts) // len(asked.prompts)
    parts = math.ceil(asked.samples / rows_together(mean, max(asked.new_tokens, 1), hidden_size))
    return math.ceil(asked.samples / parts)


def _layout(step: Step, asked: Asked) -> Layout:
    """The layout that `online` takes for these answers; their tokens say nothing, only their lengths do."""
    if step.checkpointing:
        return "rows"  # it drops the cache
    longest = max(asked.prompts)
    ids = torch.zeros(len(asked.prompts) * asked.samples, asked.width, dtype=torch.long)
    mask = torch.ones_like(ids)
    for number, size in enumerate(asked.prompts):
        rows = slice(number * asked.samples, (number + 1) * asked.samples)
        mask[rows, : longest - size] = 0
        ids[rows, longest - 1] = number  # makes another prompt of it
    return cheaper_layout(skeleton(step, 1), AnswerRows(ids, mask, asked.new_tokens))
