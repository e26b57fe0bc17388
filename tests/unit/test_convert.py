"""Flat recipes of the alignment-handbook and of TRL become ours, and every key is accounted for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbook_utils.convert.flat import convert_recipe
from handbook_utils.convert.notes import NO_VALUE
from handbook_utils.errors import RecipeError
from handbook_utils.schema.recipe import check_recipe

# hyperparameters of huggingface/alignment-handbook, recipes/ at commit 925acdf, Apache-2.0
FACTS = json.loads(
    (Path(__file__).parents[1] / "data" / "upstream_recipes.json").read_text(encoding="utf-8")
)["recipes"]
TRAINED = {name: recipe for name, recipe in FACTS.items() if not name.startswith("accelerate_configs/")}
LAUNCHED = {name: recipe for name, recipe in FACTS.items() if name.startswith("accelerate_configs/")}

FLAT = {"model_name_or_path": "m", "dataset_name": "d"}


def stage_of(name: str) -> str:
    return name.split("/")[1]


def outcomes(notes: Any) -> dict[str, str]:
    return {note.key: note.outcome for note in notes}


def test_all_22_upstream_recipes_are_there() -> None:
    assert len(TRAINED) == 22
    assert len(LAUNCHED) == 3


@pytest.mark.parametrize("name", TRAINED)
def test_every_upstream_recipe_converts_to_one_that_passes_our_checks(name: str) -> None:
    recipe, notes = convert_recipe(TRAINED[name], stage=stage_of(name))
    check_recipe(recipe, name)
    told = {note.key.partition(".")[0] for note in notes}
    for key, value in TRAINED[name].items():
        kept = key in recipe or recipe["training"].get(key) == value or key == "model_name_or_path"
        assert kept or key in told, f"{key} vanished"


@pytest.mark.parametrize("name", TRAINED)
def test_every_upstream_key_has_an_equivalent_or_a_reason(name: str) -> None:
    _, notes = convert_recipe(TRAINED[name], stage=stage_of(name))
    assert not {note.key for note in notes if note.outcome == "unknown"}


@pytest.mark.parametrize("name", TRAINED)
def test_no_official_test_row_is_trained_on(name: str) -> None:
    recipe, _ = convert_recipe(TRAINED[name], stage=stage_of(name))
    assert recipe["data"]
    assert not [source for source in recipe["data"] if source["split"].startswith("test")]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ddp", "launch: {strategy: ddp, processes: 8, nodes: 1}"),
        ("fsdp", "launch: {strategy: fsdp2, processes: 8, nodes: 1}"),
        ("zero3", "launch: {strategy: zero3, processes: 8, nodes: 1}"),
    ],
)
def test_an_accelerate_config_is_refused_with_the_line_that_does_its_work(name: str, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        convert_recipe(LAUNCHED[f"accelerate_configs/{name}.yaml"])
    assert line in str(caught.value)


def test_the_batch_is_per_device_times_accumulation_times_processes() -> None:
    flat = {**FLAT, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
    assert convert_recipe(flat, processes=2)[0]["global_batch_size"] == 64  # 4 x 8 x 2
    assert convert_recipe(FLAT, processes=1)[0]["global_batch_size"] == 8  # the trainers' default per device


def test_a_batch_of_conversations_stays_one() -> None:
    recipe, notes = convert_recipe(FLAT)
    assert recipe["training"]["packing"] is False
    assert outcomes(notes)["(packing)"] == "changed"
    packed, notes = convert_recipe({**FLAT, "packing": True})
    assert packed["training"]["packing"] is True
    assert "(packing)" not in outcomes(notes)
    assert "packing" not in convert_recipe(FLAT, stage="reward")[0]["training"]


def test_qlora_becomes_a_quantised_model_and_a_lora_section() -> None:
    recipe, notes = convert_recipe(TRAINED["zephyr-7b-beta/dpo/config_qlora.yaml"])
    assert recipe["model"] == {
        "name": "alignment-handbook/zephyr-7b-sft-qlora",
        "dtype": "bfloat16",
        "quantization": "nf4",
    }
    assert recipe["lora"]["rank"] == recipe["lora"]["alpha"] == 128
    assert recipe["lora"]["dropout"] == 0.05
    assert len(recipe["lora"]["targets"]) == 7
    assert outcomes(notes)["lora_r"] == "changed"


def test_the_old_mixer_keeps_its_weights_and_holds_its_test_split_out() -> None:
    mixer = {"dataset_mixer": {"a": 0.5, "b": 1.0}, "dataset_splits": ["train_sft", "test_sft"]}
    recipe, notes = convert_recipe({"model_name_or_path": "m", **mixer})
    assert recipe["data"] == [
        {"name": "a", "split": "train_sft", "weight": 0.5},
        {"name": "b", "split": "train_sft"},
    ]
    assert recipe["eval_data"] == [{"name": "a", "split": "test_sft"}, {"name": "b", "split": "test_sft"}]
    assert any("first rows" in note.why for note in notes)


@pytest.mark.parametrize(
    ("keys", "stage"),
    [
        ({}, "sft"),
        ({"beta": 0.1}, "dpo"),
        ({"desirable_weight": 1.0, "beta": 0.1}, "kto"),
        ({"center_rewards_coefficient": 0.01}, "reward"),
    ],
)
def test_the_stage_is_told_by_keys_that_only_one_trainer_has(keys: dict[str, Any], stage: str) -> None:
    assert convert_recipe({**FLAT, **keys})[0]["stage"] == stage


@pytest.mark.parametrize(
    ("key", "value", "outcome", "why"),
    [
        ("max_seq_length", 512, "changed", "now training.max_length"),
        ("warmup_ratio", 0.1, "changed", "now training.warmup_steps"),
        ("evaluation_strategy", "epoch", "changed", "now training.eval_strategy"),
        ("torch_dtype", "bfloat16", "changed", "now model.dtype"),
        ("chat_template", "{{ messages }}", "changed", "now model.chat_template"),
        ("push_to_hub", True, "left out", "nothing is sent"),
        ("hub_model_id", "x", "left out", "nothing is sent"),
        ("report_to", ["wandb"], "left out", "training.report_to"),
        ("trust_remote_code", True, "left out", "never run"),
        ("output_dir", "data/x", "left out", "--out"),
        ("max_prompt_length", 512, "left out", "gone from TRL"),
        ("learning_rat", 1e-5, "unknown", "Did you mean 'learning_rate'?"),
    ],
)
def test_a_key_is_never_dropped_in_silence(key: str, value: Any, outcome: str, why: str) -> None:
    _, notes = convert_recipe({**FLAT, "dataset_test_split": "test", key: value})
    (note,) = (note for note in notes if note.key == key)
    assert note.outcome == outcome
    assert why in note.why


@given(
    key=st.text(min_size=1, max_size=12),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers()),
)
def test_any_further_key_is_kept_or_named(key: str, value: Any) -> None:
    try:
        recipe, notes = convert_recipe({**FLAT, key: value})
    except RecipeError:
        return
    kept = key in recipe or key in recipe.get("training", {}) or key in FLAT
    assert kept or key in {note.key for note in notes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"dataset_name": "d"}, "'model_name_or_path' is missing"),
        ({"model_name_or_path": "m"}, "names no data"),
        ({**FLAT, "dataset_mixer": {"d": 1}}, "has dataset_mixer and dataset_name"),
        ({**FLAT, "stage": "sft"}, "a recipe of ours already"),
        ({"model_name_or_path": "m", "dataset_mixture": ["d"]}, "'dataset_mixture' should be a mapping"),
        ({"model_name_or_path": "m", "dataset_mixture": {"datasets": ["d"]}}, "a list of mappings"),
        ({"model_name_or_path": "m", "dataset_mixer": ["d"]}, "'dataset_mixer' should be a mapping"),
        ({**FLAT, "per_device_train_batch_size": "4"}, "should be a whole number, found str 4"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(content: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        convert_recipe(content)


AXOLOTL = {
    "base_model": "org/base",
    "datasets": [{"path": "org/rows", "type": "alpaca"}],
    "micro_batch_size": 2,
}
FACTORY = {"model_name_or_path": "org/base", "stage": "sft", "dataset": "rows", "finetuning_type": "full"}


@pytest.mark.parametrize(
    ("keys", "stage", "said"),
    [
        ({"packing": False}, "sft", "told by 'packing'"),
        ({"rpo_alpha": 1.0}, "dpo", "told by 'rpo_alpha'"),
        ({"simpo_gamma": 0.5, "beta": 2.0}, "cpo", "told by 'simpo_gamma'"),
        ({"loss_type": "apo_zero_unpaired", "beta": 0.1}, "kto", "told by 'loss_type: apo_zero_unpaired'"),
        ({"beta": 0.1}, "dpo", "a guess: 'beta' is of DPO, ORPO and KTO alike"),
        ({}, "sft", "a guess: no key is of one method alone"),
    ],
)
def test_a_guess_of_the_stage_is_called_a_guess(keys: dict[str, Any], stage: str, said: str) -> None:
    recipe, notes = convert_recipe({**FLAT, **keys})
    (note,) = (note for note in notes if note.key == "(stage)")
    assert recipe["stage"] == stage
    assert said in note.why


def test_smoothing_that_trl_passes_over_today_is_left_out_with_the_loss_that_heeds_it() -> None:
    recipe, notes = convert_recipe({**FLAT, "beta": 0.1, "label_smoothing": 0.1})
    (note,) = (note for note in notes if note.key == "label_smoothing")
    assert (note.outcome, "label_smoothing" in recipe["training"]) == ("left out", False)
    assert "`training.loss_type` robust" in note.why
    kept, _ = convert_recipe({**FLAT, "beta": 0.1, "label_smoothing": 0.1, "loss_type": "robust"})
    assert kept["training"]["label_smoothing"] == 0.1


@pytest.mark.parametrize(
    ("keys", "method"),
    [
        ({"use_vllm": True, "max_completion_length": 256}, "GRPO, RLOO or online DPO"),
        ({"rloo_k": 4}, "RLOO of TRL before 0.22"),
        ({"num_ppo_epochs": 4}, "PPO"),
        ({"teacher_model_name_or_path": "t"}, "GKD"),
    ],
)
@pytest.mark.parametrize("stage", [None, "dpo"])
def test_a_method_without_a_stage_is_refused_by_its_name(
    keys: dict[str, Any], method: str, stage: str | None
) -> None:
    with pytest.raises(RecipeError, match=f"a recipe for {method}"):
        convert_recipe({**FLAT, **keys}, stage=stage)


def test_simpo_of_other_tools_is_a_loss_of_the_stage_cpo_with_their_defaults() -> None:
    content, notes = convert_recipe({**AXOLOTL, "rl": "simpo", "rl_beta": 2.0, "simpo_gamma": 1.0})
    assert content["stage"] == "cpo"
    assert content["training"]["loss_type"] == "simpo"
    assert (content["training"]["beta"], content["training"]["simpo_gamma"]) == (2.0, 1.0)
    assert "cpo_alpha" not in content["training"]  # axolotl leaves it to TRL, as is said
    assert any(note.key == "cpo_alpha" and "TRL's 1.0" in note.why for note in notes)
    content, _ = convert_recipe({**AXOLOTL, "rl": "simpo", "cpo_alpha": 0.0})
    assert content["training"]["cpo_alpha"] == 0.0
    pairs = {**FACTORY, "stage": "dpo", "pref_loss": "simpo", "pref_beta": 2.0, "simpo_gamma": 0.8}
    content, _ = convert_recipe(pairs)
    assert content["stage"] == "cpo"
    assert (
        content["training"] | {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "cpo_alpha": 0.0}
        == (content["training"])
    )
    assert convert_recipe({**pairs, "pref_ftx": 0.2})[0]["training"]["cpo_alpha"] == 0.2
    check_recipe(content, "converted")


GRPO = {
    "model_name_or_path": "org/base-model",
    "dataset_name": "org/problems",
    "dataset_prompt_column": "problem",
    "reward_funcs": ["accuracy", "format", "tag_count", "mine.rewards.brevity", "org/reward-model"],
    "reward_weights": [1.0, 0.5, 0.25, 0.1, 2.0],
    "num_generations": 16,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 4,
    "max_prompt_length": 512,
    "max_completion_length": 2048,
    "num_train_epochs": 1,
    "temperature": 0.7,
    "top_p": 0.9,
    "use_vllm": True,
    "vllm_mode": "colocate",
    "learning_rate": 1.0e-6,
    "beta": 0.04,
}


def test_a_recipe_for_grpo_becomes_one_and_every_reward_function_is_listed() -> None:
    content, notes = convert_recipe(GRPO)
    recipe: Any = check_recipe(content, "converted")
    said = {note.key: note for note in notes}
    assert recipe.stage == "grpo"
    assert said["(stage)"].why == "grpo, told by 'reward_funcs'."
    # 16 per device x 4 accumulated x 8 processes = 512 answers, 32 groups of 16
    assert (recipe.prompts_per_step, recipe.samples, recipe.global_batch_size) == (32, 16, 512)
    assert (recipe.max_new_tokens, recipe.temperature) == (2048, 0.7)
    assert recipe.data[0].columns == {"problem": "prompt"}
    assert list(recipe.scorers) == ["accuracy", "format", "tag_count", "brevity", "reward_model"]
    assert recipe.weights["reward_model"] == 2.0
    assert recipe.scorers["accuracy"].answers.columns == {"problem": "prompt"}
    assert recipe.scorers["brevity"].function == "mine.rewards:brevity"
    for name in ("tag_count", "mine.rewards.brevity"):
        assert said[f"reward_funcs.{name}"].outcome == "unknown"
        assert "write a function of (prompt messages, answer text)" in said[f"reward_funcs.{name}"].why
    assert said["top_p"].outcome == said["num_train_epochs"].outcome == "unknown"
    assert said["use_vllm"].outcome == said["vllm_mode"].outcome == "left out"
    assert GRPO.keys() - {"learning_rate", "beta", "model_name_or_path", "reward_funcs", "dataset_name"} <= {
        *said,
        *("gradient_accumulation_steps",),
    }


def test_the_format_of_open_r1_is_told_from_others() -> None:
    content, _ = convert_recipe(GRPO)
    pattern = content["scorers"]["format"]["pattern"]
    assert re.fullmatch(pattern, "<think>\nso\n</think>\n<answer>\n4\n</answer>")
    assert not re.fullmatch(pattern, "<think>so</think> 4")


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        ({}, "dpo", "a recipe for GRPO .* cannot become one of stage 'dpo'"),
        ({"num_generations": 48}, None, "512 answers, no whole number of groups of 48"),
        ({"reward_weights": [1.0]}, None, "'reward_weights' names 1 for 5"),
    ],
)
def test_a_recipe_for_grpo_is_refused(changes: dict[str, Any], stage: str | None, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        convert_recipe({**GRPO, **changes}, stage=stage)


def test_what_grpo_and_rloo_share_is_a_guess() -> None:
    content, notes = convert_recipe({**FLAT, "num_generations": 4})
    assert content["stage"] == "grpo"
    assert "a guess: 'num_generations' is of GRPO and RLOO alike" in next(iter(notes)).why
    assert convert_recipe({**FLAT, "num_generations": 4}, stage="rloo")[0]["stage"] == "rloo"
    assert "my_rewards:reward" in str(content["scorers"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"_component_": "torchtune.models.llama3_8b"}}, "of torchtune"),
        ({"actor_rollout_ref": {}, "data": {}}, "of verl"),
        ({"task": "llm-sft", "base_model": "m", "project_name": "p"}, "of AutoTrain"),
        ({**AXOLOTL, "rl": "grpo"}, "of axolotl for GRPO"),
        ({**AXOLOTL, "adapter": "llama-adapter"}, "'adapter: llama-adapter' has no equal"),
        ({**AXOLOTL, "datasets": []}, "'datasets' names no data"),
        ({**AXOLOTL, "process_reward_model": True}, "of axolotl for a process reward model"),
        ({**AXOLOTL, "datasets": [{"path": "d", "type": "completion"}]}, "'datasets' holds plain text"),
        ({"base_model": "m", "pretraining_dataset": "d"}, "of axolotl for plain text"),
        ({"model": "m", "train_type": "lora", "dataset": ["d"]}, "of ms-swift"),
        ({"pretrain": "m", "dataset": "d", "zero_stage": 3}, "of OpenRLHF"),
        ({"training": {"trainer_type": "TRL_SFT"}, "model": {"model_name": "m"}}, "of Oumi"),
        ({"top.model_name": "m", "train.stage": "SFT"}, "of LLaMA-Factory's board"),
        (
            {"model": {"model_name": "m"}, "dataset": "d"},
            "'model_name_or_path' is missing.*Read are recipes of",
        ),
        (
            {"model_name_or_path": "m", "finetuning_type": "lora", "export_dir": "o"},
            r"exporting.*\('export_dir'\)",
        ),
        ({**FACTORY, "stage": "pt"}, "of LLaMA-Factory for pre-training"),
        ({**FACTORY, "stage": "ppo"}, "of LLaMA-Factory for PPO"),
        ({**FACTORY, "stage": "dpo", "pref_loss": "bco"}, "of LLaMA-Factory for bco"),
        ({**FACTORY, "finetuning_type": "freeze"}, "'finetuning_type: freeze' has no equal"),
    ],
)
def test_whose_recipe_it_is_stands_in_the_refusal(content: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        convert_recipe(content)


@pytest.mark.parametrize(
    ("keys", "stage"),
    [
        ({}, "sft"),
        ({"rl": "dpo"}, "dpo"),
        ({"rl": "kto"}, "kto"),
        ({"rl": "orpo"}, "orpo"),
        ({"reward_model": True}, "reward"),
    ],
)
def test_recipes_of_axolotl_are_converted_for_the_same_stages(keys: dict[str, Any], stage: str) -> None:
    recipe, notes = convert_recipe(
        {
            **AXOLOTL,
            "adapter": "qlora",
            "load_in_4bit": True,
            "lora_r": 32,
            "lora_target_linear": True,
            "sequence_len": 1024,
            "num_epochs": 3,
            "optimizer": "adamw_bnb_8bit",
            "bf16": "auto",
            "flash_attention": True,
            "val_set_size": 0.05,
            **keys,
        },
        processes=1,
    )
    checked = check_recipe(recipe, "test")
    assert checked.stage == stage
    assert recipe["model"] == {"name": "org/base", "quantization": "nf4"}
    assert recipe["data"] == [{"name": "org/rows", "split": "train"}]
    assert recipe["lora"] == {"rank": 32, "alpha": 16, "dropout": 0.0}
    assert recipe["global_batch_size"] == 2
    kept = {"max_length": 1024, "num_train_epochs": 3, "optim": "adamw_bnb_8bit"}
    assert kept.items() <= recipe["training"].items()
    assert outcomes(notes)["(tool)"] == "changed"
    assert "unknown" not in outcomes(notes).values()


def test_every_file_and_named_column_of_axolotls_data_is_kept() -> None:
    data = [
        {"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "type": "alpaca"},
        {
            "path": "c.jsonl",
            "type": "chat_template",
            "field_messages": "talk",
            "roles_to_train": ["assistant"],
        },
        {"path": "d", "type": {"field_instruction": "ask", "field_output": "output"}, "shards": 10},
        {"path": "e", "type": "chat_template", "field_messages": "messages", "roles_to_train": ["user"]},
        {"path": "org/rows", "data_files": "f.jsonl"},
    ]
    recipe, notes = convert_recipe({**AXOLOTL, "datasets": data})
    assert recipe["data"] == [
        {"name": "a.jsonl", "split": "train"},
        {"name": "b.jsonl", "split": "train"},
        {"name": "c.jsonl", "split": "train", "columns": {"talk": "messages"}},
        {"name": "d", "split": "train", "columns": {"ask": "instruction"}},
        {"name": "e", "split": "train"},
        {"name": "org/rows", "split": "train"},
    ]
    assert check_recipe(recipe, "test").stage == "sft"
    look = [note.key for note in notes if note.outcome == "unknown"]
    assert look == ["datasets.shards", "datasets.roles_to_train", "datasets.data_files"]


@pytest.mark.parametrize(
    ("keys", "stage", "training"),
    [
        ({"stage": "sft"}, "sft", {}),
        ({"stage": "rm"}, "reward", {}),
        ({"stage": "dpo", "pref_beta": 0.2, "pref_loss": "ipo"}, "dpo", {"beta": 0.2, "loss_type": "ipo"}),
        ({"stage": "dpo", "pref_beta": 0.2, "pref_loss": "orpo"}, "orpo", {"beta": 0.2}),
        ({"stage": "kto", "kto_chosen_weight": 1.5}, "kto", {"desirable_weight": 1.5}),
    ],
)
def test_recipes_of_llama_factory_are_converted_for_the_same_stages(
    keys: dict[str, Any], stage: str, training: dict[str, Any]
) -> None:
    lora = {"finetuning_type": "lora", "lora_rank": 16, "lora_target": "q_proj,v_proj", "cutoff_len": 512}
    others = {
        "template": "llama3",
        "dataset": "a, b",
        "quantization_bit": 4,
        "do_train": True,
        "plot_loss": True,
    }
    recipe, notes = convert_recipe({**FACTORY, **lora, **others, **keys})
    assert check_recipe(recipe, "test").stage == stage
    assert recipe["data"] == [{"name": "a", "split": "train"}, {"name": "b", "split": "train"}]
    # LLaMA-Factory's own alpha is twice the rank
    assert recipe["lora"] == {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
    assert {"max_length": 512, **training}.items() <= recipe["training"].items()
    assert "unknown" not in outcomes(notes).values()


def test_an_unknown_stage_names_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'orpo'"):
        convert_recipe(FLAT, stage="orpoo")


# recipes as these tools ship them; their settings rebuilt, not their files


def axolotl(**more: Any) -> dict[str, Any]:
    return {
        **{"base_model": "org/base", "datasets": [{"path": "org/rows", "type": "chat_template"}]},
        **{"micro_batch_size": 1, "gradient_accumulation_steps": 4, "sequence_len": 2048},
        **more,
    }


def factory(**more: Any) -> dict[str, Any]:
    return {
        **{"model_name_or_path": "org/base", "stage": "sft", "finetuning_type": "lora"},
        **{"dataset": "one,two", "cutoff_len": 2048},
        **more,
    }


def test_keys_without_a_value_are_no_settings() -> None:
    """YAML reads `fp16:` as nothing; axolotl's examples have a dozen such lines."""
    recipe, notes = convert_recipe(axolotl(reward_model=True, fp16=None, deepspeed=None, num_labels=1))
    check_recipe(recipe, "mine")
    assert "fp16" not in recipe["training"]
    assert {note.key for note in notes if note.why == NO_VALUE} == {"fp16", "deepspeed"}
    recipe, _ = convert_recipe({**FLAT, "packing": True, "hub_model_id": None, "max_steps": None})
    check_recipe(recipe, "mine")


