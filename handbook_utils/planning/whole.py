"""The plan of a stage that trains, whole: its memory and its time."""

from __future__ import annotations

from handbook_utils.data.load import Locator
from handbook_utils.planning.duration import MFU, estimate_duration
from handbook_utils.planning.gpus import Gpu
from handbook_utils.planning.memory import Setup
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
from handbook_utils.planning.rollouts.duration import online_operations
from handbook_utils.planning.rollouts.recipe import measure_prompts, online_assumptions, online_run
from handbook_utils.schema.training import OnlineRecipe, TrainingRecipe
from handbook_utils.training.plan import setting


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
    if processes is None:
        asked = recipe.launch.processes
        processes = 1 if asked == "auto" else int(asked)
    on_cpu = planned_on_cpu(recipe, gpu)
    config = model_config(recipe, located.locate(recipe.model))
    setup = setup_of(recipe, config, processes=processes, on_cpu=on_cpu)
    if isinstance(recipe, OnlineRecipe):
        return _plan_online(recipe, setup, located, gpu, all_rows=all_rows)
    measured = measured or measure_lengths(recipe, located, all_rows=all_rows)
    run = run_of(recipe, setup, measured.lengths)
    memory = run.memory
    passes = _passes(recipe, measured)
    cut = measured.lengths.cut(run.max_length)
    skips = recipe.skip_padding == "on" or (recipe.skip_padding != "off" and on_cpu)
    rate = None if gpu is None else gpu.tflops
    duration = estimate_duration(setup, memory, cut, passes=passes, tflops=rate, mfu=mfu)
    assumed = assumptions(run, measured, skips_padding=skips)
    return make_plan(run, gpu, duration, [*assumed, *_overrides(recipe, setup)])


def _plan_online(
    recipe: OnlineRecipe, setup: Setup, located: Locator, gpu: Gpu | None, *, all_rows: bool
) -> Plan:
    """As `plan_training_memory`, of a stage that samples what it learns from."""
    train, looked_at = measure_prompts(recipe, located, setup.config, all_rows=all_rows)
    run = online_run(recipe, setup, located, train, looked_at)
    duration = online_operations(run, run.memory, recipe)
    assumed = [*online_assumptions(run, train), *_overrides(recipe, setup)]
    return make_plan(run, gpu, duration, assumed)


def _overrides(recipe: TrainingRecipe, setup: Setup) -> list[str]:
    if not recipe.training.get("use_cpu") or setup.on_cpu:
        return []
    return [
        "Planned for a GPU: --gpu overrides the recipe's training.use_cpu: true. `train` keeps to "
        "the CPU unless you set training.use_cpu=false."
    ]


def _passes(recipe: TrainingRecipe, measured: Measured) -> float:
    """How often the counted rows are passed over: epochs, times the rows there are for each of them."""
    counted = len(measured.lengths)
    if measured.rows is None and int(setting(recipe, "max_steps")) <= 0:
        return 0.0  # nobody knows how many rows there are
    steps = int(setting(recipe, "max_steps"))
    if steps > 0:
        return steps * recipe.global_batch_size / counted
    return float(setting(recipe, "num_train_epochs")) * (measured.rows or counted) / counted
