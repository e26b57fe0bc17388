"""Peaks of real steps of online stages, counted tensor by tensor on a CPU, beside what the planner says."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from training_peaks import AfterFirst, Shape
from training_peaks import drawn as drawn_shapes
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from handbook_utils.models.logprobs import sequence_rewards
from handbook_utils.planning.lengths import Lengths
from handbook_utils.planning.live_bytes import LiveBytes
from handbook_utils.planning.memory import Setup
from handbook_utils.planning.rollouts.layout import Asked
from handbook_utils.planning.rollouts.run import OnlineRun
from handbook_utils.planning.skeleton import Step
from handbook_utils.pocket.base_model import build_tokenizer
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.engines.transformers import sample_tokens
from handbook_utils.sampling.generation.rendering import TokenPrompt
from handbook_utils.schema.recipe import check_recipe
from handbook_utils.shared_prefix.answers import Layout


@dataclass(frozen=True)
class OnlineCell:
    """One run of an online stage; `shape.rows` prompts per step, of up to `shape.tokens` tokens."""

    shape: Shape
    stage: str = "grpo"
    attention: str = "sdpa"
    dtype: str = "float32"  # or mixed: float32 weights, computing in bfloat16
    checkpointing: bool = False
    lora: bool = False
    samples: int = 4
    new_tokens: int = 24
    layout: Layout | None = None  # None: as the stage chooses
    beta: float = 0.04
    groups: int = 2  # prompts of a pass that learns

    @property
    def prompts(self) -> list[int]:
        """Tokens of each prompt, the longest first."""
        draw = np.random.default_rng(self.shape.tokens)
        low = self.shape.tokens * 9 // 10
        return sorted(draw.integers(low, self.shape.tokens + 1, self.shape.rows).tolist(), reverse=True)


class _Source:
    """Answers by our engine that never end early, scored by a reward model; it names what is going on."""

    def __init__(self, cell: OnlineCell, counter: LiveBytes, scorer: Any) -> None:
        self.cell, self.counter, self.scorer = cell, counter, scorer
        draw = np.random.default_rng(1)
        self.tokens = [draw.integers(10, 1200, size).tolist() for size in cell.prompts]

    def prompt_tokens(self, rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        return [self.tokens[row["number"]] for row in rows]

    def answers(self, rows: Sequence[Mapping[str, Any]], *, step: int, model: Any) -> list[list[int]]:
        self.counter.phase = "sampling"
        self.rows = rows
        numbers = [row["number"] for row in rows[:: self.cell.samples]]
        asked = [TokenPrompt(str(number), self.tokens[number]) for number in numbers]
        settings = SamplingSettings(samples=self.cell.samples, max_new_tokens=self.cell.new_tokens, seed=step)
        drawn = sample_tokens(model, asked, settings=settings, stop_ids=frozenset({0}))
        self.counter.phase = "learning"  # of which the reference's pass comes next
        self.drawn = [(each.token_ids + [5] * self.cell.new_tokens)[: self.cell.new_tokens] for each in drawn]
        return self.drawn

    def rewards(self) -> Any:
        self.counter.phase = "scoring"
        prompts = self.prompt_tokens(self.rows)
        sequences = [
            (prompt + answer, len(prompt)) for prompt, answer in zip(prompts, self.drawn, strict=True)
        ]
        sequence_rewards(self.scorer, sequences, pad_token_id=0, batch_size=512)
        self.counter.phase = "learning"
        return np.random.default_rng(2).normal(size=(len(prompts), 1))

    def logprobs(self) -> None:
        return None

    def metrics(self) -> dict[str, float]:
        return {}


def measured(cell: OnlineCell) -> dict[str, int]:
    """Highest bytes of each kind of moment in the second step of a real run."""
    from handbook_utils.online.trl_bridge import make_online_trainer
    from handbook_utils.training.trl_bridge import training_conditions

    torch.manual_seed(0)
    config = cell.shape.config(cell.attention)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if cell.lora:
        from handbook_utils.models.adapters import new_adapter

        model = new_adapter(model, _recipe(cell).lora, "causal")
    scoring = cell.shape.config(cell.attention)
    scoring.num_labels = 1
    scorer = AutoModelForSequenceClassification.from_config(scoring).eval()
    counter = LiveBytes()
    with tempfile.TemporaryDirectory() as folder, training_conditions():
        trainer = make_online_trainer(
            cell.stage,
            arguments=_arguments(cell, Path(folder)),
            model=model,
            tokenizer=build_tokenizer(),
            data=Dataset.from_list(
                [
                    {"number": number, "prompt": [{"role": "user", "content": "x"}]}
                    for number in range(cell.shape.rows)
                ]
            ),
            source=_Source(cell, counter, scorer),
            rewards=["one"],
            keeps_start=False,
            callbacks=[AfterFirst(counter)],
        )
        trainer.shares, trainer.layout = True, cell.layout
        with counter:
            for each in filter(None, (trainer.model, trainer.start_copy, scorer)):
                counter.count([*each.parameters(), *each.buffers()], "weights")
            counter.phase = "learning"
            counter.peaks.clear()
            trainer.train()
    return {phase: sum(parts.values()) for phase, parts in counter.peaks.items()}


def _arguments(cell: OnlineCell, folder: Path) -> dict[str, Any]:
    rows = cell.samples * cell.groups
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": cell.dtype == "mixed",
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": cell.shape.rows * cell.samples // rows,
        "max_steps": 2,
        "num_generations": cell.samples,
        "max_completion_length": cell.new_tokens,
        "temperature": 1.0,
        "beta": cell.beta,
        "gradient_checkpointing": cell.checkpointing,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "learning_rate": 1e-4,
        "disable_dropout": True,
        "remove_unused_columns": False,
        "include_num_input_tokens_seen": "no",
    }


def _recipe(cell: OnlineCell) -> Any:
    return check_recipe(
        {
            "stage": cell.stage,
            "model": {"name": "no/model"},
            "data": [{"name": "x.jsonl"}],
            "scorers": {"one": {"kind": "length", "at_most": 5}},
            "prompts_per_step": cell.shape.rows,
            "samples": cell.samples,
            "steps": 2,
            **({"lora": {"rank": 8, "dropout": 0}} if cell.lora else {}),
        },
        "test",
    )


def planned(cell: OnlineCell) -> OnlineRun:
    """The same run, as it is planned."""
    setup = Setup(
        config=cell.shape.config(cell.attention),
        trainer=cell.stage,
        half=torch.bfloat16 if cell.dtype == "mixed" else None,
        checkpointing=cell.checkpointing,
        lora=_recipe(cell).lora,
        reference="copy" if cell.beta and not cell.lora else "none",
        on_cpu=True,
    )
    prompts = cell.prompts
    return OnlineRun(
        setup,
        Lengths(np.array(prompts), np.full((len(prompts), cell.samples), cell.new_tokens)),
        per_device=cell.samples * cell.groups,
        accumulation=cell.shape.rows // cell.groups,
        shares=True,
        asked=Asked(prompts, cell.samples, cell.new_tokens, 512),
        scorers=(Step(cell.shape.config(cell.attention), "reward", folds=False),),
        layout=cell.layout,
    )


def errors_of(cell: OnlineCell) -> dict[str, float]:
    """By what share the plan of each kind of moment is above what was counted."""
    counted = measured(cell)
    return {name: float(plan.counted / counted[name] - 1) for name, plan in planned(cell).moments.items()}


FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "olmo2", "phi3")


def drawn(seed: int, count: int) -> list[OnlineCell]:
    """Runs drawn at random."""
    draw, cells = random.Random(seed), []
    for shape in drawn_shapes(seed, count):
        small = replace(
            shape, family=draw.choice(FAMILIES), rows=2 * draw.randint(1, 3), tokens=draw.randint(40, 120)
        )
        attention, checkpointing = draw.choice(("sdpa", "eager")), draw.random() < 0.5
        cells.append(
            OnlineCell(
                small,
                draw.choice(("grpo", "rloo")),
                attention,
                draw.choice(("float32", "mixed")),
                checkpointing,
                lora=draw.random() < 0.3,
                samples=draw.choice((2, 4, 6)),
                new_tokens=draw.randint(8, 64),
                layout=draw.choice(("rows", None, "cache")) if can_cache(small, checkpointing) else None,
                beta=draw.choice((0.0, 0.04)),
                groups=draw.choice((1, 2)),
            )
        )
    return cells


def can_cache(shape: Shape, checkpointing: bool) -> bool:
    """Whether answers of this model can go on from a cache of their prompts."""
    return not checkpointing and shape.family not in ("gemma3_text", "mistral")