@pytest.mark.parametrize(("in_4bit", "in_8bit"), [(True, False), (False, True), (False, False)])
def test_the_quantisation_that_is_off_needs_no_line(in_4bit: bool, in_8bit: bool) -> None:
    recipe, notes = convert_recipe(
        axolotl(adapter="lora", lora_r=8, load_in_4bit=in_4bit, load_in_8bit=in_8bit)
    )
    wanted = "nf4" if in_4bit else "int8" if in_8bit else None
    assert recipe["model"].get("quantization") == wanted
    assert "unknown" not in outcomes(notes).values()


def test_names_of_keys_and_roles_that_are_recognised_need_no_line() -> None:
    mapped = {"message_property_mappings": {"role": "from", "content": "value"}}
    mapped["roles"] = {"user": ["human", "user"], "assistant": ["gpt"]}  # type: ignore[assignment]
    rows = {"path": "org/rows", "type": "chat_template", **mapped}
    _, notes = convert_recipe(axolotl(datasets=[rows]))
    told = outcomes(notes)
    assert {told["datasets.message_property_mappings"], told["datasets.roles"]} == {"left out"}
    rows["message_property_mappings"] = {"role": "who", "content": "value"}
    rows["roles"] = {"assistant": ["oracle"]}
    _, notes = convert_recipe(axolotl(datasets=[rows]))
    told = outcomes(notes)
    assert {told["datasets.message_property_mappings"], told["datasets.roles"]} == {"unknown"}


