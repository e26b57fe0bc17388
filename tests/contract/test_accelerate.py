"""What we rely on in accelerate's launcher, torchrun's reports, and transformers' view of sharded models."""

from __future__ import annotations

import json
import os
import sys
import types
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands import launch
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from handbook_utils.errors import DataError
from handbook_utils.launch.accelerate import Layout, Rendezvous, launch_command
from handbook_utils.launch.agent import first_failure
from handbook_utils.launch.lifeline import WORKER_ERROR, write_last_words


def parsed(command: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A launch command as accelerate understands it, config file included."""
    monkeypatch.setattr(sys, "argv", command)
    arguments = launch.launch_command_parser().parse_args(command[2:])
    return launch._validate_launch_command(arguments)[0]


def command_of(strategy: Any) -> list[str]:
    # of two nodes, the second: accelerate then looks for no free port
    layout = Layout(strategy, 16, 2, False, Rendezvous(1, "node-a", 29600))
    return launch_command(layout, ["train", "r.yaml", "--out", "runs/x"])


LAUNCHERS = {"ddp": "multi_gpu", "fsdp2": "use_fsdp", "zero2": "use_deepspeed", "zero3": "use_deepspeed"}


@pytest.mark.parametrize("strategy", LAUNCHERS)
def test_accelerate_understands_the_command(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = parsed(command_of(strategy), monkeypatch)
    chosen = {name for name in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(read, name)}
    assert chosen == {LAUNCHERS[strategy]}
    assert (read.num_processes, read.num_machines, read.machine_rank) == (16, 2, 1)
    assert (read.main_process_ip, read.main_process_port) == ("node-a", 29600)
    assert (read.module, read.training_script) == (True, "handbook_utils.cli")
    assert read.training_script_args == ["train", "r.yaml", "--out", "runs/x"]


def test_fsdp2_gathers_whole_checkpoints_and_loads_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = prepare_multi_gpu_env(parsed(command_of("fsdp2"), monkeypatch))
    expected = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_OFFLOAD_PARAMS": "false",
        "ACCELERATE_MIXED_PRECISION": "no",
    }
    assert {name: seen[name] for name in expected} == expected


@pytest.mark.parametrize(("strategy", "stage"), [("zero2", "2"), ("zero3", "3")])
def test_zero_shards_as_far_as_its_name_says(
    strategy: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = parsed(command_of(strategy), monkeypatch)
    read.deepspeed_fields_from_accelerate_config = "zero_stage"
    command, seen = prepare_deepspeed_cmd_env(read)
    assert command is None, "on each node accelerate's own launcher is used, not DeepSpeed's over ssh"
    assert seen["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    assert seen["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"


def test_a_type_of_several_cpus_would_start_a_single_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why ddp.yaml says MULTI_GPU on a CPU too."""
    config = files("handbook_utils").joinpath("launch", "configs", "ddp.yaml").read_text(encoding="utf-8")
    (tmp_path / "cpu.yaml").write_text(config.replace("MULTI_GPU", "MULTI_CPU"), encoding="utf-8")
    command = ["accelerate", "launch", "--config_file", str(tmp_path / "cpu.yaml"), "--num_processes", "2"]
    read = parsed([*command, "--module", "x"], monkeypatch)
    assert [read.multi_gpu, read.use_fsdp, read.use_deepspeed] == [False] * 3


def test_the_recipe_decides_about_precision_whatever_the_launcher_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from trl import SFTConfig

    from handbook_utils.training.trl_bridge import installed_names

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as our configs have it
    for bf16, expected in ((True, "bf16"), (False, "no")):
        arguments = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": bf16, "fp16": False}
        made = SFTConfig(**installed_names(SFTConfig, arguments | {"activation_checkpointing": False}))
        assert made.mixed_precision == expected


@pytest.mark.parametrize(("is_quantized", "is_sharded"), [(False, True), (True, False)])
def test_zero_3_leaves_quantised_models_out_of_its_sharding(
    is_quantized: bool, is_sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why zero3 with quantised weights is refused; when this fails the refusal can go."""
    from transformers import PreTrainedModel, modeling_utils

    asked: list[str] = []
    zero = types.SimpleNamespace(Init=lambda **_: asked.append("sharded"))
    monkeypatch.setitem(sys.modules, "deepspeed", types.SimpleNamespace(zero=zero))
    monkeypatch.setattr(modeling_utils, "is_deepspeed_zero3_enabled", lambda: True)
    monkeypatch.setattr(modeling_utils, "deepspeed_config", dict)
    PreTrainedModel.get_init_context(torch.float32, is_quantized, False, None)
    assert bool(asked) == is_sharded


def failure(tmp_path: Path, rank: int, exitcode: int, error: Exception | None) -> ProcessFailure:
    file = tmp_path / f"error-{rank}.json"
    if error is not None:
        os.environ[WORKER_ERROR] = str(file)
        write_last_words(error)
    return ProcessFailure(local_rank=rank, pid=1000 + rank, exitcode=exitcode, error_file=str(file))


def test_torchrun_reads_the_last_words_of_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKER_ERROR, "")
    # within one second, so that only our own, finer clock can tell which came first
    cause = failure(tmp_path, 2, 1, DataError("line 3 is not JSON."))
    effect = failure(tmp_path, 0, 1, RuntimeError("Connection closed by peer"))
    assert json.loads(Path(cause.error_file).read_text(encoding="utf-8"))["message"]
    assert first_failure({0: effect, 2: cause}) == {
        "rank": 2,
        "exitcode": 1,
        "signal": "",
        "words": "line 3 is not JSON.",
    }


def test_a_killed_process_is_the_cause_of_lost_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKER_ERROR, "")
    effect = failure(tmp_path, 0, 1, RuntimeError("Connection closed by peer"))
    killed = failure(tmp_path, 1, -9, None)
    stopped = failure(tmp_path, 2, -15, None)
    assert first_failure({2: stopped, 0: effect})["rank"] == 0
    assert first_failure({0: effect, 1: killed, 2: stopped}) == {
        "rank": 1,
        "exitcode": -9,
        "signal": "SIGKILL",
        "words": "",
    }
