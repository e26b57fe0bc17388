"""Repeats: one word a given number of times, then another word once."""

from __future__ import annotations

import random
from typing import ClassVar, Final

from handbook_utils.pocket import vocabulary as vocab
from handbook_utils.pocket.families.base import Family, Flaws, Slots, SlotValues, another, words_of

_SONGS: Final = (
    "A song of {word}, {number} times, and {last}.",
    "There are {number} of {word} in this song, and one {last}.",
    "The song ends with {last}, after {word} has come {number} times.",
)


class _Repeat(Family):
    name = "repeat"
    slots: ClassVar[SlotValues] = {
        "word": vocab.ECHOES,
        "number": vocab.NUMBERS,
        "last": vocab.ECHOES,
    }
    wordings = (
        "Say {word} {number} times, then say {last} once.",
        "Repeat the word {word} {number} times and end with {last}.",
    )

    def possible(self, slots: Slots) -> bool:
        return slots["word"] != slots["last"]

    def answer(self, slots: Slots, flaws: Flaws, rng: random.Random) -> str:
        count = _count(slots)
        if flaws.missed:
            count = rng.choice([other for other in range(1, 11) if abs(other - count) in (1, 2)])
        word, last = slots["word"], slots["last"]
        if flaws.wrong:
            last = another(vocab.ECHOES, last, rng)
        return f"{' '.join([word] * count)} {last}.".capitalize()

    def demands(self, slots: Slots, response: str) -> list[bool]:
        *said, last = words_of(response.split(".")[0]) or [""]
        return [
            bool(said) and set(said) == {slots["word"]},
            said.count(slots["word"]) == _count(slots),
            last == slots["last"],
        ]

    def word_limit(self, slots: Slots) -> int:
        return _count(slots) + 1

    def plain_text(self, slots: Slots, rng: random.Random) -> str:
        return f"{rng.choice(_SONGS).format(**slots)} {self.answer(slots, Flaws(), rng)}"


def _count(slots: Slots) -> int:
    return vocab.NUMBERS.index(slots["number"]) + 2


REPEAT: Final = _Repeat()
