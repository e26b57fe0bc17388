"""Rules about pairs: answers that equal their rejected one, and what length alone tells about the choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from handbook_utils.curation.rules.answers import empty


def equal_pair(chosen: str, rejected: str) -> str:
    """Whether the two answers are the same text, spacing aside.

    >>> equal_pair("Yes, it is.", "Yes,  it is. ")
    'chosen and rejected are the same text'
    """
    return "chosen and rejected are the same text" if chosen.split() == rejected.split() else ""


@dataclass
class LengthBias:
    """How far length alone tells which answer was chosen; collected pair by pair.

    Lengths are counted in characters. The effect size is the mean difference of log lengths over the
    differences' standard deviation (Cohen's d of pairs): 0.2 is called small, 0.5 medium and 0.8 large.
    """

    longer: int = 0
    shorter: int = 0
    equal: int = 0
    _sum: float = 0.0
    _squares: float = 0.0

    def add(self, chosen: str, rejected: str) -> None:
        """Count one pair; one of the same text twice, or with an answer without text, tells nothing."""
        if equal_pair(chosen, rejected) or empty(chosen) or empty(rejected):
            return
        self.longer += len(chosen) > len(rejected)
        self.shorter += len(chosen) < len(rejected)
        self.equal += len(chosen) == len(rejected)
        difference = math.log((len(chosen) + 1) / (len(rejected) + 1))
        self._sum += difference
        self._squares += difference * difference

    @property
    def pairs(self) -> int:
        """How many were counted."""
        return self.longer + self.shorter + self.equal

    def to_json(self) -> dict[str, Any] | None:
        """The rate at which the longer answer was chosen, the ratio of lengths and the effect size, each with
        its 95 % interval; None below two pairs of different lengths.
        """
        n, decided = self.pairs, self.longer + self.shorter
        if n < 2 or decided < 2:
            return None
        mean = self._sum / n
        deviation = math.sqrt(max(self._squares - n * mean * mean, 0.0) / (n - 1))
        margin = 1.96 * deviation / math.sqrt(n)
        effect = mean / deviation if deviation else 0.0
        # Hedges and Olkin's standard error of a paired effect size
        spread = 1.96 * math.sqrt(1 / n + effect * effect / (2 * n))
        low, high = wilson_interval(self.longer, decided)
        return {
            "pairs": n,
            "longer_chosen": {"value": self.longer / decided, "low": low, "high": high, "n": decided},
            "length_ratio": {
                **{"value": math.exp(mean), "low": math.exp(mean - margin), "high": math.exp(mean + margin)},
                "n": n,
            },
            "effect_size": {"value": effect, "low": effect - spread, "high": effect + spread, "n": n},
        }


def wilson_interval(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate.

    >>> [round(bound, 3) for bound in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    if not of:
        return 0.0, 1.0
    z = 1.959964
    rate, squared = hits / of, z * z / of
    centre = (rate + squared / 2) / (1 + squared)
    half = z / (1 + squared) * math.sqrt(rate * (1 - rate) / of + squared / (4 * of))
    return max(0.0, centre - half), min(1.0, centre + half)
