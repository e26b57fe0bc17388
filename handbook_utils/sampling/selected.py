"""What was selected as tables that can be trained on: answers, or pairs of them, as messages."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from handbook_utils.sampling.selection.groups import Ints
from handbook_utils.sampling.tables import MESSAGES, answer_messages


def selected_answers(table: pa.Table, rows: Ints, *, scores: Sequence[str]) -> pa.Table:
    """Prompt and completion of the rows as messages, and their scores."""
    taken = table.take(pa.array(rows))
    columns = {
        "prompt_id": taken["prompt_id"],
        "prompt": taken["prompt"].cast(MESSAGES),
        "completion": answer_messages(taken["completion"].combine_chunks()),
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
        "chosen": answer_messages(chosen["completion"].combine_chunks()),
        "rejected": answer_messages(rejected["completion"].combine_chunks()),
    }
    if gold is not None:
        columns |= {"gold_chosen": chosen[gold], "gold_rejected": rejected[gold]}
    return pa.table(columns)
