"""Write `book/results/planner.json`: what the planner on the page "Scaling out" shows.

    python book/tools/planner_table.py            some minutes of processor time

Every choice that the form offers is planned by `handbook plan`'s own code, and its parts are stored in MiB.
The page looks them up. It computes nothing, so nothing can differ from what the command says.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.planning.gpus import GPUS
from handbook_utils.planning.whole import plan_training_memory
from handbook_utils.schema.recipe import check_recipe

FILE = Path(__file__).resolve().parents[1] / "results" / "planner.json"
MIB = 2**20
# layers, width, inner width, heads, heads of keys and values, words, whether the head is the embedding
MODELS: dict[str, tuple[str, int, int, int, int, int, int, bool]] = {
    "Qwen3 0.6B": ("qwen3", 28, 1024, 3072, 16, 8, 151936, True),
    "Qwen3 1.7B": ("qwen3", 28, 2048, 6144, 16, 8, 151936, True),
    "Llama 3.1 8B": ("llama", 32, 4096, 14336, 32, 8, 128256, False),
    "Qwen3 14B": ("qwen3", 40, 5120, 17408, 40, 8, 151936, False),
    "Llama 3.1 70B": ("llama", 80, 8192, 28672, 64, 8, 128256, False),
}
STAGES = {"sft": "SFT", "reward": "Reward model", "dpo": "DPO"}
METHODS = {"full": "All weights", "lora": "LoRA, rank 16", "qlora": "QLoRA, rank 16"}
ROWS = (1, 2, 4, 8)
TOKENS = (512, 1024, 2048, 4096, 8192, 16384)


def recipe(folder: Path, stage: str, method: str, rows: int, length: int) -> Any:
    """The recipe of a cell: rows that are all so long, half of each a prompt, two passes to a step."""
    content: dict[str, Any] = {
        "stage": stage,
        "model": {"name": str(folder)} | ({"quantization": "nf4"} if method == "qlora" else {}),
        "data": [{"name": "your/rows"}],
        "global_batch_size": 2 * rows,
        "training": {"max_length": length, "per_device_train_batch_size": rows},
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


def parts_of(folder: Path, *cell: Any) -> dict[str, float]:
    """What `handbook plan RECIPE` says of a cell, in MiB by part."""
    plan = plan_training_memory(recipe(folder, *cell), ResolvedInputs())
    return {name: size / MIB for name, size in plan.memory.parts.items()}


def entry(folder: Path, stage: str, method: str) -> dict[str, Any]:
    """All cells of a model, a stage and a method, rows first; parts that are nowhere needed are left out."""
    cells = [parts_of(folder, stage, method, *cell) for cell in product(ROWS, TOKENS)]
    names = [name for name in cells[0] if any(round(cell.get(name, 0)) for cell in cells)]
    return {"parts": names, "cells": [[round(cell.get(name, 0)) for name in names] for cell in cells]}


def main() -> None:
    """Write the table."""
    entries: dict[str, Any] = {}
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            write_config(Path(folder), model)
            for stage, method in product(STAGES, METHODS):
                entries["|".join((model, stage, method))] = entry(Path(folder), stage, method)
                print(model, stage, method, file=sys.stderr, flush=True)
    content = {
        **{"models": list(MODELS), "stages": STAGES, "methods": METHODS, "rows": ROWS, "tokens": TOKENS},
        "gpus": {gpu.name: round(gpu.bytes / 2**30, 1) for gpu in GPUS},
        "entries": entries,
    }
    FILE.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
