"""Pairs of answers to compare: from pairs, from several answers to a prompt, or from two files of answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handbook_utils.chat.thinking import thinking_of
from handbook_utils.curation.rows import SourceRows
from handbook_utils.data.formats import prompt_hash
from handbook_utils.data.row_reader import TEMPLATE_OPTIONS
from handbook_utils.errors import DataError
from handbook_utils.records import Message

_ANSWERED = ("conversation", "feedback")
# of a row, what is written back beside its answers
_BESIDE = ("tools", TEMPLATE_OPTIONS)


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one conversation.

    Attributes:
        id: of what is compared: the same conversation and answers, in this order, have the same id.
        prompt_id: of the conversation.
        prompt: the conversation that was answered.
        a: the first answer, as the data has it.
        b: the second answer.
        origins: where each answer comes from, such as "pairs:3 chosen"; never shown to who compares.
        beside: columns of the row that the chat template needs.
    """

    id: str
    prompt_id: str
    prompt: list[Message]
    a: str
    b: str
    origins: tuple[str, str]
    beside: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class PairsRead:
    """Pairs, and what gave none.

    Attributes:
        pairs: in the order of the data, each once.
        equal: pairs of two equal answers, which nobody can tell apart.
        repeated: pairs that came before.
        alone: prompts with one answer only, or with an answer in one of two files.
        more: answers beyond the first two distinct ones of a prompt.
        undecided: rows without a pair, such as ties among rated answers.
        thinking: answers whose thinking is neither shown nor kept.
    """

    pairs: list[AnswerPair] = field(default_factory=list)
    equal: int = 0
    repeated: int = 0
    alone: int = 0
    more: int = 0
    undecided: int = 0
    thinking: int = 0

    def said(self) -> list[str]:
        """What gave no pair, in words; [] where all did."""
        told = (
            (self.equal, "pairs of two equal answers are left out"),
            (self.repeated, "pairs came before and are asked once"),
            (self.alone, "prompts have one answer only and are left out"),
            (self.more, "answers beyond the first two of their prompt are left out"),
            (self.undecided, "rows hold no pair (equal ratings, or marked as not learned) and are left out"),
            (self.thinking, "answers have thinking beside them, which is neither shown nor kept"),
        )
        return [f"{count:,} {what}" for count, what in told if count]


@dataclass(frozen=True)
class Answer:
    """One answer, where it comes from, and columns of its row that the chat template needs."""

    text: str
    origin: str
    beside: Mapping[str, Any]


@dataclass(frozen=True)
class AnswerGroup:
    """A conversation and the distinct answers to it, in the order of the data."""

    prompt_id: str
    prompt: list[Message]
    answers: list[Answer]


def read_pairs(sources: Sequence[SourceRows]) -> PairsRead:
    """Pairs to compare: of pairs the chosen and the rejected answer, of answers the first two to a prompt.

    Args:
        sources: any number of sources of pairs; or one of answers, several to a prompt; or two of answers,
            which are compared with each other by prompt.
    Raises:
        DataError: a row cannot be read (it is named), sources of different kinds, or no pair at all.
    """
    found = PairsRead()
    kinds = {source.kind for source in sources}
    if kinds == {"preference"}:
        made = _of_pairs(sources, found)
    elif kinds <= set(_ANSWERED) and len(sources) <= 2:
        made = _of_answers(sources, found)
    else:
        named = ", ".join(f"{source.label} ({source.kind})" for source in sources)
        raise DataError(
            f"cannot compare {named}. Name files of pairs; or one file with several answers per prompt; or "
            "two files of answers to the same prompts."
        )
    seen: set[str] = set()
    for pair in made:
        found.equal += (is_equal := pair.a == pair.b)
        found.repeated += (is_known := pair.id in seen)
        if not (is_equal or is_known):
            seen.add(pair.id)
            found.pairs.append(pair)
    if not found.pairs:
        raise DataError(f"no pair to compare: {'; '.join(found.said()) or 'no rows'}.")
    return found


