"""Claims made in notebooks: found by reading their source, broken by replacing a piece of it.

`sabotage.yaml` beside the notebooks lists the breaks:

    - notebook: sft.ipynb
      claim: mask-matters
      says: the loss falls on the prompt as well
      replace: "completion_only_loss: true"
      with: "completion_only_loss: false"
      cheap: true            # optional: takes seconds, so CI may run it
"""

from __future__ import annotations

import ast
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from handbook_utils.errors import DataError, MissingDependencyError, suggest
from handbook_utils.reporting.claims.outcomes import Outcome

TABLE = "sabotage.yaml"
CELL_TIMEOUT_S = 1800


@dataclass(frozen=True)
class NotebookSabotage:
    """A replacement of source text under which a notebook's claim has to fail.

    Attributes:
        notebook: file name beside the table.
        claim: the claim's id.
        says: what is broken, in words.
        old: text to replace; it has to occur in a code cell.
        new: what to put in its place.
        cheap: whether the notebook runs in seconds.
    """

    notebook: str
    claim: str
    says: str
    old: str
    new: str
    cheap: bool = False


def read_notebook_sabotages(folder: Path) -> list[NotebookSabotage]:
    """Read the table beside the notebooks; [] where there is none.

    Raises:
        DataError: an entry lacks a key, or has one too many.
    """
    path = folder / TABLE
    if not path.exists():
        return []
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    return [_sabotage(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, start=1)]


def _sabotage(entry: Any, where: str) -> NotebookSabotage:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: an entry is a mapping with notebook, claim, says, replace, with.")
    renamed = {{"replace": "old", "with": "new"}.get(key, str(key)): value for key, value in entry.items()}
    known = {field.name for field in fields(NotebookSabotage)}
    for key in renamed.keys() - known:
        valid = known - {"old", "new"} | {"replace", "with"}
        raise DataError(f"{where}: unknown key '{key}'. {suggest(key, valid)}")
    missing = known - {"cheap"} - renamed.keys()
    if missing:
        names = sorted({"old": "replace", "new": "with"}.get(key, key) for key in missing)
        raise DataError(f"{where}: lacks {', '.join(names)}.")
    return NotebookSabotage(**renamed)


