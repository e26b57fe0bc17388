"""Pictures of runs: loss and rewards over steps, best-of-n curves, estimates side by side.

Every function returns a `Figure` of its own and touches no global state of matplotlib, so it works alike in
a notebook, a script and a thread. Lines differ in colour, marker and dash: no picture relies on colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from handbook_utils.errors import DataError
from handbook_utils.records import Estimate, RunResult
from handbook_utils.reporting.curves import Curve, best_of_n_curves, measure_name, ordered_measures
from handbook_utils.reporting.runs import RunView, read_run
from handbook_utils.schema.stage_table import STAGES, Curves

# told apart by the colour-blind (after Okabe and Ito), of a lightness that reads on white and on black
COLOURS = ("#2b7bba", "#d1600f", "#10936b", "#b9609a", "#8a7a00", "#5a6bd0")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
INK = {False: "#1f2328", True: "#e6e9ec"}
PAPER = {False: "#ffffff", True: "#14181d"}

RunLike = RunView | RunResult | Path | str


class Picture(Figure):
    """A figure that a notebook shows by itself, without pyplot or a magic command."""

    def _repr_png_(self) -> bytes:
        return picture_bytes(self, "png")


def plot_training(runs: RunLike | Sequence[RunLike], *, dark: bool = False) -> Figure:
    """Draw training (and, dashed, held-out) loss over steps, one colour a run.

    Args:
        runs: one run or several.
        dark: light ink on dark paper.

    Raises:
        DataError: no metrics were logged.
    """
    views = _views(runs)
    figure, (axes,) = new_figure(1, dark=dark)
    for index, view in enumerate(views):
        drawn = _line(axes, view.metrics, "loss", index, label=view.name)
        drawn |= _line(axes, view.metrics, "eval_loss", index, label=f"{view.name}, held out", dashed=True)
        if not drawn:
            raise DataError(f"{view.path}: no loss was logged, so there is nothing to draw.")
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    labels = {view.curves.loss for view in views if view.curves}
    axes.set_ylabel(labels.pop() if len(labels) == 1 else "loss")
    axes.legend(frameon=False, labelcolor=INK[dark])
    return figure


def plot_rewards(run: RunLike, *, dark: bool = False) -> Figure:
    """Draw what training did to rewards and, where they are logged, to accuracy or to KL and entropy.

    Works for runs of `reward`, `dpo`, `orpo`, `kto`, `grpo` and `rloo`. Rewards are those of the trainer: a
    reward model's scores, or beta times a log-ratio (of `orpo`: beta times a log-probability). Of `grpo` and
    `rloo` they are the scores of sampled answers, with those on held-out prompts dashed.

    Raises:
        DataError: the run logged no rewards.
    """
    view = read_run(run)
    curves = view.curves or Curves()
    figure, (left, *others) = new_figure(2 if curves.accuracy or curves.moves else 1, dark=dark)
    drawn = False
    for index, (key, label) in enumerate(curves.rewards.items()):
        drawn |= _line(left, view.metrics, key, index, label=label)
    for index, key in enumerate(_held_out_scores(view.metrics), start=len(curves.rewards)):
        _line(left, view.metrics, key, index, label=key.replace("held_out/", "held out, "), dashed=True)
    left.set(xlabel="optimiser step", ylabel="reward")
    for index, (key, label) in enumerate(curves.moves.items()):
        _line(others[0], view.metrics, key, index, label=label)
        others[0].set(xlabel="optimiser step", ylabel="nats")
    for right in others if curves.accuracy else ():
        drawn |= _line(right, view.metrics, str(curves.accuracy), 0, label="training pairs")
        held_out = f"eval_{curves.accuracy}"
        drawn |= _line(right, view.metrics, held_out, 0, label="held-out pairs", dashed=True)
        right.set(xlabel="optimiser step", ylabel="pairs ranked right", ylim=(0, 1))
        right.axhline(0.5, color=INK[dark], alpha=0.35, linewidth=1, linestyle=":")
    if not drawn:
        known = ", ".join(name for name, stage in STAGES.items() if stage.curves and stage.curves.rewards)
        raise DataError(f"{view.path}: no rewards were logged. plot_rewards draws runs of: {known}.")
    for axes in (left, *others):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, labelcolor=INK[dark])
    return figure


def _held_out_scores(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the scores that an online run logged on held-out prompts."""
    others = {f"held_out/{name}" for name in ("kl", "words", "truncated")}
    return sorted({key for row in metrics for key in row if key.startswith("held_out/")} - others)


