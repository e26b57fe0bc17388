"""Rules for online reinforcement learning: rewards, their spread and parts, lengths, entropy, KL."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from handbook_utils.diagnosis.curves import Curve, RunLog
from handbook_utils.diagnosis.finding import Finding
from handbook_utils.diagnosis.rules.every_run import ONLINE
from handbook_utils.diagnosis.rules.losses import is_idle
from handbook_utils.diagnosis.rules.meanings import found
from handbook_utils.diagnosis.signals import (
    FEWEST,
    WINDOW,
    Ends,
    counted,
    early,
    ends,
    late,
    mean,
    mean_ends,
    median,
    noise,
)

# counts over 48 healthy public runs: above these none was (zero variance up to 0.6, cut answers up to 0.5)
MOST_ZERO, MOST_CUT, MANY_CUT = 0.7, 0.5, 0.3
LONGER = 1.5
# answers e^2 times as likely per token as under the reference; a whole answer's sum (PPO) is 25 such tokens
FAR_PER_TOKEN, FAR_PER_ANSWER = 2.0, 50.0
ENOUGH = 30


def check_reward(log: RunLog) -> Iterator[Finding]:
    """A reward that never moves, falls below its start, or loses what it had gained."""
    curve = log["reward"].finite
    if log.kind not in ONLINE:
        return
    yield from _idle_gradient(log)
    if len(curve) < FEWEST:
        return
    if float(np.ptp(curve.values)) == 0.0:
        evidence = f"{curve.name} is {curve.values[0]:.4g} in all {len(curve)} records"
        yield found("not_learning", "fault", curve, evidence, "high", means="reward_flat")
        return
    if len(curve) < ENOUGH:
        return
    fifths = [float(np.mean(part)) for part in np.array_split(curve.values, 5)]
    error = float(np.std(np.diff(curve.values)) / np.sqrt(2)) * np.sqrt(2 / (len(curve) / 5))
    peak, last = max(fifths), fifths[-1]
    gained, lost = peak - fifths[0], peak - last
    if fifths[0] - last > 4 * error or (lost > 4 * error and lost > 0.75 * gained):
        evidence = f"mean {curve.name} of each fifth: {_listed(fifths)}"
        yield found("diverged", "fault", curve, evidence, "high" if lost > 8 * error else "medium")
        if last - min(fifths[fifths.index(peak) :]) > 4 * error:
            yield found("unstable", "caution", curve, f"{evidence}: down and up again, far beyond its noise")
    elif abs(last - fifths[0]) < 2 * error and gained < 4 * error:
        evidence = f"mean {curve.name} of each fifth: {_listed(fifths)} (standard error {error:.2g})"
        yield found("not_learning", "caution", curve, evidence, means="reward_flat")


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _idle_gradient(log: RunLog) -> Iterator[Finding]:
    gradients, spread, equal = log["grad_norm"].finite, log["reward_std"].finite, log["zero_variance"].finite
    if not is_idle(gradients):
        return
    if (len(spread) and median(spread) > 0) or (len(equal) and mean(equal) < 1.0):
        zero, enough = int((gradients.values == 0).sum()), len(gradients) >= FEWEST
        evidence = f"{gradients.name} is 0 in {zero} of {len(gradients)} records, though rewards differ"
        yield found(
            "not_learning",
            "fault" if enough else "caution",
            gradients,
            evidence,
            "high" if enough else "low",
        )


def check_variance(log: RunLog) -> Iterator[Finding]:
    """Most groups of answers have equal rewards late in the run."""
    if log.kind != "grpo":
        return
    curve, spread = log["zero_variance"].finite, log["reward_std"].finite
    if 0 < len(curve) < FEWEST and len(spread) < FEWEST:
        share = mean(curve)
        # a record or two have to say it wholly
        if share > MOST_ZERO and (len(curve) >= WINDOW or share == 1.0):
            evidence = f"{share:.0%} of the groups have equal rewards in {counted(len(curve))} ({curve.name})"
            yield found("zero_variance", "caution", curve, evidence, "low")
        return
    if len(curve) >= FEWEST:
        share, shown = mean(late(curve)), curve
    elif len(spread) >= FEWEST:
        share, shown = float(np.mean(late(spread).values <= 1e-6)), spread
    else:
        return
    if share > MOST_ZERO:
        rises = is_rising(log["reward"])
        evidence = f"late in the run {share:.0%} of the groups have equal rewards ({shown.name})"
        yield found("zero_variance", "caution" if rises else "fault", shown, evidence, "high")


def is_rising(curve: Curve) -> bool:
    """Whether a curve ends above where it began, beyond its noise."""
    found_ends = mean_ends(curve)
    return found_ends is not None and found_ends.change > 0 and found_ends.z > 3


def check_length(log: RunLog) -> Iterator[Finding]:
    """Answers that grow, and answers that are cut."""
    if log.kind not in ONLINE:
        return
    curve = log["length"].finite
    grown = ends(curve)
    if grown is not None and grown.last > LONGER * grown.first and grown.z > 4:
        with_reward = is_rising(log["reward"])
        evidence = f"{curve.name} goes from {grown.first:.4g} to {grown.last:.4g}"
        evidence += ", and the reward rises" if with_reward else ", and the reward does not rise"
        yield found("length_growth", "caution", curve, evidence, "high" if with_reward else "medium")
    cut = log["clipped"].finite
    share = mean(late(cut))
    if WINDOW <= len(cut) < FEWEST and mean(cut) > MOST_CUT:
        evidence = f"{mean(cut):.0%} of the answers are cut in {counted(len(cut))} ({cut.name})"
        yield found("truncated", "caution", cut, evidence, "low")
    # a share that falls is on its way to none
    if len(cut) >= FEWEST and (share > MOST_CUT or (share > MANY_CUT and share > 0.8 * mean(early(cut)))):
        evidence = f"late in the run {share:.0%} of the answers are cut ({cut.name})"
        yield found("truncated", "fault" if share > MOST_CUT else "caution", cut, evidence, "high")


def check_entropy(log: RunLog) -> Iterator[Finding]:
    """Entropy that vanishes early, or grows without end."""
    curve = log["entropy"].finite
    found_ends = ends(curve)
    if log.kind not in ONLINE or found_ends is None:
        return
    first, last = found_ends.first, found_ends.last
    if last > 3 * first and last > first + 1.0 and found_ends.z > 4:
        rises = is_rising(log["reward"])
        evidence = f"{curve.name} goes from {first:.3g} to {last:.3g} nats"
        yield found("entropy_explosion", "caution" if rises else "fault", curve, evidence, "high")
    half = median(Curve(curve.steps[: len(curve) // 2], curve.values[: len(curve) // 2][-WINDOW:]))
    if first > 0 and last < 0.1 * first and half < 0.1 * first and last < 0.05:
        evidence = f"{curve.name} goes from {first:.3g} to {last:.3g} nats before the run is half over"
        yield found("entropy_collapse", "caution", curve, evidence)


def check_kl(log: RunLog) -> Iterator[Finding]:
    """KL that runs away from where it was, not one that is large for a step."""
    curve = log["kl"].finite
    if log.kind not in ONLINE or len(curve) < FEWEST:
        return
    far = FAR_PER_ANSWER if log.kind == "ppo" else FAR_PER_TOKEN
    before, after = median(early(curve)), median(late(curve, 0.2))
    if after > far and after > 5 * max(before, 0.0):
        bearable = after <= 5 * far and is_rising(log["reward"])
        evidence = f"{curve.name} goes from {before:.3g} in the first third to {after:.3g}"
        yield found("kl_runaway", "caution" if bearable else "fault", curve, evidence)


def check_parts(log: RunLog) -> Iterator[Finding]:
    """Parts of the reward that never move while the reward does."""
    reward = log["reward"].finite
    if log.kind not in ONLINE or len(reward) < 2 * FEWEST or np.ptp(reward.values) == 0.0:
        return
    for part, (curve, spread) in log.parts.items():
        values = curve.finite.values
        still = len(values) >= 2 * FEWEST and float(np.ptp(values)) == 0.0
        if not still or (len(spread.finite) and float(np.max(spread.finite.values)) > 0):
            continue
        evidence = (
            f"reward part {part} is {values[0]:.4g} in all {len(values)} records, while the reward moves"
        )
        yield found("constant_reward_part", "note" if values[0] > 0 else "caution", curve, evidence, "high")


def check_hacking(log: RunLog) -> Iterator[Finding]:
    """A reward that rises while a score that is not trained on, or the part that counts, falls."""
    if log.kind not in ONLINE:
        return
    rising = ["the reward"] if is_rising(log["reward"]) else []
    rising += [f"reward part {part}" for part, (curve, _) in log.parts.items() if is_rising(curve)]
    if not rising:
        return
    for name, curve in log.scores.items():
        if _falls(curve):
            values = curve.finite.values
            evidence = f"{rising[0]} rises while {name} falls from {values.max():.4g} to {values[-1]:.4g}"
            yield found("reward_hacking_suspected", "fault", curve, evidence, "high")
    for part, (curve, _) in log.parts.items() if rising[0] == "the reward" else ():
        fallen = mean_ends(curve)
        if fallen is not None and _fell(fallen):
            evidence = (
                f"the reward rises while its part {part} falls from {fallen.first:.3g} to {fallen.last:.3g}"
            )
            yield found("reward_hacking_suspected", "caution", curve, evidence, "low")


def _fell(fallen: Ends) -> bool:
    return fallen.z < -4 and fallen.change < -0.1 * abs(fallen.first)


def _falls(curve: Curve) -> bool:
    """Whether a score of few records falls: its last third lies below its first, beyond its noise."""
    values = curve.finite.values
    if len(values) < 3:
        return False
    first, last = mean(early(curve)), mean(late(curve))
    size = max(1, round(len(values) / 3))
    return bool(first - last > 3 * noise(values) * np.sqrt(2 / size) and first - last > 0.1 * abs(first))
