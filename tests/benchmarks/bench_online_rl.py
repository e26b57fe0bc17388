"""One GRPO step, TRL's own and ours in turns in one process: CPU time of one thread, and memory.

A random Llama of 6 layers and 256 numbers per token answers 8 prompts of 160 to 240 tokens; answers end at
random, passes hold 16 of them, and beta is 0.04, so there is a reference. TRL samples by `generate`, timed,
and then learns from the same answers as we do, so that both losses and gradients are the same.

`bench_online_rl.py NAME ... --rounds 1` measures some of the shapes again.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import record
from _shapes import keep_speedup, llama, measure_shapes, middle
from datasets import Dataset
from transformers import LlamaForCausalLM, TrainerCallback

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.environment import peak_memory_gib, reset_peak_memory
from handbook_utils.online import trl_bridge as bridge
from handbook_utils.sampling.generation.engines.interface import SamplingSettings
from handbook_utils.sampling.generation.engines.transformers import sample_tokens
from handbook_utils.sampling.generation.rendering import TokenPrompt
from handbook_utils.training.reference.models import frozen_copy
from handbook_utils.training.trl_bridge import training_conditions
from tests.tiny_models import build_tiny_tokenizer

PROMPTS, ROWS_PER_PASS, STOP, BETA = 8, 16, 1, 0.04
ROUNDS = 3


@dataclass(frozen=True)
class Shape:
    """A step to measure.

    Attributes:
        vocabulary: tokens of the model.
        limit: of an answer; with `chance` of an end at each token they are shorter.
        chance: of an end at each token.
        samples: answers per prompt.
        goal: TRL's time over ours.
        goal_memory: our memory over the start of a step, in TRL's.
    """

    name: str
    vocabulary: int
    limit: int
    chance: float
    samples: int
    goal: float
    goal_memory: float


SHAPES = [
    Shape("600-43-8", 600, 64, 0.0135, 8, 4.5, 0.35),
    Shape("600-43-16", 600, 64, 0.0135, 16, 5.0, 0.5),
    Shape("8000-43-8", 8000, 64, 0.0135, 8, 5.0, 0.35),
    Shape("600-188-8", 600, 256, 0.0026, 8, 3.2, 0.55),
    Shape("8000-188-8", 8000, 256, 0.0026, 8, 3.0, 0.55),
    Shape("600-188-16", 600, 256, 0.0026, 16, 3.0, 0.55),
]


class Timer(TrainerCallback):
    """CPU seconds and memory of a step, and its gradient."""

    def __init__(self) -> None:
        self.seconds, self.memory, self.gradient = 0.0, 0.0, torch.zeros(0)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the other side's step left behind
        reset_peak_memory()
        self._held = resident_gib()
        self._began = time.thread_time()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.gradient = torch.cat(
            [w.grad.flatten().clone() for w in model.parameters() if w.grad is not None]
        )

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.thread_time() - self._began
        self.memory = peak_memory_gib() - self._held


def resident_gib() -> float:
    """Memory that the process holds now."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 2**20


class Answers:
    """Prompts of random tokens, our answers to them, kept for TRL, and rewards drawn beforehand."""

    def __init__(self, shape: Shape) -> None:
        noise = np.random.default_rng(0)
        self.shape = shape
        self.tokens = [
            noise.integers(2, shape.vocabulary, int(length)).tolist()
            for length in np.linspace(160, 240, PROMPTS)
        ]
        self.values = noise.normal(size=(PROMPTS * shape.samples, 1))
        self.kept: dict[str, list[int]] = {}
        self.rollout_s = 0.0

    def rows(self) -> Dataset:
        """A dataset whose rows name their prompts."""
        said = [[{"role": "user", "content": str(number)}] for number in range(PROMPTS)]
        return Dataset.from_list([{"prompt": messages} for messages in said])

    def prompt_tokens(self, rows: Sequence[Any]) -> list[list[int]]:
        return [self.tokens[int(row["prompt"][0]["content"])] for row in rows]

    def answers(self, rows: Sequence[Any], *, step: int, model: Any) -> list[list[int]]:
        began = time.thread_time()
        names = [row["prompt"][0]["content"] for row in rows][:: self.shape.samples]
        asked = [TokenPrompt(name, self.tokens[int(name)]) for name in names]
        settings = SamplingSettings(self.shape.samples, self.shape.limit, rows_per_batch=512)
        found = sample_tokens(model, asked, settings=settings, stop_ids=frozenset({STOP}))
        self.kept = {f"{row.prompt_id}.{row.sample_index}": row.token_ids for row in found}
        self.rollout_s = time.thread_time() - began
        return [row.token_ids for row in found]

    def again(self, rows: Sequence[Any]) -> list[list[int]]:
        """The same answers for another trainer's rows."""
        names = [row["prompt"][0]["content"] for row in rows]
        return [self.kept[f"{name}.{place % self.shape.samples}"] for place, name in enumerate(names)]

    def rewards(self) -> Any:
        return self.values

    def logprobs(self) -> Any:
        return None

    def metrics(self) -> Mapping[str, float]:
        return {}


