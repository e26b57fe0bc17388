"""Rows of local files, read without a cache and without a network; every error names the line or row."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from handbook_utils.errors import DataError, suggest

Row = dict[str, Any]
Rows = Sequence[Row]
# files that can run code when they are opened
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz")
# longer cells than the csv module takes by itself; a whole book fits
LONGEST_CELL = 1 << 28


def read_file(path: Path) -> Rows:
    """Read a data file (see `SUFFIXES`) into memory.

    Raises:
        DataError: missing (the nearest name beside it is told), of another type, or damaged.
    """
    return list(iterate_file(path))


def iterate_file(path: Path) -> Iterator[Row]:
    """Yield the rows of a data file, a few at a time in memory (a .json file is read whole).

    Raises:
        DataError: as `read_file`, when the damaged place is reached.
    """
    reader = _reader_of(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file. {_nearest(path)}".rstrip())
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}). Convert it to UTF-8.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path}: not a whole gzip file. Copy or compress it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def read_parts(folder: Path) -> Rows:
    """Read all parts of a folder into memory, as `iterate_parts`."""
    return list(iterate_parts(folder))


def iterate_parts(folder: Path) -> Iterator[Row]:
    """Yield the rows of a folder's data files, in the order of their names.

    Raises:
        DataError: they are of several types, or one is damaged.
    """
    for part in find_parts(folder):
        yield from iterate_file(part)


def find_parts(folder: Path) -> list[Path]:
    """The data files right in a folder, all of one type; empty where there are none.

    Raises:
        DataError: they are of several types.
    """
    parts = sorted(path for path in folder.iterdir() if data_suffix(path) in SUFFIXES)
    kinds = sorted({data_suffix(part) for part in parts})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: holds files of several types ({', '.join(kinds)}). Name one file, or put the parts "
            "of one data set into a folder of their own."
        )
    return parts


def data_suffix(path: Path) -> str:
    """The lower-case ending that tells a file's type; that of a gzip file has two parts.

    >>> data_suffix(Path("rows.JSONL.gz"))
    '.jsonl.gz'
    """
    parts = [suffix.lower() for suffix in path.suffixes]
    return "".join(parts[-2:]) if parts[-1:] == [".gz"] else "".join(parts[-1:])


def _reader_of(path: Path) -> Callable[[Path], Iterator[Row]]:
    suffix = data_suffix(path)
    if suffix in PICKLES:
        raise DataError(
            f"{path}: '{suffix}' files can run code when they are opened, so none is read as data. "
            "Where you trust it, write its rows to .jsonl or .parquet and name that file."
        )
    if suffix == ".py":
        raise DataError(
            f"{path}: a script; code is never run to get data. Run it yourself and name the rows it writes "
            "(.jsonl, .parquet)."
        )
    if suffix not in _READERS:
        raise DataError(f"{path}: unknown type '{suffix}'. Choose from: {', '.join(SUFFIXES)}.")
    return _READERS[suffix]


def _iterate_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as stream:
        yield from _json_lines(path, stream)


def _iterate_gzip(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8-sig") as stream:
        yield from _json_lines(path, stream)


def _json_lines(path: Path, lines: Any) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse_json(
            line.rstrip(), f"{path}: line {number} is not JSON", "A .jsonl file has one JSON object per line."
        )
        if not isinstance(row, dict):
            raise DataError(
                f"{path}: line {number} is a JSON {type(row).__name__}, not an object with columns."
            )
        yield row


def _iterate_json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    content = _parse_json(text, f"{path}: not JSON", "If it holds one object per line, name it .jsonl.")
    if not isinstance(content, list):
        raise DataError(f"{path}: holds a JSON {type(content).__name__}, not a list of objects.")
    yield from content


def _parse_json(text: str, problem: str, remedy: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(f"{problem} ({error.msg} at {where}). {remedy}") from None
    except RecursionError:
        raise DataError(f"{problem} (nested too deeply). {remedy}") from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{problem} ({error}). {remedy}") from None


def _iterate_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream, _long_cells():
        reader = csv.DictReader(stream, strict=True)
        try:
            for number, row in enumerate(reader, start=1):
                # DictReader files surplus cells under None and fills missing ones with None
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}: row {number} has not as many cells as the header line has columns."
                    )
                yield row
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num} is not CSV ({error}).") from None


@contextmanager
def _long_cells() -> Iterator[None]:
    usual = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def _iterate_parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: not a readable parquet file ({_first_line(error)}).") from None


def _iterate_arrow(path: Path) -> Iterator[Row]:
    """Both of Arrow's file forms: the stream that `datasets` writes, and Feather."""
    try:
        with pa.memory_map(str(path)) as source:
            for batch in _arrow_batches(source):
                for start in range(0, batch.num_rows, 1000):
                    yield from batch.slice(start, 1000).to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable Arrow file ({_first_line(error)}).") from None


def _arrow_batches(source: Any) -> Iterator[Any]:
    try:
        stream = pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(source)
        for index in range(file.num_record_batches):
            yield file.get_batch(index)
        return
    yield from stream


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"The folder {path.parent} is missing too."
    names = [entry.name for entry in path.parent.iterdir() if data_suffix(entry) in SUFFIXES]
    return suggest(path.name, names) if names else f"{path.parent.resolve()} holds no data file."


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _iterate_jsonl,
    ".jsonl.gz": _iterate_gzip,
    ".json": _iterate_json,
    ".csv": _iterate_csv,
    ".parquet": _iterate_parquet,
    ".arrow": _iterate_arrow,
}
SUFFIXES = tuple(_READERS)
