"""Anyone's rows of answers or pairs: scored and selected from as they are, every column kept."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from handbook_utils.data.formats import Normaliser, prompt_hash
from handbook_utils.data.known_formats import Row
from handbook_utils.data.sources import Origin, read_rows
from handbook_utils.data.split import parse_split
from handbook_utils.errors import DataError
from handbook_utils.records import Completion, Message
from handbook_utils.runs.atomic import atomic_file

SIDES = ("chosen", "rejected")
WRITABLE = (".jsonl", ".parquet")


@dataclass(frozen=True)
class AnsweredRow:
    """A row and what in it can be scored.

    Attributes:
        row: as it was read.
        answers: by side: "chosen" and "rejected" of a pair, or the one answer under "".
    """

    row: Row
    answers: Mapping[str, Completion]


def read_answered(name: str, *, split: str = "train") -> list[AnsweredRow]:
    """Rows with an answer, or with a pair of them, in any of the formats that training reads.

    Rows of `prompt` and `response` are read too, as IFEval and others write a model's answers.

    Of a conversation of several turns the last answer counts, given all before it.

    Args:
        name: a file, folder, run, `pocket:...` or hub name.
        split: with an optional slice, such as train[:200].
    Raises:
        DataError: as `load_dataset`; the row is named.
    """
    first, rows = read_rows(Origin(name, parse_split(split)))
    is_pair = set(SIDES) <= set(rows[0])
    is_plain = {"prompt", "response"} <= set(rows[0]) and not {"completion", "messages"} & set(rows[0])
    normalise = Normaliser(
        kind="preference" if is_pair else "conversation",
        name=name,
        columns={"response": "completion"} if is_plain and not is_pair else {},
    )
    seen: Counter[str] = Counter()
    found = []
    for number, row in enumerate(rows, start=first):
        example = normalise(number, row)[-1]
        prompt: list[Message] = example["prompt"]
        given = row.get("prompt_id")
        prompt_id = prompt_hash(prompt) if given is None else str(given)
        texts = {side: example[side][0] for side in SIDES} if is_pair else {"": example["completion"][0]}
        answers = {
            # tokens and log-probability are of a sampler, which these rows need not come from
            side: Completion(prompt_id, seen[prompt_id], prompt, text["content"], 0, "stop", None)
            for side, text in texts.items()
        }
        seen[prompt_id] += 1
        found.append(AnsweredRow(dict(row), answers))
    return found


def check_writable(out: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot or may not be written, before any work is done.

    Raises:
        DataError: of another type, or there already.
    """
    if out.suffix not in WRITABLE:
        raise DataError(f"{out}: rows are written to {' or '.join(WRITABLE)}. Name such a file by --out.")
    if out.exists() and not overwrite:
        raise DataError(f"{out}: is there already. Choose another --out, or --overwrite to replace it.")


def write_rows(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows whole or not at all; a number that is none becomes null."""
    with atomic_file(out) as temporary:
        if out.suffix == ".parquet":
            try:
                table = pa.Table.from_pylist([dict(row) for row in rows])
            except (pa.ArrowException, OverflowError) as error:
                raise DataError(
                    f"{out}: a column holds what no table can ({error}). Write to .jsonl, which can."
                ) from None
            pq.write_table(table, temporary)
        else:
            with temporary.open("w", encoding="utf-8") as stream:
                stream.writelines(f"{line}\n" for line in _lines(rows))


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        plain = {key: None if _is_nan(value) else value for key, value in row.items()}
        # dates and the like, of Parquet files, have no form in JSON of their own
        yield json.dumps(plain, ensure_ascii=False, default=str)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