def model_of(shape: Shape) -> Any:
    """A random model whose answers end with the shape's chance at each token."""
    config = llama(
        shape.vocabulary,
        max_position_embeddings=1024,
        eos_token_id=STOP,
        pad_token_id=0,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def end_at_random(model: Any, shape: Shape) -> None:
    """While answers are sampled, the end of one has a fixed chance."""
    logit = math.log(shape.vocabulary * shape.chance / (1 - shape.chance))

    def after(_: Any, __: Any, output: Any) -> None:
        if getattr(output, "logits", None) is not None:
            output.logits[..., STOP] = logit

    model.register_forward_hook(after)


def arguments(shape: Shape, place: str) -> dict[str, Any]:
    rows = PROMPTS * shape.samples
    return {
        **{"output_dir": place, "use_cpu": True, "bf16": False, "activation_checkpointing": False},
        **{"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False},
        **{"max_steps": 1, "logging_steps": 1, "learning_rate": 1e-5, "beta": BETA, "loss_type": "dapo"},
        **{"num_generations": shape.samples, "per_device_train_batch_size": ROWS_PER_PASS},
        **{"gradient_accumulation_steps": rows // ROWS_PER_PASS, "max_completion_length": shape.limit},
        **{"remove_unused_columns": False, "shuffle_dataset": False, "per_device_eval_batch_size": rows},
    }


def ours(shape: Shape, model: Any, source: Answers, timer: Timer, place: str) -> Any:
    """Our trainer."""
    trainer = bridge.make_online_trainer(
        "grpo",
        arguments=arguments(shape, place),
        model=model,
        tokenizer=build_tiny_tokenizer(),
        data=source.rows(),
        source=source,
        rewards=["reward"],
        keeps_start=False,
        callbacks=[timer],
    )
    end_at_random(model, shape)
    return trainer


def theirs(shape: Shape, model: Any, source: Answers, timer: Timer, place: str) -> Any:
    """TRL's trainer: its own rollout is made and timed, then it learns from our answers."""

    class Own(bridge.GRPOTrainer):
        rollout_s = 0.0

        def create_model_card(self, *_: Any, **__: Any) -> None:
            pass

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            self.rows = inputs
            return super()._generate_and_score_completions(inputs)

        def _tokenize_prompts(self, prompts: Any) -> Any:
            return source.prompt_tokens(self.rows), None, {}

        def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
            began = time.thread_time()
            super()._generate_single_turn(*given, **named)
            self.rollout_s = time.thread_time() - began
            return source.again(self.rows), None

    def reward(prompts: Any, **_: Any) -> list[float]:
        return source.values[:, 0].tolist()

    reference = frozen_copy(model, {"bf16": False}).eval()
    trainer = Own(
        model=model,
        reward_funcs=[reward],
        args=bridge.CONFIGS["grpo"](
            **bridge.installed_names(bridge.CONFIGS["grpo"], {**arguments(shape, place), "beta": 0.0})
        ),
        processing_class=build_tiny_tokenizer(),
        train_dataset=source.rows(),
        callbacks=[timer],
    )
    bridge.add_fused_lm_head(reference)
    trainer.beta, trainer.ref_model = BETA, reference
    end_at_random(model, shape)
    return trainer


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """All figures of one shape, the sides in turns; our first answers are TRL's too."""
    base, source = model_of(shape), Answers(shape)
    sides: dict[str, Callable[..., Any]] = {"ours": ours, "trl": theirs}
    steps: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    gradients: dict[str, torch.Tensor] = {}
    for _ in range(rounds):
        for side, make in sides.items():
            timer = Timer()
            # TRL's side as it is by itself: on a CPU its head projects prompts too
            conditions = training_conditions() if side == "ours" else nullcontext()
            with tempfile.TemporaryDirectory() as place, quiet_libraries(), conditions:
                trainer = make(shape, copy.deepcopy(base), source, timer, place)
                trainer.train()
            rollout = source.rollout_s if side == "ours" else trainer.rollout_s
            loss = trainer.state.log_history[0]["loss"]
            steps[side].append(
                {"step_s": timer.seconds, "rollout_s": rollout, "memory_gib": timer.memory, "loss": loss}
            )
            gradients[side] = timer.gradient
            del trainer
    gap = float((gradients["ours"] - gradients["trl"]).norm() / gradients["trl"].norm())
    found = {
        **asdict(shape),
        "tokens": statistics.mean(map(len, source.kept.values())),
        "speedup": over(steps, "step_s"),
        "rollout": over(steps, "rollout_s"),
        "memory": {"value": 1 / over(steps, "memory_gib")["value"]},
        "seconds": {
            side: {name: statistics.median(each[name] for each in mine) for name in ("step_s", "rollout_s")}
            for side, mine in steps.items()
        },
        "gradients_apart": gap,
        "loss_apart": abs(steps["ours"][-1]["loss"] - steps["trl"][-1]["loss"]),
    }
    print(shape.name, json.dumps(found), flush=True)
    return found


def over(steps: Mapping[str, Sequence[Mapping[str, float]]], what: str) -> dict[str, float]:
    """TRL's figure over ours: the median over rounds, the lowest and the highest."""
    return middle([b[what] / a[what] for a, b in zip(steps["ours"], steps["trl"], strict=True)])


def keep_all(measured: Mapping[str, Any]) -> None:
    """Record every figure beside its goal."""
    for name, found in measured.items():
        peer = "TRL's GRPOTrainer, the same answers"
        keep_speedup(f"online_rl_{name}_speedup", found["speedup"], found["goal"], peer)
        memory = found["memory"]["value"]
        record(name=f"online_rl_{name}_memory", value=memory, unit="of TRL's", goal=found["goal_memory"])
    apart = max(found["gradients_apart"] for found in measured.values())
    record(name="online_rl_gradients", value=apart, unit="relative", goal=1e-4)


if __name__ == "__main__":
    works = {shape.name: partial(measure, shape) for shape in SHAPES}
    measure_shapes("online_rl", works, keep_all, rounds=ROUNDS)
