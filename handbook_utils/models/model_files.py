"""The files of a model folder: placeholders, half a download, missing shards; told before any loading."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from handbook_utils.data.reading.placeholders import BEGIN, placeholder_of
from handbook_utils.errors import ModelError

SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
READ = ("*.safetensors", "*.json", "*.jinja", "*.model")
AGAIN = "Download it again, such as with `hf download`."


def check_model_files(folder: Path) -> None:
    """Refuse a folder whose files are placeholders, cut short, or not all there.

    Only the beginnings of files are read.

    Raises:
        ModelError: names the file and what to do.
    """
    for pattern in READ:
        for file in sorted(folder.glob(pattern)):
            _check_file(file)
    missing = sorted({*_listed(folder), *_numbered(folder)} - {file.name for file in folder.iterdir()})
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


def _listed(folder: Path) -> Iterator[str]:
    """The weight files that an index names."""
    for index in folder.glob("*.safetensors.index.json"):
        content = _json(index)
        names = content.get("weight_map", {}) if isinstance(content, dict) else {}
        yield from {str(name) for name in names.values()}


def _numbered(folder: Path) -> Iterator[str]:
    """The weight files that the numbers in others' names promise."""
    for file in folder.glob("*-of-*.safetensors"):
        if found := SHARD.fullmatch(file.name):
            stem, number, total = found.groups()
            width = len(number)
            yield from (f"{stem}-{n:0{width}}-of-{total}.safetensors" for n in range(1, int(total) + 1))
