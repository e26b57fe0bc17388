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
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from handbook_utils import run_stage
from handbook_utils.errors import DataError, HandbookError, TrainingError, suggest
from handbook_utils.evaluation.statistics import mean_over_seeds
from handbook_utils.reporting.results import write_result
from handbook_utils.runs.atomic import atomic_file
from handbook_utils.runs.state import read_metrics

TUNING, FRESH = (0, 1), (101, 102, 103, 104, 105)
LEARNING_RATES = (2.5e-4, 5e-4, 1e-3)
SUMS = (0.1, 0.3, 1.0)
MEANS = (3.0, 10.0, 30.0)  # of losses over means: an answer has about thirty tokens
Look = Mapping[str, float]
Run = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One loss.

    Attributes:
        recipe: the packaged recipe that it changes.
        training: fields of the trainer.
        betas: of the grid; (None,) for a loss without one.
        rows: training rows that a pair becomes.
    """

    recipe: str = "pocket/dpo"
    training: Mapping[str, Any] = field(default_factory=dict)
    betas: Sequence[float | None] = SUMS
    rows: int = 1


# the most used ones first: where time runs out, the last ones are left out
VARIANTS = {
    "dpo": Variant(),
    "ipo": Variant(training={"loss_type": "ipo"}, betas=(1.0, 3.0, 10.0)),
    "kto": Variant("pocket/kto", rows=2),
    "orpo": Variant("pocket/orpo"),
    "apo-zero": Variant(training={"loss_type": "apo_zero"}),
    "simpo": Variant("pocket/simpo", betas=MEANS),
    "dpo-norm": Variant(training={"loss_type": "sigmoid_norm"}, betas=MEANS),
    "dpo-nll": Variant(training={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}),
    "chosen-only": Variant(training={"loss_type": "sft"}, betas=(None,)),
    "hinge": Variant(training={"loss_type": "hinge"}),
    "robust": Variant(training={"loss_type": "robust", "label_smoothing": 0.1}),
    "sppo": Variant(training={"loss_type": "sppo_hard"}),
    "nca": Variant(training={"loss_type": "nca_pair"}),
    "bco": Variant(training={"loss_type": "bco_pair"}),
    "exo": Variant(training={"loss_type": "exo_pair", "label_smoothing": 1e-3}),
    "discopop": Variant(training={"loss_type": "discopop"}),
    "apo-down": Variant(training={"loss_type": "apo_down"}),
    "aot": Variant(training={"loss_type": "aot"}),
}


@dataclass(frozen=True)
class Size:
    """How much is trained and measured.

    Attributes:
        demonstrations: of the SFT model that every run starts from.
        pairs: of its answers, compared by the annotator; 16 a step.
        validation: prompts that settings are chosen on, with `tried` answers each.
        test: prompts of the comparison, with `samples` answers each.
        every: steps from one look to the next in the comparison.
    """

    demonstrations: int = 4000
    pairs: int = 640
    validation: int = 150
    tried: int = 2
    test: int = 200
    samples: int = 4
    every: int = 10


TRIAL = Size(demonstrations=320, pairs=32, validation=12, test=12, every=1)


@dataclass(frozen=True)
class Job:
    """One training run: a loss at a setting, on a seed, to choose by or to report."""

    loss: str
    learning_rate: float
    beta: float | None
    seed: int

    @property
    def reports(self) -> bool:
        """Whether it is a run of the comparison."""
        return self.seed not in TUNING


class Store:
    """The finished runs of a folder, in `runs.jsonl`: the size in the first line, then a line for each.

    Raises:
        DataError: the folder holds runs of another size.
    """

    def __init__(self, out: Path, size: Size) -> None:
        self.path, self.lines = out / "runs.jsonl", [asdict(size)]
        if self.path.is_file():
            kept = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            if kept[0] != self.lines[0]:
                raise DataError(f"{self.path}: holds runs of another size, {kept[0]}. Take another --out.")
            self.lines = kept

    def find(self, job: Job) -> Run | None:
        """The finished run, if there is one."""
        wanted = asdict(job)
        return next((line for line in self.lines[1:] if wanted.items() <= line.items()), None)

    def add(self, job: Job, found: Mapping[str, Any]) -> None:
        """Keep a run: the file is written anew under another name, and renamed."""
        self.lines.append({**asdict(job), **found})
        with atomic_file(self.path) as place:
            place.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    @property
    def seconds(self) -> float:
        """Processor time of all that is kept."""
        return float(sum(line["seconds"] + line["preparation"] for line in self.lines[1:]))


def prepare(seed: int, out: Path, size: Size) -> Path:
    """The SFT model of a seed and the preferences on its answers, made once; returns their folder."""
    folder = out / f"seed-{seed}"
    prompts = f"train[9000:{9000 + size.pairs}]"
    steps: dict[str, dict[str, Any]] = {
        "sft": {"data.0.split": f"train[:{size.demonstrations}]", "eval_data": []},
        "samples": {"data.0.split": prompts},
        "preferences": {},
    }
    for name, changes in steps.items():
        run_stage(f"pocket/{name}", folder / name, overrides=changes, seed=seed, progress=False)
    return folder


def changes_of(job: Job, size: Size, folder: Path) -> dict[str, Any]:
    """What a run changes in its packaged recipe."""
    variant = VARIANTS[job.loss]
    prompts, samples = (
        (f"test[:{size.test}]", size.samples)
        if job.reports
        else (
            f"dev[:{size.validation}]",
            size.tried,
        )
    )
    looks = {
        "data": [{"name": "pocket:prompts", "split": prompts}],
        "every": size.every if job.reports else 10**6,  # then only before and after
        "samples": samples,
        "scorers": {"gold": {"name": "pocket:gold"}},
    }
    changes: dict[str, Any] = {
        "model": {"from": "sft"},
        "data": [{"from": "preferences"}],
        "eval_data": [],
        "held_out_samples": looks,
        "global_batch_size": 16 * variant.rows,
        "training.learning_rate": job.learning_rate,
    }
    changes |= {f"training.{name}": value for name, value in variant.training.items()}
    if job.beta is not None:
        changes["training.beta"] = job.beta
    if variant.recipe == "pocket/dpo":
        changes["reference_logps"] = str((folder / "reference").resolve())
    return changes


def train(job: Job, out: Path, size: Size) -> dict[str, Any]:
    """Run one training; its looks at held-out answers, and processor time: its own, and of what it needed."""
    began = time.process_time()
    folder = prepare(job.seed, out, size)
    prepared = time.process_time()
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    try:
        run_stage(
            VARIANTS[job.loss].recipe,
            place,
            overrides=changes_of(job, size, folder),
            seed=job.seed,
            progress=False,
        )
        looks = [look_of(record) for record in read_metrics(place) if "held_out/score" in record]
    except TrainingError as error:
        looks = []
        print(f"{job}: {error}", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    seconds = {"seconds": time.process_time() - prepared, "preparation": prepared - began}
    return {"looks": looks} | {name: round(value, 2) for name, value in seconds.items()}


def look_of(record: Mapping[str, Any]) -> Look:
    """What is kept of a look."""
    names = {"gold": "score", "kl": "kl", "words": "words"}
    return {"step": record["step"]} | {name: record[f"held_out/{key}"] for name, key in names.items()}


def grid(loss: str) -> list[tuple[float, float | None]]:
    """The settings of a loss."""
    return list(itertools.product(LEARNING_RATES, VARIANTS[loss].betas))


def tuning(loss: str) -> list[Job]:
    """The runs that choose a loss's setting."""
    return [Job(loss, rate, beta, seed) for rate, beta in grid(loss) for seed in TUNING]