def test_a_type_that_brings_its_own_words_is_said_to_change_what_is_learned() -> None:
    _, notes = convert_recipe(axolotl(datasets=[{"path": "org/rows", "type": "alpaca"}]))
    (told,) = [note for note in notes if note.key == "datasets.type"]
    assert (told.outcome, "here the chat template's" in told.why) == ("changed", True)


@pytest.mark.parametrize("key", ["pissa_init", "use_dora", "loraplus_lr_ratio"])
def test_what_changes_an_adapter_and_has_no_equal_is_for_a_person_to_look_at(key: str) -> None:
    _, notes = convert_recipe(factory(**{key: True}))
    assert outcomes(notes)[key] == "unknown"
    _, notes = convert_recipe(factory(**{key: False}))
    assert outcomes(notes)[key] == "left out"


def test_at_most_so_many_rows_are_a_slice_of_each_source() -> None:
    recipe, _ = convert_recipe(factory(max_samples=1000))
    assert [source["split"] for source in recipe["data"]] == ["train[:1000]", "train[:1000]"]


@pytest.mark.parametrize(("given", "ours"), [(False, "none"), (True, "group"), ("batch", "batch")])
def test_rewards_scaled_or_not_in_the_words_of_an_earlier_trl(given: Any, ours: str) -> None:
    content = {**FLAT, "reward_funcs": ["accuracy"], "scale_rewards": given, "num_generations": 8}
    recipe, _ = convert_recipe(content)
    assert recipe["training"]["scale_rewards"] == ours
    check_recipe(recipe, "mine")


def test_packing_that_is_off_needs_no_line_where_nothing_is_packed() -> None:
    recipe, notes = convert_recipe(axolotl(rl="dpo", sample_packing=False))
    assert "packing" not in recipe["training"]
    assert "unknown" not in outcomes(notes).values()
