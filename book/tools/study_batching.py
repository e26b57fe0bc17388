"""What batches of like length do to SFT, a reward model and DPO, on several seeds.

    for seed in 101 102 103 104 105
    do handbook run book/tools/length_batching.yaml --out runs/batching/seed-$seed --seed $seed; done
    python book/tools/study_batching.py runs/batching/seed-*

Each seed has one SFT model and its preferences; the arms differ in `length_batching` alone. Figures are alike
minus random, with an interval over seeds. Writes `book/results/length_batching.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from handbook_utils.evaluation.statistics import mean_over_seeds
from handbook_utils.reporting.results import write_result
from handbook_utils.runs.folder import read_result
from handbook_utils.runs.state import read_manifest

ARMS = ("random", "alike")
FIGURES = {
    "reward": ("accuracy", "accuracy_gold"),
    "evaluate": ("gold", "words"),  # of the DPO models
    "evaluate-sft": ("gold", "words"),
}

# within these of random batches a stage's difference has to lie for it to become the default; set beforehand
BOUNDS = {"gold": 0.015, "accuracy": 0.01, "words": 1.0}


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    """Of one seed: each arm's figures by `stage.figure`."""
    found: dict[str, dict[str, float]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        for stage, names in FIGURES.items():
            result = read_result(folder / f"{stage}-{arm}")
            found[arm] |= {f"{stage}.{name}": result.final_metrics[name].value for name in names}
    return found


def main() -> None:
    """Read the folders, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    by_seed = {read_manifest(folder / "sft")["seed"]: metrics(folder) for folder in folders}
    measured: dict[str, dict[str, Any]] = {}
    for name in next(iter(by_seed.values()))["alike"]:
        values = {arm: [arms[arm][name] for arms in by_seed.values()] for arm in ARMS}
        values["gap"] = [
            alike - random for alike, random in zip(values["alike"], values["random"], strict=True)
        ]
        key = name.replace(".", "-").replace("_", "-")
        measured[key] = {each: mean_over_seeds(found, unit=name).to_json() for each, found in values.items()}
        measured[key]["gap_by_seed"] = values["gap"]
    measured["bounds"] = {
        name: {"value": bound, "low": bound, "high": bound, "n": 1, "unit": name, "method": "set beforehand"}
        for name, bound in BOUNDS.items()
    }
    print(write_result("length_batching", {"measured": measured}, seeds=sorted(by_seed)))


if __name__ == "__main__":
    main()