def plot_best_of_n(run: RunLike, *, measures: Sequence[str] | None = None, dark: bool = False) -> Figure:
    """Draw each measure of the selected answer against n, with its interval as a band, one line per arm.

    Args:
        run: a finished `best_of_n` run.
        measures: which to draw, in what order ("gold", "score", "words", "gold.helpful"); all by default.
        dark: light ink on dark paper.

    Raises:
        DataError: the run holds no such curve.
    """
    view = read_run(run)
    curves = best_of_n_curves(view.final_metrics)
    known = ordered_measures(curves)
    wanted = list(measures) if measures is not None else known
    missing = [name for name in wanted if name not in known]
    if missing or not wanted:
        raise DataError(
            f"{view.path}: no best-of-n curve of {missing or 'anything'}; it has {known or 'none'}."
        )
    figure, panels = new_figure(len(wanted), dark=dark)
    arms = list(dict.fromkeys(arm for arm, _ in curves))
    for axes, measure in zip(panels, wanted, strict=True):
        for index, arm in enumerate(arms):
            if (arm, measure) in curves:
                _band(axes, curves[arm, measure], index, label=f"selected by {arm}")
        axes.set_title(measure_name(measure), color=INK[dark], fontsize=10, loc="left")
        axes.set_xlabel("n, samples to choose from")
    panels[0].legend(frameon=False, labelcolor=INK[dark], fontsize=8)
    return figure


def plot_estimates(
    estimates: Mapping[str, Estimate], *, reference: float | None = None, unit: str = "", dark: bool = False
) -> Figure:
    """Draw estimates under each other with their intervals, and a line at the value that means no difference.

    Raises:
        DataError: there is nothing to draw.
    """
    if not estimates:
        raise DataError("no estimates to draw.")
    figure, (axes,) = new_figure(1, dark=dark, height=0.8 + 0.45 * len(estimates), width=5.6)
    for row, (label, found) in enumerate(estimates.items()):
        ends = [found.low, found.high]
        axes.plot(ends, [row, row], color=COLOURS[0], linewidth=4, alpha=0.55, solid_capstyle="round")
        axes.plot([found.value], [row], MARKERS[0], color=COLOURS[0], markersize=7)
        axes.annotate(
            f"{label}",
            (0, row),
            xycoords=("axes fraction", "data"),
            xytext=(-6, 0),
            ha="right",
            va="center",
            textcoords="offset points",
            color=INK[dark],
            fontsize=9,
        )
    if reference is not None:
        axes.axvline(reference, color=INK[dark], alpha=0.5, linewidth=1, linestyle="--")
    axes.set_yticks([])
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.set_xlabel(unit or next(iter(estimates.values())).unit)
    return figure


def picture_bytes(figure: Figure, kind: str, *, name: str = "picture") -> bytes:
    """Render to "png" or "svg"; an SVG's ids carry `name`, so that several fit on one page, and no date."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        if kind == "svg":
            figure.savefig(stream, format=kind, transparent=True, metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(stream, format=kind, dpi=144)
    return stream.getvalue()


def _views(runs: RunLike | Sequence[RunLike]) -> list[RunView]:
    if isinstance(runs, RunView | RunResult | Path | str):
        return [read_run(runs)]
    views = [read_run(run) for run in runs]
    if not views:
        raise DataError("no runs to draw.")
    return views


def new_figure(
    panels: int, *, dark: bool, height: float = 2.9, width: float = 4.4
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, at most two in a row, in the book's colours."""
    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure = Picture(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor(PAPER[dark])
    grid = figure.subplots(rows, columns, squeeze=False).flat
    axes = list(grid)
    for spare in axes[panels:]:
        spare.remove()
    for each in axes[:panels]:
        each.set_facecolor("none")
        each.grid(alpha=0.25, color=INK[dark], linewidth=0.6)
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(INK[dark])
        each.tick_params(colors=INK[dark], labelsize=8)
        each.xaxis.label.set_color(INK[dark])
        each.yaxis.label.set_color(INK[dark])
        each.xaxis.label.set_fontsize(9)
        each.yaxis.label.set_fontsize(9)
        each.yaxis.set_major_locator(MaxNLocator(6))
    return figure, axes[:panels]


def _line(
    axes: Axes,
    metrics: Sequence[Mapping[str, Any]],
    key: str,
    index: int,
    *,
    label: str,
    dashed: bool = False,
) -> bool:
    points = [
        (row["step"], row[key]) for row in metrics if "step" in row and isinstance(row.get(key), int | float)
    ]
    if not points:
        return False
    steps, values = zip(*points, strict=True)
    colour = COLOURS[index % len(COLOURS)]
    # a marker keeps a single held-out value visible and tells lines apart without colour
    every = max(1, len(points) // 8)
    axes.plot(
        steps,
        values,
        "--" if dashed else "-",
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        markerfacecolor="none" if dashed else colour,
        markevery=every,
        markersize=5 if dashed else 3.5,
        linewidth=1.4,
        label=label,
    )
    return True


def _band(axes: Axes, curve: Curve, index: int, *, label: str) -> None:
    ns = [n for n, _ in curve]
    colour = COLOURS[index % len(COLOURS)]
    low, high = [e.low for _, e in curve], [e.high for _, e in curve]
    axes.fill_between(ns, low, high, color=colour, alpha=0.22, linewidth=0)
    axes.plot(
        ns,
        [e.value for _, e in curve],
        linestyle=DASHES[index % len(DASHES)],
        color=colour,
        marker=MARKERS[index % len(MARKERS)],
        markersize=4.5,
        linewidth=1.5,
        label=label,
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.minorticks_off()
