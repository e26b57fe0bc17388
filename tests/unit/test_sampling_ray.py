"""Workers on a real local Ray cluster: the bytes of one process, whoever is killed; and clear errors."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from handbook_utils.environment import versions
from handbook_utils.errors import DataError, LaunchError, MissingDependencyError, RecipeError, RunFolderError
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.state import read_manifest, read_metrics
from handbook_utils.sampling.execution import parts, ray_workers
from handbook_utils.sampling.execution.ray_cluster import ALONE, need_of, ray_cluster, room_for
from handbook_utils.sampling.execution.ray_pool import TRIES, RayPool
from handbook_utils.sampling.execution.ray_workers import Work, WorkerEnvironment, await_file, run_on_ray
from handbook_utils.sampling.execution.shards import read_records
from handbook_utils.schema.executor import RaySection
from handbook_utils.schema.recipe import check_recipe, recipe_to_yaml
from handbook_utils.schema.stages import GenerateRecipe, ScoreRecipe
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning"),
    pytest.mark.usefixtures("one_thread"),
]
PROMPTS, SIZE, SAMPLES = 12, 2, 2
TWO = {"kind": "ray", "workers": 2}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Any]:
    """Ray, started once for all tests of this file, in a process that has imported it already."""
    import_module("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KILL_ONCE", str(tmp_path_factory.mktemp("kill")))
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_cluster(RaySection(kind="ray"), cpus=2) as ray:
            yield ray


class Server(ThreadingHTTPServer):
    """Answers that follow from prompt and seed; those to `held` wait until `release` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.held: str | None = None
        self.release = threading.Event()

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.server.asked.append(text)
        if text == self.server.held:
            self.server.release.wait(60)
        answer = hashlib.sha256(f"{text} {body['seed']}".encode()).hexdigest()
        choice = {"message": {"content": answer}, "finish_reason": "stop"}
        content = json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


def recipe_of(folder: Path, server: Server, **changes: Any) -> GenerateRecipe:
    rows = [{"prompt": f"question {number}", "prompt_id": f"p{number}"} for number in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    content = {
        "stage": "generate",
        "model": {"name": "served"},
        "data": [{"name": str(folder / "prompts.jsonl")}],
        "engine": {"kind": "endpoint", "url": url, "parallel": 1, "attempts": 1},
        "samples": SAMPLES,
        "prompts_per_part": SIZE,
    }
    return GenerateRecipe(**{**content, **changes})


def run(recipe: Any, folder: Path) -> dict[str, bytes]:
    """Run a stage; all files of samples, scores and failures, and the proof."""
    run_stage(recipe, folder, progress=False, allow_code=True)
    assert not list(folder.rglob(".tmp-*"))
    kept = ("samples", "scores", "failures", "shards.json")
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.relative_to(folder).parts[0] in kept
    }


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of each process that is alive."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            found[int(entry.name)] = int(fields[1]), command
    return found


def started_by(root: int) -> dict[int, str]:
    """Command lines of all processes below one."""
    everyone = processes()
    found: dict[int, str] = {}
    for pid in everyone:
        above = pid
        while above in everyone and above != root:
            above = everyone[above][0]
        if above == root and pid != root:
            found[pid] = everyone[pid][1]
    return found


def workers() -> list[int]:
    """Processes of the workers of this process's cluster."""
    return [pid for pid, command in started_by(os.getpid()).items() if command.startswith("ray::RayWorker")]


def test_two_workers_on_ray_give_the_bytes_and_metrics_of_one_process(cluster, tiny_model_folder, tmp_path):
    content = {
        "stage": "generate",
        "model": {"name": str(tiny_model_folder)},
        "data": [{"name": "pocket:prompts", "split": "test[:14]"}],
        "samples": 3,
        "prompts_per_part": 2,
        "max_new_tokens": 8,
    }
    alone = run(GenerateRecipe(**content), tmp_path / "one")
    assert len(alone) == 8
    assert run(GenerateRecipe(**content, executor=TWO), tmp_path / "two") == alone
    kept = [{**each, "time": None} for each in read_metrics(tmp_path / "two")]
    assert kept == [{**each, "time": None} for each in read_metrics(tmp_path / "one")]
    # the run is the same run: it goes on without Ray
    (tmp_path / "two" / "samples" / "part-00003.parquet").unlink()
    assert run(GenerateRecipe(**content), tmp_path / "two") == alone
    wait_for(lambda: not workers())


