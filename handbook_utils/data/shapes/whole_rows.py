"""Rows that say in several columns of their own what ours say in one: each rewritten as a row of ours.

Formats: https://huggingface.co/datasets/glaiveai/glaive-function-calling-v2,
https://huggingface.co/datasets/stanfordnlp/SHP,
https://huggingface.co/datasets/lmarena-ai/arena-human-preference-55k and
https://huggingface.co/datasets/openai/summarize_from_feedback, whose prompts are worded as in
https://github.com/openai/summarize-from-feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from handbook_utils.data.row_reader import RowReader
from handbook_utils.data.shapes.glaive import glaive_system, glaive_turns
from handbook_utils.data.shapes.messages import in_turn
from handbook_utils.data.shapes.ratings import JUDGED, number_of
from handbook_utils.data.shapes.values import list_in_text, shown

_WINNERS = {"winner_model_a": "a", "winner_model_b": "b", "winner_tie": "tie"}


def rewritten(reader: RowReader, format: str) -> RowReader:
    """A reader of the same row in columns of ours; the reader itself where they are ours already.

    Raises:
        DataError: a column does not hold what the format says.
    """
    rewrite = _TALKS.get(format) or VOTES.get(format)
    return reader if rewrite is None else rewrite(reader)


def _glaive(reader: RowReader) -> RowReader:
    """Messages and tools that are held as text."""
    system, tools = reader.shaped("system", glaive_system, reader.optional_text("system"))
    turns = reader.shaped("chat", glaive_turns, reader.text("chat"))
    begin = [{"role": "system", "content": system}] if system else []
    rest = _without(reader, "chat", "system")
    # tools in a column of their own have to be the same
    return reader.over(rest | {"messages": [*begin, *turns]} | ({"functions": tools} if tools else {}))


def _shp(reader: RowReader) -> RowReader:
    """Two comments; a label of 1 means that the first is preferred, the other way round than in our rows."""
    is_first = reader.flag("labels")
    first, second = (number_of(reader.row.get(name)) for name in ("score_A", "score_B"))
    if first is not None and second is not None:
        reader.read |= {"score_A", "score_B"}
        if first != second and (first > second) != is_first:
            raise reader.error(
                "labels",
                f"prefers the {'first' if is_first else 'second'} answer (in SHP 1 means the first), and the "
                f"other has the higher score ({first:g} and {second:g}). Mend the row, or name the columns "
                "'answer_a', 'answer_b' and 'preference'.",
            )
    return reader.over(_without(reader, "labels") | {"preference": "a" if is_first else "b"})


def _arena_votes(reader: RowReader) -> RowReader:
    """Lists of what was asked and of what each model answered, and one column for each outcome."""
    said = {name: reader.flag(name) for name in _WINNERS}
    if sum(said.values()) != 1:
        raise reader.error(
            next(iter(_WINNERS)),
            f"of {', '.join(map(repr, said))} exactly one has to be 1, found {shown(said)}.",
        )
    asked = _texts(reader, "prompt")
    sides = {}
    for side in JUDGED:
        answers = _texts(reader, side)
        if len(answers) != len(asked):
            raise reader.error(side, f"has {len(answers)} answers to the {len(asked)} turns of 'prompt'.")
        sides[side] = in_turn(list(chain.from_iterable(zip(asked, answers, strict=True))))
    verdict = next(word for name, word in _WINNERS.items() if said[name])
    return reader.over(_without(reader, "prompt", *_WINNERS) | sides | {"preference": verdict})


def _summaries(reader: RowReader) -> RowReader:
    """A post or an article, two summaries of it, and the place of the better one."""
    info = reader.value("info")
    given = reader.value("summaries")
    choice = number_of(reader.value("choice"))
    if not isinstance(info, Mapping):
        raise reader.error("info", f"expected an object with the post, found {shown(info)}.")
    is_pair = isinstance(given, list | tuple) and len(given) == 2
    texts = [each.get("text") if isinstance(each, Mapping) else None for each in given] if is_pair else []
    if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise reader.error("summaries", f"expected two objects with a 'text' each, found {shown(given)}.")
    if choice not in (0, 1):
        raise reader.error("choice", f"expected 0 or 1, found {shown(reader.row['choice'])}.")
    if info.get("article"):
        prompt = f"Article:\n\n{info['article']}\n\nTL;DR:"
    elif info.get("post"):
        prompt = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\nPOST: {info['post']}"
        prompt += "\n\nTL;DR:"
    else:
        raise reader.error("info", "has neither a 'post' nor an 'article' that was summarised.")
    sides = dict(zip(JUDGED, (str(text).strip() for text in texts), strict=True))
    verdict = {"prompt": prompt, "preference": "b" if choice else "a"}
    return reader.over(_without(reader, "info", "summaries", "choice") | sides | verdict)


def _texts(reader: RowReader, column: str) -> list[str]:
    texts = list_in_text(reader.value(column))
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        raise reader.error(column, f"expected a list of texts, one for each turn, found {shown(texts)}.")
    return list(texts)


def _without(reader: RowReader, *columns: str) -> dict[str, Any]:
    return {column: value for column, value in reader.row.items() if column not in columns}


# formats of two answers and what somebody said of them, which become `answer_a`, `answer_b` and `preference`
VOTES: dict[str, Callable[[RowReader], RowReader]] = {
    "shp": _shp,
    "arena_votes": _arena_votes,
    "summaries": _summaries,
}
_TALKS: dict[str, Callable[[RowReader], RowReader]] = {"glaive": _glaive}
