"""The commands `handbook recipes` and `handbook convert`; what they print is in `recipes.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handbook_utils.cli.options import Json


def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe whose card to show.", show_default=False)] = None,
    methods: Annotated[
        bool, typer.Option("--methods", help="List stages, losses and selection strategies, with papers.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")
    ] = False,
    json: Json = False,
) -> None:
    """List the packaged recipes, or show one recipe's card: hardware, status, where its values come from.

    Example: handbook recipes pocket/sft
    """
    from handbook_utils.cli import recipes as view

    if schema:
        view.show_schema()
    elif methods:
        view.show_methods(json)
    elif name is not None:
        view.show_card(name, json)
    else:
        view.show_recipes(json)


def convert(
    file: Annotated[
        Path,
        typer.Argument(help="A recipe of alignment-handbook, TRL, open-r1, axolotl or LLaMA-Factory."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the recipe to this file.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="sft, reward, dpo, ... Default: inferred from the folder or the keys.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Number of GPUs that its batch size was chosen for.")
    ] = 8,
    json: Json = False,
) -> None:
    """Convert a recipe of another tool (TRL, axolotl, ...), and report how each key was converted.

    Example: handbook convert config_full.yaml --out my.yaml
    """
    from handbook_utils.cli.recipes import convert_file

    convert_file(file, out=out, stage=stage, processes=processes, json=json)
