"""All that a judge's rows say of two models: win rate, at equal length, by order, over seeds, by labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from handbook_utils.errors import DataError
from handbook_utils.evaluation.intervals import Array
from handbook_utils.evaluation.judged.corrected import CorrectedRate, corrected_win_rate
from handbook_utils.evaluation.judged.length_control import LengthControlled, length_controlled_win_rate
from handbook_utils.evaluation.prompt_rows import prompt_means
from handbook_utils.evaluation.statistics import Setting, estimate_columns, mean_estimate, with_cautions
from handbook_utils.evaluation.two_level import FEWEST_SEEDS, TwoLevelMean, mean_over_prompts_and_seeds
from handbook_utils.records import Estimate


@dataclass(frozen=True)
class Judgements:
    """A judge's rows as columns, (rows,) each.

    Attributes:
        prompt_ids: prompt of each row.
        preferences: 1 where B was preferred, 0 where A was, 0.5 for a tie, or a probability.
        lengths_a: length of A's answer; None where not known.
        lengths_b: length of B's answer, in the same unit.
        b_first: 1 where the judge saw B's answer first, else 0; None where not known.
        seeds: training seed of the model that wrote B's answer; None where there is one.
        labels: people's preference for the row's pair, NaN where there is none; None without any.
    """

    prompt_ids: Sequence[str]
    preferences: Array
    lengths_a: Array | None = None
    lengths_b: Array | None = None
    b_first: Array | None = None
    seeds: Sequence[str] | None = None
    labels: Array | None = None


@dataclass(frozen=True)
class JudgedReport:
    """What a judge's rows say about "B is better than A".

    Attributes:
        metrics: `win_rate`, `tie_rate`, and as far as the rows allow `length_controlled_win_rate`,
            `length_effect`, `position_bias` (how far the answer shown first is preferred above one half),
            `order_agreement`, `win_rate_over_seeds`, `corrected_win_rate`, `judge_bias`, `judge_agreement`.
        prompts: distinct prompts.
        rows: judgements.
        cautions: what to know before relying on them, and why a figure is missing.
        details: the parts behind some figures, as plain values.
    """

    metrics: dict[str, Estimate]
    prompts: int
    rows: int
    cautions: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "prompts": self.prompts,
            "rows": self.rows,
            "metrics": {name: figure.to_json() for name, figure in self.metrics.items()},
            "details": dict(self.details),
            "cautions": list(self.cautions),
        }


def summarise_judgements(judged: Judgements, *, level: float = 0.95) -> JudgedReport:
    """Every figure that the rows allow, each with its interval over prompts.

    Raises:
        DataError: no rows, a preference outside [0, 1], a pair that was judged twice in the same order,
            seeds that were judged on different prompts, or labels that differ within a prompt.
    """
    _check(judged)
    (metrics, details, notes), cautions = with_cautions(lambda: _measure(judged, level))
    prompts = len(set(judged.prompt_ids))
    return JudgedReport(metrics, prompts, len(judged.preferences), (*cautions, *notes), details)


def _measure(judged: Judgements, level: float) -> tuple[dict[str, Estimate], dict[str, Any], list[str]]:
    ids, liked = np.asarray(judged.prompt_ids), judged.preferences
    wins = prompt_means(liked, ids)
    tied = (liked == 0.5) * 1.0
    decided = 1 - float(prompt_means(tied, ids).mean())
    overall = float(wins.mean())
    setting = Setting(
        unit="rate",
        design="win-rate",
        rows=len(liked) / len(wins),
        is_rate=True,
        base_rate=min(decided / 2, overall, 1 - overall),
        bounds=(0.0, 1.0),
        level=level,
    )
    metrics = {
        "win_rate": estimate_columns(wins[:, None], setting)[0],
        "tie_rate": mean_estimate(tied, clusters=ids, unit="rate", level=level),
    }
    details: dict[str, Any] = {}
    notes: list[str] = []
    for measure in (_at_equal_length, _by_order, _over_seeds, _corrected):
        try:
            found, more = measure(judged, level, notes)
        except DataError as error:
            notes.append(str(error))
            continue
        metrics |= found
        details |= more
    return metrics, details, notes


Found = tuple[dict[str, Estimate], dict[str, Any]]


def _at_equal_length(judged: Judgements, level: float, notes: list[str]) -> Found:
    if judged.lengths_a is None or judged.lengths_b is None:
        notes.append("no lengths are given, so a judge's liking for length cannot be taken out")
        return {}, {}
    found: LengthControlled = length_controlled_win_rate(
        judged.preferences,
        judged.lengths_a,
        judged.lengths_b,
        clusters=judged.prompt_ids,
        b_first=judged.b_first,
        level=level,
    )
    if found.caution:
        notes.append(found.caution)
    figures = {"length_controlled_win_rate": found.win_rate, "length_effect": found.length_effect}
    return figures, {"longer": found.longer}


def _by_order(judged: Judgements, level: float, notes: list[str]) -> Found:
    if judged.b_first is None:
        notes.append("which answer was shown first is not given, so the judge's position bias is not known")
        return {}, {}
    first = judged.b_first > 0
    for_first = np.where(first, judged.preferences, 1 - judged.preferences) - 0.5
    by_prompt: dict[tuple[str, str], dict[bool, float]] = {}
    for pair, shown, liked in zip(_pairs(judged), first, judged.preferences, strict=True):
        by_prompt.setdefault(pair, {})[bool(shown)] = float(liked)
    both = [(pair, orders) for pair, orders in by_prompt.items() if len(orders) == 2]
    if len(both) < len(by_prompt):
        notes.append(
            f"{len(by_prompt) - len(both)} of {len(by_prompt)} pairs were judged in one order only. "
            "Judge each pair in both orders: a random order adds noise, a fixed one adds bias."
        )
    found = {}
    if first.any() and not first.all():
        found["position_bias"] = mean_estimate(
            for_first, clusters=judged.prompt_ids, unit="rate", level=level
        )
    if both:
        same = [float(np.sign(orders[True] - 0.5) == np.sign(orders[False] - 0.5)) for _, orders in both]
        prompts = [pair[0] for pair, _ in both]
        found["order_agreement"] = mean_estimate(same, clusters=prompts, unit="rate", level=level)
    return found, {"pairs_in_both_orders": len(both)}


def _over_seeds(judged: Judgements, level: float, notes: list[str]) -> Found:
    if judged.seeds is None or len(set(judged.seeds)) == 1:
        return {}, {}
    seeds, prompts = sorted(set(judged.seeds)), sorted(set(judged.prompt_ids))
    if len(seeds) < FEWEST_SEEDS:
        notes.append(
            f"{len(seeds)} training seeds are too few for an interval that holds for others; train "
            f"{FEWEST_SEEDS}"
        )
        return {}, {}
    places = (
        np.array([seeds.index(seed) for seed in judged.seeds]),
        np.searchsorted(prompts, judged.prompt_ids),
    )
    counts, sums = np.zeros((2, len(seeds), len(prompts)))
    np.add.at(counts, places, 1)
    np.add.at(sums, places, judged.preferences)
    found: TwoLevelMean = mean_over_prompts_and_seeds(sums / counts, unit="rate", level=level)
    details = {"seeds": found.seeds, "seed_sd": found.seed_sd, "share_of_seeds": found.share_of_seeds}
    return {"win_rate_over_seeds": found.mean}, details


def _corrected(judged: Judgements, level: float, notes: list[str]) -> Found:
    if judged.labels is None:
        return {}, {}
    there = np.isfinite(judged.labels)
    wins = prompt_means(judged.preferences, judged.prompt_ids)
    ids = np.asarray(judged.prompt_ids)
    labelled = np.isin(np.unique(ids), np.unique(ids[there]))
    people = prompt_means(judged.labels[there], ids[there])
    found: CorrectedRate = corrected_win_rate(wins[labelled], people, wins[~labelled], level=level)
    figures = {"corrected_win_rate": found.rate, "judge_bias": found.bias, "people_only": found.people_only}
    if found.agreement is not None:
        figures["judge_agreement"] = found.agreement
    return figures, {"judge_trust": found.trust, "labelled_prompts": int(labelled.sum())}


def _pairs(judged: Judgements) -> list[tuple[str, str]]:
    seeds = judged.seeds if judged.seeds is not None else [""] * len(judged.prompt_ids)
    return list(zip(judged.prompt_ids, seeds, strict=True))


def _check(judged: Judgements) -> None:
    if not len(judged.preferences):
        raise DataError("there are no judgements. Give at least one row.")
    bad = np.flatnonzero(~((judged.preferences >= 0) & (judged.preferences <= 1)))
    if len(bad):
        raise DataError(
            f"row {bad[0]} (prompt '{judged.prompt_ids[bad[0]]}') has the preference "
            f"{judged.preferences[bad[0]]:g}. Write 1 where B was preferred, 0 where A was, 0.5 for a tie."
        )
    orders = judged.b_first if judged.b_first is not None else np.zeros(len(judged.preferences))
    seen: dict[tuple[tuple[str, str], float], int] = {}
    for row, key in enumerate(zip(_pairs(judged), orders.tolist(), strict=True)):
        if key in seen:
            raise DataError(
                f"row {row} repeats prompt id '{key[0][0]}' of row {seen[key]}. A pair may be judged once "
                "in each "
                'order: say which by `first` ("a" or "b"), say the training run by `seed`, or drop one row.'
            )
        seen[key] = row
    if judged.seeds is not None:
        _check_seeds(judged.prompt_ids, judged.seeds)


def _check_seeds(prompt_ids: Sequence[str], seeds: Sequence[str]) -> None:
    by_seed: dict[str, set[str]] = {}
    for prompt, seed in zip(prompt_ids, seeds, strict=True):
        by_seed.setdefault(seed, set()).add(prompt)
    everything = set(prompt_ids)
    for seed, prompts in sorted(by_seed.items()):
        lone = sorted(everything - prompts)
        if lone:
            raise DataError(
                f"seed '{seed}' was not judged on prompt '{lone[0]}' ({len(lone)} prompts are missing). "
                "Judge every seed on the same prompts."
            )
