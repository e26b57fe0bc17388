"""What a training stage reads: its rows, held-out rows, and the promise that the two do not meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from datasets import Dataset, IterableDataset

from handbook_utils.data.fingerprint import dataset_fingerprint
from handbook_utils.data.formats import prompt_hash
from handbook_utils.data.known_formats import Row
from handbook_utils.data.load import Locator, Mixture, load_mixture, to_dataset
from handbook_utils.data.mixture import LeakedRowsWarning, SourceReport, example_key
from handbook_utils.data.prompts import iterate_prompts
from handbook_utils.data.stream import stream_sources
from handbook_utils.runs.log import warn_and_log
from handbook_utils.schema.sampling import HeldOutSamples
from handbook_utils.schema.stage_table import STAGES
from handbook_utils.schema.training import PolicyRecipe, TrainingRecipe

# rows of a source that are looked at before training
SAMPLE = 500


@dataclass(frozen=True)
class Sample:
    """The first examples of one source, to be looked at before training."""

    name: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class TrainingData:
    """Rows of a training stage.

    Attributes:
        train: examples to train on, in memory or, where the recipe says `streaming`, as a stream.
        evaluation: held-out examples; None where the recipe has no `eval_data`.
        sources: what each source of `data` gave.
        samples: the first examples of each source of `data` and `eval_data`.
    """

    train: Dataset | IterableDataset
    evaluation: Dataset | None
    sources: list[SourceReport]
    samples: list[Sample] = field(default_factory=list)

    @property
    def rows(self) -> int | None:
        """Training examples; None on a stream."""
        return len(self.train) if isinstance(self.train, Dataset) else None

    @property
    def left_out(self) -> int | None:
        """Training examples left out because they are tested on; None on a stream."""
        return None if self.rows is None else sum(report.left_out or 0 for report in self.sources)

    def notes(self) -> dict[str, Any]:
        """What the manifest keeps: exact counts by source, and a checksum of what is trained on."""
        notes: dict[str, Any] = {"sources": [report.to_json() for report in self.sources]}
        if isinstance(self.train, Dataset):
            notes |= {
                "train_rows": self.rows,
                "train_fingerprint": dataset_fingerprint(self.train),
                "test_rows_left_out": self.left_out,
            }
        return notes


def load_training_data(recipe: TrainingRecipe, run: Locator) -> TrainingData:
    """Read a recipe's `data` and `eval_data`; a training row that is tested on is left out, and said.

    Two rows are the same when their prompts are (of plain text: the whole text), to the letter.

    Raises:
        DataError: as `load_dataset`; or nothing is left to train on.
    """
    kind = STAGES[recipe.stage].kind
    assert kind is not None  # of every training stage
    evaluation, tested = None, frozenset[str]()
    samples: list[Sample] = []
    if recipe.eval_data:
        held_out = load_mixture(recipe.eval_data, run, kind=kind, seed=recipe.seed)
        evaluation = to_dataset(held_out.examples)
        samples = _samples(held_out)
        tested = frozenset(example_key(example, kind) for example in held_out.examples)
    tested |= _sampled_prompts(recipe, run)
    if recipe.streaming:
        streamed = stream_sources(recipe.data, run, kind=kind, seed=recipe.seed, tested=tested)
        first = [Sample(r.source, rows) for r, rows in zip(streamed.reports, streamed.first, strict=True)]
        return TrainingData(streamed.rows, evaluation, streamed.reports, [*first, *samples])
    mixture = load_mixture(recipe.data, run, kind=kind, seed=recipe.seed, tested=tested)
    train = to_dataset(mixture.examples)
    data = TrainingData(train, evaluation, mixture.reports, [*_samples(mixture), *samples])
    if data.left_out:
        tests = "`eval_data` or `held_out_samples`" if _section(recipe) else "`eval_data`"
        message = f"{data.left_out:,} training examples have a prompt of {tests}: left out."
        warn_and_log(message, LeakedRowsWarning)
    return data


def _section(recipe: TrainingRecipe) -> HeldOutSamples | None:
    return recipe.held_out_samples if isinstance(recipe, PolicyRecipe) else None


def _sampled_prompts(recipe: TrainingRecipe, run: Locator) -> frozenset[str]:
    """Keys of the prompts that are sampled while the stage trains, which is not to train on them."""
    section = _section(recipe)
    if section is None:
        return frozenset()
    prompts = iterate_prompts(section.data, run, seed=recipe.seed)
    return frozenset(prompt_hash(prompt) for _, prompt in prompts)


def _samples(mixture: Mixture) -> list[Sample]:
    """The first examples of each source, which follow one another in a mixture."""
    begins = accumulate((report.examples or 0 for report in mixture.reports), initial=0)
    counts = (min(report.examples or 0, SAMPLE) for report in mixture.reports)
    parts = zip(mixture.reports, begins, counts, strict=False)
    return [
        Sample(report.source, mixture.examples[begin : begin + count])
        for report, begin, count in parts
        if count
    ]
