"""One stage: check its recipe and inputs, open its run folder, do it, store its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

from handbook_utils.data.load import ResolvedInputs
from handbook_utils.errors import RecipeError
from handbook_utils.evaluation.statistics import with_cautions
from handbook_utils.libraries.notices import silence_notices
from handbook_utils.libraries.versions import naming_untested_versions
from handbook_utils.pipeline.inputs import check_code, check_inputs, fingerprint_inputs, resolve_inputs
from handbook_utils.pipeline.launched import launch_recipe, needs_launcher
from handbook_utils.processes import is_launched, rank
from handbook_utils.records import Estimate, RunResult
from handbook_utils.runs.folder import RunFolder, has_result, open_run, read_result
from handbook_utils.runs.follower import FollowedRun
from handbook_utils.runs.state import (
    damaged_outputs,
    differences,
    inner_runs,
    is_finished,
    read_manifest,
)
from handbook_utils.schema.recipe import Overrides, load_recipe, recipe_to_dict
from handbook_utils.schema.stage_table import STAGES
from handbook_utils.schema.stages import PipelineRecipe, RejectionRecipe
from handbook_utils.schema.training import PolicyRecipe, StageRecipe, TrainingRecipe

StageFunction = Callable[..., Mapping[str, Estimate]]


@naming_untested_versions
def run_stage(
    recipe: str | Path | StageRecipe,
    out: str | Path,
    *,
    overrides: Overrides = (),
    seed: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    processes: int | None = None,
    allow_code: bool = False,
    on_look: Callable[[Path], None] | None = None,
) -> RunResult:
    """Run one stage into a run folder; a finished run is read, an interrupted one goes on.

    Args:
        recipe: packaged name ("pocket/sft"), path of a YAML file, or a loaded recipe.
        out: the run folder; a `from: NAME` in the recipe reads the folder NAME beside it.
        overrides: `{"training.max_steps": 10}` or `["training.max_steps=10"]`.
        seed: replaces the recipe's seed.
        overwrite: delete a run of another recipe, or redo a finished one.
        progress: show progress bars.
        processes: train with so many processes instead of as the recipe's section `launch` says. The run
            is the same run: it may be interrupted with one number and go on with another.
        allow_code: let the Python functions run that the recipe names as scorers. A recipe's own
            `allow_code: true` is not enough, since whoever wrote the recipe wrote that too.
        on_look: called with the run folder after each look of a recipe's `held_out_samples`, such as a
            `LivePlot()` in a notebook. The stage has to train in this process.
    Returns:
        The final metrics, each with its interval, and the cost of the run.
    Raises:
        RecipeError: the recipe is wrong, or an earlier run it reads is missing.
        RunFolderError: the folder holds something else.
        LaunchError: several processes cannot be started, or one of them failed.
    """
    silence_notices()
    loaded = _one_stage(recipe, overrides, seed, processes)
    inputs = resolve_inputs(loaded, Path(out))
    if not overwrite and is_done(out, loaded, inputs):
        return replace(read_result(out), reused=True)
    check_code(loaded, allow_code=allow_code)
    _check_on_look(loaded, on_look)
    if isinstance(loaded, TrainingRecipe) and needs_launcher(loaded):
        launch_recipe(loaded, out, overwrite=overwrite, progress=progress, allow_code=allow_code)
        return read_result(out)
    stage = stage_function(loaded.stage)
    if rank() > 0:  # process 0 owns the folder
        with _training_group(loaded):
            stage(loaded, FollowedRun(Path(out), loaded, inputs))
        return read_result(out)
    _check_before(loaded, inputs, Path(out))
    prints = fingerprint_inputs(loaded, inputs)
    opened = open_run(out, loaded, inputs=inputs, fingerprints=prints, overwrite=overwrite, progress=progress)
    with opened as run, _training_group(loaded):
        metrics, cautions = with_cautions(lambda: _with_looks(stage, loaded, run, on_look)(loaded, run))
        return run.finish(metrics, cautions)


def _one_stage(
    recipe: str | Path | StageRecipe, overrides: Overrides, seed: int | None, processes: int | None
) -> StageRecipe:
    loaded = load_recipe(recipe, overrides=overrides, seed=seed)
    if processes is not None:
        loaded = load_recipe(loaded, overrides={"launch.processes": processes})
    if isinstance(loaded, PipelineRecipe):
        raise RecipeError(f"{recipe}: a pipeline, not a stage. Use run_pipeline, or `handbook run {recipe}`.")
    return loaded


def _check_before(recipe: StageRecipe, inputs: Mapping[str, Path], out: Path) -> None:
    """What can be known before the folder is opened: damaged inputs, and what preflight finds."""
    check_inputs(recipe, inputs)
    if isinstance(recipe, TrainingRecipe):
        from handbook_utils.pipeline.checks.preflight import warn_before_training

        warn_before_training(recipe, ResolvedInputs(inputs), out)


def _check_on_look(recipe: StageRecipe, on_look: Callable[[Path], None] | None) -> None:
    if on_look is None:
        return
    if not (isinstance(recipe, PolicyRecipe) and recipe.held_out_samples is not None):
        raise RecipeError("`on_look` is called at looks, and the recipe has no section `held_out_samples`.")
    if needs_launcher(recipe):
        raise RecipeError(
            "`on_look` is called in this process, and the recipe trains in several others. Look at the run "
            "folder with plot_held_out instead, or train with processes=1."
        )


def _with_looks(
    stage: StageFunction, recipe: StageRecipe, run: RunFolder, on_look: Callable[[Path], None] | None
) -> StageFunction:
    """A stage's function; with callbacks that sample and score, where the recipe has them."""
    if not (isinstance(recipe, PolicyRecipe) and recipe.held_out_samples is not None):
        return stage
    from handbook_utils.pipeline.while_training.held_out import beside_training

    return partial(stage, beside=beside_training(recipe, run, on_look))


