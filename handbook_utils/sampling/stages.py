"""The stages that sample, score, annotate and select, each a function of a recipe and its open run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.errors import DataError
from handbook_utils.evaluation.statistics import mean_estimate, paired_difference
from handbook_utils.recipe_schema import (
    AnnotateRecipe,
    GenerateRecipe,
    SamplingRecipe,
    ScoreRecipe,
    SelectRecipe,
)
from handbook_utils.records import Estimate, PreferencePair, ScoredCompletion
from handbook_utils.run_folder import RunFolder
from handbook_utils.sampling.annotate import Annotation, annotate, load_annotator
from handbook_utils.sampling.parts import load_prompts, write_part, write_samples, write_scores
from handbook_utils.sampling.select import select, select_pairs
from handbook_utils.sampling.tables import SAMPLES, pairs_table, sample_parts, selected_table


def run_generate(recipe: GenerateRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Sample answers into samples/; figures: tokens, words and truncated_rate of an answer."""
    write_samples(recipe, run)
    return sample_figures(run.read_table("samples"))


def run_score(recipe: ScoreRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Score samples into scores/; one figure a score, its mean."""
    parts = sample_parts(recipe.data, run)
    write_scores(parts, run, scorers=recipe.scorers, rows_per_batch=recipe.rows_per_batch)
    return score_figures(run.read_table("scores"))


def run_annotate(recipe: AnnotateRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Pairs into pairs/; figures: agreement_with_gold, longer_chosen_rate, distinct_rate.

    Pairs that gold (or the number of words) cannot tell apart do not count for that figure. distinct_rate is
    the share of prompts with two different samples; the others give no pair.
    """
    annotator = load_annotator(recipe.annotator)
    made: list[Annotation] = []
    for number, rows in enumerate(sample_parts(recipe.data, run)):
        part = annotate(rows, annotator, seed=recipe.seed)
        golds = [(pair.gold_chosen, pair.gold_rejected) for pair in part.pairs]
        write_part(run, "pairs", number, pairs_table(part.pairs, golds))
        run.log_metrics({"step": number + 1, "pairs": len(part.pairs), "skipped_prompts": len(part.skipped)})
        made.append(part)
    pairs = [pair for part in made for pair in part.pairs]
    skipped = sum(len(part.skipped) for part in made)
    if not pairs:
        raise DataError(
            f"none of {skipped} prompts has two different samples, so there is nothing to compare. "
            "Sample more answers a prompt, or at a higher temperature."
        )
    run.note(pairs=len(pairs), skipped_prompts=skipped)
    return {
        **_higher_rate("agreement_with_gold", [(pair.gold_chosen, pair.gold_rejected) for pair in pairs]),
        **_higher_rate(
            "longer_chosen_rate", [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]
        ),
        "distinct_rate": mean_estimate([1.0] * len(pairs) + [0.0] * skipped, unit="rate"),
    }


def run_select(recipe: SelectRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Chosen samples, or pairs, into selected/.

    Figures: the mean of each score over what was chosen; for pairs `margin.SCORE`, chosen minus rejected.
    """
    if recipe.strategy == "pairs":
        return _run_select_pairs(recipe, run)
    chosen: list[ScoredCompletion] = []
    for number, rows in enumerate(sample_parts(recipe.data, run)):
        kept = select(rows, by=recipe.by, strategy=recipe.strategy, k=recipe.k, seed=recipe.seed)
        write_part(run, "selected", number, selected_table(kept))
        chosen += kept
    run.note(selected=len(chosen))
    return score_figures(run.read_table("selected"))


def count_prompts(recipe: SamplingRecipe, inputs: Mapping[str, Path]) -> int:
    """How many prompts a recipe reads, before there is a run folder."""
    return len(load_prompts(recipe, ResolvedInputs(inputs)))


def sample_figures(table: pa.Table) -> dict[str, Estimate]:
    """Means of tokens and words of an answer, and how often one was cut at the limit."""
    ids = table["prompt_id"].to_pylist()
    cut = [float(reason == "length") for reason in table["finish_reason"].to_pylist()]
    words = [float(len(text.split())) for text in table["completion"].to_pylist()]
    return {
        "tokens": mean_estimate(table["tokens"].to_numpy(), clusters=ids, unit="tokens"),
        "words": mean_estimate(words, clusters=ids, unit="words"),
        "truncated_rate": mean_estimate(cut, clusters=ids, unit="rate"),
    }


def score_figures(table: pa.Table) -> dict[str, Estimate]:
    """Mean of each score over prompts; a score that is missing in some rows has no figure."""
    ids = table["prompt_id"].to_pylist()
    return {
        field.name: mean_estimate(table[field.name].to_numpy(), clusters=ids, unit=_unit(field.name))
        for field in table.schema
        if field.name not in SAMPLES.names and pa.types.is_floating(field.type)
    }


def _run_select_pairs(recipe: SelectRecipe, run: RunFolder) -> dict[str, Estimate]:
    pairs: list[PreferencePair] = []
    scores: dict[tuple[str, str], Mapping[str, float]] = {}
    for number, rows in enumerate(sample_parts(recipe.data, run)):
        found = select_pairs(rows, recipe.by, seed=recipe.seed)
        scores |= {(row.prompt_id, row.completion): row.scores for row in rows}
        golds = _both(found, scores, "gold") if all("gold" in row.scores for row in rows) else None
        write_part(run, "selected", number, pairs_table(found, golds))
        pairs += found
    if not pairs:
        raise DataError(
            f"no prompt has two samples that '{recipe.by}' tells apart, so there is no pair to select."
        )
    run.note(pairs=len(pairs))
    figures = {}
    for name in scores[pairs[0].prompt_id, pairs[0].chosen]:
        chosen, rejected = zip(*_both(pairs, scores, name), strict=True)
        figures[f"margin.{name}"] = paired_difference(rejected, chosen, unit=_unit(name))
    return figures


def _both(
    pairs: Sequence[PreferencePair], scores: Mapping[tuple[str, str], Mapping[str, float]], name: str
) -> list[tuple[float, float]]:
    """A score of the chosen and of the rejected answer of each pair."""
    return [
        (scores[pair.prompt_id, pair.chosen][name], scores[pair.prompt_id, pair.rejected][name])
        for pair in pairs
    ]


def _higher_rate(name: str, values: Sequence[tuple[float, float]]) -> dict[str, Estimate]:
    """How often the chosen answer's value is the higher one, where they differ; {} where none do."""
    higher = [float(chosen > rejected) for chosen, rejected in values if chosen != rejected]
    return {name: mean_estimate(higher, unit="rate")} if higher else {}


def _unit(score: str) -> str:
    return "words" if score == "words" else f"{score} score"
