"""A guideline as blocks of plain text: the little of Markdown that guidelines use, and no HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from handbook_utils.errors import DataError
from handbook_utils.runs.atomic import explained_os_errors

LONGEST_BYTES = 1_000_000
_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*$")
_POINT = re.compile(r"\s*(?:[-*+]|\d{1,3}[.)])\s+(.+)")
_FENCE = re.compile(r"\s*(```|~~~)")
_SPAN = re.compile(r"\*\*(?P<strong>[^*]+)\*\*|`(?P<code>[^`]+)`|\*(?P<em>[^*\s][^*]*)\*")

Block = dict[str, Any]


def read_guideline(path: Path) -> list[Block]:
    """The blocks of a file of text or Markdown.

    Raises:
        DataError: as `read_guideline_text`.
    """
    return guideline_blocks(read_guideline_text(path))


def read_guideline_text(path: Path) -> str:
    """The text of a guideline, as it is written.

    Raises:
        DataError: no such file, no text, or more than a megabyte of it.
    """
    if not path.is_file():
        raise DataError(f"--guideline: there is no file {path}.")
    if path.stat().st_size > LONGEST_BYTES:
        raise DataError(f"--guideline: {path} is larger than {LONGEST_BYTES:,} bytes. Name a file of text.")
    try:
        with explained_os_errors(path):
            return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"--guideline: {path} is no UTF-8 text. Save it as text or Markdown.") from None


def guideline_blocks(text: str) -> list[Block]:
    """Headings, points, code and paragraphs, each with spans of (style, text).

    >>> guideline_blocks("# Be *fair*")
    [{'kind': 'h1', 'spans': [['', 'Be '], ['em', 'fair']]}]
    """
    return list(_blocks(text.splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    paragraph: list[str] = []
    place = 0
    while place < len(lines):
        line = lines[place]
        heading, point, fence = _HEADING.match(line), _POINT.match(line), _FENCE.match(line)
        if (heading or point or fence or not line.strip()) and paragraph:
            yield {"kind": "p", "spans": spans(" ".join(paragraph))}
            paragraph = []
        if fence:
            end = _closing(lines, place + 1, fence[1])
            yield {"kind": "pre", "spans": [["", "\n".join(lines[place + 1 : end])]]}
            place = end
        elif heading:
            yield {"kind": f"h{min(len(heading[1]), 3)}", "spans": spans(heading[2])}
        elif point:
            yield {"kind": "li", "spans": spans(point[1])}
        elif line.strip():
            paragraph.append(line.strip())
        place += 1
    if paragraph:
        yield {"kind": "p", "spans": spans(" ".join(paragraph))}


def _closing(lines: list[str], start: int, mark: str) -> int:
    ends = (place for place in range(start, len(lines)) if lines[place].strip().startswith(mark))
    return next(ends, len(lines))


def spans(text: str) -> list[list[str]]:
    """A line as spans of [style, text]; the style is "strong", "code", "em" or "".

    >>> spans("**Never** `rm`")
    [['strong', 'Never'], ['', ' '], ['code', 'rm']]
    """
    found, last = [], 0
    for match in _SPAN.finditer(text):
        if match.start() > last:
            found.append(["", text[last : match.start()]])
        style = str(match.lastgroup)
        found.append([style, match[style]])
        last = match.end()
    return [*found, *([["", text[last:]]] if last < len(text) else [])]
