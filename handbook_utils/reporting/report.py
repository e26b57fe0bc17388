"""One self-contained HTML page about a pipeline or a few runs, finished or not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from handbook_utils.errors import DataError
from handbook_utils.records import Estimate
from handbook_utils.reporting.claims.claim import interval_svg
from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS
from handbook_utils.reporting.curves import best_of_n_curves, measure_name, ordered_measures
from handbook_utils.reporting.held_out import plot_held_out
from handbook_utils.reporting.picture import duration, pipeline_svg
from handbook_utils.reporting.plots import (
    INK,
    picture_bytes,
    plot_best_of_n,
    plot_estimates,
    plot_rewards,
    plot_training,
)
from handbook_utils.reporting.results import COLUMNS, cost, device_name, label_of, model_rows, total_cost
from handbook_utils.reporting.round_plots import plot_rounds
from handbook_utils.reporting.runs import STATUSES, RunView, read_runs
from handbook_utils.reporting.samples import compare_answers
from handbook_utils.runs.atomic import write_text

SIDE_BY_SIDE = ("evaluate-sft", "evaluate-dpo")


def write_report(runs: Path | str | Sequence[Path | str], out: Path | str) -> Path:
    """Write a report on a pipeline's folder or on run folders.

    The page needs no other file and no network; text of prompts and models is escaped. Runs that are
    unfinished appear with what they have.

    Args:
        runs: the folder of a pipeline, one run folder, or several.
        out: the HTML file to write.

    Raises:
        RunFolderError: no run is found, or the file cannot be written.
    """
    views = read_runs(runs)
    return write_page("report.html.jinja", report_content(views), out)


def write_page(template: str, content: Mapping[str, Any], out: Path | str) -> Path:
    """Write a page from a template of this folder; what is not marked as safe is escaped.

    Raises:
        RunFolderError: the file cannot be written.
    """
    pages = Environment(
        loader=PackageLoader("handbook_utils.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["duration"] = duration
    target = Path(out)
    write_text(target, pages.get_template(template).render(content))
    return target


def report_content(views: Mapping[str, RunView]) -> dict[str, Any]:
    """Everything the page shows, as plain values; only pictures drawn here are marked as safe."""
    return {
        "title": _title(views),
        "statuses": {status: sum(v.status == status for v in views.values()) for status in STATUSES},
        "total": total_cost(views.values()),
        # drawn by us from escaped names
        "pipeline": Markup(pipeline_svg(views)),
        "errors": {n: v.manifest["error"] for n, v in views.items() if "error" in v.manifest},
        "cautions": _cautions(views),
        "headline": headline(views),
        "reward_models": [(n, v.final_metrics) for n, v in views.items() if v.stage == "reward" and v.result],
        "best_of_n": [
            _best_of_n(view) for view in views.values() if view.stage == "best_of_n" and view.result
        ],
        "rounds": [
            inline_picture(
                plot_rounds(view), name, f"{name}: scores, length and KL by round, with 95 % intervals"
            )
            for name, view in views.items()
            if view.stage == "rejection" and view.result
        ],
        "training": _training_pictures(views),
        "comparisons": _comparison_pictures(views),
        "labels": [label_of(name) for name in SIDE_BY_SIDE],
        "answers": compare_answers(views, SIDE_BY_SIDE),
        "claims": _claims(views),
        "costs": [(view, cost(view) if view.result else None) for view in views.values()],
        "all_metrics": [(view, view.final_metrics) for view in views.values() if view.final_metrics],
        "origin": _origin(views),
    }


def headline(views: Mapping[str, RunView]) -> dict[str, Any]:
    """The table of models: headings, and rows of (label, against, cells, is a model of its own)."""
    rows = model_rows(views)
    shown = [key for key in COLUMNS if any(key in row.metrics for row in rows)]
    lines: list[tuple[str, str, list[Estimate | None], bool]] = []
    for row in rows:
        lines.append((row.label, row.baseline, [row.metrics.get(key) for key in shown], True))
        for label, metrics in row.others:
            lines.append(("", label, [metrics.get(key) for key in shown], False))
    return {"columns": [COLUMNS[key] for key in shown], "rows": lines}


def _title(views: Mapping[str, RunView]) -> str:
    if len(views) == 1:
        (view,) = views.values()
        return f"Run {view.name}"
    return f"Pipeline {next(iter(views.values())).path.resolve().parent.name}"


def _cautions(views: Mapping[str, RunView]) -> dict[str, list[str]]:
    """What to know before relying on an interval, and the runs it was said of."""
    said_of: dict[str, list[str]] = {}
    for name, view in views.items():
        for caution in view.result.cautions if view.result else ():
            said_of.setdefault(caution, []).append(name)
    return said_of


def _best_of_n(view: RunView) -> dict[str, Any]:
    curves = best_of_n_curves(view.final_metrics)
    measures = ordered_measures(curves)
    ns = sorted({n for curve in curves.values() for n, _ in curve})
    return {
        "name": view.name,
        "ns": ns,
        "rows": [
            (arm, measure_name(m), [dict(curve).get(n) for n in ns]) for (arm, m), curve in curves.items()
        ],
        "pictures": [
            inline_picture(
                plot_best_of_n(view, measures=[m]), f"{view.name}-{m}", f"{measure_name(m)} against n"
            )
            for m in measures
        ],
    }


def _training_pictures(views: Mapping[str, RunView]) -> list[dict[str, Any]]:
    pictures = []
    for view in views.values():
        if view.curves is None or view.status == "planned":
            continue
        for draw, what in (
            (plot_training, "loss"),
            (plot_rewards, "rewards and accuracy"),
            (plot_held_out, "held-out samples"),
        ):
            if draw is plot_rewards and not view.curves.rewards:
                continue
            try:
                figure = draw(view)
            except DataError:  # nothing logged yet: a run that has just begun
                continue
            name = f"{view.name}-{what.split()[0]}"
            drawn = inline_picture(figure, name, f"{view.name}: {what} over optimiser steps")
            pictures.append({**drawn, "wide": len(figure.axes) > 1})
    return pictures


def _comparison_pictures(views: Mapping[str, RunView]) -> list[dict[str, Any]]:
    pictures = []
    kinds = ("win_rate", 0.5, "win rate by gold reward"), ("gain", 0.0, "paired gain in gold reward")
    for key, reference, title in kinds:
        found = {
            f"{row.label}\nagainst {against}": metrics[key]
            for row in model_rows(views)
            for against, metrics in ((row.baseline, row.metrics), *row.others)
            if key in metrics
        }
        if found:
            figure = plot_estimates(found, reference=reference, unit=title)
            pictures.append(inline_picture(figure, key, f"{title}, with 95 % intervals"))
    return pictures


def _claims(views: Mapping[str, RunView]) -> list[dict[str, Any]]:
    records = [
        (each.record(views), each)
        for each in PIPELINE_CLAIMS
        if each.run in views and each.figure in views[each.run].final_metrics
    ]
    return [
        {
            "record": record,
            "wording": each.wording,
            "fresh": _on_fresh_seeds(each.fresh) if each.fresh else None,
            "picture": Markup(interval_svg(record)),
        }
        for record, each in records
    ]


def _on_fresh_seeds(found: Mapping[str, Any]) -> str:
    """A claim's figure over fresh seeds, in one line."""
    mean = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    spread = f"from {found['lowest']:.3f} to {found['highest']:.3f}"
    return f"{mean}, {spread}, holds on {found['held']} of {found['of']}"


