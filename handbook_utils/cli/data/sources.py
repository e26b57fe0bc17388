"""The sources that `handbook data` is told of: files, names and recipes, as a recipe would name them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from handbook_utils.errors import DataError, suggest

if TYPE_CHECKING:
    from handbook_utils.curation.rows import SourceRows
    from handbook_utils.schema.sections import DataSource
    from handbook_utils.schema.stage_table import Kind


def named_sources(
    names: Sequence[str] | None, format: str, columns: Sequence[str] | None, split: str
) -> list[DataSource]:
    """Sources as a recipe would name them; of a recipe, its own.

    Args:
        names: as given on the command line.
        format: of all rows; "auto" to find out.
        columns: "theirs=ours" each.
        split: of each source.
    Raises:
        DataError: nothing is named, or a recipe names no data of its own.
    """
    from pydantic import ValidationError

    from handbook_utils.schema.sections import DataSource

    if not names:
        raise DataError("name the data: a file, a folder, a name on the hub, or a recipe.")
    found: list[DataSource] = []
    for name in names:
        if _is_recipe(name):
            found += _of_recipe(name)
            continue
        given = {
            "name": name,
            "format": format,
            "columns": _mapping(columns),
            "split": split,
            "allow_test": True,
        }
        try:
            found.append(DataSource.model_validate(given))
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"] == ("format",):
                raise DataError(f"--format: there is no format '{format}'. {_nearest(format)}") from None
            raise DataError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    return found


def _is_recipe(name: str) -> bool:
    from handbook_utils.schema.recipe import recipe_names

    return name.endswith((".yaml", ".yml")) or name in recipe_names()


def _of_recipe(name: str) -> list[DataSource]:
    from handbook_utils.schema.recipe import load_recipe

    recipe = load_recipe(name)
    sources = getattr(recipe, "data", None)
    if not isinstance(sources, list):
        raise DataError(f"{name}: a recipe of stage '{recipe.stage}' names no data. Take one that trains.")
    earlier = next((source for source in sources if source.name is None), None)
    if earlier is not None:
        raise DataError(
            f"{name}: its data comes from the run '{earlier.from_}'. Name that run's folder instead."
        )
    return sources


def _nearest(format: str) -> str:
    """The nearest format; all of them where none is near."""
    from handbook_utils.schema.sections import DataSource

    known: tuple[str, ...] = get_args(DataSource.model_fields["format"].annotation)
    return near if (near := suggest(format, known)).startswith("Did") else f"Choose from: {', '.join(known)}."


def _mapping(columns: Sequence[str] | None) -> Mapping[str, str]:
    pairs = [pair.partition("=") for pair in columns or ()]
    for theirs, _, ours in pairs:
        if not theirs or not ours:
            raise DataError(f"--column {theirs}: write theirs=ours, such as question=prompt.")
    return {theirs: ours for theirs, _, ours in pairs}


def as_written(
    names: Sequence[str] | None, format: str, columns: Sequence[str] | None, split: str, option: str = ""
) -> str:
    """Sources and how they are read, as they are written in a command that can be copied.

    Args:
        names: of the sources.
        format: as `--format`.
        columns: as `--column`.
        split: as `--split`.
        option: that stands before each name and before what is said of it; "" for plain arguments.

    >>> as_written(["my rows.csv"], "auto", ["question=prompt"], "train")
    "'my rows.csv' --column question=prompt"
    >>> as_written(["test.csv"], "auto", ["q=prompt"], "train[:9]", option="--against")
    "--against test.csv --against-column q=prompt --against-split 'train[:9]'"
    """
    said = [(option, name) for name in names or ()]
    said += [("--format", format)] if format != "auto" else []
    said += [(f"{option or '-'}-column", pair) for pair in columns or ()]
    said += [(f"{option or '-'}-split", split)] if split != "train" else []
    return " ".join(f"{name} {shlex.quote(value)}".strip() for name, value in said)


def opened_sources(
    names: Sequence[str] | None, format: str, columns: Sequence[str] | None, split: str
) -> list[SourceRows]:
    """Named sources, opened; the rows of one recipe are read as its stage reads them."""
    from handbook_utils.curation.rows import open_sources

    sources = named_sources(names, format, columns, split)
    kind = _kind_of_recipe(names[0]) if names is not None and len(names) == 1 else None
    return open_sources(sources, kind=kind)


def _kind_of_recipe(name: str) -> Kind | None:
    """What a recipe's stage reads its rows as; None for what is no recipe."""
    from handbook_utils.schema.recipe import load_recipe
    from handbook_utils.schema.stage_table import STAGES

    return STAGES[load_recipe(name).stage].kind if _is_recipe(name) else None
