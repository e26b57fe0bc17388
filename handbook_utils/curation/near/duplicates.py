"""Rows that say what an earlier row says: word for word, or nearly; as a whole, by prompt, or by answer.

Similarity is Jaccard's, of the sets of all runs of three words. Sketches only propose pairs; each is then
compared exactly, so no row is called a near-duplicate below the threshold.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from handbook_utils.curation.near.sketches import BandIndex
from handbook_utils.curation.near.words import U64, Ints, mix, runs_of_words, text_hashes, word_hashes

# three words tell word order apart and still tolerate an edit
RUN = 3
# rows of a bucket that later ones are compared with, and comparisons of one row: what a template has in
# common would otherwise be compared again and again
BUCKET, COMPARED = 16, 8
Bools = NDArray[np.bool_]


@dataclass
class Alike:
    """Rows found to repeat an earlier one: the earlier row's place, and how similar they are.

    Attributes:
        of: place of a row -> (place of the earlier row, Jaccard similarity; 1.0 for equal words).
    """

    of: dict[int, tuple[int, float]] = field(default_factory=dict)


@dataclass
class Repeats:
    """What repeats what.

    Attributes:
        duplicate: prompt and answer in the same words.
        near_duplicate: prompt and answer together nearly in the same words, and each of them at half of the
            threshold.
        repeated_prompt: the prompt, but not the whole.
        repeated_answer: the answer, but not the whole.
    """

    duplicate: Alike = field(default_factory=Alike)
    near_duplicate: Alike = field(default_factory=Alike)
    repeated_prompt: Alike = field(default_factory=Alike)
    repeated_answer: Alike = field(default_factory=Alike)


class DuplicateFinder:
    """Collects rows batch by batch, then says which repeat which; the runs of words lie in a file.

    Args:
        spool: a file to write, which the finder deletes when it is closed.
        near: whether near-duplicates are looked for too.
    """

    def __init__(self, spool: Path, *, near: bool = True) -> None:
        self._path, self._near = spool, near
        self._file = spool.open("w+b")
        self._fields = (_Field(), _Field())
        self._offset = 0

    def __enter__(self) -> DuplicateFinder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """Add rows, each by its prompt and its answer ("" for none)."""
        for part, texts in zip(self._fields, (prompts, answers), strict=True):
            words = word_hashes(texts)
            part.hashes.append(text_hashes(words))
            part.words.append(np.diff(words.starts).astype(np.int32))
            if not self._near:
                continue
            runs = runs_of_words(words, RUN)
            part.index.add(runs)
            part.offsets.append(self._offset + 4 * runs.starts)
            self._file.write(runs.values.astype(np.uint32).tobytes())
            self._offset += 4 * len(runs.values)

    def repeats(self, alive: Bools, *, threshold: float, min_words: int) -> Repeats:
        """Compare rows with the rows before them.

        Args:
            alive: (rows,) which rows count; the others neither repeat nor are repeated.
            threshold: Jaccard similarity from which rows are near-duplicates, above 0.
            min_words: words from which an answer that comes again is called repeated: "Yes." may.
        """
        found = Repeats()
        if not len(alive):
            return found
        hashes = [np.concatenate(part.hashes) for part in self._fields]
        counted = alive & ((hashes[0] != 0) | (hashes[1] != 0))
        found.duplicate.of = _earlier_equal(mix(hashes[0] ^ mix(hashes[1])), counted)
        counted[list(found.duplicate.of)] = False
        if self._near:
            self._file.flush()
            self._compare(found, counted, threshold)
        counted[list(found.near_duplicate.of)] = False
        long_enough = np.concatenate(self._fields[1].words) >= min_words
        for alike, values, kept in (
            (found.repeated_prompt, hashes[0], counted & (hashes[0] != 0)),
            (found.repeated_answer, hashes[1], counted & (hashes[1] != 0) & long_enough),
        ):
            near = {row: pair for row, pair in alike.of.items() if kept[row]}
            alike.of = near | _earlier_equal(values, kept)
        return found

    def _compare(self, found: Repeats, alive: Bools, threshold: float) -> None:
        starts = [_Starts(part) for part in self._fields]
        texts, buckets = zip(*(part.index.buckets(alive) for part in self._fields), strict=True)
        shift = int(buckets[0].max(initial=-1)) + 1
        rows = np.concatenate(texts)
        where = np.concatenate([buckets[0], buckets[1] + shift])
        order = np.argsort(rows, kind="stable")
        kept: dict[int, list[int]] = {}
        pairs = zip(rows[order].tolist(), where[order].tolist(), strict=True)
        for row, members in groupby(pairs, key=itemgetter(0)):
            mine = [bucket for _, bucket in members]
            before: Counter[int] = Counter()
            for bucket in mine:
                before.update(kept.get(bucket, ()))
            if before and self._is_alike(found, row, before, starts, threshold):
                continue
            for bucket in mine:
                others = kept.setdefault(bucket, [])
                if len(others) < BUCKET:
                    others.append(row)

    def _is_alike(
        self, found: Repeats, row: int, before: Counter[int], starts: Sequence[_Starts], threshold: float
    ) -> bool:
        """Whether a row is a near-duplicate of one of some earlier ones; notes what it repeats."""
        sets = [self._runs(row, start) for start in starts]
        best = {"whole": (-1, 0.0), "prompt": (-1, 0.0), "answer": (-1, 0.0)}
        for other, _ in before.most_common(COMPARED):
            both = [(mine, self._runs(other, start)) for mine, start in zip(sets, starts, strict=True)]
            shared = [len(mine & theirs) for mine, theirs in both]
            joined = [len(mine) + len(theirs) - n for (mine, theirs), n in zip(both, shared, strict=True)]
            alike = [part / all_ if all_ else 1.0 for part, all_ in zip(shared, joined, strict=True)]
            # another question about one long text, or one long answer to another question, is no duplicate
            is_whole = min(alike) >= threshold / 2
            whole = (shared[0] + shared[1]) / max(joined[0] + joined[1], 1)
            for name, similarity in (
                ("prompt", alike[0] if joined[0] else 0.0),
                ("answer", alike[1] if joined[1] else 0.0),
                ("whole", whole if is_whole else 0.0),
            ):
                if similarity > best[name][1]:
                    best[name] = (other, similarity)
        if best["whole"][1] >= threshold:
            found.near_duplicate.of[row] = best["whole"]
            return True
        for name, repeated in (("prompt", found.repeated_prompt), ("answer", found.repeated_answer)):
            if best[name][1] >= threshold:
                repeated.of[row] = best[name]
        return False

    def _runs(self, row: int, starts: _Starts) -> frozenset[int]:
        begin, end = starts(row)
        content = os.pread(self._file.fileno(), end - begin, begin)
        return frozenset(np.frombuffer(content, np.uint32).tolist())


class _Field:
    """What is kept of all rows' prompts, or of their answers."""

    def __init__(self) -> None:
        self.hashes: list[U64] = []
        self.words: list[NDArray[np.int32]] = []
        self.offsets: list[Ints] = []
        self.index = BandIndex()


class _Starts:
    """Where a row's runs of words lie in the file."""

    def __init__(self, part: _Field) -> None:
        self._offsets = part.offsets
        self._firsts = np.cumsum([0, *(len(offsets) - 1 for offsets in part.offsets)])

    def __call__(self, row: int) -> tuple[int, int]:
        batch = int(np.searchsorted(self._firsts, row, side="right")) - 1
        offsets, place = self._offsets[batch], row - int(self._firsts[batch])
        return int(offsets[place]), int(offsets[place + 1])


def _earlier_equal(values: U64, counted: Bools) -> dict[int, tuple[int, float]]:
    """Rows whose value an earlier row has, each with the first such row."""
    rows = np.flatnonzero(counted)
    _, first, group = np.unique(values[rows], return_index=True, return_inverse=True)
    earlier = rows[first[group]]
    later = earlier != rows
    return {int(row): (int(of), 1.0) for row, of in zip(rows[later], earlier[later], strict=True)}
