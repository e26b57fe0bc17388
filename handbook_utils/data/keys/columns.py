"""Columns of a row in the words of other tools: the system's text, earlier turns, thinking, weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from handbook_utils.chat.thinking import THINKING_KEYS, thinking_of
from handbook_utils.data.keys.marks import ROW_MARKS, is_learned, is_unknown_mark, put_aside
from handbook_utils.data.keys.messages import EMPTY, is_switch, said_text
from handbook_utils.data.row_reader import RowReader
from handbook_utils.data.shapes.transcripts import open_turn, rendered_by, waits_for_answer
from handbook_utils.data.shapes.values import ShapeError, list_in_text, parse_text
from handbook_utils.records import Message

HISTORY = "history"
# without their separators, in small letters: system_prompt, systemPrompt, System Prompt
_SYSTEM = frozenset(
    {
        *("system", "systemprompt", "systemmessage", "systemmsg", "systeminstruction", "systeminstructions"),
        *("systemtext", "systemcontent", "sysprompt", "sysmessage", "sysmsg", "preamble"),
    }
)
# how parts begin that are held as text
_PARTS = re.compile(r"""\s*(?:\{\s*['"]parts['"]\s*:|\[\s*\{\s*['"](?:type|text)['"]\s*:)""")
# a column that says which of two answers is better, and what stands there beside numbers and letters
_VERDICT = re.compile(
    r"^labels?$|(?:^|[^a-z])(?:winner|better|best|preferred|preference|safer|choice|vote|verdict)(?:[^a-z]|$)"
)
_ONE_OF_TWO = re.compile(r"(?:model|answer|response|assistant|completion|output)[ _-]?[ab012]")
# prompts in front of which earlier turns may stand
_OPEN = ("instruction", "prompt")


def with_what_precedes(reader: RowReader, column: str, messages: list[Message]) -> list[Message]:
    """Messages behind the earlier turns and the system's text that the row keeps in columns of their own.

    A conversation's own system message counts, and a column beside it that says something else is told. A
    message that is a transcript becomes its turns.

    Raises:
        DataError: a message has the marks of a chat template already.
    """
    messages = _told_apart(reader, column, messages)
    history = earlier_turns(reader)
    begin = messages[0]["role"] == "system"
    if messages[begin : begin + len(history)] == history:  # there already
        history = []
    if history and (column not in _OPEN or messages[0]["role"] == "system"):
        raise reader.error(HISTORY, f"stands beside the conversation of '{column}'. Put its turns in there.")
    messages = [*history, *messages]
    name, system = system_text(reader)
    if not system.strip():
        return messages
    refuse_rendered(reader, name, system)
    if messages[0]["role"] != "system":
        return [Message(role="system", content=system), *messages]
    if messages[0]["content"].strip() != system.strip():
        reader.read.discard(name)
    return messages


def _told_apart(reader: RowReader, column: str, messages: list[Message]) -> list[Message]:
    """Messages without a first one that is a whole transcript, and none that a template has rendered."""
    for message in messages:
        if message["role"] in ("user", "system"):
            refuse_rendered(reader, column, message["content"])
    begin = messages[0]["role"] == "system"
    if len(messages) == begin or not waits_for_answer(messages[begin]["content"]):
        return messages
    turns = reader.over({column: messages[begin]["content"]}).transcript(column)
    return [*messages[:begin], *turns[:-1], *messages[begin + 1 :]]


def refuse_rendered(reader: RowReader, column: str, text: str) -> None:
    """Refuse a text that some chat template has rendered, or a transcript whose turns are not found."""
    if mark := rendered_by(text):
        raise reader.error(
            column,
            f"begins with '{mark}', the mark of a chat template, and another would be put around it. "
            "Write messages in the place of rendered text.",
        )
    if mark := open_turn(text):
        raise reader.error(
            column,
            f"ends with '{mark}', as a prompt that was rendered already, and a chat template would be put "
            "around it. Write its turns as messages.",
        )


def system_text(reader: RowReader) -> tuple[str, str]:
    """The column that holds what the system says, and its text; both "" where there is none.

    Raises:
        DataError: two columns say different things, or one is no text.
    """
    said = {name: _system_of(reader, name) for name in _system_columns(tuple(reader.row))}
    said = {name: text for name, text in said.items() if text.strip()}
    if len(set(said.values())) > 1:
        names = " and ".join(f"'{name}'" for name in said)
        raise reader.error(next(iter(said)), f"{names} are different system messages. Keep one.")
    return next(iter(said.items()), ("", ""))


def _system_of(reader: RowReader, name: str) -> str:
    """The text of a column, whose parts may be held as text."""
    text = reader.optional_text(name)
    try:
        found = parse_text(text) if _PARTS.match(text) else None
    except ShapeError:
        return text
    return text if found is None else reader.over({name: found}).optional_text(name)


@lru_cache(maxsize=64)
def _system_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    plain = {name: "".join(filter(str.isalnum, str(name))).lower() for name in columns}
    return tuple(name for name, letters in plain.items() if letters in _SYSTEM)


def with_prompt_before(reader: RowReader, inside: list[Message]) -> list[Message]:
    """A conversation behind the messages of `prompt`, unless one of the two repeats the other."""
    if not isinstance(reader.row.get("prompt"), list):
        return inside
    given = reader.messages("prompt", role="user")
    if given[-len(inside) :] == inside:
        return given
    return inside if given in (inside[: len(given)], inside[-len(given) :]) else given + inside


def refuse_another_prompt(reader: RowReader, column: str, messages: list[Message]) -> None:
    """Refuse a text that is called a prompt and that a whole conversation beside it does not repeat.

    Raises:
        DataError: the text is in none of the messages, and none of them is in the text.
    """
    said = ["".join(message["content"].split()) for message in messages]
    for name in filter(reader.row.__contains__, _OPEN):
        text = "".join(value.split()) if isinstance(value := reader.row[name], str) else ""
        if text and not any(text in one or (one and one in text) for one in said):
            raise reader.error(
                name,
                f"is not in the conversation of '{column}', which has a prompt of its own, so one of the two "
                "would be lost. Put the text in there, or take the column out: "
                f"`columns: {{{name}: {name}_note}}`.",
            )


def earlier_turns(reader: RowReader) -> list[Message]:
    """Turns of LLaMA-Factory's `history`: pairs of what was asked and answered; [] where there is none."""
    if HISTORY not in reader.row:
        return []
    given = reader.structure(HISTORY, "pairs of questions and answers")
    if given in EMPTY:
        return []
    pairs = isinstance(given, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in given
    )
    if not pairs:
        raise reader.error(HISTORY, "expected pairs [question, answer] of earlier turns.")
    return [
        Message(role=role, content=text)
        for pair in given
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def earlier_answers(reader: RowReader, prompt: list[Message]) -> list[int]:
    """Places in a prompt of the answers of `history`, which LLaMA-Factory lets the model learn as well."""
    begin = prompt[0]["role"] == "system"
    places = range(begin, begin + len(earlier_turns(reader)))
    return [place for place in places if prompt[place]["role"] == "assistant"]


def add_thinking_column(reader: RowReader, *answers: Message) -> None:
    """Give the one answer of a row the thinking that the row keeps in a column of its own."""
    names = _thinking_columns(reader)
    if not names:
        return
    if len(answers) > 1:
        refuse_thinking_column(reader, "the conversation has several answers")
    (answer,) = answers
    texts = {reader.text(name).strip() for name in names}
    own = thinking_of(answer).strip()
    if len(texts) > 1 or (own and own not in texts):
        beside = f"'{names[1]}'" if len(texts) > 1 else "the message's own"
        raise reader.error(names[0], f"is other thinking than {beside}. Keep one.")
    if not own and not any(text in answer["content"] for text in texts):
        answer["reasoning_content"] = reader.text(names[0])


def refuse_thinking_column(reader: RowReader, why: str) -> None:
    """Refuse thinking in a column where it cannot be said whose it is."""
    if names := _thinking_columns(reader):
        raise reader.error(
            names[0],
            f"is thinking, and {why}. Put it into its message as 'reasoning_content', or, where it is none, "
            f"give the column another name: `columns: {{{names[0]}: {names[0]}_note}}`.",
        )


def _thinking_columns(reader: RowReader) -> list[str]:
    """Text columns that say they are thinking; a flag or a number of that name is none."""
    if not any(map(reader.row.__contains__, THINKING_KEYS)):
        return []
    return [key for key in THINKING_KEYS if (text := said_text(reader.row.get(key))) and not is_switch(text)]


def is_row_learned(reader: RowReader, kind: str) -> bool:
    """Whether the row's own weight says that it is learned, and no other column that it is not to be used.

    Raises:
        DataError: a weight that is neither 0 nor 1, or a prompt that is not to be used.
    """
    said_of_use = put_aside(reader.row)
    reader.read |= said_of_use.keys()
    if aside := next((key for key, is_out in said_of_use.items() if is_out), None):
        if kind == "prompt":
            raise reader.error(
                aside,
                "says that the row is not to be used. Leave it out of the file, or, where the column means "
                f"something else, rename it: `columns: {{{aside}: {aside}_note}}`.",
            )
        reader.skipped.append((aside, Message(role="", content="")))
        return False
    if kind == "prompt":  # a weight says nothing of what is sampled
        return True
    said: dict[str, bool] = {}
    for key, value in _row_marks(reader):
        reader.read.add(key)
        if isinstance(value, list | tuple):
            continue
        try:
            said[key] = is_learned(key, value)
        except ValueError as error:
            raise reader.error(
                key, f"{error} If it means something else, rename it: `columns: {{{key}: {key}_note}}`."
            ) from None
    reader.skipped += [(key, Message(role="", content="")) for key, learns in said.items() if not learns]
    return all(said.values())


def mark_by_list(reader: RowReader, column: str, messages: list[Message]) -> None:
    """Heed a column that holds one weight for each message of the row."""
    for key, values in reader.row.items():
        is_list = key not in ROW_MARKS and isinstance(values, list | tuple) and len(values) == len(messages)
        if is_list and all(is_unknown_mark(str(key), value) for value in values):
            raise reader.error(
                key,
                "seems to say which messages are learned, and that name is not known. Call it 'loss_mask', "
                f"or rename it: `columns: {{{key}: {key}_note}}`.",
            )
    for key, values in _row_marks(reader):
        if not isinstance(values, list | tuple):
            continue
        if len(values) != len(messages):
            raise reader.error(
                key,
                f"has {len(values)} values for the {len(messages)} messages of '{column}'. If it means "
                f"something else, rename it: `columns: {{{key}: {key}_note}}`.",
            )
        for message, value in zip(messages, values, strict=True):
            reader.mark(key, f"'{column}'", {"weight": value}, message)


def refuse_marks(reader: RowReader, *answers: Message) -> None:
    """Refuse answers that are marked as not to be learned where a row is learned as a whole."""
    for key, message in reader.skipped:
        if any(message is answer for answer in answers):
            raise reader.error(
                key, "says that an answer is not learned, and its row is for nothing else. Leave the row out."
            )
    for key, value in _row_marks(reader):
        if isinstance(value, list | tuple):
            raise reader.error(key, "gives messages their weight, and only turns of a conversation have one.")


def refuse_verdict(reader: RowReader, taken: Mapping[str, str]) -> None:
    """Refuse a pair whose answers were mapped to ours, and that says beside them which one is better.

    Args:
        reader: of the row.
        taken: what `columns` says: their names to ours.
    Raises:
        DataError: a column says so, and the same one would be chosen in every row.
    """
    chosen = next((theirs for theirs, ours in taken.items() if ours == "chosen"), None)
    others = (name for name in reader.row if name not in taken)
    verdict = chosen and next((name for name in others if _is_verdict(str(name), reader.row[name])), None)
    if verdict:
        raise reader.error(
            verdict,
            f"says which answer is better, and '{chosen}' would be the chosen one in every row. Read the "
            f"answers as 'answer_a' and 'answer_b' and '{verdict}' as 'preference', which is a, b or tie, or "
            "0 for the first and 1 for the second. If it is no verdict: "
            f"`columns: {{{verdict}: {verdict}_note}}`.",
        )


def _is_verdict(name: str, value: Any) -> bool:
    said = str(value).strip().lower()
    return _VERDICT.search(name.lower()) is not None and (
        said in ("0", "1", "2", "0.0", "1.0", "2.0", "true", "false", "a", "b", "left", "right", "tie")
        or _ONE_OF_TWO.fullmatch(said) is not None
    )


def _row_marks(reader: RowReader) -> list[tuple[str, Any]]:
    """Columns that are meant as weights, with their values; a list of them may be held as text."""
    if ROW_MARKS.isdisjoint(reader.row):
        return []
    given = ((key, list_in_text(reader.row[key])) for key in reader.row if key in ROW_MARKS)
    return [(key, value) for key, value in given if value not in EMPTY and _is_mark(value)]


def _is_mark(value: Any) -> bool:
    """Whether a value can be meant as a weight; a text such as the name of a split cannot."""
    if not isinstance(value, str):
        return not isinstance(value, dict)
    try:
        float(value)
    except ValueError:
        return value.strip().lower() in ("true", "false")
    return True
