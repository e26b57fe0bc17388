"""What `handbook data` prints: a look at a source, counts by rule, the fate of a row, leaks in context."""

from __future__ import annotations

import json as json_module
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from handbook_utils.chat.view import printable, row_markup
from handbook_utils.cli.view import say_next

if TYPE_CHECKING:
    from handbook_utils.curation.curate import Curation
    from handbook_utils.curation.look import Look, ShownRow
    from handbook_utils.curation.tested import LeakReport

# characters of a text, and hits, that a terminal shows
SHOWN_TEXT, SHOWN_LEAKS = 600, 20


def print_json(record: Any) -> None:
    """One JSON object."""
    print(json_module.dumps(record))


def show_look(look: Look) -> None:
    """A source: format and reason, counts, lengths, rows."""
    from handbook_utils.curation.look import PERCENTILES, SHOWN_COLUMNS

    console = Console(highlight=False)
    console.print(Text(look.name, style="bold"))
    refused = look.rows - look.readable
    bad = f"; {refused:,} of them cannot be read" if refused else ""
    _line(console, f"{look.rows:,} rows of {look.kind} data{bad}")
    if look.recognised:
        _line(console, f"read as {look.recognised}")
    names = ", ".join(name for name, _ in look.columns.most_common(SHOWN_COLUMNS))
    more = len(look.columns) - SHOWN_COLUMNS
    _line(console, f"columns: {names}{f' and {more:,} more' if more > 0 else ''}")
    for _, why in look.problems:
        _line(console, why, "yellow")
    if look.lengths:
        table = Table("length per row", *(name for name, _ in PERCENTILES), box=None, header_style="bold")
        for part, units in look.lengths.items():
            for unit, found in units.items():
                table.add_row(f"{part}, {unit}", *(f"{found[name]:,.0f}" for name, _ in PERCENTILES))
        console.print(table)
    if look.sampled is not None:
        _line(console, f"tokens are counted in {look.sampled:,} rows", "dim")
    _show_bias(console, look.length_bias)
    for row in look.shown:
        _show_row(console, row)


def _show_row(console: Console, row: ShownRow) -> None:
    console.print()
    _line(console, f"row {row.number:,}", "bold")
    if row.problem:
        _line(console, row.problem, "yellow")
    for one in row.rendered:
        for tokens in one.rows:
            marked = row_markup(tokens.pieces, tokens.loss)
            shown = Text.assemble(*marked) if console.is_terminal else Text(str(tokens))
            console.print(shown, soft_wrap=True)
            _line(console, f"{sum(tokens.loss)} of {len(tokens.loss)} tokens carry loss: {one.by}", "dim")
    for speaker, text, learned in () if row.rendered else row.messages:
        cut = "" if len(text) <= SHOWN_TEXT else f"... ({len(text):,} characters)"
        _line(console, f"{speaker}{' (learned)' if learned else ''}: {text[:SHOWN_TEXT]}{cut}")


def _show_bias(console: Console, bias: dict[str, Any] | None) -> None:
    if bias is None:
        return
    rate, ratio, effect = bias["longer_chosen"], bias["length_ratio"], bias["effect_size"]
    _line(
        console,
        f"length bias: the longer answer is chosen in {_interval(rate, '.1%')} of {rate['n']:,} pairs; "
        f"chosen answers are {_interval(ratio, '.2f')} times as long; effect size {_interval(effect, '.2f')}",
        "yellow" if abs(effect["value"]) >= 0.2 else "",
    )


def _interval(found: dict[str, float], form: str) -> str:
    return f"{found['value']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def show_curation(done: Curation, json: bool) -> None:
    """Counts by rule, with an example of each."""
    report = done.report
    if json:
        print_json({"folder": str(done.folder), "reused": done.is_reused, **report})
        return
    console = Console(highlight=False)
    if done.is_reused:
        _line(console, f"{done.folder} holds this curation already: the same rows and settings.", "dim")
    for source in report["sources"]:
        _line(
            console,
            f"{source['name']}: {source['rows']:,} rows, {source['kept']:,} kept, {source['flagged']:,} of "
            f"these flagged; read as {source['recognised'] or 'nothing'}",
        )
    _show_rules(console, report["rules"], report["not_checked"])
    _show_bias(console, report["length_bias"])
    _line(
        console, f"{report['kept']:,} rows kept, {report['removed']:,} removed, {report['flagged']:,} flagged"
    )
    _say_after_curation(console, done)