def notebook_claim_ids(folder: Path) -> dict[str, list[str]]:
    """Ids of the claims each notebook makes, by file name; read from the source, nothing is run.

    Raises:
        DataError: a claim's id is no literal text, so no table could name it.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.ipynb")):
        ids = [name for source in _code(path) for name in claim_ids_in(source, str(path))]
        if ids:
            found[path.name] = ids
    return found


def claim_ids_in(source: str, where: str = "source") -> list[str]:
    """First arguments of all calls of `claim` in a piece of Python; IPython's magic lines are skipped.

    >>> claim_ids_in('claim("dpo-beats-sft", gain, ">", 0)')
    ['dpo-beats-sft']
    """
    ids = []
    for node in ast.walk(ast.parse(_without_magic(source))):
        if not (isinstance(node, ast.Call) and _calls_claim(node)):
            continue
        candidates = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "claim_id")]
        first = candidates[0] if candidates else None
        if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
            raise DataError(
                f"{where}: a claim's id has to be written out as text, so that its sabotage can name it."
            )
        ids.append(first.value)
    return ids


def cut_at_claims(source: str) -> list[str]:
    """A cell's source in parts that end with a claim each: one that fails must not hide the next.

    >>> cut_at_claims('claim("a", x, ">", 0);\\nclaim("b", x, ">", 0)\\nprint(x)')
    ['claim("a", x, ">", 0);\\n', 'claim("b", x, ">", 0)\\n', 'print(x)']
    """
    lines, body = source.splitlines(keepends=True), ast.parse(_without_magic(source)).body
    ends = [node.end_lineno for node in body if isinstance(node, ast.Expr) and _calls_claim(node.value)]
    places = [0, *ends, len(lines)]
    parts = ["".join(lines[start:end]) for start, end in pairwise(places)]
    return [part for part in parts if part]


def _calls_claim(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and (
        getattr(node.func, "id", getattr(node.func, "attr", "")) == "claim"
    )


def _without_magic(source: str) -> str:
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())


def run_notebook_sabotages(sabotages: Sequence[NotebookSabotage], folder: Path) -> list[Outcome]:
    """Run each broken notebook once and see whether its claims fail.

    Raises:
        DataError: a notebook is missing or does not hold the text to replace.
        MissingDependencyError: nbclient is not installed.
    """
    groups: dict[tuple[str, str, str], list[NotebookSabotage]] = {}
    for each in sabotages:
        groups.setdefault((each.notebook, each.old, each.new), []).append(each)
    return [outcome for group in groups.values() for outcome in _apply(group, folder)]


def _apply(group: Sequence[NotebookSabotage], folder: Path) -> list[Outcome]:
    began = time.monotonic()
    broken = break_notebook(folder / group[0].notebook, group[0].old, group[0].new)
    with tempfile.TemporaryDirectory(prefix="handbook-sabotage-") as scratch:
        errors, records = execute_notebook(broken, Path(scratch))
    seconds = round(time.monotonic() - began, 1)
    outcomes = []
    for each in group:
        failed = any(name == "ClaimError" and f"claim '{each.claim}'" in text for name, text in errors)
        held = records.get(each.claim, {}).get("holds", False)
        result = "failed" if failed else "survived" if held else "error"
        detail = (
            "raised ClaimError" if failed else "; ".join(f"{n}: {t}" for n, t in errors)[:300] or "no error"
        )
        outcomes.append(Outcome(each.claim, each.notebook, each.says, result, detail, None, seconds))
    return outcomes


def break_notebook(path: Path, old: str, new: str) -> dict[str, Any]:
    """The notebook's content with `old` replaced in its code cells; the file is left alone.

    Raises:
        DataError: the text does not occur: the table is out of date.
    """
    if not path.is_file():
        near = [other.name for other in path.parent.glob("*.ipynb")]
        raise DataError(f"{path}: no such notebook. {suggest(path.name, near)}")
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if not any(old in "".join(cell["source"]) for cell in cells):
        raise DataError(f"{path}: no code cell holds {old!r}; mend the entry in {path.parent / TABLE}.")
    for cell in cells:
        cell["source"] = "".join(cell["source"]).replace(old, new)
    return notebook


def execute_notebook(
    content: dict[str, Any], folder: Path, *, settings: dict[str, str] | None = None
) -> tuple[list[tuple[str, str]], dict[str, dict[str, Any]]]:
    """Run all cells in an empty folder, going on after errors.

    Going on lets one run show what every claim in the notebook does, so cells are cut at their claims.

    Args:
        content: the notebook, as parsed JSON.
        folder: where it runs; its runs land here, so that none of an unbroken notebook is reused.
        settings: environment variables for the kernel.

    Returns:
        (name, text) of every error, and the claim records by id.
    """
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError as error:
        raise MissingDependencyError(
            "running notebooks needs nbclient: pip install 'handbook-utils[notebook]'."
        ) from error
    claims = folder / "claims"
    kernel = {**os.environ, "HANDBOOK_CLAIMS_DIR": str(claims), **(settings or {})}
    # read, not built from the dictionary: on disk a cell's source is a list of lines
    notebook = nbformat.reads(json.dumps(content), as_version=4)
    notebook.cells = [
        nbformat.v4.new_code_cell(part)
        for cell in notebook.cells
        if cell.cell_type == "code"
        for part in cut_at_claims(cell.source)
    ]
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, allow_errors=True, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=kernel)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    errors = [(out["ename"], out["evalue"]) for out in outputs if out["output_type"] == "error"]
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in claims.glob("*.json")}
    return errors, records


def _code(path: Path) -> Iterator[str]:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])
