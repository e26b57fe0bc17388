"""Splits with slices: "train", "train[:200]", "test[200:400]", "train[:10%]"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from handbook_utils.errors import DataError

_SPLIT = re.compile(r"(?P<base>[\w.-]+)(\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?")


@dataclass(frozen=True)
class Split:
    """A split's name and the part of it that is wanted.

    Attributes:
        base: the split, such as "train".
        start: first row, "0" where not given; a number of rows or a percentage ("10%").
        stop: the row after the last one; None for the end.
    """

    base: str
    start: str = "0"
    stop: str | None = None

    def bounds(self, rows: int, *, name: str) -> tuple[int, int]:
        """Return (first, end) for a dataset of that many rows.

        Raises:
            DataError: the slice is empty, or goes past the end: fewer rows than asked for would pass unseen.
        """
        first = _rows(self.start, rows)
        end = rows if self.stop is None else _rows(self.stop, rows)
        if end > rows or first >= end:
            raise DataError(
                f"{name}: '{self}' asks for rows {first} to {end}, but '{self.base}' has {rows}. "
                "Ask for a part that is there."
            )
        return first, end

    @property
    def needed(self) -> int | None:
        """How many rows have to be made to serve the slice; None for all of them."""
        return int(self.stop) if self.stop is not None and self.stop.isdigit() else None

    def __str__(self) -> str:
        is_whole = self.start == "0" and self.stop is None
        return self.base if is_whole else f"{self.base}[{self.start}:{self.stop or ''}]"


def parse_split(split: str) -> Split:
    """Read a split with an optional slice.

    >>> parse_split("train[:200]").bounds(1000, name="data")
    (0, 200)
    >>> parse_split("train[90%:]").bounds(1000, name="data")
    (900, 1000)
    """
    matched = _SPLIT.fullmatch(split.strip())
    if matched is None:
        raise DataError(
            f"split '{split}': write a name and an optional slice, such as train[:200] or test[10%:]."
        )
    start, stop = matched["start"] or "0", matched["stop"]
    if stop is not None and start.endswith("%") == stop.endswith("%"):
        first, end = int(start.rstrip("%")), int(stop.rstrip("%"))
        if first >= end:
            raise DataError(
                f"split '{split}' holds no row: it begins with row {start} and ends before row {stop}. "
                f"Write the smaller number first: {matched['base']}[FIRST:END]."
            )
    return Split(matched["base"], start, stop)


def _rows(bound: str, rows: int) -> int:
    return int(bound[:-1]) * rows // 100 if bound.endswith("%") else int(bound)
