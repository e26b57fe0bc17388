"""Which tokens TRL's trainers learn from: the answers with their ends, rendered as our own functions do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from handbook_utils.data.load import load_dataset
from handbook_utils.models.load import load_model
from handbook_utils.models.logprobs import render_ids, sequence_logprob_sums

Build = Callable[..., Any]


def test_sft_learns_exactly_the_answers_tokens_and_the_token_that_ends_it(
    trainer_on: Build, tiny_tokenizer: Any, conversations_file: Path
) -> None:
    rows = load_dataset(str(conversations_file), kind="conversation")
    prepared = trainer_on("sft", rows).train_dataset
    assert len(prepared) == len(rows) == 28
    for row, tokens in zip(rows, prepared, strict=True):
        answer = row["completion"][0]["content"]
        ids, start = render_ids(tiny_tokenizer, row["prompt"], answer)
        assert tokens["input_ids"] == ids
        learned = [label for label in tokens["labels"] if label != -100]
        assert learned == ids[start:]
        assert tiny_tokenizer.decode(learned) == answer + "<|end|>"


def test_padding_is_neither_learned_nor_attended_to(
    trainer_on: Build, tiny_tokenizer: Any, conversations_file: Path
) -> None:
    rows = load_dataset(str(conversations_file), kind="conversation", split="train[:4]")
    batch = next(iter(trainer_on("sft", rows).get_train_dataloader()))
    padding = batch["input_ids"] == tiny_tokenizer.pad_token_id
    assert padding.any()
    assert (batch["labels"][padding] == -100).all()
    assert (batch["attention_mask"] == ~padding).all()


def test_plain_text_is_learned_whole_and_ends_with_the_end_token(
    trainer_on: Build, tiny_tokenizer: Any
) -> None:
    prepared = trainer_on("pretrain", Dataset.from_list([{"text": "Snow fell."}])).train_dataset
    expected = tiny_tokenizer("Snow fell.")["input_ids"] + [tiny_tokenizer.eos_token_id]
    assert prepared[0]["input_ids"] == expected
    assert prepared[0]["labels"] == expected


def test_packed_passages_do_not_see_each_other(
    trainer_on: Build, tiny_tokenizer: Any, tiny_model_folder: Path
) -> None:
    texts = ["Snow fell.", "Rain.", "Wind in the trees."]
    rows = Dataset.from_list([{"text": text} for text in texts])
    trainer = trainer_on("pretrain", rows, packing=True, max_length=64, batch=1)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 1
    model = load_model(str(tiny_model_folder), device="cpu")
    with torch.no_grad():
        # as the trainer calls it: with a cache, transformers does not look for packed rows
        logits = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
    logps = torch.log_softmax(logits[0, :-1].double(), -1)
    labels = batch["labels"][0, 1:]
    learned = labels != -100
    packed = logps[learned].gather(1, labels[learned][:, None]).sum().item()
    lists = [tiny_tokenizer(text + "<|end|>")["input_ids"] for text in texts]
    apart, counts = sequence_logprob_sums(model, [(ids, 1) for ids in lists], pad_token_id=0)
    assert int(learned.sum()) == counts.sum()
    assert packed == pytest.approx(apart.sum(), rel=1e-5)


def test_reward_training_sees_the_tokens_that_scoring_sees(
    trainer_on: Build, tiny_tokenizer: Any, pairs_file: Path
) -> None:
    rows = load_dataset(str(pairs_file), kind="preference")
    prepared = trainer_on("reward", rows).train_dataset
    assert len(prepared) == 24
    for row, tokens in zip(rows, prepared, strict=True):
        for side in ("chosen", "rejected"):
            ids, _ = render_ids(tiny_tokenizer, row["prompt"], row[side][0]["content"])
            assert tokens[f"{side}_ids"] == ids


def test_reward_training_leaves_out_rows_longer_than_max_length(trainer_on: Build, pairs_file: Path) -> None:
    rows = load_dataset(str(pairs_file), kind="preference")
    kept = trainer_on("reward", rows, max_length=100).train_dataset
    assert 0 < len(kept) < len(rows)
    assert max(len(row["chosen_ids"]) for row in kept) <= 100


def test_a_dpo_batch_is_chosen_rows_then_rejected_rows_with_the_answers_marked(
    trainer_on: Build, tiny_tokenizer: Any, pairs_file: Path
) -> None:
    rows = load_dataset(str(pairs_file), kind="preference", split="train[:2]")
    trainer = trainer_on("dpo", rows)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    order = [(row, side) for side in ("chosen", "rejected") for row in rows]
    for line, (row, side) in enumerate(order):
        answer = row[side][0]["content"]
        ids, start = render_ids(tiny_tokenizer, row["prompt"], answer)
        assert batch["input_ids"][line, : len(ids)].tolist() == ids
        marked = batch["completion_mask"][line].nonzero().flatten().tolist()
        assert marked == list(range(start, len(ids)))
