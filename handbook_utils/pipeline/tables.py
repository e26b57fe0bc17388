"""Score tables of earlier runs, as the stages that measure read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from handbook_utils.errors import DataError, suggest
from handbook_utils.evaluation.win_rate import scores_by_prompt
from handbook_utils.runs.folder import RunFolder
from handbook_utils.runs.state import read_manifest, read_table
from handbook_utils.sampling.tables import SAMPLES, sample_parts, scores_table
from handbook_utils.schema.sections import DataSource

NOT_SCORES = {*SAMPLES.names}


def read_scores(sources: Sequence[DataSource], run: RunFolder) -> pa.Table:
    """All scored samples of a recipe's data, one table."""
    parts = list(sample_parts(sources, run))
    if not parts or not parts[0]:
        raise DataError("no samples to read. Check the `data` of the recipe.")
    return pa.concat_tables([scores_table(part) for part in parts])


def score_columns(table: pa.Table) -> list[str]:
    """Names of the columns that hold scores."""
    return [name for name in table.column_names if name not in NOT_SCORES]


def run_scores(path: Path, column: str) -> dict[str, np.ndarray]:
    """Scores of a run by prompt, for a paired comparison.

    Raises:
        DataError: the run holds no scores, not that column, or a row without one.
    """
    return _by_prompt(_scored_rows(path, column), column, path)


def shared_scores(a: Path, b: Path, column: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores of two runs by prompt; rows that a verifier or judge had no number for are left out.

    Returns:
        The same prompts on both sides: those with a score in either run. Both are empty where there is none.
    Raises:
        DataError: a run holds no scores, or not that column.
    """
    tables = [_scored_rows(path, column) for path in (a, b)]
    finite = [table.filter(pc.is_finite(table[column])) for table in tables]
    first, second = (_by_prompt(table, column, path) for table, path in zip(finite, (a, b), strict=True))
    both = [prompt for prompt in first if prompt in second]
    return {prompt: first[prompt] for prompt in both}, {prompt: second[prompt] for prompt in both}


def _scored_rows(path: Path, column: str) -> pa.Table:
    if not (path / "scores").is_dir():
        stage = read_manifest(path)["stage"]
        raise DataError(
            f"{path}: a run of stage '{stage}' holds no scores. Compare runs of `evaluate` or `score`."
        )
    table = read_table(path / "scores")
    known = score_columns(table)
    if column not in known:
        raise DataError(f"{path}: no score column '{column}'. {suggest(column, known)}")
    return table


def _by_prompt(table: pa.Table, column: str, path: Path) -> dict[str, np.ndarray]:
    return scores_by_prompt(
        table["prompt_id"].to_pylist(),
        table[column].to_numpy(),
        sample_indices=table["sample_index"].to_pylist(),
        name=str(path),
    )
