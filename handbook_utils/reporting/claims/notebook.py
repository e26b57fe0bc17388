"""Claims made in notebooks: found by reading their source, judged by running it."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from handbook_utils.errors import DataError, MissingDependencyError
from handbook_utils.processes import PATIENT

CELL_TIMEOUT_S = 1800


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


def execute_notebook(
    content: dict[str, Any],
    folder: Path,
    *,
    settings: dict[str, str] | None = None,
    before_cell: Callable[[int], None] | None = None,
) -> tuple[list[tuple[str, str]], dict[str, dict[str, Any]]]:
    """Run all cells in a folder, going on after errors.

    Going on lets one run show what every claim in the notebook does, so cells are cut at their claims.

    Args:
        content: the notebook, as parsed JSON.
        folder: where it runs, and where its runs land; stages that are finished there are not run again.
        settings: environment variables for the kernel.
        before_cell: called with the number of a code cell, from 0, before it runs.

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
    kernel = {**PATIENT, **os.environ, "HANDBOOK_CLAIMS_DIR": str(claims), **(settings or {})}
    # read, not built from the dictionary: on disk a cell's source is a list of lines
    notebook = nbformat.reads(json.dumps(content), as_version=4)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    parts = [(number, part) for number, source in enumerate(sources) for part in cut_at_claims(source)]
    notebook.cells = [nbformat.v4.new_code_cell(part) for _, part in parts]
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, allow_errors=True, resources={"metadata": {"path": str(folder)}}
    )
    begun: set[int] = set()

    def starts(cell_index: int, **_: Any) -> None:
        number = parts[cell_index][0]
        if before_cell is not None and number not in begun:
            begun.add(number)
            before_cell(number)

    client.on_cell_start = starts
    client.execute(env=kernel)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    errors = [(out["ename"], out["evalue"]) for out in outputs if out["output_type"] == "error"]
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in claims.glob("*.json")}
    return errors, records


def _code(path: Path) -> Iterator[str]:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])
