"""The command `handbook`: each command checks its input, then imports what it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from handbook_utils import __version__
from handbook_utils.cli.catalogue import convert, recipes
from handbook_utils.cli.merge import merge
from handbook_utils.cli.options import (
    Changes,
    DryRun,
    Json,
    OnExecutor,
    Out,
    Overwrite,
    RecipeName,
    Seed,
    executor_changes,
)
from handbook_utils.cli.rejection import rejection_sample
from handbook_utils.cli.samples import score, select
from handbook_utils.cli.template import template
from handbook_utils.errors import HandbookError
from handbook_utils.libraries.versions import note_untested_versions

app = typer.Typer(
    name="handbook",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First steps: [bold]handbook run pocket/pipeline[/bold], then open the report it names. "
    "Every stage writes a run folder; the same command again reuses or resumes it.",
)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    try:
        app(prog_name="handbook")
    except HandbookError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        note_untested_versions(error)
        raise
    except KeyboardInterrupt:
        print("\ninterrupted; the same command again goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Align language models with recipes you can read and figures you can trust."""


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="Packaged name, such as pocket/pipeline, or a YAML file.")],
    out: Out = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Run all stages of a pipeline, each into its own run folder, and write a report.

    Stages that are done are not done again; an interrupted one goes on. Changes name the stage first:
    --set sft.training.max_steps=10.
    """
    from handbook_utils.cli import view

    if dry_run:
        view.show_pipeline_plan(pipeline, changes or [], seed, json)
        return
    from handbook_utils.pipeline.run import run_pipeline
    from handbook_utils.reporting.report import write_report

    folder = out or view.default_out(pipeline)
    watch = None if json else view.PipelineWatcher(pipeline)
    run_pipeline(pipeline, folder, overrides=changes or [], seed=seed, overwrite=overwrite, watch=watch)
    report_path = write_report(folder, folder / "report.html")
    view.show_pipeline(folder, report_path, json)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="Evaluate or score run A, the baseline.")],
    run_b: Annotated[Path, typer.Argument(help="Run B, on the same prompts.")],
    by: Annotated[str, typer.Option(help="The score column to compare.")] = "gold",
    json: Json = False,
) -> None:
    """Is B better than A, by how much, how sure, and what else changed between them?"""
    from handbook_utils.cli import view
    from handbook_utils.pipeline.compare import compare_runs

    view.show_comparison(compare_runs(run_a, run_b, by=by), json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or the folder of a pipeline.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file.")] = Path("report.html"),
    json: Json = False,
) -> None:
    """Write a self-contained HTML report of runs: curves, figures with intervals, sample answers, cost."""
    from handbook_utils.cli import view
    from handbook_utils.reporting.report import write_report

    path = write_report(runs[0] if len(runs) == 1 else runs, out)
    view.say({"report": str(path)}, f"report: {path}", json)


app.command()(recipes)
app.command()(convert)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A run folder, model folder, hub name or pocket:base.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this and exit.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Json = False,
) -> None:
    """Talk to a trained model; an empty line or Ctrl-D ends the conversation."""
    from handbook_utils.cli.chat import chat_with

    chat_with(model, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, json=json)


app.command()(merge)
app.command()(template)


def _stage_command(name: str, text: str) -> None:
    """Add one command for recipes of its stages; all such commands take the same options."""

    def command(
        recipe: RecipeName,
        out: Out = None,
        changes: Changes = None,
        seed: Seed = None,
        json: Json = False,
        overwrite: Overwrite = False,
        dry_run: DryRun = False,
        executor: OnExecutor = None,
    ) -> None:
        from handbook_utils.cli import view

        changes = [*executor_changes(executor), *(changes or [])]
        loaded = view.load_for(name, recipe, changes, seed)
        folder = out or view.default_out(recipe)
        view.run_or_plan(loaded, folder, overwrite=overwrite, dry_run=dry_run, json=json)

    register: Callable[..., Any] = app.command(name, help=text)
    register(command)


LAUNCH = "Several processes"


@app.command()
def train(
    recipe: RecipeName,
    out: Out = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="How many train together, over all nodes.", rich_help_panel=LAUNCH),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="ddp, fsdp2, zero2, zero3 or none.", rich_help_panel=LAUNCH)
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines.", rich_help_panel=LAUNCH)] = None,
    node_rank: Annotated[
        int | None,
        typer.Option(min=0, help="This machine's number. Default: Slurm's.", rich_help_panel=LAUNCH),
    ] = None,
    main_address: Annotated[
        str | None, typer.Option(help="Host name of machine 0.", rich_help_panel=LAUNCH)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port where they meet. Default: a free one.", rich_help_panel=LAUNCH
        ),
    ] = None,
) -> None:
    """Train a model: pretrain, sft, reward, dpo, orpo or kto, as the recipe says.

    Examples: handbook train pocket/sft; handbook train my.yaml --processes 8 --strategy fsdp2
    """
    from handbook_utils.cli import launch, view

    changes = [*(changes or []), *launch.launch_changes(processes, strategy, nodes)]
    loaded: Any = view.load_for("train", recipe, changes, seed)
    folder, flags = out or view.default_out(recipe), {"overwrite": overwrite, "json": json}
    program = launch.train_program(recipe, folder, changes, seed, flags)
    rendezvous = launch.rendezvous_of(node_rank, main_address, port)
    if dry_run:
        launch.show_plan(loaded, folder, program, rendezvous, json)
    else:
        launch.train(loaded, folder, program, rendezvous, flags)


@app.command()
def slurm(
    recipe: RecipeName,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of each; one process per GPU.")] = 8,
    time: Annotated[
        str, typer.Option(help="Longest turn; the job requeues itself and goes on.")
    ] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="Where to queue.")] = None,
    account: Annotated[str | None, typer.Option(help="Who pays.")] = None,
    strategy: Annotated[str | None, typer.Option(help="ddp, fsdp2, zero2 or zero3.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="The sbatch file. Default: <run folder>.sbatch.")
    ] = None,
    out: Out = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Write an sbatch file that trains on a Slurm cluster, requeues itself and resumes.

    Example: handbook slurm my.yaml --nodes 2 --strategy fsdp2 --partition gpu
    """
    from handbook_utils.cli import launch, view
    from handbook_utils.launch.slurm import Job

    wanted = launch.launch_changes(nodes * gpus_per_node, strategy, nodes)
    changes = [*(changes or []), *wanted]
    loaded: Any = view.load_for("train", recipe, changes, seed)
    launch.check_batch(loaded)
    folder = out or view.default_out(recipe)
    program = launch.train_program(recipe, folder, changes, seed, {})
    job = Job(folder.name, nodes, gpus_per_node, time, partition, account, str(folder.parent))
    launch.write_job(job, program, file or folder.with_suffix(".sbatch"), json)


_stage_command("generate", "Sample answers from a model. Example: handbook generate pocket/samples")
_stage_command(
    "annotate",
    "Turn samples into preference pairs. Example: handbook annotate pocket/preferences",
)
app.command()(score)
app.command()(select)
app.command("rejection-sample")(rejection_sample)
_stage_command(
    "evaluate",
    "Measure a model on held-out prompts, or best-of-n on scored samples. "
    "Example: handbook evaluate pocket/evaluate",
)
