"""What TRL's trainers do with a batch: the losses at the start, accumulation, steps, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from handbook_utils.data.load import load_dataset
from handbook_utils.libraries.transformers_internals import use_one_device
from handbook_utils.models.load import load_model
from handbook_utils.models.logprobs import response_logprob_sums, response_logprobs
from tests.contract.conftest import train

Build = Callable[..., Any]


@pytest.fixture
def pairs(pairs_file: Path) -> Dataset:
    return load_dataset(str(pairs_file), kind="preference", split="train[:8]")


@pytest.fixture
def conversations(conversations_file: Path) -> Dataset:
    return load_dataset(str(conversations_file), kind="conversation", split="train[:8]")


def answers(rows: Dataset, column: str) -> list[Any]:
    return [(row["prompt"], row[column][0]["content"]) for row in rows]


def test_the_loss_of_dpo_is_ln_2_before_anything_is_learned(trainer_on: Build, pairs: Dataset) -> None:
    first = train(trainer_on("dpo", pairs))[0]
    # policy and reference are equal, so the loss is -log sigmoid(beta * 0) = log 2
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == 0


def test_dpo_logs_the_log_probabilities_that_we_compute(
    trainer_on: Build, tiny_tokenizer: Any, tiny_model_folder: Path, pairs: Dataset
) -> None:
    logged = train(trainer_on("dpo", pairs, batch=8))[0]
    model = load_model(str(tiny_model_folder), device="cpu")
    for side in ("chosen", "rejected"):
        ours = response_logprobs(model, tiny_tokenizer, answers(pairs, side)).mean()
        assert logged[f"logps/{side}"] == pytest.approx(ours, rel=1e-5)


def test_the_reference_of_dpo_stays_the_start_model_also_after_a_resume(
    trainer_on: Build, tiny_model_folder: Path, pairs: Dataset, tmp_path: Path
) -> None:
    start = load_model(str(tiny_model_folder), device="cpu").state_dict()
    train(trainer_on("dpo", pairs, max_steps=2, save_steps=1, save_total_limit=2))
    resumed = trainer_on("dpo", pairs, max_steps=2)
    train(resumed, resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-1"))
    for name, weight in resumed.ref_model.state_dict().items():
        assert torch.equal(weight, start[name]), name
    assert not torch.equal(resumed.model.state_dict()["lm_head.weight"], start["lm_head.weight"])


def test_the_loss_of_sft_is_the_mean_over_answer_tokens(
    trainer_on: Build, tiny_tokenizer: Any, tiny_model_folder: Path, conversations: Dataset
) -> None:
    logged = train(trainer_on("sft", conversations, batch=len(conversations)))[0]
    model = load_model(str(tiny_model_folder), device="cpu")
    sums, counts = response_logprob_sums(model, tiny_tokenizer, answers(conversations, "completion"))
    assert logged["loss"] == pytest.approx(-sums.sum() / counts.sum(), rel=1e-5)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_an_accumulated_batch_trains_as_a_whole_one(
    stage: str, trainer_on: Build, pairs: Dataset, conversations: Dataset
) -> None:
    rows = conversations if stage == "sft" else pairs
    weights = []
    for size in (8, 2):
        # sgd: Adam's first step keeps the sign of a gradient alone, and would hide its scale
        trainer = trainer_on(stage, rows, batch=8, per_device_train_batch_size=size, optim="sgd")
        train(trainer)
        weights.append(torch.cat([w.detach().flatten() for w in trainer.model.parameters()]).numpy())
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-5)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_head_on_the_answers_alone_trains_the_same_model(
    stage: str, trainer_on: Build, pairs: Dataset, conversations: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handbook_utils.training import trl_bridge

    rows = conversations if stage == "sft" else pairs
    projected: list[int] = []
    weights = []
    measured = trl_bridge.trl_utils._ChunkedLogProbFunction.apply

    def count(hidden: torch.Tensor, *rest: Any) -> Any:
        projected.append(hidden.shape[0])
        return measured(hidden, *rest)

    monkeypatch.setattr(trl_bridge.trl_utils._ChunkedLogProbFunction, "apply", count)
    for is_ours in (True, False):
        trainer = trainer_on(stage, rows, batch=8, optim="sgd")
        if not is_ours:
            monkeypatch.setattr(trl_bridge, "_head_on_answers_only", nullcontext)
        train(trainer)
        weights.append(torch.cat([w.detach().flatten() for w in trainer.model.parameters()]).numpy())
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-6)
    assert projected[0] < projected[-1]


COMBINATIONS = [
    {"num_train_epochs": epochs, "per_device_train_batch_size": size, "dataloader_drop_last": drops}
    for epochs in (0.5, 1, 1.5, 2)
    for size in (1, 2, 4)
    for drops in (False, True)
]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("rows", [8, 9, 21])
def test_the_trainer_would_make_as_many_steps_as_planned(rows: int, packing: bool, trainer_on: Build) -> None:
    from handbook_utils.schema.recipe import check_recipe
    from handbook_utils.training.plan import make_plan
    from handbook_utils.training.rows.prepared import count_rows

    texts = Dataset.from_list([{"text": "a" * (5 + 7 * i % 19)} for i in range(rows)])
    fields = {"packing": packing, "max_length": 32, "warmup_steps": 0.3}
    trainer = trainer_on("pretrain", texts, max_steps=-1, **fields)
    assert (len(trainer.train_dataset) < rows) == packing
    for training in [*COMBINATIONS, {"max_steps": 7}]:
        given: dict[str, Any] = {"use_cpu": True, **fields, "max_steps": -1, **training}
        content = {
            "stage": "pretrain",
            "model": {"name": "x"},
            "data": [{"name": "x"}],
            "global_batch_size": 4,
        }
        recipe: Any = check_recipe({**content, "training": given}, "test")
        plan = make_plan(recipe, rows, counted=count_rows(trainer))
        for name in ("max_steps", "num_train_epochs", "dataloader_drop_last"):
            setattr(trainer.args, name, given.get(name, getattr(trainer.args, name)))
        trainer._train_batch_size = trainer.args.per_device_train_batch_size = plan.per_device_batch
        trainer.args.gradient_accumulation_steps = plan.accumulation
        loader = trainer.get_train_dataloader()
        steps = trainer.set_initial_training_values(trainer.args, loader)[-1]
        assert steps == plan.steps, training
        assert trainer.args.get_warmup_steps(steps) == plan.warmup_steps, training


@pytest.mark.parametrize(
    ("rows", "training"),
    [
        (9, {"per_device_train_batch_size": 2, "num_train_epochs": 1, "warmup_steps": 0.5}),
        (9, {"num_train_epochs": 1.5, "dataloader_drop_last": True}),
        (9, {"num_train_epochs": 2, "packing": True, "max_length": 8}),
    ],
)
def test_the_trainer_makes_as_many_steps_as_planned(
    rows: int, training: dict[str, Any], trainer_on: Build
) -> None:
    from handbook_utils.schema.recipe import check_recipe
    from handbook_utils.training.plan import make_plan
    from handbook_utils.training.rows.prepared import count_rows

    content = {"stage": "pretrain", "model": {"name": "x"}, "data": [{"name": "x"}], "global_batch_size": 4}
    recipe: Any = check_recipe({**content, "training": {"use_cpu": True, **training}}, "test")
    data = Dataset.from_list([{"text": "a"}] * rows)
    trainer = trainer_on("pretrain", data, batch=4, **{**training, "max_steps": -1})
    plan = make_plan(recipe, rows, counted=count_rows(trainer))
    train(trainer)
    assert trainer.state.global_step == plan.steps
    # each row is one letter and the end of the sequence, packed or not
    assert plan.tokens == 2 * rows


def test_a_single_process_that_sees_several_gpus_uses_one_of_them(trainer_on: Build) -> None:
    from trl import SFTConfig

    from handbook_utils.training.trl_bridge import installed_names

    # the field that `make_trainer` lowers: with more than one, batches are multiplied by their number
    arguments = {"output_dir": "unused", "use_cpu": True, "bf16": False, "activation_checkpointing": False}
    config = SFTConfig(**installed_names(SFTConfig, arguments))
    config._n_gpu = 4
    assert (config.n_gpu, config.train_batch_size) == (4, 4 * config.per_device_train_batch_size)
    use_one_device(config)
    assert (config.n_gpu, config.train_batch_size) == (1, config.per_device_train_batch_size)


def test_the_trainers_state_is_the_last_file_of_a_checkpoint(
    trainer_on: Build, conversations: Dataset, tmp_path: Path
) -> None:
    train(trainer_on("sft", conversations))
    files = {
        file.name: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints" / "checkpoint-1").iterdir()
    }
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= files.keys()
    assert files["trainer_state.json"] == max(files.values())


def test_the_tokens_that_a_trainer_counts_are_those_that_are_not_padding(
    trainer_on: Build, tiny_tokenizer: Any, pairs: Dataset
) -> None:
    trainer = trainer_on("dpo", pairs, batch=8)
    train(trainer)
    expected = sum(
        len(row["prompt_ids"]) + len(row[f"{side}_ids"])
        for row in trainer.train_dataset
        for side in ("chosen", "rejected")
    )
    assert trainer.state.num_input_tokens_seen == expected
