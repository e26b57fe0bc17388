"""Tokens of the rows that will be trained on, and the batches they will stand in: arrays in, batches out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from handbook_utils.planning.step import Batch
from handbook_utils.shared_prefix.batching import LengthBatches

Counts = NDArray[np.int64]
# passes looked at for the largest: each epoch shuffles anew, so one stands for all
MOST_BATCHES = 200_000


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows, before `max_length` cuts them.

    Attributes:
        prompts: (rows,) tokens that carry no loss, at the beginning.
        answers: (rows, answers per row) tokens that carry the loss; two of a pair.
    """

    prompts: Counts
    answers: Counts

    def __len__(self) -> int:
        return len(self.prompts)

    def cut(self, max_length: int | None) -> Lengths:
        """As `max_length` cuts the end of each sequence."""
        if max_length is None:
            return self
        prompts = np.minimum(self.prompts, max_length)
        return Lengths(prompts, np.minimum(self.answers, max_length - prompts[:, None]))

    @property
    def sequences(self) -> Counts:
        """(rows, answers per row) tokens of each sequence, prompt included."""
        return np.asarray(self.prompts[:, None] + self.answers)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return int(self.sequences.sum())

    def lost(self, max_length: int) -> float:
        """Share of the tokens that carry a loss, of which `max_length` leaves nothing."""
        whole = int(self.answers.sum())
        return 0.0 if whole == 0 else 1 - int(self.cut(max_length).answers.sum()) / whole


def batch_of(rows: Lengths, *, shares: bool = False, has_loss_head: bool = True) -> Batch:
    """The batch that some rows make.

    Args:
        rows: as `max_length` has cut them.
        shares: whether a pair's prompt is computed once for both its answers.
        has_loss_head: whether the tokens with a loss are projected to the vocabulary.

    >>> rows = Lengths(np.array([3, 2]), np.array([[4, 2], [3, 3]]))
    >>> batch = batch_of(rows, shares=True)
    >>> batch.rows, batch.width, batch.loss_tokens, batch.shared
    (4, 7, 12, (2, 9))
    """
    sequences = rows.sequences
    # the first token of a sequence is given, never predicted
    loss = int(np.where(rows.prompts[:, None] == 0, rows.answers - 1, rows.answers).clip(min=0).sum())
    width = int(sequences.max())
    batch = Batch(
        rows=sequences.size,
        width=width,
        loss_tokens=loss if has_loss_head else 0,
        is_padded=bool((sequences != width).any()),
    )
    if not shares or rows.answers.shape[1] < 2:
        return batch
    together = rows.prompts + rows.answers.sum(axis=1)
    return replace(batch, shared=(len(rows), int(together.max())))


def largest_batch(
    rows: Lengths,
    size: int,
    *,
    by_length: bool = False,
    max_tokens: int | None = None,
    seed: int = 0,
    shares: bool = False,
    has_loss_head: bool = True,
) -> Batch:
    """The batch of an epoch that takes most memory, as far as its tokens say.

    Args:
        rows: as `max_length` has cut them.
        size: rows of a batch on one device.
        by_length: rows of like length stand together, as `length_batching` puts them.
        max_tokens: instead of a size, the most tokens of a batch.
        seed: of the order in which rows are drawn.
        shares, has_loss_head: as for `batch_of`.
    """
    costs = rows.prompts + rows.answers.sum(axis=1) if shares else rows.sequences.max(axis=1)
    if max_tokens is not None:
        # whatever the order, a batch of the longest row with as many like it as may stand together
        width = int(costs.max()) * (1 if shares else rows.answers.shape[1])
        size = max(1, max_tokens // max(1, width))
    longest = np.argsort(-costs, kind="stable")
    if max_tokens is not None or len(rows) <= size:
        chosen = longest[:size]
    elif by_length:
        batches = LengthBatches(costs, step_rows=size, seed=seed)
        chosen = np.array(max(batches.epoch(0), key=lambda each: costs[each[0]]))
    else:
        order = np.random.default_rng(seed).permutation(len(rows))[: MOST_BATCHES * size]
        whole = order[: len(order) // size * size].reshape(-1, size)
        widest = costs[whole].max(axis=1)
        # of the batches with the longest rows, the one with most tokens that carry a loss
        ties = whole[widest == widest.max()]
        chosen = ties[rows.answers[ties].sum(axis=(1, 2)).argmax()]
    part = Lengths(rows.prompts[chosen], rows.answers[chosen])
    return batch_of(part, shares=shares, has_loss_head=has_loss_head)
