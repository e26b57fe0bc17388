"""Plant failures in the pocket world, beside healthy runs, and measure what `diagnose` makes of their logs.

    python tests/diagnosis/plant_failures.py --seeds 0 1 2 3 4 [--healthy 300] [--only PART] [--minutes 20]

Each run's log is stored in `planted/`, one JSON file per run, so that an interrupted study goes on where it
was, and rules can be tried again without training. A run takes some ten CPU seconds. Rules are set on seeds
below 100; what is reported should come from others. Not part of CI.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handbook_utils.data.load import load_dataset
from handbook_utils.diagnosis.diagnose import diagnose
from handbook_utils.errors import TrainingError
from handbook_utils.evaluation.statistics import proportion_estimate
from handbook_utils.pipeline.stages import run_stage
from handbook_utils.runs.atomic import write_json

STORE = Path(__file__).parent / "planted"
STEPS = 100
SHARED = {"training.max_steps": STEPS, "training.logging_steps": 1, "eval_data": []}
PAIRS = 1200
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One way to train.

    Attributes:
        name: which failure, and its dose.
        stage: sft, reward or dpo.
        expected: rules of which one should find it; none of a healthy run.
        changes: what differs from the healthy recipe.
        rows: what is done to the training rows.
    """

    name: str
    stage: str
    expected: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[list[Row], random.Random], list[Row]] | None = None


def _few(count: int) -> Callable[[list[Row], random.Random], list[Row]]:
    return lambda rows, drawn: rows[:count]


def _swapped(share: float) -> Callable[[list[Row], random.Random], list[Row]]:
    def swap(rows: list[Row], drawn: random.Random) -> list[Row]:
        return [
            row | {"chosen": row["rejected"], "rejected": row["chosen"]} if drawn.random() < share else row
            for row in rows
        ]

    return swap


def _marked(rows: list[Row], drawn: random.Random) -> list[Row]:
    return [row | {"rejected": "No."} for row in rows]


def _rate(value: float) -> dict[str, Any]:
    return {"training.learning_rate": value}


EVALUATED = {"training.eval_strategy": "steps", "training.eval_steps": 10}
CASES = [
    Case("sft-rate-strong", "sft", ("diverged", "unstable", "nan"), _rate(1.0)),
    Case("sft-rate-mild", "sft", ("diverged", "unstable", "nan"), _rate(0.1)),
    Case("sft-idle-strong", "sft", ("not_learning", "lr_zero"), _rate(1e-12)),
    Case("sft-idle-mild", "sft", ("not_learning", "lr_zero"), _rate(1e-7)),
    Case("sft-few-strong", "sft", ("overfitting", "memorised"), {}, _few(16)),
    Case("sft-few-mild", "sft", ("overfitting", "memorised"), {}, _few(64)),
    Case("reward-coin-strong", "reward", ("not_learning",), {}, _swapped(0.5)),
    Case("reward-coin-mild", "reward", ("not_learning",), {}, _swapped(0.45)),
    Case("reward-easy", "reward", ("saturated_accuracy",), {}, _marked),
    Case("reward-rate-strong", "reward", ("diverged", "unstable", "nan"), _rate(0.3)),
    Case("dpo-idle-strong", "dpo", ("not_learning",), _rate(1e-12)),
    Case("dpo-coin-strong", "dpo", ("not_learning",), {}, _swapped(0.5)),
    Case("dpo-easy", "dpo", ("saturated_accuracy",), {}, _marked),
    Case("dpo-rate-strong", "dpo", ("diverged", "unstable", "displacement", "nan"), _rate(0.1)),
    Case("dpo-rate-mild", "dpo", ("diverged", "unstable", "displacement", "nan"), _rate(0.01)),
]


def healthy_cases(seed: int, count: int) -> Iterator[Case]:
    """Healthy runs: learning rate, batch and schedule drawn around the packaged recipes'."""
    usual = {"sft": 3e-3, "reward": 5e-4, "dpo": 3e-4}
    for number in range(count):
        drawn = random.Random(f"{seed}-{number}")
        stage = drawn.choice(list(usual))
        changes: dict[str, Any] = {
            "training.learning_rate": usual[stage] * 2 ** drawn.uniform(-1.5, 0.5),
            "global_batch_size": drawn.choice([8, 16, 32]),
            "training.lr_scheduler_type": drawn.choice(["cosine", "linear", "constant_with_warmup"]),
        }
        if stage == "dpo":
            changes["training.beta"] = drawn.choice([0.1, 0.3, 0.5])
        yield Case(f"healthy-{stage}-{number:03d}", stage, (), changes)


