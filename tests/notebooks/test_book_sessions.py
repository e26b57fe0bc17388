"""Python sessions in the chapters (blocks of `pycon`) give what they show."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from book_pages import chapters

BLOCK = re.compile(r"```pycon\n(.*?)```", re.DOTALL)
SESSIONS = {
    path.stem: "\n".join(blocks)
    for path in chapters()
    if (blocks := BLOCK.findall(path.read_text(encoding="utf-8")))
}


def test_there_are_sessions() -> None:
    assert "data" in SESSIONS


@pytest.mark.parametrize("name", SESSIONS)
def test_a_chapters_session_gives_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # a session may write files
    test = doctest.DocTestParser().get_doctest(SESSIONS[name], {}, f"book/{name}.md", None, 0)
    # a page is narrow, so what is shown may be broken over lines
    found = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert found.attempted > 0
    assert found.failed == 0, capsys.readouterr().out
