"""What `handbook data label` and `agreement` print: what is asked, what came of it, who agrees."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from handbook_utils.chat.view import printable
from handbook_utils.cli.data.tables import print_json
from handbook_utils.cli.view import say_next

if TYPE_CHECKING:
    from handbook_utils.curation.rows import SourceRows
    from handbook_utils.sampling.annotation.feedback.label import Asking, Labels
    from handbook_utils.sampling.annotation.feedback.tasks import Task
    from handbook_utils.sampling.annotation.people import AgreementReport
    from handbook_utils.sampling.ledger import Bound


def show_plan(
    opened: Sequence[SourceRows], asking: Asking, bound: Bound, reply_tokens: int, json: bool
) -> None:
    """What would be asked, and the most that it can cost."""
    from handbook_utils.sampling.annotation.feedback.label import most_spent, private_kinds

    items, left_out = asking.task.items(opened)
    private = private_kinds(items)
    spent = most_spent(items, asking, reply_tokens)
    cost = bound.cost_of(spent) if bound.price_in or bound.price_out else None
    record = {
        "items": len(items),
        "left_out": left_out,
        "private": dict(private),
        "at_most": {**asdict(spent), "cost": cost},
    }
    if json:
        print_json(record)
        return
    for told in left_out:
        print(told)
    money = "" if cost is None else f", which cost {cost:,.2f} at most"
    print(
        f"{len(items):,} items to {asking.task.kind}: at most {spent.requests:,} requests (retries left "
        f"out), {spent.tokens_in:,} tokens read and {spent.tokens_out:,} written{money}"
    )
    print("a token is counted per byte of what is sent; most texts take about a quarter of that")
    for kind, count in private.items():
        print(
            f"{count:,} items hold {kind}"
            + ("" if asking.private else "; a server elsewhere is not sent them")
        )
    say_next("run it without --dry-run, with a limit such as --max-requests")


def show_labels(labels: Labels, task: Task, json: bool) -> None:
    """Counts, spending, and whether the labels can be trusted."""
    report = labels.report
    if json:
        print_json({"folder": str(labels.folder), **report})
        return
    console = Console(highlight=False)
    counts, spent = report["counts"], report["spent"]
    console.print(f"{counts['labelled']:,} of {counts['asked']:,} items labelled ({task.kind})")
    for told in report["left_out"]:
        console.print(Text(printable(told), style="dim"))
    run = spent["this_run"]
    console.print(
        f"{run['requests']:,} requests in this run, {spent['requests']:,} in all: {spent['tokens_in']:,} "
        f"tokens read, {spent['tokens_out']:,} written"
        + (f", cost {spent['cost']:,.4f}" if spent["cost"] else "")
    )
    if report["orders"]:
        orders = report["orders"]
        console.print(
            f"both orders agree in {orders['agree']:.0%}; the answer shown first won in {orders['first']:.0%}"
        )
    _show_trust(console, report)
    for caution in report["cautions"]:
        console.print(Text(f"caution: {printable(caution)}", style="yellow"), soft_wrap=True)
    say_next(_next(labels, task))


def _show_trust(console: Console, report: Mapping[str, Any]) -> None:
    people, planted = report["people"], report["planted"]
    names = {
        "kappa": "Cohen's kappa with people",
        "agreement": "verdicts equal to people's",
        "longer": "control: people chose the longer answer",
    }
    for name, figure in (people["metrics"] if people else {}).items():
        console.print(f"{names[name]}: {_figure(figure)} on {figure['n']:,} pairs")
    if planted:
        console.print(
            f"verdicts unchanged by a text that addresses the judge: {_figure(planted['unchanged'])}; "
            f"a harmless sentence: {_figure(planted['control'])}; {planted['unchanged']['n']} pairs"
        )
        if planted["worst"]:
            text, changed, tried = planted["worst"]
            console.print(f"worst: {text!r} changed {changed} of {tried}", markup=False, style="dim")


def _figure(figure: Mapping[str, Any]) -> str:
    low, high = ("unbounded" if figure[end] is None else f"{figure[end]:.3f}" for end in ("low", "high"))
    return f"{figure['value']:.3f} \\[{low}, {high}]"


def _next(labels: Labels, task: Task) -> str:
    from handbook_utils.sampling.annotation.feedback.label import FAILED, LABELS
    from handbook_utils.sampling.annotation.feedback.tasks import RateTask

    path = labels.folder / LABELS
    if not labels.is_whole:
        return "raise the limit and run the same command again: replies already paid for are kept"
    if not labels.report["counts"]["labelled"]:
        return f"read {labels.folder / FAILED}: try another model, or more --reply-tokens"
    named = f"name {path} under data: of a recipe that learns from pairs"
    if task.kind == "compare":
        return f"{named}, or: handbook win-rate {shlex.quote(str(path))}"
    if isinstance(task, RateTask):
        return f"{named}, with pairs: {{rating: [{', '.join(task.aspects.named)}]}}"
    return named


def show_agreement(report: AgreementReport, judgements: Path, out: Path | None) -> None:
    """How far people agree, then each person by themselves."""
    console = Console(highlight=False)
    console.print(
        f"{report.judgements:,} judgements of {report.pairs:,} pairs by {len(report.people)} people; "
        f"{report.shared:,} pairs were judged by two or more"
    )
    if report.metrics or report.kappas:
        console.print(_agreement_table(report))
    if report.people:
        console.print(_people_table(report))
    for caution in report.cautions:
        console.print(f"caution: {printable(caution)}", style="yellow", markup=False, soft_wrap=True)
    if out is None:
        name = shlex.quote(str(judgements))
        say_next(f"write what most people preferred: handbook data agreement {name} --out agreed.jsonl")
    else:
        say_next(
            f"name {out} under data: of a recipe that learns from pairs, or: handbook win-rate "
            f"{shlex.quote(str(out))}"
        )


def _agreement_table(report: AgreementReport) -> Table:
    table = Table("agreement", "value", "interval", "pairs", box=None, header_style="bold")
    named = {
        "alpha": "Krippendorff's alpha",
        "alpha_ordered": "alpha, a tie halfway between",
        "agreement": "equal judgements",
    }
    found = [(named[name], figure) for name, figure in report.metrics.items()]
    found += [(f"Cohen's kappa: {' and '.join(names)}", kappa) for names, kappa in report.kappas.items()]
    for name, figure in found:
        interval = f"[{figure.low:.3f}, {figure.high:.3f}]"
        table.add_row(Text(printable(name)), f"{figure.value:.3f}", interval, f"{figure.n:,}")
    return table


def _people_table(report: AgreementReport) -> Table:
    table = Table("person", "judged", "skipped", "undone", "seconds", "prefers the first", box=None)
    for name, person in report.people.items():
        seconds = "" if person.seconds is None else f"{person.seconds:.1f}"
        first = "" if person.first is None else str(person.first)
        counts = (f"{n:,}" for n in (person.judged, person.skipped, person.taken_back))
        table.add_row(Text(printable(name)), *counts, seconds, first)
    return table
