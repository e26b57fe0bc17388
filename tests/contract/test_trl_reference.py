"""What we rely on in TRL's DPO where its reference's log-probabilities are computed by us and in advance."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from handbook_utils.data.load import load_dataset
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.models.load import load_model
from handbook_utils.training.reference.logps import add_reference_logps
from handbook_utils.training.reference.models import REFERENCE_LOGPS, Pairs, with_reference_columns
from handbook_utils.training.reference.store import Reference, ReferenceStore
from tests.contract.conftest import train

Build = Callable[..., Any]
REFERENCE = Reference("tiny", "0" * 64, None, "none", "float32", "float32")


@pytest.fixture
def pairs(pairs_file: Path) -> Dataset:
    return load_dataset(str(pairs_file), kind="preference", split="train[:8]")


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("limit", [1, 2, 5, 9, 100, None])
def test_pairs_are_cut_as_the_collator_cuts_them(limit: int | None, mode: str) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    draw = random.Random(0)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [
        {
            name: [draw.randrange(1, 50) for _ in range(draw.randint(name == "prompt_ids", 7))]
            for name in names
        }
        for _ in range(40)
    ]
    ours = list(Pairs(Dataset.from_list(rows), limit, mode == "keep_end"))
    batch = DataCollatorForPreference(pad_token_id=0, max_length=limit, truncation_mode=mode)(rows)
    for row, pair in enumerate(ours):
        for line, (ids, start) in zip((row, len(rows) + row), pair, strict=True):
            length = int(batch["attention_mask"][line].sum())
            answer = [place >= start for place in range(len(ids))]
            assert batch["input_ids"][line, :length].tolist() == ids
            assert batch["completion_mask"][line, :length].bool().tolist() == answer


def test_the_loss_reads_the_references_columns_and_asks_no_reference(
    trainer_on: Build, pairs: Dataset
) -> None:
    trainer = trainer_on("dpo", pairs, batch=8, precompute_ref_log_probs=True, beta=0.5)
    assert trainer.ref_model is None
    assert not set(REFERENCE_LOGPS) & set(trainer.train_dataset.column_names)
    rows = trainer.train_dataset
    trainer.train_dataset = with_reference_columns(rows, np.zeros((len(rows), 2)))
    logged = train(trainer)[0]
    # a reference of probability 1: beta * (log policy - 0)
    for side in ("chosen", "rejected"):
        assert logged[f"rewards/{side}"] == pytest.approx(0.5 * logged[f"logps/{side}"], rel=1e-6)


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
def test_trl_computes_the_same_references(
    ld_alpha: float | None, trainer_on: Build, tiny_tokenizer: Any, tiny_model_folder: Path, pairs: Dataset,
    tmp_path: Path,
) -> None:  # fmt: skip
    from handbook_utils.training.trl_bridge import TRAINERS, training_conditions

    settings = {"precompute_ref_log_probs": True, "max_length": 60, "ld_alpha": ld_alpha}
    ours = trainer_on("dpo", pairs, **settings)
    counts = add_reference_logps(ours, ReferenceStore(tmp_path / "store", REFERENCE))
    assert counts["answers"] == 16
    with quiet_libraries(), training_conditions():
        theirs = TRAINERS["dpo"](
            model=load_model(str(tiny_model_folder), device="cpu"),
            args=ours.args,
            processing_class=tiny_tokenizer,
            train_dataset=pairs,
        )
    for name in REFERENCE_LOGPS:
        np.testing.assert_allclose(ours.train_dataset[name][:], theirs.train_dataset[name][:], rtol=1e-5)
    first = train(ours)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
