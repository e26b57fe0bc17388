"""Rows of local files, read without a cache and without a network; every error names the line or row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from handbook_utils.errors import DataError, suggest

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
Rows = Sequence[dict[str, Any]]


def read_file(path: Path) -> Rows:
    """Read a .jsonl, .json, .csv or .parquet file.

    Raises:
        DataError: missing (the nearest name beside it is told), of another type, or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. {_nearest(path)}".rstrip())
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: unknown type '{path.suffix}'. Choose from: {', '.join(SUFFIXES)}.")
    try:
        return readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}). Convert it to UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def read_parts(folder: Path) -> Rows:
    """Read all parquet parts of a folder, in the order of their names.

    Raises:
        DataError: there are none, or one is damaged.
    """
    parts = sorted(folder.glob("*.parquet"))
    if not parts:
        raise DataError(f"{folder}: holds no .parquet file.")
    return [row for part in parts for row in read_file(part)]


def _read_jsonl(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as stream:
        return list(_json_lines(path, stream))


def _json_lines(path: Path, lines: Any) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}: line {number} is not JSON ({error.msg} at column {error.colno}). "
                "A .jsonl file holds one JSON object a line."
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"{path}: line {number} is a JSON {type(row).__name__}, not an object with columns."
            )
        yield row


def _read_json(path: Path) -> Rows:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not JSON ({error.msg} at line {error.lineno}). "
            "If it holds one object a line, name it .jsonl."
        ) from None
    if not isinstance(content, list):
        raise DataError(f"{path}: holds a JSON {type(content).__name__}, not a list of objects.")
    return content


def _read_csv(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            rows: list[dict[str, Any]] = list(reader)
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num} is not CSV ({error}).") from None
    for number, row in enumerate(rows, start=1):
        # DictReader files surplus cells under None and fills missing ones with None
        if None in row or None in row.values():
            raise DataError(f"{path}: row {number} has not as many cells as the header line has columns.")
    return rows


def _read_parquet(path: Path) -> Rows:
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]}).") from None
    return rows


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} is missing too."
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in SUFFIXES]
    return suggest(path.name, names) if names else f"{path.parent.resolve()} holds no data file."
