"""What a run reads is part of what it is: changes are noticed, earlier runs are compared first."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handbook_utils.errors import RunFolderError
from handbook_utils.pipeline.inputs import check_inputs, fingerprint_inputs
from handbook_utils.pipeline.run import run_pipeline
from handbook_utils.pipeline.stages import is_done, run_stage
from handbook_utils.records import Completion
from handbook_utils.runs.checksums import input_fingerprint, is_same_input
from handbook_utils.runs.folder import open_run
from handbook_utils.runs.state import read_manifest
from handbook_utils.sampling.tables import samples_table
from handbook_utils.schema.recipe import check_recipe
from tests.tiny_models import tiny_model

TRAINED = {"stage": "sft", "data": [{"name": "pocket:demonstrations"}], "global_batch_size": 2}
SAMPLED = {"stage": "generate", "model": {"name": "pocket:base"}, "data": [{"name": "pocket:prompts"}]}


def score_recipe(**scorers: Any) -> Any:
    scorers = scorers or {"brief": {"kind": "length", "at_most": 3}}
    return check_recipe({"stage": "score", "data": [{"from": "sampled"}], "scorers": scorers}, "test")


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    """A finished run of two answers."""
    prompt = [{"role": "user", "content": "Name a fruit."}]
    rows = [Completion(f"p{n}", 0, prompt, f"Pear {n}.", 3, "stop", -1.0) for n in range(2)]
    with open_run(tmp_path / "sampled", check_recipe(SAMPLED, "test"), progress=False) as run:
        run.write_table("samples/part-00000.parquet", samples_table(rows))
        run.finish({})
    return tmp_path / "sampled"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A finished run with a model in it."""
    recipe = check_recipe({**TRAINED, "model": {"name": "pocket:base"}}, "test")
    with open_run(tmp_path / "trained", recipe, progress=False) as run:
        tiny_model("llama", run.path / "model")
        run.finish({})
    return tmp_path / "trained"


def alter(samples: Path) -> None:
    file = samples / "samples" / "part-00000.parquet"
    table = pq.read_table(file)
    place = table.column_names.index("completion")
    pq.write_table(table.set_column(place, "completion", pa.array(["Stone.", "Loud."])), file)


def test_an_altered_completion_of_an_earlier_run_is_refused_and_its_stage_named(
    sampled: Path, tmp_path: Path
) -> None:
    run_stage(score_recipe(), tmp_path / "scored", progress=False)  # as it was written it is read
    alter(sampled)
    with pytest.raises(RunFolderError, match=r"sampled: samples.part-00000.parquet .*altered.*--overwrite"):
        run_stage(score_recipe(), tmp_path / "again", progress=False)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("named", ["from", "name"])
def test_swapped_weights_of_an_earlier_run_are_refused_before_they_are_read(
    named: str, trained: Path, tmp_path: Path
) -> None:
    place = "trained" if named == "from" else str(trained)
    content = {**SAMPLED, "model": {named: place}, "data": [{"name": str(tmp_path / "no such file")}]}
    tiny_model("llama", trained / "model", seed=1)
    with pytest.raises(RunFolderError, match=r"trained: model.model.safetensors is missing or was altered"):
        run_stage(check_recipe(content, "test"), tmp_path / "answers", progress=False)


def test_a_file_of_an_earlier_run_that_is_gone_is_named(sampled: Path, tmp_path: Path) -> None:
    (sampled / "samples" / "part-00000.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"part-00000.parquet is missing"):
        run_stage(score_recipe(), tmp_path / "scored", progress=False)


def test_files_inside_an_inner_run_are_compared_too(sampled: Path, tmp_path: Path) -> None:
    recipe = check_recipe(SAMPLED, "test")
    with open_run(tmp_path / "rounds", recipe, progress=False) as run:
        with open_run(run.path / "round-1", recipe, progress=False) as inner:
            inner.write_table("samples/part-00000.parquet", pa.table({"a": [1]}))
            inner.finish({})
        run.finish({})
    check_inputs(recipe, {"rounds": tmp_path / "rounds"})
    (tmp_path / "rounds" / "round-1" / "samples" / "part-00000.parquet").write_bytes(b"x")
    with pytest.raises(RunFolderError, match="round-1: samples"):
        check_inputs(recipe, {"rounds": tmp_path / "rounds"})


def test_the_remedy_for_an_altered_stage_of_a_pipeline_works(tmp_path: Path, sampled: Path) -> None:
    stages = {
        "scored": {"recipe": str(tmp_path / "score.yaml"), "data": [{"from": str(sampled)}]},
        "chosen": {"recipe": str(tmp_path / "select.yaml")},
    }
    files = {
        "score": {"stage": "score", "data": [{"from": "x"}], "scorers": {"brief": {"kind": "length"}}},
        "select": {"stage": "select", "data": [{"from": "scored"}], "by": "brief", "strategy": "best"},
        "pipeline": {"stage": "pipeline", "stages": stages},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content), encoding="utf-8")
    out = tmp_path / "runs"
    run_pipeline(str(tmp_path / "pipeline.yaml"), out)
    before = read_manifest(out / "scored")["outputs"]
    file = next((out / "scored" / "scores").glob("*.parquet"))
    file.write_bytes(b"damaged")
    run_pipeline(str(tmp_path / "pipeline.yaml"), out, overwrite=True)
    assert read_manifest(out / "scored")["outputs"] == before
    check_inputs(check_recipe(files["select"], "test"), {"scored": out / "scored"})


