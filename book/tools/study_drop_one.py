"""What each part of the pipeline is worth: the DPO model, and models made without one part, on several seeds.

    for seed in 101 102 103 104 105
    do handbook run book/tools/drop_one.yaml --out runs/drop-one/seed-$seed --seed $seed; done
    python book/tools/study_drop_one.py runs/drop-one/seed-*

All models answer the same held-out prompts. Figures are means over seeds; a gap is a gold reward minus
the whole pipeline's on the same seed. Writes `book/results/drop_one.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from handbook_utils.evaluation.statistics import mean_over_seeds
from handbook_utils.reporting.results import write_result
from handbook_utils.runs.folder import read_result
from handbook_utils.runs.state import read_manifest

WHOLE = "dpo"
# the run that evaluates each model: without DPO, without SFT, and so on
ARMS = {
    **{"whole": WHOLE, "no-dpo": "sft"},
    **{name: name for name in ("no-sft", "no-own-answers", "no-pairs", "no-bias")},
}
FIGURES = ("gold", "words")


def measured(folders: list[Path]) -> dict[str, Any]:
    """Figures of every arm over the seeds, as the book reads them."""
    found: dict[str, Any] = {}
    runs = {
        arm: [read_result(folder / f"evaluate-{name}").final_metrics for folder in folders]
        for arm, name in ARMS.items()
    }
    whole = [run["gold"].value for run in runs["whole"]]
    for arm, results in runs.items():
        values = {name: [result[name].value for result in results] for name in FIGURES}
        if arm != "whole":
            values["gap"] = [gold - other for gold, other in zip(values["gold"], whole, strict=True)]
        found[arm] = {name: mean_over_seeds(each, unit=name).to_json() for name, each in values.items()}
    return found


def main() -> None:
    """Read the folders, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="a finished pipeline for each seed")
    folders = parser.parse_args().folders
    seeds = [read_manifest(folder / "sft")["seed"] for folder in folders]
    print(write_result("drop_one", {"measured": measured(folders)}, seeds=sorted(seeds)))


if __name__ == "__main__":
    main()
