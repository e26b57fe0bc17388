"""CSV logs: a row per record (trackers' histories), a column per run, or a row per value."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

from handbook_utils.diagnosis.keys import NAMES, known_as, plain_name
from handbook_utils.diagnosis.reading.long import COLUMNS, add_long, places_of_long
from handbook_utils.diagnosis.table import Table, to_number
from handbook_utils.errors import DataError

# TensorBoard's export of one scalar; its tag is in the file's name: run-RUN-tag-TAG.csv
TENSORBOARD = ("wall time", "step", "value")
# numbers with a comma for the point, and commas between thousands, which only look alike
_COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?|[-+]?\d{1,3}(?:\.\d{3})+,\d+")
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+")
# rows that say which of the two a file has
LOOKED_AT = 200
# the columns that a chart's export adds to each curve
_BOUNDS = re.compile(r"__(?:MIN|MAX)$")
# rows converted at once where all their cells are numbers
STRETCH = 2048
_TAG = re.compile(r"tag-(.+)\.csv$")


def is_delimited(head: str) -> str | None:
    """The delimiter of a text whose first line names columns of a log; None: it is no such table."""
    lines = [line for line in head.splitlines()[:3] if line.strip()]
    if len(lines) < 1 or lines[0].lstrip().startswith(("{", "|", "<")):
        return None
    if len(lines) > 1 and _is_column(lines[0].strip()) and to_number(lines[1]) is not None:
        return ","  # one column alone
    for delimiter in (",", "\t", ";"):
        names = next(csv.reader([lines[0]], delimiter=delimiter))
        if len(names) < 2 or not any(_is_column(name) for name in names):
            continue
        if all(to_number(name) is None for name in names):
            return delimiter
    return None


def _is_column(name: str) -> bool:
    lowered = [word.lower() for word in (name, name.rpartition(" - ")[2])]
    return any(known_as([word]) or word in (*TENSORBOARD, *COLUMNS["name"]) for word in lowered)


def tag_of(name: str) -> str:
    """The tag in the name of a TensorBoard export; "" where there is none.

    >>> tag_of("run-sft-tag-train_loss.csv")
    'train/loss'
    >>> tag_of("run-grpo-tag-train_rewards_format_mean.csv")
    'train/rewards/format/mean'
    """
    found = _TAG.search(name)
    if found is None:
        return ""
    # TensorBoard writes "/" as "_" in file names
    tag = found[1]
    whole = {known.replace("/", "_"): known for theirs in NAMES.values() for known in theirs}
    for prefix in ("train", "eval", ""):
        rest = tag.removeprefix(f"{prefix}_") if prefix else tag
        if prefix and rest == tag:
            continue
        if (known := whole.get(rest)) is not None:
            return f"{prefix}/{known}" if prefix else known
    tag = re.sub(r"^(train|eval)_", r"\1/", tag)
    head, part, rest = tag.partition("rewards_")
    return (
        head + "rewards/" + re.sub(r"_(mean|std)$", r"/\1", rest) if part and head in ("", "train/") else tag
    )


def read_delimited(table: Table, file: Path, delimiter: str, tag: str) -> None:
    """Add the rows of a CSV file; `tag` is what its column "Value" holds, from the file's name."""
    with _huge_cells(), file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        rows: Iterator[list[str]] = csv.reader(stream, delimiter=delimiter)
        try:
            names = [name.strip() for name in next(rows)]
            lowered = [name.lower() for name in names]
            rows = _with_points(rows, delimiter)
            if places := places_of_long(lowered):
                add_long(table, rows, places)
            elif set(TENSORBOARD) <= set(lowered):
                if not tag:
                    raise DataError(
                        f"{file}: a TensorBoard export says in its name what it holds, as in "
                        "run-RUN-tag-train_loss.csv. Rename it, or give the event file."
                    )
                _read_wide(table, rows, [{"value": tag, "wall time": ""}.get(n, n) for n in lowered])
            else:
                _read_wide(table, rows, _one_run(table, names))
        except csv.Error as error:
            table.remark(f"the CSV breaks off: {error}")


def _with_points(rows: Iterator[list[str]], delimiter: str) -> Iterator[list[str]]:
    """Rows whose numbers have a point, where the file writes a comma for it, as in German."""
    first = list(islice(rows, LOOKED_AT))
    cells = [cell for row in first for cell in row if _COMMA.fullmatch(cell)]
    if not any(delimiter == ";" or not _THOUSANDS.fullmatch(cell) for cell in cells):
        yield from first
        yield from rows
        return
    for row in chain(first, rows):
        yield [cell.replace(".", "").replace(",", ".") if _COMMA.fullmatch(cell) else cell for cell in row]


@contextmanager
def _huge_cells() -> Iterator[None]:
    """Cells longer than csv's limit, as of tables logged as text, are read (and left out as text)."""
    before = csv.field_size_limit(1 << 28)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _one_run(table: Table, names: Sequence[str]) -> list[str]:
    """Names of columns without the run's, "" for those left out: bounds, and other runs than the first."""
    found: list[str] = []
    first = None
    others: set[str] = set()
    for name in names:
        run, mark, metric = name.rpartition(" - ")
        if _BOUNDS.search(name) or (mark and metric in ("_step", "_runtime")):
            found.append("")
        elif not mark:
            found.append(name)
        else:
            first = run if first is None else first
            others |= {run} - {first}
            found.append(metric if run == first else "")
    if others:
        table.remark(f"columns of {len(others) + 1} runs in one file; read is '{first}'")
    return _best_steps(found)


def _best_steps(names: list[str]) -> list[str]:
    """A tracker's own counter of records gives way to the trainer's step."""
    plain = {plain_name(name) for name in names}
    real = plain & {"global_step", "current_steps", "training/global_step"}
    return ["" if real and plain_name(name) in ("step", "_step") else name for name in names]


def _read_wide(table: Table, rows: Iterable[list[str]], names: Sequence[str]) -> None:
    places = [(place, name) for place, name in enumerate(names) if name]
    ragged = 0
    for row in _left_over(table, rows, places, len(names)):
        record: dict[str, float] = {}
        for place, name in places:
            if place < len(row) and (cell := row[place]):
                try:
                    value: float | None = float(cell)
                except ValueError:
                    value = to_number(cell)
                    if value is None:
                        table.texts.add(name)
                        continue
                record[name] = value if value is not None else math.nan
        ragged += bool(row) and len(row) < len(names)
        if record:
            table.add(record)
    if ragged:
        table.remark(f"{ragged} rows have fewer cells than the header")


def _left_over(
    table: Table, rows: Iterable[list[str]], places: Sequence[tuple[int, str]], width: int
) -> Iterator[list[str]]:
    """Add stretches of rows that are all numbers at once, and give back the others, in order."""
    source = iter(rows)
    while stretch := list(islice(source, STRETCH)):
        try:
            cells = list(zip(*stretch, strict=True))
            columns = [list(map(float, cells[place])) for place, _ in places] if len(cells) == width else []
        except ValueError:
            columns = []
        if columns:
            table.add_columns(tuple(name for _, name in places), columns)
        else:
            yield from stretch
