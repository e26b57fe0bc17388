"""`handbook win-rate`: what a judge's rows say about two models."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Annotated

import typer

from handbook_utils.cli.options import Json
from handbook_utils.errors import DataError

if TYPE_CHECKING:
    from handbook_utils.evaluation.judged.summary import JudgedReport


def win_rate(
    judgements: Annotated[
        str, typer.Argument(help="A file of a judge's rows, or a folder or hub name: ours or AlpacaEval's.")
    ],
    split: Annotated[str, typer.Option(help="Which rows to read, such as train[:200].")] = "train",
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    json: Json = False,
) -> None:
    """Say how often B beats A by a judge: raw, at equal length, by order shown, over seeds, corrected by
    people.

    A row has prompt_id, and preference ("a", "b", "tie", or a number from 0 for A to 1 for B). More
    columns give more figures: answer_a and answer_b (or length_a and length_b) the win rate at equal
    length, first ("a" or "b", the answer shown first) the position bias, seed the interval over training
    seeds, label (a person's preference, on some rows) the correction. AlpacaEval's annotations.json is
    read as it is: output_1 is A.

    Example: handbook win-rate judgements.jsonl
    """
    from handbook_utils.evaluation.judged.summary import summarise_judgements
    from handbook_utils.pipeline.judgements import read_judgements

    if not 0 < level < 1:
        raise DataError(f"--level must be between 0 and 1, got {level:g}")
    report = summarise_judgements(read_judgements(judgements, split=split), level=level)
    if json:
        print(json_module.dumps(report.to_json()))
    else:
        _show(report)


def _show(report: JudgedReport) -> None:
    from rich.console import Console

    from handbook_utils.cli import view

    console = Console()
    console.print(view.metrics_table(report.metrics))
    console.print(f"{report.prompts} prompts, {report.rows} judgements", style="dim")
    for caution in report.cautions:
        console.print(f"caution: {caution}", style="yellow", markup=False)
    best = report.metrics.get("length_controlled_win_rate", report.metrics["win_rate"])
    if best.low <= 0.5 <= best.high:
        view.say_next(
            f"undecided; see what more prompts would show: handbook power --win-rate "
            f"{max(best.value, 0.51):.2f}"
        )
    else:
        view.say_next(
            f"{'B' if best.low > 0.5 else 'A'} is preferred; check the judge against people: add `label`"
        )
