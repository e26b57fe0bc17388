"""What `training:` of a recipe may hold: the fields of each trainer's TRL config, from a stored snapshot."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from handbook_utils.errors import suggest

RUN_OWNED = {
    "output_dir": "the run folder decides it (--out)",
    "seed": "set `seed` at the top of the recipe",
    "data_seed": "set `seed` at the top of the recipe",
    "gradient_accumulation_steps": "it is derived from `global_batch_size`",
    "resume_from_checkpoint": "an interrupted run resumes by itself",
    "overwrite_output_dir": "use --overwrite",
    "model_init_kwargs": "the section `model` says how the model is loaded",
    "trust_remote_code": "code from a model's repository is never run",
}


@cache
def trainer_fields(trainer: str) -> dict[str, dict[str, Any]]:
    """The stored snapshot of a TRL config's fields: type names and choices by field name."""
    text = files("handbook_utils").joinpath("schema", "trainer_fields.json").read_text(encoding="utf-8")
    fields: dict[str, dict[str, Any]] = json.loads(text)[trainer]
    return fields


PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
    "null": (type(None),),
}


def checked_field(key: str, value: Any, fields: dict[str, dict[str, Any]]) -> Any:
    """Return the value if that trainer field takes it; raise ValueError otherwise."""
    if key in RUN_OWNED:
        raise ValueError(f"'{key}' is not set under `training`: {RUN_OWNED[key]}")
    if key not in fields:
        raise ValueError(
            f"unknown key '{key}' under 'training'. {suggest(key, set(fields) - set(RUN_OWNED))}"
        )
    kinds = fields[key]["types"]
    if "any" not in kinds and not _fits(value, kinds):
        raise ValueError(f"'{key}' under 'training' takes {' or '.join(kinds)}, got {value!r}")
    choices = fields[key].get("choices")
    for item in value if isinstance(value, list) else [value]:
        if choices and isinstance(item, str) and item not in choices:
            raise ValueError(f"unknown value '{item}' for 'training.{key}'. {suggest(item, choices)}")
    return value


def _fits(value: Any, kinds: list[str]) -> bool:
    # bool is an int to Python, but `learning_rate: true` is a mistake
    if isinstance(value, bool):
        return "bool" in kinds
    return any(isinstance(value, PYTHON_TYPES[kind]) for kind in kinds)


# the losses that `label_smoothing` has an effect on
SMOOTHED_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")


def losses_of(training: dict[str, Any]) -> set[str]:
    """The losses that a recipe names; none where it leaves them to the trainer."""
    named = training.get("loss_type") or ()
    return {named} if isinstance(named, str) else set(named)


def unread_smoothing(trainer: str, training: dict[str, Any]) -> dict[str, str]:
    """Settings that smooth labels and that TRL 1.16 passes over without a word; each with why.

    Conservative DPO, the smoothed sigmoid loss, is gone from TRL; the losses of `SMOOTHED_LOSSES` are left.
    """
    unread = {}
    is_smoothed = trainer == "dpo" and training.get("label_smoothing")
    if is_smoothed and losses_of(training).isdisjoint(SMOOTHED_LOSSES):
        unread["label_smoothing"] = (
            f"TRL reads it for the losses {', '.join(SMOOTHED_LOSSES)} alone, and no longer for sigmoid; "
            "where that share of all pairs is the wrong way round, take `training.loss_type` robust"
        )
    if training.get("label_smoothing_factor") and trainer != "sft":
        unread["label_smoothing_factor"] = "TRL reads it for sft alone"
    return unread


# what a recipe says in one place only, and where
ONLINE_OWNED = {
    "num_generations": "`samples` says how many answers a prompt gets",
    "num_generations_eval": "`held_out.samples` says it",
    "max_completion_length": "`max_new_tokens` says it",
    "temperature": "`temperature` of the recipe says it",
    "max_steps": "`steps` says it",
    "num_train_epochs": "`steps` says how long it trains",
    "reward_weights": "`weights` says it, by the names of the scorers",
    "eval_strategy": "`held_out.every` says how often held-out prompts are answered",
    "log_completions": "all answers are stored in the run folder",
    "remove_unused_columns": "scorers find a row by its prompt",
    "rollout_func": "answers are sampled in the training process",
}
_PLAIN = "the loss takes answers to be drawn at `temperature` alone"
# what would make the loss model another sampler, or split a rollout; each with the one value that does not
ONLINE_FIXED: dict[str, tuple[Any, str]] = {
    "top_p": (1.0, _PLAIN),
    "top_k": (0, _PLAIN),
    "min_p": (None, _PLAIN),
    "repetition_penalty": (1.0, _PLAIN),
    "generation_kwargs": (None, _PLAIN),
    "cache_implementation": (None, _PLAIN),
    **dict.fromkeys(
        ("steps_per_generation", "generation_batch_size"),
        (None, "each rollout is learned from as a whole, in one optimiser step or `num_iterations` of them"),
    ),
    "use_vllm": (False, "answers are sampled in the training process"),
    "use_transformers_continuous_batching": (False, "answers are sampled by the handbook's own engine"),
    "disable_dropout": (True, "with dropout the policy that samples is not the one that learns"),
    "sync_ref_model": (False, "the reference is the model that training starts from"),
    "top_entropy_quantile": (1.0, "the quantile would be of the rows that happen to share a pass"),
    "chat_template_kwargs": (None, "prompts are rendered by the handbook, as in every other stage"),
    "use_liger_kernel": (False, "it replaces the head that computes log-probabilities"),
}
# TRL looks at these only after the first rollout
ONLINE_CHOICES = {
    "loss_type": ("grpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo", "bnpo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


def check_online_fields(training: dict[str, Any], samples: int) -> None:
    """Raise ValueError for a field that would split groups, or have the loss model another sampler.

    Args:
        training: of a recipe of an online stage, each field checked by itself.
        samples: answers per prompt.
    """
    for name, value in training.items():
        if name in ONLINE_OWNED:
            raise ValueError(f"'{name}' is not set under `training`: {ONLINE_OWNED[name]}.")
        if name.startswith("vllm_"):
            raise ValueError(f"'{name}' is not set under `training`: {ONLINE_FIXED['use_vllm'][1]}.")
        if name in ONLINE_CHOICES and value not in ONLINE_CHOICES[name]:
            near = suggest(str(value), ONLINE_CHOICES[name])
            raise ValueError(f"unknown value '{value}' for 'training.{name}'. {near}")
        fixed = ONLINE_FIXED.get(name)
        if fixed is not None and value not in (fixed[0], None):
            raise ValueError(f"`training.{name}` is {value!r} and has to be {fixed[0]!r}: {fixed[1]}.")
    if training.get("loss_type") == "bnpo":
        raise ValueError(
            "`training.loss_type` bnpo divides by the tokens of a pass, so it changes with the rows that "
            "share one. Take dapo, which divides by the tokens of the step."
        )
    rows = training.get("per_device_train_batch_size")
    if rows is not None and rows % samples:
        raise ValueError(
            f"`training.per_device_train_batch_size` {rows} would split groups of {samples} answers: take a "
            f"multiple of {samples}."
        )
    iterations, save = training.get("num_iterations", 1), training.get("save_steps")
    if iterations > 1 and (training.get("save_strategy") == "epoch" or (save and save % iterations)):
        raise ValueError(
            f"a rollout is learned from in {iterations} steps (`num_iterations`), and a run that resumes "
            f"inside one would draw other answers: set `training.save_steps` to a multiple of {iterations}."
        )
