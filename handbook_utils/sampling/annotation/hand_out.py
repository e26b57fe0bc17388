"""Who is shown which pair: each pair to one person, a share of them to several, so that agreement shows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from handbook_utils.errors import DataError

# a pair shown to somebody is given to nobody else for so long, unless they come back to it
HELD_S = 600.0


@dataclass(frozen=True)
class Progress:
    """How far the work is.

    Attributes:
        mine: pairs that this person judged.
        done: judgements there are, of those that are needed.
        needed: judgements that all pairs need together.
        held: pairs that other people are looking at now.
    """

    mine: int
    done: int
    needed: int
    held: int


class HandOut:
    """Hands pairs to people, in an order that the seed decides; not thread-safe, and without a clock.

    A pair that somebody looks at is kept for them. After `HELD_S` seconds it goes to the next person, as when
    a browser was closed; a judgement that comes later still counts. Whoever skips a pair leaves it to others.

    Args:
        ids: of the pairs.
        overlap: share of the pairs that several people judge.
        people: how many, for these.
        seed: of the order, and of which pairs these are.

    Raises:
        DataError: the share is not within 0 and 1, or it takes fewer than two people.
    """

    def __init__(self, ids: Sequence[str], *, overlap: float, people: int, seed: int) -> None:
        if not 0 <= overlap <= 1:
            raise DataError(f"--overlap is a share from 0 to 1, got {overlap:g}.")
        if people < 2:
            raise DataError(f"--people: {people} cannot agree. Name at least 2, or turn it off: --overlap 0.")
        self._order = sorted(ids, key=lambda name: _drawn(seed, "order", name))
        shared = sorted(ids, key=lambda name: _drawn(seed, "shared", name))[: round(overlap * len(ids))]
        self._needed = {**dict.fromkeys(self._order, 1), **dict.fromkeys(shared, people)}
        self._judged: dict[str, set[str]] = {name: set() for name in self._order}
        self._seen: dict[str, set[str]] = {}
        self._held: dict[str, tuple[str, float]] = {}

    def next(self, person: str, now: float) -> str | None:
        """The pair that this person is to judge now; None where nothing is left for them at the moment.

        Args:
            person: their name.
            now: seconds of any clock that does not go back.
        """
        seen = self._seen.setdefault(person, set())
        kept = self._held.pop(person, None)
        if kept is not None and kept[0] not in seen and self._is_open(kept[0], now):
            return self._hold(person, kept[0], now)
        for name in self._order:
            if name not in seen and self._is_open(name, now):
                return self._hold(person, name, now)
        return None

    def note(self, person: str, name: str, *, is_skip: bool) -> None:
        """A person has judged or skipped a pair."""
        self._seen.setdefault(person, set()).add(name)
        self._held.pop(person, None)
        if not is_skip and name in self._judged:
            self._judged[name].add(person)

    def take_back(self, person: str, name: str, now: float) -> None:
        """A person takes a judgement or skip back, and is shown the pair again."""
        self._seen.setdefault(person, set()).discard(name)
        if name in self._judged:
            self._judged[name].discard(person)
            self._hold(person, name, now)

    def progress(self, person: str, now: float) -> Progress:
        """How far the work is, as this person sees it."""
        done = sum(min(len(people), self._needed[name]) for name, people in self._judged.items())
        mine = sum(person in people for people in self._judged.values())
        held = sum(until > now for other, (_, until) in self._held.items() if other != person)
        return Progress(mine, done, sum(self._needed.values()), held)

    def _hold(self, person: str, name: str, now: float) -> str:
        self._held[person] = (name, now + HELD_S)
        return name

    def _is_open(self, name: str, now: float) -> bool:
        judged = len(self._judged[name])
        if judged >= self._needed[name]:
            return False
        held = sum(pair == name and until > now for pair, until in self._held.values())
        return judged + held < self._needed[name]


def is_swapped(seed: int, person: str, name: str) -> bool:
    """Whether a person is shown the second answer of a pair first; the same each time they see it."""
    return _drawn(seed, "sides", person, name)[0] % 2 == 1


def _drawn(seed: int, *parts: str) -> bytes:
    return hashlib.sha256("\0".join((str(seed), *parts)).encode()).digest()
