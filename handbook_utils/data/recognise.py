"""Which of the known formats a row is in, and why: by its columns, by its values where those do not tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from handbook_utils.data.keys.hints import hint_for
from handbook_utils.data.known_formats import FORMATS, Row
from handbook_utils.data.shapes.glaive import is_glaive
from handbook_utils.data.shapes.messages import (
    SPOKEN,
    messages_in_cell,
    messages_in_text,
    speaker_of,
)
from handbook_utils.data.shapes.transcripts import is_transcript
from handbook_utils.data.shapes.values import ShapeError, is_liked, list_in_text, shown
from handbook_utils.errors import DataError, suggest
from handbook_utils.schema.stage_table import Kind

# shapes that an error lists; the chapter on data shows all
SHAPES = 6
KINDS = get_args(Kind)


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
    fitting = fitting_formats(row)
    found = [name for name in fitting if name in usable]
    if not found:
        raise DataError(_nothing_fits(row, kind, fitting, place))
    if len(found) > 1:
        listed = ", ".join(f"{name} ({_columns(name)})" for name in found)
        raise DataError(
            f"{place}: could be read as {' or as '.join(found)}, and these may differ: {listed}. "
            f"Say which is meant, such as `format: {found[0]}`."
        )
    return Recognised(found[0], _reason(found[0]) + _held_as_text(found[0], row))


def fitting_formats(row: Row) -> list[str]:
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
    shapes = list(dict.fromkeys("+".join(f"'{c}'" for c in FORMATS[name].columns) for name in formats))
    wanted = " or ".join(shapes[:SHAPES])
    wanted += f" (or one of {len(shapes) - SHAPES} more shapes)" if len(shapes) > SHAPES else ""
    found = ", ".join(f"'{column}'" for column in row) or "none"
    message = f"{place}: {kind} data needs the columns {wanted}; found {found}."
    if fitting:
        kinds = ", ".join(FORMATS[fitting[0]].kinds)
        looks = f"{message} It looks like the format '{fitting[0]}', which gives: {kinds}."
        other = next((name for name in formats if set(FORMATS[name].columns) <= row.keys()), None)
        if other is not None and set(FORMATS[other].columns) < set(FORMATS[fitting[0]].columns):
            return f"{looks} To read it as less, name that: `format: {other}`."
        return f"{looks} {hint_for(row, kind)}".strip()
    needed = {column for name in formats for column in FORMATS[name].columns}
    near = next(
        (hint for c in row if c not in needed and (hint := suggest(str(c), needed)).startswith("Did")), ""
    )
    rename = (
        "Other names can be mapped: `columns: {theirs: ours}` in a recipe, `--column theirs=ours` for "
        "`handbook data`."
    )
    return f"{message} {hint_for(row, kind) or f'{near} {rename}'}".replace("  ", " ")


# what of a row's values says the rest
_MORE = {
    "transcript": "both are transcripts",
    "turns_in_text": "its text is a transcript",
    "lima": "its conversation is a list of texts",
}


def _reason(name: str) -> str:
    columns = FORMATS[name].columns
    has = f"it has the column{'s' if columns[1:] else ''} {_columns(name)}"
    more = _MORE.get(name)
    return f"{has}, and {more}" if more else has


def _held_as_text(name: str, row: Row) -> str:
    """What texts of a row are taken for that could be plain text; "" where none is."""
    known = FORMATS[name].names
    ours = {known.get(column, column): value for column, value in row.items()}
    try:
        held = [
            column
            for column, role in SPOKEN.items()
            if column in ours and messages_in_cell(ours, column, role)
        ]
    except ShapeError:  # told with its row and column where it is read
        held = []
    parts = (
        [f"; {' and '.join(map(repr, held))} {'hold' if held[1:] else 'holds'} messages as text"]
        if held
        else []
    )
    return "".join([*parts, "; 'prompt' is a transcript" if is_transcript(ours.get("prompt")) else ""])


def _columns(name: str) -> str:
    return ", ".join(f"'{column}'" for column in FORMATS[name].columns)


def _are_transcripts(row: Row) -> bool:
    return is_transcript(row["chosen"]) and is_transcript(row["rejected"])


def _are_answers(row: Row) -> bool:
    # beside a prompt even a text that opens with "Human:" may be an answer; alone it cannot be one
    return "prompt" in row or not _are_transcripts(row)


def _is_bare(row: Row) -> bool:
    return not {"chosen", "rejected"} <= row.keys()  # whose prompt may stand beside them


def _is_labelled(row: Row) -> bool:
    """Whether a label says liked or disliked; it may as well be a topic."""
    return is_liked(row["label"]) is not None


def _waits(column: str) -> Callable[[Row], bool]:
    """Whether a conversation waits for the answers beside it, and does not contain one of them."""

    def waits(row: Row) -> bool:
        turns = row[column]
        if isinstance(turns, str):
            try:
                turns = messages_in_text(turns)
            except ShapeError:
                return False
        return isinstance(turns, list | tuple) and len(turns) > 0 and speaker_of(turns[-1]) != "assistant"

    return waits


def _lists_objects(row: Row) -> bool:
    """Whether answers come with something said of each, and are no list of right ones."""
    answers = list_in_text(row["answers"])
    return isinstance(answers, list | tuple) and all(isinstance(answer, Mapping) for answer in answers)


def _lists_messages(row: Row) -> bool:
    return not isinstance(row["messages"], str)  # beside a plain text nothing says that it holds messages


# beside one of these, a column that collections call `conversation`, `data` or `chat` is something else
_SAID = {"messages", "conversations", "contents", "prompt", "instruction", "chosen"}


def _alone(fits: Callable[[Row], bool]) -> Callable[[Row], bool]:
    return lambda row: not _SAID & row.keys() and fits(row)


def _holds_turns(row: Row) -> bool:
    turns = list_in_text(row["conversation"])
    return isinstance(turns, list | tuple) and len(turns) > 0 and isinstance(turns[0], Mapping)


def _lists_texts(value: Any) -> bool:
    texts = list_in_text(value)
    return isinstance(texts, list | tuple) and len(texts) > 1 and all(isinstance(t, str) for t in texts)


def _is_rated(row: Row) -> bool:
    return "helpfulness" in row  # HelpSteer's; rows with other ratings are named by `format`


_VALUES: dict[str, Callable[[Row], bool]] = {
    "transcript": _are_transcripts,
    "preference": _are_answers,
    "prompt": _is_bare,
    "rated_answers": _lists_objects,
    "swift_ranking": _lists_messages,
    "conversation": _alone(_holds_turns),
    "ultrachat": _alone(lambda row: _lists_texts(row["data"])),
    "glaive": _alone(lambda row: is_glaive(row["chat"])),
    "rated_rows": _is_rated,
    "messages_feedback": _is_labelled,
    "sharegpt_feedback": _is_labelled,
    "sharegpt": lambda row: not _lists_texts(row["conversations"]),
    "lima": lambda row: _lists_texts(row["conversations"]),
    "turns_in_text": lambda row: is_transcript(row["text"]),
    "alpaca_feedback": _is_labelled,
    "messages_ranking": _waits("messages"),
    "sharegpt_ranking": _waits("conversations"),
}
