"""Run folders: whole or absent, one owner, resumed when the same, refused when not."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbook_utils.errors import DataError, RunFolderError, TrainingError
from handbook_utils.records import Estimate
from handbook_utils.runs.atomic import TEMPORARY, atomic_file, atomic_folder
from handbook_utils.runs.folder import open_run, read_result
from handbook_utils.runs.state import differences, read_manifest, read_metrics, run_fingerprint
from handbook_utils.schema.recipe import load_recipe

FIGURES = {"gold": Estimate(0.5, 0.4, 0.6, 0.95, 10, "gold reward", "bootstrap-t", 0)}


@pytest.fixture
def recipe():
    return load_recipe("pocket/sft")


def finish(path, recipe, **options):
    with open_run(path, recipe, **options) as run:
        run.write_table("rows/part-00000.parquet", pa.table({"a": [1, 2]}))
        return run.finish(FIGURES)


def files_of(path: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != ".lock"
    }


def test_a_finished_run_gives_its_figures_back(tmp_path, recipe):
    result = finish(tmp_path / "run", recipe)
    assert read_result(tmp_path / "run") == result
    assert result.final_metrics == FIGURES
    manifest = read_manifest(tmp_path / "run")
    assert manifest["status"] == "finished"
    assert {"versions", "hardware", "inputs", "seed", "recipe"} <= manifest.keys()
    assert list(manifest["outputs"]) == ["rows/part-00000.parquet"]


def test_an_unbounded_interval_survives_json(tmp_path, recipe):
    unbounded = {"x": Estimate(1.0, float("-inf"), float("inf"), 0.95, 1, "score", "student-t")}
    with open_run(tmp_path / "run", recipe) as run:
        run.finish(unbounded)
    assert read_result(tmp_path / "run").final_metrics == unbounded


def test_a_killed_run_goes_on_with_what_it_finished(tmp_path, recipe):
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "run", recipe) as run:
        run.write_table("rows/part-00000.parquet", pa.table({"a": [1]}))
        raise KeyboardInterrupt
    with pytest.raises(RunFolderError, match="running, not finished"):
        read_result(tmp_path / "run")
    with open_run(tmp_path / "run", recipe) as run:
        assert run.has("rows/part-00000.parquet")
        run.finish(FIGURES)
    assert read_manifest(tmp_path / "run")["runtime_before_s"] >= 0


def test_a_changed_recipe_is_refused_with_the_difference_and_nothing_is_touched(tmp_path, recipe):
    finish(tmp_path / "run", recipe)
    before = files_of(tmp_path / "run")
    before.pop("log.txt")
    changed = load_recipe(recipe, overrides={"training.learning_rate": 0.5})
    with (
        pytest.raises(RunFolderError, match=r"training\.learning_rate: .* -> 0\.5"),
        open_run(tmp_path / "run", changed),
    ):
        pass
    after = files_of(tmp_path / "run")
    after.pop("log.txt")
    assert after == before


def test_a_changed_input_is_refused(tmp_path, recipe):
    finish(tmp_path / "run", recipe, fingerprints={"samples": "aaa"})
    with (
        pytest.raises(RunFolderError, match="input 'samples' has changed"),
        open_run(tmp_path / "run", recipe, fingerprints={"samples": "bbb"}),
    ):
        pass


def test_overwrite_deletes_the_other_run(tmp_path, recipe):
    finish(tmp_path / "run", recipe)
    changed = load_recipe(recipe, seed=9)
    with open_run(tmp_path / "run", changed, overwrite=True) as run:
        assert not run.has("rows")
        run.finish({})
    assert read_manifest(tmp_path / "run")["seed"] == 9


def test_a_folder_of_something_else_is_never_cleared(tmp_path, recipe):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="not a run folder"), open_run(tmp_path, recipe, overwrite=True):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_that_is_not_there_is_told_from_one_that_holds_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"gone: no such folder\.$"):
        read_manifest(tmp_path / "gone")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(RunFolderError, match=r"not a run folder \(it has no manifest\.json\)\.$"):
            read_manifest(place)


@pytest.mark.parametrize("content", ["", "{", '{"stage": "sft"', "[]", "{}", "\x00"])
def test_a_damaged_manifest_is_refused_and_can_be_overwritten(tmp_path, recipe, content):
    finish(tmp_path / "run", recipe)
    (tmp_path / "run" / "manifest.json").write_text(content)
    with (
        pytest.raises(RunFolderError, match=r"manifest\.json: (damaged|not a manifest)"),
        open_run(tmp_path / "run", recipe),
    ):
        pass
    finish(tmp_path / "run", recipe, overwrite=True)
    assert read_manifest(tmp_path / "run")["status"] == "finished"


def test_bad_input_leaves_no_folder_behind(tmp_path, recipe):
    with pytest.raises(DataError), open_run(tmp_path / "run", recipe):
        raise DataError("row 3 has no column 'prompt'")
    assert not (tmp_path / "run").exists()


def test_failed_training_keeps_its_metrics_and_says_so(tmp_path, recipe):
    with pytest.raises(TrainingError), open_run(tmp_path / "run", recipe) as run:
        run.log_metrics({"step": 1, "loss": 2.0})
        raise TrainingError("the loss at step 2 is not a number")
    manifest = read_manifest(tmp_path / "run")
    assert manifest["status"] == "failed"
    assert "step 2" in manifest["error"]
    assert read_metrics(tmp_path / "run") == [{"step": 1, "loss": 2.0}]
    assert "step 2" in (tmp_path / "run" / "log.txt").read_text()


def test_metrics_of_a_step_logged_again_count_once_and_a_cut_line_is_skipped(tmp_path):
    lines = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "eval_loss": 9.0},
        {"step": 2, "loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 1.0},
        {"step": 2, "eval_loss": 9.0},
    ]


def hold(path, recipe, ready, done):
    with open_run(path, recipe):
        ready.set()
        done.wait(20)


def test_a_second_run_on_one_folder_is_refused_with_the_first_ones_process(tmp_path, recipe):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(tmp_path / "run", recipe, ready, done))
    holder.start()
    try:
        assert ready.wait(20)
        with (
            pytest.raises(RunFolderError, match=f"in use by process {holder.pid} on "),
            open_run(tmp_path / "run", recipe),
        ):
            pass
    finally:
        done.set()
        holder.join(20)


def test_the_lock_of_a_killed_process_is_free(tmp_path, recipe):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(tmp_path / "run", recipe, ready, done))
    holder.start()
    assert ready.wait(20)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(20)
    finish(tmp_path / "run", recipe)


def test_a_file_is_whole_or_absent(tmp_path):
    target = tmp_path / "table"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(target) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("half")
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_under_a_temporary_name_is_removed(tmp_path, recipe):
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "run", recipe) as run:
        (run.path / "rows").mkdir()
        (run.path / "rows" / f"{TEMPORARY}1-part").write_text("half")
        (run.path / f"{TEMPORARY}1-model").mkdir()
        raise KeyboardInterrupt
    finish(tmp_path / "run", recipe)
    assert not [f for f in (tmp_path / "run").rglob("*") if f.name.startswith(TEMPORARY)]


def test_a_full_disk_is_a_clear_error_and_the_run_goes_on_afterwards(tmp_path, recipe, monkeypatch):
    import pyarrow.parquet as pq

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", full)
        with (
            pytest.raises(RunFolderError, match="the disk is full"),
            open_run(tmp_path / "run", recipe) as run,
        ):
            run.log_metrics({"step": 1})
            run.write_table("rows/part-00000.parquet", pa.table({"a": [1]}))
    finish(tmp_path / "run", recipe)


def test_a_really_full_disk_is_a_clear_error(tmp_path, recipe):
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root; the faulting file above covers the same path")
    try:
        with pytest.raises(RunFolderError, match="the disk is full"), open_run(mount / "run", recipe) as run:
            run.write_json("big.json", "x" * 200_000)
        assert not (mount / "run" / "big.json").exists()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def open_as_nobody(path, recipe, answer):
    if os.getuid() == 0:  # root may write anywhere
        os.setgid(65534)
        os.setuid(65534)
    try:
        finish(path, recipe)
    except RunFolderError as error:
        answer.send(str(error))


def test_a_folder_without_rights_is_a_clear_error(recipe):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        # forked, because another user may not be able to read this interpreter's files
        context = multiprocessing.get_context("fork")
        answer, sender = context.Pipe()
        child = context.Process(target=open_as_nobody, args=(Path(folder) / "run", recipe, sender))
        child.start()
        assert answer.poll(20)
        assert "permission denied" in answer.recv()
        child.join(20)
        assert not list(Path(folder).iterdir())


def test_a_run_below_a_plain_file_is_a_clear_error(tmp_path, recipe):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(RunFolderError, match="a file, not a folder"),
        open_run(tmp_path / "file" / "run", recipe),
    ):
        pass


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(content=st.dictionaries(st.text(min_size=1, max_size=5), VALUES, max_size=4))
def test_a_recipe_never_differs_from_itself(content):
    assert differences({"recipe": content, "inputs": {}}, content, {}) == []


@given(value=st.integers(), other=st.integers())
def test_a_changed_value_is_always_seen(value, other):
    lines = differences({"recipe": {"a": {"b": value}}, "inputs": {}}, {"a": {"b": other}}, {})
    assert bool(lines) == (value != other)


def test_the_fingerprint_covers_what_was_made_and_not_when(tmp_path, recipe):
    first, second = tmp_path / "a", tmp_path / "b"
    finish(first, recipe)
    finish(second, recipe)
    assert run_fingerprint(first) == run_fingerprint(second)
    with open_run(tmp_path / "c", recipe) as run:
        run.write_table("rows/part-00000.parquet", pa.table({"a": [1, 3]}))
        run.finish(FIGURES)
    assert run_fingerprint(tmp_path / "c") != run_fingerprint(first)
