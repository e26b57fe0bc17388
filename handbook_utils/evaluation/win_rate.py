"""Is B better than A on the same prompts: by how much, how often, and how sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from handbook_utils.errors import DataError
from handbook_utils.evaluation.intervals import DRAWS, Array
from handbook_utils.evaluation.statistics import Setting, estimate_columns, paired_setting
from handbook_utils.records import Estimate

# below this every flip of signs is counted (4,096 of them); above, so many are drawn
_EXACT_PROMPTS = 12
_FLIPS = 10_000

ScoresByPrompt = Mapping[str, ArrayLike]


@dataclass(frozen=True)
class PairedComparison:
    """What two sets of scores on the same prompts say about "B is better than A".

    Attributes:
        difference: mean of B minus A over prompts.
        win_rate: how often a sample of B beats one of A for the same prompt, ties half.
        p_value: two-sided; how often a difference this large comes about where A and B are exchangeable.
        n: prompts.
    """

    difference: Estimate
    win_rate: Estimate
    p_value: float
    n: int

    @property
    def verdict(self) -> str:
        """One of "B is better", "A is better", "undecided" (where the difference's interval holds zero)."""
        if self.difference.low > 0:
            return "B is better"
        return "A is better" if self.difference.high < 0 else "undecided"


def scores_by_prompt(
    prompt_ids: Sequence[str],
    scores: ArrayLike,
    *,
    sample_indices: Sequence[int] | None = None,
    name: str = "scores",
) -> dict[str, Array]:
    """Group the rows of a score table by prompt, in the order of their sample index.

    Args:
        prompt_ids: (rows,) prompt of each row.
        scores: (rows,) finite scores.
        sample_indices: (rows,) which of its prompt's samples each row is; None where a prompt has one row.
        name: what to call this table in an error.
    Raises:
        DataError: lengths differ; a score is not finite; a prompt id (with its sample index) comes twice. The
            row and prompt are named.

    >>> scores_by_prompt(["p", "q", "p"], [1, 2, 3], sample_indices=[1, 0, 0])["p"].tolist()
    [3.0, 1.0]
    """
    values = np.asarray(scores, dtype=np.float64)
    indices = [0] * len(prompt_ids) if sample_indices is None else list(sample_indices)
    if values.shape != (len(prompt_ids),) or len(indices) != len(prompt_ids):
        counts = (
            f"{len(prompt_ids)} prompt ids, {len(indices)} sample indices, scores of shape {values.shape}"
        )
        raise DataError(f"{name}: a row needs one of each, got {counts}")
    grouped: dict[str, dict[int, float]] = {}
    for row, (prompt, index, value) in enumerate(zip(prompt_ids, indices, values, strict=True)):
        if not np.isfinite(value):
            raise DataError(f"{name}: row {row} (prompt '{prompt}') is {value}. Score it again or drop it.")
        samples = grouped.setdefault(str(prompt), {})
        if index in samples:
            which = "" if sample_indices is None else f" with sample index {index}"
            raise DataError(f"{name}: row {row} repeats prompt id '{prompt}'{which}. Each may come once.")
        samples[index] = float(value)
    return {prompt: np.array([samples[i] for i in sorted(samples)]) for prompt, samples in grouped.items()}


def win_rate(
    scores_a: ScoresByPrompt | ArrayLike,
    scores_b: ScoresByPrompt | ArrayLike,
    *,
    prompt_ids: Sequence[str] | None = None,
    level: float = 0.95,
) -> Estimate:
    """How often B beats A on the same prompt, ties counting half; above 0.5 where B is better.

    Every sample of B is compared with every sample of A for its prompt (sample indices mean nothing across
    two policies), which gives the prompt's win rate; prompts count once each.

    Args:
        scores_a: scores by prompt id, as `scores_by_prompt` gives them; or an array (prompts,) or
            (prompts, samples) beside `prompt_ids`.
        scores_b: the same prompts; may have another number of samples.
        prompt_ids: (prompts,) ids of the rows of both arrays; None where scores come by prompt id.
        level: confidence level.
    Raises:
        DataError: prompts that only one side has, duplicate ids, scores that are not finite.
    Warns:
        CoverageWarning: as `statistics.mean_estimate`.
    Source: `intervals.wilson_effective`; all pairs within a prompt as in the Mann-Whitney U statistic.

    >>> ids = [f"p{i}" for i in range(24)]
    >>> estimate = win_rate([1, 2, 3, 4, 5, 6] * 4, [2, 2, 4, 5, 4, 7] * 4, prompt_ids=ids)
    >>> estimate.n, estimate.value
    (24, 0.75)
    """
    a, b = _aligned(_by_prompt(scores_a, prompt_ids, "a"), _by_prompt(scores_b, prompt_ids, "b"))
    return _win_rate(a, b, level=level)


def compare_paired(
    a: ScoresByPrompt,
    b: ScoresByPrompt,
    *,
    unit: str = "score",
    level: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
) -> PairedComparison:
    """Is B better than A on the same prompts, by how much, how often, and how sure.

    Args:
        a: the baseline's scores by prompt id, one or several each.
        b: the other's, for the same prompts, in any order.
        unit: unit of the scores.
        level: confidence level.
        seed: seed of the resampling and of the sign flips.
        draws: resamples of the difference's interval.
    Raises:
        DataError: prompts that only one side has (named), no prompts, scores that are not finite.
    Warns:
        CoverageWarning: as `statistics.mean_estimate`.

    >>> a = {f"p{i}": [0.1 * i, 0.2] for i in range(20)}
    >>> b = {f"p{i}": [0.1 * i + 0.2, 0.01 * i] for i in range(20)}
    >>> result = compare_paired(a, b)
    >>> result.verdict, round(result.difference.value, 4), result.p_value < 0.01
    ('B is better', 0.0475, True)
    """
    rows_a, rows_b = _aligned(_by_prompt(a, None, "a"), _by_prompt(b, None, "b"))
    differences = np.array([y.mean() - x.mean() for x, y in zip(rows_a, rows_b, strict=True)])
    everything = np.concatenate([*rows_a, *rows_b])
    rows = len(everything) / (2 * len(differences))
    setting = paired_setting(everything, rows=rows, unit=unit, level=level, seed=seed)
    setting = replace(setting, draws=draws)
    return PairedComparison(
        difference=estimate_columns(differences[:, None], setting)[0],
        win_rate=_win_rate(rows_a, rows_b, level=level),
        p_value=sign_flip_p_value(differences, seed=seed),
        n=len(differences),
    )


def sign_flip_p_value(differences: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p-value of "no difference": how often flipped signs give a mean as far from zero.

    Up to 12 prompts all flips are counted. Above, 10,000 are drawn and the data themselves counted in, so
    that it is never 0.

    Source: Fisher 1935; Phipson & Smyth 2010, "Permutation p-values should never be zero".

    >>> sign_flip_p_value([1.0, 2.0, 3.0])
    0.25
    """
    values = np.asarray(differences, dtype=np.float64)
    prompts = len(values)
    # sums that differ by rounding only are equal
    seen = abs(float(values.sum())) * (1 - 1e-9)
    if prompts <= _EXACT_PROMPTS:
        bits = np.arange(2**prompts)[:, None] >> np.arange(prompts) & 1
        return float(np.mean(np.abs((2 * bits - 1) @ values) >= seen))
    rng = np.random.default_rng(seed)
    ordered = np.sort(values)  # one p-value whatever the order of the prompts
    batch = max(1, 2_000_000 // prompts)
    extreme = 0
    for start in range(0, _FLIPS, batch):
        size = min(batch, _FLIPS - start)
        flips = 2.0 * rng.integers(0, 2, (size, prompts), dtype=np.int8) - 1.0
        extreme += int(np.count_nonzero(np.abs(flips @ ordered) >= seen))
    return (extreme + 1) / (_FLIPS + 1)


def _win_rate(a: list[Array], b: list[Array], *, level: float) -> Estimate:
    shares = np.array([_win_and_tie(x, y) for x, y in zip(a, b, strict=True)])
    wins = shares[:, 0] + shares[:, 1] / 2
    overall, decided = float(wins.mean()), 1 - float(shares[:, 1].mean())
    setting = Setting(
        unit="rate",
        design="win-rate",
        rows=float(np.mean([len(x) for x in a])),
        is_rate=True,
        # rare is what seldom decides: few pairs that are no tie, or few that go the other way
        base_rate=min(decided / 2, overall, 1 - overall),
        bounds=(0.0, 1.0),
        level=level,
    )
    return estimate_columns(wins[:, None], setting)[0]


def _win_and_tie(a: Array, b: Array) -> tuple[float, float]:
    ordered = np.sort(a)
    below = np.searchsorted(ordered, b, side="left")
    up_to = np.searchsorted(ordered, b, side="right")
    return float(below.mean()) / len(a), float((up_to - below).mean()) / len(a)


def _by_prompt(scores: ScoresByPrompt | ArrayLike, ids: Sequence[str] | None, name: str) -> dict[str, Array]:
    if ids is not None:
        scores = _from_array(scores, ids, name)
    if not isinstance(scores, Mapping):
        raise DataError(f"{name}: scores without prompt ids cannot be paired. Pass prompt_ids.")
    grouped = {str(prompt): np.atleast_1d(np.asarray(rows, np.float64)) for prompt, rows in scores.items()}
    for prompt, rows in grouped.items():
        if rows.ndim != 1 or not rows.size or not np.isfinite(rows).all():
            raise DataError(f"{name}: prompt '{prompt}' needs at least one score, all finite; got {rows}")
    return grouped


def _from_array(scores: object, ids: Sequence[str], name: str) -> dict[str, Array]:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim not in (1, 2) or len(array) != len(ids):
        raise DataError(f"{name}: expected a row for each of {len(ids)} prompt ids, got shape {array.shape}")
    seen: dict[str, int] = {}
    for row, prompt in enumerate(ids):
        if str(prompt) in seen:
            raise DataError(f"prompt_ids: row {row} repeats id '{prompt}' of row {seen[str(prompt)]}.")
        seen[str(prompt)] = row
    return {prompt: array[row] for prompt, row in seen.items()}


def _aligned(a: dict[str, Array], b: dict[str, Array]) -> tuple[list[Array], list[Array]]:
    lone = sorted(a.keys() ^ b.keys())
    if lone:
        side = "a" if lone[0] in a else "b"
        raise DataError(
            f"prompt '{lone[0]}' has scores in {side} only ({len(lone)} prompts are not in both). "
            "Compare runs on the same prompts."
        )
    if not a:
        raise DataError("nothing to compare: there are no prompts")
    prompts = sorted(a)
    return [a[prompt] for prompt in prompts], [b[prompt] for prompt in prompts]
