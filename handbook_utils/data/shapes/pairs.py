"""Rows with rated or compared answers as rows of pairs, each to be read as prompt, chosen and rejected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from handbook_utils.data.known_formats import FORMATS, Row
from handbook_utils.data.row_reader import RowReader
from handbook_utils.data.shapes.ratings import (
    ANSWER_LISTS,
    COMPARED,
    GATHERED,
    choose_pairs,
    compared_answers,
    rated_answers,
    rating_gap,
)
from handbook_utils.data.shapes.whole_rows import VOTES
from handbook_utils.errors import DataError
from handbook_utils.schema.sections import PairsSection

# formats whose rows hold rated answers, so that a recipe has to say how a pair is made of them
RATED = tuple(name for name, known in FORMATS.items() if known.pairs)


def as_pairs(reader: RowReader, format: str, pairs: PairsSection | None) -> list[RowReader]:
    """The pairs of a row; [] where its answers are a tie.

    Raises:
        DataError: the recipe does not say how a pair is chosen, says it where there is no choice, or a rating
            cannot be read.
    """
    try:
        if format in RATED:
            return _of_rated(reader, format, pairs)
        return _of_two(reader, format, pairs)
    except DataError:
        raise
    except RecursionError:
        raise DataError(f"{reader.place} is nested too deeply.") from None
    except ValueError as error:
        raise DataError(f"{reader.place} {error}") from None


def _of_rated(reader: RowReader, format: str, pairs: PairsSection | None) -> list[RowReader]:
    if format == "rated_rows" and GATHERED not in reader.row:
        raise reader.error(
            "response",
            "is one of several answers to a prompt, which a stream cannot bring together. "
            "Leave out `streaming`.",
        )
    answers = rated_answers(reader.row)
    # whichever rating is chosen by, the others are no columns that somebody forgot
    reader.read |= {*ANSWER_LISTS, *(name for answer in answers for name in answer.ratings)}
    return [_pair(reader, *sides) for sides in choose_pairs(answers, pairs)]


def _of_two(reader: RowReader, format: str, pairs: PairsSection | None) -> list[RowReader]:
    """The pair of two answers that somebody has compared, or the row itself, which is a pair."""
    if pairs is not None and (pairs.rating is not None or pairs.rejected != "worst"):
        raise DataError(
            f"{reader.place} holds two answers, so of `pairs` only `margin` counts. "
            "Leave out `rating` and `rejected`."
        )
    known = FORMATS[format]
    columns = {known.names.get(column, column) for column in known.columns}
    is_voted = format in VOTES
    if column := "preference" if is_voted else next((name for name in COMPARED if name in columns), None):
        reader.value(column)
        margin = 0.0 if pairs is None else pairs.margin
        sides = compared_answers(reader.row, column, margin, named=reader.their_name(column))
        return [] if sides is None else [_pair(reader, *map(reader.value, sides))]
    if pairs is None:
        return [reader]
    gap = rating_gap(reader.row)
    if gap is None:
        raise DataError(
            f"{reader.place} is a pair without ratings, so no `margin` can be kept. Leave out `pairs`."
        )
    return [reader] if gap > pairs.margin else []


def _pair(reader: RowReader, chosen: Any, rejected: Any) -> RowReader:
    return reader.over({**reader.row, "chosen": chosen, "rejected": rejected})


def gather_answers(
    first: int, rows: Iterable[Row], names: Mapping[str, str], *, name: str
) -> tuple[list[int], list[dict[str, Any]]]:
    """Rows that hold one rated answer each, as one row for each prompt with all its answers.

    Args:
        first: number of the first row.
        rows: all of a source.
        names: their column names to ours.
        name: what the rows came from.
    Raises:
        DataError: a row lacks the prompt.
    Returns:
        For each prompt the number of its first row, and its row.
    """
    prompts: dict[str, tuple[int, dict[str, Any]]] = {}
    theirs = next((column for column, ours in names.items() if ours == "prompt"), "prompt")
    for number, row in enumerate(rows, start=first):
        reader = RowReader(row, f"{name}: row {number}")
        prompt = repr(reader.value(theirs))
        _, gathered = prompts.setdefault(prompt, (number, {**row, GATHERED: []}))
        gathered[GATHERED].append(
            {names.get(column, column): value for column, value in row.items() if column != theirs}
        )
    return [number for number, _ in prompts.values()], [row for _, row in prompts.values()]
