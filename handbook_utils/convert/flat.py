"""Recipes of other tools, turned into ours; nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from handbook_utils.convert.data import convert_data
from handbook_utils.convert.foreign import Foreign, read_axolotl, read_factory
from handbook_utils.convert.notes import BY_ITSELF, Note, Work, expect, shown
from handbook_utils.convert.online import OF_BOTH, convert_online, told_online
from handbook_utils.convert.tables import (
    LEFT_OUT,
    NEW_VALUES,
    OWN_KEYS,
    RENAMED,
    SAME_AS_OURS,
    SFT_LOSS,
    SFT_PACKING,
    SHARED_KEYS,
    UNPAIRED_LOSSES,
)
from handbook_utils.convert.tools import READ, refuse_methods, tool_of
from handbook_utils.errors import RecipeError, suggest
from handbook_utils.schema.fields import RUN_OWNED, trainer_fields, unread_smoothing
from handbook_utils.schema.stage_table import STAGES, training_stages
from handbook_utils.schema.training import OnlineRecipe, TrainingRecipe

# GPUs that the alignment-handbook's per-device batch sizes are meant for
PROCESSES = 8
ONLINE_STAGES = [name for name in STAGES if issubclass(STAGES[name].recipe, OnlineRecipe)]
READERS: dict[str, Callable[[Mapping[str, Any]], Foreign]] = {
    "axolotl": read_axolotl,
    "LLaMA-Factory": read_factory,
}


def convert_recipe(
    content: Mapping[str, Any], *, stage: str | None = None, processes: int = PROCESSES
) -> tuple[dict[str, Any], list[Note]]:
    """Turn a flat recipe into one of ours.

    Args:
        content: the file's mapping: `model_name_or_path`, `dataset_mixer` or `dataset_mixture`, ...
        stage: of the new recipe; None to tell it from the keys.
        processes: GPUs the file's per-device batch size was meant for.
    Returns:
        (recipe, notes): content for `check_recipe`, and what became of every key that is not simply kept.
    Raises:
        RecipeError: an accelerate config, a recipe of ours, of a tool that is not read or for a method that
            has no stage here; an unknown stage, no model or no data.

    >>> flat = {"model_name_or_path": "m", "dataset_name": "d", "max_seq_length": 64, "bf16": True}
    >>> recipe, notes = convert_recipe(flat)
    >>> recipe["stage"], recipe["global_batch_size"], recipe["training"]
    ('sft', 64, {'max_length': 64, 'packing': False, 'per_device_train_batch_size': 8})
    """
    _refuse_other_files(content)
    told = tool_of(content)
    online = told_online(content) if told is None else None
    if told is None:
        refuse_methods(content, is_online=online is not None)
        work, foreign = Work.of(content), None
        stage = _checked_stage(stage) if stage else _told_stage(work)
        _check_online(stage, online)
    else:
        foreign = READERS[told[0]](content)
        work, stage = foreign.work, _checked_stage(stage) if stage else foreign.stage
        work.note("(tool)", "changed", f"a recipe of {told[0]}, told by '{told[1]}'.")
    recipe: dict[str, Any] = {"stage": stage, "model": _model(work)}
    if lora := _lora(work) if foreign is None else foreign.lora:
        recipe["lora"] = lora
    if (seed := work.take("seed")) is not None:
        recipe["seed"] = seed
    recipe |= convert_data(work) if foreign is None else foreign.data
    if stage in ONLINE_STAGES:
        recipe |= convert_online(work, recipe["data"], processes)
        if "eval_data" in recipe:
            recipe["held_out"] = {}
            for key in ("eval_strategy", "evaluation_strategy", "eval_steps", "per_device_eval_batch_size"):
                if key in work.left:
                    work.drop(key, "`held_out.every` says how often held-out prompts are answered")
    else:
        recipe |= _batch(work, processes)
    learned_all = foreign is None and not work.left.get("assistant_only_loss")
    recipe["training"] = _training(work, stage, "eval_data" in recipe, learned_all=learned_all)
    if not recipe["training"]:
        del recipe["training"]
    return recipe, work.notes


def _refuse_other_files(content: Mapping[str, Any]) -> None:
    if "compute_environment" in content or "distributed_type" in content:
        kind = str(content.get("distributed_type", ""))
        stage = (content.get("deepspeed_config") or {}).get("zero_stage", 3)
        strategy = {"FSDP": "fsdp2", "DEEPSPEED": f"zero{stage}", "MULTI_GPU": "ddp"}.get(kind, "none")
        line = f"launch: {{strategy: {strategy}, processes: {content.get('num_processes', 1)}, "
        raise RecipeError(
            "an accelerate config, not a training recipe. In a recipe this line does its work: "
            f"{line}nodes: {content.get('num_machines', 1)}}}."
        )
    if "stage" in content and tool_of(content) is None:
        raise RecipeError(f"a recipe of ours already (stage: {content['stage']}): nothing to convert.")


def _checked_stage(stage: str) -> str:
    if stage not in (trained := training_stages()):
        raise RecipeError(f"no training stage is called '{stage}'. {suggest(stage, trained)}")
    return stage


def _check_online(stage: str, told: tuple[str, str] | None) -> None:
    if told is not None and stage not in ONLINE_STAGES:
        raise RecipeError(
            f"a recipe for {told[0].upper()} (it has '{told[1]}'), which cannot become one of stage "
            f"'{stage}': its rows are prompts. Leave --stage out, or say --stage grpo or rloo."
        )


def _told_stage(work: Work) -> str:
    """The stage by the keys that only one trainer has; else a guess, which is called one."""
    if (online := told_online(work.left)) is not None:
        stage, key = online
        is_guess = key in OF_BOTH
        why = f"{stage}, a guess: '{key}' is of GRPO and RLOO alike. For RLOO say --stage rloo."
        work.note("(stage)", "changed", why if is_guess else f"{stage}, told by '{key}'.")
        return stage
    for stage, keys in OWN_KEYS.items():
        if found := sorted(keys & work.left.keys()):
            work.note("(stage)", "changed", f"{stage}, told by '{found[0]}'.")
            return stage
    loss = work.left.get("loss_type")
    if isinstance(loss, str) and loss in UNPAIRED_LOSSES:
        work.note("(stage)", "changed", f"kto, told by 'loss_type: {loss}'.")
        return "kto"
    if found := sorted(SHARED_KEYS & work.left.keys()):
        why = f"dpo, a guess: '{found[0]}' is of DPO, ORPO and KTO alike. For those say --stage orpo or kto."
        work.note("(stage)", "changed", why)
        return "dpo"
    work.note(
        "(stage)", "changed", "sft, a guess: no key is of one method alone. Say --stage where it is another."
    )
    return "sft"


def _model(work: Work) -> dict[str, Any]:
    name = work.take("model_name_or_path")
    if not name:
        raise RecipeError(f"'model_name_or_path' is missing, so there is no model to train. {READ}")
    model = {"name": name}
    revision = work.take("model_revision")
    if revision == "main":
        work.note("model_revision", "left out", "'main' moves; pin a commit: model.revision.")
    elif revision:
        work.note("model_revision", "changed", "now model.revision.")
        model["revision"] = revision
    model |= _dtype(work) | _attention(work) | _quantization(work)
    if template := work.take("chat_template", "now model.chat_template."):
        model["chat_template"] = template
    return model


def _dtype(work: Work) -> dict[str, str]:
    key = "torch_dtype" if "torch_dtype" in work.left else "dtype"
    if key not in work.left:
        return {}
    dtype = work.take(key)
    if dtype in (None, "auto"):
        work.note(key, "left out", "model.dtype 'auto': weights that train in float32, frozen ones in bf16.")
        return {}
    work.note(
        key,
        "changed",
        f"now model.dtype. All weights in {dtype}; without it, weights that train are float32.",
    )
    return {"dtype": dtype}


def _attention(work: Work) -> dict[str, str]:
    attention = work.take("attn_implementation")
    if attention in ("sdpa", "eager"):
        work.note("attn_implementation", "changed", "now model.attention.")
        return {"attention": attention}
    if attention:
        why = "model.attention 'auto' takes FlashAttention where it is installed, SDPA elsewhere."
        work.note("attn_implementation", "left out", why)
    return {}


def _quantization(work: Work) -> dict[str, str]:
    for key in ("bnb_4bit_quant_type", "use_bnb_nested_quant"):
        if key in work.left:
            work.drop(key, "model.quantization nf4 is NF4, its scales quantised as well")
    found = {}
    for key, quantization in (("load_in_8bit", "int8"), ("load_in_4bit", "nf4")):
        if work.left.get(key):
            work.take(key, f"now model.quantization: {quantization}.")
            found["quantization"] = quantization
        elif key in work.left:
            work.drop(key, BY_ITSELF)
    return found


LORA_KEYS = {
    "lora_r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "targets",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "rslora",
}


def _lora(work: Work) -> dict[str, Any]:
    if not work.left.get("use_peft"):
        for key in [key for key in ("use_peft", *LORA_KEYS) if key in work.left]:
            work.drop(key, "without use_peft: true no adapter is trained")
        return {}
    work.take("use_peft", "the section `lora` stands for it.")
    # TRL's own values for what the file leaves open (its ModelConfig)
    lora: dict[str, Any] = {"rank": 16, "alpha": 32, "dropout": 0.05}
    for old, new in LORA_KEYS.items():
        if old in work.left:
            lora[new] = work.take(old, f"now lora.{new}.")
    return lora


def _batch(work: Work, processes: int) -> dict[str, int]:
    per_device = work.left.setdefault("per_device_train_batch_size", 8)  # the trainers' default
    steps = work.take("gradient_accumulation_steps") or 1
    for key, value in (("per_device_train_batch_size", per_device), ("gradient_accumulation_steps", steps)):
        expect(value, int, key, "a whole number")
    total = per_device * steps * processes
    sizes = f"{per_device} per device x {steps} accumulated x {processes} processes"
    why = f"global_batch_size {total} = {sizes}."
    work.note("gradient_accumulation_steps", "changed", why)
    return {"global_batch_size": total}


def _training(work: Work, stage: str, has_held_out: bool, *, learned_all: bool) -> dict[str, Any]:
    kind = STAGES[stage].recipe
    assert issubclass(kind, TrainingRecipe)  # held by `_checked_stage`
    fields = trainer_fields(kind.trainer)
    if stage == "sft" and learned_all:
        work.note("(loss)", "changed", SFT_LOSS)
    if stage == "sft" and "packing" not in work.left:
        work.left["packing"] = False
        work.note("(packing)", "changed", SFT_PACKING)
    if not has_held_out:
        for key in ("eval_strategy", "evaluation_strategy", "eval_steps", "per_device_eval_batch_size"):
            if key in work.left:
                work.drop(key, "there is no eval_data")
    for key, why in unread_smoothing(kind.trainer, work.left).items():
        work.drop(key, why)
    training: dict[str, Any] = {}
    for key, value in list(work.left.items()):
        name = _placed(work, key, value, fields)
        if name:
            training[name] = _new_value(work, name, value)
    return dict(sorted(training.items()))


def _placed(work: Work, key: str, value: Any, fields: Mapping[str, Any]) -> str | None:
    """The field of the trainer that takes a key; None where the key is left out."""
    is_nothing = (key, value) == ("packing", False) and key not in fields
    if is_nothing or (key in SAME_AS_OURS and value in SAME_AS_OURS[key]):
        work.drop(key, BY_ITSELF)
        return None
    if reason := LEFT_OUT.get(key) or RUN_OWNED.get(key):
        work.drop(key, reason)
        return None
    name = RENAMED.get(key, key)
    if name not in fields:
        work.note(key, "unknown", f"{shown(value)}: no such field of this trainer. {suggest(name, fields)}")
        return None
    if name != key:
        work.note(key, "changed", f"now training.{name}.")
    return name


def _new_value(work: Work, name: str, value: Any) -> Any:
    if not isinstance(value, str) or (name, value) not in NEW_VALUES:
        return value
    new, why = NEW_VALUES[name, value]
    work.note(name, "changed", f"'{value}' is '{new}' now: {why}.")
    return new
