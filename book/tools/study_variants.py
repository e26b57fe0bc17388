"""Compare the losses of preference training: each tuned on two seeds, then run on five others.

    python book/tools/study_variants.py --out runs/variants
    python book/tools/study_variants.py --out runs/variants --minutes 60   # begin no run later than that
    python book/tools/study_variants.py --out runs/trial --trial           # a few steps each; stores nothing

Every loss gets the same pairs, steps and grid: three learning rates and three betas. The setting with the
highest gold reward on validation prompts, mean of seeds 0 and 1, is run on seeds 101 to 105. There answers to
other prompts are looked at on the way, so that losses can be compared at the same KL to the start too.

Losses come in the order of the list, each with all its runs. `runs.jsonl` in --out gains a line with every
finished run; the same command goes on from there. Writes `book/results/variants_seeds.json`, of the losses
that are finished. One process; set OMP_NUM_THREADS=1 to keep it to one core.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from variants_runs import (
    FRESH,
    LEARNING_RATES,
    TRIAL,
    TUNING,
    VARIANTS,
    Look,
    Size,
    Store,
    best_setting,
    finished,
    reported,
    run_all,
    validated,
)

from handbook_utils.errors import DataError, HandbookError, suggest
from handbook_utils.evaluation.statistics import mean_over_seeds
from handbook_utils.reporting.results import write_result


def gold_at(looks: Sequence[Look], nats: float) -> float:
    """Gold reward where a run first is so many nats from the start, between two looks in proportion.

    >>> gold_at([{"kl": 0.0, "gold": 0.5}, {"kl": 1.0, "gold": 0.7}], 0.25)
    0.55
    """
    for before, after in itertools.pairwise(looks):
        if before["kl"] <= nats <= after["kl"]:
            width = after["kl"] - before["kl"]
            share = (nats - before["kl"]) / width if width else 0.0
            return before["gold"] + share * (after["gold"] - before["gold"])
    raise DataError(f"no look lies on either side of {nats} nats")


def over_seeds(values: Sequence[float], unit: str, *, compared: int = 1) -> dict[str, Any]:
    """Mean over seeds with Student's interval, at 95 % for all of so many comparisons together."""
    mean = mean_over_seeds(values, unit=unit, level=1 - 0.05 / compared)
    held = sum(value * mean.value > 0 for value in values)
    seeds = {str(seed): [value] for seed, value in zip(FRESH, values, strict=True)}
    return mean.to_json() | {"held": held, "of": len(values), "by_seed": seeds}


def plain(value: float, unit: str) -> dict[str, Any]:
    """A figure that was set or counted, in the form of an estimate."""
    return {"value": value, "low": value, "high": value, "n": 1, "unit": unit, "method": "set or counted"}


def compare(loss: str, store: Store, compared: int) -> dict[str, Any]:
    """A loss on the fresh seeds: by itself, against the start, and against DPO, paired by seed."""
    runs = {name: [store.find(job) for job in reported(name, store)] for name in (loss, "dpo")}
    ours, dpo = ([run["looks"] for run in runs[name] if run] for name in (loss, "dpo"))
    ends = {name: [looks[-1][name] for looks in ours] for name in ("gold", "kl", "words")}
    rate, beta = best_setting(loss, store)
    found = {name: over_seeds(values, name) for name, values in ends.items()}
    found["gain"] = over_seeds([looks[-1]["gold"] - looks[0]["gold"] for looks in ours], "gold reward")
    found["learning_rate"] = plain(rate, "learning rate")
    if beta is not None:
        found["beta"] = plain(beta, "beta")
    tried = [gold for gold, _ in validated(loss, store).values()]
    found["spread"] = plain(max(tried) - min(tried), "gold reward")
    found["at_edge"] = plain(float(is_at_edge(loss, rate, beta)), "1 at an edge of the grid")
    found["seconds"] = over_seeds([run["seconds"] for run in runs[loss] if run], "seconds of processor time")
    return found if loss == "dpo" else found | against(ours, dpo, compared)


