"""Recipes, rejection sampling and honest measurement for aligning language models.

Public names load on first use, so `import handbook_utils` costs nothing and imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_recipe": "schema.recipe",
    "recipe_for_scale": "schema.recipe",
    "run_stage": "pipeline.stages",
    "train_sft": "pipeline.stages",
    "train_reward_model": "pipeline.stages",
    "train_dpo": "pipeline.stages",
    "rejection_sample": "pipeline.stages",
    "train_at_scale": "pipeline.scale",
    "run_pipeline": "pipeline.run",
    "describe_format": "data.recognise",
    "load_dataset": "data.load",
    "check_chat_template": "chat.checks",
    "render_conversation": "chat.conversation",
    "load_tokenizer": "models.load",
    "load_model": "models.load",
    "merge_adapter": "models.merge",
    "quantized_share": "models.precision",
    "response_logprobs": "models.logprobs",
    "reward_scores": "models.logprobs",
    "generate": "sampling.generation.generate",
    "score": "sampling.scoring.score",
    "select": "sampling.selection.select",
    "best_of_n_curve": "evaluation.best_of_n",
    "win_rate": "evaluation.win_rate",
    "compare_paired": "evaluation.win_rate",
    "compare_runs": "pipeline.compare",
    "mean_estimate": "evaluation.statistics",
    "estimate_kl": "evaluation.kl",
    "claim": "reporting.claims.claim",
    "plot_training": "reporting.plots",
    "plot_best_of_n": "reporting.plots",
    "plot_rewards": "reporting.plots",
    "plot_rounds": "reporting.round_plots",
    "write_report": "reporting.report",
    "Estimate": "records",
    "RunResult": "records",
    "HandbookError": "errors",
}

# written out for type checkers; a test holds it equal to the table
__all__ = [
    "Estimate",
    "HandbookError",
    "RunResult",
    "best_of_n_curve",
    "check_chat_template",
    "claim",
    "compare_paired",
    "compare_runs",
    "describe_format",
    "estimate_kl",
    "generate",
    "load_dataset",
    "load_model",
    "load_recipe",
    "load_tokenizer",
    "mean_estimate",
    "merge_adapter",
    "plot_best_of_n",
    "plot_rewards",
    "plot_rounds",
    "plot_training",
    "quantized_share",
    "recipe_for_scale",
    "rejection_sample",
    "render_conversation",
    "response_logprobs",
    "reward_scores",
    "run_pipeline",
    "run_stage",
    "score",
    "select",
    "train_at_scale",
    "train_dpo",
    "train_reward_model",
    "train_sft",
    "win_rate",
    "write_report",
]

if TYPE_CHECKING:
    from handbook_utils.chat.checks import check_chat_template
    from handbook_utils.chat.conversation import render_conversation
    from handbook_utils.data.load import load_dataset
    from handbook_utils.data.recognise import describe_format
    from handbook_utils.errors import HandbookError
    from handbook_utils.evaluation.best_of_n import best_of_n_curve
    from handbook_utils.evaluation.kl import estimate_kl
    from handbook_utils.evaluation.statistics import mean_estimate
    from handbook_utils.evaluation.win_rate import compare_paired, win_rate
    from handbook_utils.models.load import load_model, load_tokenizer
    from handbook_utils.models.logprobs import response_logprobs, reward_scores
    from handbook_utils.models.merge import merge_adapter
    from handbook_utils.models.precision import quantized_share
    from handbook_utils.pipeline.compare import compare_runs
    from handbook_utils.pipeline.run import run_pipeline
    from handbook_utils.pipeline.scale import train_at_scale
    from handbook_utils.pipeline.stages import (
        rejection_sample,
        run_stage,
        train_dpo,
        train_reward_model,
        train_sft,
    )
    from handbook_utils.records import Estimate, RunResult
    from handbook_utils.reporting.claims.claim import claim
    from handbook_utils.reporting.plots import plot_best_of_n, plot_rewards, plot_training
    from handbook_utils.reporting.report import write_report
    from handbook_utils.reporting.round_plots import plot_rounds
    from handbook_utils.sampling.generation.generate import generate
    from handbook_utils.sampling.scoring.score import score
    from handbook_utils.sampling.selection.select import select
    from handbook_utils.schema.recipe import load_recipe, recipe_for_scale


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'handbook_utils' has no attribute '{name}'")
    value = getattr(import_module(f"handbook_utils.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
