"""Which of the known formats a row is in, and why: by its columns, by its values where those do not tell."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from handbook_utils.errors import DataError, suggest
from handbook_utils.schema.stage_table import Kind

Row = Mapping[str, Any]
KINDS = get_args(Kind)
_SHORT = reprlib.Repr()  # from 3.12 on it takes these as arguments
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxdict = 60, 60, 3, 3


@dataclass(frozen=True)
class Format:
    """A shape in which people keep rows.

    Attributes:
        columns: the columns that every such row has.
        kinds: the kinds of data that can be made from it.
        example: a row of it.
    """

    columns: tuple[str, ...]
    kinds: tuple[Kind, ...]
    example: Row


@dataclass(frozen=True)
class Recognised:
    """What a row was taken for, and the reason."""

    format: str
    because: str

    def __str__(self) -> str:
        return f"{self.format} ({self.because})"


def describe_format(row: Row, *, kind: Kind, format: str = "auto", place: str = "this row") -> Recognised:
    """Say which format a row is in, and why.

    Of the formats whose columns the row has, one whose columns are only part of another's does not count:
    a row with `prompt` and `completion` is no bare prompt.

    Args:
        row: a mapping of columns to values.
        kind: what is to be made of it: "text", "conversation", "preference", "feedback" or "prompt".
        format: its format where it is known; "auto" to find out.
        place: where the row is; opens every error message.
    Raises:
        DataError: no format fits, or several do (they are listed), or data of that kind cannot be made of it.

    >>> str(describe_format({"instruction": "Add 2 and 2.", "output": "4"}, kind="conversation"))
    "alpaca (it has the columns 'instruction', 'output')"
    """
    if kind not in KINDS:
        raise DataError(f"{place}: unknown kind '{kind}'. {suggest(kind, KINDS)}")
    if not isinstance(row, Mapping):
        raise DataError(f"{place}: not an object with columns, found {shown(row)}.")
    usable = [name for name, known in FORMATS.items() if kind in known.kinds]
    if format != "auto":
        if format not in usable:
            raise DataError(f"{place}: {kind} data has no format '{format}'. {suggest(format, usable)}")
        return Recognised(format, "named in the recipe")
    fitting = _fitting(row)
    found = [name for name in fitting if name in usable]
    if not found:
        raise DataError(_nothing_fits(row, kind, fitting, place))
    if len(found) > 1:
        listed = ", ".join(f"{name} ({_columns(name)})" for name in found)
        raise DataError(
            f"{place}: could be read as {' or as '.join(found)}, and these may differ: {listed}. "
            f"Say which is meant, such as `format: {found[0]}`."
        )
    return Recognised(found[0], _reason(found[0]))


def _fitting(row: Row) -> list[str]:
    """Formats whose columns the row has, less those that another one of them goes beyond."""
    fitting = [
        name
        for name, known in FORMATS.items()
        if set(known.columns) <= row.keys() and (name not in _VALUES or _VALUES[name](row))
    ]
    return [
        name
        for name in fitting
        if not any(set(FORMATS[name].columns) < set(FORMATS[other].columns) for other in fitting)
    ]


def _nothing_fits(row: Row, kind: Kind, fitting: list[str], place: str) -> str:
    formats = [name for name, known in FORMATS.items() if kind in known.kinds]
    wanted = " or ".join(dict.fromkeys("+".join(f"'{c}'" for c in FORMATS[name].columns) for name in formats))
    found = ", ".join(f"'{column}'" for column in row) or "none"
    message = f"{place}: {kind} data needs the columns {wanted}; found {found}."
    if fitting:
        kinds = ", ".join(FORMATS[fitting[0]].kinds)
        return f"{message} It looks like the format '{fitting[0]}', which gives: {kinds}."
    needed = {column for name in formats for column in FORMATS[name].columns}
    near = next((hint for c in row if (hint := suggest(str(c), needed)).startswith("Did")), "")
    rename = "Other names can be mapped: `columns: {theirs: ours}`."
    return f"{message} {near} {rename}".replace("  ", " ")


def _reason(name: str) -> str:
    columns = FORMATS[name].columns
    has = f"it has the column{'s' if columns[1:] else ''} {_columns(name)}"
    return f"{has}, and both are transcripts" if name == "transcript" else has


def _columns(name: str) -> str:
    return ", ".join(f"'{column}'" for column in FORMATS[name].columns)


def shown(value: Any) -> str:
    """A value's type and start, short enough for an error message.

    >>> shown(["a", 1])
    "list ['a', 1]"
    """
    return f"{type(value).__name__} {_SHORT.repr(value)}"


def is_transcript(value: object) -> bool:
    """Whether a value is one text of several turns, each opened by its speaker, as in HH-RLHF."""
    return isinstance(value, str) and value[:100].lstrip().startswith("Human:") and "Assistant:" in value


def _are_transcripts(row: Row) -> bool:
    return is_transcript(row["chosen"]) and is_transcript(row["rejected"])


def _are_answers(row: Row) -> bool:
    # beside a prompt even a text that opens with "Human:" may be an answer; alone it cannot be one
    return "prompt" in row or not _are_transcripts(row)


def _is_bare(row: Row) -> bool:
    return not {"chosen", "rejected"} <= row.keys()  # whose prompt may stand beside them


_VALUES: dict[str, Callable[[Row], bool]] = {
    "transcript": _are_transcripts,
    "preference": _are_answers,
    "prompt": _is_bare,
}

_ASK, _ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
_WRONG = {"role": "assistant", "content": "5"}
_TALK: tuple[Kind, ...] = ("conversation", "prompt")
_PAIR: tuple[Kind, ...] = ("preference", "feedback", "prompt")
FORMATS: dict[str, Format] = {
    "text": Format(("text",), ("text",), {"text": "Two and two make four."}),
    "messages": Format(("messages",), _TALK, {"messages": [_ASK, _ANSWER]}),
    "sharegpt": Format(
        ("conversations",),
        _TALK,
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    ),
    "prompt_completion": Format(("prompt", "completion"), _TALK, {"prompt": "2 + 2?", "completion": "4"}),
    "alpaca": Format(
        ("instruction", "output"), _TALK, {"instruction": "Add.", "input": "2 and 2", "output": "4"}
    ),
    "preference": Format(("chosen", "rejected"), _PAIR, {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}),
    "transcript": Format(
        ("chosen", "rejected"),
        _PAIR,
        {
            "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5",
        },
    ),
    "ultrafeedback": Format(
        ("prompt", "chosen", "rejected", "messages"),
        (*_PAIR, "conversation"),
        {
            "prompt": "2 + 2?",
            "chosen": [_ASK, _ANSWER],
            "rejected": [_ASK, _WRONG],
            "messages": [_ASK, _ANSWER],
        },
    ),
    "feedback": Format(
        ("prompt", "completion", "label"),
        ("feedback", "prompt"),
        {"prompt": "2 + 2?", "completion": "4", "label": True},
    ),
    "prompt": Format(("prompt",), ("prompt",), {"prompt": "2 + 2?"}),
}
