"""Rows that begin alike as one row: index arithmetic, with no model in it.

    rows of one prompt      the shared row
    p p p a a               p p p a a b b b
    p p p b b b

A response keeps the positions it had in its own row, and attends to the prompt and to itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
# of a token in `SharedRows.parts`
PREFIX, PADDING = 0, -1


@dataclass(frozen=True)
class SharedRows:
    """Where every token goes, and where it came from.

    Attributes:
        sources: (shared rows, width) flat index of each token in the rows; PADDING where there is none.
        positions: (shared rows, width) its position in its own row; 0 at padding.
        parts: (shared rows, width) PREFIX, or k for the k-th row's own tokens, from 1; PADDING.
        places: (rows, columns) flat index of each token in the shared rows; PADDING where there is none.
    """

    sources: Indices
    positions: Indices
    parts: Indices
    places: Indices

    @property
    def tokens(self) -> int:
        """Tokens the decoder computes, padding left out."""
        return int((self.parts != PADDING).sum())

    @property
    def widths(self) -> Indices:
        """(shared rows,) tokens of each."""
        return np.asarray((self.parts != PADDING).sum(axis=1))

    def only(self, chosen: Indices) -> SharedRows:
        """Some of the shared rows, no wider than they are; `places` are left out."""
        width = int(self.widths[chosen].max(initial=0))
        sources, positions, parts = (
            each[chosen, :width] for each in (self.sources, self.positions, self.parts)
        )
        return SharedRows(sources, positions, parts, places=np.zeros((0, 0), np.int64))


def rows_apart(shape: Sequence[int], lengths: Indices) -> SharedRows:
    """Lay rows out as they are: nothing is shared.

    Args:
        shape: rows and columns of the batch, padded on the right.
        lengths: (rows,) tokens of each row.
    """
    columns = np.broadcast_to(np.arange(shape[1]), tuple(shape))
    is_token = columns < lengths[:, None]
    places = np.where(is_token, np.arange(columns.size).reshape(columns.shape), PADDING)
    return SharedRows(places, np.where(is_token, columns, 0), np.where(is_token, PREFIX, PADDING), places)


def share_rows(ids: Indices, lengths: Indices, groups: Sequence[int]) -> SharedRows:
    """Lay rows out so that what the rows of a group have in common at their beginning stands once.

    Args:
        ids: (rows, columns) token ids, padded on the right.
        lengths: (rows,) tokens of each row.
        groups: (rows,) the group of each row, such as the number of its prompt; shared rows come in the
            order of their first rows.

    >>> rows = share_rows(np.array([[5, 6, 7, 8], [5, 6, 9, 0]]), np.array([4, 3]), [0, 0])
    >>> rows.parts.tolist(), rows.positions.tolist()
    ([[0, 0, 1, 1, 2]], [[0, 1, 2, 3, 2]])
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    prefixes = [_common_prefix(ids[rows], lengths[rows]) for rows in members.values()]
    widths = [
        prefix + int((lengths[rows] - prefix).sum())
        for rows, prefix in zip(members.values(), prefixes, strict=True)
    ]
    shape = (len(members), max(widths, default=0))
    sources, parts = np.full(shape, PADDING), np.full(shape, PADDING)
    positions, places = np.zeros(shape, np.int64), np.full(ids.shape, PADDING)
    columns = ids.shape[1]
    for shared, (rows, prefix) in enumerate(zip(members.values(), prefixes, strict=True)):
        end = 0
        for part, row in enumerate(rows, start=1):
            begin = 0 if part == 1 else prefix  # the first row brings the prefix along
            own = np.arange(begin, lengths[row])
            there = slice(end, end + len(own))
            sources[shared, there] = row * columns + own
            positions[shared, there] = own
            parts[shared, there] = np.where(own < prefix, PREFIX, part)
            places[row, begin : lengths[row]] = shared * shape[1] + np.arange(end, end + len(own))
            places[row, :begin] = shared * shape[1] + np.arange(begin)
            end += len(own)
    return SharedRows(sources, positions, parts, places)


def attention(parts: Indices) -> NDArray[np.bool_]:
    """Who may attend to whom: (shared rows, queries, keys), True where allowed.

    Padding attends to padding, because a softmax over nothing is not a number.
    """
    query, key = parts[:, :, None], parts[:, None, :]
    causal = np.tri(parts.shape[1], dtype=bool)
    return np.asarray(causal & ((key == PREFIX) | (key == query)))


def runs_of_like_width(widths: Indices, overhead: float) -> list[Indices]:
    """Cut rows into runs that are computed one after another, each as wide as its widest row.

    Args:
        widths: (n,) tokens of each row.
        overhead: what one more run costs, in tokens.
    Returns:
        Row numbers of each run, the widest rows first: padding and overhead together are as small as can be.

    >>> [run.tolist() for run in runs_of_like_width(np.array([9, 40, 10, 41]), overhead=8)]
    [[3, 1], [2, 0]]
    >>> [run.tolist() for run in runs_of_like_width(np.array([9, 40, 10, 41]), overhead=80)]
    [[3, 1, 2, 0]]
    """
    order = np.argsort(-widths, kind="stable")
    falling = widths[order].astype(float)
    least, begins = np.zeros(len(order) + 1), np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):  # the last run ends here; where does it best begin?
        costs = least[:end] + (end - np.arange(end)) * falling[:end] + overhead
        begins[end] = int(costs.argmin())
        least[end] = costs[begins[end]]
    runs, end = [], len(order)
    while end:
        runs.append(order[begins[end] : end])
        end = int(begins[end])
    return runs[::-1]


def rows_together(prefix: int, own: float, hidden_size: int) -> int:
    """How many rows of one prompt are cheapest in one shared row.

    With k rows together each costs its own tokens, a k-th of the prefix's, and a k-th of attention over the
    whole width: own + prefix / k + (prefix + k own)^2 / (6 hidden_size k) in units of one token through a
    layer's weights, 24 hidden_size^2 operations, where attention takes 4 hidden_size for a pair of tokens.

    Args:
        prefix: tokens they have in common.
        own: tokens of each besides, on average.
        hidden_size: of the decoder.

    >>> rows_together(200, 64, 256), rows_together(2000, 64, 4096), rows_together(3, 50, 128)
    (9, 114, 1)
    """
    together = math.sqrt(6 * prefix * hidden_size + prefix**2) / max(own, 1)
    return max(1, round(together))


def _common_prefix(ids: Indices, lengths: Indices) -> int:
    """Tokens that all rows have in common at their beginning."""
    shortest = int(lengths.min())
    differs = (ids[:, :shortest] != ids[0, :shortest]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest
