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
    "scorer_sections": "schema.recipe",
    "run_stage": "pipeline.stages",
    "rejection_sample": "pipeline.stages",
    "train_at_scale": "pipeline.scale",
    "run_pipeline": "pipeline.run",
    "describe_format": "data.recognise",
    "Recognised": "data.recognise",
    "load_dataset": "data.load",
    "check_chat_template": "chat.checks",
    "render_conversation": "chat.conversation",
    "RenderedConversation": "chat.conversation",
    "RenderedRow": "chat.conversation",
    "load_tokenizer": "models.load",
    "load_model": "models.load",
    "merge_adapter": "models.merge",
    "MergeReport": "models.merge",
    "quantized_share": "models.precision",
    "response_logprobs": "models.logprobs",
    "reward_scores": "models.logprobs",
    "generate": "sampling.generation.generate",
    "score": "sampling.scoring.score",
    "Scorer": "sampling.scoring.score",
    "NoScore": "sampling.scoring.score",
    "ScoreFailure": "sampling.scoring.score",
    "select": "sampling.selection.select",
    "select_pairs": "sampling.selection.select",
    "select_control": "sampling.selection.select",
    "select_random": "sampling.selection.select",
    "select_random_pairs": "sampling.selection.select",
    "best_of_n_curve": "evaluation.best_of_n",
    "win_rate": "evaluation.win_rate",
    "compare_paired": "evaluation.win_rate",
    "PairedComparison": "evaluation.win_rate",
    "compare_runs": "pipeline.compare",
    "Comparison": "pipeline.compare",
    "mean_estimate": "evaluation.statistics",
    "CoverageWarning": "evaluation.statistics",
    "cohen_kappa": "evaluation.agreement",
    "krippendorff_alpha": "evaluation.agreement",
    "estimate_kl": "evaluation.kl",
    "length_controlled_win_rate": "evaluation.judged.length_control",
    "LengthControlled": "evaluation.judged.length_control",
    "corrected_win_rate": "evaluation.judged.corrected",
    "CorrectedRate": "evaluation.judged.corrected",
    "mean_over_prompts_and_seeds": "evaluation.two_level",
    "TwoLevelMean": "evaluation.two_level",
    "prompts_for": "evaluation.power",
    "plan_from_pilot": "evaluation.power",
    "Power": "evaluation.power",
    "run_benchmarks": "benchmarks.run",
    "BenchmarkResult": "benchmarks.run",
    "BenchmarkSettings": "benchmarks.run",
    "BenchmarkScore": "benchmarks.scores",
    "compare_benchmarks": "benchmarks.scores",
    "BenchmarkComparison": "benchmarks.scores",
    "export_run": "export.folder",
    "Export": "export.folder",
    "check_served": "export.served.check",
    "Server": "export.served.check",
    "ServedReport": "export.served.check",
    "claim": "reporting.claims.claim",
    "plot_training": "reporting.plots",
    "plot_best_of_n": "reporting.plots",
    "plot_rewards": "reporting.plots",
    "plot_rounds": "reporting.round_plots",
    "plot_held_out": "reporting.held_out",
    "LivePlot": "reporting.held_out",
    "write_report": "reporting.report",
    "untested_versions": "libraries.versions",
    "Estimate": "records",
    "RunResult": "records",
    "Message": "records",
    "PreferencePair": "records",
    "Completion": "records",
    "ScoredCompletion": "records",
    "HandbookError": "errors",
    "ClaimError": "errors",
    "DataError": "errors",
    "LaunchError": "errors",
    "MissingDependencyError": "errors",
    "ModelError": "errors",
    "RecipeError": "errors",
    "RunFolderError": "errors",
    "TemplateError": "errors",
    "TrainingError": "errors",
    "choose": "sampling.selection.choose",
    "Rule": "sampling.selection.choose",
    "Choice": "sampling.selection.choose",
    "load_scorers": "sampling.scoring.scorers.load",
    "EnsembleScorer": "sampling.scoring.scorers.reward_model",
    "RewardModelScorer": "sampling.scoring.scorers.reward_model",
    "JudgeScorer": "sampling.scoring.scorers.judge",
    "GoldScorer": "sampling.scoring.scorers.gold",
    "VerifierScorer": "sampling.scoring.scorers.verifiers",
    "InstructionsScorer": "sampling.scoring.scorers.instructions",
    "follows_instructions": "sampling.scoring.instructions.following",
    "Followed": "sampling.scoring.instructions.following",
    "instruction_report": "sampling.scoring.instructions.report",
    "InstructionGain": "sampling.scoring.instructions.gains",
    "InstructionReport": "sampling.scoring.instructions.report",
    "OneInstruction": "sampling.scoring.instructions.report",
    "StageRecipe": "schema.training",
    "read_answered": "sampling.rows",
    "AnsweredRow": "sampling.rows",
    "score_rows": "sampling.scoring.rows",
    "ScoredRows": "sampling.scoring.rows",
    "select_rows": "sampling.selection.rows",
    "SelectedRows": "sampling.selection.rows",
    "RunView": "reporting.runs",
    "TemplateReport": "chat.report",
    "TemplateCheck": "chat.report",
    "diagnose": "diagnosis.diagnose",
    "Diagnosis": "diagnosis.finding",
    "Finding": "diagnosis.finding",
}