def against(ours: Sequence[Any], dpo: Sequence[Any], compared: int) -> dict[str, Any]:
    """Gold reward over DPO's, at the end of both runs and at the distance that both have reached."""
    reach = [min(max(look["kl"] for look in looks) for looks in pair) for pair in zip(ours, dpo, strict=True)]
    gaps = {
        "over-dpo": [a[-1]["gold"] - b[-1]["gold"] for a, b in zip(ours, dpo, strict=True)],
        "over-dpo-at-equal-kl": [
            gold_at(a, nats) - gold_at(b, nats) for a, b, nats in zip(ours, dpo, reach, strict=True)
        ],
    }
    found = {"equal-kl": over_seeds(reach, "nats")}
    for name, values in gaps.items():
        found[name] = over_seeds(values, "gold reward")
        found[f"{name}-together"] = over_seeds(values, "gold reward", compared=compared)
    return found


def is_at_edge(loss: str, rate: float, beta: float | None) -> bool:
    """Whether the best setting lies at an end of the grid, so that a better one may lie beyond."""
    betas = VARIANTS[loss].betas
    return rate in (LEARNING_RATES[0], LEARNING_RATES[-1]) or (
        len(betas) > 1 and beta in (betas[0], betas[-1])
    )


def results(losses: Sequence[str], store: Store) -> dict[str, Any]:
    """All figures of the finished losses, as the book reads them."""
    compared = max(1, len(losses) - 1)
    measured = {loss: compare(loss, store, compared) for loss in losses}
    looks = {loss: [(store.find(job) or {})["looks"] for job in reported(loss, store)] for loss in losses}
    starts = [each[0] for each in looks["dpo"]]
    measured["start"] = {
        name: over_seeds([start[name] for start in starts], name) for name in ("gold", "words")
    }
    golds = [measured[loss]["gold"]["value"] for loss in losses]
    spreads = [measured[loss]["spread"]["value"] for loss in losses]
    measured["study"] = {
        "between_losses": plain(max(golds) - min(golds), "gold reward"),
        "between_settings": plain(float(np.median(spreads)), "gold reward"),
        "processor_time": plain(store.seconds, "seconds of processor time"),
        "runs": plain(float(len(store.lines) - 1), "training runs"),
        "compared": plain(float(compared), "losses compared with DPO"),
        "edges": plain(sum(measured[loss]["at_edge"]["value"] for loss in losses), "losses"),
    }
    tried = {
        loss: [[rate, beta, *map(_short, found)] for (rate, beta), found in validated(loss, store).items()]
        for loss in losses
    }
    courses = {loss: course(found) for loss, found in looks.items()}
    return {"measured": measured, "size": store.lines[0], "grid": tried, "courses": courses}


def course(looks: Sequence[Sequence[Look]]) -> list[list[float]]:
    """Each look's KL and gain over the start, mean over seeds."""
    return [
        [
            _short(np.mean([each[place]["kl"] for each in looks])),
            _short(np.mean([each[place]["gold"] - each[0]["gold"] for each in looks])),
        ]
        for place in range(len(looks[0]))
    ]


def _short(value: Any) -> float:
    return round(float(value), 5)


def read_command() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; the same one resumes")
    parser.add_argument("--losses", nargs="+", default=list(VARIANTS), metavar="LOSS", help="dpo and others")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument("--trial", action="store_true", help="a few steps each, and no result is stored")
    return parser.parse_args()


def main() -> int:
    """Run the study, store the figures of the losses that are finished; returns the exit status."""
    asked = read_command()
    size = TRIAL if asked.trial else Size()
    losses = ["dpo", *(loss for loss in asked.losses if loss != "dpo")]  # the one that others are held to
    try:
        if unknown := [loss for loss in losses if loss not in VARIANTS]:
            raise DataError(f"--losses: no loss '{unknown[0]}'. {suggest(unknown[0], VARIANTS)}")
        store = Store(asked.out, size)
        is_whole = run_all(losses, store, asked.out, size, asked.minutes)
    except HandbookError as error:
        print(error, file=sys.stderr)
        return 2
    done = finished(losses, store)
    print(f"{len(done)} of {len(losses)} losses are finished: {', '.join(done)}")
    if not is_whole:
        print("The time is up. The same command goes on.")
    if "dpo" in done and not asked.trial:
        print(write_result("variants_seeds", results(done, store), seeds=[*TUNING, *FRESH]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
