"""Pipelines: stages in order, each into its own run folder, checked before the first one starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from handbook_utils.errors import RecipeError, RunFolderError, suggest
from handbook_utils.pipeline.inputs import check_code, resolve_inputs, sources_of
from handbook_utils.pipeline.stages import is_done, run_stage
from handbook_utils.records import RunResult
from handbook_utils.runs.atomic import explained_os_errors, locked, write_text
from handbook_utils.runs.folder import check_out
from handbook_utils.schema.recipe import Overrides, load_recipe, parse_overrides, recipe_to_yaml, stage_recipe
from handbook_utils.schema.stage_table import STAGES
from handbook_utils.schema.stages import PipelineRecipe
from handbook_utils.schema.training import StageRecipe

PIPELINE_FILE = "pipeline.yaml"
Watcher = Callable[[str, RunResult | None], None]


def run_pipeline(
    recipe: str | Path | StageRecipe,
    out: str | Path,
    *,
    overrides: Overrides = (),
    seed: int | None = None,
    overwrite: bool = False,
    watch: Watcher | None = None,
    allow_code: bool = False,
) -> dict[str, RunResult]:
    """Run a pipeline's stages in order; stages that are done are not done again.

    Args:
        recipe: packaged name ("pocket/pipeline"), path of a YAML file, or a loaded recipe.
        out: gets one run folder per stage.
        overrides: changes by stage, such as `{"sft.training.max_steps": 10}`.
        seed: replaces the pipeline's seed, and with it every stage's.
        overwrite: redo the stages whose recipe, inputs or files have changed.
        watch: called with a stage's name before it (None) and after it (its result); progress
            bars are shown only when it is given.
        allow_code: as of `run_stage`.
    Raises:
        RecipeError: any stage's recipe is wrong; nothing has run or been written then.
        RunFolderError: the folder, or that of a stage, holds something else.
    """
    out = Path(out)
    pipeline, stages = resolve_pipeline(recipe, overrides=overrides, seed=seed)
    _refuse_foreign_folder(out)
    for name, stage in stages.items():
        check_code(stage, allow_code=allow_code)
        check_out(out / name, stage, {}, overwrite=overwrite)
    with explained_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", out):
        write_text(out / PIPELINE_FILE, recipe_to_yaml(pipeline))
        run_one = partial(_run_one, out=out, overwrite=overwrite, watch=watch)
        return {name: run_one(name, stage) for name, stage in stages.items()}


def resolve_pipeline(
    recipe: str | Path | StageRecipe, *, overrides: Overrides = (), seed: int | None = None
) -> tuple[PipelineRecipe, dict[str, StageRecipe]]:
    """A pipeline and its stages' recipes, all checked; every `from` names an earlier stage or a path."""
    pipeline = load_recipe(recipe, seed=seed)
    if not isinstance(pipeline, PipelineRecipe):
        command = STAGES[pipeline.stage].command
        raise RecipeError(
            f"{recipe}: a recipe of one stage, not a pipeline. Use `handbook {command} {recipe}`."
        )
    by_stage = _split_overrides(overrides, pipeline)
    stages: dict[str, StageRecipe] = {}
    for name in pipeline.stages:
        loaded = load_recipe(
            stage_recipe(pipeline, name, where=str(recipe)), overrides=by_stage.get(name, ())
        )
        if isinstance(loaded, PipelineRecipe):
            raise RecipeError(f"{recipe}, stage '{name}': a pipeline cannot hold a pipeline.")
        for key, source in sources_of(loaded):
            if source.from_ is not None and source.from_ not in stages and not _is_run(source.from_):
                hint = suggest(source.from_, stages) if stages else "It is the first stage."
                raise RecipeError(
                    f"{recipe}, stage '{name}': '{key}' reads '{source.from_}', "
                    f"which no earlier stage makes. {hint}"
                )
        stages[name] = loaded
    return pipeline, stages


def stage_edges(stages: Mapping[str, StageRecipe]) -> dict[str, list[str]]:
    """Which earlier stages each stage reads, in the pipeline's order."""
    return {
        name: list(dict.fromkeys(s.from_ for _, s in sources_of(recipe) if s.from_ and s.from_ in stages))
        for name, recipe in stages.items()
    }


def _is_run(path: str) -> bool:
    return (Path(path) / "manifest.json").exists()


def _run_one(
    name: str, recipe: StageRecipe, *, out: Path, overwrite: bool, watch: Watcher | None
) -> RunResult:
    if watch:
        watch(name, None)
    folder = out / name
    inputs = resolve_inputs(recipe, folder)
    redo = overwrite and not _is_whole(folder, recipe, inputs)
    # what code may run has been checked for all stages at once
    result = run_stage(recipe, folder, overwrite=redo, progress=watch is not None, allow_code=True)
    if watch:
        watch(name, result)
    return result


def _is_whole(folder: Path, recipe: StageRecipe, inputs: Mapping[str, Path]) -> bool:
    """Whether a stage is done and none of its files, models included, has changed since."""
    try:
        return is_done(folder, recipe, inputs, thorough=True)
    except RunFolderError:  # a damaged manifest
        return False


def _split_overrides(overrides: Overrides, pipeline: PipelineRecipe) -> dict[str, dict[str, Any]]:
    """Overrides by stage; the first part of each key is a stage's name."""
    by_stage: dict[str, dict[str, Any]] = {}
    for key, value in parse_overrides(overrides).items():
        # a stage's name may have dots in it, and begin another's
        named = max((name for name in pipeline.stages if key.startswith(f"{name}.")), key=len, default=None)
        stage, rest = (key.partition(".")[0], "") if named is None else (named, key[len(named) + 1 :])
        if stage not in pipeline.stages or not rest:
            hint = suggest(stage, pipeline.stages)
            if hint.startswith("There are"):
                hint = f"Write {next(iter(pipeline.stages))}.{key}, for instance; --dry-run lists the stages."
            raise RecipeError(f"--set {key}: in a pipeline a key starts with a stage's name. {hint}")
        by_stage.setdefault(stage, {})[rest] = value
    return by_stage


def _refuse_foreign_folder(out: Path) -> None:
    if (out / "manifest.json").exists():
        raise RunFolderError(
            f"{out}: a run folder of one stage; a pipeline needs a folder of its own (--out)."
        )
    if out.is_dir() and any(out.iterdir()) and not (out / PIPELINE_FILE).exists():
        raise RunFolderError(f"{out}: not empty and not a pipeline's folder. Choose another --out.")
