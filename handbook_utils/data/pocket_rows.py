"""The pocket world's datasets as rows: the only place where `pocket:` names of datasets are resolved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from handbook_utils.data.split import Split
from handbook_utils.errors import DataError, suggest
from handbook_utils.pocket.annotator import ANNOTATORS
from handbook_utils.pocket.families import ALL_FAMILIES
from handbook_utils.pocket.vocabulary import NUMBERS
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
        name: "pocket:demonstrations", "pocket:prompts", "pocket:preferences", "pocket:instructions" or
            "pocket:text".
        split: "train", "dev" or "test", with or without a slice.
        seed: seed of the order and of the answers.
    Raises:
        DataError: unknown name or split, or more rows than there are.
    """
    makers = {
        "prompts": _prompts,
        "demonstrations": _demonstrations,
        "preferences": _preferences,
        "instructions": _instructions,
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


def _instructions(split: Split, seed: int) -> Rows:
    """Prompts that ask for what IFEval's checks can see, in the columns of its input_data.jsonl."""
    rows: Rows = []
    for prompt in prompts(split.base, seed=seed):  # type: ignore[arg-type]  # checked there
        asked = _asked(prompt)
        if asked:
            ids, arguments = [name for name, _ in asked], [given for _, given in asked]
            row = {"prompt_id": prompt.prompt_id, "prompt": prompt.text}
            rows.append({**row, "instruction_id_list": ids, "kwargs": arguments})
        if split.needed is not None and len(rows) >= split.needed:
            break
    return rows


def _asked(prompt: PocketPrompt) -> list[tuple[str, dict[str, Any]]]:
    """What a prompt says has to be in an answer, or must not be; moods, orders and refusals have no check."""
    family = next(family for family in ALL_FAMILIES if family.name == prompt.family)
    slots = family.parse(prompt.text) or {}
    contained = {
        "story": (["name", "animal"], ["treasure"], ["place"]),
        "list": (["first"],),
        "reply": (["name"], ["product"], ["remedy"]),
        "repeat": (["last"],),
    }.get(prompt.family, ())
    asked: list[tuple[str, dict[str, Any]]] = [
        ("keywords:existence", {"keywords": [slots[slot] for slot in group]}) for group in contained
    ]
    if prompt.family == "list":
        asked.append(("keywords:forbidden_words", {"forbidden_words": [slots["without"]]}))
    if prompt.family == "repeat":
        # exactly n times: at least n times, and less than one more
        times = NUMBERS.index(slots["number"]) + 2
        word = {"keyword": slots["word"]}
        asked += [
            ("keywords:frequency", {**word, "frequency": times, "relation": "at least"}),
            ("keywords:frequency", {**word, "frequency": times + 1, "relation": "less than"}),
        ]
    return asked


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
