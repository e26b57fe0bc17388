"""Training data too large for memory: read as it is trained on, a few rows at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from datasets import IterableDataset, interleave_datasets

from handbook_utils.data.known_formats import Row
from handbook_utils.data.load import Locator, normaliser_of, origin_of
from handbook_utils.data.mixture import LeakedRowsWarning, SourceReport, example_key, warn_of_useless
from handbook_utils.data.sources import is_own, iterate_rows
from handbook_utils.errors import DataError
from handbook_utils.runs.log import warn_and_log
from handbook_utils.schema.sections import DataSource
from handbook_utils.schema.stage_table import Kind

# examples among which the next one is drawn: a stream cannot be shuffled as a whole
SHUFFLE_BUFFER = 1000
# rows of a stream that are looked at before anything is trained
FIRST_LOOK = 500


class Streamed(NamedTuple):
    """Sources as one stream.

    Attributes:
        rows: examples, shuffled within a buffer.
        reports: what is known of each source.
        first: the first examples of each source.
    """

    rows: IterableDataset
    reports: list[SourceReport]
    first: list[list[Row]]


def stream_sources(
    sources: Sequence[DataSource], run: Locator, *, kind: Kind, seed: int, tested: Collection[str] = ()
) -> Streamed:
    """Stream the sources of a recipe; the same seed gives the same order.

    Several sources are drawn from at random, each as often as its share of the weights: how many rows they
    have is not known. The stream ends when every source has been gone through, shorter ones again.

    Args:
        sources: `data` of a recipe.
        run: finds what an earlier run left.
        kind: as in `load_dataset`.
        seed: of the order.
        tested: keys (`mixture.example_key`) of examples that are left out, as they are tested on.
    Raises:
        DataError: a first row is not as it must be. Later ones are checked when they are reached.
    """
    parts, reports, first = [], [], []
    for source in sources:
        report, told, examples = _first_look(source, run, kind=kind, seed=seed)
        reports.append(report)
        first.append(examples)
        left_out = frozenset() if source.allow_test else frozenset(tested)
        given = {"source": source, "run": run, "kind": kind, "seed": seed, "left_out": left_out, "told": told}
        parts.append(IterableDataset.from_generator(_examples, gen_kwargs=given))
    if len(parts) == 1:
        return Streamed(parts[0].shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER), reports, first)
    total = sum(source.weight for source in sources)
    mixed = interleave_datasets(
        parts,
        probabilities=[source.weight / total for source in sources],
        seed=seed,
        stopping_strategy="all_exhausted",
    )
    return Streamed(mixed.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER), reports, first)


def _first_look(
    source: DataSource, run: Locator, *, kind: Kind, seed: int
) -> tuple[SourceReport, set[str], list[Row]]:
    """Read one row, so that a wrong source is told before any model is loaded, and look at some more."""
    normalise, origin = normaliser_of(source, run, kind=kind), origin_of(source, run, seed=seed)
    rows = iterate_rows(origin)
    examples = normalise(*next(rows))
    assert normalise.found is not None
    with suppress(DataError):  # what is wrong with a later row is told when the stream reaches it
        for number, row in islice(rows, FIRST_LOOK - 1):
            examples += normalise(number, row)
    if not is_own(origin):
        normalise.unread.tell(f" in its first {FIRST_LOOK} rows")
        warn_of_useless(source.label, examples[:FIRST_LOOK], where=f" of its first {FIRST_LOOK} rows")
    report = SourceReport(source.label, source.split, normalise.found.format, normalise.found.because)
    return report, normalise.unread.told, examples[:FIRST_LOOK]


def _examples(
    source: Any, run: Any, kind: Kind, seed: int, left_out: frozenset[str], told: set[str]
) -> Iterator[Row]:
    normalise, origin = normaliser_of(source, run, kind=kind), origin_of(source, run, seed=seed)
    normalise.unread.told |= told
    leaks = False
    for number, row in iterate_rows(origin):
        for example in normalise(number, row):
            if not left_out or example_key(example, kind) not in left_out:
                yield example
            elif not leaks:
                leaks = True
                message = (
                    f"{source.label}: row {number} of the stream has a prompt of `eval_data`: left out, as "
                    "all others that have one."
                )
                warn_and_log(message, LeakedRowsWarning)
        if normalise.unread.is_new and not is_own(origin):
            normalise.unread.tell(f" from row {number:,} on")
