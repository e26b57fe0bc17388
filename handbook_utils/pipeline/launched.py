"""Training stages in several processes: whether a recipe needs a launcher, and the launch itself."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from handbook_utils.launch.accelerate import Layout, Rendezvous, checked_layout, launch_command
from handbook_utils.launch.watch import watch
from handbook_utils.processes import is_launched, usable_cores
from handbook_utils.schema.recipe import recipe_to_yaml
from handbook_utils.schema.training import TrainingRecipe


def needs_launcher(recipe: TrainingRecipe) -> bool:
    """Whether a recipe's processes have yet to be started; one that shares nothing needs no launcher."""
    launch = recipe.launch
    if is_launched() or launch.strategy == "none":
        return False
    from handbook_utils.training.plan import planned_processes

    return launch.strategy != "ddp" or launch.nodes > 1 or planned_processes(recipe) > 1


def planned_layout(recipe: TrainingRecipe, rendezvous: Rendezvous) -> Layout:
    """The processes a recipe asks for, not yet checked."""
    from handbook_utils.training.plan import planned_processes, trains_on_cpu

    launch = recipe.launch
    return Layout(launch.strategy, planned_processes(recipe), launch.nodes, trains_on_cpu(recipe), rendezvous)


def layout_here(recipe: TrainingRecipe, rendezvous: Rendezvous) -> Layout:
    """The processes a recipe asks for, checked against this machine and its batch.

    Raises:
        RecipeError: the batch cannot be split over them.
        LaunchError, MissingDependencyError: as `checked_layout`.
    """
    import torch

    from handbook_utils.training.plan import batch_plan

    layout = planned_layout(recipe, rendezvous)
    checked = checked_layout(
        layout,
        devices=usable_cores() if layout.on_cpu else torch.cuda.device_count(),
        quantized=_is_quantized(recipe),
    )
    batch_plan(recipe)
    return checked


def launch_program(
    recipe: TrainingRecipe,
    program: Sequence[str],
    *,
    rendezvous: Rendezvous | None = None,
    hide_output: bool = False,
) -> None:
    """Start this node's processes of a training stage and wait until all have ended.

    Args:
        recipe: says how many and what they share.
        program: arguments of `handbook` in each of them.
        rendezvous: where the nodes meet, if there are several.
        hide_output: show only what goes to stderr.
    Raises:
        RecipeError, LaunchError, MissingDependencyError: before anything is loaded, or when one has failed.
    """
    layout = layout_here(recipe, rendezvous or Rendezvous())
    watch(launch_command(layout, program), processes=layout.processes, hide_output=hide_output)


def launch_recipe(
    recipe: TrainingRecipe, out: str | Path, *, overwrite: bool, progress: bool, allow_code: bool = False
) -> None:
    """Run a loaded recipe in processes of their own; they read it from a file."""
    with tempfile.TemporaryDirectory(prefix="handbook-recipe-") as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(recipe_to_yaml(recipe), encoding="utf-8")
        program = ["train", str(file), "--out", str(out)]
        program += ["--overwrite"] * overwrite + ["--json"] * (not progress)
        program += ["--allow-code"] * allow_code
        launch_program(recipe, program, hide_output=True)


def _is_quantized(recipe: TrainingRecipe) -> bool:
    return getattr(recipe.model, "quantization", None) in ("nf4", "int8")
