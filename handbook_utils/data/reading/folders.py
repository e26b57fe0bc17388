"""Which data files of a folder are which split: as its README declares, else by names as in `datasets`.

Source of the rules: https://huggingface.co/docs/datasets/repository_structure. Beyond them, capital letters
make no difference, some files may have their split from a folder's name, others from their own, and what is
called held out is no training data.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load

from handbook_utils.data.reading.files import PICKLES, SUFFIXES, data_suffix
from handbook_utils.errors import DataError, suggest
from handbook_utils.runs.log import warn_and_log

LOGGER = logging.getLogger("handbook_utils")
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": (
        "test",
        "testing",
        "eval",
        "evaluation",
        "holdout",
        "hold-out",
        "heldout",
        "held-out",
        "held_out",
    ),
}
_WORDS = {
    split: re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(words)})(?:[-._ 0-9]|$)", re.IGNORECASE)
    for split, words in KEYWORDS.items()
}
# what `Dataset.push_to_hub` writes: the only files whose split may have any name
_SHARD = re.compile(r"data/(?P<split>\w[\w.]*)-\d{5}-of-\d{5}[^/]*")
_NOT_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
# a part of several, by its number
_PART = re.compile(
    r"(?P<stem>.*?)-(?P<number>\d{5})-of-(?P<total>\d{5})(?:-[0-9a-f]+)?(?P<ending>\.\w+(?:\.gz)?)"
)
# what browsers and file managers call a second one
_COPY = re.compile(r"(?P<of>.+?)(?: ?\(\d+\)| - Copy(?: \(\d+\))?| copy(?: \d+)?)(?P<ending>\.\w+(?:\.gz)?)")
# what a README may say of a subset that changes no row
_HARMLESS = {"config_name", "data_files", "data_dir", "default", "version", "description", "drop_labels"}


class UnreadFilesWarning(UserWarning):
    """Data files of a folder belong to no split, so none of their rows is read."""


@dataclass(frozen=True)
class FolderSplits:
    """The data files of a folder.

    Attributes:
        splits: files by split, in the order they are read.
        unread: data files that belong to no split.
        because: what told the splits.
    """

    splits: Mapping[str, Sequence[Path]]
    unread: Sequence[Path]
    because: str

    def files(self, split: str, name: str) -> Sequence[Path]:
        """The files of one split; those of none are told.

        Raises:
            DataError: there is no such split (all are listed), its files are of several types, or some are
                missing by their numbers.
        """
        if split not in self.splits:
            there = ", ".join(f"'{known}' ({_listed(files)})" for known, files in self.splits.items())
            raise DataError(
                f"{name}: no split '{split}'. {suggest(split, self.splits)} By {self.because} there are the "
                f"splits {there}; `split` says which is read."
            )
        files = self.splits[split]
        if len(kinds := sorted({data_suffix(file) for file in files})) > 1:
            raise DataError(
                f"{name}: holds files of several types ({', '.join(kinds)}). Name one file, or put the parts "
                "of one data set into a folder of their own."
            )
        if missing := _missing_parts(files):
            raise DataError(
                f"{name}: {len(missing)} of its files are missing, such as {missing[0]}. Download it "
                "again; to read a part on purpose, name the file, or rename what is there."
            )
        if self.unread:
            message = (
                f"{name}: not read, as no name tells a split: {_listed(self.unread)}. Name such a file by "
                "itself to read it."
            )
            warn_and_log(message, UnreadFilesWarning)
        if others := [known for known in self.splits if known != split]:
            LOGGER.info("%s: '%s' is %s; other splits: %s", name, split, _listed(files), ", ".join(others))
        return files


def find_splits(folder: Path, subset: str | None = None) -> FolderSplits:
    """Find the splits of a folder; none where it holds no data file.

    Args:
        folder: read with what is below it, except names that begin with "." or "__".
        subset: one of the configurations that its README declares.
    Raises:
        DataError: several subsets and no choice, an unknown subset, or a README that cannot be heeded.
    """
    declared = _declared(folder)
    if declared is not None:
        return _of_subset(folder, _chosen(folder, declared, subset))
    if subset is not None:
        raise DataError(
            f"{folder}: `subset` names a part of a hub dataset, or one that a README declares under "
            "`configs`, and there is none."
        )
    return _by_names(folder)


def _by_names(folder: Path) -> FolderSplits:
    files = _data_files(folder)
    names = {file: file.relative_to(folder).as_posix() for file in files}
    shards = {file: found["split"] for file in files if (found := _SHARD.fullmatch(names[file]))}
    if shards:
        return _grouped(files, shards)
    told = {file: _split_of(folder, name) for file, name in names.items()}
    if any(told.values()):
        return _grouped(files, {file: split for file, split in told.items() if split})
    # parts of one data set: those right in the folder, or where there are none, those below
    parts = [file for file in files if file.parent == folder] or files
    unread = [file for file in files if file not in parts]
    return FolderSplits({"train": parts} if parts else {}, unread, "its data files")


def _split_of(folder: Path, name: str) -> str | None:
    """What the names of a file's folders say of its split, or else its own."""
    *folders, own = name.split("/")
    for words in (folders, [own]):
        found = {split for word in words for split, pattern in _WORDS.items() if pattern.search(word)}
        if len(found) > 1:
            raise DataError(
                f"{folder}: the name of '{name}' could mean the splits {' and '.join(sorted(found))}. Rename "
                "it, or name the file itself in place of the folder."
            )
        if found:
            return found.pop()
    return None


