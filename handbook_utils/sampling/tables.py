"""Samples, scores, pairs and selections as tables, and samples read back from a run or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from handbook_utils.data.split import parse_split
from handbook_utils.errors import DataError, suggest
from handbook_utils.records import Completion, PreferencePair, ScoredCompletion
from handbook_utils.runs.state import read_part, read_schema
from handbook_utils.sampling.selection.groups import Ints, text_codes
from handbook_utils.schema.sections import DataSource

if TYPE_CHECKING:
    from handbook_utils.data.load import Locator

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SAMPLES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("prompt", MESSAGES),
        ("completion", pa.string()),
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("logprob", pa.float64()),
    ]
)
# where a run keeps samples, the richest table first
SAMPLE_TABLES = ("scores", "samples")


class UnscoredWarning(UserWarning):
    """Samples have no score, so no mean counts them and no selection takes them."""


def samples_table(completions: Sequence[Completion]) -> pa.Table:
    """One row per sample, without scores."""
    rows = [{name: getattr(row, name) for name in SAMPLES.names} for row in completions]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def scores_table(completions: Sequence[ScoredCompletion]) -> pa.Table:
    """The columns of samples and one float64 column per score."""
    table = samples_table(completions)
    for name in completions[0].scores:
        column = pa.array([row.scores[name] for row in completions], pa.float64())
        table = table.append_column(name, column)
    return table


def pairs_table(pairs: Sequence[PreferencePair], golds: Sequence[tuple[float, float]]) -> pa.Table:
    """Prompt, chosen and rejected as messages, and the gold reward of both."""
    return pa.table(
        {
            "prompt_id": pa.array([pair.prompt_id for pair in pairs], pa.string()),
            "prompt": pa.array([pair.prompt for pair in pairs], MESSAGES),
            "chosen": answer_messages(pa.array([pair.chosen for pair in pairs], pa.string())),
            "rejected": answer_messages(pa.array([pair.rejected for pair in pairs], pa.string())),
            "gold_chosen": pa.array([chosen for chosen, _ in golds], pa.float64()),
            "gold_rejected": pa.array([rejected for _, rejected in golds], pa.float64()),
        }
    )


def answer_messages(texts: pa.Array) -> pa.Array:
    """Each text as a conversation of one message of the assistant.

    >>> answer_messages(pa.array(["Yes."])).to_pylist()
    [[{'role': 'assistant', 'content': 'Yes.'}]]
    """
    roles = pa.array(["assistant"], pa.string()).take(pa.array(np.zeros(len(texts), dtype=np.int64)))
    messages = pa.StructArray.from_arrays([roles, texts.cast(pa.string())], ["role", "content"])
    ends = pa.array(np.arange(len(texts) + 1), pa.int32())
    return pa.ListArray.from_arrays(ends, messages).cast(MESSAGES)


def completions_of(table: pa.Table, *, where: str) -> list[ScoredCompletion]:
    """Records of a table of samples; every further column of numbers is a score.

    Raises:
        DataError: a column that samples need is missing.
    """
    scores = score_names(table, where=where)
    return [
        ScoredCompletion(
            **{name: row[name] for name in SAMPLES.names}, scores={name: row[name] for name in scores}
        )
        for row in table.to_pylist()
    ]


def sample_parts(sources: Sequence[DataSource], run: Locator) -> Iterator[list[ScoredCompletion]]:
    """Records of `sample_tables`, a list a file."""
    for file, table in sample_tables(sources, run):
        yield completions_of(table, where=str(file))


def samples_at(location: str) -> Iterator[ScoredCompletion]:
    """Samples of a run or file, a file at a time in memory.

    Raises:
        DataError: no samples there.
    """
    for file in _sample_files(Path(location)):
        yield from completions_of(read_part(file), where=str(file))


@dataclass(frozen=True)
class SamplePart:
    """A file of samples, and which of its distinct prompts are wanted: those from `first` up to `end`."""

    file: Path
    first: int
    end: int

    def read(self) -> pa.Table:
        """The samples of those prompts."""
        table = read_part(self.file)
        numbers = text_codes(table["prompt_id"])
        return table.filter(pa.array((self.first <= numbers) & (numbers < self.end)))


def sample_tables(sources: Sequence[DataSource], run: Locator) -> Iterator[tuple[Path, pa.Table]]:
    """Samples of the sources, a file at a time: a prompt's samples are in one, as `generate` writes them.

    No more than a file is held in memory; raises as `wanted_parts`.
    """
    for part in wanted_parts(sources, run):
        yield part.file, part.read()


def wanted_parts(sources: Sequence[DataSource], run: Locator) -> list[SamplePart]:
    """Where the samples of the sources are. A slice in `split`, such as train[:200], counts prompts.

    Raises:
        DataError: no samples there, a prompt id in two files, a slice beyond the prompts, or files that
            were scored differently.
    """
    marked = [part for source in sources for part in _wanted_prompts(source, run.locate(source))]
    _check_unique(marked)
    parts = [part for part, _ in marked if part.first < part.end]
    scores: set[str] | None = None
    for part in parts:
        found = set(score_names(read_schema(part.file).empty_table(), where=str(part.file)))
        if scores is not None and found != scores:
            raise DataError(
                f"{part.file}: has the scores {sorted(found)}, an earlier file {sorted(scores)}. "
                "Score all samples by the same scorers first."
            )
        scores = found
    return parts


def score_names(table: pa.Table, *, where: str) -> list[str]:
    """Columns of numbers beyond those of samples.

    Raises:
        DataError: a column that samples need is missing.
    """
    for name in SAMPLES.names:
        if name not in table.column_names:
            raise DataError(
                f"{where}: no column '{name}', so these are not samples. {suggest(name, table.column_names)}"
            )
    kinds = {field.name: field.type for field in table.schema if field.name not in SAMPLES.names}
    return [name for name, kind in kinds.items() if pa.types.is_floating(kind) or pa.types.is_integer(kind)]


# a part, and a mark for each of its prompts
Marked = tuple[SamplePart, NDArray[np.uint64]]


def _wanted_prompts(source: DataSource, location: str) -> list[Marked]:
    """Files of a source and which of their prompts the slice wants."""
    split = parse_split(source.split)
    if split.base != "train":
        raise DataError(f"{location}: samples have the one split 'train', not '{split.base}'.")
    files = _sample_files(Path(location))
    marks = [_prompt_marks(file) for file in files]
    first, end = split.bounds(sum(map(len, marks)), name=location)
    parts, before = [], 0
    for file, found in zip(files, marks, strict=True):
        start, stop = max(0, first - before), min(len(found), max(0, end - before))
        parts.append((SamplePart(file, start, stop), found[start:stop]))
        before += len(found)
    return parts


def _check_unique(parts: Sequence[Marked]) -> None:
    """Refuse a prompt that is wanted from two files."""
    marks = np.concatenate([found for _, found in parts])
    if len(np.unique(marks)) == len(marks):
        return
    seen: set[int] = set()
    for part, found in parts:
        repeated = seen.intersection(found.tolist())
        if repeated:
            names = _prompt_ids(part.file)[part.first : part.end]
            name = next(name for name in names if _mark(name) in repeated)
            raise DataError(
                f"{part.file}: prompt '{name}' has samples in an earlier file too. Samples of one "
                "prompt belong in one file; the same run may have been given twice."
            )
        seen.update(found.tolist())


def _prompt_marks(file: Path) -> NDArray[np.uint64]:
    """Eight bytes for each distinct prompt id of a file, in order: small enough for millions of them."""
    return np.array([_mark(name) for name in _prompt_ids(file)], dtype=np.uint64)


def _mark(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _sample_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for name in SAMPLE_TABLES:
        if files := sorted((path / name).glob("*.parquet")):
            return files
    if files := sorted(path.glob("*.parquet")):
        return files
    raise DataError(
        f"{path}: no samples there. Give a run of `generate`, `score` or `evaluate`, or a parquet file."
    )


def _prompt_ids(file: Path) -> list[str]:
    """Distinct prompt ids of a file in order."""
    if "prompt_id" not in read_schema(file).names:
        raise DataError(f"{file}: no column 'prompt_id', so these are not samples.")
    return list(dict.fromkeys(read_part(file, columns=["prompt_id"])["prompt_id"].to_pylist()))


def selected_answers(table: pa.Table, rows: Ints, *, scores: Sequence[str]) -> pa.Table:
    """Prompt and completion of the rows as messages, and their scores."""
    taken = table.take(pa.array(rows))
    columns = {
        "prompt_id": taken["prompt_id"],
        "prompt": taken["prompt"].cast(MESSAGES),
        "completion": answer_messages(taken["completion"].combine_chunks()),
    }
    return pa.table({**columns, **{name: taken[name].cast(pa.float64()) for name in scores}})


def selected_pairs(table: pa.Table, pairs: Ints, *, gold: str | None) -> pa.Table:
    """Prompt, chosen and rejected as messages; the gold reward of both where there is one.

    Args:
        pairs: (pairs, 2) rows of the chosen and of the rejected answers.
        gold: its column.
    """
    chosen, rejected = table.take(pa.array(pairs[:, 0])), table.take(pa.array(pairs[:, 1]))
    columns = {
        "prompt_id": chosen["prompt_id"],
        "prompt": chosen["prompt"].cast(MESSAGES),
        "chosen": answer_messages(chosen["completion"].combine_chunks()),
        "rejected": answer_messages(rejected["completion"].combine_chunks()),
    }
    if gold is not None:
        columns |= {"gold_chosen": chosen[gold], "gold_rejected": rejected[gold]}
    return pa.table(columns)
