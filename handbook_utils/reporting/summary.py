"""The demo's table: what every model is worth beside its control, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from handbook_utils.records import Estimate
from handbook_utils.reporting.curves import best_of_n_curves, measure_name
from handbook_utils.reporting.results import COLUMNS, model_rows, total_cost
from handbook_utils.reporting.runs import RunView, read_pipeline

# three columns with intervals fit beside a label into 80 columns
WORTH = ("gold", "gain", "win_rate")
BLOCKS = {
    "On held-out prompts, with 95 % intervals": WORTH,
    "What came with it": ("kl", "words", "truncated_rate"),
    "Refusals": ("refusal_rate_benign", "compliance_rate_harmful"),
}
MAIN_MEASURES = ("score", "gold", "words")


def summary_table(pipeline_out: Path | str | Mapping[str, RunView]) -> Group:
    """The tables `handbook run` ends with: models, reward models, best-of-n; 95 % intervals in brackets.

    Raises:
        RunFolderError: the folder holds no run.
    """
    views = pipeline_out if isinstance(pipeline_out, Mapping) else read_pipeline(pipeline_out)
    tables = [*model_tables(views), reward_table(views), *best_of_n_tables(views)]
    total = total_cost(views.values())
    minutes = f"{total['runtime_s'] / 60:.1f} min, at most {total['peak_memory_gib']:.2f} GiB"
    return Group(*[table for table in tables if table.row_count], Text(f"All stages: {minutes}."))


def model_tables(views: Mapping[str, RunView]) -> list[Table]:
    """One row per model: what it is worth against its baseline, then what came with it."""
    rows = model_rows(views)
    tables = []
    for title, keys in BLOCKS.items():
        shown = [key for key in keys if any(key in row.metrics for row in rows)]
        table = _table(title, ["model", *(COLUMNS[key] for key in shown)])
        for row in rows if shown else []:
            against = f"\n  against {row.baseline}" if row.baseline and keys is WORTH else ""
            table.add_row(Text(row.label + against), *(_cell(row.metrics.get(key)) for key in shown))
            for label, metrics in row.others if keys is WORTH else []:
                table.add_row(Text(f"  against {label}"), *(_cell(metrics.get(key)) for key in shown))
        tables.append(table)
    return tables


def reward_table(views: Mapping[str, RunView]) -> Table:
    """Accuracy of each reward model on held-out pairs, against the annotator and against gold."""
    table = _table(
        "Reward models, held-out pairs ranked right",
        ["reward model", "as the annotator", "as the gold reward"],
    )
    for name, view in views.items():
        if view.stage == "reward" and view.result:
            table.add_row(
                Text(name), *(_cell(view.final_metrics.get(key)) for key in ("accuracy", "accuracy_gold"))
            )
    return table


def best_of_n_tables(views: Mapping[str, RunView]) -> list[Table]:
    """For each best-of-n run and arm: one row per n, a few measures of the selected answer a table."""
    tables = []
    for view in views.values():
        curves = best_of_n_curves(view.final_metrics) if view.stage == "best_of_n" else {}
        for arm in dict.fromkeys(arm for arm, _ in curves):
            measures = [measure for of, measure in curves if of == arm]
            main = [measure for measure in MAIN_MEASURES if measure in measures]
            parts = [measure for measure in measures if measure not in main]
            for few in (main, *(parts[at : at + 4] for at in range(0, len(parts), 4))):
                if few:
                    tables.append(_curve_table(arm, {measure: dict(curves[arm, measure]) for measure in few}))
    return tables


def _curve_table(arm: str, curves: Mapping[str, Mapping[int, Estimate]]) -> Table:
    title = f"Best of n, selected by {arm}: what the selected answer is worth"
    table = _table(title, ["n", *map(measure_name, curves)])
    for n in sorted({n for curve in curves.values() for n in curve}):
        table.add_row(str(n), *(_cell(curve.get(n)) for curve in curves.values()))
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table


def _cell(found: Estimate | None) -> Text:
    if found is None:
        return Text("")
    # value over interval: four columns fit into a terminal of 80
    value, _, interval = str(found).partition(" ")
    cell = Text(value, no_wrap=True, justify="right")
    return cell.append(f"\n{interval}", style="dim")
