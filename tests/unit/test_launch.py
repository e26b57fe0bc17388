"""Several processes: their command, what is refused before they start, and how they end together."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from handbook_utils.cli import launch
from handbook_utils.errors import LaunchError, MissingDependencyError, RecipeError
from handbook_utils.launch import accelerate
from handbook_utils.launch.accelerate import Layout, Rendezvous, checked_layout, free_port, launch_command
from handbook_utils.launch.slurm import Job, sbatch_script
from handbook_utils.launch.watch import watch
from handbook_utils.runs.state import differences, read_manifest
from handbook_utils.schema.recipe import check_recipe, load_recipe
from tests.waiting import wait_for

TESTS = Path(__file__).parents[1]


def layout(strategy: Any = "ddp", processes: int = 2, nodes: int = 1, **meeting: Any) -> Layout:
    on_cpu = meeting.pop("on_cpu", False)
    return Layout(strategy, processes, nodes, on_cpu, Rendezvous(**meeting))


def options(command: list[str]) -> dict[str, str]:
    flags = command[2 : command.index("--module")]
    return dict(zip((flag[2:] for flag in flags[::2]), flags[1::2], strict=True))


def test_the_command_says_how_many_processes_where_they_meet_and_what_they_run() -> None:
    made = launch_command(
        layout("fsdp2", processes=16, nodes=2, node=1, address="gpu-3", port=29600), ["train", "pocket/sft"]
    )
    assert made[:2] == ["accelerate", "launch"]
    assert made[made.index("--module") :] == ["--module", "handbook_utils.cli", "train", "pocket/sft"]
    given = options(made)
    assert Path(given.pop("config_file")).name == "fsdp2.yaml"
    given.pop("num_cpu_threads_per_process", None)
    assert given == {
        "num_processes": "16",
        "num_machines": "2",
        "machine_rank": "1",
        "main_process_ip": "gpu-3",
        "main_process_port": "29600",
    }


def test_processes_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = options(launch_command(layout(processes=2, on_cpu=True, port=1), []))
    assert made["num_cpu_threads_per_process"] == "4"


CONFIGS = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}


@pytest.mark.parametrize("strategy", CONFIGS)
def test_every_strategy_has_a_config_that_accelerate_reads(strategy: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    file = files("handbook_utils").joinpath("launch", "configs", f"{strategy}.yaml")
    config = load_config_from_file(str(file))  # refuses unknown keys
    assert config.distributed_type == CONFIGS[strategy]
    # the recipe decides about precision: here it would be a second place
    assert config.mixed_precision == "no"


def test_no_config_is_left_over() -> None:
    folder = files("handbook_utils").joinpath("launch", "configs")
    assert {entry.name for entry in folder.iterdir()} == {f"{name}.yaml" for name in CONFIGS}


@pytest.mark.parametrize(
    ("wanted", "devices", "message"),
    [
        (layout(processes=4), 2, "4 processes on a machine with 2 GPUs.*--processes 2 or fewer"),
        (layout(processes=3, on_cpu=True), 2, "3 processes on a machine with 2 CPU cores"),
        (layout(processes=16, nodes=2), 4, "8 processes on a machine with 4 GPUs.*--processes 8 or fewer"),
        (layout(processes=3, nodes=2), 8, "3 cannot be split over 2 nodes. Give a multiple of 2"),
        (layout(processes=4, nodes=2), 8, "2 nodes have to know where to meet"),
        (layout(node=1), 8, "--node-rank 1: with 1 nodes it is 0 to 0"),
        (layout("fsdp2", on_cpu=True), 8, "fsdp2 needs GPUs"),
    ],
)
def test_processes_that_cannot_run_here_are_refused(wanted: Layout, devices: int, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        checked_layout(wanted, devices=devices, quantized=False)


def test_zero_3_refuses_quantised_weights_and_says_why() -> None:
    with pytest.raises(LaunchError, match=r"zero3 does not shard quantised weights.*Use fsdp2"):
        checked_layout(layout("zero3"), devices=8, quantized=True)


def test_zero_needs_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"handbook-utils\[deepspeed\]"):
        checked_layout(layout("zero2"), devices=8, quantized=False)


def test_a_taken_port_is_refused_and_a_free_one_is_chosen() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"port {port} is taken"):
            checked_layout(layout(port=port), devices=2, quantized=False)
    chosen = checked_layout(layout(), devices=2, quantized=False).rendezvous.port
    assert chosen
    assert checked_layout(layout(port=free_port()), devices=2, quantized=False)


# --- how processes end


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that launches `launch_probe` in two processes."""
    monkeypatch.setattr(accelerate, "PROGRAM", "launch_probe")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    (tmp_path / "pids").mkdir()

    def run(action: str) -> None:
        # a shell starts its background jobs deaf to SIGINT, and children inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
        checked = checked_layout(layout(on_cpu=True), devices=2, quantized=False)
        watch(launch_command(checked, [str(tmp_path / "pids"), action]), processes=2)

    return run