def validated(loss: str, store: Store) -> dict[tuple[float, float | None], tuple[float, float]]:
    """By setting: gold reward and KL at the end on validation prompts, mean over the tuning seeds."""
    found = {}
    for rate, beta in grid(loss):
        ends = [(store.find(Job(loss, rate, beta, seed)) or {})["looks"][-1:] for seed in TUNING]
        if all(ends):  # a run whose loss was no number has no look at its end
            means = [float(np.mean([end[0][name] for end in ends])) for name in ("gold", "kl")]
            found[rate, beta] = (means[0], means[1])
    return found


def best_setting(loss: str, store: Store) -> tuple[float, float | None]:
    """The setting with the highest gold reward on validation prompts."""
    found = validated(loss, store)
    return max(found, key=lambda setting: found[setting][0])


def reported(loss: str, store: Store) -> list[Job]:
    """The runs of the comparison, at the setting that was chosen."""
    rate, beta = best_setting(loss, store)
    return [Job(loss, rate, beta, seed) for seed in FRESH]


def jobs(losses: Sequence[str], store: Store) -> Iterator[Job]:
    """All runs, loss by loss; a loss's comparison once its setting can be chosen."""
    for loss in losses:
        yield from tuning(loss)
        yield from reported(loss, store)


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


def finished(losses: Sequence[str], store: Store) -> list[str]:
    """Losses of which every run is there."""
    return [
        loss
        for loss in losses
        if all(store.find(job) for job in tuning(loss))
        and all((store.find(job) or {}).get("looks") for job in reported(loss, store))
    ]


def results(losses: Sequence[str], store: Store) -> dict[str, Any]:
    """All figures of the finished losses, as the book reads them."""
    compared = max(1, len(losses) - 1)
    measured = {loss: compare(loss, store, compared) for loss in losses}
    looks = {loss: [(store.find(job) or {})["looks"] for job in reported(loss, store)] for loss in losses}
    starts = [each[0] for each in looks["dpo"]]
    measured["start"] = {
        name: over_seeds([start[name] for start in starts], name) for name in ("gold", "words")
    }
    measured["study"] = {
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


def run_all(losses: Sequence[str], store: Store, out: Path, size: Size, minutes: float) -> bool:
    """Run what is missing, with a bar, until the time is up; returns whether all is there."""
    total = sum(len(tuning(loss)) + len(FRESH) for loss in losses)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    began, console = time.monotonic(), Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("losses", total=total)
        for number, job in enumerate(jobs(losses, store), start=1):
            bar.update(task, description=f"{job.loss}, seed {job.seed}")
            if store.find(job) is None:
                if time.monotonic() - began > 60 * minutes:
                    return False
                found = train(job, out, size)
                store.add(job, found)
                if not console.is_terminal:
                    print(f"{number} of {total}: {job.loss}, {found['seconds']} s", flush=True)
            bar.advance(task)
    return True


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
