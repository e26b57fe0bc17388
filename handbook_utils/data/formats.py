"""Rows of any accepted shape, turned into the forms the stages read. Pure functions, no files.

Every error names the row (counted from 1) and the column, and says what was found there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

from handbook_utils.errors import DataError, suggest
from handbook_utils.records import Message

Kind = Literal["text", "conversation", "preference", "feedback", "prompt"]
Row = Mapping[str, Any]
ROLES = ("system", "user", "assistant")
# the annotator's and the gold reward's view of a pair, where the pairs come from the pocket world
GOLD_COLUMNS = ("gold_chosen", "gold_rejected")
FORMAT_COLUMNS = {
    "text": ("text",),
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "feedback": ("prompt", "completion", "label"),
    "prompt": ("prompt",),
}
# the shapes each kind can be made from, the first that fits is taken
KIND_FORMATS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "conversation": ("messages", "prompt_completion"),
    "preference": ("preference",),
    "feedback": ("feedback", "preference"),
    "prompt": ("messages", "preference", "prompt"),
}


def normalise_rows(rows: Iterable[Row], *, kind: Kind, format: str = "auto", name: str = "data") -> list[Row]:
    """Bring rows into the form of `kind`.

    Args:
        rows: mappings; every row has the columns of the first.
        kind: "text" -> `{"text"}`; "conversation" -> `{"prompt", "completion"}`, one row an assistant turn;
            "preference" -> `{"prompt", "chosen", "rejected"}` and gold columns where given;
            "feedback" -> `{"prompt", "completion", "label"}`, where a pair gives a True and a False row;
            "prompt" -> `{"prompt_id", "prompt"}`. All but "text" hold lists of messages.
        format: the rows' shape, a key of `FORMAT_COLUMNS`; "auto" goes by the columns.
        name: what the rows came from; opens every error message.
    Raises:
        DataError: empty, a column missing, or a value that is not what its column needs.

    >>> normalise_rows([{"prompt": "Hi", "completion": "Hello."}], kind="conversation")[0]["completion"]
    [{'role': 'assistant', 'content': 'Hello.'}]
    """
    if kind not in get_args(Kind):
        raise DataError(f"{name}: unknown kind '{kind}'. {suggest(kind, get_args(Kind))}")
    convert: Callable[[_Reader], list[Row]] | None = None
    normalised: list[Row] = []
    for number, row in enumerate(rows, start=1):
        reader = _Reader(row, f"{name}: row {number}")
        if convert is None:
            convert = _CONVERTERS[kind, _detect(reader, kind, format)]
        normalised += convert(reader)
    if not normalised:
        raise DataError(f"{name}: no rows. Check the file, or the split if one was given.")
    return normalised


class _Reader:
    """One row and its place, so that each value is checked where it is read."""

    def __init__(self, row: Row, place: str) -> None:
        if not isinstance(row, Mapping):
            raise DataError(f"{place}: not an object with columns, found {_shown(row)}.")
        self.row, self.place = row, place

    def error(self, column: str, problem: str) -> DataError:
        return DataError(f"{self.place}, column '{column}': {problem}")

    def value(self, column: str) -> Any:
        if column not in self.row:
            raise DataError(f"{self.place} lacks the column '{column}'. {suggest(column, self.row)}")
        return self.row[column]

    def text(self, column: str) -> str:
        value = self.value(column)
        if not isinstance(value, str):
            raise self.error(column, f"expected text, found {_shown(value)}.")
        return value

    def messages(self, column: str, *, role: str) -> list[Message]:
        """A list of messages; plain text becomes one message of `role`."""
        value = self.value(column)
        if isinstance(value, str):
            return [Message(role=role, content=value)]
        if not isinstance(value, list | tuple) or not value:
            raise self.error(column, f"expected text or a list of messages, found {_shown(value)}.")
        return [self._message(column, index, message) for index, message in enumerate(value, start=1)]

    def _message(self, column: str, index: int, message: Any) -> Message:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise self.error(column, f"message {index} needs 'role' and 'content', found {_shown(message)}.")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise self.error(column, f"message {index} has the role {role!r}. {suggest(str(role), ROLES)}")
        if not isinstance(content, str):
            raise self.error(column, f"message {index}: content is not text, found {_shown(content)}.")
        return Message(role=role, content=content)

    def number(self, column: str) -> float:
        value = self.value(column)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self.error(column, f"expected a number, found {_shown(value)}.") from None
        if not math.isfinite(number):
            raise self.error(column, f"expected a finite number, found {number}.")
        return number


def _detect(reader: _Reader, kind: Kind, format: str) -> str:
    """The shape of a row: as told, or the first of the kind's shapes whose columns are all there."""
    formats = KIND_FORMATS[kind]
    if format == "auto":
        for candidate in formats:
            if set(FORMAT_COLUMNS[candidate]) <= reader.row.keys():
                return candidate
        wanted = " or ".join("+".join(f"'{c}'" for c in FORMAT_COLUMNS[name]) for name in formats)
        found = ", ".join(f"'{column}'" for column in reader.row) or "none"
        needed = {column for name in formats for column in FORMAT_COLUMNS[name]}
        near = next((hint for c in reader.row if (hint := suggest(c, needed)).startswith("Did")), "")
        raise DataError(
            f"{reader.place}: {kind} data needs the columns {wanted}; found {found}. {near}".rstrip()
        )
    if format not in formats:
        raise DataError(f"{reader.place}: {kind} data has no format '{format}'. {suggest(format, formats)}")
    return format


