"""The stage `best_of_n`: what the best of n samples is worth, for every scorer that selects."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from handbook_utils.errors import DataError, RecipeError, suggest
from handbook_utils.evaluation.best_of_n import best_of_n_curve, best_of_n_difference
from handbook_utils.pipeline.tables import read_scores, score_columns
from handbook_utils.records import REJECTED, Estimate
from handbook_utils.runs.folder import RunFolder
from handbook_utils.schema.stages import BestOfNRecipe

Grid = NDArray[np.float64]


def run_best_of_n(recipe: BestOfNRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Figures of best-of-n for each arm (a scorer that selects) and measure (a column of what it selects).

    `ARM.MEASURE@n` is the mean of the best of n; `ARM.MEASURE_gain@n` is n minus 1, and
    `ARM.MEASURE_late_gain@n` is n minus `late_from`, both paired by prompt. The measure `score` is the
    selecting score itself.

    Raises:
        RecipeError: an arm or measure is no score column, or an n is above the samples per prompt.
        DataError: prompts with unequal numbers of samples, or samples that were never finished.
    """
    table = read_scores(recipe.data, run)
    rejected = pc.sum(pc.equal(table["finish_reason"], REJECTED)).as_py()
    if rejected:
        raise DataError(
            f"best_of_n: {rejected} of {len(table)} samples were stopped by speculative rejection, so what "
            "the best of n is worth cannot be told from these. Sample without `speculative`."
        )
    known = score_columns(table)
    for name in (*recipe.arms, *recipe.measures):
        if name not in known:
            raise RecipeError(f"best_of_n: no score column '{name}'. {suggest(name, known)}")
    order = _by_prompt(table)
    samples = order.shape[1]
    if max(recipe.ns) > samples:
        raise RecipeError(f"best_of_n: n = {max(recipe.ns)}, but there are {samples} samples per prompt.")
    grids = {name: table[name].to_numpy()[order] for name in {*recipe.arms, *recipe.measures}}
    metrics: dict[str, Estimate] = {}
    for arm in recipe.arms:
        for measure in ("score", *recipe.measures):
            values = grids[arm if measure == "score" else measure]
            metrics |= _metrics(recipe, f"{arm}.{measure}", grids[arm], values)
    return metrics


def _metrics(recipe: BestOfNRecipe, name: str, proxy: Grid, values: Grid) -> dict[str, Estimate]:
    """Curve, gains and late gains of one measure under one arm."""
    unit = "words" if name.endswith(".words") else name.partition(".")[2]
    curve = best_of_n_curve(proxy, values, ns=recipe.ns, unit=unit, seed=recipe.seed)
    metrics = {f"{name}@{n}": estimate for n, estimate in curve.items()}
    for suffix, low in (("gain", 1), ("late_gain", recipe.late_from)):
        for n in recipe.ns:
            if n > low:
                metrics[f"{name}_{suffix}@{n}"] = best_of_n_difference(
                    proxy, values, n_high=n, n_low=low, unit=unit, seed=recipe.seed
                )
    return metrics


def _by_prompt(table: pa.Table) -> NDArray[np.int64]:
    """Row numbers as (prompts, samples), prompts in order of their ids."""
    prompt_ids = np.asarray(table["prompt_id"].to_pylist())
    names, counts = np.unique(prompt_ids, return_counts=True)
    if len(set(counts.tolist())) > 1:
        few = names[counts.argmin()]
        raise DataError(
            f"best_of_n: prompts have {counts.min()} to {counts.max()} samples (fewest: '{few}'); "
            "the estimator needs the same number for each. Generate the missing ones."
        )
    rows = np.lexsort((table["sample_index"].to_numpy(), prompt_ids))
    return rows.reshape(len(names), -1)
