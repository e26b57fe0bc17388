"""Write `book/results/planner.json`: what the planner on the page "Scaling out" adds up.

python book/tools/planner_table.py            about a minute of processor time

A training step is traced by `handbook plan`'s own code, for each model, stage and method, on a few batches.
Each part of each moment of the step is then written as a sum over these terms, of R rows of L tokens each:

    1,  R,  R L,  R L^2,  min(tokens that carry a loss, 4096)

The last is the tile of logits of the trainers' loss head. What the sums give is compared with plans of
batches that they were not made from; the largest difference is stored beside them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CONFIG_MAPPING

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.planning.changes import Run
from handbook_utils.planning.gpus import GPUS
from handbook_utils.planning.kernels import TILE_TOKENS
from handbook_utils.planning.memory import MARGIN_BYTES, MARGIN_SHARE
from handbook_utils.planning.recipe import model_config, rows_alike, run_of, setup_of
from handbook_utils.planning.report import Plan
from handbook_utils.planning.step import step_moments
from handbook_utils.planning.whole import plan_training_memory
from handbook_utils.schema.recipe import check_recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "_ext"))
from handbook_planner import FILE, added, terms

MIB = 2**20
# layers, width, inner width, heads, heads of keys and values, words, whether the head is the embedding
MODELS: dict[str, tuple[str, int, int, int, int, int, int, bool]] = {
    "Qwen3 0.6B": ("qwen3", 28, 1024, 3072, 16, 8, 151936, True),
    "Qwen3 1.7B": ("qwen3", 28, 2048, 6144, 16, 8, 151936, True),
    "Llama 3.1 8B": ("llama", 32, 4096, 14336, 32, 8, 128256, False),
    "Llama 3.1 70B": ("llama", 80, 8192, 28672, 64, 8, 128256, False),
}
STAGES = {"sft": "SFT", "reward": "Reward model", "dpo": "DPO"}
METHODS = {"full": "All weights", "lora": "LoRA, rank 16", "qlora": "QLoRA, rank 16"}
# (rows, tokens) that are traced, and others on which the sums are tried
TRACED = ((1, 512), (1, 2048), (2, 1024), (1, 4096), (4, 4096))
TRIED = ((8, 1024), (1, 8192))


def recipe(folder: Path, stage: str, method: str, rows: int, length: int) -> Any:
    """The recipe of a cell: rows that are all so long, half of each a prompt, two passes to a step."""
    content: dict[str, Any] = {
        "stage": stage,
        "model": {"name": str(folder)} | ({"quantization": "nf4"} if method == "qlora" else {}),
        "data": [{"name": "your/rows"}],
        "global_batch_size": 2 * rows,
        "training": {
            "max_length": length,
            "per_device_train_batch_size": rows,
        },
    }
    return check_recipe(content | ({} if method == "full" else {"lora": {"rank": 16}}), "planner")


def write_config(folder: Path, model: str) -> None:
    """Write a model's config.json, which is all of it that a plan reads."""
    kind, layers, width, inner, heads, key_heads, words, tied = MODELS[model]
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": words}
    sizes |= {"head_dim": 128} if kind == "qwen3" else {}
    config = CONFIG_MAPPING[kind](**sizes, tie_word_embeddings=tied, max_position_embeddings=131072)
    config.save_pretrained(folder)


def planned(folder: Path, *cell: Any) -> Plan:
    """What `handbook plan RECIPE` says of a cell."""
    return plan_training_memory(recipe(folder, *cell), ResolvedInputs())


def sums(folder: Path, stage: str, method: str) -> dict[str, Any]:
    """What is held, and the parts of each moment as sums, in MiB."""
    runs = [_run(folder, stage, method, *batch) for batch in TRACED]
    memory = runs[0].memory
    steps = [replace(run.setup, accumulates=run.accumulation > 1).step for run in runs]
    found = [step_moments(step, run.batch) for step, run in zip(steps, runs, strict=True)]
    left = np.array([terms(stage, *batch, TILE_TOKENS) for batch in TRACED], float)
    used = left.any(axis=0)
    moments: dict[str, dict[str, list[float]]] = {}
    for moment in found[0]:
        parts = {}
        for part in sorted({name for each in found for name in each[moment]}):
            right = np.array([each[moment].get(part, 0) for each in found], float) / MIB
            scale = left[:, used].max(axis=0)
            solved = np.zeros(left.shape[1])
            solved[used] = np.linalg.lstsq(left[:, used] / scale, right, rcond=None)[0] / scale
            if right.any():
                parts[part] = [float(f"{value:.7g}") for value in solved]
        moments[moment] = parts
    held = {"weights": memory.weights, "adapters": memory.adapters, "reference": memory.reference}
    held |= {"optimiser": memory.optimiser}
    return {"held": {name: round(size / MIB, 3) for name, size in held.items()}, "moments": moments}


def _run(folder: Path, stage: str, method: str, rows: int, length: int) -> Run:
    asked = recipe(folder, stage, method, rows, length)
    setup = setup_of(asked, model_config(asked, str(folder)), processes=1, on_cpu=False)
    return run_of(asked, setup, rows_alike(asked, length))


def main() -> None:
    """Write the table."""
    entries: dict[str, Any] = {}
    content = {
        "models": list(MODELS),
        "stages": STAGES,
        "methods": METHODS,
        "gpus": {gpu.name: round(gpu.bytes / 2**30, 1) for gpu in GPUS},
        "margin": {"gib": MARGIN_BYTES / 2**30, "share": MARGIN_SHARE},
        "tile": TILE_TOKENS,
        "entries": entries,
    }
    worst = 0.0
    with tempfile.TemporaryDirectory() as place:
        for number, model in enumerate(MODELS):
            folder = Path(place) / str(number)
            write_config(folder, model)
            for stage, method in product(STAGES, METHODS):
                entry = sums(folder, stage, method)
                entries["|".join((model, stage, method))] = entry
                for batch in TRIED if number == 0 else ():
                    whole = _run(folder, stage, method, *batch).memory.total / 2**30
                    worst = max(worst, abs(added(content, entry, stage, *batch) / whole - 1))
            print(model, f"worst difference so far {worst:.2%}", flush=True)
    content["worst_difference"] = round(worst, 5)
    FILE.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
