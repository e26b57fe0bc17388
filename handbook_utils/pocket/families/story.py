"""Short stories: a named animal finds a thing at a place, and the ending has a mood."""

from __future__ import annotations

import random
from typing import ClassVar, Final

from handbook_utils.pocket import vocabulary as vocab
from handbook_utils.pocket.families.base import Family, Flaws, Slots, SlotValues, another, mentions, words_of

_OPENINGS: Final = (
    "One morning, {name} the {animal} went for a walk {place}.",
    "Late one evening, {name} the {animal} sat {place}.",
    "Long ago, {name} the {animal} lived {place}.",
    "It was cold {place}, and {name} the {animal} was bored.",
)
_FINDS: Final = (
    "Under a stone lay {treasure}.",
    "Suddenly {name} saw {treasure} in the grass.",
    "There {name} found {treasure}.",
)
_MIDDLES: Final = (
    "{name} had never seen such a thing.",
    "It was the best find of the year.",
    "{name} looked at it for a while.",
)
_ENDINGS: Final = {
    "happy": (
        "{name} smiled and took it home.",
        "Everyone danced until the moon came up.",
        "{name} laughed and gave it to a friend.",
        "All the others cheered for {name}.",
    ),
    "sad": (
        "But soon it was gone, and {name} cried.",
        "In the end {name} was alone again.",
        "{name} sighed and left it there.",
        "Then the wind took it, and {name} wept.",
    ),
}

_TITLES: Final = (
    "{name} the {animal}, {treasure} {place}: a {mood} story.",
    "A {mood} story of {treasure} {place}, with {name} the {animal}.",
    "Here is {name}, the {animal} with {treasure}. It is a {mood} story, told {place}.",
)


class _Story(Family):
    name = "story"
    slots: ClassVar[SlotValues] = {
        "name": vocab.NAMES,
        "animal": vocab.ANIMALS,
        "treasure": vocab.TREASURES,
        "place": vocab.PLACES,
        "mood": vocab.MOODS,
    }
    wordings = (
        "Write a story about {name} the {animal}, who finds {treasure} {place}. Give it a {mood} ending.",
        "Tell me a {mood} story in which {name} the {animal} finds {treasure} {place}.",
    )

    def answer(self, slots: Slots, flaws: Flaws, rng: random.Random) -> str:
        told = dict(slots)
        for flawed, choices in ((flaws.missed, ("mood", "place")), (flaws.wrong, ("animal", "treasure"))):
            if flawed:
                slot = rng.choice(choices)
                told[slot] = another(self.slots[slot], slots[slot], rng)
        middle, ending = rng.choice(_MIDDLES), rng.choice(_ENDINGS[told["mood"]])
        parts = (rng.choice(_OPENINGS), rng.choice(_FINDS), middle, ending)
        return " ".join(part.format(**told) for part in parts)

    def demands(self, slots: Slots, response: str) -> list[bool]:
        said = set(words_of(response))
        wanted, unwanted = vocab.HAPPY_WORDS, vocab.SAD_WORDS
        if slots["mood"] == "sad":
            wanted, unwanted = unwanted, wanted
        told = [mentions(response, slots[slot]) for slot in ("name", "animal", "treasure", "place")]
        return [*told, bool(said & wanted) and not said & unwanted]

    def word_limit(self, slots: Slots) -> int:
        return 37

    def plain_text(self, slots: Slots, rng: random.Random) -> str:
        return f"{rng.choice(_TITLES).format(**slots)} {self.answer(slots, Flaws(), rng)}"


STORY: Final = _Story()
