"""A session of comparing: what people are shown and what becomes of what they say. No network in it."""

from __future__ import annotations

import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from handbook_utils.errors import DataError
from handbook_utils.sampling.annotation.hand_out import HandOut, is_swapped
from handbook_utils.sampling.annotation.judgements import Judgement, JudgementFile
from handbook_utils.sampling.annotation.pairs import AnswerPair
from handbook_utils.sampling.annotation.people import summarise_people

CHOICES = ("left", "right", "tie", "skip")
LONGEST_NAME = 64
LONGEST_S = 86_400.0
# agreement that takes longer than this to work out is not worked out anew for each judgement
QUICK_S, AT_MOST_A_SHARE = 0.05, 0.05


class Session:
    """Pairs, the people who compare them, and the file of what they say; thread-safe.

    Args:
        pairs: to compare.
        file: open for this session; what it holds already counts.
        hand_out: of these pairs.
        seed: of the sides on which answers are shown.
        clock: seconds that do not go back.
    """

    def __init__(
        self,
        pairs: Sequence[AnswerPair],
        file: JudgementFile,
        hand_out: HandOut,
        *,
        seed: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pairs = {pair.id: pair for pair in pairs}
        self._file, self._hand_out, self._seed, self._clock = file, hand_out, seed, clock
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        self._said: dict[tuple[str, str], str] = {}
        self._counts: Counter[str] = Counter()
        self._agreement: dict[str, Any] = {}
        self._changes, self._reported, self._again_at = 0, -1, 0.0
        self._is_closed = False
        for line in file.lines:
            said = line.judgement
            self._names.setdefault(said.person.casefold(), said.person)
            if not line.is_undone:
                self._note(said)

    def show(self, name: Any) -> dict[str, Any]:
        """What a person is shown now."""
        with self._lock:
            return self._shown(self._person(name))

    def close(self) -> None:
        """Take nothing more; returns once what was being written is written."""
        with self._lock:
            self._is_closed = True

    def judge(self, name: Any, pair: Any, choice: Any, seconds: Any) -> dict[str, Any]:
        """Keep what a person says of a pair, and give the next one.

        A pair that they have judged already, in another window or in a request that was sent twice, stays as
        it was judged first.

        Raises:
            DataError: no such pair or choice.
            RunFolderError: it could not be kept.
        """
        with self._lock:
            person = self._person(name)
            if not isinstance(pair, str) or pair not in self._pairs:
                raise DataError("there is no such pair in this session. Reload the page.")
            if choice not in CHOICES:
                raise DataError(f"there is no such choice. Choose from: {', '.join(CHOICES)}.")
            judgement = self._judgement(person, pair, choice, seconds)
            earlier = self._said.get((person, pair))
            if earlier is not None:
                note = None if earlier == judgement.verdict else "You judged that pair before, which stays."
                return self._shown(person) | {"note": note}
            self._check_open()
            self._file.append(judgement, self._pairs[pair])
            self._note(judgement)
            return self._shown(person)

    def undo(self, name: Any, said: Any) -> dict[str, Any]:
        """Take back what a person said last, and show that pair again.

        Args:
            name: of the person.
            said: how much they had said when they asked, so that a request sent twice takes one thing back.
        Raises:
            RunFolderError: it could not be kept.
        """
        with self._lock:
            person = self._person(name)
            if said != self._counts[person]:
                return self._shown(person) | {"note": "Nothing was undone: you have judged since."}
            self._check_open()
            back = self._file.take_back(person)
            if back is None:
                return self._shown(person) | {"note": "There is nothing to undo."}
            self._changes += 1
            self._said.pop((person, back.pair), None)
            self._counts[person] -= 1
            self._hand_out.take_back(person, back.pair, self._clock())
            if back.pair not in self._pairs:
                return self._shown(person) | {
                    "note": "Undone: a pair of other data, which is not shown here."
                }
            return self._shown(person, back.pair)

    def _judgement(self, person: str, pair: str, choice: str, seconds: Any) -> Judgement:
        first, second = ("b", "a") if is_swapped(self._seed, person, pair) else ("a", "b")
        verdict = {"left": first, "right": second}.get(choice, choice)
        is_time = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        taken = round(float(seconds), 2) if is_time and 0 <= seconds <= LONGEST_S else None
        return Judgement(person, pair, verdict, first, taken, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")

    def _note(self, said: Judgement) -> None:
        self._changes += 1
        self._said[said.person, said.pair] = said.verdict
        self._counts[said.person] += 1
        self._hand_out.note(said.person, said.pair, is_skip=said.verdict == "skip")

    def _person(self, name: Any) -> str:
        """The name under which this person is known: another case or spacing is no other person."""
        plain = " ".join(unicodedata.normalize("NFC", name).split()) if isinstance(name, str) else ""
        if not plain or len(plain) > LONGEST_NAME or not plain.isprintable():
            raise DataError(f"a name has 1 to {LONGEST_NAME} letters, digits or signs.")
        return self._names.setdefault(plain.casefold(), plain)

    def _shown(self, person: str, pair: str | None = None) -> dict[str, Any]:
        now = self._clock()
        name = pair or self._hand_out.next(person, now)
        return {
            "person": person,
            "pair": None if name is None else self._sides(person, self._pairs[name]),
            "said": self._counts[person],
            "progress": asdict(self._hand_out.progress(person, now)),
            "agreement": self._agreement_now(),
            "note": None,
        }

    def _sides(self, person: str, pair: AnswerPair) -> Mapping[str, Any]:
        """A pair as it is shown: nothing in it tells which answer is whose."""
        left, right = (pair.b, pair.a) if is_swapped(self._seed, person, pair.id) else (pair.a, pair.b)
        messages = [{"role": each["role"], "content": each["content"]} for each in pair.prompt]
        return {"id": pair.id, "prompt": messages, "left": left, "right": right}

    def _check_open(self) -> None:
        if self._is_closed:
            raise DataError(
                "the command was stopped, so this was not kept. Start it again and reload the page."
            )

    def _agreement_now(self) -> dict[str, Any]:
        """Agreement so far; with very many judgements it may be a little behind."""
        now = self._clock()
        if self._reported != self._changes and now >= self._again_at:
            report = summarise_people(self._file.lines).to_json()
            self._agreement = {name: report[name] for name in ("shared", "metrics", "kappas")}
            took = self._clock() - now
            self._reported = self._changes
            self._again_at = now + took / AT_MOST_A_SHARE if took > QUICK_S else now
        return self._agreement
