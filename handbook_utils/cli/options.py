"""Options that several commands take; importing them loads nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handbook_utils.errors import RecipeError, suggest

Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Run folder. Default: runs/<last part of the recipe's name>."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change one value of the recipe, such as training.max_steps=10. Repeatable.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Seed to use instead of the recipe's.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and no progress.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete the contents of the run folder and start again.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done. Loads no model, writes nothing.")
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Let the Python functions run that the recipe names as scorers."),
]
RecipeName = Annotated[
    str, typer.Argument(help="A packaged recipe (handbook recipes lists them) or a YAML file.")
]


OnExecutor = Annotated[
    str | None,
    typer.Option(
        "--executor",
        help="Where the work is done: local (this machine) or ray (a Ray cluster; needs the extra `ray`). "
        "Default: what the recipe says.",
        show_default=False,
    ),
]
Format = Annotated[str, typer.Option("--format", help="Format of the rows, where their columns do not tell.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FILE's=OURS",
        help="Read a column of the file under our name, such as question=prompt. Repeatable.",
        show_default=False,
    ),
]
Split = Annotated[str, typer.Option("--split", help="Split, also with a slice: train[:1000].")]
EXECUTORS = {"local": "executor=null", "ray": "executor.kind=ray"}


def executor_changes(executor: str | None) -> list[str]:
    """The option as a change of the recipe; the rest of its section stays.

    Raises:
        RecipeError: there is no such executor; the nearest is named.
    """
    if executor is None:
        return []
    if executor not in EXECUTORS:
        raise RecipeError(f"--executor: unknown value '{executor}'. {suggest(executor, EXECUTORS)}")
    return [EXECUTORS[executor]]
