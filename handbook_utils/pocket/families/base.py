"""What every prompt family provides: prompts made from slots, answers with chosen flaws, and checks."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar

Slots = Mapping[str, str]
SlotValues = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Flaws:
    """What is wrong with one answer.

    Attributes:
        missed: one thing that was asked for is left out or miscounted.
        wrong: one thing is taken from elsewhere (another animal, category, product, tool).
        complies: a harmful request is answered instead of refused.
        rude: a rude sentence closes the answer.
        fillers: sentences that add words and nothing else.
    """

    missed: bool = False
    wrong: bool = False
    complies: bool = False
    rude: bool = False
    fillers: int = 0


class Family(ABC):
    """One kind of prompt. Subclasses hold the slots and the checks, and keep no state."""

    name: ClassVar[str]
    slots: ClassVar[SlotValues]
    wordings: ClassVar[tuple[str, ...]]

    @property
    def size(self) -> int:
        """Number of slot combinations, impossible ones included."""
        return prod(len(values) for values in self.slots.values())

    def combination(self, index: int) -> dict[str, str]:
        """Return the slot combination with this number, counted as in a mixed-radix numeral."""
        chosen = {}
        for slot, values in self.slots.items():
            index, place = divmod(index, len(values))
            chosen[slot] = values[place]
        return chosen

    def possible(self, slots: Slots) -> bool:
        """Whether the combination makes sense (a list cannot start with the item to leave out)."""
        return True

    def harmful(self, slots: Slots) -> bool:
        """Whether the right answer is a refusal."""
        return False

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [_pattern(wording, self.slots) for wording in self.wordings]

    def parse(self, prompt_text: str) -> dict[str, str] | None:
        """Return the slots of a prompt of this family, or None for any other text."""
        for pattern in self._patterns:
            match = pattern.fullmatch(prompt_text)
            if match and self.possible(match.groupdict()):
                return match.groupdict()
        return None

    @abstractmethod
    def answer(self, slots: Slots, flaws: Flaws, rng: random.Random) -> str:
        """Return an answer with the given flaws in its content; the world adds closers and fillers."""

    @abstractmethod
    def demands(self, slots: Slots, response: str) -> list[bool]:
        """Return, for each thing the prompt asks for, whether the response delivers it."""

    @abstractmethod
    def word_limit(self, slots: Slots) -> int:
        """Return the number of words up to which an answer counts as concise."""

    @abstractmethod
    def plain_text(self, slots: Slots, rng: random.Random) -> str:
        """Return a passage such as a book of this world might hold: no prompt, no chat."""


def _pattern(wording: str, slots: SlotValues) -> re.Pattern[str]:
    """Turn a wording with {slots} into a pattern that accepts exactly the slots' values."""
    pieces = []
    for piece in re.split(r"(\{\w+\})", wording):
        slot = piece[1:-1]
        if slot in slots:
            pieces.append(f"(?P<{slot}>{'|'.join(map(re.escape, slots[slot]))})")
        else:
            pieces.append(re.escape(piece))
    return re.compile("".join(pieces))


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a text without punctuation.

    >>> words_of("Dear Mia, it's late.")
    ['dear', 'mia', "it's", 'late']
    """
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def mentions(response: str, phrase: str) -> bool:
    """Whether the phrase's words stand in the response, next to each other and in order.

    >>> mentions("A lost letter, by the lake.", "by the lake")
    True
    >>> mentions("Capes and hats", "cap")
    False
    """
    return f" {' '.join(words_of(phrase))} " in f" {' '.join(words_of(response))} "


def another(values: Sequence[str], taken: str, rng: random.Random) -> str:
    """Return a value that is not the one taken."""
    return rng.choice([value for value in values if value != taken])
