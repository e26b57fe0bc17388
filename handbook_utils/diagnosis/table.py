"""Records of a log as columns: what was logged under each name, and in which record."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# "1/100" (a step of all steps), "1.00%", "1,234.5": numbers as tools print them
_FRACTION = re.compile(r"^\s*([\d.]+)\s*/\s*[\d.]+\s*$")
_PERCENT = re.compile(r"^\s*([-+\d.eE]+)\s*%\s*$")
_UNKNOWN_WORDS = {"", "-", "no log", "none", "null", "n/a", "na"}


def to_number(text: str) -> float | None:
    """A number as a tool prints it; None where the text is none.

    >>> to_number("1/100"), to_number("2.5%"), to_number("nan") != to_number("nan"), to_number("No log")
    (1.0, 2.5, True, None)
    """
    if text.strip().lower() in _UNKNOWN_WORDS:
        return None
    try:
        return float(text.replace(",", "")) if "_" not in text else None
    except ValueError:
        found = _FRACTION.match(text) or _PERCENT.match(text)
    if found is None:
        return None
    try:
        return float(found[1])
    except ValueError:
        return None


class _Block:
    """Records of the same names: numbers by column, and which record each row is."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.rows = array("q")
        self.columns = [array("d") for _ in names]

    def add(self, row: int, values: Iterable[Any]) -> bool:
        """Add one row; False, and nothing is added, where a value is no number."""
        try:
            for column, value in zip(self.columns, values, strict=True):
                column.append(value)
        except (TypeError, OverflowError):
            size = len(self.rows)
            for column in self.columns:
                del column[size:]
            return False
        self.rows.append(row)
        return True

    def extend(self, rows: Sequence[int], columns: Iterable[Iterable[Any]]) -> bool:
        """Add rows by column; False, and nothing is added, where a value is no number."""
        size = len(self.rows)
        try:
            for column, values in zip(self.columns, columns, strict=False):
                column.extend(values)
        except (TypeError, OverflowError):
            for column in self.columns:
                del column[size:]
            return False
        self.rows.extend(rows)
        return True


class Table:
    """Records put in one by one, read out by column. What is no number is left out, and counted by name.

    Attributes:
        records: how many records were added.
        texts: names under which something else than a number stood.
        remarks: what a reader noticed and left out, in words.

    >>> table = Table()
    >>> table.add({"step": 1, "loss": 2.5}); table.add({"step": 2, "loss": float("nan"), "time": "0:01"})
    >>> [values.tolist() for values in table.column("loss")]
    [[0, 1], [2.5, nan]]
    """

    def __init__(self) -> None:
        self.records = 0
        self.texts: set[str] = set()
        self.remarks: list[str] = []
        self._blocks: dict[tuple[str, ...], _Block] = {}
        # names as they came -> those that are numbers, and how to pick them
        self._shapes: dict[
            tuple[str, ...], tuple[_Block, Callable[[Mapping[str, Any]], Iterable[Any]] | None]
        ] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one record: numbers by name. None is read as NaN, for which JSON has no word."""
        names = tuple(record)
        known = self._shapes.get(names)
        if known is not None:
            block, pick = known
            values = record.values() if pick is None else pick(record)
            if block.add(self.records, values):
                self.records += 1
                return
        self._add_slowly(names, record)
        self.records += 1

    def add_all(self, records: Sequence[dict[str, Any]]) -> None:
        """Add records, those of like names at once: a long log's way in."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for place, names in enumerate(map(tuple, records)):
            groups.setdefault(names, []).append(place)
        first = self.records
        for names, places in groups.items():
            if names not in self._shapes:
                self.records = first + places[0]
                self._add_slowly(names, records[places[0]])
                places = places[1:]
            block, pick = self._shapes[names]
            chosen = [records[place] for place in places]
            columns = zip(*map(pick or dict.values, chosen), strict=True)
            if not block.extend([first + place for place in places], columns):
                for place in places:
                    self.records = first + place
                    self.add(records[place])
        self.records = first + len(records)

    def add_columns(self, names: tuple[str, ...], columns: Sequence[Sequence[float]]) -> None:
        """Add records of the same names, given by column: all of numbers."""
        block = self._blocks.setdefault(names, _Block(names))
        size = len(columns[0]) if columns else 0
        block.extend(range(self.records, self.records + size), columns)
        self.records += size

    def _add_slowly(self, names: tuple[str, ...], record: Mapping[str, Any]) -> None:
        numbers: dict[str, float] = {}
        plain = True
        for name, value in record.items():
            if isinstance(value, str):
                found = to_number(value)
                plain = False
            elif value is None:
                found, plain = math.nan, False
            elif isinstance(value, int | float):
                found = _as_float(value)
            else:
                found = None
            if found is None:
                self.texts.add(name)
            else:
                numbers[name] = found
        kept = tuple(numbers)
        block = self._blocks.setdefault(kept, _Block(kept))
        block.add(self.records, numbers.values())
        if plain or names not in self._shapes:
            self._shapes[names] = (block, None if kept == names else _picker(kept))

    def names(self) -> list[str]:
        """All names that hold a number, in the order in which they came."""
        return list(dict.fromkeys(name for block in self._blocks.values() for name in block.names))

    def column(self, name: str) -> tuple[Rows, Floats]:
        """What stood under a name: (n,) numbers of the records, ascending, and (n,) values."""
        rows, values = [], []
        for block in self._blocks.values():
            if name in block.names:
                rows.append(np.frombuffer(block.rows, dtype=np.int64))
                values.append(np.frombuffer(block.columns[block.names.index(name)], dtype=np.float64))
        if not rows:
            return np.empty(0, dtype=np.int64), np.empty(0)
        all_rows, all_values = np.concatenate(rows), np.concatenate(values)
        order = np.argsort(all_rows, kind="stable")
        return all_rows[order], all_values[order]

    def remark(self, text: str) -> None:
        """Say something that was noticed, once."""
        if text not in self.remarks:
            self.remarks.append(text)


def _picker(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Iterable[Any]]:
    """A function that takes the values of some names out of a record, always as a tuple."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda record: tuple(record[name] for name in names)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond a double
        return math.inf if value > 0 else -math.inf
