"""The training stages on a user's own files and model: what they leave, how they stop and go on."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from handbook_utils.data.load import load_dataset
from handbook_utils.errors import DataError, ModelError, TrainingError
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.models.logprobs import reward_scores
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.state import read_manifest, read_metrics
from handbook_utils.schema.recipe import check_recipe, load_recipe, recipe_to_dict
from handbook_utils.training.rows.lengths import LengthWarning

STAGES = ("pretrain", "sft", "reward", "dpo")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make_recipe(tiny_model_folder: Path, conversations_file: Path, pairs_file: Path, tmp_path: Path) -> Any:
    """A recipe of three small steps on hand-written data and a model folder, both by path."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"Line {i}."}) + "\n" for i in range(24)), encoding="utf-8")
    files = {"pretrain": texts, "sft": conversations_file}

    def make(stage: str, *, evaluate: bool = False, data: Path | None = None, **training: Any) -> Any:
        content: dict[str, Any] = {
            "stage": stage,
            "model": {"name": str(tiny_model_folder)},
            "data": [{"name": str(data or files.get(stage, pairs_file))}],
            "global_batch_size": 4,
            "training": {"max_steps": 3, "learning_rate": 1e-2, "use_cpu": True, **training},
        }
        if evaluate:
            content["eval_data"] = content["data"]
            content["data"] = [{**content["data"][0], "allow_test": True}]
        return check_recipe(content, "test")

    return make


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_equal_weights(left: Path, right: Path) -> None:
    first, second = weights(left), weights(right)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


EXPECTED_FIGURES = {
    "pretrain": {"eval_loss"},
    "sft": {"eval_loss"},
    "reward": {"accuracy"},
    "dpo": {"accuracy", "margin"},
}


@pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_on_a_users_own_file_and_model_folder(
    stage: str, make_recipe: Any, tiny_model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    recipe = make_recipe(stage, evaluate=True, eval_strategy="steps", eval_steps=2)
    result = run_stage(recipe, run, progress=False)
    assert set(result.final_metrics) == EXPECTED_FIGURES[stage]
    assert result.tokens_per_s is not None
    assert list(losses(run)) == [1, 2, 3]
    assert all(math.isfinite(loss) for loss in losses(run).values())
    assert [record["step"] for record in read_metrics(run) if "eval_loss" in record] == [2, 3]
    assert read_manifest(run)["notes"]["train_rows"] in (24, 28)
    # the model is whole, of its own, and nothing is left beside it
    assert not (run / "checkpoints").exists()
    assert load_tokenizer(str(run)).chat_template == load_tokenizer(str(tiny_model_folder)).chat_template
    assert not list((run / "model").glob("*.bin"))
    changed = weights(run)["model.embed_tokens.weight"] != weights_of_start(tiny_model_folder)
    assert changed.any()
    assert capfd.readouterr() == ("", "")


def weights_of_start(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["model.embed_tokens.weight"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_after_a_checkpoint_ends_bitwise_as_an_uninterrupted_one(
    stage: str, make_recipe: Any, tmp_path: Path
) -> None:
    from handbook_utils.training import trl_bridge  # noqa: F401  # once, before the processes fork

    recipe = make_recipe(stage, max_steps=5, save_steps=2, evaluate=False)
    run_stage(recipe, tmp_path / "whole", progress=False)
    run_and_kill(recipe, tmp_path / "killed", step=3)
    assert read_manifest(tmp_path / "killed")["status"] == "running"
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-2").is_dir()
    run_stage(recipe, tmp_path / "killed", progress=False)
    assert "going on from checkpoint-2" in (tmp_path / "killed" / "log.txt").read_text(encoding="utf-8")
    assert_equal_weights(tmp_path / "whole", tmp_path / "killed")
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.parametrize(
    ("stage", "training"),
    [("pretrain", {"packing": True, "max_length": 48}), ("sft", {}), ("reward", {"max_length": 150})],
)
def test_a_stage_killed_on_a_stream_ends_bitwise_as_an_uninterrupted_one(
    stage: str, training: dict[str, Any], make_recipe: Any, tmp_path: Path
) -> None:
    from handbook_utils.training import trl_bridge  # noqa: F401  # once, before the processes fork

    # 24 or 28 rows in batches of 4: eight steps go past the end of the file, and the kill comes after it
    made = make_recipe(stage, max_steps=8, save_steps=7, **training)
    recipe = load_recipe(made, overrides={"streaming": True})
    run_stage(recipe, tmp_path / "whole", progress=False)
    run_and_kill(recipe, tmp_path / "killed", step=7)
    run_stage(recipe, tmp_path / "killed", progress=False)
    assert "going on from checkpoint-7" in (tmp_path / "killed" / "log.txt").read_text(encoding="utf-8")
    assert_equal_weights(tmp_path / "whole", tmp_path / "killed")
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    (source,) = read_manifest(tmp_path / "whole")["notes"]["sources"]
    assert source["format"] == {"pretrain": "text", "sft": "messages", "reward": "preference"}[stage]


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_preferences_and_feedback_train_from_a_stream(stage: str, make_recipe: Any, tmp_path: Path) -> None:
    content = {**recipe_to_dict(make_recipe(stage, max_steps=2, logging_steps=1)), "streaming": True}
    run_stage(check_recipe(content, "test"), tmp_path / "run", progress=False)
    first, second = losses(tmp_path / "run").values()
    if stage == "dpo":  # ln 2 before anything is learned
        assert first == pytest.approx(math.log(2), abs=1e-6)
    assert first != second
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_stream_without_a_row_that_fits_trains_nothing_and_says_so(
    make_recipe: Any, tmp_path: Path
) -> None:
    with (
        pytest.warns(LengthWarning, match="24 of the first 24 rows of the stream are longer"),
        pytest.raises(DataError, match=r"gave no row that fits into training\.max_length = 3"),
    ):
        run_stage(
            make_recipe("reward", max_length=3),
            tmp_path / "run",
            progress=False,
            overrides={"streaming": True},
        )
    assert not (tmp_path / "run" / "model").exists()


def losses(run: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(run) if "loss" in record}


def run_and_kill(recipe: Any, run: Path, *, step: int) -> None:
    """Run a stage in a forked process that kills itself, as the system would, when a step begins."""
    with warnings.catch_warnings():
        # from 3.12 on Python warns of forks beside threads; ours are idle (see `one_thread`)
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:  # pragma: no cover
        from handbook_utils.training.callbacks import RecordMetrics

        def kill(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        RecordMetrics.on_step_begin = kill
        try:
            run_stage(recipe, run, progress=False)
        finally:
            sys.stderr.flush()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_run_whose_model_is_saved_is_not_trained_again(
    make_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handbook_utils.training import fit

    run_stage(make_recipe("sft"), tmp_path / "run", progress=False)
    manifest = read_manifest(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text(
        json.dumps({**manifest, "status": "running"}), encoding="utf-8"
    )
    (tmp_path / "run" / "checkpoints").mkdir()
    monkeypatch.setattr(fit, "_train", None)
    run_stage(make_recipe("sft"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_seed_gives_another_model(make_recipe: Any, tmp_path: Path) -> None:
    run_stage(make_recipe("reward"), tmp_path / "a", progress=False)
    run_stage(make_recipe("reward"), tmp_path / "b", progress=False, seed=1)
    assert not torch.equal(weights(tmp_path / "a")["score.weight"], weights(tmp_path / "b")["score.weight"])


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(
    stage: str, make_recipe: Any, tmp_path: Path
) -> None:
    recipe = make_recipe(stage, learning_rate=1e30, lr_scheduler_type="constant", max_grad_norm=0)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step [23].*learning rate"):
        run_stage(recipe, tmp_path / "run", progress=False)
    assert read_manifest(tmp_path / "run")["status"] == "failed"
    assert not (tmp_path / "run" / "model").exists()


def test_weights_that_are_no_numbers_after_the_last_step_are_not_saved(
    make_recipe: Any, tmp_path: Path
) -> None:
    recipe = make_recipe("sft", max_steps=1, learning_rate=1e38, max_grad_norm=0, weight_decay=10)
    with pytest.raises(TrainingError, match="after the last step"):
        run_stage(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model").exists()


def test_scores_of_a_reloaded_reward_model_are_those_of_the_saved_one(
    make_recipe: Any, pairs_file: Path, tmp_path: Path
) -> None:
    run_stage(make_recipe("reward"), tmp_path / "run", progress=False)
    tokenizer = load_tokenizer(str(tmp_path / "run"))
    pairs = load_dataset(str(pairs_file), kind="preference")
    rows = [(row["prompt"], row["chosen"][0]["content"]) for row in pairs]
    scores = reward_scores(load_model(str(tmp_path / "run"), head="reward"), tokenizer, rows)
    torch.manual_seed(99)  # a head drawn anew would differ
    again = reward_scores(load_model(str(tmp_path / "run"), head="reward"), tokenizer, rows)
    np.testing.assert_array_equal(scores, again)
    assert torch.equal(
        load_model(str(tmp_path / "run"), head="reward").score.weight,
        weights(tmp_path / "run")["score.weight"],
    )


LENGTHS = [
    ("reward", 100, ["rows do not fit into training.max_length = 100 tokens: left out"]),
    ("sft", 50, ["rows do not fit into training.max_length = 50 tokens: left out", "their ends are cut off"]),
]


@pytest.mark.parametrize(("stage", "limit", "messages"), LENGTHS)
def test_rows_longer_than_max_length_are_counted_aloud(
    stage: str, limit: int, messages: list[str], make_recipe: Any, tmp_path: Path
) -> None:
    with pytest.warns(LengthWarning) as caught:
        run_stage(make_recipe(stage, max_length=limit, max_steps=1), tmp_path / "run", progress=False)
    assert len(caught) == len(messages)
    for message, warning in zip(messages, caught, strict=True):
        assert message in str(warning.message)
        assert int(str(warning.message).split()[0]) > 0
    assert read_manifest(tmp_path / "run")["notes"]["rows_left_out"] > 0


def test_when_no_row_fits_nothing_is_trained(make_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 24 rows are longer"):
        run_stage(make_recipe("reward", max_length=3), tmp_path / "run", progress=False)


def test_wrong_data_is_told_before_a_model_is_looked_for(make_recipe: Any, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "a", "completion": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"row 1.*found 'question', 'completion'"):
        run_stage(
            make_recipe("sft", data=data),
            tmp_path / "run",
            progress=False,
            overrides={"model.name": "./no/model"},
        )
    assert not (tmp_path / "run").exists()


def test_a_missing_model_is_told_and_nothing_is_left(make_recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        run_stage(
            make_recipe("sft"), tmp_path / "run", progress=False, overrides={"model.name": "./no/model"}
        )
    assert not (tmp_path / "run").exists()


def test_a_progress_bar_shows_steps_and_loss(
    make_recipe: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    run_stage(make_recipe("sft"), tmp_path / "run", progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "sft" in shown.err
    assert "3/3" in shown.err
    assert "loss" in shown.err
