"""The book's sources: lines that a diff shows whole, and no chapter's number typed."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from book_pages import chapters
from run_notebooks import find_notebooks

WIDTH = 120
NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen"
TYPED = re.compile(rf"\bchapters?\s+(?:\d+|(?:{NUMBERS})\b)", re.IGNORECASE)
# what is no prose: code, formulas and generated parts; a directive that holds prose is read
CODE = re.compile(
    r"^```(?!\{(?:figure|note|tip|warning|important|admonition|dropdown)).*?^```$", re.DOTALL | re.MULTILINE
)
# one line by their nature: rows of tables, options of directives, headings
ONE_LINE = re.compile(r"^\s*(?:\||:[\w-]+:|#)")


def markdown(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")


def long_lines(text: str) -> list[str]:
    """Lines of prose that a reviewer would have to scroll."""
    return [x for x in CODE.sub("", text).splitlines() if len(x) > WIDTH and not ONE_LINE.match(x)]


def test_there_are_sources() -> None:
    assert len(chapters()) > 5
    assert len(find_notebooks()) > 5


@pytest.mark.parametrize("path", [*chapters(), *find_notebooks()], ids=lambda path: path.name)
def test_no_chapter_number_is_typed(path: Path) -> None:
    """The side bar numbers the chapters that exist; text names them with {doc} or {ref}."""
    assert TYPED.findall(markdown(path)) == []


@pytest.mark.parametrize("typed", ["as in chapter 4", "Chapters 8 and 11", "see chapter\nfour"])
def test_a_typed_chapter_number_is_found(typed: str) -> None:
    assert TYPED.search(typed)


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.name)
def test_lines_of_prose_fit_into_a_diff(path: Path) -> None:
    assert long_lines(path.read_text(encoding="utf-8")) == []


def test_a_long_line_of_prose_is_found_in_a_caption_too() -> None:
    long = "word " * 30
    assert long_lines(f"{long}\n\n```{{figure}} a.svg\n:alt: {long}\n\n{long}\n```\n") == [long, long]
    assert long_lines(f"```python\n{long}\n```\n\n| {long} |\n") == []
