"""Which of the known formats a row is in, and why: by its columns, by its values where those do not tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from handbook_utils.data.keys.names import mapping_for, mapping_line
from handbook_utils.data.shapes.glaive import is_glaive
from handbook_utils.data.shapes.messages import (
    SPOKEN,
    is_exchange,
    messages_in_cell,
    messages_in_text,
    speaker_of,
)
from handbook_utils.data.shapes.transcripts import is_transcript
from handbook_utils.data.shapes.values import ShapeError, is_liked, list_in_text, shown
from handbook_utils.errors import DataError, suggest
from handbook_utils.schema.sections import PairsSection
from handbook_utils.schema.stage_table import Kind

Row = Mapping[str, Any]
# columns whose texts may be turns; a list of texts may as well be tags
_DIALOGUES = ("dialogue", "dialog", "conversation", "turns", "utterances", "chat")
# shapes that an error lists; the chapter on data shows all
SHAPES = 6
KINDS = get_args(Kind)


@dataclass(frozen=True)
class Format:
    """A shape in which people keep rows.

    Attributes:
        columns: the columns that every such row has.
        kinds: the kinds of data that can be made from it.
        example: a row of it.
        names: columns that are read under another name, to that name.
        pairs: what a recipe says of the pairs to be made of the example; None where it need not.
        more: further rows that belong to the example.
    """

    columns: tuple[str, ...]
    kinds: tuple[Kind, ...]
    example: Row
    names: Mapping[str, str] = field(default_factory=dict)
    pairs: PairsSection | None = None
    more: tuple[Row, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """The example, with the rows that belong to it."""
        return [self.example, *self.more]


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
        if mapping := mapping_for(list(row), kind):
            return f"{looks} {mapping}"
        other = next((name for name in formats if set(FORMATS[name].columns) <= row.keys()), None)
        is_more = other is not None and set(FORMATS[other].columns) < set(FORMATS[fitting[0]].columns)
        return f"{looks} To read it as less, name that: `format: {other}`." if is_more else looks
    needed = {column for name in formats for column in FORMATS[name].columns}
    near = next(
        (hint for c in row if c not in needed and (hint := suggest(str(c), needed)).startswith("Did")), ""
    )
    rename = (
        "Other names can be mapped: `columns: {theirs: ours}` in a recipe, `--column theirs=ours` for "
        "`handbook data`."
    )
    held = _held_turns(row) if kind in ("conversation", "prompt") else _held_ratings(row)
    return f"{message} {mapping_for(list(row), kind) or held or f'{near} {rename}'}".replace("  ", " ")


def _held_turns(row: Row) -> str:
    """How to read a column of an unknown name that holds turns; "" where none does."""
    for column, value in row.items():
        turns = list_in_text(value)
        first = turns[0] if isinstance(turns, list | tuple) and turns else None
        is_text = isinstance(first, Mapping) and first.keys() == {"label", "text"}
        if is_text:
            return (
                f"'{column}' lists texts with a label, which a template has rendered already (axolotl's "
                "input_output). Write messages; `weight: 0` in one says that it is not learned."
            )
        if speaker_of(first) is not None or is_exchange(first):
            return mapping_line("messages", {column: "messages"})
        if isinstance(first, str) and len(turns) > 1 and str(column).lower() in _DIALOGUES:
            return mapping_line("what user and assistant say in turn", {column: "data"})
    return ""


def _held_ratings(row: Row) -> str:
    """How to read two lists of one length, of answers and of their ratings; "" where there are none."""
    lists = {
        column: values for column, value in row.items() if isinstance(values := list_in_text(value), list)
    }
    for column, answers in lists.items():
        if len(answers) < 2 or not all(isinstance(answer, str) for answer in answers):
            continue
        for other, ratings in lists.items():
            numbers = all(isinstance(r, int | float) and not isinstance(r, bool) for r in ratings)
            if len(ratings) == len(answers) and numbers:
                line = mapping_line("rated answers", {column: "generations", other: "ratings"})
                return f"{line} The prompt is 'instruction' then, and `pairs: {{rating: ratings}}` chooses."
    return ""


def _reason(name: str) -> str:
    columns = FORMATS[name].columns
    has = f"it has the column{'s' if columns[1:] else ''} {_columns(name)}"
    return f"{has}, and both are transcripts" if name == "transcript" else has


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


def _holds_turns(row: Row) -> bool:
    if _SAID & row.keys():
        return False
    turns = list_in_text(row["conversation"])
    return isinstance(turns, list | tuple) and len(turns) > 0 and isinstance(turns[0], Mapping)


def _lists_texts(row: Row) -> bool:
    if _SAID & row.keys():
        return False
    texts = list_in_text(row["data"])
    return isinstance(texts, list | tuple) and len(texts) > 1 and all(isinstance(t, str) for t in texts)


def _is_rated(row: Row) -> bool:
    return "helpfulness" in row  # HelpSteer's; rows with other ratings are named by `format`


_VALUES: dict[str, Callable[[Row], bool]] = {
    "transcript": _are_transcripts,
    "preference": _are_answers,
    "prompt": _is_bare,
    "rated_answers": _lists_objects,
    "swift_ranking": _lists_messages,
    "conversation": _holds_turns,
    "ultrachat": _lists_texts,
    "glaive": lambda row: not _SAID & row.keys() and is_glaive(row["chat"]),
    "rated_rows": _is_rated,
    "messages_feedback": _is_labelled,
    "sharegpt_feedback": _is_labelled,
    "alpaca_feedback": _is_labelled,
    "messages_ranking": _waits("messages"),
    "sharegpt_ranking": _waits("conversations"),
}

_ASK, _ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
_WRONG = {"role": "assistant", "content": "5"}
_SHARED = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
_TALK: tuple[Kind, ...] = ("conversation", "prompt")
_PAIR: tuple[Kind, ...] = ("preference", "feedback", "prompt")
FORMATS: dict[str, Format] = {
    "text": Format(("text",), ("text",), {"text": "Two and two make four."}),
    "messages": Format(("messages",), _TALK, {"messages": [_ASK, _ANSWER]}),
    "sharegpt": Format(("conversations",), _TALK, {"conversations": _SHARED}),
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
    "messages_feedback": Format(
        ("messages", "label"), ("feedback", "prompt"), {"messages": [_ASK, _ANSWER], "label": True}
    ),
    "sharegpt_feedback": Format(
        ("conversations", "label"), ("feedback", "prompt"), {"conversations": _SHARED, "label": False}
    ),
    "alpaca_feedback": Format(
        ("instruction", "output", "label"),
        ("feedback", "prompt"),
        {"instruction": "Add.", "input": "2 and 2", "output": "4", "label": True},
    ),
    "messages_ranking": Format(
        ("messages", "chosen", "rejected"),
        _PAIR,
        {"messages": [_ASK], "chosen": _ANSWER, "rejected": _WRONG},
        names={"messages": "prompt"},
    ),
    "sharegpt_ranking": Format(
        ("conversations", "chosen", "rejected"),
        _PAIR,
        {"conversations": _SHARED[:1], "chosen": _SHARED[1], "rejected": {"from": "gpt", "value": "5"}},
        names={"conversations": "prompt"},
    ),
    "alpaca_ranking": Format(
        ("instruction", "chosen", "rejected"),
        _PAIR,
        {"instruction": "Add.", "input": "2 and 2", "chosen": "4", "rejected": "5"},
    ),
    "swift_ranking": Format(
        ("messages", "rejected_response"),
        _PAIR,
        {"messages": [_ASK, _ANSWER], "rejected_response": "5"},
        names={"messages": "chosen", "rejected_response": "rejected"},
    ),
    "swift_conversations": Format(
        ("messages", "rejected_messages"),
        _PAIR,
        {"messages": [_ASK, _ANSWER], "rejected_messages": [_ASK, _WRONG]},
        names={"messages": "chosen", "rejected_messages": "rejected"},
    ),
    "preference_messages": Format(
        ("chosen_messages", "rejected_messages"),
        _PAIR,
        {"chosen_messages": [_ASK, _ANSWER], "rejected_messages": [_ASK, _WRONG]},
        names={"chosen_messages": "chosen", "rejected_messages": "rejected", "prompt_messages": "prompt"},
    ),
    "openai_preference": Format(
        ("input", "preferred_output", "non_preferred_output"),
        _PAIR,
        {"input": {"messages": [_ASK]}, "preferred_output": [_ANSWER], "non_preferred_output": [_WRONG]},
        names={"input": "prompt", "preferred_output": "chosen", "non_preferred_output": "rejected"},
    ),
    "argilla_pair": Format(
        ("instruction", "chosen_response", "rejected_response"),
        _PAIR,
        {
            **{"instruction": "2 + 2?", "chosen_response": "4", "rejected_response": "5"},
            **{"chosen_avg_rating": 5.0, "rejected_avg_rating": 1.0},
        },
        names={"instruction": "prompt", "chosen_response": "chosen", "rejected_response": "rejected"},
    ),
    "helpsteer2_preference": Format(
        ("prompt", "response_1", "response_2", "preference_strength"),
        _PAIR,
        {"prompt": "2 + 2?", "response_1": "4", "response_2": "5", "preference_strength": -3},
    ),
    "helpsteer3": Format(
        ("context", "response1", "response2", "overall_preference"),
        _PAIR,
        {"context": [_ASK], "response1": "5", "response2": "4", "overall_preference": 2},
        names={"context": "prompt"},
    ),
    "argilla_ranking": Format(
        ("prompt", "response1", "response2", "preference"),
        _PAIR,
        {
            **{"prompt": "2 + 2?", "response1": "5", "response2": "4"},
            "preference": [{"value": [{"rank": 1, "value": "response2"}, {"rank": 2, "value": "response1"}]}],
        },
    ),
    "judged": Format(
        ("prompt", "answer_a", "answer_b", "preference"),
        _PAIR,
        {"prompt": "2 + 2?", "answer_a": "4", "answer_b": "5", "preference": "a"},
    ),
    "arena": Format(
        ("conversation_a", "conversation_b", "winner"),
        ("preference", "feedback"),
        {
            **{"conversation_a": [_ASK, _ANSWER], "conversation_b": [_ASK, _WRONG]},
            "winner": "model_a",
        },
        names={"conversation_a": "answer_a", "conversation_b": "answer_b", "winner": "preference"},
    ),
    "ultrafeedback_ratings": Format(
        ("instruction", "completions"),
        _PAIR,
        {
            "instruction": "2 + 2?",
            "completions": [
                {"response": "4", "overall_score": 9.0, "annotations": {"honesty": {"Rating": "5"}}},
                {"response": "5", "overall_score": 2.0, "annotations": {"honesty": {"Rating": "3"}}},
            ],
        },
        names={"instruction": "prompt"},
        pairs=PairsSection(rating="overall_score"),
    ),
    "distilabel_ratings": Format(
        ("instruction", "generations", "ratings"),
        _PAIR,
        {"instruction": "2 + 2?", "generations": ["4", "5"], "ratings": [5, 1]},
        names={"instruction": "prompt"},
        pairs=PairsSection(rating="ratings"),
    ),
    "rated_answers": Format(
        ("prompt", "answers"),
        _PAIR,
        {"prompt": "2 + 2?", "answers": [{"answer": "4", "rank": 1}, {"answer": "5", "rank": 2}]},
        pairs=PairsSection(rating="rank"),
    ),
    "rated_rows": Format(
        ("prompt", "response"),
        _PAIR,
        {"prompt": "2 + 2?", "response": "4", "helpfulness": 4, "correctness": 4},
        pairs=PairsSection(rating=["helpfulness", "correctness"]),
        more=({"prompt": "2 + 2?", "response": "5", "helpfulness": 1, "correctness": 0},),
    ),
    "contents": Format(
        ("contents",),
        _TALK,
        {
            "contents": [
                {"role": "user", "parts": [{"text": "2 + 2?"}]},
                {"role": "model", "parts": [{"text": "4"}]},
            ]
        },
    ),
    "conversation": Format(("conversation",), _TALK, {"conversation": [{"input": "2 + 2?", "output": "4"}]}),
    "ultrachat": Format(("data",), _TALK, {"data": ["2 + 2?", "4", "And 3 + 3?", "6"]}),
    "glaive": Format(
        ("chat",),
        _TALK,
        {
            "system": "SYSTEM: You are a helpful assistant.",
            "chat": "USER: 2 + 2?\n\n\nASSISTANT: 4 <|endoftext|>\n\n\n",
        },
    ),
    "prompt": Format(("prompt",), ("prompt",), {"prompt": "2 + 2?"}),
}
