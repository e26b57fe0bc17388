"""Rules for pairs: where DPO begins, how far it moves the chosen answers, accuracies of 1."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from handbook_utils.diagnosis.curves import RunLog
from handbook_utils.diagnosis.finding import Finding
from handbook_utils.diagnosis.rules.meanings import found
from handbook_utils.diagnosis.signals import WINDOW, ends, late, median, smooth

PREFERENCE = ("dpo", "kto", "orpo", "reward")
# beta * log-ratio: in bf16 sums over an answer are right to a few tenths of a nat, times beta 0.1
EQUAL_MODELS = 0.1
# a mean over the first steps says less: at a beta of 0.1 this is fifty nats within ten steps
MOVED_AT_ONCE = 5.0
# five records all but perfect, within the first quarter
SATURATED, EARLY = 0.99, 0.25


def check_reference(log: RunLog) -> Iterator[Finding]:
    """DPO's first record: policy and reference are one model there, so every reward is 0."""
    chosen, rejected = log["chosen"].finite, log["rejected"].finite
    if log.kind != "dpo" or not len(chosen) or not len(rejected) or log.unit != "step":
        return
    at = float(chosen.steps[0])
    largest = max(abs(float(chosen.values[0])), abs(float(rejected.values[0])))
    limit = EQUAL_MODELS if at <= 1 else MOVED_AT_ONCE
    if at <= 10 and largest > limit:
        loss = log["loss"].finite
        evidence = f"at step {at:g} {chosen.name} is {chosen.values[0]:.3g}, "
        evidence += f"{rejected.name} {rejected.values[0]:.3g}"
        evidence += f", the loss {loss.values[0]:.4g} (ln 2 = {math.log(2):.4f})" if len(loss) else ""
        if at <= 1:
            yield found("wrong_reference", "fault", chosen, evidence, "high", steps=(at, at))
        else:
            yield found("wrong_reference", "caution", chosen, evidence, steps=(at, at))


def check_displacement(log: RunLog) -> Iterator[Finding]:
    """Chosen answers that lose probability nearly as fast as rejected ones."""
    if log.kind != "dpo":
        return
    chosen, rejected = ends(log["chosen"]), ends(log["rejected"])
    if chosen is None or rejected is None:
        return
    logps = ends(log["logps_chosen"])
    doubled = logps is not None and logps.first < 0 and logps.change < logps.first and logps.z < -4
    # beta * nats: at the usual beta of 0.1 the chosen answers are e^10 times less likely than before
    fell = chosen.last < -1.0 and chosen.change < 0 and chosen.change < 0.5 * rejected.change
    if not (fell or doubled):
        return
    curve = log["chosen"]
    evidence = f"{curve.name} ends at {chosen.last:.3g}, {log['rejected'].name} at {rejected.last:.3g}"
    if logps is not None:
        evidence += f"; {log['logps_chosen'].name} goes from {logps.first:.4g} to {logps.last:.4g}"
    yield found("displacement", "caution", curve, evidence, "high" if fell and doubled else "medium")


def check_accuracy(log: RunLog) -> Iterator[Finding]:
    """Accuracy at 1 early, over five records: small batches reach it by chance."""
    if log.kind not in PREFERENCE:
        return
    curve = log["accuracy"].finite
    calm = smooth(curve)
    if len(curve) >= 2 * WINDOW:
        perfect = np.flatnonzero(calm.values >= SATURATED)
        if (
            len(perfect)
            and perfect[0] <= max(1, EARLY * len(calm))
            and np.mean(late(curve).values) >= SATURATED
        ):
            at = float(calm.steps[perfect[0]])
            evidence = f"{curve.name} is {SATURATED:.0%} or more over {WINDOW} records from {curve.at(at)} on"
            yield found("saturated_accuracy", "caution", curve, evidence, steps=(at, float(curve.steps[-1])))
            return
    held_out = log["eval_accuracy"].finite
    if len(held_out) >= 2 and float(np.min(held_out.values[: max(2, len(held_out) // 4)])) >= SATURATED:
        evidence = f"{held_out.name} is {median(held_out):.3g} from {held_out.at(held_out.steps[0])} on"
        yield found("saturated_accuracy", "caution", held_out, evidence)


def check_chance(log: RunLog) -> Iterator[Finding]:
    """A reward model whose accuracy stays at that of a coin.

    Evaluations are means over many rows, so two of them suffice.
    """
    if log.kind != "reward":
        return
    for accuracies, losses, fewest in (("accuracy", "loss", 4 * WINDOW), ("eval_accuracy", "eval_loss", 2)):
        curve, loss = log[accuracies].finite, log[losses].finite
        if len(curve) < fewest or not len(loss):
            continue
        accuracy, level = float(np.mean(late(curve).values)), median(late(loss))
        if abs(accuracy - 0.5) < 0.03 and abs(level - math.log(2)) < 0.03:
            evidence = f"{curve.name} ends at {accuracy:.3g}, {loss.name} at {level:.4g} (ln 2 is 0.6931)"
            yield found("not_learning", "fault", curve, evidence, "high")
            return
