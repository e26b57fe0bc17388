"""What a batch of conversations becomes: token ids and labels, as arrays that Arrow keeps as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from handbook_utils.chat.loss_masks import (
    RenderedTurns,
    TokenRow,
    Turn,
    encode_turns,
    join_turns,
    render_turns,
)
from handbook_utils.chat.word_tokenizer import WordTokenizer

TOKENS = pa.schema(dict.fromkeys(("input_ids", "labels"), pa.list_(pa.int64())))
# turns whose words are held at once
AT_ONCE = 200
# as in `data.row_reader`, which is not loaded here: this runs in processes that have to start quickly
_TEMPLATE_OPTIONS = "chat_template_kwargs"


class RowTokenizer:
    """Tokenizes batches of rows under one chat template, and remembers the words it has met."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._words = tokenizer, WordTokenizer(tokenizer)

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
        """Columns of conversations to columns of `TOKENS`, neighbouring turns of one joined.

        Raises:
            TemplateError: the template refuses a conversation, or its text cannot be tokenized.
        """
        turns = [
            turn_of(dict(zip(rows, row, strict=True)), "completion")
            for row in zip(*rows.values(), strict=True)
        ]
        joined = join_turns(self._encoded(render_turns(self._tokenizer, turns)))
        ends = np.cumsum([0, *(len(row.ids) for row in joined)], dtype=np.int32)
        ids = np.concatenate([np.zeros(0, np.int64), *(row.ids for row in joined)])
        loss = np.concatenate([np.zeros(0, np.bool_), *(row.loss for row in joined)])
        lists = [pa.ListArray.from_arrays(ends, values) for values in (ids, np.where(loss, ids, -100))]
        return pa.RecordBatch.from_arrays(lists, schema=TOKENS)

    def _encoded(self, rendered: RenderedTurns) -> Iterator[TokenRow]:
        for begin in range(0, len(rendered.wholes), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            spans = None if rendered.spans is None else rendered.spans[part]
            some = RenderedTurns(rendered.wholes[part], rendered.prompts[part], spans)
            yield from encode_turns(self._tokenizer, some, self._words.encode)


def turn_of(row: Mapping[str, Any], answer: str) -> Turn:
    """A row's prompt and one of its answers, with what the template is told."""
    return Turn(row["prompt"], row[answer], row.get("tools"), row.get(_TEMPLATE_OPTIONS, {}))


def columns_of(table: pa.Table, as_json: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a table as Python values; those `as_json` hold a text of JSON in each row."""
    columns: dict[str, list[Any]] = table.to_pydict()
    for name in as_json:
        columns[name] = [None if text is None else json.loads(text) for text in columns[name]]
    return columns