def test_a_template_file_that_was_mended_is_noticed(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}", encoding="utf-8")
    recipe = check_recipe(
        {**TRAINED, "model": {"name": "pocket:base", "chat_template": str(template)}}, "test"
    )
    with open_run(tmp_path / "run", recipe, fingerprints=fingerprint_inputs(recipe, {})) as run:
        run.finish({})
    assert is_done(tmp_path / "run", recipe, {})
    template.write_text("{{ messages }}\n", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"input '.*chat\.jinja' has changed since"):
        run_stage(recipe, tmp_path / "run", progress=False)


def test_a_verifier_that_was_changed_is_noticed(
    tmp_path: Path, sampled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_checks"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "fruit.py").write_text("def good(prompt, answer): return 1", encoding="utf-8")
    helper = package / "helper.py"
    helper.write_text("X = 1", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = score_recipe(ok={"kind": "function", "function": "my_checks.fruit:good", "allow_code": True})
    first = fingerprint_inputs(recipe, {})
    assert list(first) == ["my_checks.fruit:good"]
    assert "my_checks" not in sys.modules  # it was looked at, not run
    assert fingerprint_inputs(recipe, {}) == first
    helper.write_text("X = 10", encoding="utf-8")
    assert fingerprint_inputs(recipe, {}) != first


def test_text_and_packaged_names_are_no_files(tmp_path: Path) -> None:
    for template in ("chatml", "{{ messages }}", "{{ messages }}\n" * 2000):
        recipe = check_recipe(
            {**TRAINED, "data": [{"name": "no/such"}], "model": {"name": "hub/x", "chat_template": template}},
            "test",
        )
        assert fingerprint_inputs(recipe, {}) == {}


def test_settings_of_a_trainer_in_a_file_belong_to_the_run(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text("{}", encoding="utf-8")
    content = {**TRAINED, "model": {"name": "hub/x"}, "training": {"deepspeed": str(file)}}
    assert str(file) in fingerprint_inputs(check_recipe(content, "test"), {})


SIZE = 32 << 20


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a large sparse weight file; its tensors are a small one between two large ones."""
    folder = tmp_path_factory.mktemp("weights")
    ends = [0, SIZE // 2, SIZE // 2 + 300, SIZE]
    names = ("first", "norm", "last")
    header = {
        name: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for name, begin, end in zip(names, ends, ends[1:], strict=False)
    }
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + SIZE)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def overwrite(file: Path, start: int, length: int) -> Callable[[], None]:
    """Write ones into a file; returns what takes them back."""
    with file.open("r+b") as stream:
        stream.seek(start)
        before = stream.read(length)
        stream.seek(start)
        stream.write(b"\1" * len(before))

    def undo() -> None:
        with file.open("r+b") as stream:
            stream.seek(start)
            stream.write(before)

    return undo


@pytest.mark.parametrize(
    ("start", "length"),
    [
        pytest.param(SIZE // 3, 1 << 18, id="a tensor of 256 KiB"),
        pytest.param(SIZE // 2 + 299, 1, id="one number of a small tensor"),
        pytest.param(SIZE // 2 + 301, 1 << 10, id="the beginning of a large one"),
        pytest.param(SIZE, 1 << 10, id="the end"),
    ],
)
def test_weights_that_were_changed_anywhere_are_noticed(start: int, length: int, model_folder: Path) -> None:
    file = model_folder / "model.safetensors"
    before = input_fingerprint(model_folder)
    offset = file.stat().st_size - SIZE
    undo = overwrite(file, min(start, SIZE - length) + offset, length)
    assert input_fingerprint(model_folder) != before
    undo()
    assert input_fingerprint(model_folder) == before


def test_a_model_folder_is_told_by_all_its_small_files_and_by_no_hidden_ones(model_folder: Path) -> None:
    before = input_fingerprint(model_folder)
    (model_folder / ".cache").mkdir()
    (model_folder / ".cache" / "download.metadata").write_text("today", encoding="utf-8")
    assert input_fingerprint(model_folder) == before
    for name in ("config.json", "chat_template.jinja"):
        file = model_folder / name
        text = file.read_text(encoding="utf-8") if file.exists() else None
        file.write_text("changed", encoding="utf-8")
        assert input_fingerprint(model_folder) != before
        file.unlink() if text is None else file.write_text(text, encoding="utf-8")
    assert input_fingerprint(model_folder) == before


def test_a_large_file_that_only_looks_like_safetensors_is_told_as_well(tmp_path: Path) -> None:
    for begin in (b"", (20).to_bytes(8, "little") + b"not JSON", (4).to_bytes(8, "little") + b"[[1]"):
        file = tmp_path / "model.safetensors"
        file.write_bytes(begin)
        os.truncate(file, 4 << 20)
        before = input_fingerprint(tmp_path)
        undo = overwrite(file, 2 << 20, 1 << 18)
        assert input_fingerprint(tmp_path) != before
        undo()


def test_runs_that_recorded_every_byte_of_a_model_are_believed_and_compared(model_folder: Path) -> None:
    from handbook_utils.runs.atomic import sha256_of

    now, earlier = input_fingerprint(model_folder), sha256_of(model_folder)
    assert now != earlier
    assert is_same_input(str(model_folder), earlier, now)
    assert not is_same_input(str(model_folder), "0" * 64, now)
    assert not is_same_input(str(model_folder), now, "blocks:" + "0" * 64)


def test_a_data_folder_keeps_the_fingerprint_of_every_byte(tmp_path: Path) -> None:
    from handbook_utils.runs.atomic import sha256_of

    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    assert input_fingerprint(tmp_path) == sha256_of(tmp_path)
    assert input_fingerprint(tmp_path / "rows.jsonl") == sha256_of(tmp_path / "rows.jsonl")
