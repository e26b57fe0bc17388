"""Put together what a notebook measured on several seeds: mean, interval between seeds, on how many it holds.

    python book/tools/study_seeds.py rejection_sampling runs/calibrate

Reads the `measured.json` that the notebook left under each seed of a calibration, and writes
`book/results/<notebook>_seeds.json`. Every figure is stored, none is chosen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handbook_utils.errors import DataError, HandbookError
from handbook_utils.evaluation.statistics import mean_over_seeds
from handbook_utils.reporting.results import write_result
from handbook_utils.runs.state import read_manifest

Figure = dict[str, Any]
Measured = Mapping[str, Mapping[str, Figure]]


def measured_by_seed(notebook: str, calibration: Path) -> dict[int, Path]:
    """The folder of runs that a notebook left for each seed.

    Raises:
        DataError: fewer than two seeds left their figures.
    """
    files = sorted(calibration.glob(f"seed-*-notebooks/{notebook}/runs/{notebook}-pocket-*/measured.json"))
    found = {int(file.parent.name.rpartition("-")[2]): file.parent for file in files}
    if len(found) < 2:
        raise DataError(
            f"{calibration}: {len(found)} seeds of notebook '{notebook}' left their figures. First run "
            "`python -m handbook_utils.reporting.claims.calibrate --notebooks-only "
            f"--only {notebook} --out {calibration}`."
        )
    return found


def over_seeds(by_seed: Mapping[int, Figure]) -> Figure:
    """Mean over seeds, each one observation; and on how many the seed's own interval is on that side of 0."""
    unit = next(iter(by_seed.values()))["unit"]
    mean = mean_over_seeds([each["value"] for each in by_seed.values()], unit=unit)
    sign = 1 if mean.value > 0 else -1
    held = sum(min(sign * each["low"], sign * each["high"]) > 0 for each in by_seed.values())
    kept = {str(seed): [each[end] for end in ("value", "low", "high")] for seed, each in by_seed.items()}
    return mean.to_json() | {"held": held, "of": len(by_seed), "by_seed": kept}


def study(parts: Mapping[int, Measured]) -> dict[str, dict[str, Figure]]:
    """Every figure that all seeds measured."""
    first = next(iter(parts.values()))
    return {
        group: {
            name: over_seeds({seed: part[group][name] for seed, part in parts.items()})
            for name in figures
            if all(name in part[group] for part in parts.values())
        }
        for group, figures in first.items()
        if all(group in part for part in parts.values())
    }


def main() -> int:
    """Read the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("notebook", help="name of a notebook, such as rejection_sampling")
    parser.add_argument("calibration", type=Path, help="the folder that `calibrate` ran it in")
    asked = parser.parse_args()
    try:
        runs = measured_by_seed(asked.notebook, asked.calibration)
    except HandbookError as error:
        print(error, file=sys.stderr)
        return 2
    parts = {seed: json.loads((run / "measured.json").read_text("utf-8")) for seed, run in runs.items()}
    made = read_manifest(next(iter(next(iter(runs.values())).glob("*/manifest.json"))).parent)
    print(write_result(f"{asked.notebook}_seeds", {"measured": study(parts)}, seeds=sorted(runs), made=made))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
