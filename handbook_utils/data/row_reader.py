"""One row's values, each checked where it is read; every error names the row and the column."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from handbook_utils.chat.thinking import THINKING_KEYS
from handbook_utils.data.keys.marks import mark_of
from handbook_utils.data.keys.messages import thinking_beside, unread_keys
from handbook_utils.data.known_formats import Row
from handbook_utils.data.shapes.called import are_calls, with_calls
from handbook_utils.data.shapes.calls import first_of, read_tools
from handbook_utils.data.shapes.messages import (
    in_turn,
    listed,
    messages_in_cell,
    messages_in_text,
    read_messages,
    request_in_text,
    with_parts,
)
from handbook_utils.data.shapes.parts import read_parts
from handbook_utils.data.shapes.transcripts import transcript_turns
from handbook_utils.data.shapes.values import is_liked, list_in_text, parse_text, shown
from handbook_utils.errors import DataError, suggest
from handbook_utils.records import Message, ToolUse

# what a message may hold beside role and content, for templates that show tools and thinking
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
# files beside a conversation that is shown to models with eyes and ears
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# what most messages hold
_PLAIN = {"role", "content"}


class RowReader:
    """One row and its place, so that each value is checked where it is read.

    Attributes:
        read: the columns that were read.
        unread: keys of messages that say something and that nobody reads.
        skipped: messages that are not learned, and the key that says so.
    """

    def __init__(self, row: Row, place: str) -> None:
        if not isinstance(row, Mapping):
            raise DataError(f"{place}: not an object with columns, found {shown(row)}.")
        self.row, self.place = row, place
        self._theirs: dict[str, str] = {}
        self.read: set[str] = set()
        self.unread: list[str] = []
        self.skipped: list[tuple[str, Message]] = []

    def rename(self, names: Mapping[str, str]) -> None:
        """Give columns our names (their name to ours); errors go on naming theirs."""
        if not names:
            return
        kept = {column: value for column, value in self.row.items() if column not in names.values()}
        self.row = kept | {ours: self.row[theirs] for theirs, ours in names.items()}
        self.row = {column: value for column, value in self.row.items() if column not in names}
        self._theirs |= {ours: self._theirs.get(theirs, theirs) for theirs, ours in names.items()}

    def over(self, row: Row) -> RowReader:
        """A reader of another row made of this one."""
        other = RowReader(row, self.place)
        other._theirs = self._theirs
        other.read, other.unread, other.skipped = self.read, self.unread, self.skipped
        return other

    def error(self, column: str, problem: str) -> DataError:
        """An error about one column, to be raised."""
        return DataError(f"{self.place}, column '{self.their_name(column)}': {problem}")

    def value(self, column: str) -> Any:
        """A column's value as it is."""
        if column not in self.row:
            raise DataError(
                f"{self.place} lacks the column '{column}'. {suggest(column, map(str, self.row))} "
                f"A column of another name is read with `columns: {{THEIRS: {column}}}`."
            )
        self.read.add(column)
        return self.row[column]

    def text(self, column: str) -> str:
        """A text that can be written as UTF-8."""
        value = self.value(column)
        if not isinstance(value, str):
            raise self.error(column, f"expected text, found {shown(value)}.")
        return self._unicode(column, value)

    def optional_text(self, column: str) -> str:
        """A text, also in parts; "" where the column is missing or null."""
        value = self.row.get(column)
        self.read.add(column)
        if isinstance(value, Mapping):  # Gemini's system instruction
            value = first_of(value, ("parts", "content")) or [value]
        if isinstance(value, list | tuple):
            if len(value) > 1 and all(isinstance(part, str) for part in value):
                raise self.error(column, f"holds {len(value)} texts. Join them in the file.")
            return self._unicode(column, self.shaped(column, lambda parts: read_parts(parts).text, value))
        return "" if value is None else self.text(column)

    def is_learned(self, message: Message) -> bool:
        """Whether nothing in the row says that this message is not learned."""
        return not any(skipped is message for _, skipped in self.skipped)

    def mark(self, column: str, which: str, marks: Row, message: Message) -> None:
        """Heed what says whether a message is learned."""
        try:
            mark = mark_of(marks, is_answer=message["role"] == "assistant")
        except ValueError as error:
            raise self.error(column, f"{which}: {error}") from None
        if mark and not mark[1]:
            self.skipped.append((mark[0], message))

    def messages(self, column: str, *, role: str) -> list[Message]:
        """A list of messages; a single one, and text that holds a list, are read too.

        Text becomes one message of `role`; for an answer, a list has to end with the assistant.
        """
        value = self.value(column)
        if isinstance(value, str):
            value = self.shaped(column, lambda _: messages_in_cell(self.row, column, role), self.text(column))
            if value is None:
                return [Message(role=role, content=self.text(column))]
        if isinstance(value, Mapping):
            value = listed(value)
        if role == "assistant" and self.row.get("tools") and are_calls(value):
            value = [{"role": role, "tool_calls": value}]
        if not isinstance(value, list | tuple) or not value:
            raise self.error(column, f"expected text or a list of messages, found {shown(value)}.")
        read = self.shaped(column, read_messages, with_parts(value))
        return [self._message(column, index, message) for index, message in read]

    def conversation(self, column: str) -> list[Message]:
        """The messages of a column that holds nothing else; text is JSON, or a list that Python printed."""
        value = self.value(column)
        if isinstance(value, str) and self.shaped(column, messages_in_text, value) is None:
            raise self.error(
                column,
                f"expected a list of messages (as text: JSON, or as Python prints it), found {shown(value)}.",
            )
        return self.messages(column, role="user")

    def texts_in_turn(self, column: str) -> list[Message]:
        """The messages of a column that lists texts, the user's first."""
        texts = list_in_text(self.value(column))
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise self.error(column, f"expected texts of user and assistant in turn, found {shown(texts)}.")
        return self.over({column: in_turn(texts)}).messages(column, role="user")

    def transcript(self, column: str) -> list[Message]:
        """Messages of one text in which "Human:" or "Assistant:" opens each turn."""
        return [
            Message(role=role, content=text)
            for role, text in self.shaped(column, transcript_turns, self.text(column))
        ]

    def their_name(self, column: str) -> str:
        """What the source calls a column that is read under our name."""
        return self._theirs.get(column, column)

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
        """True or false, also where it was written as 1 or 0, as text, or in words such as "desirable"."""
        value = self.value(column)
        liked = is_liked(value)
        if liked is None:
            raise self.error(column, f"expected true or false, found {shown(value)}.")
        return liked

    def tools(self) -> list[Any]:
        """The tools that a conversation may use, as JSON schemas; [] where there are none."""
        self.read |= {"tools", "functions", "toolConfig"}
        prompt = self.row.get("prompt")
        if isinstance(prompt, str) and prompt.lstrip().startswith("{"):
            prompt = self.shaped("prompt", request_in_text, prompt)
        inside = prompt.get("tools") if isinstance(prompt, Mapping) else None
        config = self._parsed("toolConfig", "a list of tools")
        # OpenAI's former name, tools beside the messages of its preference files, and Bedrock's name
        given = {
            **{"tools": self.row.get("tools"), "functions": self.row.get("functions"), "prompt": inside},
            "toolConfig": config.get("tools") if isinstance(config, Mapping) else None,
        }
        read = {name: self.shaped(name, read_tools, value) for name, value in given.items() if value}
        tools: list[Any]
        tools, *others = [found for found in read.values() if found] or [[]]
        if any(other != tools for other in others):
            names = " and ".join(f"'{name}'" for name, found in read.items() if found)
            raise self.error("tools", f"{names} name different tools. Keep one list.")
        self._json("tools", tools)
        return tools

    def with_tools(self, rows: list[Row]) -> list[Row]:
        """Examples of this row with its tools, which they may call, and what it tells the template."""
        given = {"tools": self.tools(), TEMPLATE_OPTIONS: self.template_options()}
        extra = {column: value for column, value in given.items() if value}
        if tools := list(given["tools"]):
            rows = self.shaped("tools", lambda made: with_calls(made, tools), rows)
        return [{**row, **extra} for row in rows] if extra else rows

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

    def structure(self, column: str, what: str) -> Any:
        """A column that holds JSON, also as text; None where it is missing or empty."""
        value = self._parsed(column, what)
        self._json(column, value)
        return value

    def _parsed(self, column: str, what: str) -> Any:
        """A column that may hold JSON as text; None where it is missing or empty."""
        value = self.row.get(column)
        self.read.add(column)
        if not isinstance(value, str):
            return value
        try:
            return parse_text(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise self.error(column, f"expected {what} as JSON, found {shown(value)}.") from None

    def refuse_media(self) -> None:
        """Refuse a row whose conversation is about files beside it: models are trained on text alone.

        Raises:
            DataError: a column such as `images` holds something.
        """
        for column in filter(self.row.__contains__, _MEDIA):
            if self.row.get(column):
                raise self.error(
                    column,
                    "holds images or other files, and models are trained on text alone here. Leave such rows "
                    "out, or take the column out of the file where the text does not need it.",
                )

    def shaped(self, column: str, read: Callable[[Any], Any], value: Any) -> Any:
        """What a reader of shapes makes of a value."""
        try:
            return read(value)
        except RecursionError:
            raise self.error(column, "is nested too deeply.") from None
        except ValueError as error:
            raise self.error(column, str(error)) from None

    def _message(self, column: str, index: int, message: Row) -> Message:
        if message.keys() == _PLAIN and isinstance(message["content"], str):  # there is nothing else to heed
            content = self._unicode(column, message["content"], f"message {index}: ")
            return Message(role=message["role"], content=content)
        message = self._heeded(column, index, message)
        extras = self._extras(column, index, message)
        content = message["content"]
        if not isinstance(content, str):
            raise self.error(column, f"message {index}: content is not text, found {shown(content)}.")
        content = self._unicode(column, content, f"message {index}: ")
        made = cast(Message, {"role": message["role"], "content": content, **extras})
        self.mark(column, f"message {index}", message, made)
        return made

    def _heeded(self, column: str, index: int, message: Row) -> Row:
        """The message with its thinking under one name; keys that nobody reads are noted."""
        self.unread += unread_keys(message)
        try:
            thinking = thinking_beside(message, is_answer=message["role"] == "assistant")
        except ValueError as error:
            raise self.error(column, f"message {index}: {error}") from None
        return {key: value for key, value in message.items() if key not in THINKING_KEYS} | thinking

    def _extras(self, column: str, index: int, message: Row) -> ToolUse:
        extras: Any = {key: message[key] for key in (*TOOL_KEYS, *THINKING_KEYS) if message.get(key)}
        if extras:
            self._json(column, extras, f"message {index}: ")
        return cast(ToolUse, extras)

    def _json(self, column: str, value: Any, which: str = "") -> None:
        if not value:
            return
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise self.error(
                column, f"{which}cannot be written as JSON ({error}). Write such a value as text or number."
            ) from None
        self._unicode(column, text, which)

    def _unicode(self, column: str, value: str, which: str = "") -> str:
        if value.isascii():  # which Python knows without a look at the text
            return value
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(
                column,
                f"{which}character {error.start + 1} is half of a surrogate pair, which is no text. "
                "Write the file again with the whole character, or drop the row.",
            ) from None
        return value
