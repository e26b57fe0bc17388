"""The stage `score`: each sample's scores beside it into scores/, rows without one into failures/."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.errors import DataError, RecipeError
from handbook_utils.evaluation.statistics import mean_estimate
from handbook_utils.records import REJECTED, Completion, Estimate
from handbook_utils.runs.atomic import remove_leftovers, write_json, write_table
from handbook_utils.runs.folder import RunFolder
from handbook_utils.runs.log import warn_and_log
from handbook_utils.runs.state import read_part, read_schema
from handbook_utils.sampling.execution.ray_workers import Work, await_file, run_on_ray
from handbook_utils.sampling.execution.shards import part_name
from handbook_utils.sampling.metrics import mean_metrics
from handbook_utils.sampling.private_data import row_text, urls_elsewhere, warn_of_private_data
from handbook_utils.sampling.progress import answer_bar
from handbook_utils.sampling.scoring.instructions.accuracy import instruction_metrics
from handbook_utils.sampling.scoring.score import ScoreFailure, score
from handbook_utils.sampling.scoring.scorers.load import load_scorers, models_of
from handbook_utils.sampling.selection.groups import text_codes
from handbook_utils.sampling.tables import (
    SAMPLES,
    SamplePart,
    UnscoredWarning,
    completions_of,
    score_names,
    scores_table,
    wanted_parts,
)
from handbook_utils.schema.executor import RaySection
from handbook_utils.schema.sampling import ScorerSection
from handbook_utils.schema.stages import EvaluateRecipe, ScoreRecipe


def run_score(recipe: ScoreRecipe, run: RunFolder) -> dict[str, Estimate]:
    """Score samples into scores/; one figure per score, its mean over prompts.

    A row that a verifier or judge has no number for is recorded in failures/ with the reason, counts in
    `SCORE_failed_rate`, and has the score NaN.
    """
    write_scores(recipe, wanted_parts(recipe.data, run), run)
    return score_metrics(run.path / "scores")


def write_scores(recipe: ScoreRecipe | EvaluateRecipe, parts: Sequence[SamplePart], run: RunFolder) -> None:
    """Write the parts of scores/ that are missing, one for each part of samples.

    Raises:
        RecipeError: an unknown scorer, or one named like a column of samples.
        DataError: a score is not a finite number, or a scorer has none for any row.
    """
    check_names(recipe.scorers)
    files = [run.path / part_name("scores", number) for number in range(len(parts))]
    missing = {number: part for number, part in enumerate(parts) if not files[number].exists()}
    _warn_of_private_data(recipe, run, missing.values())
    with answer_bar("scoring", None, show=run.progress) as advance:
        for number, written in _scored(recipe, run, missing):
            for name in written:
                await_file(run.path / name)
            advance(0, pq.read_metadata(files[number]).num_rows)
    remove_leftovers(run.path)  # of workers that were killed
    _note_failures(run, sum(pq.read_metadata(file).num_rows for file in files))


def _warn_of_private_data(
    recipe: ScoreRecipe | EvaluateRecipe, run: RunFolder, parts: Iterable[SamplePart]
) -> None:
    """Say what the rows hold that judges elsewhere would get; where there is none, no row is looked at."""
    for url in urls_elsewhere(recipe.scorers.values()):
        rows = (row for part in parts for row in completions_of(part.read(), where=str(part.file)))
        run.note(private_rows=warn_of_private_data(url, map(row_text, rows)))


def _scored(
    recipe: ScoreRecipe | EvaluateRecipe, run: RunFolder, parts: Mapping[int, SamplePart]
) -> Iterator[tuple[int, list[str]]]:
    """Score parts here or on a cluster; gives the number of each and the files that were written for it."""
    folder, items = run.path.absolute(), {number: (number, part) for number, part in parts.items()}
    prepare = partial(score_maker, recipe.scorers, recipe.rows_per_batch, folder, run.inputs)
    if not isinstance(recipe.executor, RaySection):
        if items:
            make = prepare()
            yield from ((number, make(item)) for number, item in items.items())
        return
    work = Work(folder, prepare, gpus=int(any(models_of(section) for section in recipe.scorers.values())))
    with closing(run_on_ray(recipe.executor, work, items)) as results:
        yield from results


def score_maker(
    scorers: Mapping[str, ScorerSection], rows_per_batch: int, folder: Path, inputs: Mapping[str, Path]
) -> Callable[[tuple[int, SamplePart]], list[str]]:
    """What scores a part of samples into a run folder and names the files it wrote; scorers are loaded.

    Args:
        scorers: by the name of their column.
        rows_per_batch: answers per forward pass of a reward model.
        folder: the run's.
        inputs: the run folder behind each `from` of the scorers.
    """
    loaded = load_scorers(scorers, ResolvedInputs(inputs), rows_per_batch=rows_per_batch)

    def make(item: tuple[int, SamplePart]) -> list[str]:
        number, part = item
        failures: list[ScoreFailure] = []
        scored = completions_of(part.read(), where=str(part.file))
        for scorer in loaded or [_no_scores]:
            scored = score(scored, scorer, failed=failures.append)
        (folder / failures_file(number)).unlink(missing_ok=True)  # of a session that was killed
        if failures:
            write_json(folder / failures_file(number), [failure.to_json() for failure in failures])
        write_table(folder / part_name("scores", number), scores_table(scored))
        return [*([failures_file(number)] if failures else []), part_name("scores", number)]

    return make


def check_names(scorers: Iterable[str]) -> None:
    """Raise RecipeError for a scorer whose column samples have already."""
    for name in scorers:
        if name in (*SAMPLES.names, "words"):
            raise RecipeError(f"scorers.{name}: samples have a column '{name}' already. Use another name.")


def _no_scores(completions: Sequence[Completion]) -> Mapping[str, Sequence[float]]:
    """Scores nothing, where `evaluate` has no scorer: `score` still counts the words."""
    return {}


def failures_file(number: int) -> str:
    """Where the rows without a score of a part are listed.

    >>> failures_file(3)
    'failures/part-00003.json'
    """
    return f"failures/part-{number:05d}.json"


def score_metrics(folder: Path) -> dict[str, Estimate]:
    """Mean of each score over prompts, and how often a score is missing where one is; texts are not read."""
    pieces: dict[str, list[Any]] = {}
    prompts, rejected, before = [], [], 0
    for file in sorted(folder.glob("*.parquet")):
        names = score_names(read_schema(file).empty_table(), where=str(file))
        table = read_part(file, columns=["prompt_id", "finish_reason", *names])
        rejected.append(pc.equal(table["finish_reason"], REJECTED).to_numpy())
        prompts.append(text_codes(table["prompt_id"]) + before)
        before += len(table)
        for name in names:
            pieces.setdefault(name, []).append(table[name].cast(pa.float64()).to_numpy())
    columns = {name: np.concatenate(values) for name, values in pieces.items()}
    clusters, finished = np.concatenate(prompts), ~np.concatenate(rejected)
    metrics = mean_metrics(columns, clusters) | instruction_metrics(columns, clusters)
    for name, values in columns.items():
        if name.rpartition(".")[0] in columns:
            continue  # a part of a score is missing where the score is
        missing = ~np.isfinite(values[finished])
        if missing.any() and not missing.all():
            rate = mean_estimate(missing.astype(np.float64), clusters=clusters[finished], unit="rate")
            metrics[f"{name}_failed_rate"] = rate
    return metrics


def _note_failures(run: RunFolder, rows: int) -> None:
    """Count the rows without a score in the manifest, warn of them, and refuse a scorer that scored none."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((run.path / "failures").glob("part-*.json")):
        for failure in json.loads(file.read_text(encoding="utf-8")):
            found.setdefault(failure["scorer"], []).append(failure)
    for name, failures in found.items():
        first = failures[0]
        where = f"prompt '{first['prompt_id']}', sample {first['sample_index']}: {first['reason']}"
        if len(failures) == rows:
            raise DataError(f"scorers.{name}: none of {rows} samples got a score. The first, {where}")
        message = f"scorers.{name}: {len(failures)} of {rows} samples got no score; the first, {where}"
        warn_and_log(message, UnscoredWarning)
    if found:
        run.note(failed={name: len(failures) for name, failures in found.items()})
