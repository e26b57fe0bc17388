"""Whether what a run reads is still what it was: whole files by content, large weights by blocks of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from handbook_utils.runs.atomic import sha256_of

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz")
# weights up to this size are read whole
SMALL_BYTES = 1 << 20
# of larger ones a block in each stride, and the beginning of each tensor, or all of a small one
BLOCK_BYTES, STRIDE_BYTES, SMALL_TENSOR_BYTES = 1 << 12, 1 << 18, 1 << 16
LONGEST_HEADER = 1 << 27
# what a fingerprint begins with that is not of every byte of an input
BY_BLOCKS, RUN = "blocks:", "run:"


def checksum_of(file: Path) -> str:
    """Checksum of a file; one that has not been written to since is not read twice by a process."""
    stat = file.stat()
    return _checksum(str(file.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _checksum(file: str, *_: int) -> str:
    return sha256_of(Path(file))


def input_fingerprint(path: Path) -> str:
    """What tells an input from another: a checksum of a file, or of a folder's files and their names.

    Of a folder with large weights, these are told by their size and by blocks all along them, and hidden
    files, which tools of download and version control keep, do not count. A tensor that was changed is found
    wherever it lies; of one that differs in a few numbers only, those may lie between the blocks.
    """
    if path.is_file():
        return checksum_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not any(_is_sampled(file) for file in files):
        return sha256_of(path)
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            content = _by_blocks(file) if _is_sampled(file) else checksum_of(file)
            digest.update(f"{name}\0{content}\n".encode())
    return BY_BLOCKS + digest.hexdigest()


def is_same_input(name: str, before: str, now: str) -> bool:
    """Whether two fingerprints are of the same input; runs up to November 2026 read every file whole."""
    if before == now or ":" in before or ":" not in now:
        return before == now
    path = Path(name)
    return path.exists() and sha256_of(path) == before


def _is_sampled(file: Path) -> bool:
    return file.suffix in WEIGHTS and file.stat().st_size > SMALL_BYTES


def _by_blocks(file: Path) -> str:
    """Checksum of a file's size and of blocks all along it."""
    with file.open("rb") as stream:
        descriptor = stream.fileno()
        size = os.fstat(descriptor).st_size
        digest = hashlib.sha256(f"{size}\n".encode())
        for start, length in _blocks(descriptor, size):
            digest.update(os.pread(descriptor, length, start))
    return digest.hexdigest()


def _blocks(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, length) of what is read of a large file."""
    for start in range(0, size, STRIDE_BYTES):
        yield start, BLOCK_BYTES
    yield size - BLOCK_BYTES, BLOCK_BYTES
    yield from _tensors(descriptor, size)


def _tensors(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The header of a safetensors file and the beginnings of its tensors; nothing of another file."""
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if not 2 <= length <= min(size - 8, LONGEST_HEADER):
        return
    try:
        header = json.loads(os.pread(descriptor, length, 8))
        places = sorted(place["data_offsets"] for name, place in header.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError):  # other bytes that look like a length
        return
    yield 8, length
    for begin, end in places:
        yield 8 + length + begin, end - begin if end - begin <= SMALL_TENSOR_BYTES else BLOCK_BYTES
