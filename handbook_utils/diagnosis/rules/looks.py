"""Rules for looks at held-out prompts: answers sampled while a run trains, compared with its start."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from handbook_utils.diagnosis.curves import RunLog
from handbook_utils.diagnosis.finding import Finding
from handbook_utils.diagnosis.rules.meanings import found

# of the answers of the last look, so many have no end
MANY_CUT = 0.5


def check_looks(log: RunLog) -> Iterator[Finding]:
    """Answers that score below the start, below an earlier look, or that do not end.

    Looks are few and have intervals, so it is these that decide, and no noise between records.
    """
    yield from list(_below_the_start(log)) or _below_the_best(log)
    cut = log["look_cut"].finite
    if len(cut) > 1 and cut.values[-1] > MANY_CUT:
        evidence = f"at the last look {cut.values[-1]:.0%} of the answers are cut"
        yield found("truncated", "caution", cut, evidence, "medium")


def _below_the_start(log: RunLog) -> Iterator[Finding]:
    gain, high = log["look_gain"].finite, log["look_gain_high"].finite
    if not len(gain) or not len(high) or high.values[-1] >= 0:
        return
    evidence = (
        f"at the last look held-out answers score {-gain.values[-1]:.3g} below the start's, and the "
        f"interval ends {-high.values[-1]:.3g} below"
    )
    yield found("worse_than_start", "fault", log["look_score"].finite, evidence, "high")


def _below_the_best(log: RunLog) -> Iterator[Finding]:
    score, low, high = (log[name].finite for name in ("look_score", "look_low", "look_high"))
    if not len(score) == len(low) == len(high) or len(score) < 2:
        return
    best = int(np.argmax(score.values))
    if best == 0 or high.values[-1] >= low.values[best]:
        return  # a fall from the start is another finding
    evidence = (
        f"held-out answers scored {score.values[best]:.3g} at {score.at(score.steps[best])} and "
        f"{score.values[-1]:.3g} at the last look; the intervals do not meet"
    )
    steps = (float(score.steps[best]), float(score.steps[-1]))
    yield found("held_out_score_fell", "caution", score, evidence, "high", steps=steps)
