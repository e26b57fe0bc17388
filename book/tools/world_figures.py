"""Pictures of the pocket world, made from the package alone: who judges an answer, what each flaw costs."""

from __future__ import annotations

import random
from typing import Any

from drawing import BLUE, INK, ORANGE, panels, save

from handbook_utils.pocket.annotator import ANNOTATORS
from handbook_utils.pocket.families.base import Flaws
from handbook_utils.pocket.world import demonstrate, gold_reward, prompts

# name: centre, colour, text
BOXES = {
    "model": ((0.1, 0.5), INK, "model"),
    "answer": ((0.36, 0.5), INK, "answer"),
    "gold": ((0.74, 0.88), BLUE, "gold reward\nexact; only measures"),
    "annotator": ((0.74, 0.5), ORANGE, "annotator\nnoisy; may like words"),
    "proxy": ((0.74, 0.12), ORANGE, "reward model: the proxy\nlearned from choices"),
}
ARROWS = [("model", "answer"), ("answer", "gold"), ("answer", "annotator"), ("annotator", "proxy")]
FLAWS = {
    "no flaw": Flaws(),
    "one empty sentence": Flaws(fillers=1),
    "two empty sentences": Flaws(fillers=2),
    "rude": Flaws(rude=True),
    "one thing missed": Flaws(missed=True),
    "missed, rude and empty": Flaws(missed=True, rude=True, fillers=2),
}


def draw_world() -> None:
    """Both pictures of the chapter on the pocket world."""
    figure, axes = panels(1, widths=(1,))
    _judges(axes)
    save(figure, "pocket_world")
    figure, axes = panels(1, widths=(1,))
    _costs(axes)
    save(figure, "pocket_world_flaws")


def _judges(axes: Any) -> None:
    """Boxes and arrows; what trains or chooses goes back to the model."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    shown = {}
    for name, (at, colour, text) in BOXES.items():
        frame = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": colour, "linewidth": 1.5}
        shown[name] = axes.text(*at, text, ha="center", va="center", fontsize=10, bbox=frame)
    for start, end in ARROWS:
        _arrow(axes, shown[start], shown[end])
    _arrow(axes, shown["proxy"], shown["model"], bend="angle,angleA=180,angleB=90,rad=8")
    axes.text(0.12, 0.24, "trains it,\nor chooses", fontsize=10, ha="left", va="center")


def _arrow(axes: Any, start: Any, end: Any, *, bend: str = "arc3") -> None:
    style = {"arrowstyle": "-|>", "color": INK, "patchA": start.get_bbox_patch(), "shrinkA": 0}
    style |= {"patchB": end.get_bbox_patch(), "shrinkB": 0, "connectionstyle": bend}
    axes.annotate("", end.get_position(), start.get_position(), arrowprops=style)


def _costs(axes: Any) -> None:
    """One list, with each flaw: its gold reward, and what the biased annotator thinks of it."""
    request = next(prompt.text for prompt in prompts("dev") if prompt.family == "list")
    answers = [demonstrate(request, rng=random.Random(0), flaws=flaws) for flaws in FLAWS.values()]
    utility = ANNOTATORS["annotator"].utility
    judges = {
        "gold reward": (BLUE, "", [gold_reward(request, answer).value for answer in answers]),
        "biased annotator": (ORANGE, "//", [utility(request, answer) for answer in answers]),
    }
    for index, (label, (colour, hatch, values)) in enumerate(judges.items()):
        rows = [row + 0.4 * index for row in range(len(answers))]
        axes.barh(rows, values, height=0.38, color=colour, alpha=0.6, hatch=hatch, label=label)
    axes.set_yticks([row + 0.2 for row in range(len(answers))], list(FLAWS))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xlabel("worth of the answer")
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
