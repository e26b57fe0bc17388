"""Rows as one of TRL's trainers has prepared them: how many there are, and what each takes to compute."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

Indices = NDArray[np.int64]
# what TRL calls the sequences of a row, and whether the prompt is in a column of its own
_SEQUENCES = (
    (("input_ids",), False),
    (("chosen_ids", "rejected_ids"), True),
    (("chosen_input_ids", "rejected_input_ids"), False),
    (("completion_ids",), True),
)
# rows looked at together
BATCH = 10_000


class Counted(NamedTuple):
    """What a trainer trains on.

    Attributes:
        rows: without those left out, after packing.
        tokens: of them all without padding; of pairs, both answers, each with its prompt. None: not counted.
        passes: forward passes per step, where `max_tokens_per_batch` decides.
    """

    rows: int | None
    tokens: int | None
    passes: int | None = None


def count_rows(trainer: Any) -> Counted:
    """Count what a trainer trains on, as it has prepared it: cut, packed, without what was left out."""
    prepared, batches = trainer.train_dataset, trainer.length_batches
    passes = batches.passes if batches is not None and batches.max_tokens else None
    tokens = 0
    for batch in prepared.with_format("arrow").iter(batch_size=BATCH):
        lengths = sequence_lengths(batch, trainer.args.max_length)
        if lengths is None:
            return Counted(len(prepared), None, passes)
        tokens += sum(int(each.sum()) for each in lengths)
    return Counted(len(prepared), tokens, passes)


def row_costs(trainer: Any, *, is_shared: bool) -> Indices:
    """Tokens that each row takes to compute in a batch of rows like it.

    Args:
        trainer: with its training rows in memory.
        is_shared: a pair is one row, prompt and both answers; otherwise two, padded to the longer.
    Returns:
        (rows,) tokens.
    Raises:
        ValueError: the rows are in no form known here.
    """
    limit = trainer.args.max_length
    costs = []
    for batch in trainer.train_dataset.with_format("arrow").iter(batch_size=BATCH):
        lengths = sequence_lengths(batch, limit)
        if lengths is None:
            raise ValueError(f"rows with columns {', '.join(batch.column_names)} have no length known here")
        if is_shared and len(lengths) == 2:
            costs.append(sum(lengths) - np.minimum(_common(batch), np.minimum(*lengths)))
        else:
            costs.append(len(lengths) * np.max(lengths, axis=0))
    return np.concatenate(costs) if costs else np.zeros(0, np.int64)


def sequence_lengths(batch: Any, max_length: int | None) -> list[Indices] | None:
    """(rows,) tokens of each sequence, at most `max_length`; None of rows in no form known here.

    Pairs and feedback are cut only when they are batched.
    """
    known = (form for form in _SEQUENCES if set(form[0]) <= set(batch.column_names))
    names, has_prompt = next(known, ((), False))
    if not names:
        return None
    prompt = _list_lengths(batch["prompt_ids"]) if has_prompt and "prompt_ids" in batch.column_names else 0
    limit = max_length or np.iinfo(np.int64).max
    return [np.minimum(prompt + _list_lengths(batch[name]), limit) for name in names]


def _common(batch: Any) -> Indices:
    """(rows,) tokens that both sequences of a pair begin with."""
    if "prompt_ids" in batch.column_names:
        return _list_lengths(batch["prompt_ids"])
    names = next(names for names, _ in _SEQUENCES if set(names) <= set(batch.column_names))
    chosen, rejected = (batch[name].to_numpy() for name in names)
    common = np.zeros(len(chosen), np.int64)
    for row, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        shortest = min(len(one), len(other))
        differs = one[:shortest] != other[:shortest]
        common[row] = differs.argmax() if differs.any() else shortest
    return common


def _list_lengths(column: Any) -> Indices:
    return np.asarray(pc.list_value_length(column).to_numpy(), dtype=np.int64)