def _training_group(recipe: StageRecipe) -> AbstractContextManager[None]:
    """The other processes of a training stage, where a launcher has started several."""
    if not (is_launched() and isinstance(recipe, TrainingRecipe)):
        return nullcontext()
    from handbook_utils.training.distributed import training_group

    return training_group(recipe)


def rejection_sample(
    recipe: str | Path | StageRecipe,
    out: str | Path,
    *,
    overrides: Overrides = (),
    seed: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    allow_code: bool = False,
) -> RunResult:
    """Rounds of rejection sampling or iterative DPO; arguments as of `run_stage`.

    Each round samples answers, scores and selects them, trains on what was selected, and measures the new
    model on held-out prompts beside one trained on as many random samples. The last model that was kept is
    the run's `model/`, and metrics are named by round: `round-2.gold`, `round-2.gold_gain_vs_control`.

    Source: Touvron et al. 2023 (Llama 2); Dong et al. 2023 (RAFT); Gulcehre et al. 2023 (ReST).
    Book: chapter "Best-of-n and rejection sampling".
    """
    loaded = load_recipe(recipe, overrides=overrides, seed=seed)
    if not isinstance(loaded, RejectionRecipe):
        raise RecipeError(
            f"a recipe of stage 'rejection' is needed here, this one is of stage '{loaded.stage}'."
        )
    return run_stage(loaded, out, overwrite=overwrite, progress=progress, allow_code=allow_code)


def stage_function(stage: str) -> StageFunction:
    """The function that does a stage."""
    module, _, name = STAGES[stage].entry_point.partition(":")
    function: StageFunction = getattr(import_module(f"handbook_utils.{module}"), name)
    return function


def finished(recipe: StageRecipe, out: str | Path) -> RunResult | None:
    """The result of this very run where the folder holds it, finished; else None."""
    inputs = resolve_inputs(recipe, Path(out))
    is_there = is_done(out, recipe, inputs)
    return read_result(out) if is_there else None


def is_done(
    out: str | Path, recipe: StageRecipe, inputs: Mapping[str, Path], *, thorough: bool = False
) -> bool:
    """Whether the folder holds this very run, finished.

    Where a file that it made is gone the run is not done, and goes on to make it again. Tables of the stages
    that sample, score and select are compared with their checksums too, trained models only if `thorough`.
    Inputs are read only where a finished run is there: of several processes that start a run, the first
    reads them.
    """
    path = Path(out)
    if not (path / "manifest.json").exists() or not is_finished(path):
        return False
    if differences(read_manifest(path), recipe_to_dict(recipe), fingerprint_inputs(recipe, inputs)):
        return False
    if not has_result(path):
        return False
    return not any(
        damaged_outputs(folder, by_checksum=thorough or _has_tables(folder))
        for folder in (path, *inner_runs(path))
    )


def _has_tables(folder: Path) -> bool:
    kind = STAGES.get(read_manifest(folder)["stage"])
    return kind is not None and not kind.trains
