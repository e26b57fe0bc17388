"""A content that is a list of parts: text, thinking, calls of tools and their results.

Parts as OpenAI (both APIs), Anthropic, Mistral, Bedrock, Gemini, the AI SDK and LLaMA-Factory write them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handbook_utils.chat.thinking import THINKING_PARTS
from handbook_utils.data.shapes.calls import CALL_IDS, first_of, read_calls
from handbook_utils.data.shapes.values import ShapeError, shown
from handbook_utils.errors import suggest

_TEXT = ("text", "value", "content", "refusal")
_CALLS = ("tool_use", "toolUse", "tool_call", "tool-call", "function_call", "functionCall")
_RESULTS = ("tool_result", "toolResult", "tool-result", "function_response", "functionResponse")
_TYPES = {
    **dict.fromkeys(("text", "input_text", "output_text", "summary_text", "refusal"), "text"),
    **dict.fromkeys(THINKING_PARTS, "thinking"),
    **dict.fromkeys(_CALLS, "call"),
    **dict.fromkeys(_RESULTS, "result"),
}
_MEDIA = ("image", "video", "audio", "file", "document", "inline")
# keys of parts that are read, or that only say which part it is
_READ = frozenset(
    {
        *(
            "type",
            "role",
            "id",
            "index",
            "state",
            "status",
            "closed",
            "name",
            "toolName",
            "tool_name",
            "summary",
        ),
        *("input", "args", "arguments", "parameters", "kwargs", "function", "function_name"),
        *("content", "output", "response", "result", "value", "text", "tool_use_id", "json", "caller"),
        *(*CALL_IDS, *_TYPES),
    }
)
# what other tools let a part say of the loss; here an answer is learned as a whole
MARKS = ("weight", "train", "loss", "loss_weight", "trainable")


@dataclass
class Parts:
    """What the parts of one content say.

    Attributes:
        text: the text parts in order, put together as chat templates put them: with nothing in between.
        thinking: what was thought before it.
        calls: of tools.
        results: messages of the role "tool".
        unread: keys of parts that say something and that nobody reads.
    """

    text: str = ""
    thinking: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read_parts(content: list[Any] | tuple[Any, ...]) -> Parts:
    """Read a content that is a list of parts.

    Raises:
        ShapeError: a part is an image or something else that is no text, or its kind is not known.

    >>> read_parts([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "4"}])
    Parts(text='4', thinking='Hm.', calls=[], results=[], unread=[])
    """
    found = Parts()
    for number, part in enumerate(content, start=1):
        try:
            _add(found, {"text": part} if isinstance(part, str) else part)
        except ShapeError as error:
            raise ShapeError(f"has a part {number} that {error}") from None
    return found


def _add(found: Parts, part: Any) -> None:
    if not isinstance(part, Mapping):
        raise ShapeError(f"is no object, found {shown(part)}.")
    # a table fills in null for what only other parts have
    part = {key: value for key, value in part.items() if value is not None}
    if mark := next((key for key in MARKS if key in part), None):
        raise ShapeError(f"has '{mark}', and an answer is learned as a whole. Take the key out.")
    kind, inner = _kind(part)
    found.unread += [key for key in part if key not in _READ and part[key] not in ("", [], {}, False)]
    if kind == "text":
        found.text += _text(part, inner)
    elif kind == "thinking":
        if found.text or found.calls:
            raise ShapeError(
                "is thinking after the answer has begun, and templates put it first. Split the message."
            )
        found.thinking += _text(part, inner)
    elif kind == "call":
        found.calls += read_calls(inner)
    else:
        found.results.append(_result(inner))


def _kind(part: Mapping[str, Any]) -> tuple[str, Any]:
    """What a part is, and what of it says more: its only key's value, or the part itself."""
    given = part.get("type")
    if given is None and part.get("thought") is True:
        return "thinking", part.get("text")
    name = (
        given if isinstance(given, str) else next((str(key) for key in (*_TYPES, *part) if key in part), "")
    )
    if any(media in name.lower() for media in _MEDIA):
        raise ShapeError(
            f"is an image or another file ('{name}'), and models are trained on text alone here. Leave such "
            "rows out, or put a description in its place."
        )
    kind = _TYPES.get(name)
    if kind is None:
        raise ShapeError(f"is of the type '{name}', which is not known. {suggest(name, _TYPES)}")
    if kind == "text":
        return kind, first_of(part, _TEXT)
    if kind == "thinking":
        return kind, first_of(part, (*THINKING_PARTS, "summary", *_TEXT))
    if given is None:
        return kind, part[name]
    # LLaMA-Factory keeps the call as the text of the part
    return kind, part["value"] if isinstance(part.get("value"), str) else {**part, "type": "function"}


def _text(part: Mapping[str, Any], value: Any) -> str:
    if isinstance(value, Mapping):  # Bedrock's thinking lies two keys deep
        value = first_of(value, ("reasoningText", "text")) or value
        value = value.get("text", value) if isinstance(value, Mapping) else value
    if isinstance(value, list | tuple):
        return read_parts(value).text
    if not isinstance(value, str):
        raise ShapeError(f"has no text, found {shown(dict(part))}.")
    return value


def _result(part: Any) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise ShapeError(f"is no result of a tool, found {shown(part)}.")
    made = {
        "role": "tool",
        "content": result_text(first_of(part, ("content", "output", "response", "result", "value"))),
    }
    given, name = first_of(part, ("tool_use_id", *CALL_IDS)), first_of(part, ("name", "toolName"))
    return made | ({"name": name} if name else {}) | ({"tool_call_id": given} if given else {})


def holds_results(content: Any) -> bool:
    """Whether a content is a list of parts of which one is what a tool gave."""
    return isinstance(content, list | tuple) and any(
        isinstance(part, Mapping) and (part.get("type") in _RESULTS or first_of(part, _RESULTS) is not None)
        for part in content
    )


def result_text(value: Any) -> str:
    """What a tool gave, as text: text parts joined, anything else as JSON.

    >>> result_text([{"text": "4"}]), result_text({"degrees": 4})
    ('4', '{"degrees": 4}')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(_is_part(part) for part in value):
        json_parts = [
            part["json"] for part in value if isinstance(part, Mapping) and part.get("json") is not None
        ]
        return result_text(json_parts[0]) if len(json_parts) == len(value) == 1 else read_parts(value).text
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ShapeError(f"cannot be written as JSON ({error}).") from None


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and (
        "type" in part or "text" in part or "json" in part or "image" in part
    )
