"""Rounds of rejection sampling: what they are made of, that a kill loses nothing, and when they end."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from handbook_utils.errors import DataError, HandbookError, ModelError, RecipeError, RunFolderError
from handbook_utils.evaluation.win_rate import compare_paired
from handbook_utils.pipeline import stages
from handbook_utils.pipeline.round_stages import all_stages, relocated, round_seed
from handbook_utils.pipeline.rounds import stop_reason
from handbook_utils.pipeline.stages import rejection_sample, run_stage
from handbook_utils.pipeline.tables import run_scores, shared_scores
from handbook_utils.records import Estimate
from handbook_utils.runs.folder import RunFolder, read_result
from handbook_utils.runs.state import read_manifest, read_table
from handbook_utils.schema.recipe import check_recipe, load_recipe

# a dozen prompts are too few for an interval to rely on, and the figures say so
pytestmark = pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning")

SFT = {
    "stage": "sft",
    "global_batch_size": 4,
    "training": {"use_cpu": True, "max_length": 256, "max_steps": 2, "learning_rate": 1e-2},
}
DPO = {**SFT, "stage": "dpo"}


def rejection(model: Path | str, /, **changes: Any) -> Any:
    content = {
        "stage": "rejection",
        "model": {"name": str(model)},
        "data": [{"name": "pocket:prompts", "split": "train[:8]"}],
        "samples": 3,
        "max_new_tokens": 12,
        "prompts_per_part": 4,
        "scorers": {
            "brief": {"kind": "length", "unit": "characters", "at_most": 10},
            "gold": {"name": "pocket:gold"},
        },
        "select": {"by": "brief"},
        "train": SFT,
        "evaluate": {"data": [{"name": "pocket:prompts", "split": "test[:10]"}]},
    }
    return check_recipe({**content, **changes}, "test")


def moved_model(recipe: Any, run: RunFolder) -> dict[str, Any]:
    """Stands in for training: the start model with some noise on it, that of the rows it was given."""
    source = Path(run.locate(recipe.model))
    rows = [row for data in recipe.data for row in rows_of(Path(run.locate(data)), data.subset or "selected")]
    with run.folder("model") as folder:
        shutil.copytree(
            source / "model" if (source / "model").exists() else source, folder, dirs_exist_ok=True
        )
        weights = load_file(folder / "model.safetensors")
        noise = torch.Generator().manual_seed(len(str(rows)))
        name = min(weights)
        weights[name] = weights[name] + 0.05 * torch.randn(weights[name].shape, generator=noise)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    run.note(rows=len(rows))
    run.log_metrics({"step": 1, "loss": 1.0})
    return {}


def rows_of(run: Path, table: str) -> list[Any]:
    return read_table(run / table).to_pylist()


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is arithmetic; all else is real."""
    real = stages.stage_function
    monkeypatch.setattr(
        stages, "stage_function", lambda stage: moved_model if stage in ("sft", "dpo") else real(stage)
    )


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """A forked child can only use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds on all rounds' selections, finished; tests read it and leave it alone."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("rounds") / "out"
    with pytest.MonkeyPatch.context() as patches:
        real = stages.stage_function
        patches.setattr(
            stages, "stage_function", lambda stage: moved_model if stage in ("sft", "dpo") else real(stage)
        )
        run_stage(rejection(tiny_model_folder, **TWO_ROUNDS), out, progress=False)
    return out


TWO_ROUNDS: dict[str, Any] = {"rounds": 2, "pool": "all_rounds"}


# ---- what a round is made of


def test_a_round_is_made_of_ordinary_stages_that_feed_each_other() -> None:
    made = all_stages(rejection("m", rounds=2))
    assert list(made) == [
        "start-evaluate",
        *(f"round-1-{what}" for what in WHAT),
        *(f"round-2-{what}" for what in WHAT),
    ]
    assert made["round-1-model"].model.name == "m"
    assert made["round-1-model"].data[0].from_ == "round-1-selected"
    assert made["round-2-samples"].model.from_ == "round-1-model"
    assert made["round-2-model"].model.from_ == "round-1-model"
    assert made["round-2-evaluate"].reference.name == "m"


WHAT = ("samples", "scores", "selected", "model", "evaluate", "control", "evaluate-control")


def test_without_a_control_none_is_trained() -> None:
    assert not [name for name in all_stages(rejection("m", control=False)) if "control" in name]


def test_every_round_starts_from_the_first_model_where_the_recipe_says_so() -> None:
    made = all_stages(rejection("m", rounds=3, start="first"))
    assert [made[f"round-{number}-model"].model.name for number in (1, 2, 3)] == ["m"] * 3
    # what it learns from is still the last model's
    assert made["round-3-samples"].model.from_ == "round-2-model"


def test_a_pool_of_all_rounds_trains_on_every_selection_and_its_control_on_every_control() -> None:
    made = all_stages(rejection("m", rounds=3, pool="all_rounds"))
    names = ["round-1-selected", "round-2-selected", "round-3-selected"]
    assert [source.from_ for source in made["round-3-model"].data] == names
    assert [(source.from_, source.subset) for source in made["round-3-control"].data] == [
        (name, "control") for name in names
    ]


def test_rounds_answer_the_same_prompts_with_new_noise() -> None:
    made = all_stages(rejection("m", rounds=3))
    assert made["round-1-samples"].data[0].name == "pocket:prompts"
    assert [made[f"round-{n}-samples"].data[0].from_ for n in (2, 3)] == ["round-1-samples"] * 2
    assert len({made[f"round-{n}-samples"].seed for n in (1, 2, 3)}) == 3


def test_fresh_prompts_are_one_source_a_round_drawn_by_the_recipes_seed() -> None:
    data = [{"name": "pocket:prompts", "split": split} for split in ("train[:8]", "train[8:16]")]
    made = all_stages(rejection("m", rounds=2, prompts="fresh", data=data, seed=5))
    assert [made[f"round-{n}-samples"].data[0].split for n in (1, 2)] == ["train[:8]", "train[8:16]"]
    assert [made[f"round-{n}-samples"].seed for n in (1, 2)] == [5, 5]


def test_two_runs_with_seeds_in_a_row_share_no_rounds_seed() -> None:
    seeds = [round_seed(seed, number) for seed in range(50) for number in range(1, 6)]
    assert len(set(seeds)) == len(seeds)


def test_an_adapter_is_trained_on_from_round_to_round() -> None:
    lora = {**SFT, "lora": {"rank": 4}}
    made = all_stages(rejection("m", rounds=3, train=lora))
    assert [made[f"round-{n}-model"].model.adapter for n in (1, 2, 3)] == [None, "continue", "continue"]
    held = {"name": "m", "adapter": "continue", "chat_template": "chatml"}
    made = all_stages(rejection("m", rounds=2, model=held))
    assert made["round-2-model"].model.adapter == "continue"
    assert made["round-2-model"].model.chat_template is None  # the model of round 1 has one


def test_pairs_feed_dpo_and_the_reference_moves_with_the_start() -> None:
    made = all_stages(rejection("m", rounds=2, train=DPO, select={"by": "gold", "strategy": "pairs"}))
    assert [made[f"round-{n}-model"].stage for n in (1, 2)] == ["dpo", "dpo"]
    assert made["round-2-model"].model.from_ == "round-1-model"
    assert made["round-2-selected"].strategy == "pairs"


def test_names_of_earlier_runs_are_found_from_inside_the_run() -> None:
    recipe = rejection("m", model={"from": "sft"}, scorers={"brief": {"from": "reward"}})
    moved = relocated(recipe, lambda source: f"../{source.from_}")
    assert (moved.model.from_, moved.scorers["brief"].from_) == ("../sft", "../reward")
    assert moved.data == recipe.data


# ---- a run


def test_figures_of_every_round_stand_beside_start_previous_and_control(finished: Path) -> None:
    metrics = read_result(finished).final_metrics
    assert {"start.brief", "round-1.brief", "round-2.gold", "round-2-control.gold", "round-2.kl"} <= set(
        metrics
    )
    assert "start.kl" not in metrics
    assert "round-1.brief_gain_vs_previous" not in metrics  # that is the start
    evaluations = [run_scores(finished / name, "brief") for name in ("round-1-evaluate", "round-2-evaluate")]
    by_hand = compare_paired(*evaluations, unit="brief reward", seed=0).difference
    assert metrics["round-2.brief_gain_vs_previous"] == by_hand
    assert metrics["round-2.selected.brief"].value >= metrics["round-2.selected.gold"].low


def test_the_model_is_that_of_the_last_round_and_a_later_stage_reads_it(finished: Path) -> None:
    weights = [finished / name / "model.safetensors" for name in ("model", "round-2-model/model")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert json.loads((finished / "rounds.json").read_text())["kept"] == 2


def test_all_rounds_train_on_the_samples_of_both(finished: Path) -> None:
    rows = [
        read_manifest(finished / f"round-{n}-{what}")["notes"]["rows"] for n in (1, 2) for what in TRAINED
    ]
    assert rows == [8, 8, 16, 16]


TRAINED = ("model", "control")


def test_a_round_samples_the_prompts_of_the_first_one_again_and_answers_otherwise(finished: Path) -> None:
    first, second = (read_table(finished / f"round-{n}-samples" / "samples").to_pydict() for n in (1, 2))
    assert first["prompt_id"] == second["prompt_id"]
    assert first["prompt"] == second["prompt"]
    assert first["completion"] != second["completion"]


def content(run: Path) -> dict[str, bytes]:
    """All that a run made: tables, weights, and the list of its rounds."""
    files = [file for kind in ("*.parquet", "*.safetensors", "rounds.json") for file in run.rglob(kind)]
    assert len(files) > 20
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def go_on(recipe: Any, out: Path, kill_after: int | None) -> None:
    """Run in a forked child that kills itself at its n-th durable step of round 2."""
    done = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            value = function(*arguments, **options)
            done += "round-2" in str(arguments)
            if kill_after is not None and done >= kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return value

        return wrapper

    os.replace = counted(os.replace)
    run_stage(recipe, out, progress=False)


def in_child(recipe: Any, out: Path, kill_after: int | None) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=go_on, args=(recipe, out, kill_after))
    child.start()
    child.join(300)
    return child.exitcode


def test_a_run_killed_in_round_2_goes_on_to_the_same_bytes(
    finished: Path, tiny_model_folder: Path, tmp_path: Path, without_training: None
) -> None:
    recipe, out = rejection(tiny_model_folder, **TWO_ROUNDS), tmp_path / "out"
    shutil.copytree(finished, out, symlinks=True)
    # round 1 stays; that it is not made again shows in its results
    for left in (*out.glob("round-2-*"), out / "rounds.json", out / "model", out / "result.json"):
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    untouched = {file: file.stat().st_mtime_ns for file in out.glob("round-1-*/result.json")}
    exits = [in_child(recipe, out, kill_after) for kill_after in (4, 8, 10, None)]
    assert exits == [*[-signal.SIGKILL] * 3, 0]
    assert content(out) == content(finished)
    assert dict(read_result(out).final_metrics) == dict(read_result(finished).final_metrics)
    assert {file: file.stat().st_mtime_ns for file in untouched} == untouched


def test_a_second_run_redoes_nothing_and_a_damaged_table_is_made_again(
    finished: Path, tiny_model_folder: Path, tmp_path: Path, without_training: None
) -> None:
    recipe, out = rejection(tiny_model_folder, **TWO_ROUNDS), tmp_path / "out"
    shutil.copytree(finished, out, symlinks=True)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("result.json")}
    run_stage(recipe, out, progress=False)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    table = next((out / "round-1-scores" / "scores").glob("*.parquet"))
    table.write_bytes(table.read_bytes()[:-7])
    run_stage(recipe, out, progress=False)
    assert content(out) == content(finished)


def test_a_folder_of_other_rounds_is_refused(finished: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(RunFolderError, match="rounds: 2 -> 3"):
        run_stage(rejection(tiny_model_folder, pool="all_rounds", rounds=3), finished, progress=False)


# ---- when it ends


@pytest.mark.parametrize(
    ("stop", "says"),
    [({"max_kl": 1e-9}, "above stop.max_kl 1e-09"), ({"stalled": True}, "whose interval reaches 0")],
)
def test_a_rule_ends_the_rounds_and_the_round_that_met_it_is_told(
    stop: Any, says: str, tiny_model_folder: Path, tmp_path: Path, without_training: None
) -> None:
    # nobody's answer is longer than 500 words, so this score never rises
    scorers = {"brief": {"kind": "length", "at_most": 500}}
    recipe = rejection(tiny_model_folder, rounds=3, stop=stop, scorers=scorers, control=False)
    run_stage(recipe, tmp_path / "out", progress=False)
    record = json.loads((tmp_path / "out" / "rounds.json").read_text())
    assert says in record["stopped"]
    assert record["kept"] == 0
    assert "round-1-evaluate" in record["runs"]
    assert not list((tmp_path / "out").glob("round-2-*"))
    assert (tmp_path / "out" / "model").resolve().parent.name == "round-1-model"


def test_a_round_that_meets_a_rule_is_not_kept(
    tiny_model_folder: Path, tmp_path: Path, without_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handbook_utils.pipeline import rounds

    monkeypatch.setattr(
        rounds, "stop_reason", lambda recipe, number, metrics: "enough" if number == 2 else None
    )
    run_stage(rejection(tiny_model_folder, rounds=3, control=False), tmp_path / "out", progress=False)
    assert json.loads((tmp_path / "out" / "rounds.json").read_text())["kept"] == 1
    assert (tmp_path / "out" / "model").resolve().parent.name == "round-1-model"


def test_answers_without_a_score_do_not_count_and_do_not_end_the_run(finished: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for out, name in ((ours, "round-1-evaluate"), (theirs, "start-evaluate")):
        shutil.copytree(finished / name, out)
    file = next((ours / "scores").glob("*.parquet"))
    table = pq.read_table(file)
    values = table["brief"].to_pylist()
    names = table["prompt_id"].to_pylist()
    missing = table.set_column(table.column_names.index("brief"), "brief", [[math.nan, *values[1:]]])
    pq.write_table(missing, file)
    with pytest.raises(DataError, match="is nan"):
        run_scores(ours, "brief")
    found = shared_scores(theirs, ours, "brief")
    assert [len(side) for side in found] == [9, 9]  # one answer a prompt, ten prompts
    assert names[0] not in found[0]


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": {"by": "breif"}}, "'breif'. Did you mean 'brief'"),
        ({"select": {"by": "brief", "strategy": "pairs"}}, "pairs are for `stage: dpo`"),
        ({"train": DPO}, "dpo trains on pairs"),
        ({"samples": 1}, "is no choice. Sample more"),
        ({"select": {"by": "brief", "strategy": "top_k", "k": 3}}, "of which 3 are kept is no choice"),
        ({"select": {"by": "brief", "strategy": "rso"}}, "needs `beta`"),
        ({"rounds": 2, "prompts": "fresh"}, "2 rounds, 1 sources"),
        ({"engine": {"kind": "endpoint", "url": "http://localhost:1/v1"}}, "every round has another"),
        ({"rounds": 0}, "'rounds'"),
        ({"scorers": {}}, "'scorers'"),
        ({"train": {**SFT, "training": {"lerning_rate": 1}}}, "Did you mean 'learning_rate'"),
        ({"train": {**SFT, "stage": "kto"}}, "unknown value 'kto' for 'train.stage'"),
        ({"train": {**SFT, "data": []}}, "unknown key 'data' under 'train'"),
        ({"stop": {"max_kl": 0}}, "'stop.max_kl'"),
        ({"pool": "all"}, "unknown value 'all' for 'pool'"),
        ({"model": {"name": "m", "quantization": "nf4"}}, "Add a `lora:` section"),
        (
            {
                "evaluate": {
                    "data": [{"name": "pocket:prompts"}],
                    "scorers": {"gold": {"name": "pocket:gold"}},
                }
            },
            "`evaluate.scorers` has 'gold' again",
        ),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        rejection("m", **changes)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"data": [{"name": "pocket:prompts", "split": "test[8:12]"}]},
            DataError,
            "2 of 10 prompts of `evaluate",
        ),
        ({"scorers": {"brief": {"name": "pocket:glod"}}}, RecipeError, "Did you mean 'pocket:gold'"),
        (
            {"scorers": {"tokens": {"name": "pocket:gold"}}, "select": {"by": "tokens"}},
            RecipeError,
            "have a column",
        ),
        ({"scorers": {"brief": {"name": "./nowhere"}}}, ModelError, "no such folder"),
        ({"model": {"adapter": "continue"}}, RecipeError, "is a whole model, no adapter"),
        ({"train": {**SFT, "training": {"per_device_train_batch_size": 3}}}, RecipeError, "batch"),
        ({"evaluate": {"data": [{"from": "gone"}]}}, RecipeError, "'evaluate.data.0' reads the earlier run"),
    ],
)
def test_what_no_round_could_use_is_found_before_anything_is_sampled(
    changes: dict[str, Any], error: type[HandbookError], message: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = {"name": str(tiny_model_folder), **changes.pop("model", {})}
    with pytest.raises(error) as refused:
        run_stage(rejection("m", **{**changes, "model": model}), tmp_path / "out", progress=False)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_rejection_sample_takes_recipes_of_its_stage_only(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="of stage 'rejection' is needed here, this one is of stage 'sft'"):
        rejection_sample("pocket/sft", tmp_path / "out")


# ---- the command


def test_dry_run_shows_every_rounds_stages_and_writes_nothing(
    handbook: Callable[..., tuple[int, str, str]], tiny_model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        json.dumps(rejection(tiny_model_folder, rounds=2).model_dump(mode="json", exclude_none=True))
    )
    code, out, _ = handbook("rejection-sample", file, "--dry-run", "--out", tmp_path / "run")
    assert code == 0
    for text in (
        "round-2-selected",
        "sft on random samples",
        "answers to choose from: 48",
        "held-out prompts: 10",
    ):
        assert text in out
    code, out, _ = handbook("rejection-sample", file, "--dry-run", "--json", "--out", tmp_path / "run")
    assert json.loads(out)["stages"]["round-2-samples"]["reads"] == ["round-1-model", "round-1-samples"]
    assert not (tmp_path / "run").exists()


def test_the_command_ends_with_a_table_of_rounds(
    handbook: Callable[..., tuple[int, str, str]], finished: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    recipe = rejection(tiny_model_folder, **TWO_ROUNDS)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    code, out, _ = handbook("rejection-sample", file, "--out", finished)
    assert code == 0
    assert str(read_result(finished).final_metrics["round-2.gold_gain_vs_control"]) in out
    assert "round 2 control" in out
    assert f"{finished}/model: round 2" in out.replace("\n", "")


def test_another_command_names_the_right_one(handbook: Callable[..., tuple[int, str, str]]) -> None:
    code, _, error = handbook("train", "pocket/rejection")
    assert code == 2
    assert "Use `handbook rejection-sample pocket/rejection`" in error


# ---- the report


def test_the_report_draws_every_round_and_its_stages(finished: Path, tmp_path: Path) -> None:
    from handbook_utils.reporting.report import write_report

    page = write_report(finished, tmp_path / "report.html").read_text()
    assert "Rounds of rejection sampling" in page
    assert "round-2-evaluate-control" in page


def test_a_picture_of_something_that_was_not_measured_is_refused(finished: Path) -> None:
    from handbook_utils.reporting.round_plots import plot_rounds

    assert len(plot_rounds(finished).axes) == 4
    with pytest.raises(DataError, match=r"no rounds with \['glod'\]"):
        plot_rounds(finished, measures=["glod"])


# ---- beside the stages one by one


def test_one_round_is_what_the_pipelines_stages_make_of_the_same_model(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    """`pocket/pipeline` names each stage of a round; `pocket/rejection` is the same in one recipe."""
    small = {"data.0.split": "train[:8]", "max_new_tokens": 12, "model": {"name": str(tiny_model_folder)}}
    steps = {"training.max_steps": 2, "training.max_length": 256}
    gold = {"proxy": {"name": "pocket:gold"}}
    run_stage("pocket/rft-samples", tmp_path / "rft-samples", overrides=small, progress=False)
    run_stage("pocket/rft-scores", tmp_path / "rft-scores", overrides={"scorers": gold}, progress=False)
    for name in ("rft-best", "rft-random"):
        run_stage(f"pocket/{name}", tmp_path / name, progress=False)
    for name, data in (("rft", "rft-best"), ("rft-control", "rft-random")):
        changes = {**steps, "model": small["model"], "data.0.from": data}
        run_stage("pocket/rft", tmp_path / name, overrides=changes, progress=False)
    in_one = {f"train.{key}": value for key, value in steps.items()} | {
        "scorers": gold,
        "evaluate.scorers": {},
    }
    in_one |= {**small, "evaluate.data.0.split": "test[:10]", "evaluate.samples": 1}
    rejection_sample("pocket/rejection", tmp_path / "all", overrides=in_one, progress=False)
    assert rows_of(tmp_path / "all" / "round-1-selected", "selected") == rows_of(
        tmp_path / "rft-best", "selected"
    )
    for ours, theirs in (("model", "rft"), ("control", "rft-control")):
        files = [tmp_path / run / "model" / "model.safetensors" for run in (f"all/round-1-{ours}", theirs)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_iterative_dpo_trains_on_best_and_worst_answers(tiny_model_folder: Path, tmp_path: Path) -> None:
    changes = {"rounds": 2, "train": DPO, "select": {"by": "gold", "strategy": "pairs"}}
    # a random model's answers are all worth nothing; how long they are tells them apart
    scorers = {"gold": {"kind": "length", "unit": "characters", "at_most": 10}}
    recipe = rejection(tiny_model_folder, scorers=scorers, **changes)
    result = rejection_sample(recipe, tmp_path / "out", progress=False)
    assert {"round-2.gold_gain_vs_control", "round-2.selected.margin.gold"} <= set(result.final_metrics)
    assert result.final_metrics["round-2.selected.margin.gold"].value == 1
    weights = [tmp_path / "out" / f"round-{n}-model" / "model" / "model.safetensors" for n in (1, 2)]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_the_packaged_recipes_differ_only_in_rounds_and_training() -> None:
    one, three, dpo = (
        load_recipe(f"pocket/{name}") for name in ("rejection", "rejection-rounds", "iterative-dpo")
    )
    assert three.model_copy(update={"rounds": 1, "description": one.description}) == one
    assert {name for name in type(one).model_fields if getattr(dpo, name) != getattr(three, name)} == {
        *("description", "select", "train")
    }


@pytest.mark.parametrize(("low", "ends"), [(-0.05, True), (0.0, True), (0.05, False)])
def test_a_gain_whose_interval_reaches_0_is_no_gain_however_high_its_middle(low: float, ends: bool) -> None:
    def figure(value: float, low: float) -> Estimate:
        return Estimate(value, low, 2 * value - low, 0.95, 30, "score", "student-t")

    recipe = rejection("m", rounds=2, stop={"stalled": True})
    found = {"kl": figure(0.1, 0.0), "brief_gain_vs_previous": figure(0.2, low)}
    reason = stop_reason(recipe, 2, {f"round-2.{name}": each for name, each in found.items()})
    assert (reason is not None and "whose interval reaches 0" in reason) is ends
