"""Rows of Arrow tables as they were written: JSON parsed exactly, without the keys that a table filled in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from datasets import Dataset

from handbook_utils.errors import DataError
from handbook_utils.runs.log import warn_and_log

Row = dict[str, Any]
_Read = Callable[[Any], Any]
BATCH = 1000
# who speaks in a message, and what it says: null there is a message without text, and not a key too many
_SPEAKERS, _SAID = {"role", "from"}, ("content", "value")
# what lies below belongs to one tool, whose arguments are its own
_OF_TOOLS = {"tools", "functions", "tool_calls", "function_call", "function", "arguments", "parameters"}


class FilledNullsWarning(UserWarning):
    """Nulls in tool calls or schemas of a table are left out: it fills them in for keys of other rows."""


class TableReader:
    """Turns batches of one source's tables into rows.

    In Arrow all structs of a column have the same fields, so the arguments of one tool get those of all
    others, as null. Such members are left out. Members of JSON texts stay, null or not: they were written.
    """

    def __init__(self, name: str) -> None:
        self._name, self._told = name, False

    def rows(self, batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
        """Yield the rows of batches with one schema, a thousand at a time in memory.

        Raises:
            DataError: two columns have one name.
        """
        for batch in batches:
            names = batch.schema.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise DataError(f"{self._name}: has two columns '{twice}'. Rename or drop one of them.")
            classes = _class_names(batch.schema)
            readers = [
                partial(_named, classes[field.name])
                if field.name in classes
                else self._reader(field.type, in_tool=field.name in _OF_TOOLS)
                for field in batch.schema
            ]
            for start in range(0, batch.num_rows, BATCH):
                columns = [column.to_pylist() for column in batch.slice(start, BATCH).columns]
                read = [
                    list(map(reader, column)) if reader else column
                    for reader, column in zip(readers, columns, strict=True)
                ]
                for values in zip(*read, strict=True):
                    yield dict(zip(names, values, strict=True))

    def _reader(self, kind: pa.DataType, *, in_tool: bool) -> _Read | None:
        """What turns a value of an Arrow type into one as it was written; None where it is that already."""
        if isinstance(kind, pa.JsonType):
            return _parsed
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            inner = self._reader(kind.value_type, in_tool=in_tool)
            return inner and partial(_each, inner)
        if pa.types.is_map(kind):
            return partial(_mapping, self._reader(kind.item_type, in_tool=in_tool))
        if not pa.types.is_struct(kind):
            return None
        names = [field.name for field in kind]
        readers = {
            field.name: self._reader(field.type, in_tool=in_tool or field.name in _OF_TOOLS) for field in kind
        }
        kept = _SAID if not in_tool and _SPEAKERS & set(names) else ()
        return partial(self._struct, readers, kept, in_tool)

    def _struct(
        self, readers: dict[str, _Read | None], kept: Sequence[str], in_tool: bool, value: Any
    ) -> Any:
        if value is None:
            return None
        made = {}
        for key, given in value.items():
            reader = readers[key]
            if given is not None or key in kept:
                made[key] = given if reader is None else reader(given)
            elif in_tool and not self._told:
                self._tell(key)
        return made

    def _tell(self, key: str) -> None:
        self._told = True
        message = (
            f"{self._name}: tool calls or schemas have nulls, such as for '{key}'. They are left out, for a "
            "table fills them in for keys that only other rows have. Where a null is meant, write the rows "
            "as .jsonl."
        )
        warn_and_log(message, FilledNullsWarning)


class DatasetRows(Sequence[Row]):
    """Rows of a `Dataset`, read from its table; `datasets` itself would round numbers and fill in nulls."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self._dataset, self._reader = dataset, TableReader(name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: Any) -> Any:
        """A row, or for a slice the rows of it."""
        places = range(len(self))[place]
        if isinstance(places, range):
            return DatasetRows(self._dataset.select(places), self._reader._name)
        return next(self.at([places]))

    def __iter__(self) -> Iterator[Row]:
        return self._reader.rows(self._dataset.with_format("arrow").iter(BATCH))

    def at(self, places: Sequence[int]) -> Iterator[Row]:
        """Yield the rows of some places, in their order."""
        return self._reader.rows(self._dataset.select(places).with_format("arrow").iter(BATCH))


def rows_at(rows: Sequence[Mapping[str, Any]], places: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    """Yield some of the rows, in the order of `places`; a table gives rows in a row quickly."""
    return rows.at(places) if isinstance(rows, DatasetRows) else (rows[place] for place in places)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Columns that `datasets` keeps as numbers of classes (`ClassLabel`), and the names of these."""
    try:
        kept = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = kept["info"]["features"].items()
        return {name: feature["names"] for name, feature in features if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, AttributeError, TypeError):  # other tools' metadata
        return {}


def _named(names: list[str], number: Any) -> Any:
    is_known = isinstance(number, int) and 0 <= number < len(names)
    return names[number] if is_known else number


def _parsed(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:  # a column of JSON can be declared over texts that are none
        return text


def _mapping(reader: _Read | None, pairs: list[tuple[Any, Any]] | None) -> dict[Any, Any] | None:
    return None if pairs is None else {key: reader(value) if reader else value for key, value in pairs}


def _each(reader: _Read, values: list[Any] | None) -> list[Any] | None:
    return None if values is None else [reader(value) for value in values]
