"""Run the book's notebooks, store their outputs with a stamp, and tell when a stamp is stale.

    python book/tools/run_notebooks.py refresh        run all, store outputs and stamps in notebooks/
    python book/tools/run_notebooks.py refresh dpo    the same for notebooks/dpo.ipynb alone
    python book/tools/run_notebooks.py check          exit with 1 when stored outputs are stale or failed

A stamp has the hash of the notebook's code cells and the hash of the pinned versions it ran with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

sys.path.insert(0, str(Path(__file__).parent))
from set_address import PLACEHOLDER, read_address

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
EXECUTED = ROOT / "runs" / "notebooks"  # not below _build, which nbmake leaves out
CELL_TIMEOUT_S = 900
# bitsandbytes says this on some CPUs when it is imported: about that computer, and not for readers
ABOUT_THE_COMPUTER = "Failed to load CPU gemm_4bit_forward"


def find_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """All notebooks of the book, by name."""
    return sorted(folder.glob("*.ipynb"))


def source_hash(notebook: Any) -> str:
    """Hash of what decides about outputs: the source of every code cell, and the kernel's name.

    The repository's address is left out: publishing a fork does not make its outputs stale. So is text: a
    mended sentence wants no new run.
    """
    address = read_address(ROOT)
    parts = [notebook.metadata.get("kernelspec", {}).get("name", "")]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            parts.append(cell.source.replace(address, PLACEHOLDER))
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


def pins_hash(constraints: Path = ROOT / "constraints.txt") -> str:
    """Hash of the pinned versions, comments and order aside."""
    lines = [line.split("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines()]
    return hashlib.sha256("\n".join(sorted(filter(None, lines))).encode()).hexdigest()


def stamp(notebook: Any) -> None:
    """Write the stamp into the notebook's metadata, in place."""
    notebook.metadata["handbook"] = {"source_hash": source_hash(notebook), "pins_hash": pins_hash()}


def problems(path: Path) -> list[str]:
    """What is wrong with the stored outputs of one notebook; empty when nothing is."""
    notebook = nbformat.read(path, as_version=4)
    stored = notebook.metadata.get("handbook", {})
    found = []
    if stored.get("source_hash") != source_hash(notebook):
        found.append("its source changed after its outputs were stored")
    if stored.get("pins_hash") != pins_hash():
        found.append("constraints.txt changed after its outputs were stored")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if cell.execution_count is None:
            found.append(f"cell {number} was never run")
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"cell {number} holds a traceback")
    return [f"{path.name}: {what}. Run `make notebooks`." for what in found]


def execute(paths: Sequence[Path], into: Path = EXECUTED) -> subprocess.CompletedProcess[str]:
    """Run copies of notebooks with nbmake, from nothing: no earlier run folder is reused.

    Args:
        paths: the notebooks.
        into: folder of the executed copies; emptied first.

    Returns:
        The finished pytest process; `returncode` is 0 when every notebook ran through.
    """
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    copies = [shutil.copy2(path, into / path.name) for path in paths]
    # the suite's own options (warnings are errors, ...) are not meant for a notebook's kernel
    options = ["-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:cacheprovider", "-q"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbmake",
        "--overwrite",
        f"--nbmake-timeout={CELL_TIMEOUT_S}",
    ]
    return subprocess.run(
        [*command, *options, *copies], cwd=ROOT, text=True, capture_output=True, check=False
    )


def for_readers(outputs: Sequence[Any]) -> list[Any]:
    """The outputs without lines that are about the computer they were made on."""
    kept = []
    for each in outputs:
        if "text" in each:
            lines = each["text"].splitlines(keepends=True)
            each["text"] = "".join(line for line in lines if ABOUT_THE_COMPUTER not in line)
        if each.get("text", True):
            kept.append(each)
    return kept


def store(executed: Path, tracked: Path) -> None:
    """Put an executed copy's outputs into the tracked notebook, without timings, and stamp it."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec", "language_info")}
    # the interpreter's patch level is not the reader's business, and it makes noise in diffs
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = for_readers(cell.outputs)
    stamp(notebook)
    nbformat.write(notebook, tracked)


def store_results(name: str, executed: Path = EXECUTED) -> Path:
    """Write `book/results/<name>.json` from what a notebook's run has left.

    That is its run folders, its claims and, for what no stage measures, `measured.json` beside the folders:
    estimates by group and name.
    """
    from handbook_utils.reporting.claims.claim import read_claims
    from handbook_utils.reporting.claims.notebook import notebook_claim_ids
    from handbook_utils.reporting.results import pipeline_results, training_curves, write_result
    from handbook_utils.reporting.runs import read_pipeline

    (runs,) = (executed / "runs").glob(f"{name}-*")
    _, scale, seed = runs.name.rsplit("-", 2)
    views = read_pipeline(runs)
    own = notebook_claim_ids(executed)[f"{name}.ipynb"]
    curves = {view.name: found for view in views.values() if (found := training_curves(view))}
    aside = runs / "measured.json"
    payload = pipeline_results(views) | {
        "measured": json.loads(aside.read_text(encoding="utf-8")) if aside.is_file() else {},
        "scale": scale,
        "curves": curves,
        "claims": {record["id"]: record for record in read_claims() if record["id"] in own},
    }
    made = next(iter(views.values())).manifest
    return write_result(name, payload, seeds=[int(seed)], made=made)


def refresh(names: Sequence[str] = ()) -> int:
    """Run the named notebooks, or all, and store their outputs and figures; returns the exit code."""
    paths = [path for path in find_notebooks() if not names or path.stem in names]
    unknown = sorted(set(names) - {path.stem for path in paths})
    if unknown:
        known = ", ".join(path.stem for path in find_notebooks())
        print(f"no notebook '{unknown[0]}'. There are: {known}.", file=sys.stderr)
        return 2
    done = execute(paths)
    print(done.stdout[-6000:])
    if done.returncode == 0:
        for path in paths:
            store(EXECUTED / path.name, path)
            results = store_results(path.stem)
            print(f"refreshed {path.relative_to(ROOT)} and {results.relative_to(ROOT)}")
    return done.returncode


def check() -> int:
    """Print every problem of the stored outputs; returns the exit code."""
    found = [problem for path in find_notebooks() for problem in problems(path)]
    print("\n".join(found) or "stored outputs are fresh")
    return 1 if found else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["refresh", "check"])
    parser.add_argument("names", nargs="*", help="notebooks to refresh, such as dpo; all without any")
    asked = parser.parse_args()
    return refresh(asked.names) if asked.action == "refresh" else check()


if __name__ == "__main__":
    raise SystemExit(main())