def pids(tmp_path: Path) -> list[int]:
    return [int(file.read_text(encoding="utf-8") or 0) for file in sorted((tmp_path / "pids").iterdir())]


def assert_gone(processes: list[int]) -> None:
    """None of them is left, not even for a moment longer than the kernel needs."""
    assert len(processes) == 2
    wait_for(lambda: not any(map(_is_alive, processes)), timeout_s=10, failure="left behind")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_that_end_well_are_heard(
    probe: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    probe("end")
    shown = capfd.readouterr().err
    assert sorted(shown.splitlines()) == ["here is 0 of 2", "here is 1 of 2"]
    assert_gone(pids(tmp_path))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("expected error", r"^process 1 of 2 failed: rows\.jsonl: line 3 is not JSON\.$"),
        ("bug", r"^process 1 of 2 failed: ValueError: tensors of different shapes$"),
        ("killed", r"^process 1 of 2 was killed by SIGKILL \(out of memory\?\); the others were stopped"),
    ],
)
def test_a_process_that_fails_is_named_in_one_line_and_none_is_left(
    action: str, message: str, probe: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LaunchError, match=message) as failed:
        probe(action)
    assert "\n" not in str(failed.value)
    assert_gone(pids(tmp_path))
    # a bug keeps its traceback; nothing else is told twice
    assert ("Traceback" in capfd.readouterr().err) == (action == "bug")


def test_a_launcher_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaunchError, match=r"launcher ended with exit code 2: .*--no_such_option"):
        watch(["accelerate", "launch", "--no_such_option", "x", "y"], processes=2)


def started(tmp_path: Path) -> list[int]:
    wait_for(lambda: len(pids(tmp_path)) == 2 and all(pids(tmp_path)))
    return pids(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_when_the_watching_process_is_told_to_stop_or_killed_all_end(
    number: signal.Signals, probe: Any, tmp_path: Path
) -> None:
    watching = multiprocessing.get_context("fork").Process(target=probe, args=("wait",))
    watching.start()
    processes = started(tmp_path)
    assert watching.pid is not None
    os.kill(watching.pid, number)
    watching.join(60)
    expected = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 1}
    assert watching.exitcode == expected[number]
    assert_gone(processes)


# --- recipes, the command line, Slurm


def recipe(**launch: Any) -> Any:
    content = {
        "stage": "sft",
        "model": {"name": "no/model"},
        "data": [{"name": "x.jsonl"}],
        "global_batch_size": 8,
        "training": {"use_cpu": True},
        "launch": launch,
    }
    return check_recipe(content, "test")


def test_how_many_processes_train_does_not_make_another_run() -> None:
    from handbook_utils.schema.recipe import recipe_to_dict

    one, two = recipe_to_dict(recipe()), recipe_to_dict(recipe(processes=2, strategy="fsdp2"))
    assert two["launch"] == {"strategy": "fsdp2", "processes": 2, "nodes": 1}
    assert differences({"recipe": one}, two, {}) == []


def test_the_batch_has_to_fit_the_processes_that_will_be_started() -> None:
    from handbook_utils.training.plan import batch_plan

    assert batch_plan(recipe(processes=2)) == (4, 1, 2)
    assert batch_plan(recipe(strategy="none")) == (8, 1, 1)
    with pytest.raises(RecipeError, match=r"8 cannot be split over 3 processes\. Sizes that work: 6 or 9"):
        batch_plan(recipe(processes=3))


