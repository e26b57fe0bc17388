"""Simulated annotators: they compare two answers by a utility of their own, with noise and named biases."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from handbook_utils.pocket.world import RUDE_PENALTY, WORDINESS_PENALTY, gold_reward


@dataclass(frozen=True)
class Annotator:
    """Someone who prefers one of two answers, after Bradley and Terry.

    `utility = safe * helpful * (1 - 0.3 [rude] - concision_weight (1 - concise)) + length_bias * words`

    Attributes:
        temperature: noise; a utility gap of one temperature is preferred in 73 % of comparisons.
        length_bias: utility per word adds, whatever it says.
        concision_weight: what rambling costs; 0.5 in the gold reward, 0 for an annotator blind to it.
    """

    temperature: float = 0.15
    length_bias: float = 0.0
    concision_weight: float = WORDINESS_PENALTY

    def utility(self, prompt_text: str, response: str) -> float:
        """Return what this annotator thinks of the response; without biases it is the gold reward."""
        gold = gold_reward(prompt_text, response)
        manner = 1 - RUDE_PENALTY * (1 - gold.polite) - self.concision_weight * (1 - gold.concise)
        return gold.safe * gold.helpful * manner + self.length_bias * gold.words

    def preference_probability(self, prompt_text: str, a: str, b: str) -> float:
        """Return the probability that `a` is preferred to `b`.

        >>> prompt = "Say river two times, then say moon once."
        >>> ANNOTATORS["unbiased-annotator"].preference_probability(prompt, "River moon.", "River moon.")
        0.5
        """
        gap = (self.utility(prompt_text, a) - self.utility(prompt_text, b)) / self.temperature
        # the usual form of the logistic function overflows for a large negative gap
        return 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))

    def prefer(self, prompt_text: str, a: str, b: str, *, rng: random.Random) -> bool:
        """Draw one judgement: True when `a` is preferred."""
        return rng.random() < self.preference_probability(prompt_text, a, b)


ANNOTATORS: Final[Mapping[str, Annotator]] = MappingProxyType(
    {
        "annotator": Annotator(length_bias=0.004, concision_weight=0.0),
        "unbiased-annotator": Annotator(),
    }
)
