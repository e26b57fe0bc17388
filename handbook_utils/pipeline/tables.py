"""Score tables of earlier runs, as the stages that measure read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from handbook_utils.errors import DataError, suggest
from handbook_utils.evaluation.win_rate import scores_by_prompt
from handbook_utils.recipe_sections import DataSource
from handbook_utils.run_folder import RunFolder
from handbook_utils.run_state import read_manifest, read_table
from handbook_utils.sampling.tables import SAMPLES, sample_parts, scores_table

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
        DataError: the run holds no scores, or not that column.
    """
    if not (path / "scores").is_dir():
        stage = read_manifest(path)["stage"]
        raise DataError(
            f"{path}: a run of stage '{stage}' holds no scores. Compare runs of `evaluate` or `score`."
        )
    table = read_table(path / "scores")
    known = score_columns(table)
    if column not in known:
        raise DataError(f"{path}: no score column '{column}'. {suggest(column, known)}")
    return scores_by_prompt(
        table["prompt_id"].to_pylist(),
        table[column].to_numpy(),
        sample_indices=table["sample_index"].to_pylist(),
        name=str(path),
    )
