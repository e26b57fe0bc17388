"""The files that a dataset of the hub was made from: read as they are, for `datasets` takes texts for values.

From JSON and CSV it makes tables, and a later file's dates, numbers and "null" become what the first file's
columns suggest. The files themselves lie in the hub's cache beside the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from huggingface_hub import try_to_load_from_cache

from handbook_utils.data.reading.arrow import Row
from handbook_utils.data.reading.files import TEXTS, data_suffix, iterate_files
from handbook_utils.data.reading.folders import find_splits
from handbook_utils.runs.log import warn_and_log

_SCHEME = "hf://datasets/"


class GuessedValuesWarning(UserWarning):
    """Rows of JSON or CSV files were read by `datasets`, which may take texts for dates, numbers or nulls."""


def original_rows(dataset: Dataset, name: str, *, split: str, subset: str | None) -> Sequence[Row] | None:
    """The rows of the files that a split was made from.

    Args:
        dataset: one split, as `datasets` made it of files on the hub.
        name: of the dataset.
        split: which one it is.
        subset: of which configuration.
    Returns:
        None where the dataset was made from other files than text; also, with a warning, where the files are
        no longer in the cache or give another number of rows.
    """
    urls = [str(url) for url in dataset.info.download_checksums or {}]
    if dataset.info.builder_name not in ("json", "csv"):
        return None
    files = [_cached(url) for url in urls]
    if files and all(file is not None and data_suffix(file) in TEXTS for file in files):
        rows = _rows_of_split([file for file in files if file is not None], urls[0], name, split, subset)
        if rows is not None and len(rows) == len(dataset):
            return rows
    warn_of_guesses(name)
    return None


def warn_of_guesses(name: str) -> None:
    """Say that `datasets` has read text files."""
    message = (
        f"{name}: its JSON or CSV files are read by `datasets`, which may take a text for a date, a "
        "number or null. Download the repository with `hf download --repo-type dataset` and name the "
        "folder to have it read as written."
    )
    warn_and_log(message, GuessedValuesWarning)


def _rows_of_split(
    files: Sequence[Path], url: str, name: str, split: str, subset: str | None
) -> Sequence[Row] | None:
    depth = len(_parts_of(url)[2].split("/"))
    snapshot = files[0].parents[depth - 1]
    splits = find_splits(snapshot, subset).splits
    wanted = [file for file in splits.get(split, ()) if file in files]
    return list(iterate_files(wanted, name)) if wanted else None


def _cached(url: str) -> Path | None:
    """A file of the hub's cache by its address."""
    if not url.startswith(_SCHEME) or "@" not in url:
        return None
    repository, commit, path = _parts_of(url)
    found = try_to_load_from_cache(repository, path, revision=commit, repo_type="dataset")
    return Path(found) if isinstance(found, str) else None


def _parts_of(url: str) -> tuple[str, str, str]:
    """Repository, commit and path of an address such as hf://datasets/someone/things@commit/data/a.jsonl."""
    repository, _, rest = url.removeprefix(_SCHEME).partition("@")
    commit, _, path = rest.partition("/")
    return repository, commit, path
