"""Where rows come from: `pocket:` names, files, folders, earlier runs, the hub; in memory or as a stream."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from handbook_utils.data.known_formats import Row
from handbook_utils.data.pocket_rows import PREFIX, pocket_rows
from handbook_utils.data.reading.arrow import DatasetRows, TableReader
from handbook_utils.data.reading.files import PICKLES, SUFFIXES, data_suffix, iterate_file, iterate_files
from handbook_utils.data.reading.folders import find_splits
from handbook_utils.data.reading.originals import original_rows, warn_of_guesses
from handbook_utils.data.split import Split
from handbook_utils.environment import is_offline
from handbook_utils.errors import DataError, suggest
from handbook_utils.runs.state import read_manifest, require_finished
from handbook_utils.schema.stage_table import STAGES

LOGGER = logging.getLogger("handbook_utils")
# names that an error lists
SHOWN_FILES = 5
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Origin:
    """What to read.

    Attributes:
        name: `pocket:...`, a file, a folder, or the name of a dataset on the hub.
        split: the split and slice.
        seed: of the order and answers of `pocket:` data.
        revision: branch, tag or commit of a hub name.
        subset: the hub's configuration name, where a dataset has several; of a run, one of its tables.
    """

    name: str
    split: Split
    seed: int = 0
    revision: str | None = None
    subset: str | None = None

    @property
    def is_hub(self) -> bool:
        """Whether the name can only be one of the hub."""
        return not (self.name.startswith(PREFIX) or self.path.exists() or _looks_like_a_path(self.name))

    @property
    def path(self) -> Path:
        """The name as a path."""
        return Path(self.name).expanduser()


def is_own(origin: Origin) -> bool:
    """Whether the rows were written by this package, whose other columns are for other stages."""
    folder = origin.path if origin.path.is_dir() else origin.path.parent
    return origin.name.startswith(PREFIX) or (folder / "manifest.json").exists()


def read_rows(origin: Origin) -> tuple[int, Sequence[Row]]:
    """Read a slice into memory.

    Returns:
        The number of its first row, counted from 1 over the whole split, and the rows.
    Raises:
        DataError: names what is missing or wrong, where, and the nearest valid name.
    """
    name, split = origin.name, origin.split
    if name.startswith(PREFIX):
        return 1, pocket_rows(name, split, seed=origin.seed)
    opened = _open(origin, stream=False)
    rows = opened if isinstance(opened, DatasetRows) else list(opened)
    if len(rows) == 0:
        raise DataError(f"{name}: no rows in '{split.base}'.")
    first, end = split.bounds(len(rows), name=name)
    return first + 1, rows[first:end]


def iterate_rows(origin: Origin) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of a slice, holding a few rows at a time.

    Raises:
        DataError: as `read_rows`; or the source, or its slice, cannot be read as a stream.
    """
    name, split = origin.name, origin.split
    if name.startswith(PREFIX):
        yield from enumerate(pocket_rows(name, split, seed=origin.seed), start=1)
        return
    first, end = _stream_bounds(name, split)
    if data_suffix(origin.path) == ".json":
        raise DataError(f"{name}: a .json file is one value and cannot be streamed. Write it as .jsonl.")
    number = first
    for number, row in enumerate(islice(_open(origin, stream=True), first, end), start=first + 1):
        yield number, row
    if number == first == 0:
        raise DataError(f"{name}: no rows in '{split.base}'; it is empty.")
    if number == first or (end is not None and number < end):
        raise DataError(f"{name}: '{split}' asks for rows that are not there: they end at {number:,}.")


def _stream_bounds(name: str, split: Split) -> tuple[int, int | None]:
    bounds = (split.start, split.stop or "")
    if any(bound.endswith("%") for bound in bounds):
        raise DataError(f"{name}: a stream is not counted, so '{split}' needs rows in place of a percentage.")
    return int(split.start), None if split.stop is None else int(split.stop)


def _open(origin: Origin, *, stream: bool) -> Iterable[Row]:
    """The rows of a whole split: of a `Dataset`, or something to go through once."""
    path = origin.path
    if origin.is_hub:
        return _open_hub(origin, origin.name, stream=stream)
    if path.is_dir():
        return _open_folder(origin, path, stream=stream)
    _no_subset(origin)
    _only_train(origin)
    return iterate_file(path)


def _looks_like_a_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~")) or name.endswith((*SUFFIXES, *PICKLES, ".py")) or name.count("/") > 1
    )


def _no_subset(origin: Origin) -> None:
    if origin.subset is not None:
        raise DataError(f"{origin.name}: `subset` names a part of a hub dataset, and this is a file or run.")


def _only_train(origin: Origin) -> None:
    if origin.split.base != "train":
        raise DataError(
            f"{origin.name}: one file has the one split 'train', not '{origin.split.base}'. "
            f"For a part of it write a slice, such as train[:200]."
        )


