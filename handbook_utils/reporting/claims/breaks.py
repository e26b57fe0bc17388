"""Ways to break a stage's tables on purpose. Pure functions from table to table, for sabotage."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from handbook_utils.errors import DataError, suggest

Break = Callable[[pa.Table], pa.Table]


def swap_chosen_and_rejected(table: pa.Table) -> pa.Table:
    """Give every pair the other label; the gold columns follow their answers.

    >>> swap_chosen_and_rejected(pa.table({"chosen": ["a"], "rejected": ["b"]})).to_pylist()
    [{'chosen': 'b', 'rejected': 'a'}]
    """
    swapped = swap("chosen", "rejected")(table)
    return swap("gold_chosen", "gold_rejected")(swapped) if "gold_chosen" in table.column_names else swapped


def swap(one: str, other: str) -> Break:
    """Give two columns each other's values."""
    return lambda table: _with(_with(table, one, _column(table, other)), other, _column(table, one))


def shift(name: str) -> Break:
    """Give each row the value of the row before it, as an index off by one would."""

    def apply(table: pa.Table) -> pa.Table:
        values = _column(table, name).to_pylist()
        return _with(table, name, pa.array(values[-1:] + values[:-1], type=table.column(name).type))

    return apply


def negate(name: str) -> Break:
    """Turn a score's sign, as a forgotten minus would."""
    return lambda table: _with(table, name, pc.negate(_column(table, name)))


def constant(name: str, value: float = 0.0) -> Break:
    """Give all rows one score, so that selection by it selects nothing."""

    def apply(table: pa.Table) -> pa.Table:
        column = _column(table, name)
        return _with(table, name, pa.array([value] * len(column), type=column.type))

    return apply


def replace(name: str, other: str) -> Break:
    """Put another column's values in a column's place."""
    return lambda table: _with(table, name, _column(table, other))


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise DataError(f"no column '{name}' to break. {suggest(name, table.column_names)}")
    return table.column(name)


def _with(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)