def test_scores_made_on_ray_are_those_of_one_process_though_a_worker_is_killed(
    cluster, server, tmp_path, monkeypatch
):
    run(recipe_of(tmp_path, server), tmp_path / "samples")
    content = {
        "stage": "score",
        "data": [{"from": "samples"}],
        "scorers": {
            "long": {
                "kind": "function",
                "function": "tests.ray_probe:length_of_the_survivors",
                "allow_code": True,
            },
            "digit": {"kind": "regex", "pattern": "^[0-9]"},
        },
    }
    marker = Path(os.environ["KILL_ONCE"]) / "killed"
    assert not marker.exists()
    on_ray = run(ScoreRecipe(**content, executor=TWO), tmp_path / "ray")
    assert marker.exists()
    monkeypatch.delenv("KILL_ONCE")
    assert on_ray == run(ScoreRecipe(**content), tmp_path / "alone")
    assert len(on_ray) == PROMPTS // SIZE


def test_killed_workers_lose_nothing_and_nothing_that_is_there_is_made_again(cluster, server, tmp_path):
    alone = run(recipe_of(tmp_path, server), tmp_path / "alone")
    server.asked.clear()
    server.held = "question 9"
    there: list[str] = []
    asked_before: list[int] = []

    def kill() -> None:
        wait_for(lambda: "question 9" in server.asked, timeout_s=400)
        # the other worker has made all that is left, and was heard: a part counts from then on
        wait_for(lambda: len(read_records(tmp_path / "ray")) == 5, timeout_s=400)
        there.extend(file.name for file in (tmp_path / "ray" / "samples").glob("part-*.parquet"))
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
        asked_before.append(len(server.asked))
        server.held = None
        server.release.set()

    killer = threading.Thread(target=kill)
    killer.start()
    on_ray = run(recipe_of(tmp_path, server, executor=TWO), tmp_path / "ray")
    killer.join()
    assert on_ray == alone
    assert sorted(there) == [f"part-{number:05d}.parquet" for number in (0, 1, 2, 3, 5)]
    assert set(server.asked[asked_before[0] :]) <= {"question 8", "question 9"}


def test_an_error_of_the_engine_arrives_as_it_does_without_ray(cluster, tiny_model_folder, tmp_path):
    content = {
        "stage": "generate",
        "model": {"name": str(tiny_model_folder)},
        "data": [{"name": "pocket:prompts", "split": "test[:1]"}],
        "max_new_tokens": 511,
    }
    said = []
    for changes in ({}, {"executor": {"kind": "ray"}}):
        with pytest.raises(DataError, match=r"prompt '.*' has \d+ tokens; with max_new_tokens=511") as error:
            run_stage(GenerateRecipe(**content, **changes), tmp_path / "run", progress=False)
        said.append(str(error.value))
        assert not (tmp_path / "run").exists()
    assert said[0] == said[1]


