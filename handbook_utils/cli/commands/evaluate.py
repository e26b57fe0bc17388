"""`handbook evaluate`: a recipe's metrics on held-out prompts, or benchmarks of the lm-evaluation-harness."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handbook_utils.cli.options import (
    RUN_FOLDER,
    AllowCode,
    Json,
    Overwrite,
    RecipeChanges,
    RecipeDryRun,
    RecipeExecutor,
    Seed,
)
from handbook_utils.errors import RecipeError

if TYPE_CHECKING:
    from handbook_utils.benchmarks.run import BenchmarkResult
    from handbook_utils.benchmarks.scores import BenchmarkComparison

BENCHMARKS = "Benchmarks (extra lm-eval)"

Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help=f"{RUN_FOLDER}; with --tasks: runs/benchmarks-<model>."),
]
Measured = Annotated[
    str,
    typer.Argument(help="A packaged recipe or a YAML file; with --tasks a run, model folder or hub name."),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        help="Tasks of the harness, such as arc_easy,hellaswag, or YAML files of tasks.",
        rich_help_panel=BENCHMARKS,
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        help="Baseline to compare with: the --out folder of an earlier --tasks run.",
        rich_help_panel=BENCHMARKS,
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(
        min=0, help="Examples before each question. Default: the task's.", rich_help_panel=BENCHMARKS
    ),
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Only the first N questions.", rich_help_panel=BENCHMARKS)
]
RowsPerBatch = Annotated[
    int, typer.Option("--rows-per-batch", min=1, help="Rows per batch.", rich_help_panel=BENCHMARKS)
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.", rich_help_panel=BENCHMARKS)]
NoTemplate = Annotated[
    bool,
    typer.Option(
        "--no-template",
        help="Ask without the chat template, as a model that only continues text.",
        rich_help_panel=BENCHMARKS,
    ),
]


def evaluate(
    recipe: Measured,
    out: Out = None,
    changes: RecipeChanges = None,
    seed: Seed = None,
    json: Json = False,
    overwrite: Overwrite = False,
    dry_run: RecipeDryRun = False,
    executor: RecipeExecutor = None,
    allow_code: AllowCode = False,
    tasks: Tasks = None,
    against: Against = None,
    shots: Shots = None,
    limit: Limit = None,
    rows: RowsPerBatch = 8,
    dtype: Dtype = "auto",
    no_template: NoTemplate = False,
) -> None:
    """Measure a model on held-out prompts, or best-of-n on scored samples; with --tasks on benchmarks.

    With --tasks, questions are asked through the chat template, tokenized as in training. Every figure
    of the lm-evaluation-harness is shown beside ours, with an interval over questions. --against compares
    with a baseline question by question, with p-values corrected for the number of comparisons.

    The recipe pocket/evaluate measures the model in runs/sft: run `handbook train pocket/sft` first.

    Examples:

    handbook evaluate pocket/evaluate

    handbook evaluate runs/sft --tasks arc_easy,hellaswag --out runs/bench-sft

    handbook evaluate runs/dpo --tasks arc_easy,hellaswag --out runs/bench-dpo --against runs/bench-sft
    """
    if not tasks:
        _refuse_options(
            {
                "--against": against,
                "--shots": shots,
                "--limit": limit,
                "--no-template": no_template or None,
                "--dtype": None if dtype == "auto" else dtype,
            },
            "belongs to benchmarks. Name them with --tasks, or leave it out.",
        )
        from handbook_utils.cli import view

        view.run_recipe(
            "evaluate",
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
        return
    _refuse_options(
        {"--set": changes or None, "--executor": executor or None, "--dry-run": dry_run or None},
        "belongs to recipes; with --tasks there is none. Leave it out.",
    )
    from handbook_utils.benchmarks.tasks import named_tasks, require_harness

    named_tasks(tasks, allow_code=allow_code)  # what is wrong there is said before anything heavy is loaded
    require_harness()
    from handbook_utils.benchmarks.run import BenchmarkSettings, read_benchmarks, run_benchmarks

    baseline = None if against is None else read_benchmarks(against)
    settings = BenchmarkSettings(shots, limit, rows, dtype, not no_template, seed or 0)
    folder = out or Path("runs") / f"benchmarks-{Path(recipe).name.replace(':', '-')}"
    announce = None if json else lambda name: print(f"{name} ...")
    result = run_benchmarks(
        recipe, tasks, folder, settings, allow_code=allow_code, overwrite=overwrite, announce=announce
    )
    _report(result, baseline, json)


def _refuse_options(given: Mapping[str, object], why: str) -> None:
    """Refuse the first option that has a value and no use."""
    for name, value in given.items():
        if value is not None:
            raise RecipeError(f"{name}: {why}")


def _report(result: BenchmarkResult, baseline: BenchmarkResult | None, json: bool) -> None:
    from handbook_utils.benchmarks.run import asked_otherwise
    from handbook_utils.benchmarks.scores import compare_benchmarks

    compared: list[BenchmarkComparison] = []
    left_out: list[str] = []
    if baseline is not None:
        compared, left_out = compare_benchmarks(baseline.scores, result.scores)
        result = replace(result, cautions=[*result.cautions, *asked_otherwise(baseline, result)])
    if json:
        print(json_module.dumps(_record(result, compared, left_out)))
    else:
        _show(result, compared, left_out)


def _record(
    result: BenchmarkResult, compared: list[BenchmarkComparison], left_out: list[str]
) -> dict[str, Any]:
    scores = [
        {key: value for key, value in score.to_json().items() if key != "values"} for score in result.scores
    ]
    comparisons = [
        {
            "name": row.name,
            "difference": row.paired.difference.to_json(),
            "p_value": row.paired.p_value,
            "p_holm": row.p_holm,
            "n": row.paired.n,
        }
        for row in compared
    ]
    return {
        "folder": str(result.folder),
        "scores": scores,
        "comparisons": comparisons,
        "left_out": left_out,
        "cautions": list(result.cautions),
    }


def _show(result: BenchmarkResult, compared: list[BenchmarkComparison], left_out: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from handbook_utils.cli import view

    console = Console(highlight=False)
    table = Table("task", "metric", "harness", "its stderr", "with interval", "questions")
    for column in table.columns:
        column.overflow = "fold"
    for score in result.scores:
        stderr = "" if score.stderr is None else f"{score.stderr:.4f}"
        ours, n = (
            ("no mean over questions", "") if score.mean is None else (str(score.mean), str(score.mean.n))
        )
        table.add_row(Text(score.task), Text(score.metric), f"{score.theirs:.4f}", stderr, ours, n)
    console.print(table)
    if compared:
        rows = ((row.name, row.paired.difference, row.paired.p_value, row.p_holm) for row in compared)
        console.print(view.paired_table(rows, difference="B minus A", of="questions"))
    for line in left_out:
        console.print(Text(f"not compared: {line}", style="dim"))
    for caution in result.cautions:
        console.print(Text(f"caution: {caution}", style="yellow"))
    console.print(Text(f"{result.folder}: every question's score is kept there", style="dim"))
    if not compared:
        view.say_next(f"compare another model, question by question: --against {result.folder}")
