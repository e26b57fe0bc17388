"""Looks at held-out prompts while a stage trains: their picture, in a notebook drawn anew after each."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from handbook_utils.errors import DataError
from handbook_utils.reporting.plots import COLOURS, INK, MARKERS, RunLike, new_figure
from handbook_utils.reporting.runs import read_run

# what is drawn, in this order: the figure's key, its bounds, the title, and the value of no change
PANELS = (
    ("score", "low", "high", "mean score", None),
    ("win_rate", "win_low", "win_high", "win rate against the start", 0.5),
    ("kl", None, None, "KL to the start, nats per answer", None),
    ("words", None, None, "words per answer", None),
)


def plot_held_out(run: RunLike, *, dark: bool = False) -> Figure:
    """Draw what was seen of held-out prompts over the steps: score, win rate, KL and length.

    Bands are 95 % intervals over prompts. Looks share prompts and noise, so they differ by the weights alone.

    Args:
        run: a run whose recipe has `held_out_samples`, finished or not.
        dark: light ink on dark paper.
    Raises:
        DataError: nothing was sampled yet, or the recipe does not ask for it.
    """
    view = read_run(run)
    looks = [row for row in view.metrics if "held_out/words" in row]
    panels = [panel for panel in PANELS if any(f"held_out/{panel[0]}" in row for row in looks)]
    if not panels:
        raise DataError(
            f"{view.path}: no held-out samples were taken. A recipe asks for them by `held_out_samples`."
        )
    figure, axes = new_figure(len(panels), dark=dark, height=2.3)
    for each, panel in zip(axes, panels, strict=True):
        _draw(each, looks, panel, dark=dark)
    return figure


def _draw(axes: Axes, looks: Sequence[Mapping[str, Any]], panel: tuple[Any, ...], *, dark: bool) -> None:
    key, low, high, title, reference = panel
    rows = [row for row in looks if f"held_out/{key}" in row]
    steps = [row["step"] for row in rows]
    if low is not None:
        lows, highs = ([row[f"held_out/{name}"] for row in rows] for name in (low, high))
        axes.fill_between(steps, lows, highs, color=COLOURS[0], alpha=0.22, linewidth=0)
    values = [row[f"held_out/{key}"] for row in rows]
    axes.plot(steps, values, color=COLOURS[0], marker=MARKERS[0], markersize=4, linewidth=1.4)
    if reference is not None:
        axes.axhline(reference, color=INK[dark], alpha=0.5, linewidth=1, linestyle="--")
    axes.set_title(title, color=INK[dark], fontsize=10, loc="left")
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


class LivePlot:
    """Shows `plot_held_out` in a notebook, in one place, and draws it anew after each look.

    `run_stage(..., on_look=LivePlot())`; outside a notebook nothing is shown.
    """

    def __init__(self) -> None:
        self._shown: Any = None

    def __call__(self, run: Path) -> None:
        """Draw a run's looks so far."""
        # looked up, not imported: outside a notebook IPython should not be loaded for this
        module = sys.modules.get("IPython")
        if module is None or module.get_ipython() is None:
            return
        figure = plot_held_out(run)
        if self._shown is None:
            self._shown = module.display.display(figure, display_id=True)
        else:
            self._shown.update(figure)
