"""Options of `handbook data show`, `curate` and `decontaminate`; importing them loads nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from handbook_utils.curation.rules.table import RULES as RULE_TABLE

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files or folders (.jsonl, .json, .csv, .parquet, ...), hub names or pocket:...; "
        "or recipes, for all of their data.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="The model to be trained; only its tokenizer is loaded.", show_default=False
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        "--against", help="A file or name of prompts that you test on. Repeatable.", show_default=False
    ),
]
AgainstColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--against-column",
        metavar="FILE's=OURS",
        help="As --column, for what you test on. Repeatable.",
        show_default=False,
    ),
]
AgainstSplit = Annotated[str, typer.Option("--against-split", help="Split of what you test on.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write.", show_default=False)]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier curation in that folder.")]
LEAKS, RULES, LATER = "What counts as a leak", "Rules", "A finished folder"
OR_ALL, SEE_DROP = "Repeatable; or all.", "Rules: see --drop."


def _listed(name: str, explained: str) -> Any:
    """An option of the rules that may be given several times."""
    return typer.Option(name, help=explained, rich_help_panel=RULES, show_default=False)


LeakWords = Annotated[
    int, typer.Option(min=1, help="Words in a row that count as shared.", rich_help_panel=LEAKS)
]
LeakShare = Annotated[
    float, typer.Option(help="Share of a test prompt's runs that a row must hold.", rich_help_panel=LEAKS)
]
LeakNear = Annotated[
    float,
    typer.Option(
        help="Jaccard similarity from which two prompts are near-duplicates.", rich_help_panel=LEAKS
    ),
]
Drop = Annotated[
    list[str] | None,
    _listed("--drop", f"Remove the rows that this rule finds. {OR_ALL} Rules: {', '.join(RULE_TABLE)}."),
]
Flag = Annotated[
    list[str] | None,
    _listed("--flag", f"Keep the rows that this rule finds, and list them. {OR_ALL} {SEE_DROP}"),
]
Off = Annotated[list[str] | None, _listed("--off", f"Do not ask this rule. {OR_ALL} {SEE_DROP}")]
Near = Annotated[
    float,
    typer.Option(
        help="Jaccard similarity of runs of three words from which texts are near-duplicates. "
        "0.8: about one word in 25 differs.",
        rich_help_panel=RULES,
    ),
]
Repetition = Annotated[
    float,
    typer.Option(
        help="Share of an answer's runs of four words that came before in it.", rich_help_panel=RULES
    ),
]
Boilerplate = Annotated[
    float,
    typer.Option(
        help="Share of the answers (and at least 20) that begin or end with the same sentence.",
        rich_help_panel=RULES,
    ),
]
RepeatedWords = Annotated[
    int,
    typer.Option(
        min=1,
        help="Words from which a repeated answer counts; 'Yes.' may come again.",
        rich_help_panel=RULES,
    ),
]
Languages = Annotated[
    list[str] | None,
    _listed(
        "--language",
        "A language that answers may be in, such as en. Repeatable. Default: that of their prompt.",
    ),
]
Explain = Annotated[
    str | None,
    typer.Option(
        "--explain",
        help="Tell what became of one row of the folder, such as tips:17, and why.",
        rich_help_panel=LATER,
        show_default=False,
    ),
]
Restore = Annotated[
    list[str] | None,
    typer.Option(
        "--restore",
        help="Put a removed row back, or all that a rule alone removed. Repeatable.",
        rich_help_panel=LATER,
        show_default=False,
    ),
]
