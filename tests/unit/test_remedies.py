"""Damage and refusals: one message, exit code 2, nothing written by a refused run; each remedy works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from reporting_fakes import use_fakes
from safetensors.torch import load_file, save_file

from handbook_utils.errors import HandbookError, RecipeError, RunFolderError
from handbook_utils.pipeline.run import resolve_pipeline, run_pipeline
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.folder import open_run, read_result
from handbook_utils.runs.state import is_finished, read_manifest, run_fingerprint
from handbook_utils.sampling.tables import SAMPLES
from handbook_utils.schema.recipe import check_recipe, load_recipe

Handbook = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")


@pytest.fixture
def demo(finished_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished pipeline whose stages are arithmetic, to be damaged."""
    use_fakes(monkeypatch)
    return shutil.copytree(finished_pipeline, tmp_path / "demo")


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and when it was last written."""
    found = {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }
    assert found
    return found


def made(folder: Path) -> dict[str, str]:
    return {run.parent.name: run_fingerprint(run.parent) for run in sorted(folder.glob("*/manifest.json"))}


# ---- damage, and the remedy


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def gone(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink()


DAMAGE: list[list[tuple[Callable[[Path], None], str]]] = [
    [(cut, "heldout/samples/part-00000.parquet")],
    [(gone, "sft/model/quality.json"), (gone, "heldout/samples")],
    [(gone, "sft/model")],
    [(cut, "sft/result.json"), (gone, "heldout/result.json")],
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage[0][1])
def test_the_same_command_again_makes_anew_what_is_damaged(damage: Any, demo: Path) -> None:
    before = made(demo)
    for spoil, place in damage:
        spoil(demo / place)
    run_pipeline("pocket/pipeline", demo)
    assert made(demo) == before
    assert (demo / "sft/model/quality.json").exists()
    assert all(read_result(demo / name).stage for name in before)


def test_a_damaged_manifest_is_refused_by_name_and_overwrite_redoes_that_stage(
    demo: Path, handbook: Handbook, finished_pipeline: Path
) -> None:
    before = made(demo)
    cut(demo / "heldout/manifest.json")
    spoilt = content(demo)
    code, _, stderr = handbook("run", "pocket/pipeline", "--out", demo, "--json")
    assert code == 2
    assert "heldout/manifest.json: damaged" in stderr
    assert "--overwrite" in stderr
    assert content(demo) == spoilt
    sft = spoilt["sft/manifest.json"]
    assert handbook("run", "pocket/pipeline", "--out", demo, "--json", "--overwrite")[0] == 0
    assert made(demo) == before
    assert content(demo)["sft/manifest.json"] == sft  # what was whole is not done again


def test_a_stage_that_reads_a_damaged_run_names_it_and_that_stage_mends_it(
    demo: Path, handbook: Handbook
) -> None:
    cut(demo / "sft/manifest.json")
    names = ("generate", demo / "heldout/recipe.yaml", "--out", demo / "again")
    code, _, stderr = handbook(*names)
    assert code == 2
    assert "'model' reads the run" in stderr
    assert "Run the stage that made it again with --overwrite" in stderr
    assert not (demo / "again").exists()
    assert handbook("train", demo / "sft/recipe.yaml", "--out", demo / "sft", "--overwrite", "--json")[0] == 0
    assert handbook(*names)[0] == 0


def test_weights_that_were_swapped_are_trained_again_with_overwrite(demo: Path) -> None:
    before = made(demo)
    shutil.copyfile(demo / "dpo/model/quality.json", demo / "sft/model/quality.json")
    run_pipeline("pocket/pipeline", demo, overwrite=True)
    assert made(demo) == before
    assert (
        json.loads((demo / "sft/model/quality.json").read_text())["quality"]
        != json.loads((demo / "dpo/model/quality.json").read_text())["quality"]
    )


def test_a_result_that_cannot_be_read_says_what_measures_anew(demo: Path, handbook: Handbook) -> None:
    cut(demo / "evaluate-sft/result.json")
    code, _, stderr = handbook("compare", demo / "evaluate-sft", demo / "evaluate-dpo")
    assert code == 2
    assert "evaluate-sft/result.json: gone or damaged" in stderr
    again = ("evaluate", demo / "evaluate-sft/recipe.yaml", "--out", demo / "evaluate-sft", "--json")
    assert handbook(*again)[0] == 0
    assert handbook("compare", demo / "evaluate-sft", demo / "evaluate-dpo")[0] == 0


def test_a_missing_input_can_be_given_as_the_message_says(
    demo: Path, tmp_path: Path, handbook: Handbook
) -> None:
    alone = ("generate", demo / "heldout/recipe.yaml", "--out", tmp_path / "alone")
    code, _, stderr = handbook(*alone)
    assert (code, "--set model.from=PATH" in stderr) == (2, True)
    assert handbook(*alone, "--set", f"model.from={demo / 'sft'}")[0] == 0


def test_repair_adds_what_it_took_and_not_the_time_until_somebody_looked(demo: Path) -> None:
    part = demo / "heldout/samples/part-00000.parquet"
    before = read_result(demo / "heldout").runtime_s
    cut(part)
    later = time.time() + 240
    os.utime(part, (later, later))
    run_pipeline("pocket/pipeline", demo)
    assert before <= read_result(demo / "heldout").runtime_s < before + 20


# ---- refused runs


def test_a_refused_pipeline_writes_nothing(demo: Path, handbook: Handbook) -> None:
    before = content(demo)
    code, _, stderr = handbook("run", "pocket/pipeline", "--out", demo, "--seed", 5, "--json")
    assert code == 2
    assert "seed: 0 -> 5" in stderr
    assert content(demo) == before


def test_a_refused_stage_writes_nothing(demo: Path, handbook: Handbook) -> None:
    before = content(demo)
    code, _, stderr = handbook("train", "pocket/sft", "--out", demo / "sft", "--seed", 5)
    assert code == 2
    assert "seed: 0 -> 5" in stderr
    assert content(demo) == before


@pytest.mark.parametrize(
    "name",
    [
        "../../evil",
        "a/b",
        "..",
        ".",
        "",
        "a\0b",
        "/tmp/x",
        "a.",
        ".lock",
        "a\nb",
        "~",
        "x" * 101,
        "report.html",
    ],
)
def test_a_stages_name_is_that_of_one_plain_folder(name: str, tmp_path: Path, handbook: Handbook) -> None:
    recipe = {"stage": "pipeline", "stages": {name: {"recipe": "pocket/sft"}}}
    (tmp_path / "p.yaml").write_text(json.dumps(recipe))
    before = sorted(tmp_path.rglob("*"))
    code, _, stderr = handbook("run", tmp_path / "p.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert "names a stage and so its folder" in stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_plain_folders_are_left_alone() -> None:
    names = ["sft", "rft-best", "Stage_2", "étape", "2", "beta-0.01", "beta-0.1"]
    content = {"stage": "pipeline", "stages": {name: {"recipe": "pocket/sft"} for name in names}}
    assert list(load_recipe(check_recipe(content, "test")).stages) == names  # type: ignore[attr-defined]
    content["stages"] |= {"SFT": {"recipe": "pocket/sft"}}  # type: ignore[operator]
    with pytest.raises(RecipeError, match="'sft' and 'SFT' are one folder"):
        check_recipe(content, "test")


# ---- code that a recipe asks for


def code_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> tuple[Path, Path]:
    """A recipe that names a function, and the file that its module leaves when it is imported."""
    mark = folder / f"{module}.ran"
    (folder / f"{module}.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\ndef mood(prompt, text): return 1.0\n"
    )
    monkeypatch.syspath_prepend(folder)
    row = {
        "prompt_id": "p", "sample_index": 0, "prompt": [{"role": "user", "content": "q"}], "completion": "a",
        "tokens": 1, "finish_reason": "stop", "logprob": None,
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row], SAMPLES), folder / "rows.parquet")
    scorer = {"kind": "function", "function": f"{module}:mood", "allow_code": True}
    recipe = {"stage": "score", "data": [{"name": str(folder / "rows.parquet")}], "scorers": {"mood": scorer}}
    (folder / "score.yaml").write_text(json.dumps(recipe))
    (folder / "all.yaml").write_text(
        json.dumps({"stage": "pipeline", "stages": {"s": {"recipe": str(folder / "score.yaml")}}})
    )
    return folder, mark


@pytest.mark.parametrize(("command", "recipe"), [("score", "score.yaml"), ("run", "all.yaml")])
def test_a_recipe_cannot_grant_itself_the_right_to_run_code(
    command: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handbook: Handbook
) -> None:
    folder, mark = code_recipe(tmp_path, monkeypatch, f"moods_for_{command}")
    typed = (command, folder / recipe, "--out", folder / "out", "--json")
    for dry in ([], ["--dry-run"]):
        code, _, stderr = handbook(*typed, *dry)
        assert code == 2
        assert f"the function 'moods_for_{command}:mood'" in stderr
        assert "--allow-code" in stderr
    assert not mark.exists()
    assert not (folder / "out").exists()
    assert handbook(*typed, "--allow-code")[0] == 0
    assert mark.exists()


def test_in_python_code_is_allowed_by_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, mark = code_recipe(tmp_path, monkeypatch, "moods_for_python")
    with pytest.raises(RecipeError, match="allow_code=True"):
        run_stage(folder / "score.yaml", folder / "out", progress=False)
    assert not mark.exists()
    found = run_stage(folder / "score.yaml", folder / "out", progress=False, allow_code=True)
    assert found.final_metrics["mood"].value == 1


# ---- errors nobody expected, and disks


@pytest.fixture
def recipe() -> Any:
    return load_recipe("pocket/sft")


def test_a_run_that_fails_in_any_way_says_so_in_its_manifest_and_goes_on(tmp_path: Path, recipe: Any) -> None:
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "run", recipe):
        1 / 0  # noqa: B018
    manifest = read_manifest(tmp_path / "run")
    assert (manifest["status"], manifest["error"]) == ("failed", "ZeroDivisionError: division by zero")
    assert "Traceback" in (tmp_path / "run/log.txt").read_text()
    with open_run(tmp_path / "run", recipe) as run:
        run.finish({})
    assert is_finished(tmp_path / "run")


def flip(file: Path, place: int) -> None:
    """Spoil some bytes."""
    written = bytearray(file.read_bytes())
    written[place : place + 8] = bytes(255 - byte for byte in written[place : place + 8])
    file.write_bytes(written)


@pytest.mark.parametrize("spoil", [cut, lambda file: flip(file, 30), lambda file: flip(file, -200)])
def test_a_table_that_is_no_parquet_file_is_one_message_with_its_name(
    spoil: Callable[[Path], None], tmp_path: Path, handbook: Handbook
) -> None:
    row = {"prompt_id": "p", "sample_index": 0, "prompt": [{"role": "user", "content": "a question"}]}
    row |= {"completion": "an answer", "tokens": 1, "finish_reason": "stop", "logprob": None}
    pq.write_table(pa.Table.from_pylist([row] * 50, SAMPLES), tmp_path / "rows.parquet")
    spoil(tmp_path / "rows.parquet")
    recipe = {"stage": "score", "data": [{"name": str(tmp_path / "rows.parquet")}]}
    (tmp_path / "s.yaml").write_text(json.dumps({**recipe, "scorers": {"short": {"kind": "length"}}}))
    code, _, stderr = handbook("score", tmp_path / "s.yaml", "--out", tmp_path / "out", "--json")
    assert code == 2
    assert "rows.parquet: a file that is read here is damaged" in stderr
    assert "Traceback" not in stderr


def test_weights_that_were_cut_short_are_one_message(tmp_path: Path, recipe: Any) -> None:
    save_file({"weight": torch.zeros(100)}, tmp_path / "model.safetensors")
    cut(tmp_path / "model.safetensors")
    with (
        pytest.raises(RunFolderError, match="is read here is damaged"),
        open_run(tmp_path / "run", recipe) as run,
    ):
        run.log_metrics({"step": 1})
        load_file(tmp_path / "model.safetensors")
    assert read_manifest(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at inline_container.cc:863] . PytorchStreamWriter failed writing file data/2",
        "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0",
        "Error while serializing: I/O error: No space left on device (os error 28)",
    ],
)
def test_a_full_disk_is_told_in_whatever_words_a_library_has_for_it(
    words: str, tmp_path: Path, recipe: Any
) -> None:
    with pytest.raises(RunFolderError, match="the disk is full"), open_run(tmp_path / "run", recipe) as run:
        run.log_metrics({"step": 1})
        raise RuntimeError(words)
    assert read_manifest(tmp_path / "run")["status"] == "failed"


def test_a_disk_without_room_for_another_manifest_still_has_a_failed_run(tmp_path: Path, recipe: Any) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with pytest.raises(HandbookError, match="the disk is full"), open_run(mount / "run", recipe) as run:
            run.log_metrics({"step": 1})
            with (run.path / "checkpoint").open("wb", buffering=0) as stream:
                while True:
                    stream.write(b"x" * 4096)
        assert read_manifest(mount / "run")["status"] == "failed"
        (mount / "run/checkpoint").unlink()
        with open_run(mount / "run", recipe) as run:
            run.finish({})
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_key_of_a_stage_whose_name_has_dots_can_be_set() -> None:
    stages = {name: {"recipe": "pocket/sft"} for name in ("beta-0", "beta-0.1")}
    pipeline = check_recipe({"stage": "pipeline", "stages": stages}, "test")
    _, resolved = resolve_pipeline(pipeline, overrides={"beta-0.1.training.max_steps": 7, "beta-0.seed": 3})
    assert resolved["beta-0.1"].training["max_steps"] == 7  # type: ignore[attr-defined]
    assert (resolved["beta-0"].seed, resolved["beta-0.1"].seed) == (3, 0)