@pytest.fixture
def place() -> Iterator[str]:
    """Where a killed command leaves what Ray has written; a short path, as Ray's sockets need."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


def start_command(recipe: GenerateRecipe, place: str, *options: str) -> subprocess.Popen[str]:
    file = Path(place) / "recipe.yaml"
    file.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "handbook_utils.cli",
        "generate",
        str(file),
        "--executor",
        "ray",
        *options,
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # as the tests' cluster is: at the loopback address, and asking for the token that Ray has made
        env={**environment, "OMP_NUM_THREADS": "1", **ALONE, "RAY_AUTH_MODE": "token", "RAY_TMPDIR": place},
    )


def test_a_killed_command_leaves_no_process_and_only_what_is_missing_is_made_again(
    cluster, server, tmp_path, place
):
    """The command starts a cluster of its own; the run goes on at another one."""
    recipe, folder = recipe_of(tmp_path, server), tmp_path / "run"
    alone = run(recipe, tmp_path / "alone")
    server.held = "question 7"
    server.asked.clear()
    command = start_command(recipe, place, "--out", str(folder), "--set", "executor.workers=2")
    journal = folder / "shards.jsonl"

    def is_made() -> bool:
        assert command.poll() is None, command.communicate()
        return journal.exists() and len(journal.read_text(encoding="utf-8").splitlines()) == 5

    wait_for(is_made, timeout_s=400)
    with pytest.raises(RunFolderError, match=rf"in use by process {command.pid} on {socket.gethostname()}"):
        run_stage(recipe, folder, progress=False)
    below = started_by(command.pid)
    assert [name for name in below.values() if "gcs_server" in name]
    command.kill()
    command.communicate()
    wait_for(lambda: not set(below) & set(processes()), timeout_s=200)
    server.held = None
    server.release.set()
    server.asked.clear()
    assert run(recipe_of(tmp_path, server, executor=TWO), folder) == alone
    assert sorted(set(server.asked)) == ["question 6", "question 7"]


def test_a_command_joins_the_cluster_at_an_address_and_prints_its_result_alone(
    cluster, server, tmp_path, place
):
    address = cluster.get_runtime_context().gcs_address
    recipe = recipe_of(
        tmp_path, server, data=[{"name": str(tmp_path / "prompts.jsonl"), "split": "train[:3]"}]
    )
    options = ["--out", str(tmp_path / "run"), "--json", "--set", f"executor.address={address}"]
    command = start_command(recipe, place, *options)
    try:
        said, complained = command.communicate(timeout=400)
    finally:
        command.kill()
    assert command.returncode == 0, complained
    assert json.loads(said)["final_metrics"]["tokens"]["n"] == 3
    assert complained == ""
    assert read_manifest(tmp_path / "run")["status"] == "finished"
    assert cluster.is_initialized()


def test_a_cluster_of_our_own_listens_on_the_loopback_address_only(cluster):
    own = started_by(os.getpid())
    assert len([name for name in own.values() if "gcs_server" in name]) == 1
    addresses = {address for pid in (*own, os.getpid()) for address in listening(pid)}
    assert addresses
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    assert {address for address in addresses if address not in loopback} == set()


def listening(pid: int) -> Iterator[str]:
    """Local addresses, in hexadecimal, that a process listens on."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="utf-8").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                yield fields[1].partition(":")[0]


# --- without a cluster: what is found out before or instead of one


def refused(folder: Path, **executor: Any) -> LaunchError:
    recipe = GenerateRecipe(
        stage="generate",
        model={"name": "pocket:base"},
        data=[{"name": "pocket:prompts", "split": "test[:2]"}],
        executor={"kind": "ray", **executor},
    )
    with pytest.raises(LaunchError) as error:
        run_stage(recipe, folder / "run", progress=False)
    assert not (folder / "run").exists()
    return error.value


