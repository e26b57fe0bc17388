"""Measure how often the intervals of this folder hold the truth: `python -m
handbook_utils.evaluation.judged.coverage`.

Judges are simulated whose true rate is planted: one that likes nothing but length (a rate of 0.5 at equal
length), and one with a rate of 0.6 and a length bias, shown each pair once or in both orders. B's answers are
longer on average.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from handbook_utils.evaluation.coverage_table import CoverageRow, coverage_rows, write_coverage_rows
from handbook_utils.evaluation.judged.corrected import corrected_win_rate
from handbook_utils.evaluation.judged.length_control import length_controlled_win_rate
from handbook_utils.evaluation.two_level import mean_over_prompts_and_seeds
from handbook_utils.records import Estimate

TABLE = Path(__file__).with_name("coverage.json")
DATA_SETS = 1000
PROMPTS = (30, 200)
Draw = Callable[[np.random.Generator, int], tuple[Estimate, float]]


def judged_rows(
    rng: np.random.Generator, prompts: int, *, rate: float, bias: float, position: float = 0.0
) -> dict[str, Any]:
    """A judge's preferences by row, as arguments of `length_controlled_win_rate`.

    Args:
        rng: source of chance.
        prompts: prompts to judge.
        rate: how often B is preferred at equal length.
        bias: log-odds per unit of tanh of the standardised difference in length.
        position: log-odds for the answer shown first; other than 0, each pair is shown in both orders.
    """
    longer = rng.normal(50, 100, prompts)
    odds = logit(rate) + bias * np.tanh(longer / 100)
    if not position:
        liked = rng.random(prompts) < expit(odds)
        return {"preferences": liked * 1.0, "lengths_a": np.full(prompts, 300.0), "lengths_b": 300 + longer}
    first = np.repeat([1.0, 0.0], prompts)
    liked = rng.random(2 * prompts) < expit(np.tile(odds, 2) + position * (first - 0.5))
    return {
        "preferences": liked * 1.0,
        "lengths_a": np.full(2 * prompts, 300.0),
        "lengths_b": 300 + np.tile(longer, 2),
        "clusters": np.tile(np.arange(prompts), 2),
        "b_first": first,
    }


def _length_controlled(rate: float, bias: float, position: float = 0.0) -> Draw:
    def draw(rng: np.random.Generator, prompts: int) -> tuple[Estimate, float]:
        rows = judged_rows(rng, prompts, rate=rate, bias=bias, position=position)
        return length_controlled_win_rate(**rows).win_rate, rate

    return draw


def _corrected(right: float) -> Draw:
    def draw(rng: np.random.Generator, prompts: int) -> tuple[Estimate, float]:
        people = (rng.random(6 * prompts) < 0.6) * 1.0
        judge = np.where(rng.random(6 * prompts) < right, people, 1.0)
        found = corrected_win_rate(judge[:prompts], people[:prompts], judge[prompts:])
        return found.rate, 0.6

    return draw


def _two_level(seeds: int, between: float) -> Draw:
    def draw(rng: np.random.Generator, prompts: int) -> tuple[Estimate, float]:
        shared = rng.normal(0.1, 0.3, prompts) + rng.normal(0, between, (seeds, 1))
        return mean_over_prompts_and_seeds(shared + rng.normal(0, 0.3, (seeds, prompts))).mean, 0.1

    return draw


# by method and what is simulated: how to draw an estimate and its truth, and rows per prompt
SETTINGS: dict[tuple[str, str], tuple[Draw, int]] = {
    ("length-controlled", "likes-only-length"): (_length_controlled(0.5, 2.0), 1),
    ("length-controlled", "rate-0.6-length-bias"): (_length_controlled(0.6, 1.0), 1),
    ("length-controlled", "rate-0.6-both-orders"): (_length_controlled(0.6, 1.0, 1.0), 2),
    ("corrected", "judge-right-0.6"): (_corrected(0.6), 1),
    ("corrected", "judge-right-0.85"): (_corrected(0.85), 1),
    ("two-level", "3-seeds-alike"): (_two_level(3, 0.0), 3),
    ("two-level", "3-seeds-apart"): (_two_level(3, 0.1), 3),
    ("two-level", "5-seeds-apart"): (_two_level(5, 0.1), 5),
}


def measure(
    method: str, simulated: str, prompts: int, *, data_sets: int = DATA_SETS, seed: int = 0
) -> CoverageRow:
    """Coverage of one method in one setting of `SETTINGS`, with its Monte-Carlo error."""
    draw, rows = SETTINGS[method, simulated]
    rng = np.random.default_rng([seed, prompts])
    hits, widths = 0, 0.0
    for _ in range(data_sets):
        found, truth = draw(rng, prompts)
        hits += found.low <= truth <= found.high
        widths += (found.high - found.low) / data_sets
    share = hits / data_sets
    return CoverageRow(
        method=method,
        distribution=simulated,
        prompts=prompts,
        rows=rows,
        design="win-rate" if method != "two-level" else "paired",
        coverage=round(share, 4),
        mc_error=round(float(np.sqrt(share * (1 - share) / data_sets)), 4),
        mean_width=float(f"{widths:.4g}"),
        data_sets=data_sets,
    )


def main(wanted: str = "") -> None:
    """Measure every setting whose method or name holds `wanted`, and put them into the shipped table."""
    rows = {_key(row): row for row in coverage_rows(TABLE)} if TABLE.exists() else {}
    for method, simulated in SETTINGS:
        for prompts in PROMPTS if wanted in f"{method} {simulated}" else ():
            row = measure(method, simulated, prompts)
            rows[_key(row)] = row
    order = {(*setting, prompts): None for setting in SETTINGS for prompts in PROMPTS}
    write_coverage_rows([rows[key] for key in order if key in rows], TABLE)
    inside = sum(row.is_in_band for row in rows.values())
    print(f"{TABLE}: {len(rows)} rows; {inside} of them cover 93-97 %")


def _key(row: CoverageRow) -> tuple[str, str, int]:
    return row.method, row.distribution, row.prompts


if __name__ == "__main__":
    main(*sys.argv[1:2])
