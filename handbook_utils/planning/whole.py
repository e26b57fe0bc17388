"""The plan of a stage that trains, whole: its memory and its time."""

from __future__ import annotations

from handbook_utils.data.load import Locator
from handbook_utils.errors import RecipeError
from handbook_utils.planning.duration import MFU, estimate_duration
from handbook_utils.planning.gpus import Gpu
from handbook_utils.planning.recipe import (
    Measured,
    assumptions,
    measure_lengths,
    model_config,
    planned_on_cpu,
    run_of,
    setup_of,
)
from handbook_utils.planning.report import Plan, make_plan
from handbook_utils.schema.training import OnlineRecipe, TrainingRecipe
from handbook_utils.training.plan import setting


def refuse_online(recipe: TrainingRecipe) -> None:
    """Raise RecipeError for a stage that samples while it trains: its memory is not estimated."""
    if isinstance(recipe, OnlineRecipe):
        raise RecipeError(
            f"stage '{recipe.stage}' samples while it trains, and its memory and time are not estimated yet. "
            "`handbook train RECIPE --dry-run` checks all else; to measure, run it with --set steps=1."
        )


def plan_training_memory(
    recipe: TrainingRecipe,
    located: Locator,
    *,
    gpu: Gpu | None = None,
    processes: int | None = None,
    all_rows: bool = False,
    mfu: tuple[float, float] = MFU,
    measured: Measured | None = None,
) -> Plan:
    """Memory and time of a training stage, from its model's configuration and the lengths of its rows.

    Neither weights nor network are needed; of a model whose weights are elsewhere a folder with its
    config.json is enough. It is planned for a GPU, unless the recipe trains on a CPU by choice.

    Args:
        recipe: of the stage.
        located: where its model and data are.
        gpu: that each process is to fit; None: none is named.
        processes: that train together; None: as the recipe says, and one where it says auto.
        all_rows: count the tokens of all rows instead of a sample.
        mfu: (lowest, highest) share of the GPU's rate that training reaches.
        measured: lengths that are known already.
    Raises:
        ModelError: the start model has no configuration that can be read.
        RecipeError: the batch cannot be split over the processes.
        DataError: as `measure_lengths`.
    """
    refuse_online(recipe)
    if processes is None:
        asked = recipe.launch.processes
        processes = 1 if asked == "auto" else int(asked)
    on_cpu = planned_on_cpu(recipe, gpu)
    config = model_config(recipe, located.locate(recipe.model))
    setup = setup_of(recipe, config, processes=processes, on_cpu=on_cpu)
    measured = measured or measure_lengths(recipe, located, all_rows=all_rows)
    run = run_of(recipe, setup, measured.lengths)
    memory = run.memory
    passes = _passes(recipe, measured)
    cut = measured.lengths.cut(run.max_length)
    skips = recipe.skip_padding == "on" or (recipe.skip_padding != "off" and on_cpu)
    rate = None if gpu is None else gpu.tflops
    duration = estimate_duration(setup, memory, cut, passes=passes, tflops=rate, mfu=mfu)
    assumed = assumptions(run, measured, skips_padding=skips)
    if recipe.training.get("use_cpu") and not on_cpu:
        assumed.append(
            "Planned for a GPU: --gpu overrides the recipe's training.use_cpu: true. `train` keeps to "
            "the CPU unless you set training.use_cpu=false."
        )
    return make_plan(run, gpu, duration, assumed)


def _passes(recipe: TrainingRecipe, measured: Measured) -> float:
    """How often the counted rows are passed over: epochs, times the rows there are for each of them."""
    counted = len(measured.lengths)
    if measured.rows is None and int(setting(recipe, "max_steps")) <= 0:
        return 0.0  # nobody knows how many rows there are
    steps = int(setting(recipe, "max_steps"))
    if steps > 0:
        return steps * recipe.global_batch_size / counted
    return float(setting(recipe, "num_train_epochs")) * (measured.rows or counted) / counted
