"""`handbook info`: what it runs on, which versions, which folders. What a bug report needs."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from handbook_utils.cli.options import Json

# libraries of the extras, listed where they are installed
OPTIONAL = ("ray", "vllm", "deepspeed", "flash-attn")
# variables that change what a run does; none of them holds a secret
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HANDBOOK_SCALE",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
)


def info(json: Json = False) -> None:
    """Show versions, devices and folders: what a bug report needs."""
    from handbook_utils.cli import view

    found = gather()
    if json:
        view.say(found, "", json)
    else:
        _show(found)


def gather() -> dict[str, Any]:
    """Versions, devices and folders of this installation, as plain values."""
    from handbook_utils.environment import commit, hardware, versions
    from handbook_utils.libraries.versions import untested_versions

    devices = _devices()  # loads torch, which `hardware` needs to see GPUs
    return {
        "versions": versions() | _optional_versions(),
        "untested": untested_versions(),
        "commit": commit(),
        "hardware": hardware() | devices,
        "paths": _paths(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _optional_versions() -> dict[str, str]:
    found = {}
    for name in OPTIONAL:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _devices() -> dict[str, Any]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = [torch.cuda.get_device_properties(i).total_memory / 2**30 for i in range(count)]
    return {
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "gpu_memory_gib": [round(gib, 1) for gib in memory],
    }


def _paths() -> dict[str, str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    import handbook_utils

    return {
        "package": str(Path(handbook_utils.__file__).parent),
        "python": sys.executable,
        "model and data cache": str(HF_HUB_CACHE),
        "runs": str(Path("runs").resolve()),
    }


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", box=None, show_header=False, pad_edge=False)
    hardware = found["hardware"]
    gpus = [
        f"{name}, {gib} GiB"
        for name, gib in zip(hardware.get("gpus", []), hardware["gpu_memory_gib"], strict=True)
    ]
    sections: dict[str, dict[str, Any]] = {
        "Versions": found["versions"] | {"commit": found["commit"] or "installed from a wheel"},
        "Devices": {
            "cpu": f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads",
            "gpu": "\n".join(gpus) or "none",
            "cuda": hardware["cuda"] or "not in this build of PyTorch",
            "system": f"{platform.system()}, {hardware['platform']}",
        },
        "Folders": found["paths"],
        "Environment": found["environment"],
    }
    for title, rows in sections.items():
        if rows:
            table.add_row(f"[bold]{title}[/bold]", "")
        for name, value in rows.items():
            table.add_row(f"  {name}", str(value).replace("[", r"\["))
    console = Console(highlight=False)
    console.print(table, soft_wrap=True)
    for sentence in found["untested"]:
        console.print(f"untested: {sentence}", style="yellow", markup=False)
    console.print(
        "\nFor a bug report: paste this, the whole error, and manifest.json and log.txt of the run folder.",
        style="dim",
    )
