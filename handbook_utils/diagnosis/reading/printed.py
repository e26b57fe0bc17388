"""What training prints: dicts among other lines, tables of notebooks, `key:value` lines of verl."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from handbook_utils.diagnosis.keys import known_as
from handbook_utils.diagnosis.reading.pairs import COLOURS, NUMPY, read_pairs
from handbook_utils.diagnosis.table import Table, to_number
from handbook_utils.errors import DataError

_DICT = re.compile(r"\{[^{}]*\}")
_PAIR = re.compile(r"['\"]([^'\"{}]+)['\"]\s*:\s*['\"]?([-+]?[\w.]+(?:[-+]\d+)?)['\"]?")
_WORDS = re.compile(r"(?<=: )(nan|inf|-inf)(?=[,}])")
_AS_JSON = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
# "step:12 - actor/entropy:0.41 - critic/score/mean:0.2"
_DASHED = re.compile(r"(?:^|\s)step:(\d+)\s+-\s+(.*)")
_DASHED_PAIR = re.compile(r"([\w/.@-]+):([-+\w.]+)(?:\s+-|$)")


def read_printed(table: Table, file: Path) -> None:
    """Add the records that are printed in a text: dicts, else lines of names and numbers, else tables."""
    for read in (read_lines, read_pairs):
        if not table.records:
            with file.open(encoding="utf-8", errors="replace") as stream:
                read(table, stream)
    if not table.records:
        with file.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read()
        _read_tables(table, text)


def read_lines(table: Table, lines: Iterable[str]) -> None:
    """Add the dicts and `key:value` lines among lines; progress bars return to the line's start."""
    known: dict[tuple[str, ...], bool] = {}
    for line in lines:
        if "np.float" in line or "\x1b" in line:
            line = NUMPY.sub(r"\1", COLOURS.sub("", line))
        if "{" in line:
            for record in _dicts(line):
                names = tuple(record)
                if names not in known:
                    known[names] = bool(known_as(names).keys() - {"step", "epoch"})
                if known[names]:
                    table.add(record)
        elif "step:" in line and (dashed := _DASHED.search(line)):
            table.add({"step": float(dashed[1]), **dict(_DASHED_PAIR.findall(dashed[2]))})


def _dicts(line: str) -> Iterator[dict[str, Any]]:
    """The flat dicts in a line: mostly one."""
    start, end = line.find("{"), line.rfind("}")
    if end < start:
        return
    text = line[start : end + 1]
    if "{" not in text[1:]:
        if "'" in text or '"' in text:
            yield _record(text)
        return
    for found in _DICT.finditer(text):
        if "'" in found[0] or '"' in found[0]:
            yield _record(found[0])


def _record(text: str) -> dict[str, Any]:
    quoted = text.replace("'", '"')
    if "nan" in quoted or "inf" in quoted:
        quoted = _WORDS.sub(lambda found: _AS_JSON[found[0]], quoted)
    try:
        found = json.loads(quoted)
    except ValueError:
        return dict(_PAIR.findall(text))
    return found if isinstance(found, dict) else {}


def _read_tables(table: Table, text: str) -> None:
    if "<table" in text:
        read_html(table, text)
    else:
        _read_rows(table, (_cells(line) for line in text.splitlines()))


def _cells(line: str) -> list[str]:
    """Cells of a line: between bars, tabs, or two spaces; else between single ones."""
    line = line.strip()
    if "|" in line:
        return [cell.strip() for cell in line.strip("|").split("|")]
    if "\t" in line:
        return [cell.strip() for cell in line.split("\t")]
    wide = re.split(r"\s{2,}", line)
    return wide if len(wide) > 1 else line.split()


def _read_rows(table: Table, rows: Iterable[list[str]]) -> None:
    """Rows below a header that names a step or a loss; a second header begins another table."""
    names: list[str] | None = None
    for row in rows:
        if len(row) > 1 and _is_header(row):
            names = row
        elif names is not None and len(row) == len(names):
            numbers = [to_number(cell) for cell in row]
            record = {n: v for n, v in zip(names, numbers, strict=True) if v is not None}
            if record:
                table.add(record)


def _is_header(row: list[str]) -> bool:
    known = known_as(row)
    return len(known) > 1 and all(to_number(cell) is None for cell in row if cell)


class _Rows(HTMLParser):
    """The rows of all tables of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "tr", "table"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data.strip()


def read_html(table: Table, text: str) -> None:
    """Add the rows of a page's tables, such as the one that the Trainer shows in a notebook."""
    parser = _Rows()
    parser.feed(text)
    _read_rows(table, parser.rows)


def read_notebook(table: Table, file: Path) -> None:
    """Add what the outputs of a notebook's cells show: tables, else printed dicts.

    Raises:
        DataError: the file is no notebook.
    """
    try:
        cells = json.loads(file.read_text(encoding="utf-8-sig", errors="replace"))["cells"]
        outputs = [one for cell in cells for one in cell.get("outputs", [])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(
            f"{file}: not a whole notebook. Save it again, or copy its table into a text file."
        ) from None
    shown = list(_shown(outputs))
    counts = [_count(text, is_html) for text, is_html in shown]
    if not any(counts):
        return
    if len([count for count in counts if count]) > 1:
        table.remark(f"several outputs hold records; read is the one with the most ({max(counts)})")
    _read_output(table, *shown[counts.index(max(counts))])


def _read_output(table: Table, text: str, is_html: bool) -> None:
    if is_html:
        read_html(table, text)
    else:
        read_lines(table, text.splitlines())


def _count(text: str, is_html: bool) -> int:
    table = Table()
    _read_output(table, text, is_html)
    return table.records


def _shown(outputs: Iterable[Any]) -> Iterator[tuple[str, bool]]:
    """Texts of outputs, and whether each is HTML; those without a number are none."""
    for output in outputs:
        data = output.get("data", {}) if isinstance(output, dict) else {}
        html = _joined(data.get("text/html"))
        if "<table" in html:
            yield html, True
        elif "{" in (text := _joined(output.get("text")) if isinstance(output, dict) else ""):
            yield text, False


def _joined(text: Any) -> str:
    return "".join(text) if isinstance(text, list) else text if isinstance(text, str) else ""
