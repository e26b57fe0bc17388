"""The report on reward models as one HTML page that needs no other file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from handbook_utils.evaluation.reward.report import ModelReport, RewardReport
from handbook_utils.reporting.plots import COLOURS, DASHES, INK, MARKERS, new_figure, plot_estimates
from handbook_utils.reporting.report import inline_picture, write_page

# what each figure of a model means, in the order of the page
FIGURES = {
    "accuracy": "ranks the right answer higher",
    "gain_over_length_ruler": "accuracy above that of choosing the longer answer",
    "margin": "mean margin of the right answer",
    "accuracy_at_matched_length": "accuracy where lengths are within 10 % of each other",
    "length_effect": "accuracy where the right answer is longer, minus where it is shorter by as much",
    "prefers_longer": "prefers the longer answer",
    "length_bias": "prefers the longer answer more often than it is right",
    "position_effect": "accuracy where the right answer was shown first, minus last",
    "agreement_with_gold": "agrees with the gold reward",
}


def write_reward_page(report: RewardReport, out: Path | str, *, title: str) -> Path:
    """Write the page; text from files is escaped.

    Raises:
        RunFolderError: the file cannot be written.
    """
    return write_page("reward.html.jinja", page_content(report, title), out)


def page_content(report: RewardReport, title: str) -> dict[str, Any]:
    """Everything the page shows; only pictures drawn here are marked as safe."""
    accuracies = {name: model.figures["accuracy"] for name, model in report.models.items()}
    accuracies |= {name: parts[""] for name, parts in report.rulers.items()}
    subsets = list(next(iter(report.models.values())).subsets)
    return {
        "title": title,
        "report": report,
        "subsets": subsets,
        "figures": {
            key: what
            for key, what in FIGURES.items()
            if any(key in m.figures for m in report.models.values())
        },
        "overview": inline_picture(
            plot_estimates(accuracies, reference=None, unit="accuracy"),
            "accuracy",
            "accuracy with 95 % intervals",
        ),
        "reliability": inline_picture(
            _reliability(report),
            "reliability",
            "how often the preferred answer is right, against the model's confidence",
        )
        if any(model.calibration for model in report.models.values())
        else None,
        "distributions": [
            inline_picture(
                _histogram(model), f"scores-{number}", f"{name}: scores of right and wrong answers"
            )
            for number, (name, model) in enumerate(report.models.items())
        ],
    }


def _reliability(report: RewardReport) -> Figure:
    figure, (axes,) = new_figure(1, dark=False)
    axes.plot([0.5, 1], [0.5, 1], color=INK[False], alpha=0.5, linewidth=1, linestyle="--")
    for index, (name, model) in enumerate(report.models.items()):
        if model.calibration is None:
            continue
        x = [each.confidence for each in model.calibration.bins]
        y = [each.accuracy for each in model.calibration.bins]
        place = index % len(COLOURS)
        axes.plot(x, y, color=COLOURS[place], marker=MARKERS[place], linestyle=DASHES[place], label=name)
    axes.set_xlabel("confidence, σ(margin)")
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK[False])
    return figure


def _histogram(model: ModelReport) -> Figure:
    figure, (axes,) = new_figure(1, dark=False)
    edges = np.array(model.distribution["edges"])
    for index, side in enumerate(("right", "wrong")):
        counts = np.array(model.distribution[side])
        axes.stairs(
            counts, edges, color=COLOURS[index], linestyle=DASHES[index], linewidth=2, label=f"{side} answers"
        )
    axes.set_xlabel("score")
    axes.set_ylabel("answers")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK[False])
    return figure
