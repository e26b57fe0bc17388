"""What the rules that look at one row at a time say of a batch of rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from handbook_utils.curation.decontaminate import Hit, TestedPrompts, in_context
from handbook_utils.curation.rows import Reading
from handbook_utils.curation.rules import answers as about
from handbook_utils.curation.rules.control_tokens import ControlTokens
from handbook_utils.curation.rules.languages import wrong_language
from handbook_utils.curation.rules.pairs import LengthBias, equal_pair
from handbook_utils.curation.rules.private_data import kinds_of
from handbook_utils.curation.rules.table import RULES, Settings


class Finding(NamedTuple):
    """One rule's reason against a row."""

    rule: str
    why: str


class RowChecks:
    """The rules about single rows, with what they need.

    Args:
        settings: which rules are on, and where they begin.
        tested: prompts that are tested on.
        control: the tokenizer's control tokens.

    Attributes:
        bias: what length alone tells about the choice between the answers of all pairs so far.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        tested: TestedPrompts | None = None,
        control: ControlTokens | None = None,
    ) -> None:
        self._settings, self._tested, self._control = settings, tested, control
        self._on = frozenset(name for name in RULES if settings.is_on(name))
        self.bias = LengthBias()
        self._sentences = SentenceCounts()
        self._answer_rules = [
            (name, rule)
            for name, rule in (
                ("empty", about.empty),
                ("cut", about.cut),
                ("refused", about.refused),
                ("repetitive", lambda text: about.repetitive(text, settings.thresholds.repetition)),
            )
            if settings.is_on(name)
        ]

    def __call__(self, first: int, readings: Sequence[Reading]) -> list[list[Finding]]:
        """Findings of each row of a batch; `first` is the place of its first row among all."""
        found = [
            [finding for finding in self._of_row(first + place, reading) if finding.rule in self._on]
            for place, reading in enumerate(readings)
        ]
        if self._tested is not None and "test_prompt" in self._on:
            for place, why in leaks(self._tested, readings):
                found[place].append(Finding("test_prompt", why))
        return found

    def boilerplate(self) -> dict[int, str]:
        """Rows whose answer opens or closes with a sentence that many share, with the reason."""
        if "boilerplate" not in self._on:
            return {}
        thresholds = self._settings.thresholds
        return self._sentences.shared(share=thresholds.boilerplate_share, least=thresholds.boilerplate_rows)

    def _of_row(self, place: int, reading: Reading) -> Iterator[Finding]:
        if reading.problem:
            yield Finding(_rule_of(reading), reading.problem)
            return
        if reading.is_unlearned:
            yield Finding("nothing_learned", "marked as not to be learned, or its answers are rated alike")
        many = len(reading.answers) > 1
        for number, answer in enumerate(reading.answers, start=1):
            which = f"answer {number}: " if many else ""
            for name, rule in self._answer_rules:
                if why := rule(answer):
                    yield Finding(name, which + why)
            if "boilerplate" in self._on:
                self._sentences.add(place, answer)
        for answer in reading.rejected:  # it may be cut or refuse; without text there is nothing to compare
            if why := about.empty(answer):
                yield Finding("empty", f"rejected answer: {why}")
        languages = self._settings.languages
        if "wrong_language" in self._on and (
            why := wrong_language(reading.asked, reading.answered, languages)
        ):
            yield Finding("wrong_language", why)
        for chosen, rejected in zip(reading.answers, reading.rejected, strict=False):
            if why := equal_pair(chosen, rejected):
                yield Finding("equal_pair", why)
            self.bias.add(chosen, rejected)
        yield from self._of_texts(reading)

    def _of_texts(self, reading: Reading) -> Iterator[Finding]:
        if "private_data" in self._on:
            kinds: dict[str, int] = {}
            for text in reading.texts:
                kinds |= kinds_of(text)
            if kinds:
                # what it says is not repeated here
                yield Finding("private_data", "holds " + ", ".join(kinds))
        if self._control is not None:
            why = next(filter(None, map(self._control.found_in, reading.texts)), "")
            if why:
                yield Finding("control_tokens", why)


def leaks(tested: TestedPrompts, readings: Sequence[Reading]) -> Iterator[tuple[int, str]]:
    """Rows of a batch that hold a tested prompt, each once, with the reason and the words in their place."""
    texts = ["\n".join(reading.texts) for reading in readings]
    before = -1
    for hit in tested.hits([reading.asked for reading in readings], texts):
        if hit.row != before:
            before = hit.row
            yield hit.row, leak_reason(tested, hit, texts[hit.row])


def leak_reason(tested: TestedPrompts, hit: Hit, text: str) -> str:
    """Why a row holds a tested prompt, in words."""
    prompt = tested.prompts[hit.prompt]
    how = {
        "same prompt": "asks the same as",
        "shared words": f"holds {hit.share:.0%} of the word runs of",
        "near-duplicate": f"asks nearly the same ({hit.share:.2f}) as",
    }[hit.how]
    return f"{how} {prompt.id}: {in_context(text, prompt.text, words=tested.words)}"


def _rule_of(reading: Reading) -> str:
    if reading.is_empty:
        return "empty"
    return "role_order" if reading.is_out_of_order else "unreadable"


class SentenceCounts:
    """Opening and closing sentences of answers, kept as numbers."""

    def __init__(self) -> None:
        self._values, self._rows = array("Q"), array("q")
        self._answers = 0

    def add(self, row: int, answer: str) -> None:
        """Count an answer of a row."""
        self._answers += 1
        for sentence in about.edge_sentences(answer):
            if sentence:
                self._values.append(about.hash_of(sentence))
                self._rows.append(row)

    def shared(self, *, share: float, least: int) -> dict[int, str]:
        """Rows with a sentence of that share of all answers, and of at least so many, with the reason."""
        values, rows = np.frombuffer(self._values, np.uint64), np.frombuffer(self._rows, np.int64)
        if not len(values):
            return {}
        _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
        many = counts >= max(least, share * self._answers)
        found: dict[int, str] = {}
        for row, count in zip(rows[many[group]].tolist(), counts[group][many[group]].tolist(), strict=True):
            found[row] = f"opens or closes with a sentence of {count:,} of {self._answers:,} answers"
        return found
