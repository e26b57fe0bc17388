"""`handbook score` and `handbook select`: by a recipe into a run folder, or on any file of rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handbook_utils.cli.options import (
    Changes,
    DryRun,
    Json,
    OnExecutor,
    Out,
    Overwrite,
    Seed,
    executor_changes,
)
from handbook_utils.errors import RecipeError

if TYPE_CHECKING:
    from handbook_utils.records import Estimate

ROWS = "On a file of rows"
Target = Annotated[
    str,
    typer.Argument(help="A recipe (packaged name or YAML file); or rows: a file, folder, run or hub name."),
]
Split = Annotated[str, typer.Option(help="Which rows, such as train[:200].", rich_help_panel=ROWS)]


def score(
    target: Target,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            "-s",
            help="NAME=MODEL or NAME={kind: ...}, as under `scorers` in a recipe. May be repeated.",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None,
    split: Split = "train",
    rows_per_batch: Annotated[
        int, typer.Option(min=1, help="Answers a forward pass.", rich_help_panel=ROWS)
    ] = 256,
    out: Out = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    executor: OnExecutor = None,
) -> None:
    """Score answers, or pairs of answers, by reward models, ensembles, verifiers or the gold reward.

    With --scorer, any rows are scored as they are: every column is kept, one column per score is added, and
    a table of means is printed (for pairs also how often the chosen answer scores higher). --out then names
    a .jsonl or .parquet file. Examples:

    handbook score pocket/scores

    handbook score pairs.jsonl -s proxy=runs/reward --out scored.jsonl

    handbook score answers.jsonl -s proxy=my/reward-model -s 'brief={kind: length, at_most: 80}'
    """
    given = {"--set": changes, "--seed": seed, "--dry-run": dry_run or None, "--executor": executor}
    if not scorer:
        _run("score", target, {**given, "--out": out, "--json": json, "--overwrite": overwrite})
        return
    _only_recipes(given)
    _score_rows(target, scorer, {"split": split, "rows_per_batch": rows_per_batch}, (out, json, overwrite))


def select(
    target: Target,
    by: Annotated[
        str | None, typer.Option(help="The column of the score that selects.", rich_help_panel=ROWS)
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(help="best, top_k, threshold, rso, pairs, rso_pairs or random.", rich_help_panel=ROWS),
    ] = "best",
    k: Annotated[int | None, typer.Option(help="Answers per prompt.", rich_help_panel=ROWS)] = None,
    threshold: Annotated[
        float | None, typer.Option(help="For threshold: the lowest score kept.", rich_help_panel=ROWS)
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help="For rso, rso_pairs: their temperature, in units of the score.", rich_help_panel=ROWS
        ),
    ] = None,
    distinct: Annotated[
        str, typer.Option(help="none; text: no text twice; near: none nearly twice.", rich_help_panel=ROWS)
    ] = "none",
    split: Split = "train",
    out: Out = None,
    changes: Changes = None,
    seed: Seed = None,
    json: Json = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Choose among scored answers; a random control of the same prompts and size is written beside them.

    With --by any scored rows are selected from: rows of one prompt are its samples. --out is a .jsonl or
    .parquet file then, and the control goes to FILE.control.jsonl. Examples:

    handbook select pocket/rft-best

    handbook select scored.jsonl --by proxy --out best.jsonl

    handbook select scored.jsonl --by proxy --strategy pairs --out pairs.jsonl
    """
    if by is None:
        options = {"--set": changes, "--seed": seed, "--dry-run": dry_run or None, "--out": out}
        _run("select", target, {**options, "--json": json, "--overwrite": overwrite})
        return
    _only_recipes({"--set": changes, "--dry-run": dry_run or None})
    rule = {"strategy": strategy, "k": k, "threshold": threshold, "beta": beta, "distinct": distinct}
    _select_rows(target, by, {**rule, "seed": seed or 0}, split, (out, json, overwrite))


