"""One row's values, each checked where it is read; every error names the row and the column."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from handbook_utils.data.recognise import Row, shown
from handbook_utils.errors import DataError, suggest
from handbook_utils.records import Message, ToolUse

ROLES = ("system", "user", "assistant", "tool")
# who speaks, as ShareGPT and its relatives write it
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
# what a message may hold beside role and content, for templates that show tools
TOOL_KEYS = ("tool_calls", "tool_call_id", "name")
# what a row may tell its chat template, and what of rendering is not a row's to decide: a template of its own
# would be code from the data
TEMPLATE_OPTIONS = "chat_template_kwargs"
NOT_FOR_ROWS = frozenset(
    {
        *("conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "sanitize_control_tokens", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
        *("messages", "bos_token", "eos_token", "pad_token", "unk_token"),
    }
)
_TURN = re.compile(r"(?:^|\n\n)[ \t]*(Human|Assistant):")


class RowReader:
    """One row and its place, so that each value is checked where it is read."""

    def __init__(self, row: Row, place: str) -> None:
        if not isinstance(row, Mapping):
            raise DataError(f"{place}: not an object with columns, found {shown(row)}.")
        self.row, self.place = row, place

    def error(self, column: str, problem: str) -> DataError:
        """An error about one column, to be raised."""
        return DataError(f"{self.place}, column '{column}': {problem}")

    def value(self, column: str) -> Any:
        """A column's value as it is."""
        if column not in self.row:
            raise DataError(
                f"{self.place} lacks the column '{column}'. {suggest(column, map(str, self.row))}"
            )
        return self.row[column]

    def text(self, column: str) -> str:
        """A text that can be written as UTF-8."""
        value = self.value(column)
        if not isinstance(value, str):
            raise self.error(column, f"expected text, found {shown(value)}.")
        return self._unicode(column, value)

    def optional_text(self, column: str) -> str:
        """A text, "" where the column is missing or null."""
        return "" if self.row.get(column) is None else self.text(column)

    def messages(self, column: str, *, role: str) -> list[Message]:
        """A list of messages; plain text becomes one message of `role`."""
        value = self.value(column)
        if isinstance(value, str):
            return [Message(role=role, content=self.text(column))]
        if not isinstance(value, list | tuple) or not value:
            raise self.error(column, f"expected text or a list of messages, found {shown(value)}.")
        return [self._message(column, index, message) for index, message in enumerate(value, start=1)]

    def transcript(self, column: str) -> list[Message]:
        """Messages of one text in which "Human:" or "Assistant:" opens each turn."""
        before, *pieces = _TURN.split(self.text(column))
        if before.strip() or not pieces:
            raise self.error(
                column, "expected turns opened by 'Human:' and 'Assistant:' on lines of their own."
            )
        speakers, texts = pieces[::2], pieces[1::2]
        roles = ("user" if speaker == "Human" else "assistant" for speaker in speakers)
        return [Message(role=role, content=text.strip()) for role, text in zip(roles, texts, strict=True)]

    def number(self, column: str) -> float:
        """A finite number, also where it was written as text."""
        value = self.value(column)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise self.error(column, f"expected a number, found {shown(value)}.") from None
        if not math.isfinite(number):
            raise self.error(column, f"expected a finite number, found {number}.")
        return number

    def flag(self, column: str) -> bool:
        """True or false, also where it was written as 1 or 0 or as text."""
        value = self.value(column)
        plain = value.strip().lower() if isinstance(value, str) else value
        if isinstance(plain, int | float) and plain in (0, 1):
            return bool(plain)
        if plain in ("true", "1", "false", "0"):
            return plain in ("true", "1")
        raise self.error(column, f"expected true or false, found {shown(value)}.")

    def tools(self) -> list[Any]:
        """The tools that a conversation may use, as JSON schemas; [] where there are none."""
        value = self._parsed("tools", "a list of tools")
        if value is None:
            return []
        if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
            raise self.error("tools", f"expected a list of tools, found {shown(value)}.")
        self._json("tools", value)
        return list(value)

    def template_options(self) -> dict[str, Any]:
        """What the row tells its chat template, such as `enable_thinking`; {} where it says nothing."""
        column = TEMPLATE_OPTIONS
        value = self._parsed(column, "names and values")
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise self.error(column, f"expected names and values, found {shown(value)}.")
        if reserved := sorted(NOT_FOR_ROWS & value.keys()):
            raise self.error(column, f"'{reserved[0]}' is not for a row to decide. Take it out.")
        self._json(column, value)
        # a table fills in null for what only other rows say
        return {name: given for name, given in value.items() if given is not None}

    def _parsed(self, column: str, what: str) -> Any:
        """A column that may hold JSON as text; None where it is missing or empty."""
        value = self.row.get(column)
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise self.error(column, f"expected {what} as JSON, found {shown(value)}.") from None

    def _message(self, column: str, index: int, message: Any) -> Message:
        role, content = self._role_and_content(column, index, message)
        extras = self._extras(column, index, message)
        if content is None and "tool_calls" in extras:
            content = ""
        if not isinstance(content, str):
            raise self.error(column, f"message {index}: content is not text, found {shown(content)}.")
        content = self._unicode(column, content, f"message {index}: ")
        return Message(role=role, content=content, **extras)

    def _extras(self, column: str, index: int, message: Row) -> ToolUse:
        extras: Any = {key: message[key] for key in TOOL_KEYS if message.get(key)}
        if "tool_calls" in extras and not _are_calls(extras["tool_calls"]):
            calls = shown(extras["tool_calls"])
            raise self.error(column, f"message {index}: tool_calls need a 'name' each, found {calls}.")
        if extras:
            self._json(column, extras, f"message {index}: ")
        return cast(ToolUse, extras)

    def _role_and_content(self, column: str, index: int, message: Any) -> tuple[str, Any]:
        known: Sequence[str] = ROLES
        if not isinstance(message, Mapping) or not (
            {"role", "content"} <= message.keys() or {"from", "value"} <= message.keys()
        ):
            needs = "needs 'role' and 'content' (or 'from' and 'value')"
            raise self.error(column, f"message {index} {needs}, found {shown(message)}.")
        if {"role", "content"} <= message.keys():
            role, content = message["role"], message["content"]
        else:
            given = message["from"]
            role, content, known = SPEAKERS.get(str(given).lower(), given), message["value"], tuple(SPEAKERS)
        if role not in ROLES:
            hint = suggest(str(role), known)
            raise self.error(column, f"message {index} has the role {shown(role)}. {hint}")
        return role, content

    def _json(self, column: str, value: Any, which: str = "") -> None:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise self.error(column, f"{which}cannot be written as JSON ({error}).") from None
        self._unicode(column, text, which)

    def _unicode(self, column: str, value: str, which: str = "") -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(
                column,
                f"{which}character {error.start + 1} is half of a surrogate pair, which is no text. "
                "Write the file again with the whole character, or drop the row.",
            ) from None
        return value


def _are_calls(value: Any) -> bool:
    return isinstance(value, Sequence) and all(
        isinstance(call, Mapping)
        and isinstance(call.get("function", call), Mapping)
        and isinstance(call.get("function", call).get("name"), str)
        for call in value
    )
