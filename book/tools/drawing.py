"""Charts of the book's pictures: panels, bars, curves and figures with their intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).resolve().parents[1] / "figures"
BLUE, ORANGE, INK = "#2b7bba", "#d1600f", "#333333"
ARMS = {"proxy": (BLUE, "o", "reward model"), "control": (ORANGE, "s", "unbiased control")}


def panels(count: int, *, widths: Sequence[float]) -> tuple[Any, Any]:
    """A figure of axes side by side, and the axes: one, or an array."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left"})
    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "handbook"})
    size = {"figsize": (max(4.2, 3.3 * count), 2.7), "layout": "constrained"}
    return pyplot.subplots(1, count, gridspec_kw={"width_ratios": widths}, **size)


def bars(axes: Any, records: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """One bar a figure, by its label, with its interval; the first on top."""
    labels = list(records)[::-1]
    for row, label in enumerate(labels):
        found = records[label]
        axes.barh(row, found["value"], color=BLUE, alpha=0.45, height=0.6)
        axes.plot([found["low"], found["high"]], [row, row], color=INK, linewidth=2)
    axes.set_yticks(range(len(labels)), [textwrap.fill(label, 26) for label in labels])
    axes.set_xlim(left=0)
    axes.set_title(title)


def curve(axes: Any, figures: Mapping[str, Any], prefix: str, arm: str) -> None:
    """The figures called `prefix` and a number over that number, with their intervals, in an arm's colour."""
    colour, marker, label = ARMS[arm]
    records = {int(key.removeprefix(prefix)): f for key, f in figures.items() if key.startswith(prefix)}
    ns = sorted(records)
    low, value, high = ([records[n][end] for n in ns] for end in ("low", "value", "high"))
    axes.fill_between(ns, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(ns, value, color=colour, marker=marker, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.set_xlabel("n")


def dot(axes: Any, at: float, found: Mapping[str, Any]) -> None:
    """A figure with its interval, upright at one place."""
    axes.plot([at, at], [found["low"], found["high"]], color=BLUE, alpha=0.5)
    axes.plot(at, found["value"], "o", color=BLUE, markersize=4)


def save(figure: Any, name: str) -> None:
    """Write a picture of the book."""
    # no date inside: the same figures give the same file
    figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None}, facecolor="white")
