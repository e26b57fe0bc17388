"""CPU seconds of a paired interval over 10,000 prompts with 10,000 draws, one thread.

Beside it, in the same run: the resampling that counts every prompt in every draw, as the package did before.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from _record import record

from handbook_utils.evaluation import intervals
from handbook_utils.evaluation.statistics import paired_difference

PROMPTS, DRAWS, REPEATS = 10_000, 10_000, 5


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def every_prompt_counted(differences: np.ndarray) -> None:
    """The same interval by whole resamples: how often each of all prompts is drawn."""
    centred = np.sort(differences)[:, None] - differences.mean()
    both = np.concatenate([centred, centred**2], axis=1)
    sums = (
        np.concatenate([counts @ both for counts in intervals._resample_counts(PROMPTS, 0, DRAWS)]) / PROMPTS
    )
    error = np.sqrt((sums[:, 1] - sums[:, 0] ** 2) / (PROMPTS - 1))
    np.quantile(sums[:, 0] / error, [0.025, 0.975])


def main() -> None:
    """Measure and record."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=PROMPTS)
    b = a + rng.normal(0.01, 0.5, PROMPTS)
    ours, before = [], []
    for _ in range(REPEATS):
        ours.append(seconds(lambda: paired_difference(a, b, draws=DRAWS)))
        before.append(seconds(lambda: every_prompt_counted(b - a)))
    ratio = float(np.median(before) / np.median(ours))
    peer = {"name": "every prompt counted in every draw", "value": 1.0}
    record(name="paired_interval_speedup", value=ratio, unit="x", goal=2.0, better="higher", peer=peer)
    record(name="paired_interval_cpu_s", value=float(np.median(ours)), unit="s", better="lower")
    print(f"{np.median(ours):.3f} CPU s, before {np.median(before):.3f}: {ratio:.1f} times")


if __name__ == "__main__":
    main()
