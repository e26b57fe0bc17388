"""MinHash sketches of texts, and the texts that share a part of theirs: candidates to be compared exactly.

The sketches are rensa's (Fast Similarity Sketching): texts whose sets of word runs have the Jaccard
similarity J agree in each place of their sketches with probability J. A sketch is cut into bands; two texts
are candidates where a whole band agrees, so with probability 1 - (1 - J ** ROWS) ** BANDS.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handbook_utils.curation.near.words import U64, Ints, Runs, mix
from handbook_utils.errors import MissingDependencyError

# finds pairs of J = 0.8 with probability 0.9998, of 0.7 with 0.988, and proposes those of 0.3 with 0.12
BANDS, ROWS = 16, 4
SEED = 42
U32 = NDArray[np.uint32]


class BandIndex:
    """Sketches of any number of texts, kept as one number for each band: 64 bytes per text.

    Args:
        bands: of a sketch; with more of them, pairs of lower similarity are found as well.
    """

    def __init__(self, bands: int = BANDS) -> None:
        self._bands = bands
        self._parts: list[U32] = []
        self._texts = 0
        self._has_words: list[NDArray[np.bool_]] = []

    def __len__(self) -> int:
        return self._texts

    def add(self, runs: Runs) -> None:
        """Add the sketches of some texts, by their runs of words."""
        self._parts.append(band_keys(runs, self._bands))
        self._has_words.append(np.diff(runs.starts) > 0)
        self._texts += len(runs)

    def buckets(self, alive: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Texts that share a band with another text.

        Args:
            alive: (texts,) which texts count.
        Returns:
            (n,) texts and (n,) numbers of the buckets that they are in, ordered by text.
        """
        counted = np.flatnonzero(alive & np.concatenate(self._has_words)) if self._texts else np.zeros(0, int)
        texts, buckets, first = [], [], 0
        for band in range(self._bands):
            keys = np.concatenate([part[band] for part in self._parts])[counted] if len(counted) else None
            if keys is None:
                continue
            order = np.argsort(keys, kind="stable")
            ordered = keys[order]
            is_new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
            group = np.cumsum(is_new) - 1
            shared = np.bincount(group)[group] > 1
            texts.append(counted[order[shared]])
            buckets.append(group[shared] + first)
            first += int(group[-1]) + 1
        if not texts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        found, where = np.concatenate(texts), np.concatenate(buckets)
        order = np.argsort(found, kind="stable")
        return found[order], where[order]

    def matches(self, runs: Runs) -> Iterator[tuple[Ints, Ints]]:
        """Candidates between these texts and others, band by band.

        Yields:
            (n,) texts of the index and (n,) texts of `runs` that agree in a band.
        """
        keys, has_words = band_keys(runs, self._bands), np.diff(runs.starts) > 0
        known = np.concatenate(self._has_words) if self._texts else np.zeros(0, bool)
        for band in range(self._bands if known.any() else 0):
            mine = np.concatenate([part[band] for part in self._parts])
            order = np.argsort(mine, kind="stable")
            low = np.searchsorted(mine[order], keys[band], side="left")
            counts = np.searchsorted(mine[order], keys[band], side="right") - low
            counts[~has_words] = 0
            others = np.repeat(np.arange(len(runs)), counts)
            offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            found = order[np.repeat(low, counts) + offsets]
            yield found[known[found]], others[known[found]]


def band_keys(runs: Runs, bands: int = BANDS) -> U32:
    """(bands, texts) a number for each band of each text's sketch."""
    if not len(runs):
        return np.zeros((bands, 0), np.uint32)
    sketches = require_rensa().RMinHash.digest_matrix_from_flat_token_hashes(
        runs.values, runs.starts, bands * ROWS, SEED
    )
    rows = array("I")
    for row in sketches.to_rows():
        rows.fromlist(row)
    grouped = np.frombuffer(rows, np.uint32).reshape(len(runs), bands, ROWS).astype(np.uint64)
    keys: U64 = np.zeros((len(runs), bands), np.uint64)
    for place in range(ROWS):
        keys = mix(keys ^ (grouped[:, :, place] + np.uint64(place + 1)))
    return np.ascontiguousarray((keys >> np.uint64(32)).astype(np.uint32).T)


def require_rensa() -> Any:
    """The library that makes the sketches.

    Raises:
        MissingDependencyError: it is not installed; the message says how to.
    """
    try:
        import rensa
    except ImportError as error:
        raise MissingDependencyError(
            "near-duplicates and leaks are found with the library rensa. Install it "
            '(pip install "handbook-utils[curation]"), or look for equal rows alone: --off near_duplicate.'
        ) from error
    return rensa
