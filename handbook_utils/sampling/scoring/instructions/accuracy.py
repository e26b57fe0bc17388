"""How often instructions are followed: by prompt and by instruction, each with an interval over prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from handbook_utils.evaluation.prompt_rows import prompt_means
from handbook_utils.evaluation.statistics import Setting, estimate_columns, mean_estimate
from handbook_utils.records import Estimate

# by prompt: are all of its instructions followed; by instruction: how many are
PROMPT: Final = {"strict": "prompt_strict", "loose": "prompt_loose"}
INSTRUCTION: Final = {"strict": "inst_strict", "loose": "inst_loose"}
COUNT: Final = "instructions"
SIDES: Final = ("", ".chosen", ".rejected")


def instruction_columns(names: Iterable[str]) -> list[str]:
    """The columns that `instruction_metrics` needs.

    >>> instruction_columns(["gold", "follows", "follows.inst_strict", "follows.instructions"])
    ['follows.inst_strict', 'follows.instructions']
    """
    parts = {f"{part}{side}" for part in (COUNT, *PROMPT.values(), *INSTRUCTION.values()) for side in SIDES}
    return [name for name in names if name.partition(".")[2] in parts]


def instruction_metrics(
    columns: Mapping[str, NDArray[np.float64]], prompts: NDArray[Any]
) -> dict[str, Estimate]:
    """The accuracies of every scorer of instructions among score columns; {} where there is none.

    Args:
        columns: (rows,) scores by name, NaN where one is missing.
        prompts: (rows,) the prompt of each row.
    """
    metrics = {}
    for name in columns:
        side = next((side for side in SIDES if name.endswith(f".{COUNT}{side}")), None)
        there = np.isfinite(columns[name])
        if side is None or not there.any():
            continue
        owner = name.removesuffix(f".{COUNT}{side}")
        for part, figure in _accuracies(columns, owner, side, prompts, there).items():
            metrics[f"{owner}.{part}{side}"] = figure
    return metrics


def _accuracies(
    columns: Mapping[str, NDArray[np.float64]],
    owner: str,
    side: str,
    prompts: NDArray[Any],
    there: NDArray[np.bool_],
) -> dict[str, Estimate]:
    ids, counts = prompts[there], columns[f"{owner}.{COUNT}{side}"][there]
    metrics = {COUNT: mean_estimate(counts, clusters=ids, unit="instructions")}
    for level in ("strict", "loose"):
        whole = columns.get(f"{owner}.{PROMPT[level]}{side}")
        share = columns.get(f"{owner}.{INSTRUCTION[level]}{side}")
        if whole is not None:
            metrics[PROMPT[level]] = mean_estimate(whole[there], clusters=ids, unit="rate")
        if share is not None:
            metrics[INSTRUCTION[level]] = instruction_accuracy(share[there] * counts, counts, ids)
    return metrics


def instruction_accuracy(
    met: NDArray[np.float64], asked: NDArray[np.float64], prompts: NDArray[Any], *, level: float = 0.95
) -> Estimate:
    """Instructions followed over instructions asked, with an interval clustered by prompt.

    The instructions of one prompt are answered by one text, so that prompts are independent and instructions
    are not. The figure is a ratio of two sums over prompts; its standard error is that of the prompts'
    residuals (met - ratio · asked), and Wilson's interval takes the number of trials with that error.
    Several answers to a prompt count as their mean.

    Args:
        met: (rows,) instructions followed in each answer.
        asked: (rows,) instructions asked, at least one.
        prompts: (rows,) the prompt of each answer.
        level: confidence level.
    Returns:
        The estimate; its `n` counts prompts.
    Source: Cochran 1977, Sampling Techniques, section 6.3 (ratio); `intervals.wilson_effective`.

    >>> met, asked = np.array([2.0, 0.0, 1.0, 3.0] * 25), np.array([2.0, 1.0, 1.0, 3.0] * 25)
    >>> str(instruction_accuracy(met, asked, np.arange(100)))
    '0.857 [0.790, 0.905]'
    """
    given, wanted = prompt_means(met, prompts), prompt_means(asked, prompts)
    ratio = given.sum() / wanted.sum()
    # their mean is the ratio, and their spread is the residuals'
    values = ratio + (given - ratio * wanted) / wanted.mean()
    per_prompt = float(asked.sum()) / len(given)
    setting = Setting(
        unit="rate", rows=per_prompt, is_rate=True, bounds=(0.0, 1.0), base_rate=float(ratio), level=level
    )
    return estimate_columns(values[:, None], setting)[0]
