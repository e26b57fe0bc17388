"""The repository's address is stated once; whatever repeats it is derived, and follows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from book_pages import ROOT
from set_address import files_with_address, read_address, set_address

SELF = re.compile(r"github\.com/([\w.-]+/alignment-handbook)")


def test_every_mention_of_the_address_equals_the_stated_one() -> None:
    mentions = {
        (path.name, found)
        for path in files_with_address(ROOT)
        for found in SELF.findall(path.read_text(encoding="utf-8"))
    }
    assert {name for name, _ in mentions} >= {"_config.yml", "README.md", "CITATION.cff", "sft.ipynb"}
    assert {found for _, found in mentions} == {read_address(ROOT)}


def test_a_new_address_reaches_every_file(tmp_path: Path) -> None:
    for path in files_with_address(ROOT):
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, tmp_path / path.relative_to(ROOT))
    old = read_address(tmp_path)
    assert set_address(tmp_path, "jane/fork")
    assert read_address(tmp_path) == "jane/fork"
    assert [p.name for p in files_with_address(tmp_path) if old in p.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("wrong", ["jane", "https://github.com/jane/fork", "jane/fork; rm"])
def test_an_address_of_another_form_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="owner/name"):
        set_address(ROOT, wrong)
