"""The packaged pipeline with every stage cut to seconds: what it computes is not meant to be good."""

from __future__ import annotations

STEPS = {"max_steps": 4, "save_steps": 2, "logging_steps": 1}

TINY = {
    **{
        f"{stage}.training.{key}": value
        for stage in ("sft", "reward", "reward-control")
        for key, value in STEPS.items()
    },
    **{
        f"{stage}.training.{key}": value
        for stage in ("rft", "rft-control", "dpo")
        for key, value in STEPS.items()
    },
    "sft.data.0.split": "train[:64]",
    "sft.eval_data.0.split": "dev[:8]",
    "samples.data.0.split": "train[:24]",
    "samples.prompts_per_part": 8,
    "heldout.data.0.split": "dev[:12]",
    "heldout.samples": 8,
    "heldout-pairs.data.0.split": "dev[24:40]",
    "heldout-pairs.prompts_per_part": 8,
    "heldout.prompts_per_part": 4,
    "best-of-n.ns": [1, 2, 4, 8],
    "best-of-n.late_from": 2,
    "rft-samples.data.0.split": "train[24:40]",
    "rft-samples.prompts_per_part": 8,
    **{
        f"evaluate-{model}.{key}": value
        for model in ("base", "sft", "rft", "rft-control", "dpo")
        for key, value in {
            "data.0.split": "dev[12:24]",
            "samples": 2,
            "prompts_per_part": 4,
        }.items()
    },
}
