"""Answers beside a baseline's, prompt by prompt: what each accuracy of verifiable instructions gained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handbook_utils.errors import DataError
from handbook_utils.evaluation.reward.report import holm
from handbook_utils.evaluation.statistics import paired_difference
from handbook_utils.evaluation.win_rate import sign_flip_p_value
from handbook_utils.records import Estimate
from handbook_utils.sampling.scoring.instructions.accuracy import INSTRUCTION, PROMPT
from handbook_utils.sampling.scoring.instructions.following import Checked

Checks = Sequence[Checked]


@dataclass(frozen=True)
class InstructionGain:
    """One accuracy minus the baseline's, over the prompts that both answered.

    Attributes:
        difference: with its interval over prompts; above 0 where the baseline follows less.
        p_value: two-sided, of "no difference": the signs of prompts are flipped.
        p_holm: the p-value corrected for all accuracies, which are compared at once (Holm 1979).
    """

    difference: Estimate
    p_value: float
    p_holm: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"difference": self.difference.to_json(), "p_value": self.p_value, "p_holm": self.p_holm}


def instruction_gains(
    baseline: Checks, others: Checks, *, level: float = 0.95
) -> tuple[dict[str, InstructionGain], list[str]]:
    """What `others` gain over a baseline on the same prompts.

    Args:
        baseline: checked answers of A.
        others: checked answers of B; several to a prompt count as their mean, on either side.
        level: confidence level.
    Returns:
        The gain of each accuracy by its name, and what to say of prompts that one side alone answered.
    Raises:
        DataError: no prompt was answered by both.
    """
    a, b = _by_prompt(baseline), _by_prompt(others)
    both = [prompt for prompt in b if prompt in a]
    if not both:
        raise DataError("the baseline answers none of the prompts that the other answers are to.")
    lone = len(a.keys() ^ b.keys())
    told = [f"prompts answered on one side only: {lone}; the comparison is of {len(both)}"] if lone else []
    before, after = (_accuracies([side[prompt] for prompt in both]) for side in (a, b))
    p_values = [sign_flip_p_value(after[name] - before[name]) for name in after]
    return {
        name: InstructionGain(
            paired_difference(before[name], after[name], unit="rate", level=level), p_value, corrected
        )
        for name, p_value, corrected in zip(after, p_values, holm(p_values), strict=True)
    }, told


def _by_prompt(checks: Checks) -> dict[int, list[Checked]]:
    # what a prompt asks for is read once, so it tells prompts apart where ids and texts are written otherwise
    grouped: dict[int, list[Checked]] = {}
    for one in checks:
        grouped.setdefault(id(one.asked), []).append(one)
    return grouped


def _accuracies(prompts: Sequence[Checks]) -> dict[str, NDArray[np.float64]]:
    """(prompts,) values by accuracy, whose means are the figures of `instruction_report` on these prompts."""
    counts = np.array([len(answers[0].asked) for answers in prompts], dtype=np.float64)
    values = {}
    for name in PROMPT:
        met = [[sum(getattr(one.found, name)) for one in answers] for answers in prompts]
        values[PROMPT[name]] = np.array(
            [np.mean(np.equal(each, count)) for each, count in zip(met, counts, strict=True)]
        )
        # both sides are asked for the same, so a difference of ratios is a mean of differences
        values[INSTRUCTION[name]] = np.array([np.mean(each) for each in met]) / counts.mean()
    return values
