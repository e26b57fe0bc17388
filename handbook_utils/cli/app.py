"""The command `handbook`: each command checks its input, then imports what it needs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer

from handbook_utils import __version__
from handbook_utils.cli.catalogue import convert, recipes
from handbook_utils.cli.commands.check_served import check_served
from handbook_utils.cli.commands.diagnose import diagnose
from handbook_utils.cli.commands.evaluate import evaluate
from handbook_utils.cli.commands.export import export
from handbook_utils.cli.commands.instruction_report import instruction_report
from handbook_utils.cli.commands.planning import plan, preflight
from handbook_utils.cli.commands.power import power
from handbook_utils.cli.commands.reward_report import reward_report
from handbook_utils.cli.commands.train import slurm, train
from handbook_utils.cli.commands.win_rate import win_rate
from handbook_utils.cli.data.commands import app as data
from handbook_utils.cli.info import info
from handbook_utils.cli.merge import merge
from handbook_utils.cli.options import (
    AllowCode,
    Changes,
    DryRun,
    Json,
    OnExecutor,
    Out,
    Overwrite,
    RecipeName,
    Seed,
    fill_paragraphs,
)
from handbook_utils.cli.rejection import rejection_sample
from handbook_utils.cli.samples import score, select
from handbook_utils.cli.template import template
from handbook_utils.errors import HandbookError
from handbook_utils.libraries.notices import silence_notices
from handbook_utils.libraries.versions import note_untested_versions
from handbook_utils.processes import wait_without_spinning
from handbook_utils.redaction import redacted, redacted_traceback

app = typer.Typer(
    name="handbook",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First steps: [bold]handbook run pocket/pipeline[/bold], then open the report it names. "
    "Every stage writes a run folder; running the same command again reuses or resumes it. "
    "For a bug report: [bold]handbook info[/bold].",
)


_format_warning = warnings.formatwarning


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    sys.excepthook = _print_without_secrets
    warnings.formatwarning = _plain_warning
    silence_notices()
    wait_without_spinning()
    try:
        app(prog_name="handbook")
    except HandbookError as error:
        print(redacted(f"error: {error}"), file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        note_untested_versions(error)
        raise
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None


def _print_without_secrets(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    print(redacted_traceback(error), end="", file=sys.stderr)


def _plain_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings in one line, as errors are; those of libraries with the place that they are about."""
    if category.__module__.startswith("handbook_utils"):
        return redacted(f"warning: {message}\n")
    return _format_warning(message, category, filename, lineno, line)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Align language models with recipes you can read and numbers you can trust."""


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="Packaged name, such as pocket/pipeline, or a YAML file.")],
    out: Out = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    allow_code: AllowCode = False,
) -> None:
    """Run all stages of a pipeline, each into its own run folder, and write a report.

    Finished stages are not run again; an interrupted stage resumes.
    In --set, begin with the name of the stage: --set sft.training.max_steps=10.

    Example: handbook run pocket/pipeline
    """
    from handbook_utils.cli import view

    if dry_run:
        view.show_pipeline_plan(pipeline, changes or [], seed, json, allow_code=allow_code)
        return
    from handbook_utils.pipeline.run import run_pipeline
    from handbook_utils.reporting.report import write_report

    folder = out or view.default_out(pipeline)
    watch = None if json else view.PipelineWatcher(pipeline)
    run_pipeline(
        pipeline,
        folder,
        overrides=changes or [],
        seed=seed,
        overwrite=overwrite,
        watch=watch,
        allow_code=allow_code,
    )
    report_path = write_report(folder, folder / "report.html")
    view.show_pipeline(folder, report_path, json)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="Run A, the baseline: a run folder of evaluate or score.")],
    run_b: Annotated[Path, typer.Argument(help="Run B, the candidate, on the same prompts.")],
    by: Annotated[str, typer.Option(help="The score column to compare.")] = "gold",
    json: Json = False,
) -> None:
    """Say whether B is better than A, by how much, how certain that is, and what else differs between them.

    Example: handbook compare runs/evaluate-sft runs/evaluate-dpo
    """
    from handbook_utils.cli import view
    from handbook_utils.pipeline.compare import compare_runs

    view.show_comparison(compare_runs(run_a, run_b, by=by), json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or the folder of a pipeline.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file.")] = Path("report.html"),
    json: Json = False,
) -> None:
    """Write a self-contained HTML report of runs: curves, metrics with intervals, sample answers, cost.

    Example: handbook report runs/demo --out report.html
    """
    from handbook_utils.cli import view
    from handbook_utils.reporting.report import write_report

    path = write_report(runs[0] if len(runs) == 1 else runs, out)
    view.say({"report": str(path)}, f"report: {path}", json)
    if not json:
        view.say_next("open it in a browser; it needs no other file")


app.command()(diagnose)
app.command()(recipes)
app.command()(convert)
app.command()(info)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="A run folder, model folder, hub name or pocket:base.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Answer this one prompt and exit.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="Seed for sampling.")] = 0,
    json: Json = False,
) -> None:
    """Talk to a trained model; an empty line or Ctrl-D ends the conversation.

    Example: handbook chat runs/sft
    """
    from handbook_utils.cli import view
    from handbook_utils.cli.chat import chat_with

    chat_with(model, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, json=json)
    if not json:
        view.say_next("measure it on held-out prompts: handbook evaluate --help", to_stderr=True)


app.command()(merge)
app.command()(export)
app.command("check-served")(check_served)
app.command()(template)
app.add_typer(data)


def _stage_command(name: str, text: str, *, elsewhere: bool = True) -> None:
    """Add one command for recipes of its stages; with `--executor` where the work can be done elsewhere."""

    def command(
        recipe: RecipeName,
        out: Out = None,
        changes: Changes = None,
        seed: Seed = None,
        json: Json = False,
        overwrite: Overwrite = False,
        dry_run: DryRun = False,
        executor: OnExecutor = None,
        allow_code: AllowCode = False,
    ) -> None:
        from handbook_utils.cli import view

        view.run_recipe(
            name,
            recipe,
            out=out,
            changes=changes,
            seed=seed,
            json=json,
            overwrite=overwrite,
            dry_run=dry_run,
            executor=executor,
            allow_code=allow_code,
        )

    register: Callable[..., Any] = app.command(name, help=text)
    register(command if elsewhere else _without_option(command, "executor"))


def _without_option(command: Callable[..., None], option: str) -> Callable[..., None]:
    """A command as Typer sees it without one of its options, which keeps its default."""
    shown = signature(command, eval_str=True)
    kept = [parameter for parameter in shown.parameters.values() if parameter.name != option]
    command.__signature__ = shown.replace(parameters=kept)  # type: ignore[attr-defined]
    return command


app.command()(train)
app.command()(slurm)
app.command()(plan)
app.command()(preflight)
_stage_command(
    "generate",
    "Sample a model's answers to the prompts of a recipe.\n\n"
    "The recipe pocket/samples samples the model in runs/sft: run `handbook train pocket/sft` first.\n\n"
    "Example: handbook generate pocket/samples",
)
_stage_command(
    "annotate",
    "Turn sampled answers into preference pairs, chosen by a simulated annotator.\n\n"
    "The recipe pocket/preferences reads the answers in runs/samples: run `handbook train pocket/sft` and "
    "`handbook generate pocket/samples` first.\n\n"
    "Example: handbook annotate pocket/preferences",
    elsewhere=False,
)
app.command()(score)
app.command()(select)
app.command("rejection-sample")(rejection_sample)
app.command()(evaluate)
app.command("win-rate")(win_rate)
app.command()(power)
app.command("reward-report")(reward_report)
app.command("instruction-report")(instruction_report)
fill_paragraphs(app)
