"""What prompts ask for: rows with `instruction_id_list` and `kwargs`, as IFEval's own file has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from handbook_utils.data.formats import prompt_hash
from handbook_utils.data.load import Locator, normaliser_of, origin_of
from handbook_utils.data.sources import read_rows
from handbook_utils.errors import DataError, suggest
from handbook_utils.records import Completion
from handbook_utils.sampling.scoring.instructions.checks import RELATIONS
from handbook_utils.sampling.scoring.instructions.table import INSTRUCTIONS
from handbook_utils.sampling.scoring.instructions.texts import LANGUAGES
from handbook_utils.sampling.scoring.score import prompt_text
from handbook_utils.schema.sections import DataSource

IDS, ARGUMENTS = "instruction_id_list", "kwargs"
_WANTED: Final = {
    "count": "a whole number from 0",
    "position": "a whole number from 1",
    "relation": " or ".join(f'"{relation}"' for relation in RELATIONS),
    "text": "a text that is not empty",
    "texts": "a list of texts, none of them empty",
    "letter": "one character",
    "language": "a code such as en",
}


@dataclass(frozen=True)
class Asked:
    """One verifiable instruction with its arguments, all of them known to fit."""

    id: str
    arguments: Mapping[str, Any]


def read_asked(source: DataSource, run: Locator) -> dict[str, list[Asked]]:
    """The instructions of each prompt, by its id, where the row has one, and by the hash of its text.

    Args:
        source: rows with `prompt`, `instruction_id_list` and `kwargs` (as long as that list).
        run: finds earlier runs.
    Raises:
        DataError: a row without instructions, with one that cannot be checked, or with arguments that do not
            fit it; two rows of one prompt that ask for different things. The row is named.
    """
    first, rows = read_rows(origin_of(source, run, seed=0))
    normalise = normaliser_of(source, run, kind="prompt")
    asked: dict[str, list[Asked]] = {}
    for number, row in enumerate(rows, start=first):
        place = f"{source.label}: row {number}"
        wanted = asked_in(row, place)
        example = normalise(number, row)[0]
        # by its text too: answers from elsewhere do not know the ids of these rows
        for name in (example["prompt_id"], prompt_hash(example["prompt"])):
            if asked.setdefault(name, wanted) != wanted:
                raise DataError(f"{place} asks a prompt for other things than an earlier row. Keep one.")
    return asked


def asked_of(row: Completion, asked: Mapping[str, Sequence[Asked]]) -> Sequence[Asked] | None:
    """What an answer's prompt asks for, as `read_asked` found it; None where that is not on record.

    It is looked up by the prompt's id, or else by what the user said: a recipe may put a system message
    before it.
    """
    found = asked.get(row.prompt_id)
    if found is None and any(message["role"] == "user" for message in row.prompt):
        found = asked.get(prompt_hash([{"role": "user", "content": prompt_text(row.prompt)}]))
    return found


def asked_in(row: Mapping[str, Any], place: str) -> list[Asked]:
    """The instructions of one row.

    Args:
        row: with `instruction_id_list` and `kwargs`.
        place: how errors name the row.
    Raises:
        DataError: as `read_asked`.

    >>> asked_in({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}, "row 1")
    [Asked(id='punctuation:no_comma', arguments={})]
    """
    lists = []
    for column in (IDS, ARGUMENTS):
        found = row.get(column)
        if found is None:
            raise DataError(f"{place} has no '{column}'. {suggest(column, map(str, row))}")
        if not isinstance(found, list | tuple):
            raise DataError(f"{place}: '{column}' is a {type(found).__name__}. It has to be a list.")
        lists.append(list(found))
    ids, arguments = lists
    if not ids:
        raise DataError(f"{place}: '{IDS}' is empty, so there is nothing to check. Leave such rows out.")
    if len(ids) != len(arguments):
        raise DataError(
            f"{place}: {len(ids)} instructions and {len(arguments)} entries in '{ARGUMENTS}'. "
            "Each instruction needs one, in the same order; {} where it takes none."
        )
    return [_asked(name, given, place) for name, given in zip(ids, arguments, strict=True)]


def _asked(name: Any, given: Any, place: str) -> Asked:
    if not isinstance(name, str) or name not in INSTRUCTIONS:
        raise DataError(
            f"{place}: no check is known for the instruction '{name}', and it is not counted as followed. "
            f"{suggest(str(name), INSTRUCTIONS)} Leave out rows with other instructions."
        )
    if not isinstance(given, Mapping | None):
        raise DataError(f"{place}: the entry of '{name}' in '{ARGUMENTS}' is {given!r}. Write {{...}}.")
    # tables have every argument of any instruction in each row, null where it is not meant
    told = {key: value for key, value in (given or {}).items() if value is not None}
    wanted = INSTRUCTIONS[name].arguments
    for key in told:
        if key not in wanted:
            takes = suggest(str(key), wanted) if wanted else "It takes none."
            raise DataError(f"{place}: '{name}' has no argument '{key}'. {takes}")
    arguments = {key: _value(told.get(key), key, kind, f"{place}: '{name}'") for key, kind in wanted.items()}
    if arguments.get("nth_paragraph", 0) > arguments.get("num_paragraphs", 0):
        raise DataError(f"{place}: '{name}' asks for a paragraph beyond 'num_paragraphs'.")
    return Asked(name, arguments)


def _value(value: Any, key: str, kind: str, place: str) -> Any:
    if value is None:
        # IFEval draws what is missing at random, which no answer can know
        raise DataError(f"{place} needs the argument '{key}': {_WANTED[kind]}.")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column with nulls has whole numbers as floats
    if not _FITS[kind](value):
        hint = f" {suggest(str(value), LANGUAGES)}" if kind == "language" else ""
        raise DataError(f"{place}: '{key}' is {value!r}. Write {_WANTED[kind]}.{hint}")
    return list(value) if kind == "texts" else value


def _is_whole(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_text, value))


_FITS: Final[dict[str, Callable[[Any], bool]]] = {
    "count": lambda value: _is_whole(value, 0),
    "position": lambda value: _is_whole(value, 1),
    "relation": lambda value: value in RELATIONS,
    "text": _is_text,
    "texts": _are_texts,
    "letter": lambda value: isinstance(value, str) and len(value) == 1,
    "language": lambda value: value in LANGUAGES,
}
