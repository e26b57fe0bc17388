"""ARCHITECTURE.md: its tree is that of the package, and every file it names is there."""

from __future__ import annotations

import re

import pytest
from package_tree import PACKAGE, PAGE, ROOT, first_sentence, with_tree

TEXT = PAGE.read_text(encoding="utf-8")
PATHS = re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", TEXT)


def test_the_tree_is_fresh() -> None:
    assert with_tree(TEXT) == TEXT, "run: python book/tools/package_tree.py"


def test_every_module_says_what_it_is() -> None:
    assert [path for path in PACKAGE.rglob("*.py") if not first_sentence(path)] == []


@pytest.mark.parametrize("path", sorted(set(PATHS)))
def test_every_path_on_the_page_is_there(path: str) -> None:
    rooms = (ROOT, PACKAGE, ROOT / "tests", ROOT / "book", *(folder for folder in PACKAGE.iterdir()))
    assert any((room / path).exists() for room in rooms)
