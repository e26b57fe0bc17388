"""`handbook reward-report`: is a reward model good."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handbook_utils.cli.options import Json

if TYPE_CHECKING:
    from handbook_utils.evaluation.reward.report import RewardReport


def reward_report(
    pairs: Annotated[
        str,
        typer.Argument(
            help="Pairs of answers: a file, folder or hub name; or the run folder of a reward model."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="NAME=MODEL to score the pairs with. Repeatable.", show_default=False
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which rows to read, such as filtered[:200].")] = "train",
    rows_per_batch: Annotated[int, typer.Option(min=1, help="Batch size (answers per forward pass).")] = 256,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file.")] = Path("reward-report.html"),
    json: Json = False,
) -> None:
    """Report on reward models: accuracy by subset beside length and chance, calibration, bias, ensembles.

    Scores come from columns NAME.chosen and NAME.rejected, as `handbook score` writes them, or from --model.
    RewardBench (--split filtered) and RewardBench 2 are read as they are. Where a row lists several answers,
    it counts as right only if each right answer scores above each wrong one. Optional columns: subset,
    prompt_id, gold.chosen, gold.rejected, first.

    Examples:

    handbook reward-report scored.jsonl

    handbook reward-report pairs.jsonl -m old=runs/reward-1 -m new=runs/reward-2

    handbook reward-report runs/reward
    """
    from handbook_utils.evaluation.reward.report import reward_report as report_on
    from handbook_utils.pipeline.reward_pairs import read_comparisons
    from handbook_utils.reporting.reward_page import write_reward_page
    from handbook_utils.sampling.progress import answer_bar

    with answer_bar("scoring", None, show=bool(model) and not json) as advance:
        rows = read_comparisons(
            pairs, models=model or [], split=split, rows_per_batch=rows_per_batch, advance=advance
        )
    report = report_on(rows)
    page = write_reward_page(report, out, title=f"Reward models on {Path(pairs).name}")
    if json:
        print(json_module.dumps({"report": str(page), **report.to_json()}))
    else:
        _show(report, page)


def _show(report: RewardReport, page: Path) -> None:
    from rich.console import Console

    from handbook_utils.cli import view

    figures = {name: parts[""] for name, parts in report.rulers.items()}
    for name, model in report.models.items():
        figures |= {f"{name}.{key}": figure for key, figure in model.figures.items()}
        if model.calibration is not None:
            figures[f"{name}.calibration_error"] = model.calibration.error
    console = Console()
    console.print(view.metrics_table(figures))
    for caution in report.cautions:
        console.print(f"caution: {caution}", style="yellow", markup=False)
    console.print(f"report: {page}", style="dim", markup=False, soft_wrap=True)
    view.say_next("open the report in a browser; it needs no other file")
