"""Rows of samples by prompt, as arrays: what selection among millions of samples works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from handbook_utils.errors import DataError
from handbook_utils.sampling.noise import KeyedDraws

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Groups:
    """Rows prompt after prompt, a prompt's rows by sample index.

    A row's position in this order is its *place*: the place of `rows[7]` is 7.

    Attributes:
        prompt_ids: the prompts' names, in the order in which they first occur.
        rows: (places,) row numbers of the table.
        starts: (prompts + 1,) the first place of each prompt, and the number of places.
    """

    prompt_ids: Sequence[str]
    rows: Ints
    starts: Ints

    @property
    def sizes(self) -> Ints:
        """(prompts,) samples of each prompt."""
        return np.diff(self.starts)

    @property
    def prompt_of(self) -> Ints:
        """(places,) the number of each place's prompt."""
        return np.repeat(np.arange(len(self.prompt_ids)), self.sizes)

    @property
    def rank_of(self) -> Ints:
        """(places,) how many places of the same prompt come before."""
        return np.arange(len(self.rows)) - np.repeat(self.starts[:-1], self.sizes)

    def counts(self, places: Ints) -> Ints:
        """(prompts,) how many of the places each prompt has."""
        return np.bincount(self.prompt_of[places], minlength=len(self.prompt_ids)).astype(np.int64)

    def subset(self, wanted: Bools) -> Groups:
        """The places that are wanted; a prompt that keeps none is left out."""
        sizes = self.counts(np.flatnonzero(wanted))
        kept = np.flatnonzero(sizes)
        return Groups(
            [self.prompt_ids[prompt] for prompt in kept.tolist()], self.rows[wanted], _starts(sizes[kept])
        )

    def shuffled(self, purpose: str, seed: int, *, prompts: Ints | None = None) -> Ints:
        """Places in an order drawn for each prompt from (purpose, seed, prompt id) alone.

        Args:
            purpose: what the order is for; other purposes get independent orders.
            seed: of the draw.
            prompts: shuffle these only; the others keep their order.
        """
        order = np.arange(len(self.rows))
        draws = KeyedDraws(purpose, seed)
        starts, sizes = self.starts.tolist(), self.sizes.tolist()
        for prompt in range(len(sizes)) if prompts is None else prompts.tolist():
            first, size = starts[prompt], sizes[prompt]
            order[first : first + size] = first + draws.at(self.prompt_ids[prompt]).permutation(size)
        return order


def text_codes(column: pa.ChunkedArray) -> Ints:
    """A number for each distinct text of a column, counted from 0 as they first occur.

    Args:
        column: (rows,) texts.
    Returns:
        (rows,) the numbers.

    >>> text_codes(pa.chunked_array([["b", "a"], ["b"]])).tolist()
    [0, 1, 0]
    """
    encoded = column.combine_chunks().dictionary_encode()
    return np.asarray(encoded.indices.to_numpy(), dtype=np.int64)


def group_rows(prompt_ids: Any, sample_indices: Any) -> Groups:
    """Rows by prompt.

    Args:
        prompt_ids: (rows,) the prompt each row answers: a sequence of texts or an Arrow array.
        sample_indices: (rows,) which of the prompt's samples it is.
    Raises:
        DataError: a prompt has the same sample index twice.

    >>> groups = group_rows(["b", "a", "b"], [1, 0, 0])
    >>> list(groups.prompt_ids), groups.rows.tolist(), groups.starts.tolist()
    (['b', 'a'], [2, 0, 1], [0, 2, 3])
    """
    column = (
        prompt_ids
        if isinstance(prompt_ids, pa.ChunkedArray)
        else pa.chunked_array([pa.array(prompt_ids, pa.string())])
    )
    encoded = column.combine_chunks().dictionary_encode()
    codes, names = encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
    indices = np.asarray(sample_indices, dtype=np.int64)
    rows = np.lexsort((indices, codes))
    codes, indices = codes[rows], indices[rows]
    twice = np.flatnonzero((codes[1:] == codes[:-1]) & (indices[1:] == indices[:-1]))
    if len(twice):
        place = twice[0]
        raise DataError(
            f"prompt '{names[codes[place]]}' has sample {indices[place]} twice. The same samples were "
            "probably given twice, or two prompts share an id."
        )
    return Groups(names, rows, _starts(np.bincount(codes, minlength=len(names))))


def _starts(sizes: Any) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
