"""`handbook plan` and `handbook preflight`: what a run needs, and what can be known before it starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from handbook_utils.cli.options import Changes, Json, Out, RecipeName, Seed
from handbook_utils.errors import RecipeError

if TYPE_CHECKING:
    from handbook_utils.schema.training import TrainingRecipe

AllRows = Annotated[
    bool, typer.Option("--all-rows", help="Count the tokens of all rows, not of a sample of 2,000.")
]
LIGHTS = {"green": "green", "amber": "yellow", "red": "bold red"}


def plan(
    recipe: RecipeName,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Memory of each GPU (24GiB), or its name (a100-80gb). Default: a table of GPUs.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=65536, help="Number of GPUs; one process per GPU. Default: the recipe's."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="How processes share the model: ddp, fsdp2, zero2, zero3. Default: the recipe's."),
    ] = None,
    all_rows: AllRows = False,
    mfu: Annotated[
        str, typer.Option(help="Share of the GPU's peak rate that training reaches, lowest to highest.")
    ] = "0.2-0.45",
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Also draw the parts into this SVG file.")
    ] = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Estimate the memory of a training run by part, whether it fits, what would make it fit, and the time.

    Needs no GPU, no network and only the model's config.json. If the recipe starts from an earlier
    run that does not exist yet, name a model instead: --set 'model={name: MODEL}'.
    A training step is traced on tensors that hold no data, for the longest rows of your data.
    What only a GPU shows (workspaces, fragmentation) is added as a margin that was not measured.

    Examples: handbook plan my.yaml --gpu 24GiB --processes 8; handbook plan my.yaml --json
    """
    from handbook_utils.cli import view
    from handbook_utils.cli.launch import launch_changes
    from handbook_utils.planning.gpus import read_gpu

    room = None if gpu is None else read_gpu(gpu)
    rates = _rates(mfu)
    if picture is not None and picture.suffix != ".svg":
        raise RecipeError(f"--picture: '{picture.name}' is no .svg file.")
    wanted = launch_changes(processes, strategy, None)
    loaded = view.load_training(recipe, [*(changes or []), *wanted], seed)
    inputs = _inputs(recipe, loaded, view.default_out(recipe))  # before what takes long to import
    from handbook_utils.data.load import ResolvedInputs
    from handbook_utils.planning.picture import parts_svg
    from handbook_utils.planning.report import plan_record, plan_view
    from handbook_utils.planning.whole import plan_training_memory
    from handbook_utils.runs.atomic import write_text

    located = ResolvedInputs(inputs)
    made = plan_training_memory(loaded, located, gpu=room, processes=processes, all_rows=all_rows, mfu=rates)
    if picture is not None:
        write_text(picture, parts_svg(made.memory.parts, room=None if room is None else room.bytes))
    if json:
        view.say(plan_record(made), "", json)
        return
    Console(highlight=False).print(plan_view(made))
    view.say_next(f"check everything else before it starts: handbook preflight {recipe}")


def preflight(
    recipe: RecipeName,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Memory of each GPU (24GiB), or its name (a100-80gb); the run has to fit into it.",
            show_default=False,
        ),
    ] = None,
    all_rows: AllRows = False,
    out: Out = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Check everything about a training run that can be checked before it starts; loads no weights.

    Versions, inputs, batch, rows by source, overlap with `eval_data`, labels, chat template, which tokens
    carry loss, what max_length cuts off, memory, time and disk.

    Green: as it should be. Amber: it runs, but look at it. Red: it would fail, or learn nothing.
    Each finding names its remedy. Exit code 1 if any is red.

    Example: handbook preflight my.yaml --gpu 24GiB
    """
    from handbook_utils.cli import view
    from handbook_utils.planning.gpus import read_gpu

    room = None if gpu is None else read_gpu(gpu)
    loaded = view.load_training(recipe, changes or [], seed)
    from handbook_utils.pipeline.checks.preflight import preflight as look

    found = look(loaded, out or view.default_out(recipe), gpu=room, all_rows=all_rows)
    if json:
        view.say(found.to_json(), "", json)
    else:
        # a long path is wrapped, not cut
        wide = (Column(name, overflow="fold") for name in ("found", "remedy"))
        table = Table("", "check", *wide, box=None, header_style="bold")
        for finding in found.findings:
            light = Text(finding.light, style=LIGHTS[finding.light])
            table.add_row(light, finding.check, Text(finding.says), Text(finding.remedy))
        Console(highlight=False).print(table)
        if found.light != "red":
            view.say_next(f"train: handbook train {recipe}")
    if found.light == "red":
        raise typer.Exit(1)


def _inputs(name: str, recipe: TrainingRecipe, out: Path) -> dict[str, Path]:
    """The earlier runs that a recipe reads; where one is missing, the error says what can stand in for it."""
    from handbook_utils.pipeline.inputs import resolve_inputs, sources_of
    from handbook_utils.schema.recipe import find_recipe, read_recipe_file, recipe_names
    from handbook_utils.schema.stage_table import STAGES

    try:
        return resolve_inputs(recipe, out)
    except RecipeError as error:
        reads = [(key, source.from_) for key, source in sources_of(recipe) if source.from_ is not None]
        instead = dict(_stand_in(key) for key, _ in reads if not key.startswith("eval_data"))
        said = (
            f"{error} To plan without it: --set {' --set '.join(instead.values())}."
            if instead
            else f"{error}"
        )
        made = [f"{name.rpartition('/')[0]}/{run}" for _, run in reads]
        made = [each for each in dict.fromkeys(made) if each in recipe_names()]
        if made:
            commands = (STAGES[read_recipe_file(find_recipe(each))["stage"]].command for each in made)
            lines = [f"handbook {command} {each}" for command, each in zip(commands, made, strict=True)]
            said += f" What it reads is made by: {'; '.join(lines)}."
        raise RecipeError(said) from None


def _stand_in(key: str) -> tuple[str, str]:
    """What `--set` takes so that a recipe reads no earlier run at this place, and its key."""
    if key.startswith("data."):
        return "data", "'data=[{name: FILE}]'"
    is_data = key.endswith((".answers", ".prompts"))
    return key, f"'{key}={{name: {'FILE' if is_data else 'MODEL'}}}'"


def _rates(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"(0?\.\d{1,4}|1)(?:-(0?\.\d{1,4}|1))?", text)
    low, high = (float(found[1]), float(found[2] or found[1])) if found else (0.0, 0.0)
    if not 0 < low <= high:
        raise RecipeError(f"--mfu: '{text:.30}' is no share such as 0.3 and no range such as 0.2-0.45.")
    return low, high
