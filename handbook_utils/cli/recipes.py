"""`handbook recipes` and `handbook convert`: the packaged recipes, their sources, and converting others."""

from __future__ import annotations

import json as json_module
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from handbook_utils.cli.view import say_next
from handbook_utils.convert.flat import convert_recipe
from handbook_utils.convert.notes import NO_VALUE, Note
from handbook_utils.errors import RecipeError
from handbook_utils.reporting.expected import expected_results
from handbook_utils.runs.atomic import write_text
from handbook_utils.schema.cards import NOT_LOADED, RecipeCard, hyperparameters, recipe_card
from handbook_utils.schema.recipe import (
    check_recipe,
    load_recipe,
    read_recipe_file,
    recipe_json_schema,
    recipe_names,
)
from handbook_utils.schema.stage_table import STAGES, training_stages

# below this width the list leaves out hardware and status, which each recipe's card has
WIDE = 160


def show_schema() -> None:
    """The JSON schema of all recipes."""
    print(json_module.dumps(recipe_json_schema(), indent=1))


def show_methods(json: bool) -> None:
    """Every stage, loss and way to select, with what it needs and its paper."""
    from handbook_utils.cli.papers import methods

    if json:
        print(json_module.dumps([method.to_json() for method in methods()]))
        return
    table = Table(
        "stage", "loss or strategy", "what it does", "needs", "paper", box=None, header_style="bold"
    )
    for method in methods():
        place = f" arXiv {method.arxiv}" if method.arxiv else ""
        cited = f"{method.paper}, {method.year}.{place}" if method.paper else ""
        stage, loss = (method.stage, method.name) if method.stage else (method.name, "")
        table.add_row(stage, loss, method.does, method.needs, cited)
    Console().print(table)
    say_next("see the recipes: handbook recipes")


def show_recipes(json: bool) -> None:
    """The packaged recipes with their hardware and status."""
    rows = [_listed(name) for name in recipe_names()]
    if json:
        print(json_module.dumps(rows))
        return
    console = Console(highlight=False)
    columns = {"name": "recipe", "stage": "stage"}
    if console.width >= WIDE:
        columns |= {"hardware": "hardware", "status": "status"}
    widths = [max(len(row[key]) for row in rows) for key in columns]
    # what it does comes last and is cut at the end of the line; names never are
    columns, widths = columns | {"description": "what it does"}, [*widths, 0]
    for row in [columns, *rows]:
        line = "  ".join(f"{row[key]:<{width}}" for key, width in zip(columns, widths, strict=True))
        style = "bold" if row is columns else ""
        console.print(line.rstrip(), style=style, markup=False, no_wrap=True, overflow="ellipsis")
    say_next("see a recipe's hardware, status and values: handbook recipes RECIPE")


def _listed(name: str) -> dict[str, str]:
    recipe, card = load_recipe(name), recipe_card(name)
    about = {"name": name, "stage": recipe.stage, "description": recipe.description}
    return about | {"hardware": card.hardware, "status": card.status}


def show_card(name: str, json: bool) -> None:
    """One recipe's card: sources, hardware, what was measured and what others publish."""
    recipe, card, rows = load_recipe(name), recipe_card(name), hyperparameters(name)
    if json:
        values = [{"key": key, "value": value, "source": source} for key, value, source in rows]
        record = {"name": name, "not_loaded": NOT_LOADED, "hyperparameters": values, **card.model_dump()}
        print(json_module.dumps(record))
        return
    console = Console(highlight=False)
    console.print(f"{name}  ", style="bold", end="", markup=False)
    console.print(recipe.description, markup=False)
    for title, lines in card_sections(card):
        console.print(f"\n{title}", style="bold")
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
    if rows:
        # names are whole at any width; long values and sources go on in the next line
        folded = (Column(f"\n{name}", overflow="fold") for name in ("value", "from"))
        table = Table(Column("\nhyperparameter", no_wrap=True), *folded, box=None, header_style="bold")
        above = ""
        for key, value, source in rows:
            # a source that stands above is not written again
            table.add_row(key, str(value), '"' if source == above else source)
            above = source
        console.print(table)
    command = f"handbook {STAGES[recipe.stage].command} {name}"
    say_next(f"see what it would do: {command} --dry-run; run it: {command}")


def card_sections(card: RecipeCard) -> list[tuple[str, list[str]]]:
    """A card's texts under their titles, in the order in which a reader needs them."""
    published = [f"{entry.figure} ({entry.source})" for entry in card.published]
    sections = [
        ("About", [card.about] if card.about else []),
        ("Hardware", [card.hardware]),
        ("Not run here", [NOT_LOADED]),
        ("Measured by us", [_measured(place) for place in card.measured] or ["nothing"]),
        ("Published by others, not reproduced here", published or ["nothing that we cite"]),
        ("Changed from the file it is converted from", [f"{k}: {why}" for k, why in card.changed.items()]),
        ("Remarks", card.remarks),
    ]
    return [(title, lines) for title, lines in sections if lines]


def _measured(place: str) -> str:
    """One place in the book's results, with the figures to expect from a run of one's own."""
    expected = ", ".join(f"{name} {figure}" for name, figure in expected_results(place).items())
    return f"{place}: {expected}" if expected else place


def convert_file(file: Path, *, out: Path | None, stage: str | None, processes: int, json: bool) -> None:
    """Convert a flat recipe; the recipe goes to `out` or stdout, the notes beside it."""
    content = read_recipe_file(file)
    notes: list[Note] = []
    if stage is None and (told := _folder_stage(file)):
        stage = told
        notes.append(Note("(stage)", "changed", f"{told}, by the file's folder; --stage says otherwise."))
    try:
        recipe, found = convert_recipe(content, stage=stage, processes=processes)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from None
    notes += found
    check_recipe(recipe, f"{file}, converted")
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    if json:
        print(json_module.dumps({"recipe": recipe, "notes": [note.to_json() for note in notes]}))
    elif out is None:
        print(text, end="")
    if out is not None:
        write_text(out, text)
    if not json:
        _show_notes(notes, out, STAGES[recipe["stage"]].command)


def _folder_stage(file: Path) -> str | None:
    """The alignment-handbook keeps its recipes in folders named by stage."""
    stages = training_stages()
    return next((part for part in reversed(file.resolve().parts[:-1]) if part in stages), None)


def _show_notes(notes: Sequence[Note], out: Path | None, command: str) -> None:
    # stderr: `handbook convert old.yaml > new.yaml` holds the recipe alone
    console = Console(stderr=True)
    table = Table("key", "", "what became of it", box=None, header_style="bold")
    styles: dict[str, Any] = {"unknown": "yellow", "left out": "dim"}
    empty = sorted(note.key for note in notes if note.why == NO_VALUE)
    for note in sorted(notes, key=lambda note: ("unknown", "changed", "left out").index(note.outcome)):
        if note.why != NO_VALUE:
            table.add_row(note.key, note.outcome, note.why, style=styles.get(note.outcome))
    if empty:
        table.add_row(f"{len(empty)} keys", "left out", f"without a value: {', '.join(empty)}.", style="dim")
    console.print(table)
    if out is not None:
        console.print(f"wrote {out}", style="dim", soft_wrap=True)
    file = "FILE" if out is None else shlex.quote(str(out))
    say_next(f"see what it would do: handbook {command} {file} --dry-run", to_stderr=True)
