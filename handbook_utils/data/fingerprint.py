"""A checksum of a dataset's rows that is the same in every process, from their JSON as Arrow writes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from handbook_utils.libraries.exact_json import ExactJson

BATCH = 1000
# what JSON writes otherwise than as it is; the other control characters are left to Python
_ESCAPED = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))
_RARE = r"[\x00-\x08\x0b\x0c\x0e-\x1f]"


def dataset_fingerprint(dataset: Dataset) -> str:
    """Checksum of a dataset's columns and rows, each row as JSON."""
    digest = hashlib.sha256(json.dumps(dataset.column_names).encode())
    as_json = {name for name, feature in dataset.features.items() if isinstance(feature, ExactJson)}
    for number, table in enumerate(dataset.with_format("arrow").iter(BATCH)):
        columns = [_column(name, table[name].combine_chunks(), as_json) for name in table.column_names]
        written = _objects(table.column_names, columns)
        if written is None:
            texts = _one_by_one(dataset[number * BATCH : number * BATCH + len(table)])
        else:
            texts = written.to_pylist()
        digest.update("".join(texts).encode())
    return digest.hexdigest()


def _one_by_one(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def _column(name: str, values: pa.Array, as_json: Collection[str]) -> pa.Array | None:
    if name not in as_json:
        return _values(values)
    return pc.fill_null(values.storage if isinstance(values, pa.ExtensionArray) else values, "null")


def _values(values: pa.Array) -> pa.Array | None:
    """Each value as `json.dumps` writes it; None where only Python can tell."""
    kind = values.type
    if values.null_count:
        return None
    if pa.types.is_string(kind):
        return _texts(values)
    if pa.types.is_struct(kind):
        return _objects([field.name for field in kind], [_values(part) for part in values.flatten()])
    if not pa.types.is_list(kind) or (inner := _values(values.flatten())) is None:
        return None
    ends = np.cumsum([0, *pc.list_value_length(values).to_pylist()], dtype=np.int32)
    return _joined("[", pc.binary_join(pa.ListArray.from_arrays(ends, inner), ", "), "]")


def _objects(names: Sequence[str], columns: Sequence[pa.Array | None]) -> pa.Array | None:
    if not names or any(column is None for column in columns):
        return None
    keys = [f"{', ' if place else '{'}{json.dumps(name)}: " for place, name in enumerate(names)]
    return _joined(*chain.from_iterable(zip(keys, columns, strict=True)), "}")


def _texts(values: pa.Array) -> pa.Array | None:
    if pc.any(pc.match_substring_regex(values, _RARE)).as_py():
        return None
    escaped = reduce(lambda made, pair: pc.replace_substring(made, *pair), _ESCAPED, values)
    return _joined('"', escaped, '"')


def _joined(*parts: Any) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")
