"""Every packaged recipe is taken by its trainer, and trains a shrunk model of its kind for two steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_utils import run_pipeline, run_stage
from handbook_utils.data.recognise import describe_format
from handbook_utils.pipeline.run import resolve_pipeline
from handbook_utils.runs.folder import read_result
from handbook_utils.schema.recipe import load_recipe, recipe_names, recipe_to_dict
from handbook_utils.schema.stages import GenerateRecipe, PipelineRecipe, RejectionRecipe
from handbook_utils.schema.training import TrainingRecipe
from tests.recipes.shrunk import rows_like, tiny_models, two_steps

NAMES = recipe_names()
LOADED = {name: load_recipe(name) for name in NAMES}
TRAINING = [name for name, recipe in LOADED.items() if isinstance(recipe, TrainingRecipe)]
PIPELINES = [name for name, recipe in LOADED.items() if isinstance(recipe, PipelineRecipe)]
# those that start from an earlier run, or from a published adapter, come after those that make one
TRAINING.sort(key=lambda name: LOADED[name].model.from_ is not None or LOADED[name].model.adapter is not None)


def test_no_recipe_was_lost() -> None:
    assert len(NAMES) == 107
    assert len(TRAINING) == 67
    assert len(PIPELINES) == 17


def test_pocket_recipes_train_on_the_cpu_with_a_gpu_at_hand_too() -> None:
    """In bfloat16, as a GPU would train, the book's figures would be others."""
    pocket = [LOADED[name] for name in TRAINING if name.startswith("pocket/")]
    assert len(pocket) == 13
    assert all(recipe.training["use_cpu"] is True for recipe in pocket)


def test_every_sft_recipe_says_whether_its_batch_counts_conversations_or_packed_rows() -> None:
    stages = [recipe.train if isinstance(recipe, RejectionRecipe) else recipe for recipe in LOADED.values()]
    packing = [stage.training.get("packing") for stage in stages if stage.stage == "sft"]
    assert packing.count(True) == 2  # smollm3's, as published
    assert packing.count(False) == 26


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", TRAINING)
def test_every_recipes_training_section_is_taken_by_its_trainers_configuration(
    name: str, tmp_path: Path
) -> None:
    from handbook_utils.training.arguments import trainer_arguments
    from handbook_utils.training.plan import make_plan
    from handbook_utils.training.trl_bridge import CONFIGS

    recipe: Any = load_recipe(name, overrides={"training.use_cpu": True, "training.bf16": False})
    training = {key: value for key, value in recipe.training.items() if key != "fp16"}
    recipe = load_recipe(recipe, overrides={"training": training})
    plan = make_plan(recipe, 1000)
    config = CONFIGS[recipe.trainer](**trainer_arguments(recipe, plan, tmp_path))
    assert plan.effective_batch == recipe.global_batch_size
    for key in ("learning_rate", "max_length", "beta"):
        if key in training:
            assert getattr(config, key) == training[key]


# the tiny tokenizer's own end is not that of each recipe's template
@pytest.mark.filterwarnings("ignore::handbook_utils.training.rows.labelled.TemplateWarning")
# two random answers to a prompt may well have one reward
@pytest.mark.filterwarnings("ignore::handbook_utils.online.rewards.EqualRewardsWarning")
@pytest.mark.parametrize("name", TRAINING)
def test_every_recipe_trains_two_steps_on_a_shrunk_model(name: str, shrunk: Any, runs: Path) -> None:
    from handbook_utils.schema.recipe import check_recipe

    run = runs / name
    recipe = check_recipe(two_steps(LOADED[name], shrunk, runs / "data" / name), name)
    run_stage(recipe, run, progress=False)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 2
    assert all(loss is not None for loss in losses)
    assert list((run / "model").glob("*.safetensors"))


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipelines_stages_resolve_and_its_prompts_can_be_told_from_the_data(name: str) -> None:
    pipeline, stages = resolve_pipeline(name)
    assert list(stages) == list(pipeline.stages)
    for stage in stages.values():
        if not isinstance(stage, GenerateRecipe | RejectionRecipe):
            continue
        if str(stage.data[0].name).startswith("pocket:"):
            continue
        for source in stage.data:
            describe_format(rows_like(source, "sft"), kind="prompt", format=source.format)


QLORA = {
    **{
        f"{stage}.training.max_steps": 2
        for stage in ("sft-qlora", "reward-qlora", "rft", "rft-control", "dpo")
    },
    **{f"{stage}.data.0.max_rows": 16 for stage in ("sft-qlora", "reward-qlora", "dpo")},
    **{
        f"{stage}.eval_data.0.max_rows": 4
        for stage in ("sft-qlora", "reward-qlora", "rft", "rft-control", "dpo")
    },
    **{"samples.data.0.split": "train[:8]", "samples.samples": 2, "samples.max_new_tokens": 8},
}


def test_the_qlora_pipeline_runs_from_the_first_stage_to_the_last(tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = run_pipeline("pocket/pipeline-qlora", out, overrides=QLORA)
    assert list(results) == list(LOADED["pocket/pipeline-qlora"].stages)
    for name in results:
        assert read_result(out / name).runtime_s > 0


# all that may differ between a colab recipe and its pocket twin
NAMES_RATES_AND_PRECISION = {
    *("description", "model.name", "model.chat_template", "model.from", "data", "eval_data"),
    *("training.eos_token", "training.learning_rate", "training.fp16", "model.dtype"),
    "training.use_cpu",  # pocket's
}


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
@pytest.mark.parametrize("suffix", ["", "-qwen3"])
def test_colabs_recipes_differ_from_pockets_only_in_names_rates_and_precision(
    stage: str, suffix: str
) -> None:
    colab, pocket = (flat(f"{name}") for name in (f"colab/{stage}{suffix}", f"pocket/{stage}-qlora"))
    differing = {key for key in colab.keys() | pocket.keys() if colab.get(key) != pocket.get(key)}
    assert differing <= NAMES_RATES_AND_PRECISION


def flat(name: str) -> dict[str, Any]:
    content = recipe_to_dict(load_recipe(name))
    sections = {key: value for key, value in content.items() if isinstance(value, dict)}
    plain = {key: value for key, value in content.items() if key not in sections}
    return plain | {f"{s}.{key}": value for s, section in sections.items() for key, value in section.items()}
