"""Options that several commands take, and how help is wrapped; importing them loads nothing heavy."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from handbook_utils.errors import RecipeError, suggest

RECIPES_ONLY = "Recipes only. "
RUN_FOLDER = "Run folder. Default: runs/<last part of the recipe's name>"
CHANGES = "Change one value of the recipe, such as training.max_steps=10. Repeatable."
SEED = "Seed to use instead of the recipe's."
DRY_RUN = "Show what would be done. Loads no model, writes nothing."
EXECUTOR = (
    "Where the work is done: local (this machine) or ray (a Ray cluster; needs the extra `ray`). "
    "Default: what the recipe says."
)

Out = Annotated[Path | None, typer.Option("--out", "-o", help=f"{RUN_FOLDER}.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help=CHANGES, show_default=False)]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help=SEED, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and no progress.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete the contents of the run folder and start again.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help=DRY_RUN)]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Allow running the Python functions that the recipe names as scorers."),
]
RecipeName = Annotated[
    str, typer.Argument(help="A packaged recipe (handbook recipes lists them) or a YAML file.")
]
OnExecutor = Annotated[str | None, typer.Option("--executor", help=EXECUTOR, show_default=False)]

# of commands that take something else than a recipe too, and refuse these options then
RecipeChanges = Annotated[
    list[str] | None, typer.Option("--set", help=RECIPES_ONLY + CHANGES, show_default=False)
]
RecipeDryRun = Annotated[bool, typer.Option("--dry-run", help=RECIPES_ONLY + DRY_RUN)]
RecipeExecutor = Annotated[
    str | None, typer.Option("--executor", help=RECIPES_ONLY + EXECUTOR, show_default=False)
]

Format = Annotated[str, typer.Option("--format", help="Format of the rows, if their columns do not show it.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="THEIRS=OURS",
        help="Rename a column of the file to the name used here, such as question=prompt. Repeatable.",
        show_default=False,
    ),
]
Split = Annotated[str, typer.Option("--split", help="Split to read, or a slice of it such as train[:1000].")]
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


def fill_paragraphs(app: typer.Typer) -> None:
    """Join the lines of each paragraph of all commands' help, for the terminal to wrap.

    Typer alone would break them where our docstrings are broken.
    """
    for group in app.registered_groups:
        if group.typer_instance is not None:
            fill_paragraphs(group.typer_instance)
    for command in app.registered_commands:
        text = command.help or inspect.getdoc(command.callback) or ""
        command.help = "\n\n".join(part.replace("\n", " ") for part in text.split("\n\n"))
