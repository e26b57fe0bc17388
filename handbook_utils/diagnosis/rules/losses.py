"""Rules for losses that should fall: diverged, unstable, flat, overfitted, memorised, summed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from handbook_utils.diagnosis.curves import Curve, RunLog
from handbook_utils.diagnosis.finding import Confidence, Finding
from handbook_utils.diagnosis.rules.every_run import ONLINE, sure
from handbook_utils.diagnosis.rules.meanings import found
from handbook_utils.diagnosis.signals import (
    FEWEST,
    WINDOW,
    Ends,
    ends,
    jitter,
    late,
    median,
    noise,
    rolling_median,
    smooth,
    thinned,
)

# ln 262144 = 12.5 is the loss of a uniform guess over the largest vocabulary, here summed over 64 passes
WORSE_THAN_GUESSING = 800.0
# perplexity 1.1: each token is all but certain
MEMORISED_LOSS = 0.1
# Prechelt 1998: generalisation loss of 5 %; beside an absolute floor, for losses near 0
GENERALISATION_LOSS, LOSS_FLOOR = 0.05, 0.02
# enough records that 2 % of a loss is not lost in noise
ENOUGH = 30
LEAST_CHANGE = 0.02
SPIKES = 3
# of a run: what is long enough to be the best that it has reached
STRETCH = 0.1
# a loss that stands still below this has learned its rows
LEARNED = 0.05
# records that say where a loss begins, and the share of a run that no warm-up spends above that
BEGIN, LONG_ABOVE = 3, 0.25
PAIRS = ("dpo", "reward")


def check_divergence(log: RunLog) -> Iterator[Finding]:
    """A loss that ends far above where it began, or loses most of what it had gained."""
    curve = log["loss"]
    if log.kind in (*ONLINE, "other", "kto") or not len(curve.finite):
        return
    worst = float(np.max(curve.finite.values))
    if worst > WORSE_THAN_GUESSING:
        at = float(curve.finite.steps[int(np.argmax(curve.finite.values))])
        evidence = f"{curve.name} is {worst:.3g} at {curve.at(at)}: worse than guessing over any vocabulary"
        yield found("diverged", "fault", curve, evidence, "high", steps=(at, float(curve.steps[-1])))
        return
    found_ends = ends(curve)
    if found_ends is None:
        yield from _short_divergence(curve)
        return
    first, last = found_ends.first, found_ends.last
    if found_ends.change > max(0.2, 0.25 * abs(first)) and found_ends.z > 4:
        evidence = f"{curve.name} ends at {last:.3g} and began at {first:.3g}"
        yield found("diverged", "fault", curve, evidence, "high")
        return
    yield from list(_lost_again(curve, found_ends)) or _above_begin(curve.finite, found_ends)


def _short_divergence(curve: Curve) -> Iterator[Finding]:
    values = curve.finite.values
    if len(values) >= 3 and (values[-2:] > 3 * max(abs(float(values[0])), 0.1)).all():
        evidence = f"{curve.name} begins at {values[0]:.3g} and ends at {values[-1]:.3g}"
        yield found("diverged", "fault", curve, evidence)


def _lost_again(curve: Curve, ends_found: Ends) -> Iterator[Finding]:
    """More than half of what was gained is lost again.

    The best of many stretches is low by chance as well: of m means of noise the lowest lies about
    sqrt(2 ln m) of their standard errors below the middle.
    """
    curve = thinned(curve.finite)
    size = max(WINDOW, int(len(curve) * STRETCH))
    calm = smooth(curve, size)
    if len(calm) < 2 * WINDOW:
        return
    by_chance = noise(curve.values) * math.sqrt(2 * math.log(len(curve) / size) / size)
    place = int(np.argmin(calm.values))
    best, last = float(calm.values[place]), ends_found.last
    gained = ends_found.first - best
    lost = last - best
    if (
        gained > 0
        and lost > max(0.5 * gained, 0.2, 0.25 * abs(best))
        and lost > by_chance + 4 * ends_found.error
    ):
        evidence = f"{curve.name} falls from {ends_found.first:.3g} to {best:.3g}, then ends at {last:.3g}"
        steps = (float(calm.steps[place]), float(calm.steps[-1]))
        yield found("diverged", "fault", curve, evidence, steps=steps)


def _above_begin(curve: Curve, ends_found: Ends) -> Iterator[Finding]:
    """A loss that jumps in its first steps and stays above where it began, or comes back late.

    A run that diverges so early has no good stretch for its end to be compared with: the first fifth is the
    explosion. A rate that decays may bring the loss down again, and the run looks as if it had learned.
    """
    values = thinned(curve).values
    if len(values) < 2 * FEWEST or (values <= 0).any():
        return
    begin = float(np.mean(values[:BEGIN]))
    error = noise(np.log(values)) / math.sqrt(BEGIN)  # of factors: a loss that explodes is noisy as a sum
    limit = max(begin + 0.2, begin * math.exp(max(math.log(1.25), 4 * error)))
    calm = rolling_median(values)
    share = float(np.mean(calm > limit))
    if share < LONG_ABOVE:
        return
    evidence = (
        f"{curve.name} begins at {begin:.3g} and is above {limit:.3g} in {share:.0%} of the records, "
        f"at {float(calm.max()):.3g} at most; it ends at {ends_found.last:.3g}"
    )
    if ends_found.last > limit:
        yield found("diverged", "fault", curve, evidence, "high")
    else:
        yield found("unstable", "caution", curve, evidence, means="jumped")


def check_spikes(log: RunLog) -> Iterator[Finding]:
    """Large spikes, three or more; one alone is common in good runs."""
    if log.kind == "other":
        return
    if log.kind not in (*ONLINE, "kto"):
        floor = 2 * math.log(2) if log.kind in PAIRS else 1.0
        yield from _spikes(log["loss"], at_least=floor, times=2.0)
    yield from _spikes(log["grad_norm"], at_least=0.0, times=10.0)
    if log.kind in ONLINE:
        yield from _spikes(log["kl"], at_least=1.0, times=10.0)


def _spikes(curve: Curve, *, at_least: float, times: float) -> Iterator[Finding]:
    calm = thinned(curve.finite)
    if len(calm) < 4 * WINDOW:
        return
    middle = rolling_median(calm.values)
    limit = np.maximum(np.maximum(times * middle, middle + at_least), middle + 6 * noise(calm.values))
    above = calm.values > limit
    above[: len(above) // 10] = False  # warm-up
    starts = np.flatnonzero(above & ~np.concatenate([[False], above[:-1]]))
    if len(starts) < SPIKES:
        return
    top = float(np.max(calm.values[above]))
    evidence = (
        f"{curve.name}: {len(starts)} spikes of more than {times:g} times their surroundings, up to {top:.3g}"
    )
    steps = (float(calm.steps[starts[0]]), float(calm.steps[starts[-1]]))
    yield found("unstable", "caution", curve, evidence, steps=steps)


def check_flat(log: RunLog) -> Iterator[Finding]:
    """A gradient of 0, or a loss that does not move where it should."""
    curve, gradients = log["loss"].finite, log["grad_norm"].finite
    if log.kind in (*ONLINE, "other"):
        return
    if is_idle(gradients) and (curve.values != 0.0).any():
        evidence = (
            f"{gradients.name} is 0 in {int((gradients.values == 0).sum())} of {len(gradients)} records"
        )
        yield found("not_learning", "fault", gradients, evidence, sure(len(gradients)))
        return
    found_ends = ends(curve)
    if found_ends is None:
        return
    first, last = found_ends.first, found_ends.last
    if float(np.ptp(curve.values)) <= 1e-3 * abs(first) and abs(first) > LEARNED:
        evidence = f"{curve.name} is {first:.4g} in all {len(curve)} records"
        yield found("not_learning", "fault", curve, evidence, "high")
    elif (
        len(curve) >= ENOUGH
        and (abs(found_ends.change) < LEAST_CHANGE * abs(first) or _is_lost_in_noise(found_ends))
        and not _falls(log["eval_loss"])
    ):
        if log.kind in PAIRS and abs(first - math.log(2)) > 0.05:
            return  # it had learned before the log begins
        evidence = f"{curve.name} goes from {first:.4g} to {last:.4g} in {len(curve)} records"
        at_chance = log.kind in PAIRS and abs(last - math.log(2)) < 0.02
        if log.kind == "dpo":
            evidence += "; it varies, while weights that do not change would keep it at ln 2 = 0.6931"
        confidence: Confidence = "medium" if at_chance else "low"
        yield found("not_learning", "caution", curve, evidence, confidence, means="learns_little")


def _is_lost_in_noise(both: Ends) -> bool:
    """Whether a loss did not fall as far as its noise lets one see, and that is far enough to say so."""
    has_not_moved = abs(both.z) < 2 and both.change > -LEAST_CHANGE * abs(both.first)
    most_it_fell = 1.645 * both.error - both.change  # one-sided, 95 %
    return has_not_moved and most_it_fell < GENERALISATION_LOSS * abs(both.first)


def is_idle(gradients: Curve) -> bool:
    """Whether gradients are exactly 0: all of a few, nearly all of many."""
    zero = gradients.values == 0.0
    return len(zero) >= 2 and bool(zero.all() if len(zero) < WINDOW else zero.mean() > 0.9)


def _falls(curve: Curve) -> bool:
    values = curve.finite.values
    return len(values) > 1 and bool(values[-1] < values[0] * (1 - LEAST_CHANGE))


def check_held_out(log: RunLog) -> Iterator[Finding]:
    """A held-out loss that has risen from its lowest while the training loss fell."""
    curve = log["eval_loss"].finite
    if len(curve) < 3 or log.kind in (*ONLINE, "other"):
        return
    place = int(np.argmin(curve.values))
    best, last = float(curve.values[place]), float(curve.values[-1])
    if last <= best * (1 + GENERALISATION_LOSS) or last - best < LOSS_FLOOR or best <= 0:
        return
    # the lowest of many noisy values is low by chance, and the last one may be high
    if last - best < (math.sqrt(2 * math.log(len(curve))) + 3) * jitter(curve.values):
        return
    loss = log["loss"].finite
    before = loss.values[loss.steps <= curve.steps[place]][-WINDOW:]
    if len(loss) and len(before) and np.median(loss.values[-WINDOW:]) > np.median(before):
        return  # both rise: that is another rule's
    share = last / best - 1
    worse = last > float(curve.values[0]) * (1 + GENERALISATION_LOSS) and log.kind == "sft"
    evidence = (
        f"{curve.name} was lowest, {best:.4g}, at {curve.at(curve.steps[place])} and ends {share:.0%} above"
    )
    steps = (float(curve.steps[place]), float(curve.steps[-1]))
    turned = len(curve) - place > 3
    yield found(
        "overfitting",
        "fault" if worse else "caution",
        curve,
        evidence,
        "high" if turned else "medium",
        steps=steps,
    )


def check_memorised(log: RunLog) -> Iterator[Finding]:
    """A training loss near 0 without a held-out loss that says otherwise."""
    curve, held_out = log["loss"].finite, log["eval_loss"].finite
    found_ends = ends(curve)
    if log.kind != "sft" or found_ends is None or not 0 < found_ends.last < MEMORISED_LOSS:
        return
    gap = median(late(held_out)) > 5 * found_ends.last if len(held_out) else True
    rises = len(held_out) > 2 and held_out.values[-1] > float(held_out.values.min()) * (
        1 + GENERALISATION_LOSS
    )
    if len(held_out) and not (gap and rises):
        return  # held-out rows are as easy
    evidence = f"{curve.name} ends at {found_ends.last:.3g} per token"
    evidence += (
        f", {held_out.name} at {held_out.values[-1]:.3g}"
        if len(held_out)
        else "; no held-out loss was logged"
    )
    yield found("memorised", "caution", curve, evidence, "high" if len(held_out) else "medium")


def check_level(log: RunLog) -> Iterator[Finding]:
    """Levels worth a note: a first loss near that of guessing, a training loss that is a sum."""
    curve, held_out = log["loss"].finite, log["eval_loss"].finite
    if log.kind != "sft" or not len(curve):
        return
    first = float(curve.values[0])
    if 9.0 < first <= WORSE_THAN_GUESSING:
        yield found("high_initial_loss", "note", curve, f"{curve.name} begins at {first:.3g}", "low")
    if len(curve) >= WINDOW and len(held_out) and float(held_out.values[-1]) > 0.05:
        ratio = median(late(curve)) / float(held_out.values[-1])
        if ratio > 1.7 and abs(ratio - round(ratio)) < 0.1 * ratio:
            evidence = f"{curve.name} is about {round(ratio)} times {held_out.name}"
            yield found("loss_summed_over_accumulation", "note", curve, evidence)
