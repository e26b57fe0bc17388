"""One function for every dataset: by `pocket:` name, local file or folder, earlier run, or hub name."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Value
from pydantic import ValidationError

from handbook_utils.data.formats import GOLD_COLUMNS, Normaliser, prompt_hash
from handbook_utils.data.known_formats import Row
from handbook_utils.data.mixture import (
    SourceReport,
    draw_rows,
    warn_of_repeats,
    warn_of_useless,
    without_test_rows,
)
from handbook_utils.data.reading.arrow import rows_at
from handbook_utils.data.row_reader import TEMPLATE_OPTIONS
from handbook_utils.data.sources import Origin, is_own, read_rows
from handbook_utils.data.split import parse_split
from handbook_utils.errors import DataError, suggest
from handbook_utils.libraries.exact_json import ExactJson
from handbook_utils.libraries.versions import naming_untested_versions
from handbook_utils.processes import without_collector
from handbook_utils.schema.sections import DataSource, Source
from handbook_utils.schema.stage_table import Kind

# rows of a piece in Arrow: of all rows together a column may not hold more than 2 GiB of text
BATCH = 10_000
# columns that some rows may lack, and what stands there then; TRL unpacks the latter as it is
OPTIONAL: dict[str, Any] = {"tools": None, TEMPLATE_OPTIONS: {}}
_MESSAGES = [{"role": Value("string"), "content": Value("string")}]
_COLUMNS: dict[str, Any] = {
    "text": Value("string"),
    "prompt_id": Value("string"),
    "prompt": _MESSAGES,
    "completion": _MESSAGES,
    "chosen": _MESSAGES,
    "rejected": _MESSAGES,
    "label": Value("bool"),
    # as text underneath: schemas of tools, calls of them, and options of templates differ from row to row
    **dict.fromkeys(OPTIONAL, ExactJson()),
    **dict.fromkeys(GOLD_COLUMNS, Value("float64")),
}


class EvenPairsWarning(UserWarning):
    """Pairs are used whose ratings do not say that the chosen answer is better."""


class Locator(Protocol):
    """What reading needs of a run folder."""

    def locate(self, source: Source, /) -> str:
        """Where a source's `name` or `from` is to be read."""


class ResolvedInputs:
    """Locates sources among run folders that are known already, where this run has no folder yet."""

    def __init__(self, inputs: Mapping[str, Path] | None = None) -> None:
        self._inputs = inputs or {}

    def locate(self, source: Source, /) -> str:
        """Return the name, or the folder of the run."""
        return str(source.name if source.from_ is None else self._inputs[source.from_])


class SourceOptions(TypedDict, total=False):
    """Fields of a recipe's data source that `load_dataset` takes as well."""

    split: str
    revision: str | None
    subset: str | None
    format: str
    columns: dict[str, str]
    pairs: Mapping[str, Any]
    weight: float
    max_rows: int | None


@naming_untested_versions
def load_dataset(name: str, *, kind: Kind, seed: int = 0, **options: Unpack[SourceOptions]) -> Dataset:
    """Load rows and bring them into one of five forms (see `formats.normalise_rows`).

    Args:
        name: `pocket:...`, a .jsonl/.json/.csv/.tsv/.parquet/.arrow file (the texts also as .gz), a folder
            (of such files, by splits as its README or their names tell; written by `Dataset.save_to_disk`;
            or of an earlier run), or a dataset's name on the hub.
        kind: "text", "conversation", "preference", "feedback" or "prompt".
        seed: of a sample (`weight`, `max_rows`), and of the order and answers of `pocket:` data.
        options: as under `data:` in a recipe: `split`, with an optional slice such as "train[:200]";
            `revision` and `subset` of a hub name; `format` and `columns` where names do not tell; `pairs`,
            such as {"rating": "helpfulness"}, where answers are rated; `weight`; `max_rows`.
    Returns:
        A dataset in memory. Prompts are unique: further rows of one prompt are left out, with a warning
        unless their `prompt_id` says that they are of one prompt.
    Raises:
        DataError: names what is missing or wrong, where, and the nearest valid name.
    """
    unknown = sorted(set(options) - SourceOptions.__optional_keys__)
    if unknown:
        known = SourceOptions.__optional_keys__
        raise DataError(f"load_dataset has no option '{unknown[0]}'. {suggest(unknown[0], known)}")
    try:
        source = DataSource.model_validate({"name": name, **options})
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    return load_sources([source], ResolvedInputs(), kind=kind, seed=seed)


