"""What a path holds, and the reader for it: by what is in the file, its name only where that says more."""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from handbook_utils.diagnosis.reading.delimited import is_delimited, read_delimited, tag_of
from handbook_utils.diagnosis.reading.events import is_events, read_events
from handbook_utils.diagnosis.reading.json_logs import read_columns, read_history, read_json_lines
from handbook_utils.diagnosis.reading.printed import read_notebook, read_printed
from handbook_utils.diagnosis.table import Table
from handbook_utils.errors import DataError

LFS = b"version https://git-lfs.github.com/spec/"
# names of logs in a folder, the fullest record of a run first
IN_FOLDERS = (
    "metrics.jsonl",
    "trainer_state.json",
    "checkpoint-*/trainer_state.json",
    "trainer_log.jsonl",
    "logging.jsonl",
    "*tfevents*",
    "runs/*/*tfevents*",
    "*tag-*.csv",
    "log_history.json",
    "*.csv",
)
_HEAD = 65_536
# how a list of JSON begins, which "[2026-11-30 10:00:00]" and "[INFO|trainer]" do not
_LIST = re.compile(r"\[\s*(?:[\[{\]\"]|-?[\d.]+(?:[eE][-+]?\d+)?\s*[,\]]|$)")
# a name whose value is a list of numbers
_COLUMNS = re.compile(r'"\s*:\s*\[\s*(?:-?\d|null|NaN)')
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
# what zlib calls a stream with the head of a gzip file
_AS_GZIP = 31


def read_log(path: Path) -> Table:
    """The records of a log file, or of the log in a run folder.

    Raises:
        DataError: there is no log, it is a pointer to one, or nothing in it can be read as records.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. {_near(path)}")
    return read_together(log_files(path) if path.is_dir() else [path])


def log_files(folder: Path) -> list[Path]:
    """The files of a folder that make one log: the newest checkpoint's, all of TensorBoard's.

    Raises:
        DataError: there is none.
    """
    for pattern in IN_FOLDERS:
        found = [file for file in folder.glob(pattern) if file.is_file()]
        if not found:
            continue
        if pattern.startswith("checkpoint-"):
            return [max(found, key=lambda file: _number(file.parent.name))]
        if "tfevents" in pattern or "tag-" in pattern:
            return sorted(found, key=lambda file: file.name)
        if len(found) == 1 or pattern != "*.csv":
            return found[:1]
        names = ", ".join(sorted(file.name for file in found)[:5])
        raise DataError(f"{folder}: several CSV files ({names}). Name the one to read.")
    raise DataError(
        f"{folder}: no training log in this folder. Looked for: {', '.join(IN_FOLDERS)}. "
        "Name the log file itself."
    )


def _number(name: str) -> int:
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else -1


def _near(path: Path) -> str:
    import difflib

    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean '{path.parent / near[0]}'?" if near else "Check the path."


def _read_into(table: Table, file: Path) -> None:
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}).") from None
    if not head.strip():
        table.remark(f"{file.name} is empty: training has logged nothing yet, or its output went elsewhere")
        return
    if head.startswith(LFS):
        raise DataError(
            f"{file}: a Git LFS pointer, not the log itself. Fetch it: git lfs pull --include {file.name}"
        )
    if head.startswith(GZIP):
        _read_gzip(table, file)
        return
    if head.startswith(ZIP):
        raise DataError(f"{file}: a zip archive. Unpack it, and give the log that is in it.")
    before = table.records
    if is_events(file.name, head):
        read_events(table, file)
    elif b"\0" in head:
        raise DataError(f"{file}: binary, and no TensorBoard event file. Give a log of text.")
    else:
        _read_text(table, file, head.decode("utf-8", errors="replace").lstrip("\ufeff"))
    if table.records == before:
        table.remark(f"{file.name}: no record with a number in it")


def _read_gzip(table: Table, file: Path) -> None:
    """Read what is in a gzip file, by the name that it had; of one that breaks off, what comes before."""
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / file.name.removesuffix(".gz")
        with file.open("rb") as stream, unpacked.open("wb") as whole:
            try:
                is_whole = _unpack(stream, whole)
            except zlib.error:
                is_whole = False
        if not is_whole:
            table.remark(f"{file.name} breaks off; read is what comes before")
        try:
            _read_into(table, unpacked)
        except DataError as error:
            raise DataError(str(error).replace(str(unpacked), str(file))) from None


def _unpack(stream: BinaryIO, whole: BinaryIO) -> bool:
    """Write what a gzip file holds, also several one after the other; whether it is whole."""
    engine = zlib.decompressobj(wbits=_AS_GZIP)
    while content := stream.read(1 << 20):
        while content:
            whole.write(engine.decompress(content))
            content = engine.unused_data
            if content:
                engine = zlib.decompressobj(wbits=_AS_GZIP)
    return engine.eof


def _read_text(table: Table, file: Path, head: str) -> None:
    start = head.lstrip()
    if _COLUMNS.search(head) and read_columns(table, file):
        return
    if start.startswith("{") and (
        ('"cells"' in head and '"nbformat' in _tail(file)) or file.suffix == ".ipynb"
    ):
        read_notebook(table, file)
    elif (
        (start.startswith("{") or _LIST.match(start)) and file.suffix != ".jsonl" and _is_one_document(start)
    ):
        read_history(table, file)
    elif start.startswith('{"'):
        read_json_lines(table, file)
    elif (delimiter := is_delimited(head)) is not None:
        read_delimited(table, file, delimiter, tag_of(file.name))
    else:
        read_printed(table, file)
        if not table.records:
            raise DataError(
                f"{file}: no training records found in this text. Known are JSON (an object per line, or "
                "log_history), CSV, dicts as the Trainer prints them, and tables with a header such as "
                "Step, Training Loss."
            )


def _tail(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 2000))
        return stream.read().decode("utf-8", errors="replace")


def _is_one_document(start: str) -> bool:
    """Whether a JSON text is one object or list over many lines, not an object per line."""
    if '"log_history"' in start or _LIST.match(start):
        return True
    first = start.partition("\n")[0].strip()
    return not first.endswith("}") and start.startswith("{") and not re.match(r"\{\s*'", start)


def merge_tags(paths: Sequence[Path]) -> list[list[Path]]:
    """Paths in groups of one log each: TensorBoard's CSV files of one run belong together.

    >>> [len(g) for g in merge_tags([Path("run-a-tag-loss.csv"), Path("run-a-tag-lr.csv"), Path("b.csv")])]
    [2, 1]
    """
    groups: dict[object, list[Path]] = {}
    for path in paths:
        run, mark, _ = path.name.partition("tag-")
        groups.setdefault((path.parent, run) if mark and path.suffix == ".csv" else path, []).append(path)
    return list(groups.values())


def read_together(paths: Sequence[Path]) -> Table:
    """Files that make one log together: a file per name is joined by step, others follow each other."""
    table = Table()
    if not tag_of(paths[0].name):
        for path in paths:
            _read_into(table, path)
        return table
    # (which piece, step): a restart goes back in each of the files
    joined: dict[tuple[int, float], dict[str, float]] = {}
    for path in paths:
        one = Table()
        _read_into(one, path)
        rows, steps = one.column("step")
        pieces = np.cumsum(np.concatenate([[0], np.diff(steps) < 0]))
        for name in set(one.names()) - {"step"}:
            for row, value in zip(*one.column(name), strict=True):
                place = int(np.searchsorted(rows, row))
                key = (int(pieces[place]), float(steps[place]))
                joined.setdefault(key, {"step": key[1]})[name] = float(value)
    for key in sorted(joined):
        table.add(joined[key])
    return table
