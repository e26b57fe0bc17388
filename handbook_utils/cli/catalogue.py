"""The commands `handbook recipes` and `handbook convert`; what they print is in `recipes.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from handbook_utils.cli.options import Json


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe's card.", show_default=False)] = None,
    methods: Annotated[bool, typer.Option("--methods", help="List stages and losses with papers.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema for editors.")] = False,
    json: Json = False,
) -> None:
    """List the packaged recipes with hardware and status, or show one recipe's card."""
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
    file: Annotated[Path, typer.Argument(help="A recipe of the alignment-handbook or of TRL.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the recipe there.")] = None,
    stage: Annotated[str | None, typer.Option(help="Default: told by the folder or the keys.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="GPUs its batch size is meant for.")] = 8,
    json: Json = False,
) -> None:
    """Turn a flat recipe into one of ours, and say what became of every key."""
    from handbook_utils.cli.recipes import convert_file

    convert_file(file, out=out, stage=stage, processes=processes, json=json)