# dropped before 0.1.0 was released
_DROPPED = ("train_sft", "train_reward_model", "train_dpo")

# written out for type checkers; a test holds it equal to the table
__all__ = [
    "AnsweredRow",
    "BenchmarkComparison",
    "BenchmarkResult",
    "BenchmarkScore",
    "BenchmarkSettings",
    "Choice",
    "ClaimError",
    "Comparison",
    "Completion",
    "CorrectedRate",
    "CoverageWarning",
    "DataError",
    "Diagnosis",
    "EnsembleScorer",
    "Estimate",
    "Export",
    "Finding",
    "Followed",
    "GoldScorer",
    "HandbookError",
    "InstructionGain",
    "InstructionReport",
    "InstructionsScorer",
    "JudgeScorer",
    "LaunchError",
    "LengthControlled",
    "LivePlot",
    "MergeReport",
    "Message",
    "MissingDependencyError",
    "ModelError",
    "NoScore",
    "OneInstruction",
    "PairedComparison",
    "Power",
    "PreferencePair",
    "RecipeError",
    "Recognised",
    "RenderedConversation",
    "RenderedRow",
    "RewardModelScorer",
    "Rule",
    "RunFolderError",
    "RunResult",
    "RunView",
    "ScoreFailure",
    "ScoredCompletion",
    "ScoredRows",
    "Scorer",
    "SelectedRows",
    "ServedReport",
    "Server",
    "StageRecipe",
    "TemplateCheck",
    "TemplateError",
    "TemplateReport",
    "TrainingError",
    "TwoLevelMean",
    "VerifierScorer",
    "best_of_n_curve",
    "check_chat_template",
    "check_served",
    "choose",
    "claim",
    "cohen_kappa",
    "compare_benchmarks",
    "compare_paired",
    "compare_runs",
    "corrected_win_rate",
    "describe_format",
    "diagnose",
    "estimate_kl",
    "export_run",
    "follows_instructions",
    "generate",
    "instruction_report",
    "krippendorff_alpha",
    "length_controlled_win_rate",
    "load_dataset",
    "load_model",
    "load_recipe",
    "load_scorers",
    "load_tokenizer",
    "mean_estimate",
    "mean_over_prompts_and_seeds",
    "merge_adapter",
    "plan_from_pilot",
    "plot_best_of_n",
    "plot_held_out",
    "plot_rewards",
    "plot_rounds",
    "plot_training",
    "prompts_for",
    "quantized_share",
    "read_answered",
    "recipe_for_scale",
    "rejection_sample",
    "render_conversation",
    "response_logprobs",
    "reward_scores",
    "run_benchmarks",
    "run_pipeline",
    "run_stage",
    "score",
    "score_rows",
    "scorer_sections",
    "select",
    "select_control",
    "select_pairs",
    "select_random",
    "select_random_pairs",
    "select_rows",
    "train_at_scale",
    "untested_versions",
    "win_rate",
    "write_report",
]

