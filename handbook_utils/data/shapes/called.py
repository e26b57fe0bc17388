"""Answers that are calls of tools written as plain text, in rows that say which tools there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from handbook_utils.data.shapes.calls import first_of, read_calls
from handbook_utils.data.shapes.values import ShapeError, parse_text
from handbook_utils.records import Message

Row = Mapping[str, Any]
# all that a call holds, so that no other object is taken for one
_OF_A_CALL = {"name", "arguments", "id", "type", "function"}
# columns of an example that hold messages
_MESSAGES = ("prompt", "completion", "chosen", "rejected")


def are_calls(value: Any) -> bool:
    """Whether a value is a list of nothing but calls, as xLAM's `answers` are.

    >>> are_calls([{"name": "add", "arguments": {"a": 2}}]), are_calls([{"name": "Ann", "age": 2}])
    (True, False)
    """
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_call, value))


def _is_call(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value.keys() <= _OF_A_CALL:
        return False
    inner = value.get("function", value)
    return isinstance(inner, Mapping) and isinstance(inner.get("name"), str) and "arguments" in inner


def with_calls(rows: Sequence[Row], tools: Sequence[Any]) -> list[Row]:
    """Examples in which an answer that is the text of calls of their tools, and nothing else, calls them.

    Templates write calls in a form of their own, which the text is not. Where the system's text says what
    tools there are, the text is in the form that it asks for, and stays.

    Raises:
        ShapeError: an answer is the text of a list without a call.

    >>> text = '[{"name": "add", "arguments": {"a": 2}}]'
    >>> row = {"prompt": [], "completion": [{"role": "assistant", "content": text}]}
    >>> with_calls([row], [{"function": {"name": "add"}}])[0]["completion"][0]["tool_calls"][0]["function"]
    {'name': 'add', 'arguments': {'a': 2}}
    """
    names = {name for tool in tools if isinstance(name := _name(tool), str)}
    return [
        row
        if says_tools(row["prompt"], tools)
        else {
            column: [_calling(message, names) for message in value] if column in _MESSAGES else value
            for column, value in row.items()
        }
        for row in rows
    ]


def says_tools(prompt: Sequence[Message], tools: Sequence[Any]) -> bool:
    """Whether the system's text names each tool as JSON does, and so says itself how they are called.

    >>> says_tools([{"role": "system", "content": '<tools>{"name": "add"}</tools>'}], [{"name": "add"}])
    True
    """
    text = prompt[0]["content"] if prompt and prompt[0]["role"] == "system" else ""
    return bool(tools) and bool(text) and all(f'"{_name(tool)}"' in text for tool in tools)


def _name(tool: Any) -> Any:
    inner = first_of(tool, ("function",)) or tool if isinstance(tool, Mapping) else None
    return inner.get("name") if isinstance(inner, Mapping) else None


def _calling(message: Message, names: set[str]) -> Message:
    text = message["content"].strip()
    if message["role"] != "assistant" or text[:1] not in ("[", "{") or "tool_calls" in message:
        return message
    if text == "[]":
        raise ShapeError(
            "has tools, and an answer that is a list without a call ('[]'), which would be learned as text. "
            "Write what the assistant says where no tool fits, or leave the row out."
        )
    try:
        found = parse_text(text)
        calls = [found] if isinstance(found, Mapping) else found
        made = read_calls(calls) if are_calls(calls) else []
    except ShapeError:
        return message
    if not made or not all(call["function"]["name"] in names for call in made):
        return message
    return cast(Message, {**message, "content": "", "tool_calls": made})
