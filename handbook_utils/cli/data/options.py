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
        "--against", help="Your test prompts: a file, folder or hub name. Repeatable.", show_default=False
    ),
]
AgainstColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--against-column",
        metavar="THEIRS=OURS",
        help="As --column, for the test prompts. Repeatable.",
        show_default=False,
    ),
]
AgainstSplit = Annotated[str, typer.Option("--against-split", help="Split of the test prompts.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write.", show_default=False)]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier curation in that folder.")]
LEAKS, RULES, LATER = "What counts as a leak", "Rules", "A finished folder"
OR_ALL, SEE_DROP = "Repeatable; or all.", "Rules: see --drop."


def _listed(name: str, explained: str) -> Any:
    """An option of the rules that may be given several times."""
    return typer.Option(name, help=explained, rich_help_panel=RULES, show_default=False)


LeakWords = Annotated[
    int, typer.Option(min=1, help="Words per run, for --leak-share.", rich_help_panel=LEAKS)
]
LeakShare = Annotated[
    float,
    typer.Option(
        help="A row leaks a test prompt if it contains this share of the prompt's runs of words.",
        rich_help_panel=LEAKS,
    ),
]
LeakNear = Annotated[
    float,
    typer.Option(
        help="A prompt leaks a test prompt if their Jaccard similarity is this high.", rich_help_panel=LEAKS
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
Off = Annotated[list[str] | None, _listed("--off", f"Do not apply this rule. {OR_ALL} {SEE_DROP}")]
Near = Annotated[
    float,
    typer.Option(
        help="Texts at least this similar are near-duplicates: Jaccard similarity of their runs of three "
        "words. 0.8: about one word in 25 differs.",
        rich_help_panel=RULES,
    ),
]
Repetition = Annotated[
    float,
    typer.Option(
        help="An answer is repetitive if at least this share of its four-word runs came earlier in it.",
        rich_help_panel=RULES,
    ),
]
Boilerplate = Annotated[
    float,
    typer.Option(
        help="A first or last sentence is boilerplate if this share of answers, at least 20, has it.",
        rich_help_panel=RULES,
    ),
]
RepeatedWords = Annotated[
    int,
    typer.Option(
        min=1,
        help="Fewest words of a repeated answer that counts; a short one such as 'Yes.' may recur.",
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
        help="Say what became of one row, such as tips:17, and why.",
        rich_help_panel=LATER,
        show_default=False,
    ),
]
Restore = Annotated[
    list[str] | None,
    typer.Option(
        "--restore",
        help="Put back a removed row, or all rows that only this rule removed. Repeatable.",
        rich_help_panel=LATER,
        show_default=False,
    ),
]
