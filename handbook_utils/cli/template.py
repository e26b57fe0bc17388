"""`handbook template`: what a chat template does, and a conversation's tokens with those that carry loss."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from handbook_utils.chat.report import TemplateReport
from handbook_utils.chat.view import printable, row_markup

STYLES = {"ok": "green", "error": "bold red", "warning": "yellow", "note": "cyan"}


def template(
    model: Annotated[str, typer.Argument(help="A run folder, model folder, hub name or pocket:base.")],
    data: Annotated[
        str | None, typer.Option(help="Where to read a conversation from: a file, a hub name or pocket:...")
    ] = None,
    row: Annotated[int, typer.Option(min=1, help="Which conversation to show, counted from 1.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a model's chat template, and show which tokens of a conversation carry loss.

    Exits with status 1 if the template is not fit to train with.

    Example: handbook template pocket:base --data my.jsonl
    """
    is_fit = _show(model, data, row, json)
    if not json:
        _say_next(model, is_fit)
    if not is_fit:
        raise typer.Exit(1)


def _say_next(model: str, is_fit: bool) -> None:
    from handbook_utils.cli.view import say_next

    if is_fit:
        say_next(f"train with it: write model: {{name: {model}}} in a recipe")
    else:
        say_next(
            "use another template: write chat_template: zephyr, tulu, chatml "
            "or your file under model: in a recipe"
        )


def _show(name: str, data: str | None, row: int, json: bool) -> bool:
    """Print the checks and a sample; returns whether a model can be trained with the template."""
    from handbook_utils.chat.checks import check_chat_template
    from handbook_utils.models.load import load_tokenizer

    # not for chat: a tokenizer whose template is missing or harmful is to be reported, not refused
    tokenizer = load_tokenizer(name, for_chat=False)
    report = check_chat_template(tokenizer)
    sample = _sample(tokenizer, data, row) if report["renders"].status == "pass" else None
    if json:
        shown = None if sample is None else asdict(sample)
        print(json_module.dumps({"model": name, **report.to_json(), "sample": shown}))
        return report.ok
    console = Console(highlight=False)
    console.print(_table(report))
    if sample is None:
        return report.ok
    for tokens in sample.rows:
        # into a file no colour goes, so the loss is marked by quotes there
        coloured = Text.assemble(*row_markup(tokens.pieces, tokens.loss)) if console.is_terminal else None
        console.print()
        console.print(coloured or Text(str(tokens)), soft_wrap=True)
        console.print(f"{sum(tokens.loss)} of {len(tokens.loss)} tokens carry loss: {sample.by}", style="dim")
    return report.ok


def _sample(tokenizer: Any, data: str | None, row: int) -> Any:
    from handbook_utils.chat.conversation import render_conversation
    from handbook_utils.chat.probes import TWO_TURNS
    from handbook_utils.data.load import load_dataset

    if data is None:
        return render_conversation(tokenizer, TWO_TURNS)
    found = load_dataset(data, kind="conversation", split=f"train[{row - 1}:{row}]")[-1]
    messages = [*found["prompt"], *found["completion"]]
    told = {name: found.get(name) for name in ("tools", "chat_template_kwargs")}
    return render_conversation(tokenizer, messages, **told, last_only=True)


def _table(report: TemplateReport) -> Table:
    table = Table("", "check", "found", box=None, header_style="bold")
    for check in report.checks:
        said = printable(f"{check.message} {check.remedy}".rstrip())
        table.add_row(Text(check.sign, STYLES.get(check.sign, "dim")), check.name, Text(said))
    return table
