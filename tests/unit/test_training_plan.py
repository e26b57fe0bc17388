"""Batches and steps are planned before anything is loaded; wrong sizes are refused with those that work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as safetensors

from handbook_utils.errors import DataError, RecipeError
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.state import read_manifest, read_metrics
from handbook_utils.schema.recipe import check_recipe, load_recipe
from handbook_utils.training.arguments import trainer_arguments
from handbook_utils.training.checkpoints import newest_checkpoint
from handbook_utils.training.dry_run import plan_training
from handbook_utils.training.plan import batch_plan, make_plan
from handbook_utils.training.rows.prepared import Counted


def recipe(stage: str = "sft", batch: int = 8, name: str = "x.jsonl", **training: Any) -> Any:
    content = {
        "stage": stage,
        "model": {"name": "no/model"},
        "data": [{"name": name}],
        "global_batch_size": batch,
        "training": {"use_cpu": True, **training},
    }
    return check_recipe(content, "test")


def test_a_batch_that_fits_needs_no_accumulation() -> None:
    assert batch_plan(recipe(batch=16)) == (16, 1, 1)


def test_a_larger_batch_is_accumulated() -> None:
    # at most 32 per pass on a CPU: 128 = 32 * 4, 100 = 25 * 4
    assert batch_plan(recipe(batch=128)) == (32, 4, 1)
    assert batch_plan(recipe(batch=100)) == (25, 4, 1)
    assert batch_plan(recipe(batch=8, per_device_train_batch_size=2)) == (2, 4, 1)


def test_processes_share_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert batch_plan(recipe(batch=128)) == (32, 4, 1), "no launcher has started this process"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert batch_plan(recipe(batch=128)) == (32, 1, 4)
    with pytest.raises(RecipeError, match=r"over 4 processes\. Sizes that work: 8 or 12"):
        batch_plan(recipe(batch=10))


def test_an_indivisible_batch_is_refused_with_the_sizes_that_work() -> None:
    with pytest.raises(RecipeError, match="that work: 1, 2, 5, 10"):
        batch_plan(recipe(batch=10, per_device_train_batch_size=3))


@pytest.mark.parametrize(
    ("examples", "batch", "training", "steps"),
    [
        (100, 10, {"num_train_epochs": 2}, 20),
        (101, 10, {"num_train_epochs": 1}, 11),  # the last, smaller batch is a step as well
        (101, 10, {"num_train_epochs": 1, "dataloader_drop_last": True}, 10),
        (100, 10, {"num_train_epochs": 0.5}, 5),
        (100, 10, {"max_steps": 3}, 3),
        (9, 8, {"num_train_epochs": 1, "per_device_train_batch_size": 2}, 2),  # 5 passes, 4 per step
        (3, 8, {"num_train_epochs": 1}, 1),
    ],
)
def test_steps_are_counted(examples: int, batch: int, training: dict[str, Any], steps: int) -> None:
    assert make_plan(recipe(batch=batch, **training), examples).steps == steps


def test_warm_up_is_given_in_steps_or_as_a_share_of_them() -> None:
    assert make_plan(recipe(max_steps=50, warmup_steps=7), 10).warmup_steps == 7
    assert make_plan(recipe(max_steps=50, warmup_steps=0.1), 10).warmup_steps == 5


def test_packed_rows_are_the_ones_that_count() -> None:
    packed = recipe(stage="pretrain", packing=True, warmup_steps=0.1, num_train_epochs=3)
    before = make_plan(packed, 100)
    assert (before.rows, before.steps, before.warmup_steps) == (None, None, None)
    # 25 rows in batches of 8: 4 steps per epoch, 12 in all; a tenth of them, rounded up, is 2
    plan = make_plan(packed, 100, counted=Counted(25, 1234))
    assert (plan.examples, plan.rows, plan.tokens, plan.steps_per_epoch) == (100, 25, 1234, 4)
    assert (plan.steps, plan.warmup_steps) == (12, 2)


def test_steps_that_are_given_are_told_in_epochs() -> None:
    assert make_plan(recipe(max_steps=6), 32).epochs == 1.5


def test_dropping_the_last_batch_must_leave_one() -> None:
    with pytest.raises(RecipeError, match="leaves nothing: 7 rows are less than one pass of 8"):
        make_plan(recipe(dataloader_drop_last=True), 7)


@pytest.mark.parametrize(
    ("stage", "training"),
    [
        ("sft", {}),
        ("sft", {"max_length": 60}),
        ("sft", {"packing": True, "max_length": 200}),
        ("reward", {"max_length": 100}),
        ("dpo", {"max_length": 80}),
        ("orpo", {}),
        ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0}),
    ],
)
@pytest.mark.filterwarnings("ignore::handbook_utils.training.rows.lengths.LengthWarning")
def test_a_dry_run_counts_what_the_run_trains_on(
    stage: str,
    training: dict[str, Any],
    tiny_model_folder: Path,
    conversations_file: Path,
    pairs_file: Path,
    tmp_path: Path,
) -> None:
    data = conversations_file if stage == "sft" else pairs_file
    made = recipe(stage, batch=4, name=str(data), num_train_epochs=0.3, **training)
    made = load_recipe(made, overrides={"model.name": str(tiny_model_folder)})
    planned = plan_training(made, {})
    run_stage(made, tmp_path / "run", progress=False)
    made_of = read_manifest(tmp_path / "run")["notes"]["plan"]
    assert made_of == {name: planned[name] for name in made_of}
    steps = max(record["step"] for record in read_metrics(tmp_path / "run"))
    assert steps == planned["steps"]
    assert planned["tokens"] > planned["rows"]


def test_a_plan_counts_the_turns_of_a_conversation_as_one_row(
    conversations_file: Path, tiny_model_folder: Path
) -> None:
    made = recipe(name=str(conversations_file), num_train_epochs=1, packing=False)
    plan = plan_training(load_recipe(made, overrides={"model.name": str(tiny_model_folder)}), {})  # type: ignore[arg-type]
    # 24 conversations with 28 answers, in batches of 8: 3 steps
    assert (plan["examples"], plan["rows"], plan["steps"]) == (28, 24, 3)


def test_a_plan_reads_the_data_and_no_model(conversations_file: Path) -> None:
    unpacked = recipe(name=str(conversations_file), num_train_epochs=2, learning_rate=1e-3, packing=False)
    plan = plan_training(unpacked, {})
    # 28 examples in batches of 8: 4 steps per epoch
    assert (plan["examples"], plan["steps"], plan["effective_batch"]) == (28, 8, 8)
    assert (plan["learning_rate"], plan["schedule"], plan["device"]) == (1e-3, "linear", "cpu")
    assert plan["sources"] == [
        f"{conversations_file} train: 24 of 24 rows, 28 examples, messages (it has the column 'messages')"
    ]
    assert plan["test_rows_left_out"] == 0


def test_a_plan_of_a_stream_counts_steps_and_no_rows(conversations_file: Path) -> None:
    streamed = load_recipe(recipe(name=str(conversations_file), max_steps=5), overrides={"streaming": True})
    plan = plan_training(streamed, {})  # type: ignore[arg-type]
    assert (plan["examples"], plan["steps"], plan["test_rows_left_out"]) == (None, 5, None)
    assert "streamed, messages (it has" in plan["sources"][0]


def test_a_plan_reads_earlier_runs_where_the_caller_says(pairs_file: Path) -> None:
    content = {
        "stage": "dpo",
        "model": {"name": "no/model"},
        "data": [{"from": "preferences"}],
        "global_batch_size": 8,
    }
    plan = plan_training(check_recipe(content, "test"), {"preferences": pairs_file})  # type: ignore[arg-type]
    assert plan["examples"] == 24


def test_a_plan_of_missing_data_says_so() -> None:
    with pytest.raises(DataError, match="no such file"):
        plan_training(recipe(), {})


def arguments(**training: Any) -> dict[str, Any]:
    made = recipe(**training)
    return trainer_arguments(made, make_plan(made, 100), Path("checkpoints"))


def test_on_a_cpu_bf16_and_checkpointing_of_activations_are_off_unless_asked_for() -> None:
    plain = arguments()
    assert (plain["bf16"], plain["activation_checkpointing"], plain["use_cpu"]) == (False, False, True)
    asked = arguments(bf16=True, gradient_checkpointing=True)
    assert (asked["bf16"], asked["activation_checkpointing"]) == (True, True)
    assert "gradient_checkpointing" not in asked


def test_nothing_is_reported_to_outside_services_unless_asked_for() -> None:
    assert arguments()["report_to"] == "none"
    assert arguments(report_to="tensorboard")["report_to"] == "tensorboard"


def test_a_tenth_of_the_run_lies_between_checkpoints_unless_the_recipe_says() -> None:
    assert arguments(max_steps=200)["save_steps"] == 20
    assert arguments(max_steps=200, save_steps=5)["save_steps"] == 5


def checkpoint(folder: Path, step: int, state: str | None = None, **files: bytes) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir()
    for name, content in files.items():
        (made / name.replace("_", ".")).write_bytes(content)
    if state is not None:
        (made / "trainer_state.json").write_text(state, encoding="utf-8")
    return made


def test_the_newest_whole_checkpoint_is_found_and_half_written_ones_are_deleted(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    for step, state in ((9, '{"global_step": 9}'), (10, '{"global_step": 10}'), (11, '{"glob'), (12, None)):
        checkpoint(tmp_path, step, state)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


WEIGHTS = safetensors({"w": torch.zeros(4)}, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model_safetensors", WEIGHTS[:-1]),
        ("model_safetensors", WEIGHTS[:20]),
        ("model_safetensors", b""),
        ("model_safetensors", WEIGHTS + b"x"),
        ("optimizer_pt", b"PK"),
        ("optimizer_bin", b"PK"),
        ("rng.state_pth", b""),
    ],
)
def test_a_checkpoint_with_a_file_cut_short_is_not_whole(name: str, content: bytes, tmp_path: Path) -> None:
    good = checkpoint(tmp_path, 1, '{"global_step": 1}', model_safetensors=WEIGHTS)
    checkpoint(tmp_path, 2, '{"global_step": 2}', **{name: content})
    assert newest_checkpoint(tmp_path) == good
    assert list(tmp_path.iterdir()) == [good]
