"""TensorBoard's event files: scalars of both kinds, read without TensorBoard.

The format is a file of framed records (length, checksum, content, checksum) whose contents are protocol
buffers `Event`: step (2) and summary (5), of values (1) with a tag (1) and a number (2) or a tensor (8).
Reading the few fields that hold scalars takes a page; the package `tensorboard` brings a dozen others, a web
server and gRPC among them, to do the same.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from handbook_utils.diagnosis.table import Table

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# a record longer than this is no summary of scalars: an image, a graph, or damage
MOST_BYTES = 1 << 24
# the usual event: time, step, and a summary of one scalar, each length in one byte
_PLAIN = re.compile(rb"\x09.{8}\x10([\x80-\xff]*[\x00-\x7f])\x2a.\x0a.\x0a(.)(.+)\x15(.{4})", re.DOTALL)
_FLOAT = struct.Struct("<f").unpack
Value = int | float | memoryview


def is_events(name: str, head: bytes) -> bool:
    """Whether a file is an event file, which begins with the record of its version."""
    return "tfevents" in name or b"brain.Event:" in head[:64]


def read_events(table: Table, file: Path) -> None:
    """Add the scalars of an event file: those of one step that follow each other are one record."""
    at: int | None = None
    record: dict[str, float] = {}
    try:
        for step, scalars in _events(file):
            for tag, value in scalars:
                if step != at or tag in record:
                    if record:
                        table.add(record)
                    at, record = step, {"step": float(step)}
                record[tag] = value
    except (EOFError, IndexError, struct.error, ValueError):
        # what a running or killed writer has not finished
        table.remark(f"{file.name} breaks off in the middle of a record")
    if record:
        table.add(record)


def _events(file: Path) -> Iterator[tuple[int, list[tuple[str, float]]]]:
    """Step and scalars of each event. Raises EOFError where a record is cut."""
    plain, header = _PLAIN.fullmatch, struct.Struct("<Q4x").unpack
    names: dict[bytes, str] = {}
    with file.open("rb", buffering=1 << 20) as stream:
        read = stream.read
        while framing := read(12):
            size = header(framing)[0]
            content = read(size + 4) if size <= MOST_BYTES else b""
            if len(content) < size + 4:
                raise EOFError
            found = plain(content, 0, size)
            if found is not None and len(found[3]) == found[2][0]:
                name = names.get(found[3]) or names.setdefault(found[3], found[3].decode("utf-8", "replace"))
                yield _varint(found[1], 0)[0], [(name, _FLOAT(found[4])[0])]
            else:
                yield _event(memoryview(content)[:size])


def _event(content: memoryview) -> tuple[int, list[tuple[str, float]]]:
    step, scalars = 0, []
    for field, value in _fields(content):
        if field == 2 and isinstance(value, int):
            step = value
        elif field == 5 and isinstance(value, memoryview):
            for inner, summary in _fields(value):
                if inner == 1 and isinstance(summary, memoryview):
                    scalars += _scalar(summary)
    return step, scalars


def _scalar(content: memoryview) -> list[tuple[str, float]]:
    tag, number = "", None
    for field, value in _fields(content):
        if field == 1 and isinstance(value, memoryview):
            tag = bytes(value).decode("utf-8", errors="replace")
        elif field == 2 and isinstance(value, memoryview):
            number = struct.unpack("<f", value)[0]
        elif field == 8 and isinstance(value, memoryview):
            number = _tensor(value)
    return [] if number is None or not tag else [(tag, float(number))]


def _tensor(content: memoryview) -> float | None:
    """The number in a tensor of one: float (1) or double (2), packed or as raw content (4)."""
    kind, raw = 0, b""
    for field, value in _fields(content):
        if field == 1 and isinstance(value, int):
            kind = value
        elif field in (4, 5, 6) and isinstance(value, memoryview):
            raw = bytes(value)
    if kind == 1 and len(raw) == 4:
        return float(struct.unpack("<f", raw)[0])
    if kind == 2 and len(raw) == 8:
        return float(struct.unpack("<d", raw)[0])
    return None


def _fields(content: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a protocol buffer."""
    place, size = 0, len(content)
    while place < size:
        key, place = _varint(content, place)
        wire = key & 7
        if wire == _VARINT:
            value, place = _varint(content, place)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            length, place = _varint(content, place)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("a field of a type that events do not have")
        if place + length > size:
            raise ValueError("a field longer than its record")
        yield key >> 3, content[place : place + length]
        place += length


def _varint(content: memoryview | bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