def test_as_many_gpus_are_used_as_divide_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from handbook_utils.training import plan

    monkeypatch.setattr(plan, "trains_on_cpu", lambda recipe: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    assert plan.planned_processes(recipe()) == 4  # 8 rows: neither 6 nor 5 processes share them
    assert plan.planned_processes(recipe(nodes=2)) == 8
    assert plan.planned_processes(recipe(processes=6)) == 6  # what is asked for is not changed, but refused
    with pytest.raises(RecipeError, match="over 6 processes"):
        plan.batch_plan(recipe(processes=6))


def test_no_strategy_is_for_one_process() -> None:
    with pytest.raises(RecipeError, match="`strategy: none` is a single process"):
        recipe(processes=2, strategy="none")


def test_on_a_cpu_a_recipe_trains_in_one_process_unless_it_asks_for_more() -> None:
    from handbook_utils.pipeline.launched import needs_launcher

    assert not needs_launcher(recipe())
    assert not needs_launcher(recipe(strategy="none"))
    assert needs_launcher(recipe(processes=2))
    assert needs_launcher(recipe(strategy="fsdp2"))


def test_more_processes_than_cores_are_refused_before_any_data_is_looked_for(tmp_path: Path) -> None:
    from handbook_utils import run_stage

    with pytest.raises(LaunchError, match=r"4096 processes on a machine with \d+ CPU cores"):
        run_stage(recipe(), tmp_path / "run", processes=4096)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_shows_the_command_that_would_be_run(
    conversations_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from handbook_utils import cli

    data = f"--set=data.0.name={conversations_file}"
    typed = ["train", "pocket/sft", data, "--set=eval_data=[]", "--set=training.use_cpu=true", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["handbook", *typed, "--processes", "4096", "--port", "29700"])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("handbook_utils.cli.view.stage_plan", lambda recipe, folder: PLAN)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("command: ")]
    assert command.startswith("command: accelerate launch --config_file ")
    assert "--num_processes 4096 --num_machines 1 --machine_rank 0 --main_process_port 29700" in command
    assert command.endswith(
        "--out runs/sft --set data.0.name="
        f"{conversations_file} "
        "--set 'eval_data=[]' --set training.use_cpu=true --set launch.processes=4096"
    )


PLAN = {
    "examples": 28,
    "rows": 9,
    "tokens": 1234,
    "steps_per_epoch": 2,
    "epochs": 3.0,
    "steps": 6,
    "warmup_steps": None,
    "learning_rate": 1e-5,
    "schedule": "linear",
    "per_device_batch": 2,
    "accumulation": 1,
    "processes": 4,
    "effective_batch": 8,
    "device": "cpu",
}


def test_the_table_writes_out_the_batch_and_says_what_is_not_counted() -> None:
    from rich.console import Console

    from handbook_utils.training.plan_table import plan_table

    console = Console(width=100, file=io.StringIO())
    console.print(plan_table(PLAN))
    shown = console.file.getvalue()
    assert "2 per device x 1 accumulated x 4 processes = 8" in shown
    assert "9 after packing and leaving out" in shown
    assert "not counted" in shown


JOB = Job("sft", 2, 8, "24:00:00", "gpu", None, "runs")


def test_a_slurm_job_requeues_itself_and_meets_at_its_first_node(tmp_path: Path) -> None:
    script = sbatch_script(JOB, ["train", "my recipe.yaml", "--out", "runs/sft", "--set", "a=$HOME"])
    lines = script.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue", "--time=24:00:00"} <= asked
    assert {"--partition=gpu", "--signal=B:USR1@120", "--open-mode=append"} <= asked
    assert not any("account" in option for option in asked)
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "handbook train 'my recipe.yaml' --out runs/sft --set 'a=$HOME'" in srun
    assert srun.endswith('--main-address "$main_node" --port "$port" &')


def test_a_slurm_script_runs_its_command_and_asks_for_another_turn_when_time_is_up(tmp_path: Path) -> None:
    """With stand-ins for srun, scontrol and handbook, on a real bash."""
    log = tmp_path / "log"
    for name, body in {
        "srun": 'shift; exec "$@"',
        # the real one writes a long list in several parts
        "scontrol": f'[ "$1" = show ] && {{ echo node-a; sleep 0.2; echo node-b; }} || echo "$*" >> {log}',
        "handbook": f'echo "$*" >> {log}; exec sleep 20',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    job = tmp_path / "job.sbatch"
    job.write_text(sbatch_script(JOB, ["train", "r.yaml"]), encoding="utf-8")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_ID": "41234",
        "SLURM_JOB_NODELIST": "node-[a-b]",
    }
    running = subprocess.Popen(
        ["bash", str(job)], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )

    def runs_its_command() -> bool:
        assert running.poll() is None, "the script ended before it ran its command"
        return log.exists() and bool(log.read_text(encoding="utf-8"))

    wait_for(runs_its_command)  # before that it would not hear the signal
    running.send_signal(signal.SIGUSR1)  # B: the batch script alone gets it
    running.wait(60)
    os.killpg(running.pid, signal.SIGKILL)  # as Slurm ends the step of a requeued job
    # 20000 + 41234 % 40000 = 21234
    assert log.read_text(encoding="utf-8").splitlines() == [
        "train r.yaml --main-address node-a --port 21234",
        "requeue 41234",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partition": "gpu; rm -rf"}, "--partition 'gpu; rm -rf'"),
        ({"time": "a day"}, "--time 'a day'"),
        ({"name": "a b"}, "--out 'a b'"),
        ({"logs": "my runs"}, "--out 'my runs'"),
    ],
)
def test_what_slurm_could_not_read_is_refused(change: dict[str, str], message: str) -> None:
    from dataclasses import replace

    with pytest.raises(LaunchError, match=message):
        sbatch_script(replace(JOB, **change), [])


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_a_slurm_script(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(
        sbatch_script(JOB, ["train", "my recipe.yaml", "a=$HOME"]), encoding="utf-8"
    )
    subprocess.run(["shellcheck", str(tmp_path / "job.sh")], check=True)


def test_handbook_slurm_writes_a_job_of_one_process_per_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from handbook_utils import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys,
        "argv",
        ["handbook", "slurm", "pocket/sft", "--nodes", "2", "--gpus-per-node", "4", "--strategy", "fsdp2"],
    )
    with pytest.raises(SystemExit):
        cli.main()
    text = (tmp_path / "runs" / "sft.sbatch").read_text(encoding="utf-8")
    assert "--set launch.processes=8 --set launch.strategy=fsdp2 --set launch.nodes=2" in text
    assert "sbatch runs/sft.sbatch" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["my-run", "../my-run", "beta-0.5", "{here}/runs/my-run"])
