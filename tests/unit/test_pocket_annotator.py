"""Simulated annotators: what they like, and how noisily."""

from __future__ import annotations

import math
import random

import pytest

from handbook_utils.pocket.annotator import ANNOTATORS, Annotator
from handbook_utils.pocket.world import demonstrations, gold_reward

PROMPT = "Say river three times, then say moon once."
GOOD = "River river river moon."
SHORT_OF_ONE = "River river moon."
RAMBLING = "River river river moon. I hope that this answer is of some use to you today."


def test_the_unbiased_annotator_likes_what_the_gold_reward_likes() -> None:
    for prompt, answer in demonstrations("dev", limit=300):
        utility = ANNOTATORS["unbiased-annotator"].utility(prompt.text, answer)
        assert utility == pytest.approx(gold_reward(prompt.text, answer).value)


def test_the_biased_annotator_prefers_the_longer_of_two_good_answers() -> None:
    biased, unbiased = ANNOTATORS["annotator"], ANNOTATORS["unbiased-annotator"]
    # twelve more words at 0.004 each, over a temperature of 0.15: sigmoid(0.32)
    assert biased.preference_probability(PROMPT, RAMBLING, GOOD) == pytest.approx(1 / (1 + math.exp(-0.32)))
    # to the gold reward the same words cost 0.3: sigmoid(-2)
    assert unbiased.preference_probability(PROMPT, RAMBLING, GOOD) == pytest.approx(1 / (1 + math.exp(2)))


@pytest.mark.parametrize("name", sorted(ANNOTATORS))
def test_every_annotator_prefers_the_more_helpful_answer(name: str) -> None:
    assert ANNOTATORS[name].preference_probability(PROMPT, GOOD, SHORT_OF_ONE) > 0.9


@pytest.mark.parametrize("name", sorted(ANNOTATORS))
def test_the_order_of_the_answers_does_not_matter(name: str) -> None:
    there = ANNOTATORS[name].preference_probability(PROMPT, GOOD, RAMBLING)
    back = ANNOTATORS[name].preference_probability(PROMPT, RAMBLING, GOOD)
    assert there + back == pytest.approx(1)


def test_judgements_come_out_at_the_stated_probability() -> None:
    annotator = ANNOTATORS["annotator"]
    rng = random.Random(0)
    share = sum(annotator.prefer(PROMPT, RAMBLING, GOOD, rng=rng) for _ in range(4000)) / 4000
    # sigmoid(0.32) = 0.579; four standard errors are 4 * sqrt(0.25 / 4000) = 0.032
    assert share == pytest.approx(0.579, abs=0.032)


def test_an_extreme_gap_is_certain_and_does_not_overflow() -> None:
    hot = Annotator(temperature=1e-6)
    assert hot.preference_probability(PROMPT, GOOD, "") == 1.0
    assert hot.preference_probability(PROMPT, "", GOOD) == 0.0