def inline_picture(figure: Figure, name: str, alt: str) -> dict[str, Any]:
    """An inline SVG that takes the page's text colour, so that one picture serves light and dark."""
    svg = picture_bytes(figure, "svg", name=name).decode("utf-8")
    svg = svg[svg.index("<svg") :].replace(INK[False], "currentColor")
    # matplotlib numbers its groups alike in every figure; on one page only ids that are used may stay
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    return {"alt": alt, "svg": Markup(svg)}


def _origin(views: Mapping[str, RunView]) -> dict[str, Any]:
    """Versions, hardware, commits and seeds over all runs; several where runs differ."""
    manifests = [view.manifest for view in views.values() if view.manifest]
    versions: dict[str, list[str]] = {}
    for manifest in manifests:
        for library, version in manifest.get("versions", {}).items():
            if version not in versions.setdefault(library, []):
                versions[library].append(version)
    return {
        "versions": versions,
        "devices": _distinct(device_name(m["hardware"]) for m in manifests if "hardware" in m),
        "platforms": _distinct(m["hardware"].get("platform") for m in manifests if "hardware" in m),
        "commits": _distinct(m.get("commit") for m in manifests),
        "seeds": _distinct(m.get("seed") for m in manifests),
        "started": min((m["started"] for m in manifests if "started" in m), default=None),
    }


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(value for value in values if value is not None))