if TYPE_CHECKING:
    from handbook_utils.benchmarks.run import BenchmarkResult, BenchmarkSettings, run_benchmarks
    from handbook_utils.benchmarks.scores import BenchmarkComparison, BenchmarkScore, compare_benchmarks
    from handbook_utils.chat.checks import check_chat_template
    from handbook_utils.chat.conversation import RenderedConversation, RenderedRow, render_conversation
    from handbook_utils.chat.report import TemplateCheck, TemplateReport
    from handbook_utils.data.load import load_dataset
    from handbook_utils.data.recognise import Recognised, describe_format
    from handbook_utils.diagnosis.diagnose import diagnose
    from handbook_utils.diagnosis.finding import Diagnosis, Finding
    from handbook_utils.errors import (
        ClaimError,
        DataError,
        HandbookError,
        LaunchError,
        MissingDependencyError,
        ModelError,
        RecipeError,
        RunFolderError,
        TemplateError,
        TrainingError,
    )
    from handbook_utils.evaluation.agreement import cohen_kappa, krippendorff_alpha
    from handbook_utils.evaluation.best_of_n import best_of_n_curve
    from handbook_utils.evaluation.judged.corrected import CorrectedRate, corrected_win_rate
    from handbook_utils.evaluation.judged.length_control import LengthControlled, length_controlled_win_rate
    from handbook_utils.evaluation.kl import estimate_kl
    from handbook_utils.evaluation.power import Power, plan_from_pilot, prompts_for
    from handbook_utils.evaluation.statistics import CoverageWarning, mean_estimate
    from handbook_utils.evaluation.two_level import TwoLevelMean, mean_over_prompts_and_seeds
    from handbook_utils.evaluation.win_rate import PairedComparison, compare_paired, win_rate
    from handbook_utils.export.folder import Export, export_run
    from handbook_utils.export.served.check import ServedReport, Server, check_served
    from handbook_utils.libraries.versions import untested_versions
    from handbook_utils.models.load import load_model, load_tokenizer
    from handbook_utils.models.logprobs import response_logprobs, reward_scores
    from handbook_utils.models.merge import MergeReport, merge_adapter
    from handbook_utils.models.precision import quantized_share
    from handbook_utils.pipeline.compare import Comparison, compare_runs
    from handbook_utils.pipeline.run import run_pipeline
    from handbook_utils.pipeline.scale import train_at_scale
    from handbook_utils.pipeline.stages import rejection_sample, run_stage
    from handbook_utils.records import (
        Completion,
        Estimate,
        Message,
        PreferencePair,
        RunResult,
        ScoredCompletion,
    )
    from handbook_utils.reporting.claims.claim import claim
    from handbook_utils.reporting.held_out import LivePlot, plot_held_out
    from handbook_utils.reporting.plots import plot_best_of_n, plot_rewards, plot_training
    from handbook_utils.reporting.report import write_report
    from handbook_utils.reporting.round_plots import plot_rounds
    from handbook_utils.reporting.runs import RunView
    from handbook_utils.sampling.generation.generate import generate
    from handbook_utils.sampling.rows import AnsweredRow, read_answered
    from handbook_utils.sampling.scoring.instructions.following import Followed, follows_instructions
    from handbook_utils.sampling.scoring.instructions.gains import InstructionGain
    from handbook_utils.sampling.scoring.instructions.report import (
        InstructionReport,
        OneInstruction,
        instruction_report,
    )
    from handbook_utils.sampling.scoring.rows import ScoredRows, score_rows
    from handbook_utils.sampling.scoring.score import NoScore, ScoreFailure, Scorer, score
    from handbook_utils.sampling.scoring.scorers.gold import GoldScorer
    from handbook_utils.sampling.scoring.scorers.instructions import InstructionsScorer
    from handbook_utils.sampling.scoring.scorers.judge import JudgeScorer
    from handbook_utils.sampling.scoring.scorers.load import load_scorers
    from handbook_utils.sampling.scoring.scorers.reward_model import EnsembleScorer, RewardModelScorer
    from handbook_utils.sampling.scoring.scorers.verifiers import VerifierScorer
    from handbook_utils.sampling.selection.choose import Choice, Rule, choose
    from handbook_utils.sampling.selection.rows import SelectedRows, select_rows
    from handbook_utils.sampling.selection.select import (
        select,
        select_control,
        select_pairs,
        select_random,
        select_random_pairs,
    )
    from handbook_utils.schema.recipe import load_recipe, recipe_for_scale, scorer_sections
    from handbook_utils.schema.training import StageRecipe


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name in _DROPPED:
        # no AttributeError: `from handbook_utils import ...` would say less
        raise ImportError(f"handbook_utils.{name} is gone. Call run_stage: the recipe says what is trained.")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'handbook_utils' has no attribute '{name}'")
    value = getattr(import_module(f"handbook_utils.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
