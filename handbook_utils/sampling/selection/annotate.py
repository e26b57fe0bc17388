"""Preference pairs: an annotator compares each prompt's first two distinct samples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from handbook_utils.errors import RecipeError, suggest
from handbook_utils.pocket.annotator import ANNOTATORS
from handbook_utils.pocket.world import gold_reward
from handbook_utils.records import REJECTED, Completion, PreferencePair
from handbook_utils.sampling.scoring.score import prompt_text
from handbook_utils.sampling.selection.select import by_prompt


class Annotator(Protocol):
    """Someone who says which of two answers is better."""

    def prefer(self, prompt_text: str, a: str, b: str, *, rng: random.Random) -> bool:
        """Return whether `a` is preferred to `b`."""
        ...


@dataclass(frozen=True)
class AnnotatedPair(PreferencePair):
    """A pair with the gold reward of both answers, so that the annotator's mistakes can be counted."""

    gold_chosen: float
    gold_rejected: float


@dataclass(frozen=True)
class Annotation:
    """What an annotator made of some samples.

    Attributes:
        pairs: one per prompt.
        skipped: ids of prompts whose samples are all the same text, so that there is nothing to compare.
    """

    pairs: list[AnnotatedPair]
    skipped: list[str]


def annotate(completions: Sequence[Completion], annotator: Annotator, *, seed: int = 0) -> Annotation:
    """Have the first two distinct samples of each prompt compared.

    The annotator's noise is named by (seed, prompt id), so a judgement depends on no other prompt.

    Args:
        completions: samples of prompts of the pocket world, in any order.
        annotator: such as `load_annotator("pocket:annotator")`.
        seed: of the annotator's noise.
    Raises:
        DataError: a prompt is not of the pocket world, or has a sample twice.
    """
    pairs, skipped = [], []
    finished = [row for row in completions if row.finish_reason != REJECTED]
    for rows in by_prompt(finished):
        texts = list(dict.fromkeys(row.completion for row in rows))[:2]
        if len(texts) < 2:
            skipped.append(rows[0].prompt_id)
            continue
        question = prompt_text(rows[0].prompt)
        rng = random.Random(f"annotate {seed} {rows[0].prompt_id}")
        chosen, rejected = texts if annotator.prefer(question, *texts, rng=rng) else texts[::-1]
        gold_chosen, gold_rejected = (gold_reward(question, text).value for text in (chosen, rejected))
        pairs.append(
            AnnotatedPair(rows[0].prompt_id, rows[0].prompt, chosen, rejected, gold_chosen, gold_rejected)
        )
    return Annotation(pairs, skipped)


def load_annotator(name: str) -> Annotator:
    """The annotator a recipe names, such as "pocket:annotator".

    Raises:
        RecipeError: unknown name.
    """
    known = {f"pocket:{key}": annotator for key, annotator in ANNOTATORS.items()}
    if name not in known:
        raise RecipeError(f"unknown annotator '{name}'. {suggest(name, known)}")
    return known[name]
