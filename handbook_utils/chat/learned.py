"""What an answer says against what is learned of it: text, thinking, calls and their arguments."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from handbook_utils.chat.loss_masks import TokenRow, Turn
from handbook_utils.chat.thinking import THINKING_KEYS

Kind = Literal["thinking", "call", "text"]
# no JSON, XML or Python changes such a text
_ALIKE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .,:/-]*")
_WORD, _LOOKED_FOR = re.compile(r"[A-Za-z0-9]+"), 50
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
        thought, closes, rest = content.partition("</think>")
        if closes and "<think>" not in thought:  # which the prompt has opened
            yield "thinking", thought, "content"
            content = rest
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


def _plain_words(value: Any) -> Iterator[str]:
    """Names, texts and whole numbers of a call's arguments that every notation writes alike."""
    if isinstance(value, Mapping):
        yield from chain.from_iterable(map(_plain_words, chain.from_iterable(value.items())))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_plain_words, value))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, str) and _ALIKE.fullmatch(value):
        yield value


def unseen_tools(tokenizer: Any, turn: Turn, row: TokenRow) -> list[str]:
    """Names of the tools that a turn is given and that its prompt does not show."""
    names = [_tool_name(tool) for tool in turn.tools or ()]
    if not any(names):
        return []
    text = _plain(tokenizer.decode(row.ids[: row.start]))
    said = _plain("\n".join(_texts(turn.prompt)))
    # messages may name a tool as well, or hold its name as a part of a word
    return [name for name in names if name and text.count(_plain(name)) <= said.count(_plain(name))]


def unseen_messages(
    tokenizer: Any, turn: Turn, row: TokenRow, *, but: Collection[str] = ()
) -> list[Mapping[str, Any]]:
    """Messages since the last answer, not of the roles in `but`, whose words are not all in the prompt.

    Words alone are looked for, as some templates write what a tool gave as JSON.
    """
    places = [place for place, message in enumerate(turn.prompt) if message["role"] == "assistant"]
    new = [
        message for message in turn.prompt[places[-1] + 1 if places else 0 :] if message["role"] not in but
    ]
    text = _plain(tokenizer.decode(row.ids[: row.start])) if new else ""

    def is_seen(message: Mapping[str, Any]) -> bool:
        words = _WORD.findall(str(message.get("content") or ""))
        return all(word in text or _holds(tokenizer, text, word) for word in words[:_LOOKED_FOR])

    return [message for message in new if not is_seen(message)]


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
