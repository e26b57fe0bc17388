"""What is gained by choosing answers by a check, and what the check alone is worth.

    handbook train pocket/sft --seed 0 --out runs/sft-0
    python book/tools/study_instructions.py runs/sft-0

Held-out prompts of the pocket world that state what IFEval's checks can see are answered several times. Each
arm is one answer per prompt: any of them, the one that follows most, the one of highest gold reward, and the
words that the checks look for with nothing around them. Writes `book/results/instructions.json`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from handbook_utils import run_stage
from handbook_utils.data.pocket_rows import pocket_rows
from handbook_utils.data.split import parse_split
from handbook_utils.evaluation.statistics import mean_estimate, paired_difference
from handbook_utils.pocket.world import gold_reward
from handbook_utils.reporting.results import write_result
from handbook_utils.runs.state import read_manifest
from handbook_utils.sampling.scoring.instructions.following import follows_instructions

SPLIT = "test[160:480]"
SAMPLES = 8
COLUMNS = {"gold": "gold", "strict": "follows.prompt_strict", "loose": "follows.prompt_loose"}
Arm = Mapping[str, np.ndarray]


def sampled(run: Path, folder: Path) -> dict[str, np.ndarray]:
    """Scores of the run's answers by name, (prompts, samples)."""
    changes = {"model.from": None, "model.name": str(run), "samples": SAMPLES, "data.0.split": SPLIT}
    made = run_stage("pocket/instructions", folder, overrides=changes)
    parts = [pq.read_table(file) for file in sorted((made.path / "scores").glob("*.parquet"))]
    ids = [prompt for part in parts for prompt in part["prompt_id"].to_pylist()]
    order = np.argsort(np.asarray(ids), kind="stable")
    names = {**COLUMNS, "share": "follows.inst_strict"}
    columns = {
        name: np.concatenate([part[column].to_numpy() for part in parts]) for name, column in names.items()
    }
    return {name: values[order].reshape(-1, SAMPLES) for name, values in columns.items()}


def best_by(scores: Mapping[str, np.ndarray], name: str) -> Arm:
    """The mean over the best answers to each prompt, those that tie for it included."""
    best = scores[name] == scores[name].max(axis=1, keepdims=True)
    return {column: (scores[column] * best).sum(axis=1) / best.sum(axis=1) for column in COLUMNS}


def words_alone() -> Arm:
    """Answers that hold what the checks look for, and nothing else."""
    found: dict[str, list[float]] = {column: [] for column in COLUMNS}
    for row in sorted(
        pocket_rows("pocket:instructions", parse_split(SPLIT), seed=0), key=lambda r: r["prompt_id"]
    ):
        text = " ".join(_looked_for(row)) + "."
        verdict = follows_instructions(text, row["instruction_id_list"], row["kwargs"])
        found["strict"].append(float(all(verdict.strict)))
        found["loose"].append(float(all(verdict.loose)))
        found["gold"].append(gold_reward(row["prompt"], text).value)
    return {column: np.array(values) for column, values in found.items()}


def _looked_for(row: Mapping[str, Any]) -> list[str]:
    """The words of a row's checks, as often as is asked for."""
    words: list[str] = []
    repeated: list[str] = []
    for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        if name == "keywords:existence":
            words += given["keywords"]
        elif name == "keywords:frequency" and given["relation"] == "at least":
            repeated = [given["keyword"]] * given["frequency"]
    return [*repeated, *words]


def figures(arm: Arm, reference: Arm) -> dict[str, Any]:
    """Means over prompts, and the gain in gold reward over the reference on the same prompts."""
    means = {
        name: mean_estimate(values, unit="gold reward" if name == "gold" else "rate")
        for name, values in arm.items()
    }
    found = {name: mean.to_json() for name, mean in means.items()}
    if arm is reference:
        return found
    gain = paired_difference(reference["gold"], arm["gold"], unit="gold reward")
    return {**found, "gain": gain.to_json()}


def main() -> None:
    """Measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder:
        scores = sampled(run, Path(folder) / "evaluate")
    any_of_them = {column: scores[column].mean(axis=1) for column in COLUMNS}
    arms = {
        "any": any_of_them,
        "best-by-check": best_by(scores, "share"),
        "best-by-gold": best_by(scores, "gold"),
        "words-alone": words_alone(),
    }
    measured = {name: figures(arm, any_of_them) for name, arm in arms.items()}
    record = {"prompts": len(scores["gold"]), "samples": SAMPLES, "measured": measured}
    print(write_result("instructions", record, seeds=[read_manifest(run)["seed"]]))


if __name__ == "__main__":
    main()
