"""Texts as numbers: one hash per word, and one per run of words, for a whole batch of texts at once.

Case, punctuation and spacing do not count. Scripts that write no spaces between words, such as Chinese,
Japanese and Thai, are read one character per word. Hashes have 64 bits and are the same in every process.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Ints = NDArray[np.int64]
# bytes that are hashed at once, so that a row of any size needs the same memory
BLOCK = 1 << 20
_PRIME = 0x100000001B3
_UNSPACED = re.compile(
    r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])"
)
_MARKS = re.compile(r"[^\w\s]|_")
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class Runs:
    """Numbers of several texts, one text after another.

    Attributes:
        values: (numbers,) hashes of words, or of runs of them.
        starts: (texts + 1,) where each text begins; the last is their number.
    """

    values: U64
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, text: int) -> U64:
        """The numbers of one text."""
        return self.values[self.starts[text] : self.starts[text + 1]]


def comparable(text: str) -> str:
    """A text without what comparison ignores, apart from the case and marks of ASCII.

    >>> comparable("Caf\\u00e9 \\u2014 \\u2018go\\u2019"), comparable("\\u4f60\\u597d")
    ('caf\\xe9    go ', ' \\u4f60  \\u597d ')
    """
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKC", text).lower()
    return _UNSPACED.sub(r" \1 ", _MARKS.sub(" ", plain))


def word_hashes(texts: Sequence[str]) -> Runs:
    """A hash for each word of some texts.

    >>> runs = word_hashes(["Hello, world!", "", "hello WORLD"])
    >>> runs.starts.tolist(), bool((runs.of(0) == runs.of(2)).all())
    ([0, 2, 2, 4], True)
    """
    counts = np.zeros(len(texts) + 1, dtype=np.int64)
    values: list[U64] = []
    block: list[bytes] = []
    owners: list[int] = []
    size = 0
    for place, text in enumerate(texts):
        for piece in _pieces(comparable(text).encode("utf-8", "replace")):
            if size + len(piece) > BLOCK and block:
                values.append(_hash_block(block, owners, counts))
                block, owners, size = [], [], 0
            block.append(piece)
            owners.append(place)
            size += len(piece) + 1
    if block:
        values.append(_hash_block(block, owners, counts))
    return Runs(np.concatenate(values) if values else np.zeros(0, np.uint64), np.cumsum(counts))


def runs_of_words(words: Runs, length: int) -> Runs:
    """A hash for each run of `length` words; a shorter text that has words is one run.

    >>> runs = runs_of_words(word_hashes(["a b c d", "a b", ""]), 3)
    >>> runs.starts.tolist()
    [0, 2, 3, 3]
    """
    counts = np.diff(words.starts)
    made = np.where(counts == 0, 0, np.maximum(counts - length + 1, 1))
    starts = np.concatenate([[0], np.cumsum(made)])
    # where each run begins, and how many words it has
    begins = np.arange(starts[-1]) + np.repeat(words.starts[:-1] - starts[:-1], made)
    sizes = np.repeat(np.minimum(counts, length), made)
    hashes = np.zeros(len(begins), dtype=np.uint64)
    padded = np.concatenate([words.values, np.zeros(length, np.uint64)])
    for step in range(length):
        mixed = mix(hashes ^ (padded[begins + step] + np.uint64(step + 1)))
        hashes = mixed if (sizes > step).all() else np.where(sizes > step, mixed, hashes)
    return Runs(hashes, starts)


def text_hashes(words: Runs) -> U64:
    """One hash for each text, of all its words in their order; 0 for a text without words."""
    place = np.arange(len(words.values)) - np.repeat(words.starts[:-1], np.diff(words.starts))
    mixed = mix(words.values + place.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed)])
    found: U64 = mix(sums[words.starts[1:]] - sums[words.starts[:-1]])
    found[np.diff(words.starts) == 0] = 0
    return found


def mix(values: U64) -> U64:
    """Numbers whose every bit depends on all bits of the given ones (the finaliser of SplitMix64)."""
    mixed = (values ^ (values >> np.uint64(30))) * _MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
    return mixed ^ (mixed >> np.uint64(31))


def _pieces(text: bytes) -> list[bytes]:
    """A long text in pieces of at most a block, cut between words where there is a space."""
    if len(text) <= BLOCK:
        return [text]
    found, begin = [], 0
    while begin < len(text):
        end = min(begin + BLOCK, len(text))
        if end < len(text):
            end = max(text.rfind(b" ", begin, end), text.rfind(b"\n", begin, end), begin) + 1
            end = end if end > begin + 1 else begin + BLOCK
        found.append(text[begin:end])
        begin = end
    return found


def _hash_block(block: list[bytes], owners: list[int], counts: Ints) -> U64:
    """Hashes of the words of some pieces; adds to the counts of the texts that they belong to."""
    joined = np.frombuffer(b" ".join(block) + b" ", dtype=np.uint8)
    is_word, lower = _tables()
    inside = is_word[joined]
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if inside[0]:
        edges = np.concatenate([[0], edges])
    begins, ends = edges[0::2], edges[1::2]
    powers, inverse = _powers(len(joined))
    # sums of byte times power from the first on: the difference of two is a word times a power of its place
    sums = np.cumsum(lower[joined] * powers[: len(joined)])
    before = np.where(begins > 0, sums[begins - 1], np.uint64(0))
    hashes = mix((sums[ends - 1] - before) * inverse[begins])
    lengths = np.array([len(piece) + 1 for piece in block])
    of_piece = np.searchsorted(np.cumsum(lengths), begins, side="right")
    found = np.bincount(of_piece, minlength=len(block))
    np.add.at(counts, np.array(owners) + 1, found)
    return hashes


@cache
def _tables() -> tuple[NDArray[np.bool_], U64]:
    """Which bytes belong to words, and what each counts for: capitals as small letters, none as zero."""
    is_word = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
    lower = np.array([ord(chr(byte).lower()) if byte < 128 else byte for byte in range(256)], np.uint64)
    return is_word, lower + np.uint64(1)


@cache
def _powers_of(size: int) -> tuple[U64, U64]:
    prime, inverse = np.uint64(_PRIME), np.uint64(pow(_PRIME, -1, 1 << 64))
    return tuple(  # type: ignore[return-value]
        np.concatenate([np.ones(1, np.uint64), np.cumprod(np.full(size - 1, base))])
        for base in (prime, inverse)
    )


def _powers(size: int) -> tuple[U64, U64]:
    """Powers of an odd number modulo 2 ** 64, and those of its inverse."""
    return _powers_of(max(2 * BLOCK, size))
