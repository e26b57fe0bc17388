"""The stages on disk: tables, figures, slices, and runs that are killed and go on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from handbook_utils.data.load import load_dataset
from handbook_utils.errors import DataError, ModelError, RecipeError
from handbook_utils.models.load import load_model, load_tokenizer
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.folder import read_result
from handbook_utils.runs.state import read_manifest, read_table
from handbook_utils.sampling.dry_run import plan_sampling
from handbook_utils.sampling.generation.generate import TransformersEngine
from handbook_utils.sampling.scoring import stage as score_stage
from handbook_utils.schema.stages import AnnotateRecipe, GenerateRecipe, ScoreRecipe, SelectRecipe

pytestmark = [
    # a dozen prompts are too few for an interval to rely on, and the figures say so
    pytest.mark.filterwarnings("ignore::handbook_utils.evaluation.statistics.CoverageWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def generate_recipe(model: Path, **changes: Any) -> GenerateRecipe:
    content = {
        "stage": "generate",
        "model": {"name": str(model)},
        "data": [{"name": "pocket:prompts", "split": "test[:10]"}],
        "samples": 3,
        "prompts_per_part": 4,
        "max_new_tokens": 8,
        "rows_per_batch": 5,
    }
    return GenerateRecipe(**{**content, **changes})


def score_recipe(model: Path, data: list[dict[str, str]]) -> ScoreRecipe:
    scorers = {"proxy": {"name": str(model)}, "gold": {"name": "pocket:gold"}}
    return ScoreRecipe(stage="score", data=data, scorers=scorers, rows_per_batch=5)


def tables(folder: Path) -> dict[str, bytes]:
    found = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.parquet"))}
    assert found
    return found


@pytest.fixture(scope="module")
def reward_folder(tiny_model_folder, tmp_path_factory) -> Path:
    """A reward model with a random head, the same in every load."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        load_model(str(tiny_model_folder), head="reward").save_pretrained(folder)
    load_tokenizer(str(tiny_model_folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tiny_model_folder, reward_folder, tmp_path_factory) -> Path:
    """Finished runs `samples`, `scores` beside each other."""
    folder = tmp_path_factory.mktemp("runs")
    run_stage(generate_recipe(tiny_model_folder), folder / "samples", progress=False)
    run_stage(score_recipe(reward_folder, [{"from": "samples"}]), folder / "scores", progress=False)
    return folder


def test_generate_writes_parts_of_whole_prompts(runs):
    files = sorted((runs / "samples" / "samples").iterdir())
    assert [pq.read_table(file).num_rows for file in files] == [12, 12, 6]
    table = read_table(runs / "samples" / "samples")
    assert table["sample_index"].to_pylist() == [0, 1, 2] * 10
    assert len(set(table["prompt_id"].to_pylist())) == 10
    assert str(table.schema.field("tokens").type) == "int32"


def test_generate_reports_tokens_words_and_how_often_answers_were_cut(runs):
    result = read_result(runs / "samples")
    table = read_table(runs / "samples" / "samples")
    cut = [reason == "length" for reason in table["finish_reason"].to_pylist()]
    assert result.final_metrics["truncated_rate"].value == pytest.approx(sum(cut) / 30)
    assert result.final_metrics["tokens"].value == pytest.approx(sum(table["tokens"].to_pylist()) / 30)
    assert result.final_metrics["tokens"].n == 10
    assert result.tokens_per_s is not None


def test_score_adds_a_column_a_scorer_to_every_sample(runs):
    samples, scores = (read_table(runs / name / name) for name in ("samples", "scores"))
    assert scores.select(samples.column_names).equals(samples)
    added = set(scores.column_names) - set(samples.column_names)
    assert {"proxy", "gold", "gold.helpful", "gold.safe", "words"} <= added
    assert all(str(scores.schema.field(name).type) == "double" for name in added)


def test_best_selection_scores_higher_than_its_random_control_and_is_as_large(runs):
    results = {
        strategy: run_stage(
            SelectRecipe(stage="select", data=[{"from": "scores"}], by="proxy", strategy=strategy),
            runs / f"select-{strategy}",
            progress=False,
        )
        for strategy in ("best", "random")
    }
    assert results["best"].final_metrics["proxy"].value > results["random"].final_metrics["proxy"].value
    loaded = {name: load_dataset(str(runs / f"select-{name}"), kind="conversation") for name in results}
    assert len(loaded["best"]) == len(loaded["random"]) == 10
    assert loaded["best"][0]["completion"][0]["role"] == "assistant"


def test_pairs_from_scores_load_as_preferences(runs):
    recipe = SelectRecipe(stage="select", data=[{"from": "scores"}], by="proxy", strategy="pairs")
    result = run_stage(recipe, runs / "select-pairs", progress=False)
    assert result.final_metrics["margin.proxy"].value > 0
    loaded = load_dataset(str(runs / "select-pairs"), kind="preference")
    assert {"prompt", "chosen", "rejected", "gold_chosen", "gold_rejected"} <= set(loaded.column_names)
    assert len(loaded) == result.final_metrics["margin.proxy"].n


def test_annotate_writes_pairs_and_counts_the_prompts_it_skips(runs):
    result = run_stage(
        AnnotateRecipe(stage="annotate", data=[{"from": "samples"}]), runs / "pairs", progress=False
    )
    notes = read_manifest(runs / "pairs")["notes"]
    loaded = load_dataset(str(runs / "pairs"), kind="preference")
    assert notes["pairs"] == len(loaded)
    assert notes["pairs"] + notes["skipped_prompts"] == 10
    assert result.final_metrics["distinct_rate"].value == notes["pairs"] / 10


def test_annotating_answers_that_are_all_alike_is_an_error(runs, tiny_model_folder):
    run_stage(generate_recipe(tiny_model_folder, temperature=0), runs / "greedy", progress=False)
    with pytest.raises(DataError, match="none of 10 prompts has two different samples"):
        run_stage(
            AnnotateRecipe(stage="annotate", data=[{"from": "greedy"}]), runs / "no-pairs", progress=False
        )


def test_a_slice_of_samples_counts_prompts(runs, reward_folder):
    recipe = score_recipe(reward_folder, [{"from": "samples", "split": "train[3:9]"}])
    run_stage(recipe, runs / "sliced", progress=False)
    ids = list(dict.fromkeys(read_table(runs / "samples" / "samples")["prompt_id"].to_pylist()))
    scored = read_table(runs / "sliced" / "scores")["prompt_id"].to_pylist()
    assert list(dict.fromkeys(scored)) == ids[3:9]
    assert len(scored) == 18


def test_samples_given_twice_are_an_error(runs, reward_folder):
    recipe = score_recipe(reward_folder, [{"from": "samples"}, {"from": "samples"}])
    with pytest.raises(DataError, match="has samples in an earlier file too"):
        run_stage(recipe, runs / "twice", progress=False)


def test_a_run_without_samples_is_an_error(runs, reward_folder, tiny_model_folder):
    with pytest.raises(DataError, match="no samples there"):
        run_stage(score_recipe(reward_folder, [{"name": str(tiny_model_folder)}]), runs / "x", progress=False)


def test_a_table_without_a_column_of_samples_names_it(runs, tmp_path):
    table = read_table(runs / "samples" / "samples")
    pq.write_table(table.drop_columns(["logprob"]), tmp_path / "rows.parquet")
    recipe = AnnotateRecipe(stage="annotate", data=[{"name": str(tmp_path / "rows.parquet")}])
    with pytest.raises(DataError, match=r"rows\.parquet: no column 'logprob'"):
        run_stage(recipe, tmp_path / "run", progress=False)


def test_a_scorer_cannot_take_the_name_of_a_column(runs):
    recipe = ScoreRecipe(
        stage="score", data=[{"from": "samples"}], scorers={"words": {"name": "pocket:gold"}}
    )
    with pytest.raises(RecipeError, match="samples have a column 'words' already"):
        run_stage(recipe, runs / "clash", progress=False)


def test_a_dry_run_counts_what_the_run_makes_and_refuses_what_it_refuses(
    runs, reward_folder, tiny_model_folder, tmp_path
):
    plan = plan_sampling(generate_recipe(tiny_model_folder), {})
    assert (plan["prompts"], plan["skipped_prompts"]) == (10, 0)
    with pytest.raises(DataError, match="beyond the model's"):
        plan_sampling(generate_recipe(tiny_model_folder, max_new_tokens=100_000), {})
    with pytest.raises(ModelError, match="no such folder"):
        plan_sampling(generate_recipe(tmp_path / "none"), {})
    inputs = {name: runs / name for name in ("samples", "scores")}
    rows = len(read_table(runs / "samples" / "samples"))
    assert plan_sampling(score_recipe(reward_folder, [{"from": "samples"}]), inputs) == {"samples": rows}
    clash = {"words": {"name": "pocket:gold"}}
    with pytest.raises(RecipeError, match="samples have a column 'words' already"):
        plan_sampling(ScoreRecipe(stage="score", data=[{"from": "samples"}], scorers=clash), inputs)
    with pytest.raises(DataError, match="'proxi'"):
        plan_sampling(SelectRecipe(stage="select", data=[{"from": "scores"}], by="proxi"), inputs)
    selection = plan_sampling(SelectRecipe(stage="select", data=[{"from": "scores"}], by="gold"), inputs)
    assert (selection["samples"], selection["selected"], selection["unscored"]) == (rows, 10, 0)


def test_samples_do_not_depend_on_parts_or_batches(runs, tiny_model_folder):
    recipe = generate_recipe(tiny_model_folder, prompts_per_part=10, rows_per_batch=64)
    run_stage(recipe, runs / "other-parts", progress=False)
    first, second = (read_table(runs / name / "samples") for name in ("samples", "other-parts"))
    assert first["completion"].to_pylist() == second["completion"].to_pylist()


def killed_after(writes: int, start: Any) -> None:
    """Run `start` in a child process that kills itself inside its next write after so many tables."""
    child = os.fork()
    if child == 0:
        original, done = pq.write_table, []

        def write(table: Any, where: Path) -> None:
            if len(done) == writes:
                where.write_bytes(b"half a table")
                os.kill(os.getpid(), signal.SIGKILL)
            original(table, where)
            done.append(where)

        pq.write_table = write
        try:
            start()
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_parts_that_are_there_are_not_sampled_or_scored_again(
    tiny_model_folder, reward_folder, tmp_path, monkeypatch
):
    run_stage(generate_recipe(tiny_model_folder), tmp_path / "samples", progress=False)
    scores = score_recipe(reward_folder, [{"from": "samples"}])
    run_stage(scores, tmp_path / "scores", progress=False)
    for stage in ("samples", "scores"):
        reopen(tmp_path / stage)
        (tmp_path / stage / stage / "part-00001.parquet").unlink()
    asked: list[int] = []
    # of an engine's method the second argument are the prompts, of `score` the first are completions
    for owner, name, place in ((TransformersEngine, "answer", 1), (score_stage, "score", 0)):
        done = getattr(owner, name)

        def counted(*given: Any, done: Any = done, place: int = place, **named: Any) -> Any:
            asked.append(len(given[place]))
            return done(*given, **named)

        monkeypatch.setattr(owner, name, counted)
    run_stage(generate_recipe(tiny_model_folder), tmp_path / "samples", progress=False)
    run_stage(scores, tmp_path / "scores", progress=False)
    # 4 prompts of one part; then its 12 answers by two scorers
    assert asked == [4, 12, 12]


def reopen(run: Path) -> None:
    """Make a finished run look as if it had been killed."""
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}), encoding="utf-8")


@pytest.mark.parametrize("stage", ["generate", "score", "annotate", "select"])
@pytest.mark.parametrize("writes", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    stage, writes, runs, tiny_model_folder, reward_folder, tmp_path
):
    recipe = {
        "generate": generate_recipe(tiny_model_folder),
        "score": score_recipe(reward_folder, [{"name": str(runs / "samples")}]),
        "annotate": AnnotateRecipe(stage="annotate", data=[{"name": str(runs / "samples")}]),
        "select": SelectRecipe(stage="select", data=[{"name": str(runs / "scores")}], by="proxy"),
    }[stage]
    whole = run_stage(recipe, tmp_path / "whole", progress=False)
    killed_after(writes, lambda: run_stage(recipe, tmp_path / "killed", progress=False))
    assert read_manifest(tmp_path / "killed")["status"] == "running"
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").rglob("part-*.parquet")}
    assert len(kept) == writes
    resumed = run_stage(recipe, tmp_path / "killed", progress=False)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    assert resumed.final_metrics == whole.final_metrics
