"""What a notebook's run has left becomes the book's data."""

from __future__ import annotations

import json
import shutil

import pytest
import run_notebooks

from handbook_utils.reporting.runs import read_pipeline


@pytest.fixture
def executed(finished_pipeline, tmp_path, monkeypatch):
    """A folder as `execute` leaves it: a notebook of one claim, and the run folders of seed 7."""
    book = tmp_path / "checkout"
    book.mkdir()
    for name in ("_config.yml", "_toc.yml"):
        (book / name).touch()
    monkeypatch.chdir(book)
    folder = tmp_path / "executed"
    shutil.copytree(finished_pipeline, folder / "runs" / "toy-pocket-7")
    cell = {"cell_type": "code", "source": 'claim("toy-holds", found, ">", 0)'}
    (folder / "toy.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4}))
    return folder


def stored(executed) -> dict[str, object]:
    return json.loads(run_notebooks.store_results("toy", executed).read_text(encoding="utf-8"))


def test_estimates_beside_the_run_folders_are_stored_with_them(executed, finished_pipeline):
    views = read_pipeline(finished_pipeline)
    estimate = next(iter(views["evaluate-sft"].final_metrics.values())).to_json()
    aside = executed / "runs" / "toy-pocket-7" / "measured.json"
    aside.write_text(json.dumps({"naive": {"longer": estimate}}), encoding="utf-8")
    found = stored(executed)
    assert found["measured"] == {"naive": {"longer": estimate}}
    assert "evaluate-sft" in found["models"]
    assert (found["scale"], found["seeds"]) == ("pocket", [7])


def test_a_notebook_that_measures_nothing_aside_stores_no_such_metrics(executed):
    assert stored(executed)["measured"] == {}


def test_lines_about_the_computer_are_not_stored_and_other_warnings_are():
    noise = f"{run_notebooks.ABOUT_THE_COMPUTER} from afar: no such module\n"
    alone, mixed = ({"name": "stderr", "text": text} for text in (noise, f"{noise}UserWarning: look\n"))
    picture = {"output_type": "display_data", "data": {}}
    kept = run_notebooks.for_readers([alone, mixed, picture])
    assert kept == [{"name": "stderr", "text": "UserWarning: look\n"}, picture]
