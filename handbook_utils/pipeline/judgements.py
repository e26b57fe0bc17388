"""A judge's rows from a file: ours, or AlpacaEval's annotations."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

import numpy as np

from handbook_utils.data.known_formats import Row
from handbook_utils.data.sources import Origin, read_rows
from handbook_utils.data.split import parse_split
from handbook_utils.errors import DataError, suggest
from handbook_utils.evaluation.judged.summary import Judgements

SIDES = {"a": 0.0, "b": 1.0, "tie": 0.5, "draw": 0.5}
ALPACA_EVAL = {"output_1", "output_2", "preference"}
VERSIONS = ("prompt_version", "annotator")
PROMPTS = ("prompt_id", "prompt", "instruction")
# columns that have a meaning of their own, so that none of them is a misspelling
OTHERS = {*VERSIONS, *PROMPTS, "preference", "first", "seed", "label", "output_1", "output_2"}


def read_judgements(name: str, *, split: str = "train") -> Judgements:
    """A judge's rows, of A (the baseline) against B.

    Ours have `prompt_id` (or `prompt`) and `preference` ("a", "b", "tie", or a number from 0 for A to 1
    for B), and if known `answer_a` and `answer_b` (or `length_a` and `length_b`), `first` ("a" or "b"),
    `seed` and `label` (a person's preference). AlpacaEval's annotations have `instruction`, `output_1` (A),
    `output_2` (B) and a `preference` from 1 to 2, 0 for a tie. Lengths are counted in characters, as
    AlpacaEval does.

    Args:
        name: a file, folder or hub name.
        split: with an optional slice, such as train[:200].
    Raises:
        DataError: a column is missing, a value cannot be read (its row named), or rows were judged by
            different versions of the judge's prompt.
    """
    first, rows = read_rows(Origin(name, parse_split(split)))
    numbered = list(enumerate(rows, start=first))
    is_alpaca = set(rows[0]) >= ALPACA_EVAL
    _check_columns(name, rows[0])
    _check_versions(name, rows)
    read = _alpaca_preference if is_alpaca else _preference
    lengths = _lengths(name, numbered, ("output_1", "output_2") if is_alpaca else ("answer_a", "answer_b"))
    return Judgements(
        prompt_ids=[_prompt_id(name, number, row) for number, row in numbered],
        preferences=np.array([read(name, number, row, "preference") for number, row in numbered]),
        lengths_a=None if lengths is None else lengths[0],
        lengths_b=None if lengths is None else lengths[1],
        b_first=_orders(name, numbered),
        seeds=_seeds(name, numbered),
        labels=_labels(name, numbered),
    )


def _check_columns(name: str, row: Row) -> None:
    """Name all columns that are missing, each with the one that looks like it."""
    missing = [] if "preference" in row else ["preference"]
    if not any(column in row for column in PROMPTS):
        missing.append("prompt_id")
    if not missing:
        return
    unknown = [str(column) for column in row if column not in OTHERS]
    said = []
    for column in missing:
        near = difflib.get_close_matches(column, unknown, n=1)
        said.append(f"no column '{column}'" + (f"; '{near[0]}' looks like it: rename it" if near else ""))
    columns = ", ".join(f"'{column}'" for column in list(row)[:20])
    raise DataError(f"{name}: {'. '.join(said)}. The columns are: {columns}.")


def _check_versions(name: str, rows: Sequence[Row]) -> None:
    """Refuse rows that were judged by different versions of a prompt, which measure different things."""
    for column in VERSIONS:
        found = list(dict.fromkeys(str(row.get(column)) for row in rows))
        if len(found) > 1:
            raise DataError(
                f"{name}: rows of {len(found)} versions of the judge ('{column}' is '{found[0]}' and "
                f"'{found[1]}'). "
                "Judge all rows by one version, or split the file."
            )


def _prompt_id(name: str, number: int, row: Row) -> str:
    for column in PROMPTS:
        if row.get(column) is not None:
            return str(row[column])
    raise DataError(
        f"{name}: row {number} has no 'prompt_id' or 'prompt'. {suggest('prompt_id', map(str, row))}"
    )


def _preference(name: str, number: int, row: Row, column: str) -> float:
    value = row.get(column)
    if isinstance(value, str):
        if value.strip().lower() in SIDES:
            return SIDES[value.strip().lower()]
        hint = suggest(value, SIDES)
        raise DataError(f"{name}: row {number} has the {column} '{value}'. {hint}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(
            f'{name}: row {number} has the {column} {value!r}. Write "a", "b", "tie", or a number from 0 '
            "(A) to 1 (B)."
        )
    return float(value)


def _alpaca_preference(name: str, number: int, row: Row, column: str) -> float:
    value = row.get(column)
    if value == 0:
        return 0.5
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 2:
        raise DataError(
            f"{name}: row {number} has the {column} {value!r}. AlpacaEval writes 1 (output_1) to 2 "
            "(output_2), or 0."
        )
    return float(value) - 1


def _lengths(
    name: str, rows: Sequence[tuple[int, Row]], texts: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray] | None:
    given = ("length_a", "length_b")
    first = rows[0][1]
    columns = next((pair for pair in (given, texts) if pair[0] in first and pair[1] in first), None)
    if columns is None:
        return None
    sides = []
    for column in columns:
        values = [_length(name, number, row, column) for number, row in rows]
        sides.append(np.array(values, dtype=np.float64))
    return sides[0], sides[1]


def _length(name: str, number: int, row: Row, column: str) -> float:
    value = row.get(column)
    if isinstance(value, str):
        return float(len(value))
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    raise DataError(
        f"{name}: row {number} has {value!r} for '{column}'. Write the answer's text or its length."
    )


def _orders(name: str, rows: Sequence[tuple[int, Row]]) -> np.ndarray | None:
    if "first" not in rows[0][1]:
        return None
    found = []
    for number, row in rows:
        value = str(row.get("first")).strip().lower()
        if value not in ("a", "b"):
            raise DataError(f'{name}: row {number} has \'first\' {row.get("first")!r}. Write "a" or "b".')
        found.append(float(value == "b"))
    return np.array(found)


def _seeds(name: str, rows: Sequence[tuple[int, Row]]) -> list[str] | None:
    if "seed" not in rows[0][1]:
        return None
    for number, row in rows:
        if row.get("seed") is None:
            raise DataError(f"{name}: row {number} has no 'seed', and other rows have one.")
    return [str(row["seed"]) for _, row in rows]


def _labels(name: str, rows: Sequence[tuple[int, Row]]) -> np.ndarray | None:
    if not any(row.get("label") is not None for _, row in rows):
        return None
    return np.array(
        [
            math.nan if row.get("label") is None else _preference(name, number, row, "label")
            for number, row in rows
        ]
    )
