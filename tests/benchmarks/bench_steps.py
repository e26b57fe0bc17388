"""Is a step the same in one process, accumulated, and in two? On the pocket world, for the book.

Writes `book/results/steps.json`, with the largest difference of any logged loss and of any weight.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import record
from safetensors.torch import load_file

from handbook_utils import run_stage
from handbook_utils.reporting.results import write_result
from handbook_utils.runs.state import read_manifest, read_metrics

ROWS, STEPS, SEEDS = 512, 16, (0, 1)
# (name, processes, rows per pass); the first is what the others are compared with
WAYS = (("one pass", 1, 32), ("accumulated", 1, 8), ("two processes", 2, 16), ("two, accumulated", 2, 4))


def train(folder: Path, seed: int, processes: int, rows_per_pass: int) -> tuple[Any, Any, dict[str, Any]]:
    """Losses, weights and plan of one run."""
    overrides = {
        "data.0.split": f"train[:{ROWS}]",
        "eval_data": [],
        "global_batch_size": ROWS // STEPS,
        "training.use_cpu": True,
        "training.logging_steps": 1,
        "training.per_device_train_batch_size": rows_per_pass,
    }
    run_stage("pocket/sft", folder, overrides=overrides, seed=seed, processes=processes, progress=False)
    losses = [record["loss"] for record in read_metrics(folder) if "loss" in record]
    tensors = load_file(folder / "model" / "model.safetensors")
    weights = torch.cat([tensors[name].flatten() for name in sorted(tensors)]).numpy()
    return np.array(losses), weights, read_manifest(folder)["notes"]["plan"]


def main() -> None:
    """Measure and record."""
    ways: dict[str, dict[str, Any]] = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            first: tuple[Any, Any] | None = None
            for number, (name, processes, rows_per_pass) in enumerate(WAYS):
                losses, weights, plan = train(Path(folder) / str(number), seed, processes, rows_per_pass)
                first = first or (losses, weights)
                way = ways.setdefault(name, {**plan, "loss_gap": 0.0, "weight_gap": 0.0})
                way["loss_gap"] = max(way["loss_gap"], float(np.abs(losses - first[0]).max()))
                way["weight_gap"] = max(way["weight_gap"], float(np.abs(weights - first[1]).max()))
    write_result("steps", {"ways": ways}, seeds=SEEDS)
    for key in ("loss_gap", "weight_gap"):
        largest = max(way[key] for way in ways.values())
        record(name=f"steps_{key}", value=largest, unit="absolute", goal=None)


if __name__ == "__main__":
    main()
