"""What was selected as tables that can be trained on: answers, or pairs of them, as messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from handbook_utils.sampling.groups import Ints
from handbook_utils.sampling.tables import MESSAGES


def selected_answers(table: pa.Table, rows: Ints, *, scores: Sequence[str]) -> pa.Table:
    """Prompt and completion of the rows as messages, and their scores."""
    taken = table.take(pa.array(rows))
    columns = {
        "prompt_id": taken["prompt_id"],
        "prompt": taken["prompt"].cast(MESSAGES),
        "completion": _answers(taken["completion"]),
    }
    return pa.table({**columns, **{name: taken[name].cast(pa.float64()) for name in scores}})


def selected_pairs(table: pa.Table, pairs: Ints, *, gold: str | None) -> pa.Table:
    """Prompt, chosen and rejected as messages; the gold reward of both where there is one.

    Args:
        pairs: (pairs, 2) rows of the chosen and of the rejected answers.
        gold: its column.
    """
    chosen, rejected = table.take(pa.array(pairs[:, 0])), table.take(pa.array(pairs[:, 1]))
    columns = {
        "prompt_id": chosen["prompt_id"],
        "prompt": chosen["prompt"].cast(MESSAGES),
        "chosen": _answers(chosen["completion"]),
        "rejected": _answers(rejected["completion"]),
    }
    if gold is not None:
        columns |= {"gold_chosen": chosen[gold], "gold_rejected": rejected[gold]}
    return pa.table(columns)


def _answers(texts: pa.ChunkedArray) -> pa.Array:
    """Each text as a conversation of one message of the assistant."""
    contents = texts.combine_chunks().cast(pa.string())
    roles = pa.array(["assistant"], pa.string()).take(pa.array(np.zeros(len(contents), dtype=np.int64)))
    messages = pa.StructArray.from_arrays([roles, contents], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(len(contents) + 1), pa.int32()), messages).cast(
        MESSAGES
    )
