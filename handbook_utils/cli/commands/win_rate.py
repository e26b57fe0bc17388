"""`handbook win-rate`: what a judge's rows say about two models."""

from __future__ import annotations

import json as json_module
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from handbook_utils.cli.options import Json
from handbook_utils.errors import DataError

if TYPE_CHECKING:
    from handbook_utils.evaluation.judged.summary import JudgedReport, Judgements


def win_rate(
    judgements: Annotated[
        str, typer.Argument(help="A file of a judge's rows, or a folder or hub name: ours or AlpacaEval's.")
    ],
    split: Annotated[str, typer.Option(help="Which rows to read, such as train[:200].")] = "train",
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95,
    json: Json = False,
) -> None:
    """Say how often a judge prefers B to A: raw, at equal length, by order shown, over seeds, corrected.

    Each row has prompt_id and preference ("a", "b", "tie", or a number from 0 for A to 1 for B).
    AlpacaEval's annotations.json is read as it is, with output_1 as A. Optional columns add figures:

    answer_a and answer_b, or length_a and length_b: the win rate at equal length

    first ("a" or "b", the answer shown first): position bias

    seed: an interval over training seeds

    label (a person's preference, on some rows): the win rate corrected by people's labels

    Example: handbook win-rate judgements.jsonl
    """
    from handbook_utils.evaluation.judged.summary import summarise_judgements
    from handbook_utils.pipeline.judgements import read_judgements

    if not 0 < level < 1:
        raise DataError(f"--level must be between 0 and 1, got {level:g}")
    judged = read_judgements(judgements, split=split)
    report = summarise_judgements(judged, level=level)
    if json:
        print(json_module.dumps(report.to_json()))
    else:
        _show(report, _next(report, judged, judgements, split=split, level=level))


def _show(report: JudgedReport, verdict: str) -> None:
    from rich.console import Console

    from handbook_utils.cli import view

    console = Console()
    console.print(view.metrics_table(report.metrics))
    console.print(f"{report.prompts} prompts, {report.rows} judgements", style="dim")
    for caution in report.cautions:
        console.print(f"caution: {caution}", style="yellow", markup=False)
    view.say_next(verdict)


def _next(report: JudgedReport, judged: Judgements, name: str, *, split: str, level: float) -> str:
    """Who is preferred, or what it takes to know; by people's labels where these show the judge's bias."""
    metrics = report.metrics
    best = metrics.get("length_controlled_win_rate", metrics["win_rate"])
    bias = metrics.get("judge_bias")
    if bias is None:
        people = "check the judge against people: add `label`"
    elif bias.low <= 0 <= bias.high:
        people = "people's labels show no bias of the judge"
    else:
        best = metrics["corrected_win_rate"]
        people = (
            f"people's labels show that the judge favours {'B' if bias.value > 0 else 'A'} "
            f"(judge_bias {bias}), so this goes by corrected_win_rate {best}: more labels narrow it"
        )
    if not best.low <= 0.5 <= best.high:
        return f"{'B' if best.low > 0.5 else 'A'} is preferred; {people}"
    known = "" if bias is None else f"{people}; "
    return f"undecided; {known}{_more_prompts(report, judged, name, split=split, level=level)}"


def _more_prompts(report: JudgedReport, judged: Judgements, name: str, *, split: str, level: float) -> str:
    """The smallest effect that these prompts show, and the command that plans for a smaller one."""
    from handbook_utils.evaluation.power import FEWEST_PILOT, smallest_effect
    from handbook_utils.evaluation.prompt_rows import prompt_means

    choose = "choose the win rate to tell from 0.5 (RATE)"
    at_level = "" if level == 0.95 else f" --level {level:g}"
    wins = prompt_means(judged.preferences, judged.prompt_ids)
    ties = round(report.metrics["tie_rate"].value, 2)
    alone = "handbook power --win-rate RATE" + (f" --ties {ties:g}" if 0 < ties < 1 else "") + at_level
    if len(wins) < FEWEST_PILOT:
        return f"{len(wins)} prompts are too few for a pilot ({FEWEST_PILOT}): {choose}: {alone}"
    spread = float(wins.std(ddof=1))
    if spread < 1e-9:
        return f"all prompts came out the same: {choose}: {alone}"
    effect = smallest_effect(spread, len(wins), level=level)
    low, high = f"{0.5 - effect:.2f}", f"{0.5 + effect:.2f}"
    seen = f"{len(wins)} prompts show a raw win rate from {high} on, or up to {low}, 80% of the time"
    if effect >= 0.5:
        seen = f"{len(wins)} prompts show no win rate 80% of the time"
    # the pilot is read whole: a slice cannot be named to it
    pilot = f"handbook power {shlex.quote(name)} --win-rate RATE{at_level}" if split == "train" else alone
    return f"{seen}; for one nearer to 0.5, {choose}: {pilot}"
