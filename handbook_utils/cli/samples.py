"""`handbook score` and `handbook select`: by a recipe into a run folder, or on any file of rows."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from handbook_utils.cli.options import (
    RECIPES_ONLY,
    SEED,
    AllowCode,
    Json,
    RecipeChanges,
    RecipeDryRun,
    RecipeExecutor,
    Seed,
)
from handbook_utils.errors import RecipeError

if TYPE_CHECKING:
    from handbook_utils.records import Estimate
    from handbook_utils.sampling.selection.choose import Rule
    from handbook_utils.schema.sampling import Distinct, Strategy

ROWS = "On a file of rows"
Target = Annotated[
    str,
    typer.Argument(
        help="A recipe (packaged name or YAML file), or rows (a file, folder, run folder or hub name)."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="With a recipe: the run folder (default: runs/<last part of the recipe's name>). "
        "With rows: the .jsonl or .parquet file to write.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="With a recipe: delete the contents of the run folder and start again. "
        "With rows: replace the file.",
    ),
]
RecipeSeed = Annotated[
    int | None, typer.Option("--seed", min=0, help=RECIPES_ONLY + SEED, show_default=False)
]


class Output(NamedTuple):
    """Where rows go, and how it is told.

    Attributes:
        file: .jsonl or .parquet; None for one named after what was read.
        json: print one JSON object.
        overwrite: replace an earlier file.
    """

    file: Path | None
    json: bool
    overwrite: bool


Split = Annotated[str, typer.Option(help="Which rows to read, such as train[:200].", rich_help_panel=ROWS)]


def score(
    target: Target,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            "-s",
            help="NAME=MODEL or NAME={kind: ...}, as under `scorers` in a recipe. Repeatable.",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None,
    split: Split = "train",
    rows_per_batch: Annotated[
        int, typer.Option(min=1, help="Batch size (answers per forward pass).", rich_help_panel=ROWS)
    ] = 256,
    out: Out = None,
    changes: RecipeChanges = None,
    seed: RecipeSeed = None,
    json: Json = False,
    overwrite: Overwrite = False,
    dry_run: RecipeDryRun = False,
    executor: RecipeExecutor = None,
    allow_code: AllowCode = False,
) -> None:
    """Score answers, or pairs of answers, with reward models, ensembles, verifiers or the gold reward.

    With --scorer, TARGET is a set of rows: every column is kept, and each scorer adds a column.
    A table of mean scores is printed; for pairs, it also says how often the chosen answer scores higher.

    The recipe pocket/scores is a stage of pocket/pipeline and reads earlier runs of that pipeline.

    Examples:

    handbook score pocket/scores

    handbook score pairs.jsonl -s proxy=runs/reward --out scored.jsonl

    handbook score answers.jsonl -s proxy=my/reward-model -s 'brief={kind: length, at_most: 80}'
    """
    if scorer:
        _only_recipes(
            {"--set": changes, "--seed": seed, "--dry-run": dry_run or None, "--executor": executor}
        )
        _score_rows(target, scorer, split, rows_per_batch, Output(out, json, overwrite))
        return
    from handbook_utils.cli import view

    _refuse_rows(target, "--scorer NAME=MODEL")
    view.run_recipe(
        "score",
        target,
        out=out,
        changes=changes,
        seed=seed,
        json=json,
        overwrite=overwrite,
        dry_run=dry_run,
        executor=executor,
        allow_code=allow_code,
    )


def select(
    target: Target,
    by: Annotated[
        str | None, typer.Option(help="Column of the score to select by.", rich_help_panel=ROWS)
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(help="best, top_k, threshold, rso, pairs, rso_pairs or random.", rich_help_panel=ROWS),
    ] = "best",
    k: Annotated[int | None, typer.Option(help="Answers to keep per prompt.", rich_help_panel=ROWS)] = None,
    threshold: Annotated[
        float | None, typer.Option(help="For threshold: the lowest score to keep.", rich_help_panel=ROWS)
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help="For rso and rso_pairs: the temperature, in units of the score.", rich_help_panel=ROWS
        ),
    ] = None,
    distinct: Annotated[
        str,
        typer.Option(
            help="text: drop repeated answers; near: drop near-duplicates too; none: keep all.",
            rich_help_panel=ROWS,
        ),
    ] = "none",
    split: Split = "train",
    out: Out = None,
    changes: RecipeChanges = None,
    seed: Seed = None,
    json: Json = False,
    overwrite: Overwrite = False,
    dry_run: RecipeDryRun = False,
) -> None:
    """Choose among scored answers, and write a random control of the same prompts and size beside them.

    With --by, TARGET is a set of scored rows; rows with the same prompt are that prompt's samples.
    The control goes into a second file beside --out, such as best.control.jsonl.

    The recipe pocket/rft-best is a stage of pocket/pipeline and reads an earlier run of that pipeline.

    Examples:

    handbook select pocket/rft-best

    handbook select scored.jsonl --by proxy --out best.jsonl

    handbook select scored.jsonl --by proxy --strategy pairs --out pairs.jsonl
    """
    if by is not None:
        from handbook_utils.sampling.selection.choose import Rule

        _only_recipes({"--set": changes, "--dry-run": dry_run or None})
        rule = Rule(
            strategy=cast("Strategy", strategy),  # Rule refuses other words
            distinct=cast("Distinct", distinct),
            k=k,
            threshold=threshold,
            beta=beta,
            seed=seed or 0,
        )
        _select_rows(target, by, rule, split, Output(out, json, overwrite))
        return
    from handbook_utils.cli import view

    _refuse_rows(target, "--by COLUMN")
    view.run_recipe(
        "select",
        target,
        out=out,
        changes=changes,
        seed=seed,
        json=json,
        overwrite=overwrite,
        dry_run=dry_run,
    )


def _refuse_rows(target: str, option: str) -> None:
    if Path(target).exists() and Path(target).suffix not in (".yaml", ".yml"):
        raise RecipeError(f"{target}: these are rows, not a recipe. Add {option}, or give a recipe.")


def _only_recipes(given: dict[str, Any]) -> None:
    for option, value in given.items():
        if value is not None:
            raise RecipeError(f"{option} is for recipes only, and rows are given. Leave it out.")


def _score_rows(name: str, scorers: list[str], split: str, rows_per_batch: int, output: Output) -> None:
    from handbook_utils.evaluation.statistics import with_cautions
    from handbook_utils.sampling.progress import answer_bar
    from handbook_utils.sampling.rows import check_writable, read_answered, write_rows
    from handbook_utils.sampling.scoring.rows import failed_counts, score_rows
    from handbook_utils.schema.recipe import scorer_sections

    out = output.file or Path(f"{Path(name).name.partition('.')[0]}.scored.jsonl")
    check_writable(out, overwrite=output.overwrite)
    sections = scorer_sections(scorers)
    answered = read_answered(name, split=split)
    with answer_bar("scoring", len(answered), show=not output.json) as advance:
        made, cautions = with_cautions(
            lambda: score_rows(answered, sections, rows_per_batch=rows_per_batch, advance=advance)
        )
    write_rows(out, made.rows)
    failed = failed_counts(made.failures)
    lines = [f"{count} of {len(made.rows)} rows got no score '{scorer}'" for scorer, count in failed.items()]
    lines += [f"for example prompt '{f.prompt_id}': {f.reason}" for f in made.failures[:1]]
    record: dict[str, Any] = {"rows": len(made.rows), "out": str(out), "failed": failed}
    record["cautions"] = list(cautions)
    advice = f"choose among the answers: handbook select {shlex.quote(str(out))} --by {next(iter(sections))}"
    _show(made.metrics, record, [*lines, f"{out}: {len(made.rows)} rows"], None if output.json else advice)


def _select_rows(name: str, by: str, rule: Rule, split: str, output: Output) -> None:
    from handbook_utils.evaluation.statistics import with_cautions
    from handbook_utils.sampling.rows import check_writable, read_answered, write_rows
    from handbook_utils.sampling.selection.rows import select_rows

    out = output.file or Path(f"{Path(name).name.partition('.')[0]}.{rule.strategy}.jsonl")
    control = out.with_suffix(f".control{out.suffix}")
    for file in (out, control):
        check_writable(file, overwrite=output.overwrite)
    answered = read_answered(name, split=split)
    made, cautions = with_cautions(lambda: select_rows(answered, by=by, rule=rule))
    write_rows(out, made.chosen)
    write_rows(control, made.control)
    lines = [f"{made.unscored} rows have no score '{by}' and were left out"] if made.unscored else []
    lines += [f"{out}: {len(made.chosen)} rows; its random control: {control}"]
    record: dict[str, Any] = {
        "rows": len(made.chosen),
        "out": str(out),
        "control": str(control),
        "unscored": made.unscored,
    }
    record["cautions"] = list(cautions)
    advice = f"train on them: write data: [{{name: {out}}}] in a recipe, and train its control on {control}"
    _show(made.metrics, record, lines, None if output.json else advice)


def _show(metrics: dict[str, Estimate], record: dict[str, Any], lines: list[str], advice: str | None) -> None:
    """Print metrics, lines and what to do next; without advice, one JSON object."""
    from rich.console import Console

    from handbook_utils.cli import view

    if advice is None:
        view.say({**record, "metrics": {name: one.to_json() for name, one in metrics.items()}}, "", True)
        return
    Console().print(view.metrics_table(metrics))
    for line in [*(f"caution: {caution}" for caution in record["cautions"]), *lines]:
        Console().print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
    view.say_next(advice)
