"""What to write into a recipe where a row is in no known format, told from its columns and their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handbook_utils.data.keys.names import answering_column, asking_column, mapping_for, mapping_line
from handbook_utils.data.shapes.messages import is_exchange, speaker_of
from handbook_utils.data.shapes.ratings import ANSWER_LISTS
from handbook_utils.data.shapes.transcripts import is_transcript, open_turn, rendered_by, written_end
from handbook_utils.data.shapes.values import list_in_text

# columns whose texts may be turns; a list of texts may as well be tags
_DIALOGUES = ("dialogue", "dialog", "conversation", "turns", "utterances", "chat")


def hint_for(row: Mapping[str, Any], kind: str) -> str:
    """What to write so that a row is read; "" where that cannot be told.

    Args:
        row: in no format that gives this kind of data.
        kind: what is to be made of it.

    >>> hint_for({"story": "### Human: Hi### Assistant: Hello."}, "conversation").partition(" in ")[0]
    'To read it as a transcript: `columns: {story: text}`'
    """
    if kind in ("conversation", "prompt") and (held := _held_in_text(row)):
        return held
    return mapping_for(list(row), kind) or (
        _held_turns(row) if kind in ("conversation", "prompt") else _held_ratings(row)
    )


def answer_beside(row: Mapping[str, Any], column: str) -> str:
    """How to read a row whose conversation waits for an answer that stands in another column; "" for none.

    >>> answer_beside({"messages": [], "answer": "Hello."}, "messages")[:50]
    'To read it as a question and its answer: `columns:'
    """
    answer = answering_column([name for name in row if name != column])
    names = {column: "prompt", str(answer): "completion"}
    return mapping_line("a question and its answer", names) if answer else ""


def _held_in_text(row: Mapping[str, Any]) -> str:
    """How to go on with texts that hold several turns, or with one message of many."""
    if {"parent_id", "role"} <= row.keys():
        return (
            "Each row is one message, and 'parent_id' names the one before it (Open Assistant's trees). Go "
            "from an answer to the first message, and write what lies on the way as one row of `messages`."
        )
    for column, value in row.items():
        if not isinstance(value, str):
            continue
        if (
            mark := rendered_by(value)
            or open_turn(value)
            or (written_end(value) if column == "text" else None)
        ):
            return (
                f"'{column}' was rendered by a chat template already (it has '{mark}'). Write its turns as "
                "`messages`, so that only answers are learned and the model's own template is used."
            )
        if column != "text" and is_transcript(value):
            return mapping_line("a transcript", {column: "text"})
    return ""


def _held_turns(row: Mapping[str, Any]) -> str:
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


def _held_ratings(row: Mapping[str, Any]) -> str:
    """How to read answers with their ratings, in objects or in two lists of one length; "" for none."""
    lists = {
        column: values for column, value in row.items() if isinstance(values := list_in_text(value), list)
    }
    asks = asking_column(list(row))
    for column, answers in lists.items():
        if len(answers) < 2:
            continue
        if column in ANSWER_LISTS and asks and all(isinstance(answer, Mapping) for answer in answers):
            names = {asks: "prompt" if column == "answers" else "instruction"}
            line = mapping_line("rated answers", names)
            return f"{line} `pairs: {{rating: NAME}}` then says by which of the ratings a pair is chosen."
        if not all(isinstance(answer, str) for answer in answers):
            continue
        for other, ratings in lists.items():
            numbers = all(isinstance(r, int | float) and not isinstance(r, bool) for r in ratings)
            if len(ratings) == len(answers) and numbers:
                line = mapping_line("rated answers", {column: "generations", other: "ratings"})
                return f"{line} The prompt is 'instruction' then, and `pairs: {{rating: ratings}}` chooses."
    return ""
