"""Which rows are computed together: batches of like length, so that little of them is padding.

A step of the optimiser is cut into passes, and a pass into one batch for each process. Rows of like length
share a pass, and the rows of a pass are dealt to the processes in turn, so all have as many rows and nearly
as many tokens to compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
# passes that are sorted together: more would pad less, but less would be left to chance. Of batches of 8 rows
# of log-normal length (sigma 0.5) 3 % is padding with 64 passes, 9 % with 16, 47 % unsorted
POOL = 64


@dataclass(frozen=True)
class LengthBatches:
    """The batches of every epoch: each row once, in an order that only seed and epoch decide.

    Attributes:
        costs: (rows,) tokens that each row takes to compute.
        step_rows: rows per optimiser step, over all processes; a multiple of `processes`.
        processes: that train together.
        passes: forward passes per optimiser step.
        max_tokens: most tokens in a batch, padding included; absent: every batch has
            step_rows / (processes * passes) rows.
        seed: of the shuffling.
        drop_last: leave out the rows of a last step that is not full.
    """

    costs: Indices
    step_rows: int
    processes: int = 1
    passes: int = 1
    max_tokens: int | None = None
    seed: int = 0
    drop_last: bool = False

    def __len__(self) -> int:
        """Batches per epoch for each process."""
        full, rest = divmod(len(self.costs), self.step_rows)
        if not rest or self.drop_last:
            return full * self.passes
        slots = math.ceil(rest / self.processes)
        return full * self.passes + (
            math.ceil(slots / self._slots_a_pass) if self.max_tokens is None else min(self.passes, slots)
        )

    def epoch(self, number: int, rank: int = 0) -> list[list[int]]:
        """One process's batches in order: row numbers, the longest first in each."""
        passes = (rows for step in self._steps(self._order(number), number) for rows in step)
        return [rows[rank :: self.processes].tolist() for rows in passes]

    def passes_needed(self, epochs: int) -> int:
        """The fewest passes per step in which every step of these epochs keeps within `max_tokens`.

        Raises:
            ValueError: a row is larger than that by itself.
        """
        if self.max_tokens is None:
            return self.passes
        if self.costs.max(initial=0) > self.max_tokens:
            raise ValueError(f"a row takes {self.costs.max():,} tokens, and {self.max_tokens:,} is the most")
        most = 1
        for number in range(epochs):
            full, rest = self._full_and_rest(self._order(number))
            for rows in (*full, rest):
                widths = self.costs[self._sorted(rows)][:: self.processes]
                most = max(most, len(_ends_within(widths, self.max_tokens)))
        return most

    def _order(self, number: int) -> Indices:
        return np.random.default_rng([self.seed, number]).permutation(len(self.costs))

    @property
    def _slots_a_pass(self) -> int:
        """Rows of each process's batch where all have as many."""
        return self.step_rows // (self.processes * self.passes)

    def _steps(self, order: Indices, number: int) -> Iterator[list[Indices]]:
        """The passes of each step; a pass holds its rows by falling cost, as many for each process."""
        full, rest = self._full_and_rest(order)
        if self.max_tokens is None:
            yield from self._mixed(full.reshape(-1), number)
        else:  # each by itself: its gradient is that of rows drawn at random
            yield from (self._cut(self._sorted(rows)) for rows in full)
        if len(rest):
            yield self._cut(self._sorted(rest))

    def _full_and_rest(self, order: Indices) -> tuple[Indices, Indices]:
        """Rows of the full steps, (steps, step_rows), and of a last one that is smaller."""
        whole = len(order) // self.step_rows * self.step_rows
        rest = order[whole:] if not self.drop_last else order[:0]
        # every process needs a row: the first rows of the epoch come again, as PyTorch's samplers do it
        filled = -(-len(rest) // self.processes) * self.processes
        return order[:whole].reshape(-1, self.step_rows), np.resize(np.append(rest, order), filled)

    def _mixed(self, order: Indices, number: int) -> Iterator[list[Indices]]:
        """Steps of passes that were sorted together with those of neighbouring steps."""
        draw = np.random.default_rng([self.seed, number, 1])
        size = self.step_rows * max(1, POOL // self.passes)
        for begin in range(0, len(order), size):
            passes = self._cut(self._sorted(order[begin : begin + size]))
            shuffled = [passes[index] for index in draw.permutation(len(passes))]
            for first in range(0, len(shuffled), self.passes):
                yield shuffled[first : first + self.passes]

    def _sorted(self, rows: Indices) -> Indices:
        return rows[np.argsort(-self.costs[rows], kind="stable")]

    def _cut(self, rows: Indices) -> list[Indices]:
        """Passes of sorted rows."""
        if self.max_tokens is None:
            size = self._slots_a_pass * self.processes
            return [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        widths = self.costs[rows[:: self.processes]]
        ends = balanced_ends(widths, min(self.passes, len(widths)))
        return list(np.split(rows, np.array(ends[:-1], dtype=np.int64) * self.processes))


def balanced_ends(widths: Indices, parts: int) -> list[int]:
    """Cut falling widths into so many runs that the largest of them, with its padding, is as small as can be.

    Args:
        widths: (n,) tokens of each row, from the longest on; a run costs its rows times its first width.
        parts: between 1 and n.
    Returns:
        Where each run ends.

    >>> balanced_ends(np.array([9, 3, 3, 2, 1]), 2), balanced_ends(np.array([5, 5, 5, 5]), 3)
    ([1, 5], [1, 2, 4])
    """
    low, high = int(widths[0]), int(widths[0]) * len(widths)
    while low < high:  # the smallest limit that needs no more parts
        middle = (low + high) // 2
        low, high = (low, middle) if len(_ends_within(widths, middle)) <= parts else (middle + 1, high)
    ends = _ends_within(widths, low)
    while len(ends) < parts:  # what fits in fewer is cut further, the longest run first
        begins = [0, *ends[:-1]]
        index = int(np.argmax(np.array(ends) - np.array(begins)))
        ends.insert(index, (begins[index] + ends[index]) // 2)
    return ends


def _ends_within(widths: Indices, limit: int) -> list[int]:
    """Where runs end that are as long as the limit lets them be."""
    ends, begin = [], 0
    while begin < len(widths):
        begin += min(len(widths) - begin, max(1, limit // max(1, int(widths[begin]))))
        ends.append(begin)
    return ends
