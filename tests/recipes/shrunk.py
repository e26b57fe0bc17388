"""Packaged recipes on tiny random models of the same kind and made-up rows in the same schema: two steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from handbook_utils.schema.recipe import recipe_to_dict
from handbook_utils.schema.training import OnlineRecipe
from tests.tiny_models import tiny_model

# which architecture a published model has, by a part of its name; the first that fits
ARCHITECTURES = {
    "Mixtral": "mixtral",
    "gemma": "gemma",
    "SmolLM3": "smollm3",
    "SmolLM": "llama",
    "smollm2": "llama",
    "Qwen3": "qwen3",
    "Llama": "llama",
    "starc": "starcoder2",
    "istral": "mistral",
    "zephyr-7b": "mistral",
    "pocket:": "llama",
}

ASKED = [{"role": "user", "content": "Name a tree."}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("An oak.", "No."))
# columns as the data sets have them, but for those that nobody reads (of Tülu 3's: id, source), which are
# warned of; the alignment-handbook's own files name those of the last three
SCHEMAS: dict[str, dict[str, Any]] = {
    "ultrachat_200k": {"prompt": "Name a tree.", "prompt_id": "1", "messages": [*ASKED, GOOD]},
    "ultrafeedback_binarized": {
        **{"prompt": "Name a tree.", "prompt_id": "1", "messages": [*ASKED, GOOD]},
        **{"chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD], "score_chosen": 8.0, "score_rejected": 2.0},
    },
    "smoltalk2:SFT": {"messages": [*ASKED, GOOD], "chat_template_kwargs": {"enable_thinking": False}},
    "smoltalk2:Preference": {
        **{"prompt": "Name a tree.", "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "preference-mixture": {
        **{"prompt": "Name a tree.", "chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
    },
    "conversation": {"messages": [*ASKED, GOOD]},
    "preference": {"chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]},
    "text": {"text": "Snow fell on the hills."},
}
ROWS = 8

# what differs from the packaged recipe, and why
WITHOUT = {
    "fp16": "a CPU trains in float32",
    "eval_strategy": "no held-out rows are given",
    "eval_steps": "no held-out rows are given",
    "eos_token": "the byte tokenizer has no <|im_end|>",
    "max_length": "the shrunk models have 512 positions",
    "num_train_epochs": "two steps",
    "warmup_steps": "two steps; at the packaged warm-up nothing would move",
    "ddp_timeout": "one process",
}
# bitsandbytes warns that a CPU has no memory to page to
PAGED = ("paged_adamw_8bit", "paged_adamw_32bit")
TWO_STEPS = {
    **{"use_cpu": True, "bf16": False, "max_steps": 2, "max_length": 256, "warmup_steps": 0},
    **{"logging_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no"},
}


def architecture(name: str) -> str:
    return next(kind for part, kind in ARCHITECTURES.items() if part in name)


def rows_like(source: Any, stage: str) -> dict[str, Any]:
    """A row with the columns of the data set that a source names."""
    name = str(source.name)
    for schema, row in SCHEMAS.items():
        part, _, subset = schema.partition(":")
        if part in name and subset in (source.subset or ""):
            return row
    return SCHEMAS[{"pretrain": "text", "sft": "conversation"}.get(stage, "preference")]


def tiny_models(folder: Path) -> Callable[[str], str]:
    """Return a function of a published model's name that gives a folder with a tiny one of its kind."""
    made: dict[str, Path] = {}

    def place(name: str) -> str:
        kind = architecture(name)
        if kind not in made:
            made[kind] = tiny_model(kind, folder / kind)
        return str(made[kind])

    return place


def write_rows(source: Any, stage: str, file: Path) -> dict[str, Any]:
    """Rows like those of a source, each with a prompt of its own; returns the source that reads them."""
    row = json.dumps(rows_like(source, stage)).replace('"prompt_id": "1"', '"prompt_id": "a tree"')
    lines = (row.replace("a tree", f"a tree of {file.stem} {number}") + "\n" for number in range(ROWS))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines), encoding="utf-8")
    return {"name": str(file), "format": source.format}


def two_steps(
    recipe: Any, shrunk: Callable[[str], str], folder: Path, *, held_out: bool = False
) -> dict[str, Any]:
    """The recipe with its model shrunk and its data made up; everything else that a CPU takes stays."""
    content = recipe_to_dict(recipe)
    for key in ("eval_data", "launch"):
        content.pop(key, None)
    content["model"]["dtype"] = "auto"
    if recipe.model.name is not None and recipe.model.adapter is not None:
        # a published adapter: the one that this family's own QLoRA recipe made two steps of
        del content["model"]["name"]
        content["model"]["from"] = "sft-qlora"
    elif recipe.model.name is not None:
        content["model"]["name"] = shrunk(recipe.model.name)
        content["model"].pop("revision", None)
    content["data"] = [write_rows(recipe.data[0], recipe.stage, folder / "rows.jsonl")]
    if held_out and recipe.eval_data:
        content["eval_data"] = [write_rows(recipe.eval_data[0], recipe.stage, folder / "held-out.jsonl")]
    if isinstance(recipe, OnlineRecipe):
        look = {"every": 1, "keep": "last"} if "eval_data" in content else None
        return content | few_rollouts(recipe) | {"held_out": look}
    content["global_batch_size"] = 4
    content["training"] = few_steps(recipe.training)
    return content


def few_rollouts(recipe: OnlineRecipe) -> dict[str, Any]:
    """Two steps of a recipe that samples while it trains: short answers, and a reward without a model."""
    training = few_steps(recipe.training)
    for key in ("max_steps", "max_length", "per_device_train_batch_size"):
        del training[key]
    sizes = {
        "steps": 2,
        "prompts_per_step": 2,
        "samples": 2,
        "max_new_tokens": 8,
        "stop_at_kl": None,
    }
    return {**sizes, "scorers": {"vowel": {"kind": "regex", "pattern": "[aeiou]"}}, "training": training}


def few_steps(training: dict[str, Any]) -> dict[str, Any]:
    """A recipe's `training` as far as a CPU takes it, cut to two steps."""
    kept = {key: value for key, value in training.items() if key not in WITHOUT}
    if kept.get("optim") in PAGED:
        del kept["optim"]
    return {**kept, **TWO_STEPS}


def small_round(recipe: Any, folder: Path) -> dict[str, Any]:
    """A `rejection` recipe on made-up prompts: two short answers each, two steps of training."""
    content = recipe_to_dict(recipe)
    content["data"] = [write_rows(recipe.data[0], "sft", folder / "rows.jsonl")]
    content["evaluate"]["data"] = [write_rows(recipe.evaluate.data[0], "sft", folder / "held-out.jsonl")]
    content |= {"samples": 2, "max_new_tokens": 8}
    for section in (content["model"], *content["scorers"].values()):
        section["dtype"] = "auto"
    content["train"].pop("launch")
    content["train"]["global_batch_size"] = 4
    content["train"]["training"] = few_steps(recipe.train.training)
    return content
