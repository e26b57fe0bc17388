"""Every notebook runs, and what the repository stores of it is fresh."""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from book_pages import ROOT, chapters, executed
from run_notebooks import EXECUTED, find_notebooks, pins_hash, problems, refresh, source_hash, stamp

from handbook_utils.reporting.claims.notebook import notebook_claim_ids
from handbook_utils.reporting.claims.notebook_breaks import prepare_break, read_notebook_breaks
from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS

NOTEBOOKS = find_notebooks()
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


def test_all_notebooks_run_from_start_to_end() -> None:
    done = executed()
    assert done.returncode == 0, done.stdout[-6000:]
    assert f"{len(NOTEBOOKS)} passed" in done.stdout


@every_notebook
def test_executed_copy_has_the_tracked_source(path: Path) -> None:
    executed()
    tracked, ran = (nbformat.read(p, as_version=4) for p in (path, EXECUTED / path.name))
    assert source_hash(ran) == source_hash(tracked)


@every_notebook
def test_stored_outputs_are_fresh_and_hold_no_traceback(path: Path) -> None:
    assert problems(path) == []


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A small notebook with fresh stored outputs."""
    cell = nbformat.v4.new_code_cell("1 + 1", execution_count=1)
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )
    stamp(notebook)
    path = tmp_path / "small.ipynb"
    nbformat.write(notebook, path)
    return path


def changed(path: Path, change: str) -> Path:
    notebook = nbformat.read(path, as_version=4)
    if change == "source":
        notebook.cells[0].source = "1 + 2"
    elif change == "pins":
        notebook.metadata["handbook"]["pins_hash"] = pins_hash()[::-1]
    elif change == "traceback":
        error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
        notebook.cells[0].outputs = [error]
    elif change == "never run":
        notebook.cells[0].execution_count = None
    nbformat.write(notebook, path)
    return path


def test_fresh_outputs_are_no_problem(fresh: Path) -> None:
    assert problems(fresh) == []


@pytest.mark.parametrize("change", ["source", "pins", "traceback", "never run"])
def test_stale_or_failed_outputs_are_reported(fresh: Path, change: str) -> None:
    (problem,) = problems(changed(fresh, change))
    assert problem.startswith("small.ipynb: ")
    assert "make notebooks" in problem


def test_outputs_and_text_are_no_part_of_the_source_hash(fresh: Path) -> None:
    notebook = nbformat.read(fresh, as_version=4)
    other = copy.deepcopy(notebook)
    other.cells.append(nbformat.v4.new_markdown_cell("A sentence."))
    other.cells[0].outputs = [nbformat.v4.new_output("stream", text="2\n")]
    assert source_hash(other) == source_hash(notebook)


def test_an_unknown_notebook_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert refresh(["stf"]) == 2
    assert "There are: " in capsys.readouterr().err


@every_notebook
def test_notebook_has_a_real_kernelspec(path: Path) -> None:
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


@every_notebook
def test_first_cell_installs_without_pins_and_names_the_hardware(path: Path) -> None:
    first = code_of(path)[0]
    assert "git+https://github.com/" in first
    assert "constraints" not in first
    assert "cpu_count" in first


# what a notebook calls that lies in an extra
EXTRAS = {'"curate"': "curation", "run_benchmarks": "lm-eval"}


@every_notebook
def test_first_cell_installs_the_extra_that_a_later_cell_needs(path: Path) -> None:
    first, *rest = code_of(path)
    for call, extra in EXTRAS.items():
        if any(call in source for source in rest):
            assert f"handbook-utils[{extra}] @" in first


@every_notebook
def test_scale_is_chosen_in_one_line(path: Path) -> None:
    lines = [line for source in code_of(path) for line in source.splitlines() if line.startswith("SCALE")]
    assert lines == ['SCALE = os.environ.get("HANDBOOK_SCALE", "pocket")']


@every_notebook
def test_code_cells_are_short(path: Path) -> None:
    setup, *rest = code_of(path)
    assert len(setup.splitlines()) <= 20
    long = [source for source in rest if len(source.splitlines()) > 26]
    assert not long, f"split this cell: {long[0]}"


@every_notebook
def test_every_drawn_figure_has_alt_text(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if (
            cell.cell_type == "code"
            and re.search(r"\bplot_\w+\(", cell.source)
            and "import" not in cell.source
        ):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) > 30, f"no alt text: {cell.source}"


def test_every_claim_has_breaks_of_two_mechanisms_that_still_apply(tmp_path: Path) -> None:
    folder = ROOT / "notebooks"
    mechanisms: dict[tuple[str, str], set[str]] = {}
    for number, each in enumerate(read_notebook_breaks(folder)):
        prepare_break(each, folder, tmp_path / str(number))
        for claim in each.fails:
            mechanisms.setdefault((each.notebook, claim), set()).add(each.mechanism)
    claims = {(name, claim) for name, ids in notebook_claim_ids(folder).items() for claim in ids}
    assert claims
    assert claims == mechanisms.keys()
    assert [claim for claim, broken in mechanisms.items() if len(broken) < 2] == []


def test_no_two_claims_share_an_id() -> None:
    """A calibration keeps claims by id: of two with one id, a page would show the other's seeds."""
    ids = [each for found in notebook_claim_ids(ROOT / "notebooks").values() for each in found]
    counted = Counter([*ids, *(claim.id for claim in PIPELINE_CLAIMS)])
    assert ids
    assert [name for name, count in counted.items() if count > 1] == []


def test_no_function_is_defined_twice_in_the_book() -> None:
    """Exercise stubs and their solutions share a name on purpose and are left out."""
    sources = [source for path in NOTEBOOKS for source in code_of(path)]
    fence = re.compile(r"```(?:python|\{code-block\} python)\n(?!:class: exercise)(.*?)```", re.DOTALL)
    sources += [code for path in chapters() for code in fence.findall(path.read_text(encoding="utf-8"))]
    defined = Counter(
        node.name
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    )
    assert defined
    assert [name for name, count in defined.items() if count > 1] == []
