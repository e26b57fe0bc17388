"""Samples, scores, pairs and selections as tables, and samples read back from a run or a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from handbook_utils.data.split import parse_split
from handbook_utils.errors import DataError, suggest
from handbook_utils.recipe_sections import DataSource
from handbook_utils.records import Completion, PreferencePair, ScoredCompletion
from handbook_utils.run_folder import RunFolder

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


def samples_table(completions: Sequence[Completion]) -> pa.Table:
    """One row a sample, without scores."""
    rows = [{name: getattr(row, name) for name in SAMPLES.names} for row in completions]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def scores_table(completions: Sequence[ScoredCompletion]) -> pa.Table:
    """The columns of samples and one float64 column a score."""
    table = samples_table(completions)
    for name in completions[0].scores:
        column = pa.array([row.scores[name] for row in completions], pa.float64())
        table = table.append_column(name, column)
    return table


def selected_table(completions: Sequence[ScoredCompletion]) -> pa.Table:
    """Prompt and completion as messages, to be trained on, and the scores."""
    answers = [[{"role": "assistant", "content": row.completion}] for row in completions]
    columns = {
        "prompt_id": pa.array([row.prompt_id for row in completions], pa.string()),
        "prompt": pa.array([row.prompt for row in completions], MESSAGES),
        "completion": pa.array(answers, MESSAGES),
    }
    for name in completions[0].scores:
        columns[name] = pa.array([row.scores[name] for row in completions], pa.float64())
    return pa.table(columns)


def pairs_table(pairs: Sequence[PreferencePair], golds: Sequence[tuple[float, float]] | None) -> pa.Table:
    """Prompt, chosen and rejected as messages; the gold reward of both where it is known."""

    def answers(texts: Sequence[str]) -> pa.Array:
        return pa.array([[{"role": "assistant", "content": text}] for text in texts], MESSAGES)

    columns = {
        "prompt_id": pa.array([pair.prompt_id for pair in pairs], pa.string()),
        "prompt": pa.array([pair.prompt for pair in pairs], MESSAGES),
        "chosen": answers([pair.chosen for pair in pairs]),
        "rejected": answers([pair.rejected for pair in pairs]),
    }
    if golds is not None:
        columns["gold_chosen"] = pa.array([chosen for chosen, _ in golds], pa.float64())
        columns["gold_rejected"] = pa.array([rejected for _, rejected in golds], pa.float64())
    return pa.table(columns)


def completions_of(table: pa.Table, *, where: str) -> list[ScoredCompletion]:
    """Records of a table of samples; every further column of numbers is a score.

    Raises:
        DataError: a column that samples need is missing.
    """
    for name in SAMPLES.names:
        if name not in table.column_names:
            raise DataError(
                f"{where}: no column '{name}', so these are not samples. {suggest(name, table.column_names)}"
            )
    kinds = {field.name: field.type for field in table.schema if field.name not in SAMPLES.names}
    scores = [name for name, kind in kinds.items() if pa.types.is_floating(kind) or pa.types.is_integer(kind)]
    return [
        ScoredCompletion(
            **{name: row[name] for name in SAMPLES.names}, scores={name: row[name] for name in scores}
        )
        for row in table.to_pylist()
    ]


def sample_parts(sources: Sequence[DataSource], run: RunFolder) -> Iterator[list[ScoredCompletion]]:
    """Samples of the sources, a list a file: a prompt's samples are in one file, as `generate` writes them.

    A slice in `split`, such as train[:200], counts prompts.

    Raises:
        DataError: no samples there, a prompt id in two files, or a slice beyond the prompts.
    """
    seen: set[str] = set()
    scores: set[str] | None = None
    for source in sources:
        for file, wanted in _files(source, run.locate(source)):
            rows = completions_of(pq.read_table(file), where=str(file))
            kept = [row for row in rows if row.prompt_id in wanted]
            ids = {row.prompt_id for row in kept}
            if repeated := sorted(ids & seen):
                raise DataError(
                    f"{file}: prompt '{repeated[0]}' has samples in an earlier file too. Samples of one "
                    "prompt belong in one file; the same run may have been given twice."
                )
            seen |= ids
            if kept:
                found = set(kept[0].scores)
                if scores is not None and found != scores:
                    raise DataError(
                        f"{file}: has the scores {sorted(found)}, an earlier file {sorted(scores)}. "
                        "Score all samples by the same scorers first."
                    )
                scores = found
                yield kept


def _files(source: DataSource, location: str) -> list[tuple[Path, frozenset[str]]]:
    """Files of a source and which of their prompts the slice wants."""
    ids = {file: _prompt_ids(file) for file in _sample_files(Path(location))}
    split = parse_split(source.split)
    if split.base != "train":
        raise DataError(f"{location}: samples have the one split 'train', not '{split.base}'.")
    every = [name for names in ids.values() for name in names]
    first, end = split.bounds(len(every), name=location)
    wanted = frozenset(every[first:end])
    return [(file, wanted.intersection(names)) for file, names in ids.items()]


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
    if "prompt_id" not in pq.read_schema(file).names:
        raise DataError(f"{file}: no column 'prompt_id', so these are not samples.")
    return list(dict.fromkeys(pq.read_table(file, columns=["prompt_id"])["prompt_id"].to_pylist()))
