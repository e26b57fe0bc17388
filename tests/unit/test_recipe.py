"""Recipes: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from handbook_utils.errors import RecipeError
from handbook_utils.schema.recipe import (
    check_recipe,
    load_recipe,
    recipe_json_schema,
    recipe_names,
    recipe_to_dict,
    recipe_to_yaml,
    stage_recipe,
)
from handbook_utils.schema.stage_table import STAGES
from handbook_utils.schema.stages import PipelineRecipe

SFT = "stage: sft\nmodel: {name: m}\ndata: [{name: d}]\nglobal_batch_size: 4\n"


@pytest.fixture
def write(tmp_path):
    def _write(text: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return _write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SFT + "training: {max_lenght: 3}",
            "unknown key 'max_lenght' under 'training'. Did you mean 'max_length'?",
        ),
        (SFT + "training: {max_steps: 3.5}", "'max_steps' under 'training' takes int"),
        (SFT + "training: {learning_rate: true}", "'learning_rate' under 'training' takes"),
        (SFT + "training: {lr_scheduler_type: cosin}", "Did you mean 'cosine'?"),
        (SFT + "training: {output_dir: x}", "the run folder decides it"),
        (SFT + "training: {gradient_accumulation_steps: 2}", "derived from `global_batch_size`"),
        (SFT + "epochs: 3", "unknown key 'epochs'"),
        (SFT.replace("sft", "sftt"), "unknown stage 'sftt'. Did you mean 'sft'?"),
        (SFT.replace("name: m", "nam: m"), "unknown key 'nam' under 'model'. Did you mean 'name'?"),
        (
            SFT.replace("{name: d}", "{name: d, splt: x}"),
            "unknown key 'splt' under 'data.0'. Did you mean 'split'?",
        ),
        (SFT.replace("name: m", "name: m, dtype: bf16"), "Did you mean 'bfloat16'?"),
        (SFT.replace("name: m", "name: m, from: n"), "exactly one of `name` and `from`"),
        (SFT.replace("4", "0"), "'global_batch_size'"),
        (SFT.replace("stage: sft\n", ""), "the key 'stage' is missing"),
        (SFT + "stage: dpo", "key 'stage' twice"),
        ("", "empty"),
        ("- 1", "this is list"),
        ("1: 2", "keys that are not text"),
        ("a: !!python/object/apply:os.system [x]", "tags are not allowed"),
        ("a: !custom x", "tags are not allowed"),
        ("a: &x 1\nb: *x", "aliases are not allowed"),
        ("a: b: c", "line 1"),
        ("[" * 50_000, "nested too deeply"),
    ],
)
def test_a_wrong_recipe_is_refused_with_file_place_and_remedy(write, text, message):
    path = write(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


DPO = SFT.replace("stage: sft", "stage: dpo")
BUDGET = "max_tokens_per_batch: 4096\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DPO + "shared_prefix: sometimes", "for 'shared_prefix'. Choose from: auto, off, on"),
        (SFT + "shared_prefix: on", "unknown key 'shared_prefix'"),
        (SFT.replace("stage: sft", "stage: kto") + "length_batching: on", "unknown key 'length_batching'"),
        (SFT + "length_batching: on\ntraining: {packing: true}", "packing makes them equally long"),
        (DPO + "length_batching: on\ntraining: {loss_type: [aot]}", "the loss aot"),
        (DPO + "length_batching: on\ntraining: {train_sampling_strategy: sequential}", "both say which rows"),
        (
            DPO + "length_batching: on\nstreaming: true\ntraining: {max_steps: 3}",
            "cannot be combined with `streaming`",
        ),
        (DPO + BUDGET + "training: {per_device_train_batch_size: 2}", "how much a device takes at once"),
        (DPO + BUDGET + "launch: {strategy: zero2}", "DeepSpeed has to know before"),
        (DPO.replace("dpo", "orpo") + BUDGET, "use `length_batching` instead"),
        (DPO + "max_tokens_per_batch: 0", "'max_tokens_per_batch'"),
    ],
)
def test_a_recipe_whose_batches_cannot_be_made_is_refused_with_the_remedy(write, text, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DPO + "training: {label_smoothing: 0.1}", "`training.loss_type` robust. Else drop it."),
        (DPO + "training: {label_smoothing: 0.1, loss_type: [sigmoid, sft]}", "no longer for sigmoid"),
        (DPO + "training: {label_smoothing_factor: 0.1}", "TRL reads it for sft alone. Else drop it."),
        (SFT.replace("sft", "reward", 1) + "training: {label_smoothing_factor: 0.1}", "for sft alone"),
    ],
)
def test_smoothing_of_labels_that_would_have_no_effect_is_refused_with_what_has_one(write, text, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        DPO + "training: {label_smoothing: 0.1, loss_type: robust}",
        DPO + "training: {label_smoothing: 0.1, loss_type: [sigmoid, aot]}",
        DPO + "training: {label_smoothing: 0.0}",
        SFT + "training: {label_smoothing_factor: 0.1}",
    ],
)
def test_smoothing_of_labels_that_has_an_effect_is_taken(write, text):
    load_recipe(write(text))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model",
            "pocket:base",
            "'model' is a section with keys of its own, not 'pocket:base'. Write model: {name: pocket:base}.",
        ),
        ("data", "rows.jsonl", "'data' is a list, not 'rows.jsonl'. Write data: [{name: rows.jsonl}]."),
        (
            "data",
            ["rows.jsonl"],
            "'data.0' is a section with keys of its own, not 'rows.jsonl'. Write {name: rows.jsonl}.",
        ),
        ("lora", 4, "'lora' is a section with keys of its own, not 4."),
    ],
)
def test_a_bare_value_where_a_section_belongs_is_told_how_to_write_it(key, value, message):
    content = yaml.safe_load(SFT) | {key: value}
    with pytest.raises(RecipeError) as caught:
        check_recipe(content, "r.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("written", "read"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")]
)
def test_on_and_off_are_read_as_words_and_stay_so(write, tmp_path, written, read):
    recipe = load_recipe(write(DPO + f"shared_prefix: {written}"))
    assert recipe.shared_prefix == read
    again = tmp_path / "again.yaml"
    again.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    assert load_recipe(again) == recipe


def test_a_ten_megabyte_nest_is_refused_before_it_is_parsed(write):
    path = write("[" * (10 << 20))
    with pytest.raises(RecipeError, match="at most 1,048,576"):
        load_recipe(path)


def test_a_missing_file_names_the_nearest_one(write, tmp_path):
    write(SFT)
    with pytest.raises(RecipeError, match=r"no such file. Did you mean '.*recipe.yaml'"):
        load_recipe(tmp_path / "recpie.yaml")


def test_a_wrong_packaged_name_names_the_nearest_one():
    with pytest.raises(RecipeError, match="Did you mean 'pocket/sft'"):
        load_recipe("pocket/sfft")


def test_bytes_that_are_not_text_are_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"stage: \xff")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(path)


def test_a_learning_rate_in_exponent_form_is_a_number(write):
    assert load_recipe(write(SFT + "training: {learning_rate: 1e-4}")).training["learning_rate"] == 1e-4


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("data.0.split=dev", lambda r: r.data[0].split == "dev"),
        ("training.max_steps=10", lambda r: r.training["max_steps"] == 10),
        ("training.learning_rate=2e-5", lambda r: r.training["learning_rate"] == 2e-5),
        ("seed=7", lambda r: r.seed == 7),
    ],
)
def test_set_changes_one_value(write, override, read):
    assert read(load_recipe(write(SFT), overrides=[override]))


@pytest.mark.parametrize("override", ["foo", "=3", "data.5.split=x", "data.x.split=y", "model.name.x=1"])
def test_a_set_that_cannot_be_applied_is_refused(write, override):
    with pytest.raises(RecipeError, match="--set"):
        load_recipe(write(SFT), overrides=[override])


def test_the_seed_option_wins_over_the_file(write):
    assert load_recipe(write(SFT + "seed: 3\n"), seed=5).seed == 5


def test_every_packaged_recipe_loads_and_survives_a_round_trip(tmp_path):
    names = recipe_names()
    assert "pocket/pipeline" in names
    for name in names:
        recipe = load_recipe(name)
        path = tmp_path / "again.yaml"
        path.write_text(recipe_to_yaml(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe, name


def test_every_stage_of_every_packaged_pipeline_resolves():
    pipelines = [p for p in map(load_recipe, recipe_names()) if isinstance(p, PipelineRecipe)]
    assert pipelines
    for pipeline in pipelines:
        for name in pipeline.stages:
            assert stage_recipe(pipeline, name).seed == pipeline.seed


def test_a_pipeline_merges_training_and_replaces_other_keys():
    pipeline = check_recipe(
        {
            "stage": "pipeline",
            "stages": {"a": {"recipe": "pocket/sft", "training": {"max_steps": 3}, "data": [{"name": "x"}]}},
        },
        "test",
    )
    recipe, packaged = stage_recipe(pipeline, "a"), load_recipe("pocket/sft")
    assert recipe.training == {**packaged.training, "max_steps": 3}
    assert [source.name for source in recipe.data] == ["x"]


def test_the_packaged_editor_schema_is_fresh():
    stored = json.loads(
        files("handbook_utils").joinpath("recipes", "schema.json").read_text(encoding="utf-8")
    )
    assert stored == recipe_json_schema(), (
        "run: handbook recipes --schema > handbook_utils/recipes/schema.json"
    )


def test_no_section_has_more_than_25_fields():
    assert all(len(stage.recipe.model_fields) <= 25 for stage in STAGES.values())


TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(
    name=TEXT,
    split=TEXT,
    description=st.text(st.characters(blacklist_categories=("Cs",)), max_size=30),
    seed=st.integers(0, 2**31 - 1),
    batch=st.integers(1, 10**6),
    rate=st.floats(1e-12, 10, allow_nan=False),
)
def test_any_valid_recipe_survives_yaml(name, split, description, seed, batch, rate):
    recipe = check_recipe(
        {
            "stage": "sft",
            "description": description,
            "seed": seed,
            "model": {"name": name},
            "data": [{"name": name, "split": split}],
            "global_batch_size": batch,
            "training": {"learning_rate": rate},
        },
        "test",
    )
    assert check_recipe(yaml.safe_load(recipe_to_yaml(recipe)), "again") == recipe


@given(key=st.text(min_size=1, max_size=12))
def test_an_unknown_key_is_never_accepted(key):
    content = recipe_to_dict(load_recipe("pocket/sft"))
    if key in content:
        return
    with pytest.raises(RecipeError, match="unknown key"):
        check_recipe({**content, key: 1}, "test")
