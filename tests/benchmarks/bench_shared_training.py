"""DPO and reward training with each prompt computed once and no padding, against TRL's trainers.

The sides train on the same pairs in the same process, a step each in turn, on one thread's CPU time: ours
by default, ours with `length_batching`, TRL's trainer as it comes, and for DPO TRL's with the output head
patched as ours is, which shows what sharing and leaving padding out alone give. Whole epochs would take
hours, so each side takes every n-th of its epoch's batches ordered by size: of 1,024 pairs, in random
batches, and with `length_batching` in batches of like length. The ideal ratio is that of the tokens: what
TRL computes, padding included, over each prompt and answer once.

`bench_shared_training.py peak SIDE` is what measures a side's memory, in a process of its own.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import record
from _shapes import llama
from _turns import Turn, in_turns
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
)

from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.environment import peak_memory_gib, reset_peak_memory
from handbook_utils.reporting.results import write_result
from handbook_utils.shared_prefix.batching import LengthBatches
from handbook_utils.shared_prefix.decoder import shared_prefixes
from handbook_utils.training.reference.models import frozen_copy
from handbook_utils.training.trl_bridge import CONFIGS, TRAINERS, make_trainer, training_conditions

PAIRS, BATCH, STEPS, ROUNDS = 1024, 8, 4, 2
OURS, ALIKE = "ours", "ours, batches of like length"
SIDES = {
    OURS: training_conditions,
    ALIKE: training_conditions,
    "TRL": nullcontext,
    "TRL, same head": training_conditions,
}


@dataclass(frozen=True)
class Work:
    """Pairs of log-normal lengths, clipped to [8, 4 medians] and [4, 4 medians], and the goal for them."""

    stage: str
    prompt: int
    answer: int
    goal: float
    vocabulary: int = 600
    sigma: float = 0.8
    max_length: int = 4096

    @property
    def name(self) -> str:
        """Of its figure."""
        return f"{self.stage}_{self.prompt}_{self.answer}_v{self.vocabulary}"


SHAPES = [
    Work("dpo", 180, 60, 3.0),
    Work("dpo", 110, 180, 2.3),
    # short prompts of very unlike length beside long answers, as UltraFeedback has them
    Work("dpo", 100, 270, 2.0, sigma=1.0, max_length=1024),
    Work("reward", 180, 60, 2.5),
    Work("reward", 90, 140, 1.7),
]
WORKS = [Work(**(vars(work) | {"vocabulary": size})) for size in (600, 8000) for work in SHAPES]


def lengths(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """(pairs,) tokens of the prompts, (2, pairs) of the answers, the end of the sequence included."""
    draw = np.random.default_rng(0)

    def drawn(median: int, sigma: float, least: int, shape: Any) -> np.ndarray:
        return np.clip(draw.lognormal(math.log(median), sigma, shape), least, 4 * median).astype(int)

    prompts = np.minimum(drawn(work.prompt, work.sigma, 8, PAIRS), work.max_length - 8)
    answers = drawn(work.answer, 0.6, 4, (2, PAIRS))
    return prompts, np.minimum(answers, work.max_length - prompts)


def rows_of(work: Work) -> Dataset:
    """Pairs of random words, a token each."""
    draw = np.random.default_rng(1)
    prompts, answers = lengths(work)

    def text(tokens: int) -> str:
        return " ".join(f"w{word}" for word in draw.integers(0, work.vocabulary - 2, tokens))

    rows = []
    for prompt, one, other in zip(prompts, *answers, strict=True):
        begins = text(prompt)
        # the end of the sequence is the last token of an answer
        row = {"chosen": " " + text(one - 1), "rejected": " " + text(other - 1)}
        if work.stage == "reward":
            row = {side: begins + own for side, own in row.items()}
        rows.append({"prompt": begins, **row} if work.stage == "dpo" else row)
    return Dataset.from_list(rows)


def words(work: Work) -> Any:
    """A tokenizer of whole words."""
    vocabulary = {"<pad>": 0, "<end>": 1, **{f"w{word}": word + 2 for word in range(work.vocabulary - 2)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def model_of(work: Work) -> Any:
    """A random model, six layers of 256."""
    config = llama(
        work.vocabulary,
        intermediate_size=704,
        num_attention_heads=4,
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=1,
        num_labels=1,
    )
    kind = AutoModelForSequenceClassification if work.stage == "reward" else AutoModelForCausalLM
    return kind.from_config(config)


def batches_of(work: Work, side: str, seed: int) -> tuple[list[list[int]], np.ndarray]:
    """An epoch's batches of a side, and the tokens it computes of each."""
    prompts, answers = lengths(work)
    longest = (prompts + answers).max(axis=0)
    once = prompts + answers.sum(axis=0)
    if side == ALIKE:
        batches = LengthBatches(once, step_rows=BATCH, seed=seed).epoch(0)
        return batches, np.array([once[rows].sum() for rows in batches])
    order = np.random.default_rng(seed).permutation(PAIRS).reshape(-1, BATCH)
    if side == OURS:
        return order.tolist(), np.array([once[rows].sum() for rows in order])
    return order.tolist(), np.array([2 * BATCH * longest[rows].max() for rows in order])


