"""`handbook train` and `handbook slurm`: one process, several, or a job for a cluster."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from handbook_utils.cli import view
from handbook_utils.errors import LaunchError, MissingDependencyError
from handbook_utils.launch.accelerate import Rendezvous, launch_command
from handbook_utils.launch.lifeline import failure_told
from handbook_utils.launch.slurm import Job, sbatch_script
from handbook_utils.pipeline.inputs import check_code
from handbook_utils.pipeline.launched import launch_program, layout_here, needs_launcher, planned_layout
from handbook_utils.pipeline.stages import finished, run_stage
from handbook_utils.processes import rank
from handbook_utils.runs.atomic import write_text
from handbook_utils.schema.training import TrainingRecipe


def launch_changes(processes: int | None, strategy: str | None, nodes: int | None) -> list[str]:
    """Options of the command line as changes of the recipe's section `launch`."""
    given = {"processes": processes, "strategy": strategy, "nodes": nodes}
    return [f"launch.{name}={value}" for name, value in given.items() if value is not None]


def train_program(
    recipe: str, out: Path, changes: Sequence[str], seed: int | None, flags: dict[str, bool]
) -> list[str]:
    """The same `handbook train` as arguments, for the processes a launcher starts."""
    program = ["train", recipe, "--out", str(out)]
    for change in changes:
        program += ["--set", change]
    program += [] if seed is None else ["--seed", str(seed)]
    return program + [f"--{name}" for name, is_set in flags.items() if is_set]


def train(
    recipe: TrainingRecipe, out: Path, program: Sequence[str], rendezvous: Rendezvous, flags: dict[str, bool]
) -> None:
    """Run a training stage here, or start and watch the processes that do."""
    check_code(recipe, allow_code=flags["allow-code"])
    with failure_told():
        if needs_launcher(recipe) and (flags["overwrite"] or finished(recipe, out) is None):
            launch_program(recipe, program, rendezvous=rendezvous)  # process 0 shows the result
            return
        result = run_stage(
            recipe,
            out,
            overwrite=flags["overwrite"],
            progress=not flags["json"],
            allow_code=flags["allow-code"],
        )
        if rank() == 0:
            view.show_result(result, flags["json"])


def check_batch(recipe: TrainingRecipe) -> None:
    """Refuse a batch that the processes cannot share, before a job waits in a queue to be told."""
    from handbook_utils.training.plan import batch_plan

    batch_plan(recipe)


def write_job(job: Job, program: Sequence[str], file: Path, json: bool) -> None:
    """Write an sbatch file and say how to submit it."""
    write_text(file, sbatch_script(job, program))
    view.say({"job": str(file)}, f"wrote {file}", json)
    if not json:
        view.say_next(f"submit it: sbatch {shlex.quote(str(file))}")


def show_plan(
    recipe: TrainingRecipe, out: Path, program: Sequence[str], rendezvous: Rendezvous, json: bool
) -> None:
    """What `train` would do: the plan and, for several processes, their command."""
    extra: dict[str, Any] = {}
    if needs_launcher(recipe):
        extra["command"] = shlex.join(launch_command(planned_layout(recipe, rendezvous), program))
        try:
            layout_here(recipe, rendezvous)
        except (LaunchError, MissingDependencyError) as error:
            extra["not_here"] = str(error)  # plans may be made on another machine
    view.show_stage_plan(recipe, out, json, extra=extra)


def rendezvous_of(node_rank: int | None, address: str | None, port: int | None) -> Rendezvous:
    """Where nodes meet; inside a Slurm job step the node's number is known."""
    if node_rank is None and address is not None:
        node_rank = int(os.environ.get("SLURM_NODEID", "0"))
    return Rendezvous(node_rank or 0, address, port)
