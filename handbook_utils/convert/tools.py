"""Whose recipe a file is, by the keys that only that tool has, and which methods are not of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handbook_utils.errors import RecipeError

# keys of one tool alone, the most telling first
TOOLS = {
    "LLaMA-Factory": (
        "finetuning_type",
        "cutoff_len",
        "lora_target",
        "pref_beta",
        "dataset_dir",
        "stage_template",
    ),
    "axolotl": ("base_model", "micro_batch_size", "sequence_len", "val_set_size", "sample_packing"),
}
# tools that are known by name only, by keys that stand together in their files, at the top or below it
OTHERS = (
    ("torchtune", {"_component_"}),
    ("verl", {"actor_rollout_ref"}),
    ("AutoTrain", {"task", "project_name"}),
    ("NeMo", {"exp_manager"}),
    ("ms-swift", {"rlhf_type"}),
    ("ms-swift", {"train_type", "dataset"}),
    ("ms-swift", {"tuner_type", "dataset"}),
    ("LLaMA-Factory's board", {"top.model_name"}),
    ("OpenRLHF", {"pretrain", "zero_stage"}),
    ("Oumi", {"trainer_type", "model_name"}),
    ("LitGPT", {"checkpoint_dir", "data"}),
)
# methods of TRL and the alignment-handbook that have no stage here, by keys of theirs alone
METHODS = {
    "GRPO, RLOO or online DPO": ("use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "vllm_server_host"),
    "PPO": (
        "num_ppo_epochs",
        "cliprange",
        "cliprange_value",
        "reward_model_path",
        "whiten_rewards",
        "vf_coef",
    ),
    "RLOO of TRL before 0.22": ("rloo_k",),
    "online DPO": ("missing_eos_penalty", "judge"),
    "GKD": ("teacher_model_name_or_path", "lmbda", "seq_kd"),
    "a process reward model": ("step_separator", "train_on_last_step_only"),
    "NashMD": ("mixture_coef",),
}
READ = (
    "Read are recipes of TRL, the alignment-handbook, open-r1, axolotl and LLaMA-Factory, for SFT, DPO, "
    "ORPO, CPO, KTO, reward models, GRPO and RLOO."
)


def tool_of(content: Mapping[str, Any]) -> tuple[str, str] | None:
    """The tool whose file this is, and the key that tells; None for a flat file as TRL has them.

    Raises:
        RecipeError: it is of a tool that is not read.

    >>> tool_of({"base_model": "org/base", "micro_batch_size": 2})
    ('axolotl', 'base_model')
    """
    below = {key for value in content.values() if isinstance(value, Mapping) for key in value}
    for other, together in OTHERS:
        if together <= content.keys() | below:
            found = "' and '".join(sorted(together))
            raise RecipeError(f"a recipe of {other} (it has '{found}'), which is not read. {READ}")
    for tool, keys in TOOLS.items():
        for key in keys:
            if key in content:
                return tool, key
    if content.get("stage") in ("pt", "rm"):
        return "LLaMA-Factory", "stage"
    return None


def refuse_methods(content: Mapping[str, Any], *, is_online: bool = False) -> None:
    """Raise RecipeError for a recipe of a method that has no stage here.

    Args:
        content: the file's mapping.
        is_online: other keys say that it is for GRPO or RLOO, so those of sampling say nothing.
    """
    for method, keys in METHODS.items():
        found = next((key for key in keys if key in content), None)
        if is_online and method.startswith("GRPO"):
            continue
        if found:
            raise RecipeError(
                f"a recipe for {method} (only that has '{found}'), and no stage does {method} yet. "
                "Nothing of it can be converted; `handbook recipes --methods` lists the stages."
            )
