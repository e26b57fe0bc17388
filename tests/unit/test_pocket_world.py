"""The pocket world's prompts, demonstrations and plain text."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest

from handbook_utils.errors import DataError
from handbook_utils.pocket.families import ALL_FAMILIES
from handbook_utils.pocket.families.base import Flaws
from handbook_utils.pocket.vocabulary import CATEGORIES
from handbook_utils.pocket.world import (
    FAMILIES,
    FLAW_RATES,
    demonstrate,
    demonstrations,
    family_prompts,
    gold_reward,
    plain_text,
    prompts,
)

SPLITS = ("train", "dev", "test")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_holds_out_at_least_two_thousand_distinct_test_prompts(family: str) -> None:
    assert len({prompt.text for prompt in family_prompts(family, "test")}) >= 2000
    assert len({prompt.text for prompt in family_prompts(family, "dev")}) >= 500
    assert len({prompt.text for prompt in family_prompts(family, "train")}) >= 6000


@pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda family: family.name)
def test_no_slot_combination_is_in_two_splits(family) -> None:
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    for split in SPLITS:
        for prompt in family_prompts(family.name, split):
            combination = tuple(sorted(family.parse(prompt.text).items()))
            assert combination not in seen, f"{prompt.text!r} is in {seen[combination]} and {split}"
            seen[combination] = split
    assert len(seen) > 8000


def test_prompt_ids_and_texts_are_unique() -> None:
    everything = [
        prompt for family in FAMILIES for split in SPLITS for prompt in family_prompts(family, split)
    ]
    assert len({prompt.prompt_id for prompt in everything}) == len(everything)
    assert len({prompt.text for prompt in everything}) == len(everything)


@pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda family: family.name)
def test_a_prompt_is_read_back_as_the_slots_it_was_made_of(family) -> None:
    for index in range(0, family.size, family.size // 200):
        slots = family.combination(index)
        if family.possible(slots):
            for wording in family.wordings:
                assert family.parse(wording.format(**slots)) == slots


def test_half_of_the_howto_questions_are_harmful_and_nothing_else_is() -> None:
    howto = family_prompts("howto", "test")
    assert 0.45 < sum(prompt.harmful for prompt in howto) / len(howto) < 0.55
    assert sum(prompt.harmful for prompt in howto) >= 1000
    others = [prompt for family in FAMILIES if family != "howto" for prompt in family_prompts(family, "test")]
    assert not any(prompt.harmful for prompt in others)


def test_families_take_turns_so_that_every_slice_is_balanced() -> None:
    assert [prompt.family for prompt in prompts("train", seed=3, limit=10)] == [*FAMILIES, *FAMILIES]


def test_the_seed_changes_the_order_and_not_the_set() -> None:
    first, second = prompts("dev", seed=0), prompts("dev", seed=1)
    assert first != second
    assert {prompt.text for prompt in family_prompts("list", "dev")} >= {
        prompt.text for prompt in first if prompt.family == "list"
    }
    assert prompts("dev", seed=1) == second


def test_a_smaller_limit_gives_the_beginning_of_a_larger_one() -> None:
    assert prompts("train", seed=1, limit=50) == prompts("train", seed=1, limit=500)[:50]
    assert demonstrations("train", seed=1, limit=20) == demonstrations("train", seed=1, limit=40)[:20]


def test_no_item_is_in_two_categories_and_every_category_has_ten() -> None:
    items = [item.lower() for category in CATEGORIES.values() for item in category]
    assert len(items) == len(set(items)) == 10 * len(CATEGORIES)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: prompts("tests"), "Did you mean 'test'"),
        (lambda: prompts("dev", limit=10**6), "Ask for fewer"),
        (lambda: prompts("dev", limit=-1), "Ask for fewer"),
        (lambda: family_prompts("stories", "dev"), "Did you mean 'story'"),
        (lambda: family_prompts("story", "validation"), "Choose from"),
        (lambda: gold_reward("What is the capital of France?", "Paris."), "pocket:prompts"),
    ],
)
def test_bad_requests_say_what_to_do(call, words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()


def test_demonstrations_have_each_flaw_at_about_its_rate() -> None:
    pairs = demonstrations("train", seed=0, limit=4000)
    golds = [gold_reward(prompt.text, answer) for prompt, answer in pairs]
    # four standard errors of a rate of 0.2 over 4000 draws: 4 * sqrt(0.2 * 0.8 / 4000) = 0.025
    assert sum(not gold.polite for gold in golds) / 4000 == pytest.approx(FLAW_RATES["rude"], abs=0.026)
    harmful = [gold for gold in golds if not gold.benign]
    # 400 harmful prompts: 4 * sqrt(0.2 * 0.8 / 400) = 0.08
    assert sum(not gold.safe for gold in harmful) / len(harmful) == pytest.approx(0.2, abs=0.08)
    assert 0.55 < sum(gold.value for gold in golds) / 4000 < 0.8


def test_no_demonstration_refuses_a_benign_question() -> None:
    golds = [gold_reward(prompt.text, answer) for prompt, answer in demonstrations("train", limit=3000)]
    assert not any(gold.refused for gold in golds if gold.benign)


def test_plain_text_has_no_prompt_and_no_chat_in_it() -> None:
    passages = plain_text(limit=2000)
    assert len(passages) == 2000
    starts = [wording.split("{")[0] for family in ALL_FAMILIES for wording in family.wordings]
    starts = [start for start in starts if start]
    assert len(starts) == 9
    for passage in passages:
        assert "<|" not in passage
        assert not any(start in passage for start in starts), passage
        assert "Write a kind reply" not in passage


def test_plain_text_can_be_longer_than_the_list_of_prompts() -> None:
    assert len(set(plain_text("dev", limit=5000))) > 4500


_FINGERPRINT = """
import hashlib, json
from handbook_utils.pocket.world import demonstrations, plain_text, prompts
rows = [[p.prompt_id, p.text, a] for p, a in demonstrations("test", seed=5, limit=200)]
rows += plain_text(seed=5, limit=200) + [p.text for p in prompts("dev", seed=5, limit=200)]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


def test_the_world_is_the_same_in_every_process() -> None:
    found = set()
    for hash_seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ran = subprocess.run(
            [sys.executable, "-c", _FINGERPRINT], env=environment, capture_output=True, text=True, check=True
        )
        found.add(ran.stdout)
    assert len(found) == 1


def test_the_world_has_not_changed_since_its_base_model_was_trained() -> None:
    # a changed world needs a new base model (handbook train pocket/base) and new recorded results
    rows = [[prompt.prompt_id, prompt.text, answer] for prompt, answer in demonstrations("train", limit=500)]
    digest = hashlib.sha256(json.dumps([rows, plain_text(limit=500)]).encode()).hexdigest()
    assert digest.startswith("1748b1aaafeb")


def test_a_perfect_answer_scores_one_in_every_family() -> None:
    for prompt in prompts("dev", seed=2, limit=1500):
        for draw in range(3):
            answer = demonstrate(prompt.text, rng=random.Random(draw), flaws=Flaws())
            assert gold_reward(prompt.text, answer).value == 1.0, (prompt.text, answer)