def test_handbook_slurm_takes_any_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    from handbook_utils import cli

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder = Path(out.format(here=tmp_path))
    monkeypatch.setattr(sys, "argv", ["handbook", "slurm", "pocket/sft", "--out", str(folder)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    script = folder.with_name(folder.name + ".sbatch").read_text(encoding="utf-8")
    assert f"#SBATCH --job-name={folder.name}\n" in script
    assert f"#SBATCH --output={folder.parent}/%x-%j.log\n" in script


def test_a_node_of_a_slurm_step_knows_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert launch.rendezvous_of(None, "node-a", 20001) == Rendezvous(1, "node-a", 20001)
    # in an interactive allocation a run on one machine is just that
    assert launch.rendezvous_of(None, None, None) == Rendezvous(0, None, None)


def test_a_stage_trains_in_two_processes_that_accelerate_starts(
    tiny_model_folder: Path, conversations_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from handbook_utils import run_stage

    content = {
        "stage": "sft",
        "model": {"name": str(tiny_model_folder)},
        "data": [{"name": str(conversations_file)}],
        "global_batch_size": 4,
        "training": {"use_cpu": True, "max_steps": 2, "logging_steps": 1},
    }
    made = load_recipe(check_recipe(content, "test"))
    result = run_stage(made, tmp_path / "run", processes=2)
    assert result.tokens_per_s
    manifest = read_manifest(tmp_path / "run")
    assert manifest["recipe"]["launch"]["processes"] == 2
    assert manifest["notes"]["plan"]["per_device_batch"] == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "2 per device x 1 accumulated x 2 processes = 4" in shown.err
    assert "Warning" not in shown.err
    # it is done: nothing is started again
    assert run_stage(made, tmp_path / "run", processes=2).runtime_s == result.runtime_s


def test_yaml_configs_name_no_number_that_the_command_gives() -> None:
    for entry in files("handbook_utils").joinpath("launch", "configs").iterdir():
        given = yaml.safe_load(entry.read_text(encoding="utf-8"))
        assert not {"num_processes", "num_machines", "machine_rank", "main_process_port"} & given.keys()