@pytest.fixture
def no_cluster(monkeypatch) -> None:
    """As if this process had never heard of the tests' cluster."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_an_address_where_nothing_listens_is_told_at_once_with_what_to_do(no_cluster, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    said = str(refused(tmp_path, address=f"127.0.0.1:{port}"))
    assert f"no Ray cluster to work on at '127.0.0.1:{port}': " in said
    assert "`ray start --head`" in said
    assert time.monotonic() - began < 30


def test_no_cluster_to_be_found_is_told_with_what_to_do(no_cluster, tmp_path, monkeypatch):
    import ray

    def init(address: str, **_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    assert "no Ray cluster to work on at 'auto': Could not find" in str(refused(tmp_path, address="auto"))


def test_an_address_for_clients_outside_the_cluster_is_refused(no_cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert "RAY_ADDRESS: 'ray://head:10001' is for a client outside" in str(refused(tmp_path))


def test_without_ray_the_extra_is_named_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(parts, "load_engine", None)
    recipe = GenerateRecipe(
        stage="generate",
        model={"name": "pocket:base"},
        data=[{"name": "pocket:prompts", "split": "test[:2]"}],
        executor={"kind": "ray"},
    )
    with pytest.raises(MissingDependencyError, match=r"pip install 'handbook-utils\[ray\]'"):
        run_stage(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_environment_is_as_it_was_after_a_cluster(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    before = dict(os.environ)
    with ray_cluster(RaySection(kind="ray"), cpus=1):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"  # the user asked for it
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    with ray_cluster(RaySection(kind="ray"), cpus=1):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
    assert dict(os.environ) == {key: value for key, value in before.items() if "USAGE" not in key}


MACHINES = [
    {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}},
    {"Alive": True, "Resources": {"CPU": 4.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
]


@pytest.mark.parametrize(
    ("given", "gpus", "need"),
    [
        ({}, 1, {"num_cpus": 1, "num_gpus": 1}),
        ({}, 2, {"num_cpus": 1, "num_gpus": 2}),
        ({}, 0, {"num_cpus": 3, "num_gpus": 0}),  # nothing to put on a GPU
        ({"gpus_per_worker": 0}, 1, {"num_cpus": 3, "num_gpus": 0}),
    ],
)
def test_a_worker_takes_the_gpus_of_its_model_or_a_cpu_a_thread(given, gpus, need):
    assert need_of(MACHINES, RaySection(kind="ray", **given), gpus=gpus, threads=3) == need
    on_cpus = need_of(MACHINES[1:], RaySection(kind="ray", **given), gpus=gpus, threads=3)
    assert on_cpus == {"num_cpus": 3, "num_gpus": 0}


def test_there_are_as_many_workers_as_machines_that_live_have_room_for():
    assert room_for(MACHINES, {"num_cpus": 1, "num_gpus": 1}) == 4
    assert room_for(MACHINES, {"num_cpus": 3, "num_gpus": 0}) == 5 + 1
    with pytest.raises(LaunchError, match=r"takes 1 CPUs and 8 GPUs, .*\(16 CPUs and 4 GPUs, 4 CPUs and 0"):
        room_for(MACHINES, {"num_cpus": 1, "num_gpus": 8})


@pytest.fixture
def environment(tmp_path) -> WorkerEnvironment:
    (tmp_path / "probe").touch()
    return WorkerEnvironment(Path.cwd(), tmp_path / "probe", torch.get_num_threads(), versions())


def test_a_machine_that_does_not_see_the_run_folder_is_told_of(environment, tmp_path):
    environment.apply()
    (tmp_path / "probe").unlink()
    with pytest.raises(RunFolderError, match=rf"{tmp_path}: machine {socket.gethostname()} .* does not see"):
        environment.apply()
    with pytest.raises(RunFolderError, match=r"/no/such/place: machine .* does not see"):
        replace(environment, folder=Path("/no/such/place")).apply()


def test_a_machine_with_other_versions_is_told_of(environment):
    other = replace(environment, versions={**environment.versions, "transformers": "0.1"})
    with pytest.raises(RunFolderError, match=r"transformers: machine .* has [\d.]+, and 0\.1 is where"):
        other.apply()


def test_a_file_of_another_machine_is_waited_for_and_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_workers, "LOOK_EVERY_S", 0.01)
    late = threading.Timer(0.1, (tmp_path / "late").touch)
    late.start()
    await_file(tmp_path / "late")
    late.join()
    monkeypatch.setattr(ray_workers, "SEEN_WITHIN_S", 0.05)
    with pytest.raises(RunFolderError, match="never: a worker of the Ray cluster has written it"):
        await_file(tmp_path / "never")


class FakeRay:
    """Ray as the pool uses it: an answer is a function, called when it is asked for."""

    exceptions = SimpleNamespace(
        RayTaskError=type("RayTaskError", (Exception,), {}),
        RayActorError=type("RayActorError", (Exception,), {}),
        ObjectLostError=type("ObjectLostError", (Exception,), {}),
    )

    def __init__(self) -> None:
        self.killed: list[Any] = []

    def wait(self, answers: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return answers[-1:], answers[:-1]

    def get(self, answer: Callable[[], Any]) -> Any:
        return answer()

    def kill(self, worker: Any) -> None:
        self.killed.append(worker)


class FakeWorker:
    """Dies on what `deadly` says, and can be started so many times."""

    def __init__(self, lives: int, deadly: Callable[[str], bool]) -> None:
        self.lives, self.deadly = lives, deadly
        self.prepare = SimpleNamespace(
            options=lambda max_task_retries: SimpleNamespace(remote=lambda: self.prepared)
        )
        self.make = SimpleNamespace(remote=lambda item: lambda: self.made(item))

    def prepared(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise FakeRay.exceptions.RayActorError("out of memory")

    def made(self, item: str) -> str:
        if self.deadly(item):
            raise FakeRay.exceptions.RayActorError("out of memory")
        return item.upper()


ITEMS = dict(enumerate("abcdef"))


def test_a_worker_that_dies_and_comes_back_doubles_and_loses_nothing():
    died: list[str] = []

    def deadly(item: str) -> bool:
        is_so = item in "bd" and died.count(item) < TRIES - 1
        died.extend(item if is_so else "")
        return is_so

    ray = FakeRay()
    pool = RayPool(ray, [FakeWorker(4, deadly), FakeWorker(4, deadly)])
    assert sorted(pool.results(ITEMS)) == [(number, letter.upper()) for number, letter in ITEMS.items()]
    assert died.count("b") == died.count("d") == TRIES - 1
    pool.end()
    assert len(ray.killed) == 2


def test_a_worker_that_does_not_come_back_leaves_its_work_to_the_others():
    pool = RayPool(FakeRay(), [FakeWorker(9, lambda item: False), FakeWorker(1, lambda item: item != "")])
    assert len(dict(pool.results(ITEMS))) == len(ITEMS)


def test_an_item_that_kills_its_workers_ends_the_run_with_its_number():
    pool = RayPool(FakeRay(), [FakeWorker(9, lambda item: item == "d")])
    with pytest.raises(
        LaunchError, match=rf"{TRIES} workers .* died while they made part 3, .* out of memory"
    ):
        list(pool.results(ITEMS))


def test_when_no_worker_can_be_started_the_run_ends():
    pool = RayPool(FakeRay(), [FakeWorker(0, lambda item: False)] * 2)
    with pytest.raises(LaunchError, match=r"all 2 workers on the Ray cluster died, .* out of memory"):
        list(pool.results(ITEMS))


def test_nothing_to_do_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_workers, "ray_cluster", None)
    assert list(run_on_ray(RaySection(kind="ray"), Work(tmp_path, lambda: str), {})) == []


GENERATE = {"stage": "generate", "model": {"name": "pocket:base"}, "data": [{"name": "pocket:prompts"}]}
JUDGE = {"kind": "judge", "url": "http://h/v1", "model": "m", "max_requests": 9}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"executor": {"kind": "ray", "address": "ray://h:1"}},
            "'ray://h:1' is for a client outside the cluster",
        ),
        ({"executor": {"kind": "ray", "address": "h"}}, "'h' is no address of a Ray cluster"),
        ({"executor": {"kind": "slurm"}}, "'slurm' for 'executor.kind'. Choose from: processes, ray"),
        ({"executor": {"kind": "ray", "worker": 2}}, "Did you mean 'workers'"),
        (
            {"stage": "score", "scorers": {"j": JUDGE}, "executor": {"kind": "ray"}},
            "scorers.j: a judge is asked",
        ),
        (
            {
                "stage": "rejection",
                "scorers": {"proxy": {"kind": "length", "at_most": 9}},
                "samples": 2,
                "train": {"stage": "sft", "global_batch_size": 4},
                "evaluate": {"data": [{"name": "pocket:prompts"}], "scorers": {"j": JUDGE}},
                "executor": {"kind": "ray"},
            },
            "evaluate.scorers.j: a judge is asked",
        ),
        ({"stage": "evaluate", "scorers": {"j": JUDGE}, "executor": {"kind": "ray"}}, "scorers.j: a judge"),
        ({"executor": {"workers": 2}}, "'executor.kind' is missing. Choose from: processes, ray"),
        ({"workers": 2}, "'workers'. It belongs under 'executor': executor.workers"),
    ],
)
def test_a_recipe_that_workers_elsewhere_could_not_follow_is_refused(content, said):
    whole = {**GENERATE, **content}
    if whole["stage"] == "score":
        del whole["model"]
    with pytest.raises(RecipeError, match=said):
        check_recipe(whole, "recipe")


def test_the_option_of_the_command_line_keeps_the_rest_of_the_recipes_section(handbook, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({**GENERATE, "executor": {"kind": "ray", "workers": 7}}), encoding="utf-8")
    shown = [
        json.loads(handbook("generate", file, "--dry-run", "--json", *options)[1])["recipe"].get("executor")
        for options in ((), ("--executor", "ray"), ("--executor", "local"))
    ]
    assert [each and each["workers"] for each in shown] == [7, 7, None]
