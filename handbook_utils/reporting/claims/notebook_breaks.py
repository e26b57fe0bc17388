"""How the claims of notebooks have to break: one line of a notebook or of the package, and what has to fail.

`sabotage.yaml` beside the notebooks lists the breaks. Each runs its notebook once and judges all its claims:

    - notebook: sft.ipynb
      break: loss-on-questions
      mechanism: mask
      says: questions carry loss and answers carry none
      in: chat.loss_masks:_loss        # a function of the package; without it a code cell is changed
      replace: loss = [False] * tokens
      with: loss = [True] * tokens
      fails: [sft-answers-better-than-base]
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from handbook_utils.errors import DataError, suggest
from handbook_utils.reporting.claims.line_breaks import (
    break_package,
    broken_environment,
    check_mechanism,
    replace_once,
)
from handbook_utils.reporting.claims.matrix import FAILED, HELD, Tried
from handbook_utils.reporting.claims.notebook import claim_ids_in, execute_notebook

TABLE = "sabotage.yaml"
MECHANISMS = (
    *("adapter", "batch", "control", "data", "judge", "labels", "loss", "mask", "measure", "model"),
    *("quantisation", "rank", "reference", "rounding", "sampling", "selection", "template"),
)
_KEYS = ("notebook", "break", "mechanism", "says", "in", "replace", "with", "fails")


@dataclass(frozen=True)
class NotebookBreak:
    """One changed line under which claims of a notebook have to fail.

    Attributes:
        notebook: file name beside the table.
        name: lower-case words joined by hyphens, unique for the notebook.
        mechanism: what is broken, one of `MECHANISMS`.
        says: how it is broken, in words.
        old: text to replace.
        new: what stands in its place.
        fails: ids of the claims that have to fail.
        function: "module:function" of the package; None where a cell of the notebook is changed.
    """

    notebook: str
    name: str
    mechanism: str
    says: str
    old: str
    new: str
    fails: tuple[str, ...]
    function: str | None = None


def read_notebook_breaks(folder: Path) -> list[NotebookBreak]:
    """Read the table beside the notebooks; [] where there is none.

    Raises:
        DataError: an entry lacks a key, has one too many, names no mechanism, or breaks none.
    """
    path = folder / TABLE
    if not path.exists():
        return []
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    found = [_break(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, start=1)]
    places = [(each.notebook, each.name) for each in found]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: two breaks of {twice[0]} are called '{twice[1]}'.")
    return found


def _break(entry: Any, where: str) -> NotebookBreak:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: an entry is a mapping with {', '.join(_KEYS)}.")
    for key in entry:
        if key not in _KEYS:
            raise DataError(f"{where}: unknown key '{key}'. {suggest(str(key), _KEYS)}")
    missing = [key for key in _KEYS if key != "in" and not entry.get(key)]
    if missing:
        raise DataError(f"{where}: lacks {', '.join(missing)}.")
    if entry["mechanism"] not in MECHANISMS:
        raise DataError(
            f"{where}: no mechanism '{entry['mechanism']}'. {suggest(entry['mechanism'], MECHANISMS)}"
        )
    check_mechanism(entry["with"], where)
    return NotebookBreak(
        entry["notebook"],
        entry["break"],
        entry["mechanism"],
        entry["says"],
        entry["replace"],
        entry["with"],
        tuple(entry["fails"]),
        entry.get("in"),
    )


def broken_notebook(path: Path, old: str, new: str) -> dict[str, Any]:
    """The notebook's content with one line of its code changed; the file is left alone.

    Raises:
        DataError: there is no such notebook, or not exactly one place to break.
    """
    notebook = read_notebook(path)
    whole = "\f".join(code_sources(notebook))
    cells = [cell for cell in notebook["cells"] if _is_code(cell)]
    for cell, source in zip(cells, replace_once(whole, old, new, str(path)).split("\f"), strict=True):
        cell["source"] = source
    return notebook


def code_sources(notebook: dict[str, Any]) -> list[str]:
    """The source of each code cell."""
    return [cell["source"] for cell in notebook["cells"] if _is_code(cell)]


def broken_cell(path: Path, each: NotebookBreak) -> int:
    """Number of the code cell, from 0, that a break of the notebook changes.

    Raises:
        DataError: as `broken_notebook`.
    """
    sound, broken = code_sources(read_notebook(path)), code_sources(broken_notebook(path, each.old, each.new))
    return next(number for number, source in enumerate(sound) if source != broken[number])


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook's content, each cell's source as one text.

    Raises:
        DataError: there is no such notebook.
    """
    if not path.is_file():
        near = [other.name for other in path.parent.glob("*.ipynb")]
        raise DataError(f"{path}: no such notebook. {suggest(path.name, near)}")
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def prepare_break(each: NotebookBreak, folder: Path, scratch: Path) -> tuple[dict[str, Any], Path | None]:
    """The notebook to run and, where the package is broken, the file that shows that the break was reached.

    Raises:
        DataError: the break fits neither notebook nor package as they are now.
    """
    path = folder / each.notebook
    if each.function is None:
        return broken_notebook(path, each.old, each.new), None
    notebook = read_notebook(path)
    return notebook, break_package(each.function, each.old, each.new, scratch)


def break_key(each: NotebookBreak, folder: Path) -> str:
    """Changes with the notebook's code and with the break: a stored result of another key is out of date."""
    cells = code_sources(read_notebook(folder / each.notebook))
    parts = [*cells, each.function or "", each.old, each.new]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def try_break(each: NotebookBreak, folder: Path, work: Path) -> Tried:
    """Run the broken notebook once, up to its last claim, and see what every claim does.

    Args:
        each: the break.
        folder: of the notebooks.
        work: where the broken one runs; stages that are finished there are not run again.
    Raises:
        DataError: as `prepare_break`.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="handbook-sabotage-") as made:
        scratch = Path(made)
        notebook, called = prepare_break(each, folder, scratch)
        settings = broken_environment(scratch) if called else None
        errors, records = execute_notebook(up_to_last_claim(notebook), work, settings=settings)
        reached = called is None or called.exists()
    ids = [name for source in code_sources(notebook) for name in claim_ids_in(source)]
    results = {name: _result(records.get(name), reached) for name in ids}
    stopped = [f"{name}: {text}"[:200] for name, text in errors if name != "ClaimError"]
    if not reached:
        stopped.insert(0, f"nothing called {each.function}")
    return Tried(results, stopped, round(time.monotonic() - began, 1))


def up_to_last_claim(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook without the cells behind its last claim, which nothing here looks at."""
    claiming = [
        number
        for number, cell in enumerate(notebook["cells"])
        if _is_code(cell) and claim_ids_in(cell["source"])
    ]
    return notebook | {"cells": notebook["cells"][: max(claiming, default=-1) + 1]}


def _result(record: dict[str, Any] | None, reached: bool) -> str | None:
    if record is None or not reached:
        return None
    return HELD if record["holds"] else FAILED


def _is_code(cell: dict[str, Any]) -> bool:
    return bool(cell["cell_type"] == "code")
