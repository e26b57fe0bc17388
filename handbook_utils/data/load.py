"""One function for every dataset: by `pocket:` name, local file or folder, earlier run, or hub name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
from datasets import Dataset, Features, Value

from handbook_utils.data.files import SUFFIXES, read_file, read_parts
from handbook_utils.data.formats import GOLD_COLUMNS, Kind, Row, normalise_rows
from handbook_utils.data.pocket_rows import PREFIX, pocket_rows
from handbook_utils.data.quiet import quiet_libraries
from handbook_utils.data.split import Split, parse_split
from handbook_utils.errors import DataError, suggest
from handbook_utils.recipe_schema import DataSource, Source
from handbook_utils.run_state import read_manifest

# what a run is for, by its stage: the table that another stage reads
MAIN_TABLES = {
    "generate": "samples",
    "annotate": "pairs",
    "score": "scores",
    "select": "selected",
    "evaluate": "samples",
}
_MESSAGES = [{"role": Value("string"), "content": Value("string")}]
_COLUMNS: dict[str, Any] = {
    "text": Value("string"),
    "prompt_id": Value("string"),
    "prompt": _MESSAGES,
    "completion": _MESSAGES,
    "chosen": _MESSAGES,
    "rejected": _MESSAGES,
    "label": Value("bool"),
    **dict.fromkeys(GOLD_COLUMNS, Value("float64")),
}


class Locator(Protocol):
    """What reading needs of a run folder."""

    def locate(self, source: Source, /) -> str:
        """Where a source's `name` or `from` is to be read."""


class ResolvedInputs:
    """Locates sources among run folders that are known already, where this run has no folder yet."""

    def __init__(self, inputs: Mapping[str, Path]) -> None:
        self._inputs = inputs

    def locate(self, source: Source, /) -> str:
        """Return the name, or the folder of the run."""
        return str(source.name if source.from_ is None else self._inputs[source.from_])


def load_dataset(
    name: str,
    *,
    kind: Kind,
    split: str = "train",
    seed: int = 0,
    revision: str | None = None,
    format: str = "auto",
) -> Dataset:
    """Load rows and bring them into one of five forms (see `formats.normalise_rows`).

    Args:
        name: `pocket:...`, a .jsonl/.json/.csv/.parquet file, a folder (of parquet files, written by
            `Dataset.save_to_disk`, or of an earlier run), or the name of a dataset on the hub.
        kind: "text", "conversation", "preference", "feedback" or "prompt".
        split: a split with an optional slice, such as "train[:200]"; a file has the one split "train".
        seed: seed of the order and answers of `pocket:` data; unused elsewhere.
        revision: branch, tag or commit of a hub name.
        format: the rows' shape where it is not to be told from the columns.
    Returns:
        A dataset in memory. Prompts are unique: further rows of one prompt are left out.
    Raises:
        DataError: names what is missing or wrong, where, and the nearest valid name.
    """
    where, rows = _read(name, parse_split(split), seed=seed, revision=revision)
    made = normalise_rows(rows, kind=kind, format=format, name=where)
    return _to_dataset(_unique_prompts(made, where) if kind == "prompt" else made)


def load_sources(sources: Sequence[DataSource], run: Locator, *, kind: Kind, seed: int) -> Dataset:
    """Load every source of a recipe's `data` and join them in order.

    Raises:
        DataError: as `load_dataset`; or two sources hold one prompt id for different prompts.
    """
    parts = [
        load_dataset(
            run.locate(source),
            kind=kind,
            split=source.split,
            seed=seed,
            revision=source.revision,
            format=source.format,
        )
        for source in sources
    ]
    if len(parts) == 1:
        return parts[0]
    # a column that not every source has is no column of the whole
    shared = [
        column for column in parts[0].column_names if all(column in part.column_names for part in parts)
    ]
    joined = datasets.concatenate_datasets([part.select_columns(shared) for part in parts])
    return _to_dataset(_unique_prompts(list(joined), "data")) if kind == "prompt" else joined


def dataset_fingerprint(dataset: Dataset) -> str:
    """Checksum of a dataset's columns and rows, the same in every process."""
    digest = hashlib.sha256(json.dumps(dataset.column_names).encode())
    for row in dataset:
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()


def _read(name: str, split: Split, *, seed: int, revision: str | None) -> tuple[str, Iterable[Row]]:
    """Return what the rows are called in messages, and the rows of the slice."""
    if name.startswith(PREFIX):
        return name, pocket_rows(name, split, seed=seed)
    path = Path(name).expanduser()
    if path.is_dir():
        return name, _sliced(_read_folder(path, split), split, name)
    if path.exists() or _looks_like_a_path(name):
        _only_train(name, split)
        return name, _sliced(read_file(path), split, name)
    return name, _sliced(_read_hub(name, split.base, revision), split, name)


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(SUFFIXES) or name.count("/") > 1


def _sliced(rows: Any, split: Split, name: str) -> Iterable[Row]:
    if len(rows) == 0:
        raise DataError(f"{name}: no rows in '{split.base}'.")
    first, end = split.bounds(len(rows), name=name)
    part: Iterable[Row] = rows.select(range(first, end)) if isinstance(rows, Dataset) else rows[first:end]
    return part


def _only_train(name: str, split: Split) -> None:
    if split.base != "train":
        raise DataError(
            f"{name}: one file has the one split 'train', not '{split.base}'. "
            f"For a part of it write a slice, such as train[:200]."
        )


def _read_folder(path: Path, split: Split) -> Any:
    if (path / "manifest.json").exists():
        _only_train(str(path), split)
        return _read_run(path)
    if (path / "dataset_dict.json").exists():
        by_name = datasets.load_from_disk(path)
        if split.base not in by_name:
            raise DataError(f"{path}: no split '{split.base}'. {suggest(split.base, by_name)}")
        return by_name[split.base]
    _only_train(str(path), split)
    if (path / "dataset_info.json").exists():
        return datasets.load_from_disk(path)
    return read_parts(path)


def _read_run(path: Path) -> Any:
    stage = read_manifest(path)["stage"]
    if stage not in MAIN_TABLES:
        kinds = ", ".join(sorted(MAIN_TABLES))
        raise DataError(f"{path}: a run of stage '{stage}' holds no rows to read. Stages that do: {kinds}.")
    table = path / MAIN_TABLES[stage]
    file = table.with_suffix(".parquet")
    return read_file(file) if file.exists() else read_parts(table)


def _read_hub(name: str, base: str, revision: str | None) -> Dataset:
    known = f"{name}: no such file or folder here"
    try:
        return datasets.load_dataset(name, revision=revision, split=base)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        hint = (
            "and HF_HUB_OFFLINE is set, so the hub is not asked. Unset it, or give the path of a file."
            if offline
            else "and the hub does not give it. For private data run `hf auth login` first."
        )
        raise DataError(f"{known}, {hint} ({str(error).splitlines()[0]})") from error


def _unique_prompts(rows: Sequence[Row], name: str) -> list[Row]:
    """Keep the first row of each prompt id: samples and their seeds are named by it."""
    first: dict[str, Row] = {}
    for number, row in enumerate(rows, start=1):
        earlier = first.setdefault(row["prompt_id"], row)
        if earlier["prompt"] != row["prompt"]:
            raise DataError(f"{name}: row {number} has the prompt_id '{row['prompt_id']}' of another prompt.")
    return list(first.values())


def _to_dataset(rows: Sequence[Row]) -> Dataset:
    features = Features({column: _COLUMNS[column] for column in rows[0]})
    with quiet_libraries():
        return Dataset.from_list([dict(row) for row in rows], features=features)
