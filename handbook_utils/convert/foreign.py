"""Recipes of axolotl and LLaMA-Factory, with their datasets, as the TRL keys that `flat.py` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handbook_utils.convert.notes import BY_ITSELF, Work, expect, shown
from handbook_utils.errors import RecipeError

_FORMAT = "the format of a source's rows is recognised; write data[].format where it is not"
_SPEED = "speed or memory only; `handbook train --dry-run` plans both"
_TEMPLATE = "the tokenizer's own chat template is used; for one without, write model.chat_template"
_TOKENS = (
    "the tokenizer's own tokens are used, and the end of a turn that its chat template writes is learned"
)
_RUNS = "the run folder decides"
_LAUNCH = "how processes share the work is said by `launch: {strategy: ...}`"

_PLAIN_TEXT = (
    "plain text, of which every token is learned: only the stage `pretrain` does that, and its recipes are "
    "written by hand"
)
# where axolotl's data sets name columns, and what these are called here
_AXOLOTL_COLUMNS = {
    "field_messages": "messages",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
    "field_prompt": "prompt",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
    "field_completion": "completion",
    "field_label": "label",
}
# how messages name their keys, and who speaks, where that is recognised
_KEYS: dict[str, dict[str, set[str]]] = {
    "message_property_mappings": {"role": {"role", "from"}, "content": {"content", "value"}},
    "roles": {
        "system": {"system"},
        "user": {"user", "human"},
        "assistant": {"assistant", "gpt", "model"},
        "tool": {"tool", "function"},
    },
}
# new names of keys whose values stay
AXOLOTL_NAMES = {
    "base_model": "model_name_or_path",
    "revision_of_model": "model_revision",
    "sequence_len": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "sample_packing": "packing",
    "rl_beta": "beta",
    "orpo_alpha": "beta",
    "dpo_beta": "beta",
    "kto_desirable_weight": "desirable_weight",
    "kto_undesirable_weight": "undesirable_weight",
}
AXOLOTL_LEFT_OUT = {
    **dict.fromkeys(
        ("model_type", "tokenizer_type", "base_model_config", "tokenizer_config"), "the model's files say it"
    ),
    **dict.fromkeys(
        ("is_llama_derived_model", "is_mistral_derived_model", "strict", "local_rank", "debug"), BY_ITSELF
    ),
    **dict.fromkeys(("chat_template", "default_system_message"), _TEMPLATE),
    **dict.fromkeys(("special_tokens", "eot_tokens"), _TOKENS),
    **dict.fromkeys(("dataset_prepared_path", "shuffle_merged_datasets", "dataset_processes"), _RUNS),
    **dict.fromkeys(("evals_per_epoch", "saves_per_epoch", "eval_table_size", "eval_max_new_tokens"), _RUNS),
    **dict.fromkeys(("resume_from_checkpoint", "auto_resume_from_checkpoints", "save_safetensors"), _RUNS),
    **dict.fromkeys(
        ("flash_attention", "xformers_attention", "sdp_attention", "tf32", "pad_to_sequence_len"), _SPEED
    ),
    **dict.fromkeys(("eval_sample_packing", "sample_packing_eff_est", "group_by_length", "plugins"), _SPEED),
    **dict.fromkeys(
        ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "unsloth_cross_entropy_loss"), _SPEED
    ),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "fsdp_version"), _LAUNCH),
    **dict.fromkeys(("wandb_watch", "wandb_name", "wandb_log_model", "wandb_run_id", "use_wandb"), _RUNS),
    "num_labels": "a reward model gives one number",
    "val_set_size": "no rows are split off; name held-out rows in eval_data",
    "train_on_inputs": "loss always falls on the answers only",
    "early_stopping_patience": "a run trains as long as its recipe says",
    "lora_model_dir": "to go on from an adapter, name it as the model and write model.adapter",
}
FACTORY_NAMES = {
    "cutoff_len": "max_length",
    "pref_beta": "beta",
    "kto_chosen_weight": "desirable_weight",
    "kto_rejected_weight": "undesirable_weight",
}
FACTORY_LEFT_OUT = {
    **dict.fromkeys(("template", "default_system", "enable_thinking"), _TEMPLATE),
    **dict.fromkeys(("dataset_dir", "media_dir"), "data sources are named by path or hub name"),
    **dict.fromkeys(("overwrite_cache", "overwrite_output_dir", "plot_loss", "save_only_model"), _RUNS),
    **dict.fromkeys(("resume_from_checkpoint", "ddp_timeout", "export_dir"), _RUNS),
    **dict.fromkeys(
        ("flash_attn", "neat_packing", "upcast_layernorm", "use_unsloth", "enable_liger_kernel"), _SPEED
    ),
    **dict.fromkeys(("deepspeed", "fsdp"), _LAUNCH),
    "val_size": "no rows are split off; name held-out rows in eval_data",
    "do_predict": "`handbook evaluate` does it",
    "quantization_method": "model.quantization is bitsandbytes'",
    "train_on_prompt": "loss always falls on the answers only",
    "adapter_name_or_path": "to go on from an adapter, name it as the model and write model.adapter",
    "ref_model": "the reference is the model that training starts from",
}
# what changes what is learned, and has no equal here
_STARTS_AT_ZERO = "an adapter starts without effect here; another start is no setting of a recipe"
NO_EQUAL = {
    **dict.fromkeys(("pissa_init", "pissa_iter", "pissa_convert", "peft_init_lora_weights"), _STARTS_AT_ZERO),
    **dict.fromkeys(("loftq_config", "peft.loftq_config"), _STARTS_AT_ZERO),
    **dict.fromkeys(("use_dora", "peft_use_dora"), "DoRA is read and merged here, and not trained"),
    "loraplus_lr_ratio": "both matrices of an adapter have one learning rate here",
    "unfrozen_parameters": "all weights are trained, or an adapter; name its modules in lora.targets",
    "tokens": "tokens are not added in training; add them to the model's files first",
}
_NO_TRAINING = ("export_dir", "infer_backend", "eval_dataset", "task")
_FACTORY_STAGES = {"sft": "sft", "rm": "reward", "dpo": "dpo", "kto": "kto", "orpo": "orpo"}


@dataclass
class Foreign:
    """A file of another tool, read.

    Attributes:
        stage: of the new recipe.
        work: what is left of it, in TRL's keys, with the notes so far.
        data: `data` and, where held-out rows are named, `eval_data`.
        lora: the section; empty for none.
    """

    stage: str
    work: Work
    data: dict[str, Any]
    lora: dict[str, Any] = field(default_factory=dict)


def read_axolotl(content: Mapping[str, Any]) -> Foreign:
    """Read axolotl's keys.

    Raises:
        RecipeError: a method, an adapter or data that have no equal here.
    """
    work = Work.of(content)
    stage = _axolotl_stage(work)
    adapter = work.take("adapter", "now the section `lora`.")
    if adapter not in (None, "", "lora", "qlora"):
        raise RecipeError(f"'adapter: {adapter}' has no equal here; lora and qlora have.")
    lora = {"rank": 8, "alpha": 16, "dropout": 0.0} if adapter else {}
    targets = work.take("lora_target_modules", "now lora.targets.")
    if work.take("lora_target_linear", "lora.targets covers all linear layers by default."):
        targets = None
    names = {"lora_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    names |= {"lora_modules_to_save": "modules_to_save", "peft_use_rslora": "rslora"}
    _fill_lora(work, lora, names, targets)
    data = {"data": _axolotl_sources(work, "datasets")}
    if "test_datasets" in work.left:
        data["eval_data"] = _axolotl_sources(work, "test_datasets")
    _rename(work, AXOLOTL_NAMES, AXOLOTL_LEFT_OUT)
    for key in ("bf16", "fp16"):
        if work.left.get(key) == "auto":
            work.drop(key, BY_ITSELF)
    return Foreign(stage, work, data, lora)


def read_factory(content: Mapping[str, Any]) -> Foreign:
    """Read LLaMA-Factory's keys.

    Raises:
        RecipeError: a stage, a loss or a kind of training that have no equal here.
    """
    work = Work.of(content)
    if "dataset" not in work.left and (other := next((k for k in _NO_TRAINING if k in work.left), None)):
        raise RecipeError(
            f"a file of LLaMA-Factory for exporting or asking a model ('{other}'), not for training."
        )
    stage = _factory_stage(work)
    kind = work.take("finetuning_type", "now the section `lora`, or none.") or "lora"
    if kind not in ("lora", "full"):
        raise RecipeError(f"'finetuning_type: {kind}' has no equal here; lora and full have.")
    lora: dict[str, Any] = {}
    targets = work.take("lora_target", "now lora.targets.")
    if kind == "lora":
        rank = work.take("lora_rank", "now lora.rank.") or 8
        lora = {"rank": rank, "alpha": work.take("lora_alpha", "now lora.alpha.") or 2 * rank, "dropout": 0.0}
    if isinstance(targets, str):
        targets = None if targets == "all" else [name.strip() for name in targets.split(",")]
    names = {"lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_rslora": "rslora"}
    _fill_lora(work, lora, names | {"additional_target": "modules_to_save"}, targets)
    for key in ("quantization_bit",):
        bits = work.take(key, "now model.quantization.")
        if bits not in (None, 4, 8):
            raise RecipeError(f"'{key}: {bits}' has no equal here; 4 and 8 have.")
        if bits:
            work.left["load_in_4bit" if bits == 4 else "load_in_8bit"] = True
    data = {"data": _factory_sources(work, "dataset")}
    if work.left.get("eval_dataset"):
        data["eval_data"] = _factory_sources(work, "eval_dataset")
    if isinstance(most := work.take("max_samples", "now data[].split: each source's first rows."), int):
        for source in data["data"]:
            source["split"] += f"[:{most}]"
    _rename(work, FACTORY_NAMES, FACTORY_LEFT_OUT)
    return Foreign(stage, work, data, lora)


def _axolotl_stage(work: Work) -> str:
    method = work.take("rl", "it names the stage.")
    if work.left.get("process_reward_model"):
        raise RecipeError("a recipe of axolotl for a process reward model, and no stage does that yet.")
    if "datasets" not in work.left and work.left.get("pretraining_dataset"):
        raise RecipeError(f"a recipe of axolotl for {_PLAIN_TEXT} ('pretraining_dataset').")
    if work.take("reward_model"):
        return "reward"
    if method == "ipo":
        work.left["loss_type"] = "ipo"
        return "dpo"
    if method == "simpo":
        work.left["loss_type"] = "simpo"
        if "cpo_alpha" not in work.left:
            why = "not said, so TRL's 1.0 adds the chosen answers' likelihood, there as here; SimPO has 0."
            work.note("cpo_alpha", "changed", why)
        return "cpo"
    if method not in (None, False, "dpo", "kto", "orpo"):
        raise RecipeError(
            f"a recipe of axolotl for {str(method).upper()} ('rl'), and no stage does that yet."
        )
    return str(method or "sft")


def _factory_stage(work: Work) -> str:
    named = work.take("stage", "the names of some stages differ.") or "sft"
    loss = work.take("pref_loss", "now the stage, or training.loss_type.")
    if named not in _FACTORY_STAGES:
        what = {"pt": "pre-training on plain text", "ppo": "PPO"}.get(str(named), f"the stage '{named}'")
        raise RecipeError(f"a recipe of LLaMA-Factory for {what}, and no stage does that yet.")
    if named != "dpo" or loss in (None, "sigmoid"):
        return _FACTORY_STAGES[named]
    if loss == "orpo":
        return "orpo"
    if loss == "simpo":  # without the chosen answer's likelihood, unless asked for
        work.left["loss_type"] = "simpo"
        work.left["cpo_alpha"] = work.take("pref_ftx", "now training.cpo_alpha.") or 0.0
        return "cpo"
    if loss not in ("hinge", "ipo"):
        raise RecipeError(f"a recipe of LLaMA-Factory for {loss} ('pref_loss'), and no stage does that yet.")
    work.left["loss_type"] = loss
    return "dpo"


def _fill_lora(work: Work, lora: dict[str, Any], names: Mapping[str, str], targets: Any) -> None:
    for old, new in names.items():
        if old not in work.left:
            continue
        if not lora:
            work.drop(old, "no adapter is trained")
            continue
        value = work.take(old, f"now lora.{new}.")
        if new == "modules_to_save" and isinstance(value, str):
            value = value.split(",")
        if value is not None:
            lora[new] = value
    if lora and targets:
        lora["targets"] = targets


def _axolotl_sources(work: Work, key: str) -> list[dict[str, Any]]:
    items = work.take(key, "now a source per line.")
    expect(items, list, key, "a list of data sets")
    sources = []
    for item in items:
        expect(item, Mapping, key, "a list of mappings")
        expect(item.get("path"), str, f"{key}.path", "a name")
        if item.get("type") in ("completion", "pretrain"):
            raise RecipeError(f"'{key}' holds {_PLAIN_TEXT} ('type: {item['type']}').")
        columns = _axolotl_columns(item)
        for name in _axolotl_files(work, key, item):
            sources.append({"name": name, "split": item.get("split") or "train"})
            if item.get("name"):
                sources[-1]["subset"] = item["name"]
            if columns:
                sources[-1]["columns"] = columns
        if columns:
            work.note(f"{key}.type", "changed", "columns that it names are now in data[].columns.")
        known = ("path", "split", "name", "data_files", "ds_type", *_AXOLOTL_COLUMNS)
        for inner, value in item.items():
            if inner in known or (inner == "type" and isinstance(value, Mapping)):
                continue
            if inner == "type" and not _is_by_template(value):
                why = f"{shown(value)}: its own words stand around each turn there, here the chat template's."
                work.note(f"{key}.type", "changed", f"{why} A model without one needs model.chat_template.")
            elif inner in ("type", "chat_template", "conversation"):
                work.note(f"{key}.{inner}", "left out", f"{shown(value)}: {_FORMAT}.")
            elif inner in _KEYS and _are_usual(inner, value):
                work.note(f"{key}.{inner}", "left out", f"{shown(value)}: such names are recognised.")
            elif (inner, value) in (("roles_to_train", ["assistant"]), ("train_on_eos", "turn")):
                work.note(f"{key}.{inner}", "left out", f"{shown(value)}: {BY_ITSELF}.")
            else:
                work.note(
                    f"{key}.{inner}", "unknown", f"{shown(value)}: no equal here; look whether it matters."
                )
    if not sources:
        raise RecipeError(f"'{key}' names no data.")
    return sources


def _is_by_template(kind: Any) -> bool:
    """Whether a data set's type renders with the chat template, and not with words of its own."""
    return not isinstance(kind, str) or "chat_template" in kind or kind in ("sharegpt", "input_output")


