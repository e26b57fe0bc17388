"""Sampling and scoring in parts: each a file that is whole or absent.

Which prompts make up a part follows from the recipe and its inputs alone. So a run that was killed goes on
with the first missing part, and ends with the same files as a run that was not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from handbook_utils.data.load import Locator, ResolvedInputs
from handbook_utils.data.mixture import LeftOutPromptsWarning
from handbook_utils.data.prompts import LeftOut, iterate_prompts
from handbook_utils.errors import DataError, HandbookError
from handbook_utils.evaluation.statistics import EqualSamplesWarning
from handbook_utils.runs.atomic import remove_leftovers
from handbook_utils.runs.folder import RunFolder
from handbook_utils.runs.log import warn_and_log
from handbook_utils.sampling.execution.ray_workers import Work, await_file, run_on_ray
from handbook_utils.sampling.execution.shards import (
    Shard,
    ShardLock,
    ShardRecord,
    cut_shards,
    drop_plan,
    keep_whole,
    part_name,
    prompts_of,
    read_plan,
    read_records,
    record_shard,
    write_proof,
    write_shard,
)
from handbook_utils.sampling.execution.workers import run_workers
from handbook_utils.sampling.generation.engines.interface import Engine, Progress, Prompt, SamplingSettings
from handbook_utils.sampling.generation.engines.load import load_engine
from handbook_utils.sampling.private_data import prompt_text, warn_of_private_data
from handbook_utils.sampling.progress import answer_bar
from handbook_utils.schema.engines import EndpointSection, EngineSection, VllmSection
from handbook_utils.schema.executor import RaySection
from handbook_utils.schema.stages import SamplingRecipe

# of a recipe: what decides its answers, besides the prompts
DECIDES = (
    *("model", "samples", "max_new_tokens", "temperature", "top_p", "seed"),
    *("rows_per_batch", "engine", "long_prompts", "speculative"),
)


def write_samples(recipe: SamplingRecipe, run: RunFolder) -> None:
    """Write the shards of samples/ that are missing; also the first half of an `evaluate` run.

    Raises:
        DataError: no prompts, or one that cannot be answered where the recipe does not skip it.
        ModelError: the model cannot be loaded or decoded from.
        RunFolderError: the disk is full, or a worker was killed.
    """
    shards = read_plan(run.path) or _cut(recipe, run)
    whole = keep_whole(run.path, shards)
    total, done = (recipe.samples * sum(each.prompts for each in some) for some in (shards, whole.values()))
    try:
        with answer_bar("sampling", total, done=done, show=run.progress) as advance:
            if len(whole) < len(shards):
                _make(recipe, run, shards, advance)
        remove_leftovers(run.path)  # of workers that were killed
        proof = write_proof(run.path, shards)
    except HandbookError:
        if not read_records(run.path):
            drop_plan(run.path)
        raise
    counts = {name: len(proof[name]) for name in ("skipped", "shortened", "left_out")}
    run.note(
        prompts=proof["prompts"],
        repeated_prompts=proof["repeated"],
        **{f"{name}_prompts": count for name, count in counts.items()},
    )
    if getattr(recipe, "speculative", None) is not None:
        costs = ("answers", "tokens", "rejected", "scored_tokens")
        run.note(**{name: sum(shard[name] for shard in proof["shards"]) for name in costs})
    _warn_if_equal(recipe, run)
    skipped, shortened, left_out = counts.values()
    warn_of_left_out(skipped, shortened, left_out, see=f"see {run.path / 'shards.json'}")


def warn_of_left_out(skipped: int, shortened: int, bad: int, see: str) -> None:
    """Warn where prompts were skipped or cut to fit, or rows were no prompts; `see` says where they stand."""
    if skipped or shortened or bad:
        warn_and_log(
            f"of the prompts {skipped} are skipped, {shortened} are cut to fit, and {bad} rows are no "
            f"prompts; {see}",
            LeftOutPromptsWarning,
        )


def _warn_if_equal(recipe: SamplingRecipe, run: RunFolder) -> None:
    """Warn where several samples of each prompt are one answer: the engine took the likeliest tokens."""
    if recipe.samples < 2 or recipe.temperature == 0:
        return
    prompts = 0
    for file in sorted((run.path / "samples").glob("*.parquet")):
        table = pq.read_table(file, columns=["prompt_id", "completion"])
        distinct = table.group_by("prompt_id").aggregate([("completion", "count_distinct")])
        if pc.max(distinct["completion_count_distinct"]).as_py() > 1:
            return
        prompts += len(distinct)
    hint = (
        "The server decodes greedily: `transformers serve` needs `engine.extra_body.generation_config` with "
        "do_sample, as JSON text."
        if isinstance(recipe.engine, EndpointSection)
        else "Raise `temperature` or `top_p`, or take one sample per prompt."
    )
    message = f"all {recipe.samples} samples of each of {prompts} prompts are equal at temperature"
    warnings.warn(f"{message} {recipe.temperature:g}. {hint}", EqualSamplesWarning, stacklevel=3)


def make_shards(
    folder: Path,
    shards: Sequence[Shard],
    engine: Engine,
    settings: SamplingSettings,
    *,
    progress: Progress | None = None,
    made: Callable[[ShardRecord], None] | None = None,
) -> None:
    """Make each shard that is missing and that nobody else is making; then those that others gave up.

    Args:
        folder: the run folder, with a plan.
        shards: those of the plan.
        engine: answers the prompts; a shard is one call of it.
        settings: how to draw.
        progress: told of tokens and answers as they come.
        made: told of each shard that this call wrote.
    """
    lock = ShardLock(folder)
    try:
        for wait in (False, True):
            missing = [shard for shard in shards if not (folder / shard.file).exists()]
            for shard, prompts in zip(missing, prompts_of(folder, missing), strict=True):
                with lock.held(shard.number, wait=wait) as is_mine:
                    if is_mine and not (folder / shard.file).exists():
                        answers = engine.answer(prompts, settings, progress=progress)
                        record = write_shard(folder, shard, prompts, answers, samples=settings.samples)
                        record_shard(folder, record)
                        if made is not None:
                            made(record)
    finally:
        lock.close()


def settings_of(recipe: SamplingRecipe) -> SamplingSettings:
    """How a recipe draws answers."""
    return SamplingSettings(
        samples=recipe.samples,
        max_new_tokens=recipe.max_new_tokens,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        seed=recipe.seed,
        rows_per_batch=recipe.rows_per_batch,
    )


def _cut(recipe: SamplingRecipe, run: RunFolder) -> list[Shard]:
    left_out = LeftOut()
    shards = cut_shards(
        run.path,
        load_prompts(recipe, run, left_out=left_out),
        size=recipe.prompts_per_part,
        decides=recipe.model_dump(mode="json", include=set(DECIDES)),
        left_out=left_out,
    )
    left_out.warn(sum(shard.prompts for shard in shards))
    return shards


def _make(recipe: SamplingRecipe, run: RunFolder, shards: Sequence[Shard], advance: Progress) -> None:
    """Make the missing shards here, by several processes, or on a cluster."""
    location, executor = run.locate(recipe.model), recipe.executor
    if isinstance(recipe.engine, EndpointSection):
        missing = [shard for shard in shards if not (run.path / shard.file).exists()]
        asked = (prompt for prompts in prompts_of(run.path, missing) for prompt in prompts)
        run.note(private_rows=warn_of_private_data(recipe.engine.url, map(prompt_text, asked)))
    if isinstance(executor, RaySection):
        _make_on_ray(executor, recipe, run, shards, advance)
        return
    if executor is not None and executor.workers > 1:
        for record in run_workers(executor.workers, run.path, location):
            advance(record.tokens, record.answers)
            _account(run, record)
        return
    make_shards(
        run.path,
        shards,
        load_engine(recipe, location, run),
        settings_of(recipe),
        progress=advance,
        made=lambda record: _account(run, record),
    )


def _make_on_ray(
    section: RaySection, recipe: SamplingRecipe, run: RunFolder, shards: Sequence[Shard], advance: Progress
) -> None:
    folder = run.path.absolute()
    missing = {shard.number: shard for shard in shards if not (folder / shard.file).exists()}
    prepare = partial(shard_maker, recipe, folder, run.inputs)
    with closing(run_on_ray(section, Work(folder, prepare, _gpus(recipe.engine)), missing)) as made:
        for number, record in made:
            await_file(folder / missing[number].file)
            record_shard(folder, record)
            advance(record.tokens, record.answers)
            _account(run, record)


def shard_maker(
    recipe: SamplingRecipe, folder: Path, inputs: Mapping[str, Path]
) -> Callable[[Shard], ShardRecord]:
    """What makes shards on another machine: its engine is loaded, and whoever asks it keeps the journal.

    Args:
        recipe: of the run.
        folder: the run's, with a plan.
        inputs: the run folder behind each `from` of the recipe.
    """
    located = ResolvedInputs(inputs)
    engine, settings = load_engine(recipe, located.locate(recipe.model), located), settings_of(recipe)

    def make(shard: Shard) -> ShardRecord:
        [prompts] = prompts_of(folder, [shard])
        answers = engine.answer(prompts, settings)
        return write_shard(folder, shard, prompts, answers, samples=settings.samples)

    return make


def _gpus(engine: EngineSection) -> int:
    """GPUs that one copy of the model takes."""
    if isinstance(engine, VllmSection):
        return engine.tensor_parallel
    return 0 if isinstance(engine, EndpointSection) else 1


def load_prompts(
    recipe: SamplingRecipe, locator: Locator, *, left_out: LeftOut | None = None
) -> Iterator[Prompt]:
    """The prompts of a recipe's data as (prompt id, messages).

    Args:
        recipe: says whether a row that is no prompt is an error, or left out.
        locator: finds what an earlier run left.
        left_out: rows that are left out are counted here.
    """

    def leave_out(error: DataError) -> None:
        if left_out is not None:
            left_out.bad.append(str(error))

    skips = recipe.bad_prompts == "skip"
    return iterate_prompts(
        recipe.data, locator, seed=recipe.seed, left_out=left_out, on_bad=leave_out if skips else None
    )


def write_part(run: RunFolder, table: str, number: int, content: pa.Table) -> None:
    """Write a part unless an earlier session did."""
    if not run.has(part_name(table, number)):
        run.write_table(part_name(table, number), content)


def _account(run: RunFolder, record: ShardRecord) -> None:
    run.count_tokens(record.tokens)
    answers = max(record.answers, 1)
    run.log_metrics(
        {
            "step": record.number + 1,
            "answers": record.answers,
            "tokens_per_answer": record.tokens / answers,
            "truncated_rate": record.truncated / answers,
            "skipped_prompts": len(record.skipped),
            **({"rejected_rate": record.rejected / answers} if record.rejected else {}),
        }
    )
