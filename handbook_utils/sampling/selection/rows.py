"""Selection among anyone's scored rows: the rows chosen, or pairs of them, and their random control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from handbook_utils.errors import DataError, suggest
from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.records import Estimate
from handbook_utils.sampling.metrics import gain_metrics, mean_metrics
from handbook_utils.sampling.rows import AnsweredRow
from handbook_utils.sampling.selection.choose import Rule, choose
from handbook_utils.sampling.selection.groups import Floats, Ints, text_codes


@dataclass(frozen=True)
class SelectedRows:
    """What was chosen.

    Attributes:
        chosen: rows as they were; for pairs new ones, with prompt, chosen and rejected as messages.
        control: random ones of the same prompts, as many.
        unscored: how many rows have no score.
        metrics: mean score of the chosen and its gain over the control; for pairs the mean margin.
    """

    chosen: list[dict[str, Any]]
    control: list[dict[str, Any]]
    unscored: int
    metrics: dict[str, Estimate]


def select_rows(answered: Sequence[AnsweredRow], *, by: str, rule: Rule) -> SelectedRows:
    """Select among rows that have a score.

    Args:
        answered: as `rows.read_answered` gives them; rows of one prompt are its samples.
        by: the column of the score.
        rule: what to select.
    Raises:
        DataError: rows of pairs, no such score, or nothing is selected.
    """
    if "" not in answered[0].answers:
        raise DataError("the rows are pairs already. Select among rows with one answer each.")
    rows = [row.row for row in answered]
    if by not in rows[0]:
        raise DataError(f"the rows have no column '{by}'. {suggest(by, map(str, rows[0]))}")
    samples = [row.answers[""] for row in answered]
    table = pa.table(
        {
            "prompt_id": [sample.prompt_id for sample in samples],
            "sample_index": [sample.sample_index for sample in samples],
            "completion": [sample.completion for sample in samples],
            by: _numbers(rows, by),
        }
    )
    choice = choose(table, by, rule)
    if not len(choice.chosen):
        raise DataError(f"nothing is selected from {len(rows)} rows by '{by}'. Lower the threshold, if any.")
    scores = table[by].to_numpy()
    prompts = text_codes(table["prompt_id"])
    sides = [_taken(answered, numbers) for numbers in (choice.chosen, choice.control)]
    metrics = _metrics(by, scores, prompts, (choice.chosen, choice.control))
    if rule.strategy == "random":  # its control is itself
        metrics = {by: metrics[by]}
    return SelectedRows(sides[0], sides[1], len(choice.unscored), metrics)


def _numbers(rows: Sequence[Mapping[str, Any]], by: str) -> pa.Array:
    try:
        return pa.array([row.get(by) for row in rows], pa.float64())
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"the column '{by}' holds something that is no number ({error}).") from None


def _taken(answered: Sequence[AnsweredRow], numbers: Ints) -> list[dict[str, Any]]:
    if numbers.ndim == 1:
        return [dict(answered[row].row) for row in numbers.tolist()]
    made = []
    for pair in numbers.tolist():
        chosen, rejected = (answered[row].answers[""] for row in pair)
        made.append(
            {
                "prompt_id": chosen.prompt_id,
                "prompt": chosen.prompt,
                "chosen": [{"role": "assistant", "content": chosen.completion}],
                "rejected": [{"role": "assistant", "content": rejected.completion}],
            }
        )
    return made


def _metrics(by: str, scores: Floats, prompts: Ints, sides: tuple[Ints, Ints]) -> dict[str, Estimate]:
    chosen, control = sides
    if chosen.ndim == 2:
        margins = scores[chosen[:, 0]] - scores[chosen[:, 1]]
        return {f"margin.{by}": mean_estimate(margins, unit=f"{by} score")}
    ours, theirs = {by: scores[chosen]}, {by: scores[control]}
    return mean_metrics(ours, prompts[chosen]) | gain_metrics(
        ours, theirs, (prompts[chosen], prompts[control])
    )