def sampled(work: Work, side: str, seed: int) -> tuple[list[int], float]:
    """Rows of every n-th batch by size, and those batches' share of the epoch's tokens."""
    batches, tokens = batches_of(work, side, seed)
    by_size = np.argsort(tokens, kind="stable")
    every = len(by_size) // STEPS
    taken = by_size[every // 2 :: every][:STEPS]
    taken = np.random.default_rng(seed).permutation(taken)
    return [row for batch in taken for row in batches[batch]], float(tokens[taken].sum() / tokens.sum())


def trainer_of(work: Work, side: str, rows: Dataset, folder: Path, turn: Any = None) -> Trainer:
    """A side's trainer over rows that already stand in the order of its batches."""
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "max_length": work.max_length,
        # TRL's defaults are for GPUs: on a CPU they make a step five times slower, for both sides
        **{"use_cpu": True, "bf16": False, "activation_checkpointing": False, "dataloader_pin_memory": False},
        **{"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1},
    }
    model, tokenizer = model_of(work), words(work)
    callbacks = [turn] if turn is not None else []
    if side in (OURS, ALIKE):
        return make_trainer(
            work.stage,
            arguments=arguments,
            model=model,
            tokenizer=tokenizer,
            data=(rows, None),
            callbacks=callbacks,
        )
    reference = {"ref_model": frozen_copy(model, arguments)} if work.stage == "dpo" else {}
    trainer = TRAINERS[work.stage](
        model=model,
        args=CONFIGS[work.stage](**arguments),
        processing_class=tokenizer,
        train_dataset=rows,
        callbacks=callbacks,
        **reference,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def sharing(side: str, trainer: Any) -> ExitStack:
    """Our sides compute a prompt once and no padding, in the policy and in its reference."""
    stack = ExitStack()
    models = (trainer.model, getattr(trainer, "ref_model", None)) if side in (OURS, ALIKE) else ()
    for model in filter(None, models):
        stack.enter_context(shared_prefixes(model, skip_padding=True))
    return stack


def one_round(work: Work, rows: Dataset, seed: int) -> dict[str, float]:
    """Seconds per epoch of each side, from the batches it took."""
    # a reward model's head has one output: there is nothing to patch
    sides = {side: SIDES[side] for side in SIDES if work.stage == "dpo" or side != "TRL, same head"}
    shares = {side: sampled(work, side, seed) for side in sides}
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():

        def make(side: str, turn: Turn) -> Trainer:
            return trainer_of(work, side, rows.select(shares[side][0]), Path(folder) / side, turn)

        turns, _ = in_turns(sides, make, sharing)
    return {side: turn.seconds / shares[side][1] for side, turn in turns.items()}


def ideal(work: Work) -> float:
    """Tokens that TRL computes, padding included, over each prompt and answer once; the mean over epochs."""
    prompts, answers = lengths(work)
    theirs = statistics.mean(batches_of(work, "TRL", seed)[1].sum() for seed in range(20))
    return float(theirs / (prompts.sum() + answers.sum()))


def peak_gib(work: Work, side: str) -> float:
    """Most memory the process had while a side did its largest step, model and libraries included."""
    asked = [sys.executable, __file__, "peak", side, json.dumps(vars(work))]
    found = subprocess.run(asked, check=True, capture_output=True, text=True)
    return float(found.stdout.splitlines()[-1])


def print_peak(side: str, work: Work) -> None:
    """Train on the epoch's largest batch twice, and print the peak in GiB."""
    torch.set_num_threads(1)
    batches, tokens = batches_of(work, side, 0)
    rows = rows_of(work).select(batches[int(np.argmax(tokens))] * 2)
    with tempfile.TemporaryDirectory() as folder, quiet_libraries(), SIDES[side]():
        trainer = trainer_of(work, side, rows, Path(folder))
        reset_peak_memory()
        with sharing(side, trainer):
            trainer.train()
    print(peak_memory_gib())


def measure(work: Work) -> dict[str, Any]:
    """All figures of one shape, recorded."""
    rows = rows_of(work)
    spent = [one_round(work, rows, seed) for seed in range(ROUNDS)]
    by_default = [each["TRL"] / each[OURS] for each in spent]
    stock = [each["TRL"] / each[ALIKE] for each in spent]
    alone = [each.get("TRL, same head", each["TRL"]) / each[ALIKE] for each in spent]
    found = {
        **{name: getattr(work, name) for name in ("stage", "prompt", "answer", "vocabulary", "goal")},
        "by_default": middle(by_default),
        "speedup": middle(stock),
        "same_head": middle(alone),
        "ideal": ideal(work),
        "peak_gib": peak_gib(work, ALIKE),
        "peak_gib_trl": peak_gib(work, "TRL"),
    }
    print(json.dumps(found), flush=True)
    _record(work, found)
    return found


def middle(ratios: list[float]) -> dict[str, float]:
    """The median over rounds, with the lowest and the highest."""
    return {"value": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": len(ratios)}


def _record(work: Work, found: dict[str, Any]) -> None:
    speedup = found["speedup"]
    record(
        name=f"shared_{work.name}_speedup",
        value=speedup["value"],
        spread=(speedup["high"] - speedup["low"]) / 2,
        unit="x",
        goal=work.goal,
        better="higher",
        peer={"name": "ratio of the tokens", "value": found["ideal"]},
    )
    record(
        name=f"shared_{work.name}_reach",
        value=speedup["value"] / found["ideal"],
        unit="of the ratio of the tokens",
        goal=0.85,
        better="higher",
        peer={"name": "over TRL with the same head", "value": found["same_head"]["value"] / found["ideal"]},
    )
    record(
        name=f"shared_{work.name}_memory",
        value=found["peak_gib"],
        unit="GiB",
        goal=found["peak_gib_trl"],
        peer={"name": "TRL", "value": found["peak_gib_trl"]},
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["peak"]:
        print_peak(sys.argv[2], Work(**json.loads(sys.argv[3])))
    else:
        wanted = [work for work in WORKS if not sys.argv[1:] or work.name in sys.argv[1:]]
        figures = {work.name: measure(work) for work in wanted}
        if len(wanted) == len(WORKS):
            write_result("shared_prefix", {"measured": figures}, seeds=range(ROUNDS))
