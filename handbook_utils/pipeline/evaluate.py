"""The stage `evaluate`: sample a model on held-out prompts, score the answers, compare with baselines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from handbook_utils.evaluation.kl import estimate_kl
from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.evaluation.win_rate import compare_paired
from handbook_utils.models.load import load_pair, options_of
from handbook_utils.models.logprobs import Sequenced, render_rows, sequence_logprob_sums
from handbook_utils.pipeline.tables import run_scores, score_columns
from handbook_utils.records import Completion, Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.sampling.execution.parts import write_samples
from handbook_utils.sampling.metrics import mean_metrics
from handbook_utils.sampling.scoring.stage import write_scores
from handbook_utils.sampling.stages import sample_metrics
from handbook_utils.sampling.tables import completions_of, wanted_parts
from handbook_utils.schema.sections import DataSource, ModelSection
from handbook_utils.schema.stages import EvaluateRecipe

KL_ROWS_PER_BATCH = 64


def run_evaluate(recipe: EvaluateRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Figures of one model on held-out prompts.

    Each scorer's mean and its parts, words, tokens, truncated_rate; `kl` where a reference is given;
    for a scorer with gold parts also `refusal_rate_benign` and `compliance_rate_harmful`; and for each
    baseline `SCORER_gain_vs_NAME` and `win_rate_vs_NAME` on the same prompts, by the first scorer.

    Raises:
        DataError: a baseline was measured on other prompts.
    """
    write_samples(recipe, run)
    write_scores(recipe, wanted_parts([DataSource(name=str(run.path / "samples"))], run), run)
    table = run.read_table("scores")
    metrics = score_means(table) | sample_metrics(table)
    if recipe.reference is not None:
        metrics["kl"] = _kl(recipe, run, table)
    return metrics | _against_baselines(recipe, run)


def score_means(table: pa.Table) -> dict[str, Estimate]:
    """Mean of each score over prompts, and rates of wrong refusals and wrong compliance."""
    ids = np.asarray(table["prompt_id"].to_pylist())
    columns = {name: table[name].to_numpy() for name in score_columns(table)}
    metrics: dict[str, Estimate] = {}
    for name, values in columns.items():
        if not np.isfinite(values).all():  # a verifier or judge had no number for a row
            metrics |= mean_metrics({name: values}, ids)
            continue
        scorer, _, part = name.partition(".")
        if part == "refused":
            benign, advice = (columns[f"{scorer}.{flag}"] > 0 for flag in ("benign", "advice"))
            metrics |= _refusals(values, benign & advice, ~benign, ids)
        elif part not in ("benign", "advice") and name != "words":
            metrics[name] = mean_estimate(values, clusters=ids, unit=f"{scorer} reward")
    return metrics


def _refusals(refused: Any, benign: Any, harmful: Any, ids: Any) -> dict[str, Estimate]:
    """How often a harmless request for advice is refused, and a harmful one answered."""
    rates = {"refusal_rate_benign": (benign, refused), "compliance_rate_harmful": (harmful, 1 - refused)}
    return {
        name: mean_estimate(wrong[rows], clusters=ids[rows], unit="rate")
        for name, (rows, wrong) in rates.items()
        if rows.any()
    }


def _against_baselines(recipe: EvaluateRecipe, run: RunFolder) -> dict[str, Estimate]:
    if not recipe.baselines:
        return {}
    by = next(iter(recipe.scorers))
    ours = run_scores(run.path, by)
    metrics: dict[str, Estimate] = {}
    for baseline in recipe.baselines:
        path = Path(run.locate(baseline))
        compared = compare_paired(run_scores(path, by), ours, unit=f"{by} reward", seed=recipe.seed)
        metrics[f"{by}_gain_vs_{path.name}"] = compared.difference
        metrics[f"win_rate_vs_{path.name}"] = compared.win_rate
    return metrics


def _kl(recipe: EvaluateRecipe, run: RunFolder, table: pa.Table) -> Estimate:
    """KL to the reference, both models measured on the very same tokens."""
    policy = _logprobs(recipe.model, run.locate(recipe.model), table)
    assert recipe.reference is not None  # the caller asks only then
    reference = _logprobs(recipe.reference, run.locate(recipe.reference), table)
    return estimate_kl(policy, reference, clusters=table["prompt_id"].to_pylist(), seed=recipe.seed)


def _logprobs(section: ModelSection, location: str, table: pa.Table) -> np.ndarray:
    model, tokenizer = load_pair(location, **options_of(section))
    sums, _ = sequence_logprob_sums(
        model,
        answer_sequences(tokenizer, completions_of(table, where=location)),
        pad_token_id=tokenizer.pad_token_id,
        batch_size=KL_ROWS_PER_BATCH,
    )
    return sums


def answer_sequences(tokenizer: Any, rows: Sequence[Completion]) -> list[Sequenced]:
    """Answers as token ids, each with its end of turn where that was drawn, and where each begins."""
    rendered = render_rows(tokenizer, [(row.prompt, row.completion) for row in rows])
    sequences = []
    for row, (ids, start) in zip(rows, rendered, strict=True):
        if row.finish_reason == "length" and tokenizer.eos_token_id in ids[start:]:
            # a cut answer has no end of turn: its probability was never drawn from
            last = len(ids) - 1 - ids[::-1].index(tokenizer.eos_token_id)
            # one without visible text keeps it, since a sum needs a token
            sequences.append((ids[:last] if last > start else ids, start))
        else:
            sequences.append((ids, start))
    return sequences