def pair_id(prompt: Sequence[Message], a: str, b: str) -> str:
    """16 hex digits of what is compared; a verdict "a" is about the first answer, so their order counts.

    >>> asked = [Message(role="user", content="Hi")]
    >>> pair_id(asked, "Yes.", "No.") == pair_id(asked, "No.", "Yes.")
    False
    """
    content = json.dumps([prompt_hash(list(prompt)), a, b], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _of_pairs(sources: Sequence[SourceRows], found: PairsRead) -> Iterator[AnswerPair]:
    for source in sources:
        for place, example in _examples(source, found):
            chosen, rejected = (
                _answer(example[side][0], f"{place} {side}", example, found)
                for side in ("chosen", "rejected")
            )
            yield _pair(example["prompt"], chosen, rejected)


def _of_answers(sources: Sequence[SourceRows], found: PairsRead) -> Iterator[AnswerPair]:
    tables = [_by_prompt([source], found) for source in sources]
    if len(tables) == 1:
        for group in tables[0].values():
            found.alone += len(group.answers) < 2
            found.more += max(len(group.answers) - 2, 0)
            if len(group.answers) > 1:
                yield _pair(group.prompt, *group.answers[:2])
        return
    mine, theirs = tables
    found.alone += len(mine.keys() ^ theirs.keys())
    for name, group in mine.items():
        if name in theirs:
            others = theirs[name].answers
            found.more += len(group.answers) + len(others) - 2
            yield _pair(group.prompt, group.answers[0], others[0])


def read_answers(sources: Sequence[SourceRows]) -> tuple[list[AnswerGroup], PairsRead]:
    """The answers to each prompt: of pairs both, of conversations the last one.

    Returns:
        Groups in the order of the data, and what was left out of them.
    Raises:
        DataError: a row cannot be read (it is named), or a source holds no answers.
    """
    bare = next((source for source in sources if source.kind not in (*_ANSWERED, "preference")), None)
    if bare is not None:
        raise DataError(f"{bare.label} holds no answers: its rows are {bare.kind} data.")
    found = PairsRead()
    return list(_by_prompt(sources, found).values()), found


def _by_prompt(sources: Sequence[SourceRows], found: PairsRead) -> dict[str, AnswerGroup]:
    """The distinct answers to each prompt, in the order of the rows."""
    prompts: dict[str, AnswerGroup] = {}
    for source in sources:
        sides = ("chosen", "rejected") if source.kind == "preference" else ("completion",)
        for place, example in _examples(source, found):
            name = prompt_hash(example["prompt"])
            group = prompts.setdefault(name, AnswerGroup(name, example["prompt"], []))
            for side in sides:
                answer = _answer(example[side][0], f"{place} {side}", example, found)
                if all(answer.text != other.text for other in group.answers):
                    group.answers.append(answer)
    return prompts


def _examples(source: SourceRows, found: PairsRead) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Examples with the name of their row; of a conversation of several turns its last answer."""
    for number, row, reading in source:
        if reading.problem:
            raise DataError(
                f"{reading.problem} Mend the row, or find and remove all such rows: handbook data curate"
            )
        made = source.examples(row)
        found.undecided += not made
        for example in made if source.kind == "preference" else made[-1:]:
            yield f"{source.label}:{number}", example


def _answer(message: Message, origin: str, example: Mapping[str, Any], found: PairsRead) -> Answer:
    if message.get("tool_calls"):
        raise DataError(f"{origin} calls tools, and only texts can be compared here. Leave such rows out.")
    found.thinking += bool(thinking_of(message))
    beside = {column: example[column] for column in _BESIDE if column in example}
    return Answer(message["content"], origin, beside)


def _pair(prompt: list[Message], a: Answer, b: Answer) -> AnswerPair:
    name = pair_id(prompt, a.text, b.text)
    return AnswerPair(name, prompt_hash(prompt), prompt, a.text, b.text, (a.origin, b.origin), a.beside)
