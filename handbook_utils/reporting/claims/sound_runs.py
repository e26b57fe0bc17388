"""Start broken notebooks where the sound one stood: what comes before the broken cell runs once for all.

A stage that finds its own finished run does not train again. So each broken notebook starts with the runs
that the sound one had made before its broken cell, and with none made later. A break of the package reaches
any cell and starts with nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from handbook_utils.reporting.claims.notebook import execute_notebook
from handbook_utils.reporting.claims.notebook_breaks import (
    NotebookBreak,
    broken_cell,
    read_notebook,
)

CLAIMS = "claims"  # made anew by the cells that stand before the break


class SoundRuns:
    """Folders as a sound notebook leaves them before each of its cells that is broken.

    Args:
        path: the notebook.
        breaks: of it; those of the package are passed over.
        scratch: an empty folder; takes a copy per broken cell.
    Raises:
        DataError: a break does not fit the notebook.
    """

    def __init__(self, path: Path, breaks: Iterable[NotebookBreak], scratch: Path) -> None:
        self._path, self._scratch = path, scratch
        self._cells = {each.name: broken_cell(path, each) for each in breaks if each.function is None}

    def lay_out(self, each: NotebookBreak) -> Path:
        """A folder to run the broken notebook in: always the same path, since runs may record theirs."""
        work = self._scratch / "work"
        shutil.rmtree(work, ignore_errors=True)
        # for a single break, running the sound notebook first saves nothing
        if each.function is not None or len(self._cells) == 1:
            work.mkdir()
            return work
        before = self._before(self._cells[each.name])
        if not before.exists():
            self._run_sound(work)
            shutil.rmtree(work)
        shutil.copytree(before, work, ignore=shutil.ignore_patterns(CLAIMS))
        return work

    def _before(self, cell: int) -> Path:
        return self._scratch / f"before-{cell}"

    def _run_sound(self, work: Path) -> None:
        wanted = set(self._cells.values())
        notebook = read_notebook(self._path)
        code = [number for number, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]
        # the last broken cell is only reached, not run
        kept = notebook["cells"][: code[max(wanted)]]
        marker = {**notebook["cells"][code[0]], "id": "reached", "source": "pass"}

        def keep(cell: int) -> None:
            if cell in wanted:
                shutil.copytree(work, self._before(cell))

        work.mkdir()
        execute_notebook(notebook | {"cells": [*kept, marker]}, work, before_cell=keep)
