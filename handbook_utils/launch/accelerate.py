"""The `accelerate launch` command of a training run, checked before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from handbook_utils.errors import LaunchError, MissingDependencyError
from handbook_utils.schema.sections import ZERO3_QUANTIZED

Strategy = Literal["ddp", "fsdp2", "zero2", "zero3", "none"]
PROGRAM = "handbook_utils.cli"


@dataclass(frozen=True)
class Rendezvous:
    """Where the processes of several nodes meet.

    Attributes:
        node: this node's number; 0 is the main one.
        address: host name or address of node 0; None on a single node.
        port: a free port of node 0; None: one is chosen.
    """

    node: int = 0
    address: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class Layout:
    """Processes that train together.

    Attributes:
        strategy: what is split between them.
        processes: their number, over all nodes.
        nodes: machines.
        on_cpu: whether they train on CPU cores.
        rendezvous: where they meet.
    """

    strategy: Strategy
    processes: int
    nodes: int
    on_cpu: bool
    rendezvous: Rendezvous

    @property
    def processes_here(self) -> int:
        """Processes on this node."""
        return self.processes // self.nodes


def checked_layout(layout: Layout, *, devices: int, quantized: bool) -> Layout:
    """Refuse what could not run, and choose a port where none is given.

    Args:
        layout: as the recipe and the command line say.
        devices: GPUs of this node, or on a CPU its cores.
        quantized: whether the model's weights are 4 or 8 bits.
    Raises:
        LaunchError: too many processes, an uneven number per node, a taken port, an unfit strategy.
        MissingDependencyError: ZeRO without DeepSpeed.
    """
    if layout.processes % layout.nodes:
        raise LaunchError(
            f"'launch.processes' {layout.processes} cannot be split over {layout.nodes} nodes. "
            f"Give a multiple of {layout.nodes}."
        )
    _check_devices(layout, devices)
    _check_strategy(layout, quantized)
    meeting = layout.rendezvous
    if layout.nodes > 1 and (meeting.address is None or meeting.port is None):
        raise LaunchError(
            f"{layout.nodes} nodes have to know where to meet: start the command on each of them with "
            "--node-rank 0, 1, ..., and the same --main-address HOST --port PORT (a free one of node 0). "
            "`handbook slurm RECIPE` writes a job that does."
        )
    if not 0 <= meeting.node < layout.nodes:
        raise LaunchError(
            f"--node-rank {meeting.node}: with {layout.nodes} nodes it is 0 to {layout.nodes - 1}."
        )
    port = meeting.port or free_port()
    if meeting.node == 0 and is_taken(port):
        raise LaunchError(
            f"port {port} is taken by another process. Give a free one with --port, or none: one is chosen."
        )
    return Layout(
        layout.strategy,
        layout.processes,
        layout.nodes,
        layout.on_cpu,
        Rendezvous(meeting.node, meeting.address, port),
    )


def launch_command(layout: Layout, program: Sequence[str]) -> list[str]:
    """The command that starts this node's processes.

    Args:
        layout: from `checked_layout`.
        program: arguments of `handbook`, such as ["train", "pocket/sft", "--out", "runs/sft"].
    """
    meeting = layout.rendezvous
    threads = max(1, (os.cpu_count() or 1) // layout.processes_here) if layout.on_cpu else None
    options = {
        "config_file": str(files("handbook_utils").joinpath("launch", "configs", f"{layout.strategy}.yaml")),
        "num_processes": layout.processes,
        "num_machines": layout.nodes,
        "machine_rank": meeting.node,
        "main_process_ip": meeting.address,
        "main_process_port": meeting.port,
        # without it accelerate gives each process one thread, or all of them all
        "num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS", threads),
    }
    flags = [
        text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))
    ]
    return ["accelerate", "launch", *flags, "--module", PROGRAM, *program]


def agent_command(command: Sequence[str]) -> list[str]:
    """The same launcher in this Python, and with its failures told as data (`launch.agent`)."""
    return [sys.executable, "-m", "handbook_utils.launch.agent", *command[2:]]


def _check_devices(layout: Layout, devices: int) -> None:
    here = layout.processes_here
    if here <= devices:
        return
    what = "CPU cores" if layout.on_cpu else "GPUs"
    why = "they would only wait for each other" if devices else "there is nothing to train on"
    raise LaunchError(
        f"{here} processes on a machine with {devices} {what}: {why}. "
        f"Give --processes {max(devices, 1) * layout.nodes} or fewer."
    )


def _check_strategy(layout: Layout, quantized: bool) -> None:
    if layout.on_cpu and layout.strategy != "ddp":
        raise LaunchError(
            f"'launch.strategy' {layout.strategy} needs GPUs: on a CPU accelerate would leave every process "
            "the whole model without a word. Use ddp."
        )
    if layout.strategy == "zero3" and quantized:
        raise LaunchError(ZERO3_QUANTIZED)
    if layout.strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise MissingDependencyError(
            f"'launch.strategy' {layout.strategy} needs DeepSpeed: pip install 'handbook-utils[deepspeed]'. "
            "fsdp2 shards the same without it."
        )


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def is_taken(port: int) -> bool:
    """Whether a process of this machine has the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False