def _texts(reader: _Reader) -> list[Row]:
    return [{"text": reader.text("text")}]


def _turns(reader: _Reader) -> list[Row]:
    """One example an assistant turn: the model learns each answer given all that precedes it."""
    messages = reader.messages("messages", role="user")
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise reader.error("messages", "no message of the assistant, so there is nothing to learn.")
    if answers[0] == 0:
        raise reader.error("messages", "starts with the assistant; a user's message has to come first.")
    return [{"prompt": messages[:index], "completion": [messages[index]]} for index in answers]


def _prompt_completion(reader: _Reader) -> list[Row]:
    prompt = _open_prompt(reader, "prompt")
    return [{"prompt": prompt, "completion": [_one_answer(reader, "completion")]}]


def _open_prompt(reader: _Reader, column: str) -> list[Message]:
    """A prompt that is waiting for an answer."""
    prompt = reader.messages(column, role="user")
    if prompt[-1]["role"] != "user":
        raise reader.error(column, f"ends with a message of the {prompt[-1]['role']}, not of the user.")
    return prompt


def _one_answer(reader: _Reader, column: str) -> Message:
    messages = reader.messages(column, role="assistant")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise reader.error(column, f"expected one message of the assistant, found: {roles}.")
    return messages[0]


def _pair(reader: _Reader) -> list[Row]:
    """Prompt, chosen and rejected; the prompt may be given apart, inside both conversations, or both."""
    sides = {column: reader.messages(column, role="assistant") for column in ("chosen", "rejected")}
    for column, messages in sides.items():
        if messages[-1]["role"] != "assistant":
            raise reader.error(column, f"ends with a message of the {messages[-1]['role']}, not an answer.")
    inside = sides["chosen"][:-1]
    if inside != sides["rejected"][:-1]:
        raise reader.error("rejected", "answers another conversation than 'chosen' does.")
    if not inside:
        prompt = _open_prompt(reader, "prompt")
    elif "prompt" in reader.row and isinstance(reader.row["prompt"], list):
        # the conversation goes on inside the answers, unless it is repeated there
        given = reader.messages("prompt", role="user")
        prompt = inside if inside[: len(given)] == given else given + inside
    else:
        prompt = inside  # a text beside full conversations repeats their first message
    row = {"prompt": prompt, "chosen": sides["chosen"][-1:], "rejected": sides["rejected"][-1:]}
    return [row | {column: reader.number(column) for column in GOLD_COLUMNS if column in reader.row}]


def _feedback(reader: _Reader) -> list[Row]:
    label = reader.value("label")
    if not isinstance(label, bool):
        raise reader.error("label", f"expected true (a good answer) or false, found {_shown(label)}.")
    return [{**row, "label": label} for row in _prompt_completion(reader)]


def _feedback_of_pair(reader: _Reader) -> list[Row]:
    pair = _pair(reader)[0]
    sides = (("chosen", True), ("rejected", False))
    return [{"prompt": pair["prompt"], "completion": pair[side], "label": label} for side, label in sides]


def _prompt_of_messages(reader: _Reader) -> list[Row]:
    messages = reader.messages("messages", role="user")
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user":
        raise reader.error("messages", "no message of the user that could be answered.")
    return _with_id(reader, messages)


def _prompt_of_pair(reader: _Reader) -> list[Row]:
    return _with_id(reader, _pair(reader)[0]["prompt"])


def _prompt(reader: _Reader) -> list[Row]:
    return _with_id(reader, _open_prompt(reader, "prompt"))


def _with_id(reader: _Reader, prompt: list[Message]) -> list[Row]:
    given = reader.row.get("prompt_id")
    return [{"prompt_id": prompt_hash(prompt) if given is None else str(given), "prompt": prompt}]


def prompt_hash(prompt: list[Message]) -> str:
    """A prompt's name where none was given: 16 hex digits of its content, the same in every process."""
    plain = [[message["role"], message["content"]] for message in prompt]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()[:16]


def _shown(value: Any) -> str:
    """A value's type and start, short enough for an error message."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


_CONVERTERS: dict[tuple[str, str], Callable[[_Reader], list[Row]]] = {
    ("text", "text"): _texts,
    ("conversation", "messages"): _turns,
    ("conversation", "prompt_completion"): _prompt_completion,
    ("preference", "preference"): _pair,
    ("feedback", "feedback"): _feedback,
    ("feedback", "preference"): _feedback_of_pair,
    ("prompt", "messages"): _prompt_of_messages,
    ("prompt", "preference"): _prompt_of_pair,
    ("prompt", "prompt"): _prompt,
}
