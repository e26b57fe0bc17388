"""Lists: a given number of things of one category, with one to start with and one to leave out."""

from __future__ import annotations

import random
from typing import ClassVar, Final

from handbook_utils.pocket import vocabulary as vocab
from handbook_utils.pocket.families.base import Family, Flaws, Slots, SlotValues, another, words_of

_ITEMS: Final = tuple(item for items in vocab.CATEGORIES.values() for item in items)
_ITEMS_IN_EACH: Final = 10
_LARGEST_COUNT: Final = 7

_HEADINGS: Final = (
    "There is {first} among the {number} {category}, and no {without}.",
    "A page of {number} {category}, from {first} on, all but {without}.",
    "No {without} is in this book of {category}, and {first} is the first of {number}.",
)


class _Listing(Family):
    name = "list"
    slots: ClassVar[SlotValues] = {
        "number": vocab.NUMBERS[: _LARGEST_COUNT - 1],
        "category": tuple(vocab.CATEGORIES),
        "first": _ITEMS,
        "without": _ITEMS,
    }
    wordings = (
        "Name {number} {category}. Start with {first} and leave out {without}.",
        "Give me a list of {number} {category} that begins with {first}, but without {without}.",
    )

    @property
    def size(self) -> int:
        # both items come from the category, so only its ten items count
        return len(self.slots["number"]) * len(self.slots["category"]) * _ITEMS_IN_EACH**2

    def combination(self, index: int) -> dict[str, str]:
        index, number = divmod(index, len(self.slots["number"]))
        index, category = divmod(index, len(self.slots["category"]))
        without, first = divmod(index, _ITEMS_IN_EACH)
        name = self.slots["category"][category]
        items = vocab.CATEGORIES[name]
        return {
            "number": self.slots["number"][number],
            "category": name,
            "first": items[first],
            "without": items[without],
        }

    def possible(self, slots: Slots) -> bool:
        items = vocab.CATEGORIES[slots["category"]]
        return slots["first"] != slots["without"] and {slots["first"], slots["without"]} <= set(items)

    def answer(self, slots: Slots, flaws: Flaws, rng: random.Random) -> str:
        category = slots["category"]
        count = _count(slots)
        if flaws.missed:
            near = [count + step for step in (-2, -1, 1, 2)]
            count = rng.choice([other for other in near if 1 <= other <= _ITEMS_IN_EACH - 1])
        rest = [item for item in vocab.CATEGORIES[category] if item not in (slots["first"], slots["without"])]
        listed = [slots["first"], *rng.sample(rest, count - 1)]
        if flaws.wrong:
            stranger = rng.choice(vocab.CATEGORIES[another(self.slots["category"], category, rng)])
            listed[-1] = rng.choice([stranger, slots["without"]])
        return f"{slots['number'].capitalize()} {category}: {', '.join(listed)}."

    def demands(self, slots: Slots, response: str) -> list[bool]:
        items = _listed(response)
        members = {item.lower() for item in vocab.CATEGORIES[slots["category"]]}
        return [
            len(items) == _count(slots),
            items[:1] == [slots["first"].lower()],
            bool(items) and set(items) <= members and len(set(items)) == len(items),
            bool(members.intersection(items)) and slots["without"].lower() not in items,
        ]

    def word_limit(self, slots: Slots) -> int:
        return _count(slots) + 4

    def plain_text(self, slots: Slots, rng: random.Random) -> str:
        return f"{rng.choice(_HEADINGS).format(**slots)} {self.answer(slots, Flaws(), rng)}"


def _count(slots: Slots) -> int:
    return vocab.NUMBERS.index(slots["number"]) + 2


def _listed(response: str) -> list[str]:
    """Return the lower-case items of the first sentence, after its colon where it has one."""
    sentence = response.split(".")[0]
    after_colon = sentence.split(":", 1)[-1]
    return [" ".join(words_of(item)) for item in after_colon.split(",") if words_of(item)]


LISTING: Final = _Listing()
