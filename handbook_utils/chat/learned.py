"""What an answer says against what is learned of it: text, thinking, calls and their arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from handbook_utils.chat.loss_masks import TokenRow, Turn
from handbook_utils.chat.thinking import THINKING_KEYS

Kind = Literal["thinking", "call", "text"]
# no JSON, XML or Python changes such a text
_ALIKE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .,:/-]*")
_THINK = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)


@dataclass(frozen=True)
class Lost:
    """Something that an answer says and that is not learned.

    Attributes:
        kind: what it is.
        said: its text, or the name of the function that is called, or of an argument.
        where: the key of the message that holds it.
        is_rendered: it is in the row, and carries no loss.
    """

    kind: Kind
    said: str
    where: str
    is_rendered: bool


def lost_parts(tokenizer: Any, turn: Turn, row: TokenRow, *, has_marks: bool = True) -> list[Lost]:
    """What of a turn's answer is not in the learned text of its row.

    White space does not count, for templates strip it.

    Args:
        tokenizer: the row's.
        turn: the answer and what precedes it.
        row: made of the turn.
        has_marks: whether the template's generation marks decide; otherwise all behind the prompt is learned.
    """
    learned = [token for token, counts in zip(row.ids, row.loss, strict=True) if counts]
    text = _plain(tokenizer.decode(learned if has_marks else row.ids[row.start :]))
    lost = []
    for kind, said, where in _said(turn.answer):
        if _holds(tokenizer, text, said):
            continue
        # what the prompt has as well does not show that the answer is rendered
        is_rendered = _holds(tokenizer, _plain(tokenizer.decode(row.ids[row.start :])), said)
        lost.append(Lost(kind, said, where, is_rendered))
    return lost


def _said(answer: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Kind, str, str]]:
    """(kind, text, key) of all that an answer says; what is white space alone is left out."""
    for message in answer:
        content = str(message.get("content") or "")
        parts: list[tuple[Kind, str, str]] = [
            ("thinking", str(message[key]), key) for key in THINKING_KEYS if message.get(key)
        ]
        parts += [("thinking", thought, "content") for thought in _THINK.findall(content)]
        parts += [
            ("text", text.replace("</think>", ""), "content")
            for text in _THINK.sub("\0", content).split("\0")
        ]
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            said = [function.get("name", ""), *_plain_words(function.get("arguments"))]
            parts += [("call", str(one), "tool_calls") for one in said]
        yield from (part for part in parts if part[1].strip())


def _plain_words(arguments: Any) -> list[str]:
    """Names and texts of a call's arguments that every notation writes alike."""
    if not isinstance(arguments, Mapping):
        return []
    said = chain.from_iterable(arguments.items())
    return [one for one in said if isinstance(one, str) and _ALIKE.fullmatch(one)]


def unseen_tools(tokenizer: Any, turn: Turn, row: TokenRow) -> list[str]:
    """Names of the tools that a turn is given and that its prompt does not show."""
    names = [_tool_name(tool) for tool in turn.tools or ()]
    if not any(names):
        return []
    text = _plain(tokenizer.decode(row.ids[: row.start]))
    said = _plain("\n".join(_texts(turn.prompt)))
    # messages may name a tool as well, or hold its name as a part of a word
    return [name for name in names if name and text.count(_plain(name)) <= said.count(_plain(name))]


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_texts, value.values()))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_texts, value))


def _tool_name(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name") or "") if isinstance(function, Mapping) else ""


def _holds(tokenizer: Any, text: str, said: str) -> bool:
    """Whether a text without white space holds what was said, or what the tokenizer leaves of it."""
    if _plain(said) in text:
        return True
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    return _plain(tokenizer.decode(ids)) in text


def _plain(text: str) -> str:
    return "".join(text.split())
