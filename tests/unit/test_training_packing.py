"""Conversations packed into rows: every loss and gradient as if each had a row of its own; off elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import CONFIG_MAPPING

from handbook_utils import run_stage
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.runs.state import read_manifest
from handbook_utils.schema.recipe import check_recipe, load_recipe
from handbook_utils.training import fit
from handbook_utils.training.arguments import trainer_arguments
from handbook_utils.training.dry_run import plan_training
from handbook_utils.training.plan import make_plan
from handbook_utils.training.rows.labelled import training_rows
from handbook_utils.training.rows.lengths import LengthWarning
from handbook_utils.training.rows.packing import (
    PACKED,
    PackedRows,
    keep_rows_apart,
    why_leaky,
    why_not_packed,
    with_packing,
)
from tests.tiny_models import build_tiny_tokenizer, tiny_config, tiny_model, write_weights

# letters of each conversation's question and answer; four markers are added
LENGTHS = ((9, 14), (3, 1), (20, 22), (5, 8), (11, 3), (1, 17), (2, 2))
LONGEST_ROW = 64
CHANGES = {
    "mixtral": {"router_aux_loss_coef": 0.0},
    "qwen3_moe": {
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
        "router_aux_loss_coef": 0.0,
    },
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},  # what drops out is drawn anew
}


def conversations() -> Dataset:
    draw = torch.Generator().manual_seed(0)

    def text(letters: int) -> str:
        return "".join(chr(97 + int(letter)) for letter in torch.randint(26, (letters,), generator=draw))

    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": text(question)}],
                "completion": [{"role": "assistant", "content": text(answer)}],
            }
            for question, answer in LENGTHS
        ]
    )


def recipe(name: str, **fields: Any) -> Any:
    training = {"use_cpu": True, "max_length": LONGEST_ROW, **fields.pop("training", {})}
    content = {"stage": "sft", "model": {"name": name}, "data": [{"name": "x.jsonl"}], **fields}
    return check_recipe({"global_batch_size": 8, **content, "training": training}, "test")


def loss_and_gradients(folder: Path, *, packing: bool, attention: str, **training: Any) -> tuple[float, Any]:
    """Of all conversations as one batch, through the trainer that a stage builds."""
    from handbook_utils.training.trl_bridge import make_trainer, training_conditions

    made = recipe(str(folder), training={"packing": packing, **training})
    tokenizer = load_tokenizer(str(folder))
    with quiet_libraries(), training_conditions():
        trainer = make_trainer(
            "sft",
            arguments=trainer_arguments(made, make_plan(made, len(LENGTHS)), folder / "checkpoints"),
            model=load_model(str(folder), attention=attention, device="cpu").train(),
            tokenizer=tokenizer,
            data=(training_rows(made, tokenizer, conversations()), None),
            callbacks=[],
        )
        keep_rows_apart(trainer)
        assert isinstance(trainer.data_collator, PackedRows) == packing
        assert (len(trainer.train_dataset) < len(LENGTHS)) == packing
        (batch,) = trainer.get_train_dataloader()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    return float(loss.detach()), {name: weight.grad for name, weight in trainer.model.named_parameters()}


def assert_packing_changes_nothing(folder: Path, attention: str = "sdpa", **training: Any) -> None:
    (packed, gradients), (alone, expected) = (
        loss_and_gradients(folder, packing=packing, attention=attention, **training)
        for packing in (True, False)
    )
    assert packed == pytest.approx(alone, abs=1e-5)
    assert {name for name, each in gradients.items() if each is not None} > set()
    for name, gradient in gradients.items():
        assert (gradient is None) == (expected[name] is None), name
        if gradient is not None:
            assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-9, name


@pytest.mark.parametrize("architecture", PACKED)
def test_a_packed_batch_has_the_loss_and_the_gradients_of_an_unpacked_one(
    architecture: str, tmp_path: Path
) -> None:
    changes = CHANGES.get(architecture, {})
    attention = "eager" if architecture == "gemma2" else "sdpa"  # the only one that gemma2 has
    assert_packing_changes_nothing(tiny_model(architecture, tmp_path, **changes), attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [6, 30])
@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_a_sliding_window_shorter_than_a_row_slides_over_each_conversation_alone(
    architecture: str, window: int, attention: str, tmp_path: Path
) -> None:
    """6 is shorter than the conversations as well, 30 longer than most of them and half a row."""
    folder = tiny_model(architecture, tmp_path, sliding_window=window)
    assert_packing_changes_nothing(folder, attention)


@pytest.mark.parametrize(
    "training",
    [
        {"per_device_train_batch_size": 8, "pad_to_multiple_of": 16},
        {"assistant_only_loss": True},
        {"eos_token": "<|end|>"},
        {"loss_type": "dft"},
        {"max_length": 40},  # the longest conversation is cut
    ],
)
def test_what_else_a_recipe_may_say_is_the_same_on_packed_rows(
    training: dict[str, Any], tmp_path: Path
) -> None:
    assert_packing_changes_nothing(tiny_model("llama", tmp_path), **training)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("llama"))


def test_an_sft_recipe_that_does_not_say_packs(llama: Path) -> None:
    made, note = with_packing(recipe(str(llama)), str(llama))
    assert made.training["packing"] is True
    assert note == {"packing": True}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"training": {"max_length": None}}, "training.max_length is null"),
        ({"training": {"packing_strategy": "wrapped"}}, "that cuts conversations in pieces"),
        ({"training": {"neftune_noise_alpha": 5.0}}, "that noise depends on a row's length"),
        ({"training": {"padding_free": True}}, "training.padding_free is True"),
        ({"training": {"truncation_mode": "keep_end"}}, "packing keeps the start"),
        ({"training": {"train_sampling_strategy": "sequential"}}, "an order of its own"),
        ({"training": {"dataset_kwargs": {"skip_prepare_dataset": True}}}, "rows may come prepared"),
        ({"streaming": True, "training": {"max_steps": 1}}, "a stream"),
        ({"length_batching": True}, "by the length of conversations"),
        ({"max_tokens_per_batch": 512}, "by the length of conversations"),
    ],
)
def test_where_a_recipe_says_something_that_packing_would_change_it_is_off_and_says_why(
    fields: dict[str, Any], reason: str, llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "handbook_utils")
    made, note = with_packing(recipe(str(llama), **fields), str(llama))
    assert made.training["packing"] is False
    assert reason in note["packing_off"]
    assert caplog.messages == [f"conversations are not packed: {note['packing_off']}"]


@pytest.mark.parametrize("architecture", ["opt", "gpt_oss", "qwen3_next", "mamba", "bloom"])
def test_a_model_that_no_test_holds_to_keep_conversations_apart_packs_none(
    architecture: str, tmp_path: Path
) -> None:
    CONFIG_MAPPING[architecture]().save_pretrained(tmp_path)
    write_weights(tmp_path)
    assert f"no test holds that a {architecture} model" in str(why_not_packed(recipe("x"), str(tmp_path)))


def test_a_router_whose_loss_is_that_of_a_whole_batch_packs_none_until_it_counts_nothing() -> None:
    config = tiny_config("mixtral", build_tiny_tokenizer())
    assert "set router_aux_loss_coef to 0" in str(why_leaky(config))
    config.router_aux_loss_coef = 0.0
    assert why_leaky(config) is None


@pytest.mark.parametrize(("architecture", "packs"), [("llama", True), ("opt", False)])
def test_an_adapter_packs_as_its_base_does(architecture: str, packs: bool, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    CONFIG_MAPPING[architecture]().save_pretrained(base)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    write_weights(base)
    write_weights(adapter, "adapter_model.safetensors")
    assert (why_not_packed(recipe(str(adapter)), str(adapter)) is None) == packs


def test_what_a_recipe_says_itself_stays_and_pretrain_packs_only_then(llama: Path) -> None:
    for packing in (True, False):
        said = recipe(str(llama), training={"packing": packing})
        assert with_packing(said, str(llama)) == (said, {})
    plain = recipe(str(llama), stage="pretrain")
    assert with_packing(plain, str(llama)) == (plain, {})


def test_a_dry_run_and_the_run_both_pack_and_cut_conversations_are_told(
    llama: Path, conversations_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[Any] = []
    monkeypatch.setattr(fit, "keep_rows_apart", lambda each: trainers.append(each) or keep_rows_apart(each))
    made = load_recipe(
        recipe(str(llama), training={"max_length": 100, "max_steps": 1}),
        overrides={"data": [{"name": str(conversations_file)}]},
    )
    with pytest.warns(LengthWarning, match=r"rows are longer than training.max_length = 100 tokens"):
        planned = plan_training(made, {})  # type: ignore[arg-type]
    assert planned["rows"] < 24  # conversations, see test_training_plan.py
    with pytest.warns(LengthWarning, match=r"rows are longer than training.max_length = 100 tokens"):
        run_stage(made, tmp_path / "run", progress=False)
    notes = read_manifest(tmp_path / "run")["notes"]
    assert isinstance(trainers[0].data_collator, PackedRows)
    assert notes["packing"] is True
    assert notes["plan"]["rows"] == planned["rows"]
    unpacked = load_recipe(made, overrides={"training.packing": False})
    with pytest.warns(LengthWarning):
        run_stage(unpacked, tmp_path / "unpacked", progress=False)
    others = read_manifest(tmp_path / "unpacked")["notes"]
    for name in ("rows_left_out", "rows_cut"):
        assert notes[name] == others[name] == planned[name]


def test_packed_rows_stand_below_each_other_in_a_batch() -> None:
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, -100, 8, 9], "seq_lengths": [2, 3]},
        {"input_ids": [4], "labels": [4], "seq_lengths": [1]},
    ]
    batch = PackedRows(pad_token_id=1, multiple_of=4)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 1, 1], [4, *[1] * 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 0, 0], [0] * 8]
    # the first token of each conversation is predicted from nothing
    assert batch["labels"].tolist() == [[-100, 6, -100, 8, 9, *[-100] * 3], [-100] * 8]
