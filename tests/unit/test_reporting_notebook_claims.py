"""Claims in notebooks: found without running, broken by text, judged by a run that goes on after errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handbook_utils.errors import DataError
from handbook_utils.reporting.claims.calibrate import claims_to_calibrate, run_notebooks
from handbook_utils.reporting.claims.line_breaks import break_package, broken_module
from handbook_utils.reporting.claims.notebook import claim_ids_in, notebook_claim_ids
from handbook_utils.reporting.claims.notebook_breaks import (
    NotebookBreak,
    broken_notebook,
    read_notebook_breaks,
    try_break,
)
from handbook_utils.reporting.claims.sabotage import main
from handbook_utils.reporting.claims.sound_runs import SoundRuns

SOURCE = """from handbook_utils.records import Estimate
from handbook_utils.reporting.claims.claim import claim

def gain(sign=1):
    return Estimate(0.2 * sign, 0.2 * sign - 0.05, 0.2 * sign + 0.05, 0.95, 9, "", "made up")
"""


@pytest.fixture
def notebooks(tmp_path):
    cells = [
        SOURCE,
        "SIGN = 1",
        # in one cell: where the first fails, the second has to be judged all the same
        'claim("first-claim", gain(SIGN), ">", 0)\nclaim("second-claim", gain(), ">", 0);',
    ]
    notebook = {
        "cells": [
            {"cell_type": "markdown", "id": "m", "metadata": {}, "source": ["SIGN = 1 is text here"]},
            *(
                {"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None, "outputs": [],
                 "source": cell.splitlines(keepends=True)}
                for i, cell in enumerate(cells)
            ),
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }  # fmt: skip
    (tmp_path / "toy.ipynb").write_text(json.dumps(notebook))
    return tmp_path


def test_claims_are_found_in_the_source(notebooks):
    assert notebook_claim_ids(notebooks) == {"toy.ipynb": ["first-claim", "second-claim"]}


def test_magic_lines_and_other_calls_are_no_claims():
    assert claim_ids_in('%pip install x\n!ls\nprint("claim")\nhu.claim("a-b", e, ">", 0)') == ["a-b"]


def test_an_id_that_is_computed_is_refused():
    with pytest.raises(DataError, match="written out as text"):
        claim_ids_in('claim(f"{name}-beats-sft", e, ">", 0)', "toy.ipynb")


def entry(old="SIGN = 1", new="SIGN = -1", **changes):
    fields = {"notebook": "toy.ipynb", "name": "wrong-sign", "mechanism": "loss", "says": "wrong sign"}
    return NotebookBreak(**(fields | {"old": old, "new": new, "fails": ("first-claim",)} | changes))


def empty(notebooks):
    work = notebooks / "work"
    work.mkdir()
    return work


def test_a_broken_copy_leaves_the_notebook_alone(notebooks):
    before = (notebooks / "toy.ipynb").read_bytes()
    broken = broken_notebook(notebooks / "toy.ipynb", "SIGN = 1", "SIGN = -1")
    assert broken["cells"][2]["source"] == "SIGN = -1"
    assert broken["cells"][0]["source"] == "SIGN = 1 is text here"
    assert (notebooks / "toy.ipynb").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SIGN = 2", "", r"holds 'SIGN = 2' 0 times"),
        ("claim(", "", r"holds 'claim\(' 2 times"),
        ("SIGN = 1", "SIGN = 1\nSIGN = 2", "changes one line"),
        ("SIGN = 1", "SIGN = 1", "changes one line"),
    ],
)
def test_a_break_changes_exactly_one_line(notebooks, old, new, message):
    with pytest.raises(DataError, match=message):
        broken_notebook(notebooks / "toy.ipynb", old, new)


def test_a_missing_notebook_is_named(notebooks):
    with pytest.raises(DataError, match=r"Did you mean 'toy\.ipynb'"):
        broken_notebook(notebooks / "tony.ipynb", "a", "b")


def test_one_run_judges_every_claim_of_a_broken_notebook(notebooks):
    tried = try_break(entry(), notebooks, empty(notebooks))
    # the second claim does not use SIGN, so this break does not reach it
    assert tried.claims == {"first-claim": "failed", "second-claim": "held"}
    assert tried.stopped == []


def test_broken_notebooks_start_with_what_ran_before_their_cell_and_with_nothing_later(notebooks, tmp_path):
    """The toy leaves a file per cell: a break of the third cell starts with two, of the second with one."""
    source = json.loads((notebooks / "toy.ipynb").read_text())
    first, second, third = (cell for cell in source["cells"] if cell["cell_type"] == "code")
    first["source"] = [SOURCE + "from pathlib import Path\nPath('made-0').touch()"]
    second["source"] = ["SIGN = 1\nPath('made-1').touch()"]
    third["source"] += ["\nLATER = 1\nPath('made-2').touch()"]
    (notebooks / "toy.ipynb").write_text(json.dumps(source))
    early, late = entry(), entry("LATER = 1", "LATER = 2", name="late")
    package = entry("near = difflib", "near = []; difflib", name="package", function="errors:suggest")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sound = SoundRuns(notebooks / "toy.ipynb", [early, late, package], scratch)

    def laid_out(each):
        return sorted(path.name for path in sound.lay_out(each).iterdir())

    assert laid_out(late) == ["made-0", "made-1"]
    assert laid_out(early) == ["made-0"]
    assert laid_out(package) == []
    tried = try_break(early, notebooks, sound.lay_out(early))
    assert tried.claims == {"first-claim": "failed", "second-claim": "held"}
    # what the broken run left is gone for the next
    assert laid_out(late) == ["made-0", "made-1"]


def test_for_a_single_break_of_a_cell_the_sound_notebook_does_not_run(notebooks, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "handbook_utils.reporting.claims.sound_runs.execute_notebook", None
    )  # nothing may run
    sound = SoundRuns(notebooks / "toy.ipynb", [entry()], tmp_path)
    assert list(sound.lay_out(entry()).iterdir()) == []


def test_a_line_of_the_package_is_broken_for_the_notebook_alone(notebooks):
    """The toy's figure is a plain record; under this break the record's text form is another one."""
    source = json.loads((notebooks / "toy.ipynb").read_text())
    source["cells"][2]["source"] = "SIGN = -1 if 'broken' in str(gain()) else 1"
    (notebooks / "toy.ipynb").write_text(json.dumps(source))
    package = entry("return f", 'return "broken" + f', function="records:Estimate.__str__")
    assert try_break(package, notebooks, empty(notebooks)).claims["first-claim"] == "failed"
    from handbook_utils.records import Estimate

    assert "broken" not in str(Estimate(0.5, 0.4, 0.6, 0.95, 9, "", "made up"))


def test_a_break_that_nothing_calls_shows_nothing(notebooks):
    idle = entry("near = difflib", "near = []; difflib", function="errors:suggest")
    tried = try_break(idle, notebooks, empty(notebooks))
    assert tried.claims == {"first-claim": None, "second-claim": None}
    assert tried.stopped == ["nothing called errors:suggest"]


@pytest.mark.parametrize(
    ("target", "old", "message"),
    [
        ("chat.loss_mask:_loss", "return", r"no module 'chat\.loss_mask'.*Did you mean 'chat\.loss_masks'"),
        ("chat.loss_masks:_los", "return", "no such function to break. Did you mean '_loss'"),
        ("chat.loss_masks:_loss", "return mask", "holds 'return mask' 0 times"),
    ],
)
def test_a_break_of_what_is_not_there_names_the_nearest(tmp_path, target, old, message):
    with pytest.raises(DataError, match=message):
        break_package(target, old, "pass", tmp_path)


def test_a_broken_module_is_changed_in_one_line_and_notes_that_it_was_called(tmp_path):
    source = 'def f(x):\n    """Text."""\n    return x\n\n\nclass A:\n    def f(self):\n        return 1\n'
    made: dict = {}
    exec(broken_module(source, "A.f", "return 1", "return 2", tmp_path / "called", "m:A.f"), made)
    assert made["f"](1) == 1
    assert not (tmp_path / "called").exists()
    assert made["A"]().f() == 2
    assert (tmp_path / "called").exists()


def project(notebooks, *, new):
    """A book of the toy notebook with one break."""
    for name in ("_config.yml", "_toc.yml"):
        (notebooks / name).touch()
    (notebooks / "notebooks").mkdir()
    (notebooks / "toy.ipynb").rename(notebooks / "notebooks/toy.ipynb")
    (notebooks / "notebooks/sabotage.yaml").write_text(f"[{TABLE.format(new)}]")
    return notebooks


def test_a_result_is_stored_and_a_break_is_not_run_again(notebooks, monkeypatch, capsys):
    monkeypatch.chdir(project(notebooks, new="-1"))
    assert main(["--only", "toy"]) == 0
    stored = json.loads((notebooks / "book/results/sabotage.json").read_text())["places"]["toy"]
    assert stored["wrong-sign"]["claims"] == {"first-claim": "failed", "second-claim": "held"}
    assert "wrong-sign" in capsys.readouterr().out
    monkeypatch.setattr("handbook_utils.reporting.claims.sabotage.try_break", None)  # nothing may run
    assert main(["--only", "toy"]) == 0
    # another list of claims that must fail is judged by the stored result
    table = notebooks / "notebooks/sabotage.yaml"
    table.write_text(table.read_text().replace("[first-claim]", "[first-claim, second-claim]"))
    assert main(["--only", "toy"]) == 1
    assert "survives" in capsys.readouterr().out


def test_a_claim_that_survives_ends_the_command_with_1(notebooks, monkeypatch, tmp_path):
    monkeypatch.chdir(project(notebooks, new="2"))
    assert main(["--only", "toy", "--results", str(tmp_path / "matrix.json")]) == 1
    assert main(["--only", "tony"]) == 2


def test_calibration_runs_the_notebook_as_it_is_on_disk(notebooks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_notebooks([7], Path("out"), notebooks, claims_to_calibrate(notebooks))
    records = tmp_path / "out" / "seed-7-notebooks" / "toy" / "claims"
    assert {path.stem for path in records.glob("*.json")} == {"first-claim", "second-claim"}


def test_calibration_of_a_notebook_that_is_none_names_the_nearest(notebooks):
    assert claims_to_calibrate(notebooks, ["toy"]) == {"toy": ["first-claim", "second-claim"]}
    with pytest.raises(DataError, match=r"--only tony: .*Did you mean 'toy'"):
        claims_to_calibrate(notebooks, ["tony"])


def test_another_error_than_the_claims_own_shows_nothing(notebooks):
    tried = try_break(entry(new="SIGN = 1 / 0"), notebooks, empty(notebooks))
    assert tried.claims == {"first-claim": None, "second-claim": "held"}
    assert "ZeroDivisionError" in tried.stopped[0]


TABLE = (
    "{{notebook: toy.ipynb, break: wrong-sign, mechanism: loss, says: wrong sign, replace: SIGN = 1, "
    "with: SIGN = {}, fails: [first-claim]}}"
)


def test_the_table_beside_the_notebooks_is_read(notebooks):
    (notebooks / "sabotage.yaml").write_text(f"[{TABLE.format('-1')}]")
    assert read_notebook_breaks(notebooks) == [entry()]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("- {notebook: a, break: b, mechanism: loss, says: c, replace: d, fails: [e]}", "1: lacks with"),
        ("- {notebook: a, brake: b}", "Did you mean 'break'"),
        ("- just text", "an entry is a mapping"),
        (f"[{TABLE.format('-1').replace('loss', 'los')}]", "Did you mean 'loss'"),
        (f"[{TABLE.format('-1')}, {TABLE.format('-2')}]", "two breaks of toy.ipynb are called 'wrong-sign'"),
    ],
)
def test_a_wrong_entry_says_what_is_wrong(notebooks, table, message):
    (notebooks / "sabotage.yaml").write_text(table)
    with pytest.raises(DataError, match=message):
        read_notebook_breaks(notebooks)


@pytest.mark.parametrize(
    "change",
    [
        '"training.learning_rate": 0.0',
        "training__learning_rate=0",
        "FASTER = {'train.training.learning_rate': 0, 'x': 1}",
        "max_steps=1",
        '"training.max_steps": 50',
        '"data": []',
        'data=[{"name": "pocket:demonstrations", "split": "train[:0]"}]',
    ],
)
def test_a_break_that_only_keeps_a_run_from_learning_is_refused(notebooks, change):
    table = [{"notebook": "toy.ipynb", "break": "b", "mechanism": "loss", "says": "s"}]
    table[0] |= {"replace": "SIGN = 1", "with": change, "fails": ["first-claim"]}
    (notebooks / "sabotage.yaml").write_text(json.dumps(table))
    with pytest.raises(DataError, match="breaks no mechanism"):
        read_notebook_breaks(notebooks)


@pytest.mark.parametrize("change", ['"training.learning_rate": 0.001', "eval_data=[]", "data=[rows]"])
def test_other_settings_may_be_broken(notebooks, change):
    table = [{"notebook": "toy.ipynb", "break": "b", "mechanism": "loss", "says": "s"}]
    table[0] |= {"replace": "SIGN = 1", "with": change, "fails": ["first-claim"]}
    (notebooks / "sabotage.yaml").write_text(json.dumps(table))
    assert len(read_notebook_breaks(notebooks)) == 1


def test_without_a_table_there_are_no_breaks(tmp_path):
    assert read_notebook_breaks(tmp_path) == []
