"""Peaks of real training steps, counted tensor by tensor on a CPU, beside what the planner says of them."""

from __future__ import annotations

import random
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from handbook_utils.planning.lengths import Lengths, batch_of
from handbook_utils.planning.live_bytes import LiveBytes
from handbook_utils.planning.memory import Setup, plan_memory
from handbook_utils.pocket.base_model import build_tokenizer
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.shared_prefix.decoder import shared_prefixes, why_not_shared
from handbook_utils.training.arguments import trainer_arguments
from handbook_utils.training.plan import make_plan

# what a trainer is built with, before its rows are put in place of these
GIVEN = {
    "sft": {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    "reward": {"prompt": "a b", "chosen": " c", "rejected": " d"},
    "dpo": {"prompt": "a b", "chosen": " c", "rejected": " d"},
}


@dataclass(frozen=True)
class Shape:
    """A model and a batch small enough for a CPU."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv: int
    inner: int
    vocabulary: int
    rows: int
    tokens: int
    tied: bool

    def config(self, attention: str) -> Any:
        """The model's configuration."""
        from transformers import CONFIG_MAPPING

        names = {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv,
            "intermediate_size": self.inner,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": self.tied,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": None,
        }
        if self.family in ("qwen3", "gemma3_text"):
            names["head_dim"] = self.hidden // self.heads
        if self.family == "gpt2":
            names = {key: value for key, value in names.items() if key != "num_key_value_heads"}
            names |= {"n_embd": self.hidden, "n_layer": self.layers, "n_head": self.heads}
            names |= {"n_inner": self.inner, "n_positions": 2048}
            for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
                del names[key]
            del names["max_position_embeddings"]
        config = CONFIG_MAPPING[self.family](**names)
        config._attn_implementation = attention
        return config


FIXED = (
    Shape("llama", 128, 4, 4, 4, 384, 1280, 8, 160, True),
    Shape("qwen3", 192, 6, 6, 2, 512, 2048, 4, 256, False),
    Shape("gemma3_text", 128, 5, 4, 1, 256, 4096, 4, 192, True),
    Shape("gpt2", 128, 4, 4, 4, 512, 1536, 6, 128, True),
)
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2", "olmo2", "phi3")


def drawn(seed: int, count: int = 4) -> list[Shape]:
    """Shapes drawn at random."""
    draw, shapes = random.Random(seed), []
    for _ in range(count):
        heads = draw.choice((2, 4, 8))
        shapes.append(
            Shape(
                draw.choice(FAMILIES),
                heads * draw.choice((16, 32)) * draw.choice((1, 2)),
                draw.randint(2, 7),
                heads,
                draw.choice([kv for kv in (1, 2, 4, 8) if heads % kv == 0]),
                32 * draw.randint(6, 20),
                64 * draw.randint(20, 64),
                draw.randint(2, 8),
                draw.randint(48, 256),
                draw.random() < 0.5,
            )
        )
    return shapes


@dataclass(frozen=True)
class Cell:
    """One training run of the grid."""

    shape: Shape
    trainer: str = "sft"
    attention: str = "sdpa"
    dtype: str = "float32"  # or bfloat16 weights, or mixed: float32 weights, computing in bfloat16
    checkpointing: bool = False
    accumulation: int = 1
    lora: bool = False
    shares: bool = True
    padded: bool = True


def lengths_of(cell: Cell) -> Lengths:
    """Tokens of the batch's rows."""
    draw = np.random.default_rng(cell.shape.tokens)
    rows, tokens = cell.shape.rows, cell.shape.tokens
    answers = 1 if cell.trainer in ("sft", "kto") else 2
    if not cell.padded:
        return Lengths(np.full(rows, tokens // 2), np.full((rows, answers), tokens // 2))
    prompts = draw.integers(tokens // 4, tokens // 2, rows)
    return Lengths(prompts, draw.integers(tokens // 4, tokens // 2, (rows, answers)))


def _dataset(cell: Cell, lengths: Lengths) -> Dataset:
    draw = np.random.default_rng(1)

    def ids(count: int) -> list[int]:
        return list(map(int, draw.integers(10, 1200, count)))

    rows: list[dict[str, Any]] = []
    for prompt, answers in zip(lengths.prompts, lengths.answers, strict=True):
        begin = ids(int(prompt))
        said = [ids(int(count)) for count in answers]
        if cell.trainer == "sft":
            rows.append({"input_ids": begin + said[0], "labels": [-100] * len(begin) + said[0]})
        elif cell.trainer == "reward":
            rows.append({"chosen_ids": begin + said[0], "rejected_ids": begin + said[1]})
        else:
            rows.append({"prompt_ids": begin, "chosen_ids": said[0], "rejected_ids": said[1]})
    return Dataset.from_list(rows)


class AfterFirst(TrainerCallback):
    """Forgets the peaks of the first step."""

    def __init__(self, counter: LiveBytes) -> None:
        self.counter = counter

    def on_step_end(self, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 1:
            # only from the second step on do the optimiser's states stand beside the activations
            self.counter.peaks.clear()


def measured(cell: Cell) -> int:
    """Highest bytes of the second step of a real training run."""
    from handbook_utils.training.trl_bridge import make_trainer, training_conditions

    torch.manual_seed(0)
    tokenizer, config = build_tokenizer(), cell.shape.config(cell.attention)
    is_reward = cell.trainer == "reward"
    auto = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
    if is_reward:
        config.num_labels = 1
    held = torch.bfloat16 if cell.dtype == "bfloat16" else torch.float32
    model = auto.from_config(config, dtype=held)
    lengths = lengths_of(cell)
    recipe: Any = _recipe(cell)
    if cell.lora:
        from handbook_utils.models.adapters import new_adapter

        model = new_adapter(model, recipe.lora, "reward" if is_reward else "causal")
    rows = concatenate_datasets([_dataset(cell, lengths)] * cell.accumulation)
    with tempfile.TemporaryDirectory() as folder, training_conditions():
        plan = replace(
            make_plan(recipe, len(rows)), per_device_batch=cell.shape.rows, accumulation=cell.accumulation
        )
        arguments = trainer_arguments(recipe, plan, Path(folder)) | {
            "save_strategy": "no",
            "max_steps": 2,
            "num_train_epochs": 50,
        }
        counter = LiveBytes()
        trainer = make_trainer(
            cell.trainer,
            arguments=arguments,
            model=model,
            tokenizer=tokenizer,
            data=(Dataset.from_list([GIVEN[cell.trainer]] * len(rows)), None),
            callbacks=[AfterFirst(counter)],
        )
        trainer.train_dataset = rows
        with ExitStack() as stack:
            if cell.shares and cell.trainer in ("dpo", "reward"):
                for each in filter(None, (trainer.model, getattr(trainer, "ref_model", None))):
                    assert why_not_shared(each) is None
                    stack.enter_context(shared_prefixes(trainer.accelerator.unwrap_model(each)))
            stack.enter_context(counter)
            for each in filter(None, (trainer.model, getattr(trainer, "ref_model", None))):
                counter.count([*each.parameters(), *each.buffers()], "weights")
            counter.peaks.clear()
            trainer.train()
    return sum(counter.peak.values())


def _recipe(cell: Cell) -> Any:
    content: dict[str, Any] = {
        "stage": cell.trainer,
        "model": {"name": "no/model", "attention": cell.attention},
        "data": [{"name": "x.jsonl"}],
        "global_batch_size": cell.shape.rows * cell.accumulation,
        "training": {
            "use_cpu": True,
            "gradient_checkpointing": cell.checkpointing,
            "bf16": cell.dtype == "mixed",
            "max_length": None if cell.trainer == "sft" else 100_000,
            "learning_rate": 1e-4,
        },
    }
    if cell.lora:
        content["lora"] = {"rank": 8}
    return check_recipe(content, "test")


def planned(cell: Cell) -> Any:
    """What the planner says of the same run."""
    recipe = _recipe(cell)
    setup = Setup(
        config=cell.shape.config(cell.attention),
        trainer=cell.trainer,  # type: ignore[arg-type]
        held_in=torch.bfloat16 if cell.dtype == "bfloat16" else torch.float32,
        half=torch.bfloat16 if cell.dtype == "mixed" else None,
        checkpointing=cell.checkpointing,
        lora=recipe.lora,
        reference="copy" if cell.trainer == "dpo" and not cell.lora else "none",
        second_pass=cell.trainer in ("dpo", "kto"),
        accumulates=cell.accumulation > 1,
        dropout=cell.trainer == "sft",  # the other trainers turn it off
        on_cpu=True,
    )
    shares = cell.shares and cell.trainer in ("dpo", "reward")
    batch = batch_of(lengths_of(cell), shares=shares, has_loss_head=cell.trainer != "reward")
    return plan_memory(setup, batch)


def error_of(cell: Cell) -> float:
    """By what share a plan is above the counted peak."""
    return float(planned(cell).counted / measured(cell) - 1)
