"""The packaged pipeline, cut to seconds: it runs, resumes after a kill anywhere, and refuses what it must."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from handbook_utils import run_pipeline, run_stage
from handbook_utils.errors import RecipeError, RunFolderError
from handbook_utils.pipeline.compare import compare_runs
from handbook_utils.pipeline.run import resolve_pipeline, stage_edges
from handbook_utils.runs.folder import RunFolder, read_result
from handbook_utils.runs.state import read_manifest, run_fingerprint
from tests.recipes.tiny import TINY

BASE = {
    "data.0.split": "train[:64]",
    "eval_data.0.split": "test[:8]",
    "training.max_steps": 4,
    "training.save_steps": 2,
}


@pytest.fixture(scope="module")
def pipeline_out(tmp_path_factory):
    out = tmp_path_factory.mktemp("pipeline") / "out"
    run_pipeline("pocket/pipeline", out, overrides=TINY)
    run_stage("pocket/base", out / "base", overrides=BASE, progress=False)
    return out


def test_every_stage_ends_with_figures_that_hold_their_value(pipeline_out):
    _, stages = resolve_pipeline("pocket/pipeline")
    for name in stages:
        result = read_result(pipeline_out / name)
        # fine-tuning on selected samples has no held-out set of its own: `evaluate` measures it
        assert result.final_metrics or result.stage in ("sft", "dpo"), name
        for figure in result.final_metrics.values():
            assert figure.low <= figure.value <= figure.high
        assert result.runtime_s > 0
        assert result.peak_memory_gib > 0


def test_a_second_run_redoes_nothing(pipeline_out):
    before = {path: path.stat().st_mtime_ns for path in pipeline_out.glob("*/result.json")}
    assert len(before) > 20
    run_pipeline("pocket/pipeline", pipeline_out, overrides=TINY)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_stage_is_refused_and_with_overwrite_only_it_and_its_heirs_are_redone(
    pipeline_out, tmp_path
):
    out = tmp_path / "copy"
    shutil.copytree(pipeline_out, out)
    changed = {**TINY, "rft-best.seed": 5, "rft-random.seed": 5}
    with pytest.raises(
        RunFolderError, match="rft-random: holds a finished run that differs:\n  seed: 0 -> 5"
    ):
        run_pipeline("pocket/pipeline", out, overrides={**TINY, "rft-random.seed": 5})
    before = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    run_pipeline("pocket/pipeline", out, overrides=changed, overwrite=True)
    after = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    redone = {name for name in before if before[name] != after[name]}
    assert {"rft-best", "rft-random"} <= redone <= {
        "rft-best", "rft-random", "rft", "rft-control", "evaluate-rft", "evaluate-rft-control",
    }  # fmt: skip


# one stage of each kind
KINDS = [
    "base",
    "sft",
    "reward",
    "dpo",
    "samples",
    "preferences",
    "scores",
    "rft-best",
    "best-of-n",
    "evaluate-rft",
]


def rerun(out: Path, name: str, kill_after: int | None) -> None:
    """Run one stage again in a forked child that kills itself at its n-th durable step."""
    done = 0

    def counted(function):
        def wrapper(*args, **kwargs):
            nonlocal done
            value = function(*args, **kwargs)
            done += 1
            if kill_after is not None and done >= kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return value

        return wrapper

    os.replace = counted(os.replace)
    RunFolder.log_metrics = counted(RunFolder.log_metrics)
    if name == "base":
        run_stage("pocket/base", out / "base", overrides=BASE, progress=False)
    else:
        _, stages = resolve_pipeline("pocket/pipeline", overrides=TINY)
        run_stage(stages[name], out / name, progress=False)


def in_child(out: Path, name: str, kill_after: int | None) -> int:
    child = multiprocessing.get_context("fork").Process(target=rerun, args=(out, name, kill_after))
    child.start()
    child.join(300)
    assert child.exitcode is not None
    return child.exitcode


@pytest.mark.parametrize("name", KINDS)
def test_a_stage_killed_anywhere_resumes_to_the_same_metrics(pipeline_out, tmp_path, name):
    expected = read_result(pipeline_out / name)
    out = tmp_path / "out"
    out.mkdir()
    for other in pipeline_out.iterdir():
        if other.is_dir() and other.name != name:
            (out / other.name).symlink_to(other)
    kills = 0
    for kill_after in (3, 5):
        exitcode = in_child(out, name, kill_after)
        kills += exitcode == -signal.SIGKILL
        assert exitcode in (0, -signal.SIGKILL)
    assert kills, "the stage was never killed, so this shows nothing"
    assert in_child(out, name, None) == 0
    assert dict(read_result(out / name).final_metrics) == dict(expected.final_metrics)
    assert run_fingerprint(out / name) == run_fingerprint(pipeline_out / name)


def test_a_stage_reads_its_inputs_by_their_fingerprint(pipeline_out):
    inputs = read_manifest(pipeline_out / "rft")["inputs"]
    assert inputs == {name: run_fingerprint(pipeline_out / name) for name in ("sft", "rft-best")}


def test_edges_say_which_stage_feeds_which():
    edges = stage_edges(resolve_pipeline("pocket/pipeline")[1])
    assert edges["sft"] == []
    assert set(edges["scores"]) == {"heldout", "reward", "reward-control"}


def test_a_missing_input_names_the_run_and_the_remedy(tmp_path):
    with pytest.raises(RecipeError, match=r"reads the earlier run 'sft'.* --set model.from=PATH"):
        run_stage("pocket/samples", tmp_path / "samples")
    assert not list(tmp_path.iterdir())


def test_an_unfinished_input_is_refused(pipeline_out, tmp_path):
    shutil.copytree(pipeline_out / "sft", tmp_path / "sft")
    manifest = tmp_path / "sft" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "running"}))
    with pytest.raises(RecipeError, match="which is running"):
        run_stage("pocket/samples", tmp_path / "samples")


def test_a_pipeline_with_a_stage_that_reads_a_later_one_is_refused_before_anything_runs(tmp_path):
    recipe = tmp_path / "p.yaml"
    recipe.write_text(
        "stage: pipeline\nstages:\n  samples: {recipe: pocket/samples}\n  sft: {recipe: pocket/sft}\n"
    )
    with pytest.raises(RecipeError, match="reads 'sft', which no earlier stage makes"):
        run_pipeline(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sfft.seed=1", "Did you mean 'sft'"),
        ("sft=1", "starts with a stage's name"),
        ("sft.sed=1", "Did you mean 'seed'"),
    ],
)
def test_a_wrong_override_of_a_pipeline_is_refused(tmp_path, override, message):
    with pytest.raises(RecipeError, match=message):
        run_pipeline("pocket/pipeline", tmp_path / "out", overrides=[override])
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_no_pipeline_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not a pipeline's folder"):
        run_pipeline("pocket/pipeline", tmp_path, overrides=TINY)


def test_comparing_says_what_else_changed(pipeline_out):
    found = compare_runs(pipeline_out / "evaluate-sft", pipeline_out / "evaluate-dpo")
    assert found.metrics["difference"].n == 12
    assert any(line.startswith("model.from: 'sft' -> 'dpo'") for line in found.changes)
    same = compare_runs(pipeline_out / "evaluate-sft", pipeline_out / "evaluate-sft")
    assert same.metrics["difference"].value == 0
    assert same.changes == []
    assert found.cautions, "twelve prompts are few, and that is said"
