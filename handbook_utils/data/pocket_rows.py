"""The pocket world's datasets as rows: the only place where `pocket:` names of datasets are resolved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from handbook_utils.data.split import Split
from handbook_utils.errors import DataError, suggest
from handbook_utils.pocket.annotator import ANNOTATORS
from handbook_utils.pocket.world import (
    PLAIN_TEXTS,
    PocketPrompt,
    demonstrate,
    demonstrations,
    gold_reward,
    plain_text,
    prompts,
)

PREFIX = "pocket:"
Rows = list[dict[str, Any]]


def pocket_rows(name: str, split: Split, *, seed: int) -> Rows:
    """Return the rows of a pocket dataset, the split's slice already taken.

    Args:
        name: "pocket:demonstrations", "pocket:prompts", "pocket:preferences" or "pocket:text".
        split: "train", "dev" or "test", with or without a slice.
        seed: seed of the order and of the answers.
    Raises:
        DataError: unknown name or split, or more rows than there are.
    """
    makers = {
        "prompts": _prompts,
        "demonstrations": _demonstrations,
        "preferences": _preferences,
        "text": _texts,
    }
    short = name.removeprefix(PREFIX)
    if short not in makers:
        raise DataError(f"unknown dataset '{name}'. {suggest(short, makers)}")
    rows = makers[short](split, seed)
    first, end = split.bounds(len(rows), name=name)
    return rows[first:end]


def _prompts(split: Split, seed: int) -> Rows:
    return [
        {"prompt_id": prompt.prompt_id, "prompt": prompt.text}
        for prompt in prompts(split.base, seed=seed, limit=split.needed)  # type: ignore[arg-type]  # checked there
    ]


def _demonstrations(split: Split, seed: int) -> Rows:
    made = demonstrations(split.base, seed=seed, limit=split.needed)  # type: ignore[arg-type]  # checked there
    return [{"prompt": prompt.text, "completion": answer} for prompt, answer in made]


def _preferences(split: Split, seed: int) -> Rows:
    """Two demonstrations of one prompt, compared by the annotator."""
    found = prompts(split.base, seed=seed, limit=split.needed)  # type: ignore[arg-type]  # checked there
    return [_pair(prompt, seed) for prompt in found]


def _pair(prompt: PocketPrompt, seed: int) -> dict[str, Any]:
    rng = random.Random(f"pair {seed} {prompt.prompt_id}")
    first, second = _two_answers(prompt, rng)
    if not ANNOTATORS["annotator"].prefer(prompt.text, first, second, rng=rng):
        first, second = second, first
    return {
        "prompt": prompt.text,
        "chosen": first,
        "rejected": second,
        "gold_chosen": gold_reward(prompt.text, first).value,
        "gold_rejected": gold_reward(prompt.text, second).value,
    }


def _two_answers(prompt: PocketPrompt, rng: random.Random) -> tuple[str, str]:
    first = demonstrate(prompt.text, rng=rng)
    drawn: Iterator[str] = (demonstrate(prompt.text, rng=rng) for _ in range(100))
    # a pair of equal answers teaches nothing; flaws are frequent, so another answer comes soon
    second = next((answer for answer in drawn if answer != first), None)
    if second is None:
        raise DataError(f"pocket: the prompt {prompt.prompt_id} has only one answer.")
    return first, second


def _texts(split: Split, seed: int) -> Rows:
    limit = PLAIN_TEXTS if split.needed is None else split.needed
    texts = plain_text(split.base, seed=seed, limit=limit)  # type: ignore[arg-type]  # checked there
    return [{"text": text} for text in texts]