def _show_rules(
    console: Console, rules: Mapping[str, Mapping[str, Any]], not_checked: Mapping[str, str]
) -> None:
    table = Table("rule", "does", "rows", "finds", "first example", box=None, header_style="bold")
    clean = []
    for name, about in rules.items():
        rows = about["removed"] + about["flagged"]
        if rows:
            example = about["examples"][0] if about["examples"] else {"id": "", "why": ""}
            shown = Text(printable(f"{example['id']}: {example['why']}"[:200]))
            style = "red" if about["action"] == "drop" else "yellow"
            table.add_row(name, Text(about["action"], style), f"{rows:,}", about["finds"], shown)
        elif about["action"] != "off" and name not in not_checked:
            clean.append(name)
    if table.rows:
        console.print(table)
    if clean:
        _line(console, f"found nothing: {', '.join(clean)}", "dim")
    for name, what in not_checked.items():
        _line(console, f"not checked: {name}; {what}", "yellow")


def _say_after_curation(console: Console, done: Curation) -> None:
    report = done.report
    folder = shlex.quote(str(done.folder))
    step = f"name {done.folder / report['sources'][0]['file']} under data: in a recipe"
    unread = [source for source in report["sources"] if source["kept_unread"]]
    if unread:
        files = " ".join(shlex.quote(str(done.folder / source["file"])) for source in unread)
        out = shlex.quote(f"{done.folder}-readable")
        _line(
            console,
            f"{sum(source['kept_unread'] for source in unread):,} kept rows cannot be read, and training "
            "would stop at the first",
            "yellow",
        )
        step = f"find and remove them: handbook data curate {files} --out {out}"
    first = next((e["id"] for r in report["rules"].values() for e in r["examples"]), None)
    why = f"; why a row went: handbook data curate --out {folder} --explain {first}" if first else ""
    say_next(step + why)


def show_later(folder: Path, explained: str | None, restored: Sequence[str] | None, json: bool) -> None:
    """The fate of a row, or rows put back."""
    from handbook_utils.curation.folder import explain, restore

    if restored:
        back = restore(folder, restored)
        if json:
            print_json({"folder": str(folder), "restored": back})
        else:
            print(f"kept again: {len(back):,} ({', '.join(back[:10])}{' ...' if back[10:] else ''})")
    if explained:
        fate = explain(folder, explained)
        if json:
            print_json(fate)
            return
        console = Console(highlight=False)
        _line(console, f"{fate['id']}: {fate['fate']}", "bold")
        for finding in fate["rules"]:
            _line(console, f"{finding['rule']}: {finding['why']}")
        if fate["stands_for"]:
            _line(console, f"rows that repeat it: {', '.join(fate['stands_for'][:20])}")
        _line(console, json_module.dumps(fate["data"], ensure_ascii=False)[: 4 * SHOWN_TEXT])
        if fate["fate"] == "removed":
            name = shlex.quote(str(folder))
            say_next(f"if it should stay: handbook data curate --out {name} --restore {fate['id']}")


def show_leaks(report: LeakReport, sources: str, against: str, json: bool) -> None:
    """Hits in their context; `sources` and `against` as they are written in a command."""
    if json:
        print_json(report.to_json())
        return
    console = Console(highlight=False)
    found = [leak for leaks in report.leaks.values() for leak in leaks]
    for leak in found[:SHOWN_LEAKS]:
        _line(console, f"{leak.id} {leak.why}")
    if found[SHOWN_LEAKS:]:
        _line(console, f"and {len(found) - SHOWN_LEAKS:,} more; --json lists all", "dim")
    for label, unread in report.unread.items():
        if unread:
            _line(console, f"{label}: {unread:,} rows cannot be read and were not compared", "yellow")
    if report.template_runs:
        _line(
            console,
            f"{report.template_runs:,} runs of words that many test prompts share were ignored",
            "dim",
        )
    _line(
        console,
        f"{len(found):,} of {report.rows:,} rows hold one of {report.tested:,} prompts that are tested on",
        "bold red" if found else "bold green",
    )
    if found:
        say_next(f"write the data without them: handbook data decontaminate {sources} {against} --out clean")


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(printable(text), style=style), soft_wrap=True)
