"""JSON logs: one record per line, or a document with `log_history` (transformers) or a list of records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from handbook_utils.diagnosis.keys import known_as
from handbook_utils.diagnosis.reading.long import add_long, places_of_long
from handbook_utils.diagnosis.table import Table
from handbook_utils.errors import DataError

# where a document of one object keeps its records
LISTS = ("log_history", "history", "logs", "metrics", "records", "data")
# read at a time: a record lies whole in what was read, or is completed by the next piece
CHUNK = 1 << 20
LONGEST_KEY = 64
# a record longer than this is none
LONGEST_RECORD = 16 * CHUNK
# a document of columns is read whole
MOST_COLUMNS = 1 << 26


def read_json_lines(table: Table, file: Path) -> None:
    """Add each line's object; lines that are none, such as one that a kill cut short, are counted."""
    broken = 0
    with file.open("r", encoding="utf-8-sig", errors="replace") as stream:
        while lines := stream.readlines(CHUNK):
            records = _records(lines)
            broken += len(lines) - len(records) - sum(not line.strip() for line in lines)
            add_objects(table, records)
    if broken:
        table.remark(f"{broken} {'line is' if broken == 1 else 'lines are'} no JSON object and left out")


def _records(lines: list[str]) -> list[dict[str, Any]]:
    """The objects of lines, decoded at once where all are whole."""
    try:
        found = json.loads(f"[{','.join(lines)}]")
        if len(found) == len(lines):
            return [record for record in found if isinstance(record, dict)]
    except (ValueError, RecursionError):
        pass
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [record for record in found if isinstance(record, dict)]


def add_objects(table: Table, records: list[dict[str, Any]]) -> None:
    """Add records, whose numbers may lie a level deeper, or single values, each with its name."""
    if records and (places := places_of_long([*records[0]])):
        rows = [[record.get(name) for name in records[0]] for record in records]
        add_long(table, rows, places)
    else:
        table.add_all([_flat(record) if dict in map(type, record.values()) else record for record in records])


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose numbers lie one level down, under the part of the run or a name that says nothing."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= value if name.lower() in LISTS else {f"{name}/{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    return flat


def read_columns(table: Table, file: Path) -> bool:
    """Add a document that is a list of numbers for each name, ClearML's with x and y; False: it is none."""
    if file.stat().st_size > MOST_COLUMNS:
        return False
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return False
    columns = dict(_columns("", document))
    counted = {name: (x, y) for name, (x, y) in columns.items() if x is not None}
    plain = {name: y for name, (x, y) in columns.items() if x is None and len(y) > 1}
    if not known_as([*counted, *plain]).keys() - {"step", "epoch"}:
        return False
    if counted:
        rows = [
            (name, value, at) for name, (x, y) in counted.items() for at, value in zip(x, y, strict=False)
        ]
        add_long(table, rows, {"name": 0, "value": 1, "step": 2})
    else:
        longest = max(map(len, plain.values()))
        table.add_all([{n: y[i] for n, y in plain.items() if i < len(y)} for i in range(longest)])
    return True


def _columns(name: str, value: Any) -> Iterator[tuple[str, tuple[list[Any] | None, list[Any]]]]:
    """(name, (steps or None, numbers)) of all lists of numbers in a document."""
    if isinstance(value, dict) and isinstance(value.get("x"), list) and isinstance(value.get("y"), list):
        yield str(name or value.get("name")), (value["x"], value["y"])
    elif isinstance(value, dict):
        for key, inner in value.items():
            # ClearML's series lie below their title: {"loss": {"train": {...}}}
            is_series = isinstance(inner, dict) and "x" in inner
            under = {"train": name}.get(key, f"{key}/{name}") if is_series and name else key
            yield from _columns(under, inner)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for item in value:
            if "x" in item:
                yield from _columns(str(item.get("name", "")), item)
    elif isinstance(value, list) and all(item is None or isinstance(item, int | float) for item in value):
        yield name, (None, value)


def read_history(table: Table, file: Path) -> None:
    """Add the records of a document, decoded one by one: also of one that breaks off.

    Raises:
        DataError: the document is JSON, but holds no list of records under a known name.
    """
    before = table.records
    objects = _objects(file)
    while records := list(islice(objects, 4096)):
        add_objects(table, records)
    if table.records > before:
        return
    start = file.read_text(encoding="utf-8", errors="replace")[:4096]
    if _is_known(start):
        table.remark("log_history is empty")
        return
    raise DataError(
        f"{file}: no list of records in this JSON. Expected a list of objects, or one under "
        f"{', '.join(map(repr, LISTS))}. For a model folder, give its trainer_state.json."
    )


def _is_known(start: str) -> bool:
    return re.search(r'"(?:' + "|".join(LISTS) + r')"\s*:\s*\[\s*\]', start) is not None or bool(
        re.match(r"\s*\[\s*\]\s*$", start)
    )


_OPENS = re.compile(r'"(?:' + "|".join(LISTS) + r')"\s*:\s*\[')


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of the document's list of records."""
    decode = json.JSONDecoder().raw_decode
    separator = re.compile(r"[\s,]*")
    with file.open("r", encoding="utf-8-sig", errors="replace") as stream:
        text = stream.read(CHUNK)
        found = re.match(r"\s*\[", text) or _OPENS.search(text)
        while found is None:
            if not (more := stream.read(CHUNK)):
                return
            text = text[-LONGEST_KEY:] + more  # a key may lie across the seam
            found = _OPENS.search(text)
        place = found.end()
        while True:
            found = separator.match(text, place)
            place = found.end() if found else place
            if text[place : place + 1] == "]":
                return
            try:
                if text[place : place + 1] not in ("{", ""):
                    return
                record, place = decode(text, place)
            except (ValueError, RecursionError):
                more = stream.read(CHUNK)
                if not more or len(text) - place > LONGEST_RECORD:
                    return
                text, place = text[place:] + more, 0
                continue
            yield record
            if place > CHUNK:
                text, place = text[place:], 0
