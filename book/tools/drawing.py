"""Charts of the book's pictures: panels, bars, curves and figures with their intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).resolve().parents[1] / "figures"
BLUE, ORANGE, INK = "#2b7bba", "#d1600f", "#333333"
PALE = "#f2f2f2"
# what each colour becomes on a dark page; a viewer that ignores style sheets shows the light one
DARK = {"#ffffff": "#121212", "#000000": "#ced6dd", PALE: "#2b2f36", "#cccccc": "#50565f"}
DARK |= {INK: "#c3c9d1", BLUE: "#64aee8", ORANGE: "#f09050"}
NARROW = 3.4  # inches: a phone's page, where 9 points are 9 points
ARMS = {"proxy": (BLUE, "o", "reward model"), "control": (ORANGE, "s", "unbiased control")}


def panels(count: int, *, widths: Sequence[float]) -> tuple[Any, Any]:
    """A figure of axes side by side, and the axes: one, or an array."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left"})
    pyplot.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "handbook"})
    size = {"figsize": (min(max(4.2, 3.3 * count), 8.2), 2.7), "layout": "constrained"}
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


def band(
    axes: Any, found: Mapping[int, Mapping[str, Any]], style: tuple[str, str, str], *, alpha: float = 0.15
) -> None:
    """Figures over their numbers with their intervals as a band; the style is colour, marker and label."""
    colour, marker, label = style
    low, value, high = ([each[end] for each in found.values()] for end in ("low", "value", "high"))
    axes.fill_between(list(found), low, high, color=colour, alpha=alpha, linewidth=0)
    axes.plot(list(found), value, color=colour, marker=marker, markersize=4, label=label)


def curve(axes: Any, figures: Mapping[str, Any], prefix: str, arm: str) -> None:
    """The figures called `prefix` and a number over that number, with their intervals, in an arm's colour."""
    colour, marker, label = ARMS[arm]
    records = {int(key.removeprefix(prefix)): f for key, f in figures.items() if key.startswith(prefix)}
    ns = sorted(records)
    band(axes, {n: records[n] for n in ns}, (colour, marker, label), alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ns, [str(n) for n in ns])
    axes.set_xlabel("n")


def dot(axes: Any, at: float, found: Mapping[str, Any]) -> None:
    """A figure with its interval, upright at one place."""
    axes.plot([at, at], [found["low"], found["high"]], color=BLUE, alpha=0.5)
    axes.plot(at, found["value"], "o", color=BLUE, markersize=4)


def save(figure: Any, name: str) -> None:
    """Write a picture of the book as drawn, and with its panels stacked for phones."""
    _write(figure, PICTURES / f"{name}.svg")
    heights = [max(2.5, 0.18 * _fold(axes)) for axes in figure.axes]
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for row, axes in zip(rows, figure.axes, strict=True):
        axes.set_subplotspec(row)
    figure.set_size_inches(NARROW, sum(heights))
    _write(figure, PICTURES / f"{name}-narrow.svg")


def _fold(axes: Any) -> int:
    """Fold a panel's title and the names of its bars to a phone's width; returns the names' lines."""
    axes.set_title(textwrap.fill(axes.get_title(loc="left"), 34))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    if not any(label[:1].isalpha() for label in labels):
        return 0
    folded = [textwrap.fill(label, 22) for label in labels]
    axes.set_yticks(axes.get_yticks(), folded)
    return sum(label.count("\n") + 1 for label in folded)


def _write(figure: Any, path: Path) -> None:
    # no date inside: the same figures give the same file
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("<defs>", f"<style>{_dark_style()}</style>\n <defs>", 1), encoding="utf-8")


def _dark_style() -> str:
    """Style sheet that exchanges colours where the reader's page is dark; glyphs have none of their own."""
    rules = [
        f'[style*="{what}: {light}"] {{{what}: {dark} !important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    ]
    return f"@media (prefers-color-scheme: dark) {{svg {{fill: {DARK['#000000']}}} {' '.join(rules)}}}"
