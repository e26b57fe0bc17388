"""Keys of one message in the words of other tools: which are read, and the thinking beside an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from handbook_utils.chat.thinking import THINKING_KEYS, UNREAD_THINKING
from handbook_utils.data.keys.marks import BEGUN, MESSAGE_MARKS, PARTIAL, put_aside
from handbook_utils.data.shapes.calls import CALL_IDS
from handbook_utils.data.shapes.messages import UNREAD

# what `shapes` makes of a message, and the names of ids that it has read
_CONTENT = ("role", "content", "tool_calls", "tool_call_id", "name", "tool_use_id", *CALL_IDS[1:], UNREAD)
READ = frozenset({*_CONTENT, *THINKING_KEYS, *MESSAGE_MARKS, *PARTIAL, *BEGUN})
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
EMPTY: tuple[Any, ...] = (None, "", [], {})
# what says how a model is to think, and is no thought
_SWITCHES = frozenset(
    {
        *("on", "off", "true", "false", "yes", "no", "none", "null", "nan", "enabled", "disabled"),
        *("auto", "default", "minimal", "low", "medium", "high", "xhigh", "max", "think", "no_think"),
        *("thinking", "nothink", "no_thinking", "short", "long"),
    }
)


def said_text(value: Any) -> str:
    """A text without the white space around it; "" for any other value."""
    return value.strip() if isinstance(value, str) else ""


def is_switch(text: str) -> bool:
    """Whether a text under a name of thinking says how to think, or is a number, as in columns of settings.

    >>> is_switch("Off"), is_switch("0.5"), is_switch("Take 3 off.")
    (True, True, False)
    """
    plain = text.strip().lower().replace("-", "_").strip("/")
    return plain in _SWITCHES or re.fullmatch(r"[-+]?\d+(\.\d+)?", plain) is not None


def unread_keys(message: Mapping[str, Any]) -> list[str]:
    """Keys of a message, and of the parts of its content, that say something and that nobody reads."""
    read = READ | put_aside(message).keys()
    own = [key for key in message if key not in read and message[key] not in EMPTY]
    own += [key for key in THINKING_KEYS if (text := said_text(message.get(key))) and is_switch(text)]
    return [*own, *(f"content.{key}" for key in message.get(UNREAD, ()))]


def thinking_beside(message: Mapping[str, Any], *, is_answer: bool) -> dict[str, str]:
    """The thinking of a message under one name; {} where there is none.

    Raises:
        ValueError: it is no text, not the assistant's, there twice, or in a form that no template reads.

    >>> thinking_beside({"content": "84", "reasoning": "70 + 14.", "thinking": None}, is_answer=True)
    {'reasoning': '70 + 14.'}
    """
    given = {key: message[key] for key in THINKING_KEYS if message.get(key) not in EMPTY}
    if wrong := [key for key, value in given.items() if not isinstance(value, str)]:
        raise ValueError(f"'{wrong[0]}' is thinking and has to be text, found {given[wrong[0]]!r}.")
    given = {key: text for key, text in given.items() if text.strip() and not is_switch(text)}
    other = [key for key in UNREAD_THINKING if message.get(key) not in EMPTY]
    if other and not given and is_answer:
        raise ValueError(
            f"'{other[0]}' is no thinking that templates read. Give its text as 'reasoning_content'."
        )
    if given and not is_answer:
        raise ValueError(f"'{next(iter(given))}' is thinking, and only answers of the assistant think.")
    if len({text.strip() for text in given.values()}) > 1:
        raise ValueError(f"{' and '.join(map(repr, given))} are different thinking. Keep one.")
    if given and (inside := _THOUGHT.match(str(message.get("content") or ""))):
        if inside[1].strip() not in {text.strip() for text in given.values()}:
            raise ValueError(f"'{next(iter(given))}' and the <think> of the content are different. Keep one.")
        return {}
    return dict(list(given.items())[:1])
