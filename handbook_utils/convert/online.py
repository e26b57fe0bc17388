"""Recipes of TRL and open-r1 for GRPO and RLOO: groups, steps, and their reward functions as scorers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from handbook_utils.convert.notes import Work, expect, shown
from handbook_utils.errors import RecipeError
from handbook_utils.schema.fields import ONLINE_FIXED

# keys that tell the method; of both alike: grpo is the guess
GRPO_ONLY = ("reward_funcs", "scale_rewards", "epsilon_high", "importance_sampling_level", "delta")
RLOO_ONLY = ("normalize_advantages", "reward_clip_range")
OF_BOTH = (
    *("num_generations", "steps_per_generation", "mask_truncated_completions", "log_completions"),
    *("reward_weights", "num_iterations", "num_completions_to_print"),
)
# open-r1's template of thoughts and answer, and TRL's
_OPEN_R1_FORMAT = r"(?s)\s*<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>\s*"
_TRL_FORMAT = r"(?s)(?!.*<think>.*<think>).*</think>.*"
_STEPS_UNKNOWN = 500
_WRITE = (
    "write a function of (prompt messages, answer text) that gives a number, put its module on PYTHONPATH, "
    "and run with --allow-code"
)


def told_online(content: Mapping[str, Any]) -> tuple[str, str] | None:
    """The online stage that a file is for, and the key that tells; None for none.

    >>> told_online({"reward_funcs": ["accuracy"], "beta": 0.04}), told_online({"beta": 0.1})
    (('grpo', 'reward_funcs'), None)
    """
    for stage, keys in (("rloo", RLOO_ONLY), ("grpo", GRPO_ONLY), ("grpo", OF_BOTH)):
        if found := next((key for key in keys if key in content), None):
            return stage, found
    return None


def convert_online(work: Work, sources: list[dict[str, Any]], processes: int) -> dict[str, Any]:
    """What a recipe of an online stage has beside model, data and training.

    Args:
        work: what is left of the file, its data read.
        sources: the new `data`; the column that holds prompts is named in each.
        processes: GPUs the file's per-device batch size was meant for.
    Raises:
        RecipeError: a batch that is no whole number of groups, or values of another kind.
    """
    _name_prompts(work, sources)
    samples = work.take("num_generations", "now `samples`.") or 8
    expect(samples, int, "num_generations", "a whole number")
    recipe: dict[str, Any] = {
        "prompts_per_step": _prompts(work, samples, processes),
        "samples": samples,
        "steps": _steps(work),
    }
    recipe["max_new_tokens"] = work.take("max_completion_length", "now `max_new_tokens`.") or 256
    if (temperature := work.take("temperature", "now `temperature`.")) is not None:
        recipe["temperature"] = temperature
    scorers = _scorers(work, sources[0])
    weights = work.take("reward_weights", "now `weights`, by the names of the scorers.")
    if weights is not None:
        expect(weights, list, "reward_weights", "a list of numbers")
        if len(weights) != len(scorers):
            raise RecipeError(f"'reward_weights' names {len(weights)} for {len(scorers)} reward functions.")
        recipe["weights"] = dict(zip(scorers, weights, strict=True))
    recipe["scorers"] = scorers
    if isinstance(work.left.get("scale_rewards"), bool):  # until TRL 0.22
        new = "group" if work.left["scale_rewards"] else "none"
        work.note("scale_rewards", "changed", f"'{new}' now, which says the same.")
        work.left["scale_rewards"] = new
    _drop_sampler(work)
    return recipe


def _name_prompts(work: Work, sources: list[dict[str, Any]]) -> None:
    column = work.take("dataset_prompt_column", "now data[].columns.")
    for source in sources:
        source["format"] = "prompt"
        if column not in (None, "prompt"):
            source["columns"] = {str(column): "prompt"}
    if (system := work.take("system_prompt")) is not None:
        work.note("system_prompt", "unknown", f"{shown(system)}: put it into the rows, as a first message.")


def _prompts(work: Work, samples: int, processes: int) -> int:
    """Prompts per step: TRL's batch counts answers."""
    per_device = work.left.pop("per_device_train_batch_size", 8)  # the trainers' default
    passes = work.left.pop("gradient_accumulation_steps", None) or 1
    for key, value in (("per_device_train_batch_size", per_device), ("gradient_accumulation_steps", passes)):
        expect(value, int, key, "a whole number")
    answers = per_device * passes * processes
    if answers % samples:
        raise RecipeError(
            f"{per_device} per device x {passes} accumulated x {processes} processes are {answers} answers, "
            f"no whole number of groups of {samples} ('num_generations'). Say --processes as it was meant."
        )
    why = f"prompts_per_step {answers // samples} = {per_device} per device x {passes} accumulated x "
    work.note("per_device_train_batch_size", "changed", f"{why}{processes} processes / {samples} answers.")
    return int(answers // samples)


def _steps(work: Work) -> int:
    steps, epochs = work.left.pop("max_steps", -1), work.left.pop("num_train_epochs", None)
    if isinstance(steps, int) and steps > 0:
        work.note("max_steps", "changed", "now `steps`.")
        return steps
    why = f"{epochs or 3} epochs, and `steps` are epochs x prompts / prompts_per_step: nobody counted "
    work.note("num_train_epochs", "unknown", f"{why}them. {_STEPS_UNKNOWN} stands there; write yours.")
    return _STEPS_UNKNOWN


def _scorers(work: Work, dataset: dict[str, Any]) -> dict[str, Any]:
    """Each reward function as a scorer; one that has no equal here is a function still to be written."""
    named = work.take("reward_funcs") or []
    named = [named] if isinstance(named, str) else named
    expect(named, list, "reward_funcs", "a list of names")
    if (model := work.take("reward_model_name_or_path", "now one of `scorers`.")) is not None:
        named = [*named, model]
    scorers: dict[str, Any] = {}
    for function in map(str, named):
        section, outcome, why = _scorer(function, dataset)
        name = re.sub(r"\W+", "_", function.rpartition(".")[2].rpartition("/")[2]).strip("_")
        scorers[name or "reward"] = section
        work.note(f"reward_funcs.{function}", "changed" if outcome else "unknown", why)
    if not scorers:
        work.note("reward_funcs", "unknown", f"none is named. scorers.reward stands for yours: {_WRITE}.")
        scorers["reward"] = _function("reward")
    return scorers


def _scorer(function: str, dataset: dict[str, Any]) -> tuple[dict[str, Any], bool, str]:
    """A scorer, whether it does the same, and what to say of it."""
    if function in ("accuracy", "accuracy_reward"):
        section = {"kind": "answer", "answers": dict(dataset), "column": "solution"}
        why = "now `kind: answer`: right answers stand in the column 'solution' of the data; see scorers."
        return section, True, why
    if function in ("format", "think_format_reward"):
        pattern = _OPEN_R1_FORMAT if function == "format" else _TRL_FORMAT
        return {"kind": "regex", "pattern": pattern, "whole": True}, True, "now `kind: regex`."
    if "/" in function:
        return {"name": function}, True, "a reward model; now a scorer of that name."
    if "." in function:
        module, _, name = function.rpartition(".")
        why = f"'{name}' of yours gets lists there, and here one prompt and one answer at a time: {_WRITE}."
        return _function(name, module), False, why
    return _function(function), False, f"no equal here. scorers.{function} stands for yours: {_WRITE}."


def _function(name: str, module: str = "my_rewards") -> dict[str, Any]:
    plain = re.sub(r"\W+", "_", name)
    return {"kind": "function", "function": f"{module}:{plain}", "allow_code": True}


def _drop_sampler(work: Work) -> None:
    for key in list(work.left):
        if key.startswith("vllm_"):
            work.drop(key, ONLINE_FIXED["use_vllm"][1])
        elif key in ONLINE_FIXED:
            neutral, why = ONLINE_FIXED[key]
            if work.left[key] in (neutral, None):
                work.left.pop(key)
            elif key in ("use_vllm", "use_transformers_continuous_batching", "use_liger_kernel"):
                work.drop(key, why)
            else:
                value = shown(work.left.pop(key))
                work.note(key, "unknown", f"{value}: {why}, so this cannot be had.")
    for key, why in (
        ("max_prompt_length", "`long_prompts` says what becomes of prompts beyond the window"),
        ("log_completions", "all answers are stored in the run folder"),
        ("num_completions_to_print", "all answers are stored in the run folder"),
        ("remove_unused_columns", "scorers find a row by its prompt"),
        ("num_generations_eval", "`held_out.samples` says it"),
    ):
        if key in work.left:
            work.drop(key, why)
