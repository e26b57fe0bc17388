"""Batches and steps are planned before anything is loaded; wrong sizes are refused with those that work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from handbook_utils.errors import DataError, RecipeError
from handbook_utils.recipe import check_recipe, load_recipe
from handbook_utils.training.arguments import trainer_arguments
from handbook_utils.training.checkpoints import newest_checkpoint
from handbook_utils.training.plan import batch_plan, make_plan, plan_training


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
    # at most 32 a pass on a CPU: 128 = 32 * 4, 100 = 25 * 4
    assert batch_plan(recipe(batch=128)) == (32, 4, 1)
    assert batch_plan(recipe(batch=100)) == (25, 4, 1)
    assert batch_plan(recipe(batch=8, per_device_train_batch_size=2)) == (2, 4, 1)


def test_processes_share_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
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
        (9, 8, {"num_train_epochs": 1, "per_device_train_batch_size": 2}, 2),  # 5 passes, 4 a step
        (3, 8, {"num_train_epochs": 1}, 1),
    ],
)
def test_steps_are_counted(examples: int, batch: int, training: dict[str, Any], steps: int) -> None:
    assert make_plan(recipe(batch=batch, **training), examples).steps == steps


def test_warm_up_is_given_in_steps_or_as_a_share_of_them() -> None:
    assert make_plan(recipe(max_steps=50, warmup_steps=7), 10).warmup_steps == 7
    assert make_plan(recipe(max_steps=50, warmup_steps=0.1), 10).warmup_steps == 5


def test_packed_rows_are_not_counted_beforehand() -> None:
    plan = make_plan(recipe(stage="pretrain", packing=True, warmup_steps=0.1), 100)
    assert (plan.steps, plan.warmup_steps) == (None, None)


def test_a_plan_reads_the_data_and_no_model(conversations_file: Path) -> None:
    plan = plan_training(recipe(name=str(conversations_file), num_train_epochs=2, learning_rate=1e-3), {})
    # 28 examples in batches of 8: 4 steps an epoch
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


def test_the_newest_whole_checkpoint_is_found_and_half_written_ones_are_deleted(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    for step, state in ((9, '{"global_step": 9}'), (10, '{"global_step": 10}'), (11, '{"glob'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
