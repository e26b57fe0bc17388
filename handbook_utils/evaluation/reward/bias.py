"""What else moves a reward model: an answer's length, and where it stood."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from handbook_utils.evaluation.intervals import Array
from handbook_utils.evaluation.reward.comparisons import Comparisons, Scores
from handbook_utils.evaluation.statistics import mean_estimate, paired_difference
from handbook_utils.records import Estimate

MATCHED = 0.1
_STRATA = 5


def length_bias(rows: Comparisons, scores: Scores) -> dict[str, Estimate]:
    """How length moves a model, beside how length goes with being right.

    Returns, where there are rows for it: `prefers_longer` (of answers of different length), `length_bias`
    (that minus how often the longer one is right, paired by prompt: 0 for a model that likes length as
    much as the labels do), `accuracy_at_matched_length` (lengths within 10 % of each other), and
    `length_effect`: accuracy where the right answer is longer minus accuracy where it is shorter by as
    much, 0 for a model that length does not move.
    """
    longer = np.sign(rows.words_right - rows.words_wrong)
    unequal = longer != 0
    found: dict[str, Estimate] = {}
    if unequal.any():
        prompts = rows.prompts[unequal]
        prefers = ((np.sign(scores.margin) * longer + 1) / 2)[unequal]
        is_right = (longer[unequal] + 1) / 2
        found["prefers_longer"] = mean_estimate(prefers, clusters=prompts, unit="rate")
        found["length_bias"] = paired_difference(is_right, prefers, clusters=prompts, unit="rate")
    larger = np.maximum(rows.words_right, rows.words_wrong)
    matched = np.abs(rows.words_right - rows.words_wrong) <= MATCHED * larger
    if matched.sum() >= 2:
        found["accuracy_at_matched_length"] = mean_estimate(
            scores.correct[matched], clusters=rows.prompts[matched], unit="rate"
        )
    if unequal.any():
        share = np.abs(np.log((rows.words_right[unequal] + 1) / (rows.words_wrong[unequal] + 1)))
        strata = np.searchsorted(np.quantile(share, np.linspace(0, 1, _STRATA + 1)[1:-1]), share)
        effect = matched_difference(
            scores.correct[unequal], longer[unequal] > 0, strata, rows.prompts[unequal]
        )
        if effect is not None:
            found["length_effect"] = effect
    return found


def position_bias(rows: Comparisons, scores: Scores) -> dict[str, Estimate]:
    """Accuracy where the right answer was shown first minus where it was last; {} where it is not known."""
    if rows.chosen_first is None:
        return {}
    together = np.zeros(len(rows.prompts), dtype=np.intp)
    found = matched_difference(scores.correct, rows.chosen_first > 0, together, rows.prompts)
    return {} if found is None else {"position_effect": found}


def matched_difference(
    values: Array,
    is_in: NDArray[np.bool_],
    strata: NDArray[np.intp],
    prompts: NDArray[np.intp],
    *,
    level: float = 0.95,
) -> Estimate | None:
    """Mean of the rows that are in minus mean of those that are not, within strata; None where none has both.

    Strata count by their rows. The interval is Student's over prompts, from their summed influence on the
    figure.

    >>> values, is_in = np.array([1.0, 1, 0, 0, 1, 0]), np.array([True, True, True, False, False, False])
    >>> found = matched_difference(values, is_in, np.zeros(6, int), np.arange(6))
    >>> round(found.value, 3)
    0.333
    """
    influence = np.zeros(len(values))
    total, used = 0.0, 0
    for stratum in np.unique(strata):
        here = strata == stratum
        sides = [here & is_in, here & ~is_in]
        counts = [int(side.sum()) for side in sides]
        if min(counts) < 2:
            continue
        size = sum(counts)
        means = [float(values[side].mean()) for side in sides]
        total += size * (means[0] - means[1])
        used += size
        for side, count, mean, sign in zip(sides, counts, means, (1, -1), strict=True):
            influence[side] = sign * size * (values[side] - mean) / count
    if not used:
        return None
    by_prompt = np.bincount(prompts, influence / used)
    number = len(np.unique(prompts))
    error = float(np.sqrt(np.sum(by_prompt**2) * number / max(number - 1, 1)))
    reach = float(stats.t.ppf((1 + level) / 2, max(number - 1, 1))) * error
    value = total / used
    return Estimate(value, value - reach, value + reach, level, number, "rate", "matched-t")