def load_sources(sources: Sequence[DataSource], run: Locator, *, kind: Kind, seed: int) -> Dataset:
    """Load every source of a recipe's `data` and join them in order.

    Raises:
        DataError: as `load_dataset`; or two sources hold one prompt id for different prompts.
    """
    return to_dataset(load_mixture(sources, run, kind=kind, seed=seed).examples)


@dataclass(frozen=True)
class Mixture:
    """Examples of all sources, in their order, and what each source gave."""

    examples: list[Row]
    reports: list[SourceReport]


def load_mixture(
    sources: Sequence[DataSource], run: Locator, *, kind: Kind, seed: int, tested: Collection[str] = ()
) -> Mixture:
    """Load the sources of a recipe, each as often as its weight says.

    Args:
        sources: `data` or `eval_data` of a recipe.
        run: finds what an earlier run left.
        kind: as in `load_dataset`.
        seed: of the samples.
        tested: keys (`mixture.example_key`) of examples that are left out, as they are tested on; a source
            that says `allow_test` keeps them.
    Raises:
        DataError: as `load_dataset`; or nothing is left.
    """
    with without_collector():
        parts = [_load_source(source, run, kind=kind, seed=seed, tested=tested) for source in sources]
    examples = [example for part, _ in parts for example in part]
    if kind == "prompt":
        name = run.locate(sources[0]) if len(sources) == 1 else "data"
        examples = _unique_prompts(examples, name)
    if not examples and not any(report.left_out for _, report in parts):
        raise DataError("every pair of `data` is a tie, so nothing is left to train on. See its `pairs`.")
    if not examples:
        raise DataError(
            "every row of `data` is in `eval_data` as well, so nothing is left to train on. "
            "Test on other rows, or say `allow_test: true` beside the source."
        )
    return Mixture(examples, [report for _, report in parts])


def to_dataset(rows: Sequence[Row]) -> Dataset:
    """Examples as a dataset; a column that not every one of them has is no column of the whole."""
    columns = [name for name in _COLUMNS if name in rows[0] or name in OPTIONAL]
    kept = [name for name in columns if (any if name in OPTIONAL else all)(name in row for row in rows)]
    features = Features({name: _feature(name, rows) for name in kept})
    parts = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
    return arrow_dataset((_record_batch(part, features) for part in parts), features=features)


def arrow_dataset(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema | None = None, features: Features | None = None
) -> Dataset:
    """A dataset of Arrow's batches as they are; without any, `schema` says which columns it has.

    It is named by a checksum of their memory. `datasets` would copy it more than once for that.
    """
    table = pa.Table.from_batches(batches, schema)
    digest = hashlib.blake2b(str(table.schema).encode(), digest_size=8)
    for column in table.columns:
        for buffer in (part for chunk in column.chunks for part in chunk.buffers() if part is not None):
            digest.update(buffer)
    # columns grow by doubling, and what they grew out of is kept for the next ones otherwise
    pa.default_memory_pool().release_unused()
    info = None if features is None else DatasetInfo(features=features)
    return Dataset(table, info=info, fingerprint=digest.hexdigest())


def _record_batch(rows: Sequence[Row], features: Features) -> pa.RecordBatch:
    """Some examples as Arrow keeps them; `Dataset.from_dict` looks at each value in Python first."""
    columns = {name: [row.get(name, OPTIONAL.get(name)) for row in rows] for name in features}
    for name, feature in features.items():
        if isinstance(feature, ExactJson):
            columns[name] = [feature.encode_example(value) for value in columns[name]]
    return pa.RecordBatch.from_pydict(columns, schema=features.arrow_schema)


def origin_of(source: DataSource, run: Locator, *, seed: int) -> Origin:
    """What a source of a recipe reads."""
    return Origin(run.locate(source), parse_split(source.split), seed, source.revision, source.subset)


def normaliser_of(source: DataSource, run: Locator, *, kind: Kind) -> Normaliser:
    """What turns a source's rows into examples."""
    return Normaliser(
        kind=kind, format=source.format, name=run.locate(source), columns=source.columns, pairs=source.pairs
    )


