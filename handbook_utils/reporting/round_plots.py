"""The picture of a `rejection` run: each score, the length and the KL of every round's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from handbook_utils.errors import DataError
from handbook_utils.records import Estimate
from handbook_utils.reporting.plots import COLOURS, INK, MARKERS, RunLike, new_figure
from handbook_utils.reporting.runs import read_run

Points = list[tuple[int, Estimate]]
TITLES = {"words": "words per answer", "kl": "KL to the start, nats per answer"}


def plot_rounds(run: RunLike, *, measures: Sequence[str] | None = None, dark: bool = False) -> Figure:
    """Draw what rejection sampling gave by round: each score, words and KL, beside the random control's.

    Where the score that selects keeps rising and gold does not, the scorer is being over-optimised.

    Args:
        run: a finished `rejection` run.
        measures: which to draw ("gold", "words", "kl", "gold.helpful"); scores, words and KL by default.
        dark: light ink on dark paper.
    Raises:
        DataError: the run holds no such measure.
    """
    view = read_run(run)
    scorers = {**view.recipe.get("evaluate", {}).get("scorers", {}), **view.recipe.get("scorers", {})}
    wanted = list(measures) if measures is not None else [*scorers, *TITLES]
    curves = {measure: _points(view.final_metrics, measure) for measure in wanted}
    missing = [measure for measure, points in curves.items() if not points]
    if missing or not wanted:
        raise DataError(
            f"{view.path}: no rounds with {missing or 'anything'}. plot_rounds draws `rejection` runs."
        )
    figure, panels = new_figure(len(wanted), dark=dark)
    for axes, measure in zip(panels, wanted, strict=True):
        _draw(axes, curves[measure], "selected", 0)
        _draw(axes, _points(view.final_metrics, measure, suffix="-control"), "random control", 1)
        axes.set_title(TITLES.get(measure, measure), color=INK[dark], fontsize=10, loc="left")
        axes.set_xlabel("round, 0 is the start")
        axes.set_xticks(range(curves[measure][-1][0] + 1))
    panels[0].legend(frameon=False, labelcolor=INK[dark], fontsize=8)
    return figure


def _points(metrics: Mapping[str, Estimate], measure: str, *, suffix: str = "") -> Points:
    """The measure of the start model, where it has one, and of every round's."""
    found = {0: metrics.get(f"start.{measure}")} if not suffix else {}
    number = 1
    while any(name.startswith(f"round-{number}.") for name in metrics):
        found[number] = metrics.get(f"round-{number}{suffix}.{measure}")
        number += 1
    return [(number, estimate) for number, estimate in found.items() if estimate is not None]


def _draw(axes: Axes, points: Points, label: str, index: int) -> None:
    if not points:
        return
    shift = 0.06 * index  # intervals beside each other, not over each other
    places = [number + shift for number, _ in points]
    values = [found.value for _, found in points]
    ends = [[v - found.low for v, (_, found) in zip(values, points, strict=True)]]
    ends.append([found.high - v for v, (_, found) in zip(values, points, strict=True)])
    axes.errorbar(
        places,
        values,
        yerr=ends,
        color=COLOURS[index],
        marker=MARKERS[index],
        linestyle="none" if index else "-",  # a control begins anew each round
        capsize=3,
        markersize=4.5,
        linewidth=1.5,
        label=label,
    )
