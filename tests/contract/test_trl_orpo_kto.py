"""What TRL's ORPO, CPO and KTO trainers do with a batch, and that every loss of DPO's and CPO's trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from handbook_utils.cli.papers import methods
from handbook_utils.data.load import load_dataset
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.errors import RecipeError
from handbook_utils.models.load import load_model
from handbook_utils.models.logprobs import render_ids, response_logprob_sums, sequence_logprob_sums
from handbook_utils.schema.fields import SMOOTHED_LOSSES, trainer_fields
from handbook_utils.schema.sections import WITHOUT_REFERENCE
from handbook_utils.training.trl_bridge import training_conditions
from tests.contract.conftest import train

Build = Callable[..., Any]
LOSSES = {method.name for method in methods() if method.stage == "dpo"}


@pytest.fixture
def pairs(pairs_file: Path) -> Dataset:
    return load_dataset(str(pairs_file), kind="preference", split="train[:4]")


@pytest.fixture
def marked(pairs_file: Path) -> Dataset:
    return load_dataset(str(pairs_file), kind="feedback", split="train[:4]")


@pytest.mark.parametrize("stage", WITHOUT_REFERENCE)
def test_without_a_reference_exactly_the_answers_tokens_and_the_one_that_ends_it_are_learned(
    stage: str, trainer_on: Build, tiny_tokenizer: Any, pairs: Dataset
) -> None:
    prepared = trainer_on(stage, pairs).train_dataset
    for row, tokens in zip(pairs, prepared, strict=True):
        for side in ("chosen", "rejected"):
            ids, start = render_ids(tiny_tokenizer, row["prompt"], row[side][0]["content"])
            assert tokens[f"{side}_input_ids"] == ids
            assert [label for label in tokens[f"{side}_labels"] if label != -100] == ids[start:]


def test_orpos_loss_is_the_chosen_texts_nll_and_the_log_odds_of_mean_log_probabilities(
    trainer_on: Build, tiny_tokenizer: Any, tiny_model_folder: Path, pairs: Dataset
) -> None:
    logged = train(trainer_on("orpo", pairs, beta=0.5))[0]
    model = load_model(str(tiny_model_folder), device="cpu")
    odds, texts = {}, []
    for side in ("chosen", "rejected"):
        answers = [(row["prompt"], row[side][0]["content"]) for row in pairs]
        sums, counts = response_logprob_sums(model, tiny_tokenizer, answers)
        odds[side] = sums / counts - np.log(-np.expm1(sums / counts))
    for row in pairs:
        ids, _ = render_ids(tiny_tokenizer, row["prompt"], row["chosen"][0]["content"])
        texts.append((ids, 1))  # TRL's first term counts the prompt as well
    sums, counts = sequence_logprob_sums(model, texts, pad_token_id=tiny_tokenizer.pad_token_id)
    ratio = odds["chosen"] - odds["rejected"]
    expected = -sums.sum() / counts.sum() + 0.5 * np.log1p(np.exp(-ratio)).mean()
    assert logged["loss"] == pytest.approx(expected, rel=1e-5)


def log_sigmoid(values: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-values))


@pytest.mark.parametrize(
    ("loss", "alpha", "expected"),
    [
        ("sigmoid", 0.7, lambda sums, _: -log_sigmoid(0.5 * (sums[0] - sums[1]))),
        ("hinge", 0.0, lambda sums, _: np.maximum(0, 1 - 0.5 * (sums[0] - sums[1]))),
        ("ipo", 0.0, lambda _, means: (means[0] - means[1] - 1 / (2 * 0.5)) ** 2),
        ("simpo", 0.0, lambda _, means: -log_sigmoid(0.5 * (means[0] - means[1]) - 0.3)),
    ],
)
def test_cpos_losses_are_those_of_log_probabilities_and_the_answers_nll_by_its_weight(
    loss: str,
    alpha: float,
    expected: Callable[..., Any],
    trainer_on: Build,
    tiny_tokenizer: Any,
    tiny_model_folder: Path,
    pairs: Dataset,
) -> None:
    settings = {"loss_type": loss, "beta": 0.5, "simpo_gamma": 0.3, "cpo_alpha": alpha}
    logged = train(trainer_on("cpo", pairs, **settings))[0]
    model = load_model(str(tiny_model_folder), device="cpu")
    sides = [
        response_logprob_sums(
            model, tiny_tokenizer, [(row["prompt"], row[side][0]["content"]) for row in pairs]
        )
        for side in ("chosen", "rejected")
    ]
    sums, counts = (np.array(each) for each in zip(*sides, strict=True))
    likelihood = -sums[0].sum() / counts[0].sum()
    wanted = expected(sums, sums / counts).mean() + alpha * likelihood
    assert logged["loss"] == pytest.approx(wanted, rel=1e-5)


def test_ktos_loss_is_one_half_before_anything_is_learned(trainer_on: Build, marked: Dataset) -> None:
    first = train(trainer_on("kto", marked))[0]
    # policy and reference are equal, so each row's loss is 1 - sigmoid(beta * (0 - 0)) = 1/2
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    assert first["kl"] == 0


def test_kto_learns_the_answers_tokens_and_measures_its_kl_on_the_neighbours_answer(
    trainer_on: Build, tiny_tokenizer: Any, marked: Dataset
) -> None:
    prepared = trainer_on("kto", marked, batch=4).train_dataset
    assert prepared["label"] == marked["label"] == [True, False] * 4
    for row, tokens in zip(marked, prepared, strict=True):
        ids, start = render_ids(tiny_tokenizer, row["prompt"], row["completion"][0]["content"])
        assert tokens["prompt_ids"] + tokens["completion_ids"] == ids
        assert tokens["completion_ids"] == ids[start:]
    answers = prepared["completion_ids"]
    for first in (0, 4):  # each batch of four by itself
        expected = [answers[first + 3], *answers[first : first + 3]]
        assert prepared["KL_completion_ids"][first : first + 4] == expected


def test_kto_reads_its_rows_in_order_so_we_shuffle_them_before(trainer_on: Build, marked: Dataset) -> None:
    trainer = trainer_on("kto", marked, batch=4)
    batches = [batch["label"].tolist() for batch in trainer.get_train_dataloader()]
    assert batches == [[True, False, True, False]] * 2


def test_one_row_a_device_is_refused_for_kto_before_anything_is_loaded(
    trainer_on: Build, marked: Dataset
) -> None:
    with pytest.raises(RecipeError, match="a device needs at least 2"):
        trainer_on("kto", marked, batch=1)
    train(trainer_on("kto", marked, batch=1, loss_type="apo_zero_unpaired"))


def test_the_losses_we_list_are_those_of_the_installed_trl() -> None:
    assert set(trainer_fields("dpo")["loss_type"]["choices"]) == LOSSES
    for stage in ("sft", "kto", "cpo"):
        listed = {method.name for method in methods() if method.stage == stage}
        assert listed == set(trainer_fields(stage)["loss_type"]["choices"])


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_of_dpo_trains_two_steps(loss: str, trainer_on: Build, pairs: Dataset) -> None:
    needs = {"label_smoothing": 1e-3} if loss == "exo_pair" else {}
    trainer = trainer_on("dpo", pairs, batch=2, loss_type=loss, loss_weights=[0.5], max_steps=2, **needs)
    before = trainer.model.state_dict()["lm_head.weight"].clone()
    losses = [record["loss"] for record in train(trainer) if "loss" in record]
    assert len(losses) == 2
    assert all(math.isfinite(value) for value in losses)
    assert not torch.equal(before, trainer.model.state_dict()["lm_head.weight"])


def test_exo_pair_without_label_smoothing_is_refused(trainer_on: Build, pairs: Dataset) -> None:
    with pytest.raises(ValueError, match="Label smoothing must be greater than"):
        trainer_on("dpo", pairs, loss_type="exo_pair")


def test_the_losses_that_heed_label_smoothing_are_those_we_list(trainer_on: Build, pairs: Dataset) -> None:
    # TRL 1.16.0, dpo_trainer.py: sigmoid is -log sigmoid(beta * delta_score), whatever label_smoothing says
    trainer = trainer_on("dpo", pairs)
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight.mul_(3)  # apart from the reference
    batch = next(iter(trainer.get_train_dataloader()))

    def value(loss: str, share: float) -> float:
        trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = [loss], [1.0], share
        with torch.no_grad(), quiet_libraries(), training_conditions():
            return float(trainer.compute_loss(trainer.model, dict(batch)))

    assert {loss for loss in LOSSES if value(loss, 0.1) != value(loss, 0.3)} == set(SMOOTHED_LOSSES)


def test_losses_are_added_by_their_weights(trainer_on: Build, pairs: Dataset) -> None:
    alone = train(trainer_on("dpo", pairs, loss_type="sft"))[0]["loss"]
    both = train(trainer_on("dpo", pairs, loss_type=["sigmoid", "sft"], loss_weights=[0.8, 0.2]))[0]["loss"]
    assert both == pytest.approx(0.8 * math.log(2) + 0.2 * alone, rel=1e-5)
