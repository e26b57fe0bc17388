"""What becomes of the keys of other recipes: new names, new values, and what has no equivalent and why."""

from __future__ import annotations

# keys that only one trainer has
OWN_KEYS = {
    "kto": {"desirable_weight", "undesirable_weight"},
    "reward": {"center_rewards_coefficient"},
    "cpo": {"cpo_alpha", "simpo_gamma"},
    "sft": {
        *("packing", "packing_strategy", "max_seq_length", "assistant_only_loss", "completion_only_loss"),
        *("dataset_text_field", "eval_packing", "neftune_noise_alpha", "dataset_kwargs"),
    },
    "dpo": {
        *("ref_model_sync_steps", "ref_model_mixup_alpha", "sync_ref_model", "rpo_alpha", "use_weighting"),
        *("f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "discopop_tau", "loss_weights"),
    },
}
# keys of DPO, ORPO and KTO alike, and losses of single answers
SHARED_KEYS = {
    *("beta", "loss_type", "max_prompt_length", "max_completion_length", "precompute_ref_log_probs"),
    *("label_smoothing", "reference_free", "disable_dropout"),
}
UNPAIRED_LOSSES = {"kto", "apo_zero_unpaired"}

# how the names of official test splits start
HELD_OUT = ("test", "val", "eval", "heldout")

SFT_LOSS = (
    "loss falls on the answers only; there, without assistant_only_loss, every token was learned, "
    "the user's and the system's too."
)

SFT_PACKING = (
    "false is written out, for its batch counts conversations; a recipe of ours that does not say packs them."
)

RENAMED = {
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
    # a number below 1 is a share of all steps
    "warmup_ratio": "warmup_steps",
}

NEW_VALUES = {
    ("packing_strategy", "ffd"): ("bfd", "best fit takes the place of first fit"),
}

# values that need no line of their own
SAME_AS_OURS: dict[str, list[object]] = {
    "max_steps": [-1],
    "do_train": [True],
    "do_eval": [True, False],
    "bf16": [True],
    "gradient_checkpointing": [True],
    "gradient_checkpointing_kwargs": [{"use_reentrant": False}],
    "remove_unused_columns": [True, False],
    "average_tokens_across_devices": [True],
    "eval_strategy": ["no"],
    "optim": ["adamw_torch"],
}

_SENDS = "nothing is sent anywhere; upload the run's model/ yourself when you want to"
_SAVES = "the run folder decides: ten checkpoints per run, the last two kept, resumed automatically"
_ANSWERS = "loss always falls on the answers only"
_WORKERS = "speed only: this machine's cores share SFT's rows; training.dataset_num_proc sets their number"
_LOGS = "metrics.jsonl holds every logged step; training.report_to sends them elsewhere as well"

LEFT_OUT = {
    "dataset_num_proc": _WORKERS,
    "preprocessing_num_workers": _WORKERS,
    "dataset_streaming": "write `streaming: true` where it is wanted; it needs training.max_steps",
    "dataset_kwargs": "templates are rendered with their own special tokens, and nothing is added",
    "dataset_text_field": "a source's format says what its columns are",
    "max_prompt_length": "gone from TRL: max_length alone cuts, at the end of the answer",
    "assistant_only_loss": _ANSWERS,
    "completion_only_loss": _ANSWERS,
    "use_flash_attention_2": "model.attention 'auto' takes FlashAttention where it is installed",
    "tokenizer_name_or_path": "a tokenizer comes with its model; put both into one folder",
    "padding_free": "TRL 1.16 warns and ignores it for pairs; packing does it for sft",
    **dict.fromkeys(("use_liger_kernel", "use_liger"), "speed only, deprecated in TRL, a package of its own"),
    "group_by_length": "gone from transformers 5, and without effect in TRL's trainers before",
    "push_to_hub": _SENDS,
    "hub_model_id": _SENDS,
    "hub_model_revision": _SENDS,
    "hub_strategy": _SENDS,
    "hub_private_repo": _SENDS,
    "push_to_hub_revision": _SENDS,
    "report_to": _LOGS,
    "run_name": "the run folder's name is the run's name",
    "wandb_entity": _LOGS,
    "wandb_project": _LOGS,
    "logging_dir": _LOGS,
    "logging_first_step": _LOGS,
    "log_level": "--json is quiet, everything else shows a progress bar",
    "logging_strategy": "steps; training.logging_steps says how many",
    "save_strategy": _SAVES,
    "save_steps": _SAVES,
    "save_total_limit": _SAVES,
}
