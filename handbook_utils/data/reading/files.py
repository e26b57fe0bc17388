"""Rows of local files, read without a cache and without a network; every error names the line or row.

No value is taken for anything but what was written: texts of a CSV stay texts, numbers keep their digits.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from handbook_utils.data.reading.arrow import Row, TableReader
from handbook_utils.data.reading.placeholders import placeholder
from handbook_utils.data.shapes.values import LostValueError, read_float, read_object
from handbook_utils.errors import DataError, suggest

Rows = Sequence[Row]
# files that can run code when they are opened
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz")
# packed files, each with a command that unpacks it; .gz files of one text are read as they are
ARCHIVES = {
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"), "tar -xf"),
    **{".zip": "unzip", ".7z": "7z x", ".rar": "unrar x"},
    **{".zst": "zstd -d", ".bz2": "bunzip2 -k", ".xz": "unxz -k"},
}
# longer cells than the csv module takes by itself; a whole book fits
LONGEST_CELL = 1 << 28


def read_file(path: Path) -> Rows:
    """Read a data file (see `SUFFIXES`) into memory.

    Raises:
        DataError: missing (the nearest name beside it is told), of another type, or damaged.
    """
    return list(iterate_file(path))


def iterate_file(path: Path, tables: TableReader | None = None) -> Iterator[Row]:
    """Yield the rows of a data file, a few at a time in memory (a .json file is read whole).

    Args:
        path: of a type in `SUFFIXES`.
        tables: reads the tables of all files of one source, so that what it has to say is said once.
    Raises:
        DataError: as `read_file`, when the damaged place is reached.
    """
    reader = _reader_of(path, tables or TableReader(str(path)))
    if not path.is_file():
        raise DataError(f"{path}: no such file. {_nearest(path)}".rstrip())
    try:
        if what := placeholder(path):
            raise DataError(f"{path}: {what}.")
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}). Convert it to UTF-8.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path}: not a whole gzip file. Copy or compress it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def iterate_files(paths: Iterable[Path], name: str) -> Iterator[Row]:
    """Yield the rows of several files of one source, in the order given.

    Raises:
        DataError: as `read_file`, when the damaged place is reached.
    """
    tables = TableReader(name)
    for path in paths:
        yield from iterate_file(path, tables)


def data_suffix(path: Path) -> str:
    """The lower-case ending that tells a file's type; that of a gzip file has two parts.

    >>> data_suffix(Path("rows.JSONL.gz"))
    '.jsonl.gz'
    """
    parts = [suffix.lower() for suffix in path.suffixes]
    return "".join(parts[-2:]) if parts[-1:] == [".gz"] else "".join(parts[-1:])


def _reader_of(path: Path, tables: TableReader) -> Callable[[Path], Iterator[Row]]:
    suffix = data_suffix(path)
    if suffix in PICKLES:
        raise DataError(
            f"{path}: '{suffix}' files can run code when they are opened, so none is read as data. "
            "Where you trust it, write its rows to .jsonl or .parquet and name that file."
        )
    if archive := next((end for end in ARCHIVES if path.name.lower().endswith(end)), None):
        raise DataError(
            f"{path}: a '{archive}' file is packed, which is not read here. Unpack it ({ARCHIVES[archive]}), "
            "and name the data file or the folder that it gives."
        )
    if suffix == ".py":
        raise DataError(
            f"{path}: a script; code is never run to get data. Run it yourself and name the rows it writes "
            "(.jsonl, .parquet)."
        )
    if suffix in _TABLES:
        return partial(_TABLES[suffix], tables=tables)
    if suffix not in TEXTS:
        raise DataError(f"{path}: unknown type '{suffix}'. Choose from: {', '.join(SUFFIXES)}.")
    return TEXTS[suffix]


def _open_text(path: Path, newline: str | None = None) -> Any:
    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig", newline=newline)


def _iterate_jsonl(path: Path) -> Iterator[Row]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place, remedy = f"{path}: line {number}", "A .jsonl file has one JSON object per line."
            row = _parse_json(line.rstrip(), place, remedy)
            if not isinstance(row, dict):
                raise DataError(f"{place} is a JSON {type(row).__name__}, not an object with columns.")
            yield row


def _iterate_json(path: Path) -> Iterator[Row]:
    with _open_text(path) as stream:
        content = _parse_json(stream.read(), f"{path}:", "If it holds one object per line, name it .jsonl.")
    if not isinstance(content, list):
        kind = f"{path}: holds a JSON {type(content).__name__}, not a list of objects."
        raise DataError(f"{kind} {_rows_inside(content)}".rstrip())
    yield from content


def _rows_inside(content: Any) -> str:
    """What to do about a .json file that is no list of rows."""
    if not isinstance(content, dict):
        return ""
    columns = list(content.values())
    if columns and all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        return (
            "It looks like what `DataFrame.to_json` of pandas writes by itself. Write "
            "`to_json('rows.jsonl', orient='records', lines=True)` and name that file."
        )
    lists = [repr(key) for key, rows in content.items() if isinstance(rows, list) and rows]
    if not lists:
        return "For a single row, put it into a list."
    return (
        f"A list is under {' and '.join(lists[:5])}: where its members are the rows, write that list alone "
        "into a file. Where the whole object is one row, put it into a list."
    )


def _parse_json(text: str, place: str, remedy: str) -> Any:
    if not text.strip():
        raise DataError(f"{place} is empty; it has no rows.")
    problem = f"{place} is not JSON"
    try:
        return json.loads(text, object_pairs_hook=read_object, parse_float=read_float)
    except LostValueError as error:
        raise DataError(f"{place} {error}. Mend it.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(f"{problem} ({error.msg.removesuffix(' at')} at {where}). {remedy}") from None
    except RecursionError:
        raise DataError(f"{problem} (nested too deeply). {remedy}") from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{problem} ({error}). {remedy}") from None


def _iterate_csv(path: Path) -> Iterator[Row]:
    with _open_text(path, newline="") as stream, _long_cells():
        header = stream.readline()
        stream.seek(0)
        reader = csv.DictReader(stream, strict=True, delimiter=_delimiter(path, header))
        try:
            names = reader.fieldnames or []
            if twice := [name for name in names if names.count(name) > 1]:
                raise DataError(f"{path}: its header line names the column '{twice[0]}' twice. Rename one.")
            for number, row in enumerate(reader, start=1):
                # DictReader files surplus cells under None and fills missing ones with None
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}: row {number} has not as many cells as the header line has columns."
                    )
                yield row
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num} is not CSV ({error}).") from None


def _delimiter(path: Path, header: str) -> str:
    """What separates cells: a comma, unless the header line has none and another of the usual ones."""
    if ".tsv" in data_suffix(path):
        return "\t"
    return "," if "," in header else next((mark for mark in ";\t|" if mark in header), ",")


@contextmanager
def _long_cells() -> Iterator[None]:
    usual = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def _iterate_parquet(path: Path, tables: TableReader) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            yield from tables.rows(file.iter_batches(batch_size=1000))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: not a readable parquet file ({_first_line(error)}).") from None


def _iterate_arrow(path: Path, tables: TableReader) -> Iterator[Row]:
    """Both of Arrow's file forms: the stream that `datasets` writes, and Feather."""
    try:
        with pa.memory_map(str(path)) as source:
            yield from tables.rows(_arrow_batches(source))
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


TEXTS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _iterate_jsonl,
    ".jsonl.gz": _iterate_jsonl,
    ".json": _iterate_json,
    ".json.gz": _iterate_json,
    ".csv": _iterate_csv,
    ".csv.gz": _iterate_csv,
    ".tsv": _iterate_csv,
}
_TABLES: dict[str, Callable[..., Iterator[Row]]] = {".parquet": _iterate_parquet, ".arrow": _iterate_arrow}
SUFFIXES = (*TEXTS, *_TABLES)