def _are_usual(inner: str, value: Any) -> bool:
    """Whether keys and roles of messages have names that are recognised."""
    if not isinstance(value, Mapping) or not value.keys() <= _KEYS[inner].keys():
        return False
    return all(
        {named} <= _KEYS[inner][ours] if isinstance(named, str) else set(named) <= _KEYS[inner][ours]
        for ours, named in value.items()
    )


def _axolotl_files(work: Work, key: str, item: Mapping[str, Any]) -> list[str]:
    """Names of what one data set reads: each of its files is a source."""
    files = item.get("data_files")
    if not files:
        return [item["path"]]
    names = [files] if isinstance(files, str) else files
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        if item["path"] in ("json", "csv", "parquet", "arrow", "text"):
            return names
        work.note(
            f"{key}.data_files",
            "unknown",
            f"{shown(files)}: name these files of '{item['path']}' one by one.",
        )
        return [item["path"]]
    raise RecipeError(f"'{key}.data_files' should be a file or a list of files, found {shown(files)}.")


def _axolotl_columns(item: Mapping[str, Any]) -> dict[str, str]:
    """Our names of the columns that a data set, or its own `type`, names."""
    own = item["type"] if isinstance(item.get("type"), Mapping) else {}
    named = {key: {**item, **own}.get(key) for key in _AXOLOTL_COLUMNS}
    return {
        theirs: ours
        for key, ours in _AXOLOTL_COLUMNS.items()
        if isinstance(theirs := named[key], str) and theirs != ours
    }


def _factory_sources(work: Work, key: str) -> list[dict[str, Any]]:
    why = "names of LLaMA-Factory's dataset_info.json: write the file, folder or hub name that stands there."
    named = work.take(key, why)
    names = named if isinstance(named, list) else str(named or "").split(",")
    sources = [{"name": str(name).strip(), "split": "train"} for name in names if str(name).strip()]
    if not sources:
        raise RecipeError(f"'{key}' names no data.")
    return sources


def _rename(work: Work, names: Mapping[str, str], left_out: Mapping[str, str]) -> None:
    for key in list(work.left):
        if key in left_out:
            work.drop(key, left_out[key])
        elif key in NO_EQUAL:
            value = work.left.pop(key)
            work.note(key, "unknown" if value else "left out", f"{shown(value)}: {NO_EQUAL[key]}.")
        elif key in names:
            value = work.take(key, f"now {names[key]}.")
            if value is not None:
                work.left[names[key]] = value