def _run(command: str, recipe: str, options: dict[str, Any]) -> None:
    """Run a recipe of the command's stage."""
    from handbook_utils.cli import view

    if Path(recipe).exists() and Path(recipe).suffix not in (".yaml", ".yml"):
        option = {"score": "--scorer NAME=MODEL", "select": "--by COLUMN"}[command]
        raise RecipeError(f"{recipe}: rows, and no recipe. Say {option} as well, or give a recipe.")
    changes = [*executor_changes(options.get("--executor")), *(options["--set"] or [])]
    loaded = view.load_for(command, recipe, changes, options["--seed"])
    view.run_or_plan(
        loaded,
        options["--out"] or view.default_out(recipe),
        overwrite=options["--overwrite"],
        dry_run=bool(options["--dry-run"]),
        json=options["--json"],
    )


def _only_recipes(given: dict[str, Any]) -> None:
    for option, value in given.items():
        if value is not None:
            raise RecipeError(f"{option} belongs to a recipe, and rows are given. Leave it out.")


def _score_rows(
    name: str, scorers: list[str], how: dict[str, Any], to: tuple[Path | None, bool, bool]
) -> None:
    from handbook_utils.evaluation.statistics import with_cautions
    from handbook_utils.sampling.progress import answer_bar
    from handbook_utils.sampling.rows import check_writable, read_answered, write_rows
    from handbook_utils.sampling.scoring.rows import failed_counts, score_rows
    from handbook_utils.schema.recipe import scorer_sections

    out, json, overwrite = to
    out = out or Path(f"{Path(name).name.partition('.')[0]}.scored.jsonl")
    check_writable(out, overwrite=overwrite)
    sections = scorer_sections(scorers)
    answered = read_answered(name, split=how["split"])
    with answer_bar("scoring", len(answered), show=not json) as advance:
        made, cautions = with_cautions(
            lambda: score_rows(answered, sections, rows_per_batch=how["rows_per_batch"], advance=advance)
        )
    write_rows(out, made.rows)
    failed = failed_counts(made.failures)
    lines = [f"no score '{scorer}' in {count} of {len(made.rows)} rows" for scorer, count in failed.items()]
    lines += [f"such as prompt '{f.prompt_id}': {f.reason}" for f in made.failures[:1]]
    record: dict[str, Any] = {"rows": len(made.rows), "out": str(out), "failed": failed}
    record["cautions"] = list(cautions)
    _show(made.metrics, record, [*lines, f"{out}: {len(made.rows)} rows"], json)


def _select_rows(
    name: str, by: str, rule: dict[str, Any], split: str, to: tuple[Path | None, bool, bool]
) -> None:
    from handbook_utils.evaluation.statistics import with_cautions
    from handbook_utils.sampling.rows import check_writable, read_answered, write_rows
    from handbook_utils.sampling.selection.choose import Rule
    from handbook_utils.sampling.selection.rows import select_rows

    out, json, overwrite = to
    out = out or Path(f"{Path(name).name.partition('.')[0]}.{rule['strategy']}.jsonl")
    control = out.with_suffix(f".control{out.suffix}")
    for file in (out, control):
        check_writable(file, overwrite=overwrite)
    answered = read_answered(name, split=split)
    made, cautions = with_cautions(lambda: select_rows(answered, by=by, rule=Rule(**rule)))
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
    _show(made.metrics, record, lines, json)


def _show(metrics: dict[str, Estimate], record: dict[str, Any], lines: list[str], json: bool) -> None:
    from rich.console import Console

    from handbook_utils.cli import view

    if json:
        view.say({**record, "metrics": {name: one.to_json() for name, one in metrics.items()}}, "", True)
        return
    Console().print(view.metrics_table(metrics))
    for line in [*(f"caution: {caution}" for caution in record["cautions"]), *lines]:
        Console().print(line, style="dim", markup=False, highlight=False)