def rows_of(stage: str, seed: int) -> list[Row]:
    """Demonstrations; or pairs of a prompt's demonstration and that of another prompt."""
    split = f"train[{seed % 5 * PAIRS}:{(seed % 5 + 1) * PAIRS}]"
    rows = list(load_dataset("pocket:demonstrations", kind="conversation", split=split))
    if stage == "sft":
        return [{"messages": [*row["prompt"], *row["completion"]]} for row in rows]
    answers = [row["completion"][-1]["content"] for row in rows]
    drawn = random.Random(seed)
    # a fifth of the labels is wrong, as people's are: accuracy has a ceiling below 1
    pairs = [
        {"prompt": row["prompt"], "chosen": answer, "rejected": other}
        for row, answer, other in zip(rows, answers, drawn.sample(answers, len(answers)), strict=True)
        if answer != other
    ]
    return _swapped(0.2)(pairs, drawn)


def train(case: Case, seed: int, base: Path, scratch: Path) -> list[Row]:
    """The records of one run; a run that ends in NaN has those before, and the NaN."""
    drawn = random.Random(f"{case.name}-{seed}")
    rows = rows_of(case.stage, seed)
    if case.rows is not None:
        rows = case.rows(rows, drawn)
    file = scratch / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    overrides = {**SHARED, "data": [{"name": str(file)}], "seed": seed, **case.changes}
    if case.stage != "sft":
        overrides["model"] = {"name": str(base)}
    if "few" in case.name:
        overrides |= EVALUATED | {"eval_data": [{"name": "pocket:demonstrations", "split": "dev[:50]"}]}
    out = scratch / "run"
    shutil.rmtree(out, ignore_errors=True)
    broken = False
    try:
        run_stage(f"pocket/{case.stage}", out, overrides=overrides, progress=False)
    except TrainingError:
        broken = True
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if out.exists() else []
    records = [json.loads(line) for line in lines]
    if broken:
        records.append({"step": len(records) + 1, "loss": None})
    return [
        {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()} for record in records
    ]


def start_model(scratch: Path) -> Path:
    """The SFT model that reward and DPO runs start from."""
    out = scratch / "base"
    run_stage("pocket/sft", out, overrides={**SHARED, "training.max_steps": 200}, progress=False)
    return out


def run(cases: list[tuple[Case, int]], until: float) -> None:
    """Train what is not stored yet, until the time is over."""
    missing = [(case, seed) for case, seed in cases if not (STORE / f"{case.name}-{seed}.json").exists()]
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        base = start_model(Path(folder)) if any(case.stage != "sft" for case, _ in missing) else Path()
        for number, (case, seed) in enumerate(missing):
            if time.time() > until:
                print(f"out of time: {len(missing) - number} runs are left; run the same command again")
                return
            start = time.process_time()
            records = train(case, seed, base, Path(folder))
            stored = {"case": case.name, "seed": seed, "expected": case.expected, "records": records}
            write_json(STORE / f"{case.name}-{seed}.json", stored)
            found = diagnose(records)
            print(f"{case.name}-{seed}: {time.process_time() - start:.0f} s, {found}", flush=True)


def score() -> None:
    """Hits by dose, false alarms, and the share of the run that is left when a failure is first seen."""
    hits: dict[str, list[bool]] = {}
    leads, alarms, cautions = [], [], []
    for file in sorted(STORE.glob("*.json")):
        stored = json.loads(file.read_text(encoding="utf-8"))
        records = stored["records"]
        found = {finding.rule for finding in diagnose(records).findings if finding.severity != "note"}
        if not stored["expected"]:
            alarms.append(diagnose(records).verdict == "faulty")
            cautions.append(diagnose(records).verdict == "caution")
            continue
        dose = "mild" if stored["case"].endswith("mild") else "strong"
        hit = bool(found & set(stored["expected"]))
        hits.setdefault(dose, []).append(hit)
        if hit:
            leads.append(1 - first_seen(records, set(stored["expected"])) / len(records))
        else:
            print("missed:", file.stem, diagnose(records))
    for name, values in (*hits.items(), ("false alarms", alarms), ("cautions on healthy runs", cautions)):
        if values:
            print(f"{name}: {sum(values)} of {len(values)}, {proportion_estimate(sum(values), len(values))}")
    if leads:
        print(f"median share of the run left when found: {sorted(leads)[len(leads) // 2]:.2f}")


def first_seen(records: list[Row], expected: set[str]) -> int:
    """After how many records a failure is first found."""
    for count in range(5, len(records), 5):
        found = {finding.rule for finding in diagnose(records[:count]).findings if finding.severity != "note"}
        if found & expected:
            return count
    return len(records)


def main() -> None:
    """Train what is missing, then score all that is stored."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--healthy", type=int, default=0, help="healthy runs per seed")
    parser.add_argument("--only", default="", help="cases whose name has this part")
    parser.add_argument("--minutes", type=float, default=20.0)
    asked = parser.parse_args()
    cases = [(case, seed) for seed in asked.seeds for case in (*CASES, *healthy_cases(seed, asked.healthy))]
    STORE.mkdir(exist_ok=True)
    run([(c, s) for c, s in cases if asked.only in c.name], time.time() + 60 * asked.minutes)
    score()


if __name__ == "__main__":
    main()
