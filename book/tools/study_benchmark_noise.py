"""How far a benchmark's figure moves when nothing about the model is meant to have changed.

    handbook train pocket/sft --seed 0 --out runs/sft-0
    handbook train pocket/sft --seed 1 --out runs/sft-1
    python book/tools/study_benchmark_noise.py runs/sft-0 runs/sft-1

The first run is the reference; it is asked again in other ways, then the others are asked as the reference
was. The task asks held-out prompts of the pocket world: of two answers, which has the higher gold reward? It
runs through the lm-evaluation-harness (extra `lm-eval`). Each difference is paired by question. Writes
`book/results/benchmark_noise.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handbook_utils.benchmarks.run import BenchmarkSettings, run_benchmarks
from handbook_utils.benchmarks.scores import BenchmarkScore
from handbook_utils.data.pocket_rows import pocket_rows
from handbook_utils.data.split import parse_split
from handbook_utils.evaluation.win_rate import compare_paired
from handbook_utils.reporting.results import write_result
from handbook_utils.runs.state import read_manifest

QUESTIONS = 400
METRIC = "acc,none"
TASK = """
task: pocket_better_answer
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
dataset_path: json
test_split: test
"""
# one thing is changed in each; the reference asks through the template, in float32, eight rows at once
ARMS = {
    "one-row-per-batch": BenchmarkSettings(rows=1),
    "rows-32-per-batch": BenchmarkSettings(rows=32),
    "bfloat16": BenchmarkSettings(dtype="bfloat16"),
    "no-template": BenchmarkSettings(by_template=False),
}


def questions(n: int = QUESTIONS) -> list[dict[str, Any]]:
    """Held-out prompts with two answers of different gold reward, the better one at a random place."""
    rng = random.Random("benchmark noise")
    rows = []
    for row in pocket_rows("pocket:preferences", parse_split("test"), seed=0):
        answers = [(row["gold_chosen"], row["chosen"]), (row["gold_rejected"], row["rejected"])]
        if answers[0][0] == answers[1][0]:
            continue
        answers.sort(key=lambda answer: -answer[0])
        place = rng.randrange(2)
        choices = [answers[0][1], answers[1][1]] if place == 0 else [answers[1][1], answers[0][1]]
        rows.append({"question": row["prompt"], "choices": choices, "answer": place})
        if len(rows) == n:
            break
    return rows


def write_task(folder: Path) -> str:
    """The task file and its questions."""
    data = folder / "questions.jsonl"
    data.write_text("\n".join(map(json.dumps, questions())) + "\n", encoding="utf-8")
    file = folder / "better_answer.yaml"
    file.write_text(TASK + f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n", encoding="utf-8")
    return str(file)


def accuracy(model: Path, task: str, out: Path, settings: BenchmarkSettings) -> BenchmarkScore:
    """Each question's score of a model that is asked in one way."""
    result = run_benchmarks(str(model), [task], out, settings, allow_code=True)
    (found,) = [score for score in result.scores if score.metric == METRIC]
    return found


def beside(reference: BenchmarkScore, other: BenchmarkScore) -> dict[str, Any]:
    """The other's accuracy, its difference question by question, and how many questions turned."""
    assert other.mean is not None
    paired = compare_paired(reference.values, other.values, unit="accuracy")
    turned = sum(other.values[name] != value for name, value in reference.values.items())
    return {
        "accuracy": other.mean.to_json(),
        "difference": paired.difference.to_json(),
        "turned": turned,
        "harness_stderr": other.stderr,
    }


def measure(runs: list[Path], folder: Path) -> Mapping[str, Any]:
    """All arms on the first run, then the other runs as the reference is asked."""
    task = write_task(folder)
    first = accuracy(runs[0], task, folder / "reference", BenchmarkSettings())
    found = {"reference": beside(first, first)}
    for name, settings in ARMS.items():
        found[name] = beside(first, accuracy(runs[0], task, folder / name, settings))
    for run in runs[1:]:
        name = f"training-seed-{read_manifest(run)['seed']}"
        found[name] = beside(first, accuracy(run, task, folder / name, BenchmarkSettings()))
    return found


def main() -> None:
    """Measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(runs, Path(folder))
    seeds = [read_manifest(run)["seed"] for run in runs]
    print(write_result("benchmark_noise", {"questions": QUESTIONS, "measured": measured}, seeds=seeds))


if __name__ == "__main__":
    main()