def _grouped(files: Iterable[Path], split_of: Mapping[Path, str]) -> FolderSplits:
    splits: dict[str, list[Path]] = {}
    unread = []
    for file in files:
        if file in split_of:
            splits.setdefault(split_of[file], []).append(file)
        else:
            unread.append(file)
    return FolderSplits(splits, unread, "the names of its files")


def _data_files(folder: Path) -> list[Path]:
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if data_suffix(file) in SUFFIXES
        and file.name not in _NOT_DATA
        and not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)
        and file.is_file()
    ]
    for file in files:
        copied = _COPY.fullmatch(file.name)
        if copied and (first := file.with_name(copied["of"] + copied["ending"])) in files:
            raise DataError(
                f"{folder}: '{file.name}' looks like a copy of '{first.name}', and its rows would be read "
                "twice. Delete one, or rename it."
            )
    return files


def _declared(folder: Path) -> list[dict[str, Any]] | None:
    """The subsets that a README declares; None where it declares none."""
    card = folder / "README.md"
    try:
        about = metadata_load(card) if card.is_file() else None
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
        raise DataError(f"{card}: its YAML header cannot be read ({_first_line(error)}). Mend it.") from None
    configs = (about or {}).get("configs")
    if configs is None:
        return None
    if not isinstance(configs, list) or not all(
        isinstance(one, dict) and "config_name" in one for one in configs
    ):
        raise DataError(f"{card}: `configs` needs a list of subsets with a `config_name` each. Mend it.")
    return [one for one in configs if isinstance(one, dict)] or None


def _chosen(folder: Path, configs: Sequence[dict[str, Any]], subset: str | None) -> dict[str, Any]:
    names = [str(one["config_name"]) for one in configs]
    if subset is not None:
        if subset not in names:
            raise DataError(f"{folder}: its README declares no subset '{subset}'. {suggest(subset, names)}")
        return configs[names.index(subset)]
    default = [one for one in configs if one.get("default") or one["config_name"] == "default"]
    if len(configs) > 1 and len(default) != 1:
        raise DataError(
            f"{folder}: its README declares the subsets {', '.join(names)}. Choose one by `subset`, such as "
            f"`subset: {names[0]}`."
        )
    return default[0] if default else configs[0]


def _of_subset(folder: Path, config: Mapping[str, Any]) -> FolderSplits:
    name = config["config_name"]
    if unknown := sorted(map(str, config.keys() - _HARMLESS)):
        raise DataError(
            f"{folder}: its README sets '{unknown[0]}' for the subset '{name}', which is not read here. "
            "Write the rows as .jsonl, one object per line, and name that file."
        )
    base = _inside(folder, folder, str(config.get("data_dir") or "."))
    patterns = config.get("data_files")
    if patterns is None:
        return _by_names(base)
    if isinstance(patterns, str):
        patterns = [patterns]
    if all(isinstance(one, str) for one in patterns):
        patterns = [{"split": "train", "path": patterns}]
    splits = {}
    for entry in patterns:
        if not isinstance(entry, dict) or not {"split", "path"} <= entry.keys():
            raise DataError(
                f"{folder}: `data_files` of its README needs a `split` and a `path` each. Mend it."
            )
        paths = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
        found = [file for path in paths for file in _matching(folder, base, str(path))]
        if found:
            splits[str(entry["split"])] = list(dict.fromkeys(found))
    if not splits:
        raise DataError(f"{folder}: none of the files that its README declares for '{name}' is here.")
    return FolderSplits(splits, [], "its README's `data_files`")


def _matching(folder: Path, base: Path, pattern: str) -> list[Path]:
    """Files of a pattern, which may not lead out of the folder."""
    path = _inside(folder, base, pattern)
    if path.is_file():
        return [path]
    relative = path.relative_to(folder).as_posix()
    try:
        found = sorted(folder.glob(f"{relative}/*" if relative.endswith("**") else relative))
    except ValueError as error:
        raise DataError(
            f"{folder}: its README declares '{pattern}', which is no pattern ({error})."
        ) from None
    return [file for file in found if file.is_file() and data_suffix(file) not in (*PICKLES, ".md", ".py")]


def _inside(folder: Path, base: Path, name: str) -> Path:
    path = base / name
    if "://" in name or ".." in Path(name).parts or Path(name).is_absolute():
        raise DataError(
            f"{folder}: its README declares '{name}', which is not in this folder. Name the file."
        )
    return path


def _missing_parts(files: Sequence[Path]) -> list[str]:
    """Names that the numbers in others' names promise, as of half a download; of one file alone as well."""
    there: dict[tuple[Path, str, str, str], set[int]] = {}
    for file in files:
        if found := _PART.fullmatch(file.name):
            key = (file.parent, found["stem"], found["total"], found["ending"])
            there.setdefault(key, set()).add(int(found["number"]))
    return [
        f"{stem}-{number:05}-of-{total}{ending}"
        for (_, stem, total, ending), numbers in there.items()
        for number in range(int(total))
        if number not in numbers
    ]


def _listed(files: Sequence[Path]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(file.name for file in files[:3]) + more


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
