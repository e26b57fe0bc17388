"""Run folders of commit eed40be, kept in tests/data, are read, or refused with what redoes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from handbook_utils import load_recipe, plot_training, run_stage
from handbook_utils.errors import RunFolderError
from handbook_utils.reporting.report import write_report
from handbook_utils.runs.folder import open_run, read_result
from handbook_utils.runs.state import differences, read_manifest

KEPT = Path(__file__).parents[1] / "data" / "runs-eed40be"
RUNS = ("samples", "scores", "sft")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return shutil.copytree(KEPT, tmp_path / "runs")


@pytest.mark.parametrize("name", RUNS)
def test_its_recipe_is_the_same_recipe_today(name: str) -> None:
    recipe = load_recipe(KEPT / name / "recipe.yaml")
    content = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert differences(read_manifest(KEPT / name), content, {}) == []


def test_its_metrics_and_curves_are_read(runs: Path, tmp_path: Path) -> None:
    assert read_result(runs / "samples").final_metrics["tokens"].value == 7.25
    assert plot_training(runs / "sft").axes
    page = write_report([runs / name for name in RUNS], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "7.250" in page
    assert "sft: loss over optimiser steps" in page


def test_a_finished_stage_is_not_done_again(runs: Path) -> None:
    before = (runs / "scores" / "manifest.json").read_bytes()
    result = run_stage(runs / "score.yaml", runs / "scores")
    assert result.final_metrics["brief"].value == 0.125
    assert (runs / "scores" / "manifest.json").read_bytes() == before


def test_a_new_stage_reads_its_rows(runs: Path) -> None:
    result = run_stage(runs / "score.yaml", runs / "again", progress=False)
    assert result.final_metrics == read_result(runs / "scores").final_metrics


def test_an_interrupted_run_goes_on(runs: Path) -> None:
    manifest = runs / "scores" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"finished",', '"running",'), "utf-8")
    assert run_stage(runs / "score.yaml", runs / "scores", progress=False).runtime_s > 0


def test_one_whose_inputs_are_of_another_world_is_refused_with_what_redoes_it(runs: Path) -> None:
    recipe = load_recipe(runs / "samples" / "recipe.yaml")
    with (
        pytest.raises(
            RunFolderError, match=r"input 'pocket:prompts' has changed(.|\n)*--overwrite to delete it"
        ),
        open_run(runs / "samples", recipe, fingerprints={"pocket:prompts": "another"}),
    ):
        pass
