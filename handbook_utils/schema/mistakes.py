"""What is wrong with a recipe, in words: the place as its writer names it, and the nearest valid name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from handbook_utils.errors import RecipeError, suggest
from handbook_utils.redaction import redacted
from handbook_utils.schema.fields import trainer_fields

# beyond it a number counts nothing that a machine has, and not every whole one is a float
LARGEST = 2**53


def refuse_values(content: Mapping[str, Any], where: str) -> None:
    """Refuse what no recipe can hold, whatever its key: numbers that are none, or secrets.

    Args:
        content: a recipe's, before it is checked against its type.
        where: opens the message.
    Raises:
        RecipeError: names the key; a secret itself is not repeated.
    """
    for key, value in _values(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{where}: '{key}': {value} is no number to compute with. Write a finite one.")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise RecipeError(f"{where}: '{key}': larger than {LARGEST:,}, the most that can be meant.")
        if isinstance(value, str) and redacted(value) != value:
            raise RecipeError(
                f"{where}: '{key}' holds a key or token, and a recipe is stored beside its results. Put it "
                "into an environment variable, and name that in `key_env` where the recipe needs it."
            )


def _values(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value of a recipe with its dotted key."""
    if isinstance(content, Mapping):
        parts = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list | tuple):
        parts = [(str(index), value) for index, value in enumerate(content)]
    else:
        yield place, content
        return
    for name, value in parts:
        yield from _values(value, f"{place}.{name}" if place else name)


def explained(error: ValidationError, kind: type[BaseModel], where: str) -> str:
    """The first problems of a validation, one per line, with the nearest valid names.

    Args:
        error: of checking a recipe's content.
        kind: the type it was checked against.
        where: opens every line.
    """
    return "\n".join(f"{where}: {_in_words(problem, kind)}" for problem in error.errors()[:5])


def _in_words(problem: Any, kind: type[BaseModel]) -> str:
    place, sections = _followed(kind, [str(part) for part in problem["loc"]])
    name, error = ".".join(place), problem.get("ctx", {}).get("error", "")
    match problem["type"]:
        case "extra_forbidden":
            under = f" under '{'.'.join(place[:-1])}'" if place[1:] else ""
            return f"unknown key '{place[-1]}'{under}. {_better_key(kind, problem['loc'])}"
        case "missing":
            return f"the key '{name}' is missing."
        case "union_tag_not_found":
            kinds = ", ".join(str(_kind_of(section)) for section in sections)
            return f"the key '{name}.kind' is missing. Choose from: {kinds}."
        case "literal_error" | "union_tag_invalid":
            return _unknown_value(problem, place)
        case "model_type" | "model_attributes_type" | "dict_type" | "list_type":
            return _not_a_section(problem, place, sections)
        case "value_error" if place in ([], ["training"]):  # it names its keys itself
            return str(error)
    return f"'{name}': {error or '{msg}, got {input!r}'.format(**problem)}"


def _not_a_section(problem: Any, place: Sequence[str], sections: Sequence[type[BaseModel]]) -> str:
    """What to write instead of a bare value, where a section or a list belongs."""
    is_list, value = problem["type"] == "list_type", problem["input"]
    what = "a list" if is_list else "a section with keys of its own"
    said = f"'{'.'.join(place)}' is {what}, not {value!r}."
    if not isinstance(value, str) or "name" not in _fields(sections):
        return said
    section = f"{{name: {value}}}"
    key = "" if place[-1].isdigit() else f"{place[-1]}: "
    return f"{said} Write {key}{f'[{section}]' if is_list else section}."


def _better_key(kind: type[BaseModel], place: Sequence[str | int]) -> str:
    """The end of a message about an unknown key: where it belongs, or the nearest one there is."""
    *above, key = map(str, place)
    _, sections = _followed(kind, above)
    fields = _fields(sections)
    homes = [name for name, field in fields.items() if key in _fields(_sections_in(field.annotation))]
    trainer = getattr(kind, "trainer", None)
    if trainer and not above and key in trainer_fields(trainer):
        homes.append("training")
    if len(homes) == 1:
        return f"It belongs under '{homes[0]}': {homes[0]}.{key}."
    return suggest(key, fields)


def _unknown_value(problem: Any, place: Sequence[str]) -> str:
    """What is wrong with a value that is none of those listed."""
    context = problem["ctx"]
    is_kind = problem["type"] == "union_tag_invalid"
    listed, value = (
        (context["expected_tags"], context["tag"]) if is_kind else (context["expected"], problem["input"])
    )
    choices = [choice.strip(" '") for choice in listed.replace(" or ", ",").split(",")]
    key = ".".join([*place, "kind"] if is_kind else place)
    return f"unknown value '{value}' for '{key}'. {suggest(str(value), choices)}"


def _followed(kind: type[BaseModel], place: Sequence[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """A place as its writer would name it, and the sections that may stand there.

    A validation's place also has the kind of a section that comes in several kinds.
    """
    sections: list[type[BaseModel]] = [kind]
    shown = []
    for part in place:
        field = _fields(sections).get(part)
        of_kind = [section for section in sections if len(sections) > 1 and _kind_of(section) == part]
        if of_kind:  # before fields: a kind may be called like a field of another kind
            sections = of_kind
            continue
        if field is not None:
            sections = _sections_in(field.annotation) or sections
        shown.append(part)  # a field, a position in a list, or a name in a dictionary
    return shown, sections


def _fields(sections: Sequence[type[BaseModel]]) -> dict[str, FieldInfo]:
    """The fields of some sections, by the names that a recipe gives them."""
    return {
        field.alias or name: field for section in sections for name, field in section.model_fields.items()
    }


def _kind_of(section: type[BaseModel]) -> str | None:
    field = section.model_fields.get("kind")
    return None if field is None else str(field.annotation.__args__[0])  # type: ignore[union-attr]


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in getattr(annotation, "__args__", ()) for section in _sections_in(argument)]
