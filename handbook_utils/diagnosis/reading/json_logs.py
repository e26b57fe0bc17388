"""JSON logs: one record per line, or a document with `log_history` (transformers) or a list of records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from handbook_utils.diagnosis.table import Table
from handbook_utils.errors import DataError

# where a document of one object keeps its records
LISTS = ("log_history", "history", "logs", "metrics", "records", "data")
# read at a time: a record lies whole in what was read, or is completed by the next piece
CHUNK = 1 << 20
LONGEST_KEY = 64
# a record longer than this is none
LONGEST_RECORD = 16 * CHUNK


def read_json_lines(table: Table, file: Path) -> None:
    """Add each line's object; lines that are none, such as one that a kill cut short, are counted."""
    broken = 0
    with file.open("r", encoding="utf-8-sig", errors="replace") as stream:
        while lines := stream.readlines(CHUNK):
            records = _records(lines)
            broken += len(lines) - len(records) - sum(not line.strip() for line in lines)
            table.add_all([_flat(r) if "logs" in r or "data" in r else r for r in records])
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


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose numbers lie one level down, as some trackers export them."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def read_history(table: Table, file: Path) -> None:
    """Add the records of a document, decoded one by one: also of one that breaks off.

    Raises:
        DataError: the document is JSON, but holds no list of records under a known name.
    """
    before = table.records
    objects = _objects(file)
    while records := list(islice(objects, 4096)):
        table.add_all(records)
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