def _open_folder(origin: Origin, path: Path, *, stream: bool) -> Iterable[Row]:
    if (path / f"{path.resolve().name}.py").exists():
        raise DataError(_script_message(str(path)))
    if index := _index_of_files(path / "dataset_info.json"):
        raise DataError(
            f"{path}: a folder of LLaMA-Factory, whose dataset_info.json lists {index}. Name one of these."
        )
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        return DatasetRows(_saved(origin, path), origin.name)
    if (path / "manifest.json").exists():
        _only_train(origin)
        return _run_table(path, origin.subset)
    found = find_splits(path, origin.subset)
    if found.splits:
        files = found.files(origin.split.base, origin.name)
        if any(data_suffix(file) in SUFFIXES for file in files):
            return iterate_files(files, origin.name)
    if any(path.glob("*.md")) or any(path.glob("*/*.*")):
        return _open_hub(origin, str(path), stream=stream)  # a hub repository that was copied here
    raise DataError(f"{path}: holds no data file ({', '.join(SUFFIXES)}) and no dataset saved to disk.")


def _index_of_files(file: Path) -> str:
    """The data files that LLaMA-Factory's index names; "" where it is none."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8")).values() if file.is_file() else ()
        names = [entry["file_name"] for entry in entries if isinstance(entry, dict) and "file_name" in entry]
    except (OSError, ValueError, AttributeError):
        return ""
    more = f" and {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else ""
    return ", ".join(map(repr, names[:SHOWN_FILES])) + more


def _saved(origin: Origin, path: Path) -> Dataset:
    """A dataset or a dictionary of them, as `save_to_disk` leaves it; memory-mapped, not read."""
    try:
        saved = datasets.load_from_disk(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: a damaged dataset ({_first_line(error)}). Save it to disk again.") from None
    if isinstance(saved, Dataset):
        _only_train(origin)
        return saved
    if origin.split.base not in saved:
        raise DataError(f"{path}: no split '{origin.split.base}'. {suggest(origin.split.base, saved)}")
    return saved[origin.split.base]


def _run_table(path: Path, subset: str | None) -> Iterator[Row]:
    name = read_manifest(path)["stage"]
    stage = STAGES.get(name)
    if stage is None or stage.table is None:
        kinds = ", ".join(sorted(stage.name for stage in STAGES.values() if stage.table))
        raise DataError(f"{path}: a run of stage '{name}' holds no rows to read. Stages that do: {kinds}.")
    tables = {stage.table, *stage.other_tables}
    if subset is not None and subset not in tables:
        raise DataError(f"{path}: a run of stage '{name}' has no table '{subset}'. {suggest(subset, tables)}")
    require_finished(path)
    table = path / (subset or stage.table)
    file = table.with_suffix(".parquet")
    if file.exists() or not table.is_dir():
        return iterate_file(file)
    return iterate_files(
        (part for part in sorted(table.iterdir()) if data_suffix(part) in SUFFIXES), str(path)
    )


def _open_hub(origin: Origin, name: str, *, stream: bool) -> Iterable[Row]:
    # a copy is not copied into the cache once more; what the cache holds is mapped into memory, not read
    streams = origin.path.exists() or (stream and not is_offline())
    try:
        loaded: Any = datasets.load_dataset(
            name, origin.subset, revision=origin.revision, split=origin.split.base, streaming=streams
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(_hub_message(origin, error)) from error
    if streams:
        if origin.is_hub and loaded.info.builder_name in ("json", "csv"):
            warn_of_guesses(origin.name)
        return _explained(origin, loaded)
    _check_commit(origin, loaded)
    originals = original_rows(loaded, name, split=origin.split.base, subset=origin.subset)
    return DatasetRows(loaded, origin.name) if originals is None else originals


def _explained(origin: Origin, rows: Any) -> Iterator[Row]:
    try:
        yield from TableReader(origin.name).rows(rows.with_format("arrow").iter(100))
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{origin.name}: the stream broke off ({_first_line(error)}).") from error


def _hub_message(origin: Origin, error: Exception) -> str:
    reason = _first_line(error)
    if "scripts are no longer supported" in reason:
        return _script_message(origin.name)
    if origin.path.exists():
        return f"{origin.name}: cannot be read as a copy of a hub dataset ({reason})."
    if isinstance(error, ValueError):  # it is there, but not that split or subset
        return f"{origin.name}: {reason}"
    wanted = f", revision '{origin.revision}'" if origin.revision else ""
    known = f"{origin.name}{wanted}: no such file or folder here"
    if is_offline():
        return (
            f"{known}, and HF_HUB_OFFLINE is set, so the hub is not asked. Unset it, or give the path of a "
            f"file. ({reason})"
        )
    return f"{known}, and the hub does not give it. For private data run `hf auth login` first. ({reason})"


def _script_message(name: str) -> str:
    return (
        f"{name}: its rows come from a dataset script, and code of a dataset is never run. Hub datasets "
        "often have a converted copy: set `revision: refs/convert/parquet`. Else run the script yourself "
        "where you trust it, and name the files it writes (.parquet, .jsonl)."
    )


def _check_commit(origin: Origin, loaded: Dataset) -> None:
    """Refuse another revision than the pinned one: offline, `datasets` takes whatever its cache holds."""
    files = loaded.cache_files
    cached = Path(files[0]["filename"]).parent.name if files else ""
    if not _COMMIT.fullmatch(cached) or cached == origin.revision:
        return
    if origin.revision is None:
        LOGGER.info("%s: read at commit %s; pin it by `revision`", origin.name, cached)
        return
    if is_offline() or _COMMIT.fullmatch(origin.revision):
        raise DataError(
            f"{origin.name}: revision '{origin.revision}' is asked for, and what is stored here is commit "
            f"{cached}. Unset HF_HUB_OFFLINE to fetch the revision, or pin `revision: {cached}`."
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
