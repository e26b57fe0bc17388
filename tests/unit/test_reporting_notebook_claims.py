"""Claims in notebooks: found without running, broken by text, judged by a run that goes on after errors."""

from __future__ import annotations

import json

import pytest

from handbook_utils.errors import DataError
from handbook_utils.reporting.claims.calibrate import claims_to_calibrate, run_notebooks
from handbook_utils.reporting.claims.notebook import (
    NotebookSabotage,
    break_notebook,
    claim_ids_in,
    notebook_claim_ids,
    read_notebook_sabotages,
    run_notebook_sabotages,
)

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


def test_a_broken_copy_leaves_the_notebook_alone(notebooks):
    before = (notebooks / "toy.ipynb").read_bytes()
    broken = break_notebook(notebooks / "toy.ipynb", "SIGN = 1", "SIGN = -1")
    assert broken["cells"][2]["source"] == "SIGN = -1"
    assert broken["cells"][0]["source"] == ["SIGN = 1 is text here"]
    assert (notebooks / "toy.ipynb").read_bytes() == before


def test_a_replacement_that_no_longer_occurs_is_an_error(notebooks):
    with pytest.raises(DataError, match="no code cell holds 'SIGN = 2'"):
        break_notebook(notebooks / "toy.ipynb", "SIGN = 2", "")


def test_a_missing_notebook_is_named(notebooks):
    with pytest.raises(DataError, match=r"Did you mean 'toy\.ipynb'"):
        break_notebook(notebooks / "tony.ipynb", "a", "b")


def test_one_run_judges_every_claim_of_a_broken_notebook(notebooks):
    broken = ("toy.ipynb", "wrong sign", "SIGN = 1", "SIGN = -1")
    name, says, old, new = broken
    sabotages = [NotebookSabotage(name, each, says, old, new) for each in ("first-claim", "second-claim")]
    outcomes = run_notebook_sabotages(sabotages, notebooks)
    # the second claim does not use SIGN, so this break does not reach it
    assert [(o.claim, o.result) for o in outcomes] == [
        ("first-claim", "failed"),
        ("second-claim", "survived"),
    ]


def test_calibration_runs_the_notebook_as_it_is_on_disk(notebooks, tmp_path):
    run_notebooks([7], tmp_path / "out", notebooks, claims_to_calibrate(notebooks))
    records = tmp_path / "out" / "seed-7-notebooks" / "toy" / "claims"
    assert {path.stem for path in records.glob("*.json")} == {"first-claim", "second-claim"}


def test_calibration_of_a_notebook_that_is_none_names_the_nearest(notebooks):
    assert claims_to_calibrate(notebooks, ["toy"]) == {"toy": ["first-claim", "second-claim"]}
    with pytest.raises(DataError, match=r"--only tony: .*Did you mean 'toy'"):
        claims_to_calibrate(notebooks, ["tony"])


def test_another_error_than_the_claims_own_shows_nothing(notebooks):
    crash = NotebookSabotage("toy.ipynb", "first-claim", "crash", "SIGN = 1", "SIGN = 1 / 0")
    (outcome,) = run_notebook_sabotages([crash], notebooks)
    assert outcome.result == "error"
    assert "ZeroDivisionError" in outcome.detail


def test_the_table_beside_the_notebooks_is_read(notebooks):
    (notebooks / "sabotage.yaml").write_text(
        "- {notebook: toy.ipynb, claim: first-claim, says: sign, replace: SIGN = 1, with: SIGN = -1, "
        "cheap: true}\n"
    )
    assert read_notebook_sabotages(notebooks) == [
        NotebookSabotage("toy.ipynb", "first-claim", "sign", "SIGN = 1", "SIGN = -1", cheap=True)
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("- {notebook: a, claim: b, says: c, replace: d}", "entry 1: lacks with"),
        ("- {notebook: a, claim: b, says: c, replace: d, with: e, cheep: 1}", "Did you mean 'cheap'"),
        ("- just text", "an entry is a mapping"),
    ],
)
def test_a_wrong_entry_says_what_is_wrong(notebooks, entry, message):
    (notebooks / "sabotage.yaml").write_text(entry)
    with pytest.raises(DataError, match=message):
        read_notebook_sabotages(notebooks)


def test_without_a_table_there_are_no_sabotages(tmp_path):
    assert read_notebook_sabotages(tmp_path) == []
