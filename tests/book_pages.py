"""The executed notebooks and the built book, made once and shared by tests/notebooks and tests/browser.

One worker runs all tests of both folders (see tests/conftest.py), so that this happens once.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import build_book
import run_notebooks

ROOT = Path(__file__).resolve().parents[1]


@cache
def executed() -> subprocess.CompletedProcess[str]:
    """Run a copy of every notebook with nbmake, once."""
    return run_notebooks.execute(run_notebooks.find_notebooks())


@cache
def built() -> subprocess.CompletedProcess[str]:
    """Build the book from the notebooks this test run has executed, once."""
    executed()
    return build_book.build(run_notebooks.EXECUTED)


def page(name: str) -> str:
    """The HTML of a built page, such as `book/sft.html`."""
    return (build_book.HTML / name).read_text(encoding="utf-8")


def chapters() -> list[Path]:
    """The book's Markdown pages."""
    return sorted((ROOT / "book").glob("*.md"))


def pages() -> list[str]:
    """Every page of the table of contents, such as `book/sft` and `notebooks/sft`."""
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    found = re.findall(r"^(?:root:|\s*- file:) (\S+)$", toc, re.MULTILINE)
    assert len(found) > 5, "the table of contents could not be read"
    return found
