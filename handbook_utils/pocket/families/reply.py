"""Replies to customers: greet by name, say sorry for this problem of this product, offer this remedy."""

from __future__ import annotations

import random
from typing import ClassVar, Final

from handbook_utils.pocket import vocabulary as vocab
from handbook_utils.pocket.families.base import Family, Flaws, Slots, SlotValues, another, mentions, words_of

_APOLOGIES: Final = (
    "I am sorry that your {product} {problem}.",
    "I am very sorry to hear that the {product} {problem}.",
    "I am so sorry that your {product} {problem}.",
)
_OFFERS: Final = (
    "We would like to offer you {remedy}.",
    "You will get {remedy} from us this week.",
    "May we make it right with {remedy}?",
)
_CLOSES: Final = ("Best wishes, your shop.", "Kind regards, your shop.", "Yours, the team of the shop.")

_SUBJECTS: Final = (
    "Letter: {name}, {product} {problem}, {remedy}.",
    "The {product} of {name} {problem}. It is time for {remedy}.",
    "The shop had {remedy} for {name}, as the {product} {problem}.",
)


class _Reply(Family):
    name = "reply"
    slots: ClassVar[SlotValues] = {
        "name": vocab.NAMES,
        "product": vocab.PRODUCTS,
        "problem": vocab.PROBLEMS,
        "remedy": vocab.REMEDIES,
    }
    wordings = (
        "Write to our customer {name}, whose {product} {problem}. Offer {remedy}.",
        "{name} tells us that the {product} {problem}. Write a kind reply and offer {remedy}.",
    )

    def answer(self, slots: Slots, flaws: Flaws, rng: random.Random) -> str:
        told = dict(slots)
        if flaws.wrong:
            slot = rng.choice(("name", "product", "problem", "remedy"))
            told[slot] = another(self.slots[slot], slots[slot], rng)
        parts = ["Dear {name},", rng.choice(_APOLOGIES), rng.choice(_OFFERS), rng.choice(_CLOSES)]
        if flaws.missed:
            del parts[rng.choice((0, 1, 2))]
        return " ".join(parts).format(**told)

    def demands(self, slots: Slots, response: str) -> list[bool]:
        named = [mentions(response, slots[slot]) for slot in ("name", "product", "problem", "remedy")]
        return [*named, mentions(response, "sorry")]

    def word_limit(self, slots: Slots) -> int:
        return 25 + len(words_of(slots["problem"])) + len(words_of(slots["remedy"]))

    def plain_text(self, slots: Slots, rng: random.Random) -> str:
        return f"{rng.choice(_SUBJECTS).format(**slots)} {self.answer(slots, Flaws(), rng)}"


REPLY: Final = _Reply()
