"""Figures of score columns: their means over prompts, and what a selection gains over its random control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handbook_utils.evaluation.prompt_rows import prompt_means
from handbook_utils.evaluation.statistics import mean_estimate, paired_difference
from handbook_utils.records import Estimate

Columns = Mapping[str, NDArray[np.float64]]
# from here on resampling takes minutes and moves an end of the interval by less than 1 % of its width
MANY_PROMPTS = 20_000


def mean_metrics(columns: Columns, prompts: NDArray[Any]) -> dict[str, Estimate]:
    """Mean of each column over prompts; rows without a score do not count, nor does a column without any.

    Args:
        columns: (rows,) scores by name, NaN where one is missing.
        prompts: (rows,) the prompt of each row.
    """
    metrics = {}
    for name, values in columns.items():
        there = np.isfinite(values)
        if there.any():
            metrics[name] = mean_over_prompts(values[there], prompts[there], unit=score_unit(name))
    return metrics


def mean_over_prompts(values: NDArray[np.float64], prompts: NDArray[Any], *, unit: str) -> Estimate:
    """Mean over prompts; of `MANY_PROMPTS` the interval is Student's t, whatever the scores.

    Args:
        values: (rows,) finite numbers.
        prompts: (rows,) the prompt of each row.
        unit: of the numbers.
    """
    method = "student-t" if len(np.unique(prompts)) >= MANY_PROMPTS else "auto"
    return mean_estimate(values, clusters=prompts, unit=unit, method=method)


def gain_metrics(chosen: Columns, control: Columns, prompts: tuple[Any, Any]) -> dict[str, Estimate]:
    """How much higher each score is among the chosen than among their random control, paired by prompt.

    Args:
        chosen: (rows,) scores by name of what was chosen.
        control: (rows,) those of the control, which has the same prompts.
        prompts: (rows,) the prompts of either.
    Returns:
        `NAME_gain_vs_random`; parts of a score (`gold.safe`) and scores that are missing somewhere have none.
    """
    metrics = {}
    for name, values in chosen.items():
        if "." in name or not (np.isfinite(values).all() and np.isfinite(control[name]).all()):
            continue
        ours, theirs = prompt_means(values, prompts[0]), prompt_means(control[name], prompts[1])
        unit = score_unit(name)
        metrics[f"{name}_gain_vs_random"] = (
            mean_estimate(ours - theirs, unit=unit, method="student-t")
            if len(ours) >= MANY_PROMPTS
            else paired_difference(theirs, ours, unit=unit)
        )
    return metrics


def score_unit(name: str) -> str:
    """The unit of a score.

    >>> score_unit("words"), score_unit("proxy")
    ('words', 'proxy score')
    """
    return "words" if name == "words" else f"{name} score"
