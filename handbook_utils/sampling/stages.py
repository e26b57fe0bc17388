"""The stages that sample and annotate, each a function of a recipe and its open run folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from handbook_utils.errors import DataError
from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.records import REJECTED, Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.runs.state import read_part
from handbook_utils.sampling.execution.parts import write_part, write_samples
from handbook_utils.sampling.metrics import mean_over_prompts
from handbook_utils.sampling.scoring.instructions.accuracy import instruction_columns, instruction_metrics
from handbook_utils.sampling.selection.annotate import Annotation, annotate, load_annotator
from handbook_utils.sampling.tables import pairs_table, sample_parts
from handbook_utils.schema.stages import AnnotateRecipe, GenerateRecipe


def run_generate(recipe: GenerateRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Sample answers into samples/; metrics: tokens, words and truncated_rate of an answer.

    With `speculative` also rejected_rate; words and truncated_rate are then of the finished answers.
    """
    write_samples(recipe, run)
    return sample_metrics(_lengths(run))


def run_annotate(recipe: AnnotateRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Pairs into pairs/; metrics: agreement_with_gold, longer_chosen_rate, distinct_rate.

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
            "Sample more answers per prompt, or at a higher temperature."
        )
    run.note(pairs=len(pairs), skipped_prompts=skipped)
    return {
        **_higher_rate("agreement_with_gold", [(pair.gold_chosen, pair.gold_rejected) for pair in pairs]),
        **_higher_rate(
            "longer_chosen_rate", [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]
        ),
        "distinct_rate": mean_estimate([1.0] * len(pairs) + [0.0] * skipped, unit="rate"),
    }


def sample_metrics(table: pa.Table) -> dict[str, Estimate]:
    """Means of tokens and words of an answer, how often one was cut, and instruction-level accuracies.

    Args:
        table: prompt_id, tokens, words and finish_reason of each answer, and scores where there are any.
    """
    ids = _prompt_numbers(table["prompt_id"])
    tokens, words = (table[name].to_numpy().astype(np.float64) for name in ("tokens", "words"))
    cut, rejected = (pc.equal(table["finish_reason"], reason).to_numpy() for reason in ("length", REJECTED))
    finished = ~rejected
    rates = {"truncated_rate": mean_estimate(cut[finished] * 1.0, clusters=ids[finished], unit="rate")}
    if rejected.any():
        rates["rejected_rate"] = mean_estimate(rejected * 1.0, clusters=ids, unit="rate")
    scores = {name: table[name].to_numpy() for name in instruction_columns(table.column_names)}
    return {
        **instruction_metrics(scores, ids),
        "tokens": mean_over_prompts(tokens, ids, unit="tokens"),
        "words": mean_over_prompts(words[finished], ids[finished], unit="words"),
        **rates,
    }


def _lengths(run: RunFolder) -> pa.Table:
    """What `sample_metrics` needs of samples/, read a part at a time and without the texts."""
    parts = []
    for file in sorted((run.path / "samples").glob("*.parquet")):
        part = read_part(file, columns=["prompt_id", "tokens", "finish_reason", "completion"])
        words = pa.array([len(text.split()) for text in part["completion"].to_pylist()], pa.float64())
        parts.append(part.drop_columns("completion").append_column("words", words))
    return pa.concat_tables(parts)


def _prompt_numbers(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each prompt id, (rows,), in the order of the sorted ids: smaller than the ids by far."""
    encoded = ids.combine_chunks().dictionary_encode()
    rank = np.argsort(np.argsort(np.asarray(encoded.dictionary.to_pylist())))
    return np.asarray(rank[encoded.indices.to_numpy()], dtype=np.int64)


def _higher_rate(name: str, values: Sequence[tuple[float, float]]) -> dict[str, Estimate]:
    """How often the chosen answer's value is the higher one, where they differ; {} where none do."""
    higher = [float(chosen > rejected) for chosen, rejected in values if chosen != rejected]
    return {name: mean_estimate(higher, unit="rate")} if higher else {}
