"""Rules for every kind of run: values that are no numbers, learning rates of 0, restarts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from handbook_utils.diagnosis.curves import Curve, RunLog
from handbook_utils.diagnosis.finding import Confidence, Finding
from handbook_utils.diagnosis.rules.meanings import found
from handbook_utils.diagnosis.signals import FEWEST, WINDOW, noise

ONLINE = ("grpo", "ppo")
# as many NaN rewards as a broken answer or two leave in a long run
FEW_NAN = 0.01
# a loss that falls to 0.0 from above this did not get there by learning
LEARNED_LOSS = 0.01
# an order of magnitude below the smallest rates of published recipes (SimPO: 3e-7)
FROZEN_RATE = 3e-8
# a schedule that has been at 0 for this share of the run
ENDED = 0.1


def sure(records: int, *, few: Confidence = "medium") -> Confidence:
    """High with as many records as a verdict asks for, else `few`."""
    return "high" if records >= FEWEST else few


def check_finite(log: RunLog) -> Iterator[Finding]:
    """Losses, rewards and gradients that are no numbers."""
    for name in ("loss", "eval_loss", "reward"):
        curve = log[name]
        broken = ~np.isfinite(curve.values)
        if not broken.any():
            continue
        first = int(np.argmax(broken))
        if not _lasts(broken):
            evidence = (
                f"{curve.name}: {broken.sum()} of {len(curve)} values are no finite numbers, now and then "
            )
            evidence += f"from {curve.at(curve.steps[first])} on"
            last = len(broken) - 1 - int(np.argmax(broken[::-1]))
            steps = (float(curve.steps[first]), float(curve.steps[last]))
            yield found("nan", "caution", curve, evidence, steps=steps, means="now_and_then")
            continue
        alone = name == "eval_loss" and not _is_broken(log["loss"])
        # one value at the very end may still be a batch of its own
        to_the_end = not alone and bool(broken[-2:].all()) and len(broken) > 1
        yield found(
            "nan",
            "caution" if alone else "fault",
            curve,
            f"{curve.name}: {broken.sum()} of {len(curve)} values are no finite numbers, first at "
            f"{curve.at(curve.steps[first])}",
            "high" if to_the_end else "medium",
            steps=(float(curve.steps[first]), float(curve.steps[-1])),
        )
    yield from _check_gradients(log["grad_norm"])
    for part, (curve, _) in log.parts.items():
        broken = ~np.isfinite(curve.values)
        if len(curve) and broken.mean() > FEW_NAN:
            evidence = f"reward part {part}: {broken.sum()} of {len(curve)} values are no finite numbers"
            yield found("nan", "caution", curve, evidence, means=None if _lasts(broken) else "now_and_then")


def _lasts(broken: npt.NDArray[np.bool_]) -> bool:
    """Whether values are broken from some record to the end, as they are once the weights hold NaN.

    Finite values after the first broken one say that the weights were whole. The end counts where it is
    broken for longer than any stretch before.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], broken, [False]]).astype(np.int8)))
    lengths = edges[1::2] - edges[::2]
    if not broken[-1]:
        return False
    return len(lengths) == 1 or bool(lengths[-1] >= WINDOW and lengths[-1] > lengths[:-1].max())


def _is_broken(curve: Curve) -> bool:
    return bool((~np.isfinite(curve.values)).any() or (len(curve) > 1 and curve.values[-1] == 0.0))


def _check_gradients(curve: Curve) -> Iterator[Finding]:
    broken = ~np.isfinite(curve.values)
    if not broken.any():
        return
    # fp16 skips a step whose gradients overflow, and lowers its scale: now and then that is its way
    lasting = len(curve) >= 3 and bool(broken[-3:].all())
    evidence = f"{curve.name}: {broken.sum()} of {len(curve)} values are no finite numbers"
    if lasting:
        yield found("nan", "fault", curve, evidence, "high")
    else:
        yield found("nan", "note", curve, evidence, "low", means="now_and_then")


def check_zero_loss(log: RunLog) -> Iterator[Finding]:
    """A loss of exactly 0.0 that hides NaN, or says that no token carries loss; GRPO's 0 is normal."""
    curve = log["loss"]
    if log.kind in (*ONLINE, "other") or len(curve) < 2:
        return
    zero = curve.values == 0.0
    if zero.all():
        yield found(
            "everything_masked",
            "fault",
            curve,
            f"{curve.name} is exactly 0 in all {len(curve)} records",
            sure(len(curve)),
        )
        return
    run = len(zero) - int(np.argmin(zero[::-1])) if zero[-1] else 0
    if not zero[-1]:
        return
    first = len(zero) - int(np.argmin(zero[::-1]))
    before = float(curve.values[first - 1])
    if np.isfinite(before) and abs(before) <= LEARNED_LOSS and run:
        return
    yield found(
        "nan",
        "fault",
        curve,
        f"{curve.name} falls from {before:.4g} to exactly 0 at {curve.at(curve.steps[first])} and stays so",
        "high" if len(zero) - first > 1 else "medium",
        steps=(float(curve.steps[first]), float(curve.steps[-1])),
        means="zero_loss",
    )


def check_learning_rate(log: RunLog) -> Iterator[Finding]:
    """A learning rate that is 0, ended early or is frozen at next to nothing; a first 0 is warm-up."""
    curve = log["learning_rate"].finite
    if len(curve) < 3:
        return
    zero = curve.values == 0.0
    if zero.all():
        evidence = f"{curve.name} is 0 in all {len(curve)} records"
        yield found("lr_zero", "fault", curve, evidence, sure(len(curve)))
        return
    ended = len(zero) - 1 - int(np.max(np.flatnonzero(~zero)))
    if ended >= max(3, ENDED * len(zero)):
        at = float(curve.steps[len(zero) - ended])
        evidence = f"{curve.name} is 0 from {curve.at(at)} on, in the last {ended} of {len(curve)} records"
        yield found("lr_zero", "caution", curve, evidence, "high", steps=(at, float(curve.steps[-1])))
    frozen = len(curve) >= WINDOW and float(np.ptp(curve.values)) == 0.0
    if frozen and curve.values[0] < FROZEN_RATE:
        evidence = f"{curve.name} is {curve.values[0]:.3g} in all {len(curve)} records"
        yield found("lr_zero", "caution", curve, evidence)


def check_restarts(log: RunLog) -> Iterator[Finding]:
    """Steps that go back: a restart, whose repeated steps should have the losses of before."""
    loss = log["loss"].finite
    for restart in log.restarts:
        begins_anew = bool(len(loss)) and restart.to <= loss.steps[0]
        evidence = f"after {loss.at(restart.at)} the log goes on at {loss.at(restart.to)}"
        steps = (restart.to, restart.at)
        if restart.overlap and not begins_anew:
            before, after = restart.overlap
            limit = max(4 * noise(loss.values) / np.sqrt(WINDOW), 0.05 * abs(before))
            if after - before > limit:
                yield found(
                    "resumed_out_of_phase",
                    "caution",
                    loss,
                    f"{evidence}; mean loss of the repeated steps {before:.3g} before, {after:.3g} after",
                    steps=steps,
                )
                continue
        yield found("resumed", "caution" if begins_anew else "note", loss, evidence, "high", steps=steps)