def drawn_rows(source: DataSource, rows: int, *, seed: int) -> list[int]:
    """Positions of the rows that a source gives, of the `rows` it has."""
    name = f"{seed} {source.label} {source.split}"
    return draw_rows(rows, weight=source.weight, max_rows=source.max_rows, seed=name)


def check_asked_once(source: DataSource) -> None:
    """Refuse a weight that would ask a prompt again.

    Raises:
        DataError: it is above 1.
    """
    if source.weight > 1:
        raise DataError(
            f"{source.label}: a prompt is asked once, so its weight is at most 1. Raise `samples`."
        )


def _examples_by_row(
    normalise: Normaliser, numbers: Sequence[int], rows: Sequence[Row], wanted: list[int], *, frees: bool
) -> dict[int, list[Row]]:
    """Examples of the wanted rows by their places; a list of rows that nobody else reads is emptied."""
    by_row: dict[int, list[Row]] = {}
    for place, row in zip(wanted, rows_at(rows, wanted), strict=True):
        by_row[place] = normalise(numbers[place], row)
        if frees and isinstance(rows, list):
            rows[place] = None  # a million rows need not be there twice
    return by_row


def _load_source(
    source: DataSource, run: Locator, *, kind: Kind, seed: int, tested: Collection[str]
) -> tuple[list[Row], SourceReport]:
    if kind == "prompt":
        check_asked_once(source)
    origin = origin_of(source, run, seed=seed)
    normalise = normaliser_of(source, run, kind=kind)
    numbers, rows = normalise.gathered(*read_rows(origin))
    drawn = drawn_rows(source, len(rows), seed=seed)
    by_row = _examples_by_row(normalise, numbers, rows, sorted(set(drawn)), frees=not is_own(origin))
    if not is_own(origin):
        normalise.unread.tell()
    if normalise.unread.left_out == len(by_row):
        raise DataError(f"{origin.name}: every row is marked as not to be learned, so nothing is left.")
    made = [example for position in drawn for example in by_row[position]]
    kept = without_test_rows(made, tested, kind=kind) if tested and not source.allow_test else made
    assert normalise.found is not None  # draw_rows gives at least one
    report = SourceReport(
        source=source.label,
        split=source.split,
        format=normalise.found.format,
        because=normalise.found.because,
        rows=len(rows),
        used=len(drawn),
        examples=len(kept),
        left_out=len(made) - len(kept),
        ties=normalise.ties or None,
    )
    _tell_even_pairs(source, normalise.even, len(by_row))
    if not is_own(origin):
        warn_of_useless(source.label, made)
    return kept, report


def _tell_even_pairs(source: DataSource, even: int, rows: int) -> None:
    """Warn of pairs whose ratings say that neither answer is better, or the rejected one."""
    if even:
        message = (
            f"{source.label}: in {even:,} of {rows:,} pairs the chosen answer is rated no "
            "higher than the rejected one. They are used as they are; `pairs: {margin: 0}` beside the source "
            "leaves them out."
        )
        warnings.warn(message, EvenPairsWarning, stacklevel=2)


def _unique_prompts(rows: Sequence[Row], name: str) -> list[Row]:
    """Keep the first row of each prompt id: samples and their seeds are named by it."""
    first: dict[str, Row] = {}
    unnamed = 0
    for number, row in enumerate(rows, start=1):
        earlier = first.setdefault(row["prompt_id"], row)
        # samples of one prompt have its id, and say by it that they are
        unnamed += earlier is not row and row["prompt_id"] == prompt_hash(row["prompt"])
        if earlier["prompt"] != row["prompt"]:
            raise DataError(f"{name}: row {number} has the prompt_id '{row['prompt_id']}' of another prompt.")
    warn_of_repeats(unnamed, len(first))
    return list(first.values())


def _feature(name: str, rows: Sequence[Row]) -> Any:
    """A column's type; messages that call tools keep their own keys, where a struct would fill in nulls."""
    if _COLUMNS[name] is _MESSAGES and any(len(message) > 2 for row in rows for message in row[name]):
        return ExactJson()
    return _COLUMNS[name]
