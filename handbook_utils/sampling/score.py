"""Scores for sampled answers: the gold reward of the pocket world, or a trained reward model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from handbook_utils.errors import DataError, RecipeError, suggest
from handbook_utils.models.load import load_pair, options_of
from handbook_utils.models.logprobs import reward_scores
from handbook_utils.pocket.world import gold_reward
from handbook_utils.recipe_sections import ModelSection
from handbook_utils.records import Completion, Message, ScoredCompletion

POCKET_SCORERS = ("pocket:gold",)
GOLD_PARTS = ("helpful", "safe", "polite", "concise", "refused", "benign", "advice")


class Scorer(Protocol):
    """Gives one or more columns of numbers, one number a completion."""

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, Sequence[float] | np.ndarray]:
        """Return columns by name, each as long as `completions`."""
        ...


def score(completions: Sequence[Completion], scorer: Scorer) -> list[ScoredCompletion]:
    """Score every completion; scores it had before are kept, `words` (of its text) is always there.

    Args:
        completions: samples, scored already or not.
        scorer: such as `GoldScorer()` or `RewardModelScorer(model, tokenizer)`.
    Returns:
        New records in the same order.
    Raises:
        DataError: a score is not a finite number; prompt, sample and column are named.
    """
    columns = {name: [float(value) for value in column] for name, column in scorer(completions).items()}
    scored = []
    for place, row in enumerate(completions):
        found = {name: column[place] for name, column in columns.items()}
        _check_finite(row, found)
        earlier = row.scores if isinstance(row, ScoredCompletion) else {}
        base = {field.name: getattr(row, field.name) for field in fields(Completion)}
        scores = {**earlier, **found, "words": float(len(row.completion.split()))}
        scored.append(ScoredCompletion(**base, scores=scores))
    return scored


@dataclass(frozen=True)
class GoldScorer:
    """The pocket world's gold reward, and its parts as `name.helpful` and so on."""

    name: str = "gold"

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, Sequence[float]]:
        """Score answers to prompts of the pocket world."""
        golds = [gold_reward(prompt_text(row.prompt), row.completion).as_dict() for row in completions]
        parts = {f"{self.name}.{part}": [gold[part] for gold in golds] for part in GOLD_PARTS}
        return {self.name: [gold["value"] for gold in golds], **parts}


@dataclass(frozen=True)
class RewardModelScorer:
    """A reward model's score of prompt and answer under the chat template, as it was trained on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = "proxy"
    rows_per_batch: int = 256

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, np.ndarray]:
        """Score answers; those cut at the length limit are scored as if they had ended there."""
        rows = [(row.prompt, row.completion) for row in completions]
        return {self.name: reward_scores(self.model, self.tokenizer, rows, batch_size=self.rows_per_batch)}


def load_scorer(name: str, section: ModelSection, *, location: str, rows_per_batch: int = 256) -> Scorer:
    """The scorer that a recipe names.

    Args:
        name: column of the scores.
        section: how to load a reward model.
        location: "pocket:gold", or a reward model: run folder, folder or hub name.
        rows_per_batch: answers a forward pass of a reward model.
    Raises:
        RecipeError: an unknown `pocket:` scorer.
        ModelError: no such model.
    """
    if location in POCKET_SCORERS:
        return GoldScorer(name)
    if location.startswith("pocket:"):
        raise RecipeError(f"scorers.{name}: unknown scorer '{location}'. {suggest(location, POCKET_SCORERS)}")
    model, tokenizer = load_pair(location, head="reward", **options_of(section))
    return RewardModelScorer(model, tokenizer, name, rows_per_batch)


def prompt_text(messages: Sequence[Message]) -> str:
    """What the user said last: the text that the pocket world reads a prompt from.

    >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    'Hello'
    """
    for message in reversed(messages):
        if message["role"] == "user":
            return message["content"]
    raise DataError("a prompt has no message of role 'user', so the pocket world cannot read it.")


def _check_finite(row: Completion, scores: Mapping[str, float]) -> None:
    for name, value in scores.items():
        if not math.isfinite(value):
            raise DataError(
                f"prompt '{row.prompt_id}', sample {row.sample_index}: the score '{name}' is {value}. A "
                "reward model gives this when its training diverged or its dtype overflows (try float32)."
            )
