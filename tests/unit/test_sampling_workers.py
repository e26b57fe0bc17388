"""Worker processes as a run starts them: the bytes of one process, and an end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from handbook_utils.errors import DataError, ModelError, RunFolderError
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.state import read_metrics
from handbook_utils.sampling.execution import workers
from handbook_utils.sampling.execution.workers import run_workers
from handbook_utils.schema.stages import GenerateRecipe
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning"),
    pytest.mark.usefixtures("one_thread"),
]


TWO = {"kind": "processes", "workers": 2}


def recipe(model: Path, **changes: Any) -> GenerateRecipe:
    content = {
        "stage": "generate",
        "model": {"name": str(model)},
        "data": [{"name": "pocket:prompts", "split": "test[:14]"}],
        "samples": 3,
        "prompts_per_part": 2,
        "max_new_tokens": 8,
    }
    return GenerateRecipe(**{**content, **changes})


def content(folder: Path) -> dict[str, bytes]:
    files = [*sorted((folder / "samples").iterdir()), folder / "shards.json"]
    assert len(files) == 8
    return {file.name: file.read_bytes() for file in files}


def test_two_worker_processes_give_the_bytes_of_one_and_its_metrics(tiny_model_folder, tmp_path):
    run_stage(recipe(tiny_model_folder), tmp_path / "one", progress=False)
    run_stage(recipe(tiny_model_folder, executor=TWO), tmp_path / "two", progress=False)
    assert content(tmp_path / "two") == content(tmp_path / "one")
    kept = [{**each, "time": None} for each in read_metrics(tmp_path / "two")]
    assert kept == [{**each, "time": None} for each in read_metrics(tmp_path / "one")]
    # a run goes on with another number of workers
    (tmp_path / "two" / "samples" / "part-00003.parquet").unlink()
    run_stage(recipe(tiny_model_folder), tmp_path / "two", progress=False)
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_an_error_in_a_worker_is_raised_as_what_it_is(tiny_model_folder, tmp_path):
    with pytest.raises(DataError, match=r"prompt '.*' has \d+ tokens; with max_new_tokens=511"):
        run_stage(
            recipe(tiny_model_folder, max_new_tokens=511, executor=TWO), tmp_path / "run", progress=False
        )
    assert not (tmp_path / "run").exists()


def stand_in(monkeypatch, code: str) -> None:
    """Let workers run some lines of Python instead of their module."""
    original = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        return original([sys.executable, "-c", code, *command[3:]], **options)

    monkeypatch.setattr(workers.subprocess, "Popen", popen)


def test_workers_that_were_all_killed_are_told_of(tmp_path, monkeypatch):
    stand_in(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunFolderError, match=r"all 2 workers were killed \(signal 9;"):
        list(run_workers(2, tmp_path, "model"))


def test_a_worker_that_breaks_is_told_of_and_the_others_are_ended(tmp_path, monkeypatch):
    """The first to come breaks; the other would sleep for a minute, were its input not closed."""
    code = (
        "import os, sys, threading, time\n"
        "threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()\n"
        "try:\n"
        "    os.mkdir(os.path.join(sys.argv[1], 'first'))\n"
        "except FileExistsError:\n"
        "    time.sleep(60)\n"
        "sys.exit(7)\n"
    )
    stand_in(monkeypatch, code)
    began = time.monotonic()
    with pytest.raises(RunFolderError, match=r"worker \d ended with status 7; its traceback is above"):
        list(run_workers(2, tmp_path, "model"))
    assert time.monotonic() - began < 50


def test_what_a_worker_describes_before_it_ends_is_raised(tmp_path, monkeypatch):
    stand_in(monkeypatch, 'print(\'["ModelError", "no such model"]\'); raise SystemExit(2)')
    with pytest.raises(ModelError, match="no such model"):
        list(run_workers(2, tmp_path, "model"))


def test_a_worker_ends_when_the_process_that_started_it_is_killed(tmp_path):
    """The worker's own first lines, with a long sleep in place of its work."""
    code = (
        "import sys, threading, time\n"
        "from pathlib import Path\n"
        "from handbook_utils.sampling.execution.worker import end_with_parent\n"
        "threading.Thread(target=end_with_parent, daemon=True).start()\n"
        "Path(sys.argv[1]).touch()\n"
        "time.sleep(60)\n"
    )
    parent = os.fork()
    if parent == 0:
        worker = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "started")],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        (tmp_path / "worker").write_text(str(worker.pid), encoding="utf-8")
        time.sleep(60)
        os._exit(0)
    wait_for((tmp_path / "started").exists)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    worker = int((tmp_path / "worker").read_text(encoding="utf-8"))
    wait_for(lambda: not is_running(worker))


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
