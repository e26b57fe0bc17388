"""The files of a model folder: placeholders, half downloads, shards missing or left over; told in advance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from handbook_utils.data.reading.placeholders import BEGIN, placeholder_of
from handbook_utils.errors import ModelError

SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
READ = ("*.safetensors", "*.json", "*.jinja", "*.model")
AGAIN = "Download it again, such as with `hf download`."


def check_model_files(folder: Path) -> None:
    """Refuse a folder whose files are placeholders, cut short, not all there, or there twice.

    Only the beginnings of files are read.

    Raises:
        ModelError: names the file and what to do.
    """
    for pattern in READ:
        for file in sorted(folder.glob(pattern)):
            _check_file(file)
    there = {file.name for file in folder.iterdir()}
    _check_once(folder, there)
    missing = sorted({*_listed(folder, there), *_numbered(folder)} - there)
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} of its files of weights are missing, such as {missing[0]}. {AGAIN}"
        )


def _check_file(file: Path) -> None:
    if not file.exists():
        raise ModelError(f"{file}: a link to a file that is gone. {AGAIN}")
    if file.is_dir():
        return
    with file.open("rb") as stream:
        begin = stream.read(BEGIN)
        if what := placeholder_of(begin):
            raise ModelError(f"{file}: {what}.")
        if file.suffix == ".safetensors":
            size = file.stat().st_size
            length = int.from_bytes(begin[:8], "little")
            stream.seek(8)
            header = _header(stream.read(length)) if length <= size - 8 else None
            _check_size(file, size, None if header is None else 8 + length + header)
    if file.suffix == ".json":
        _json(file)


def _header(text: bytes) -> int | None:
    """Bytes of all tensors that a header promises; None of one that is none."""
    try:
        tensors = [place for name, place in json.loads(text).items() if name != "__metadata__"]
        return max((int(place["data_offsets"][1]) for place in tensors), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def _check_size(file: Path, size: int, promised: int | None) -> None:
    if promised is None:
        raise ModelError(f"{file}: no safetensors file, or only the beginning of one ({size} bytes). {AGAIN}")
    if size < promised:
        raise ModelError(f"{file}: cut short: {size} of {promised} bytes are there. {AGAIN}")


def _json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        what = "empty" if file.stat().st_size == 0 else "damaged; it is not JSON"
        raise ModelError(f"{file}: {what}. {AGAIN}") from None


def _check_once(folder: Path, there: set[str]) -> None:
    """Refuse weights in one file beside others in shards; transformers 5.24 would load the one file.

    Where both are, a model was saved over an earlier one in shards: `save_pretrained` leaves the old file.
    """
    if {WHOLE, INDEX} <= there and (shards := (_named(folder / INDEX) - {WHOLE}) & there):
        raise ModelError(
            f"{folder}: weights are there twice, in {WHOLE} and in {len(shards)} files that {INDEX} names, "
            f"such as {min(shards)}. One of the two is left over from an earlier save. Delete that one: "
            f"{WHOLE}, or those files and the index."
        )


def _listed(folder: Path, there: set[str]) -> Iterator[str]:
    """The weight files that an index names, but for one left over by weights that are now in one file."""
    for index in folder.glob("*.safetensors.index.json"):
        if index.name != INDEX or WHOLE not in there:
            yield from _named(index)


def _named(index: Path) -> set[str]:
    content = _json(index)
    names = content.get("weight_map", {}) if isinstance(content, dict) else {}
    return {str(name) for name in names.values()}


def _numbered(folder: Path) -> Iterator[str]:
    """The weight files that the numbers in others' names promise."""
    for file in folder.glob("*-of-*.safetensors"):
        if found := SHARD.fullmatch(file.name):
            stem, number, total = found.groups()
            width = len(number)
            yield from (f"{stem}-{n:0{width}}-of-{total}.safetensors" for n in range(1, int(total) + 1))
