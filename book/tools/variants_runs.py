"""The runs behind the comparison of losses: what is tried, what is kept, and in which order.

`study_variants.py` runs them and says how; this has no figures in it.
"""

from __future__ import annotations

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
from handbook_utils.errors import DataError, TrainingError
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
    prompts = f"test[:{size.test}]" if job.reports else f"dev[:{size.validation}]"
    looks = {
        "data": [{"name": "pocket:prompts", "split": prompts}],
        "every": size.every if job.reports else 10**6,  # then only before and after
        "samples": size.samples if job.reports else size.tried,
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


def finished(losses: Sequence[str], store: Store) -> list[str]:
    """Losses of which every run is there."""
    return [
        loss
        for loss in losses
        if all(store.find(job) for job in tuning(loss))
        and all((store.find(job) or {}).get("looks") for job in reported(loss, store))
    ]


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
