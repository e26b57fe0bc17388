"""Rows as the trainer takes them: the template is checked and answers are marked before a model is loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset

from handbook_utils.chat.checks import check_chat_template
from handbook_utils.chat.loss_masks import (
    RenderedTurns,
    Turn,
    encode_turns,
    join_turns,
    render_turns,
    tokenize_turns,
)
from handbook_utils.data.load import arrow_dataset
from handbook_utils.data.row_reader import TEMPLATE_OPTIONS
from handbook_utils.errors import TemplateError
from handbook_utils.runs.log import warn_and_log
from handbook_utils.schema.training import TrainingRecipe

LOGGER = logging.getLogger("handbook_utils")
# fields that change which tokens a row has or which are learned, and the values under which ours are right
TOKEN_FIELDS: dict[str, tuple[Any, ...]] = {
    "assistant_only_loss": (None, False),
    "chat_template_path": (None,),
    "completion_only_loss": (None, True),
    "dataset_kwargs": (None,),
    "eos_token": (None,),
}
# rows tokenized at once; turns are joined within them
BATCH = 1000
TOKENS = pa.schema(dict.fromkeys(("input_ids", "labels"), pa.list_(pa.int64())))
# rows looked at before training
SAMPLE = 500
# warnings about what only some data has, by the role that has it
NEEDS = {"system-turn": "system", "tool-turns": "tool"}


class TemplateWarning(UserWarning):
    """The chat template, or text in the data, does something that training or sampling has to cope with."""


def training_rows(
    recipe: TrainingRecipe, tokenizer: Any, rows: Dataset | IterableDataset
) -> Dataset | IterableDataset:
    """Tokenize the conversations of SFT, neighbouring turns of one joined where the template allows.

    A stream, the data of other stages and conversations whose recipe sets one of `TOKEN_FIELDS` are left
    to TRL, which learns the same tokens in a row per turn, and takes no notice of generation marks.

    Args:
        recipe: the stage's recipe.
        tokenizer: with a chat template.
        rows: examples in the stage's form.
    Returns:
        A dataset of `input_ids` and `labels`, -100 where no loss falls; or the rows as they are.
    """
    ours = all(recipe.training.get(name) in values for name, values in TOKEN_FIELDS.items())
    if recipe.stage != "sft" or not isinstance(rows, Dataset) or not ours:
        return rows
    return arrow_dataset(_tokenized(tokenizer, rows), TOKENS)


def _tokenized(tokenizer: Any, rows: Dataset) -> Iterator[pa.RecordBatch]:
    """Tokenize a batch of rows while the next is rendered: the one is Rust's work, the other Python's.

    Batches are the same whatever the machine, for turns are joined within one.
    """
    with ThreadPoolExecutor(1) as thread:  # not more: a tokenizer's settings are changed by its use
        waiting: Future[pa.RecordBatch] | None = None
        for number, batch in enumerate(rows.iter(BATCH)):
            columns = zip(*batch.values(), strict=True)
            turns = [turn_of(dict(zip(batch, row, strict=True)), "completion") for row in columns]
            place = f"{number * BATCH + 1} to {number * BATCH + len(turns)}"
            with _placed(place):
                rendered = render_turns(tokenizer, turns)
            if waiting is not None:
                yield waiting.result()
            waiting = thread.submit(_record_batch, tokenizer, rendered, place)
        if waiting is not None:
            yield waiting.result()


def _record_batch(tokenizer: Any, rendered: RenderedTurns, place: str) -> pa.RecordBatch:
    with _placed(place):
        joined = join_turns(encode_turns(tokenizer, rendered))
    ends = np.cumsum([0, *(len(row.ids) for row in joined)], dtype=np.int32)
    ids = np.fromiter(chain.from_iterable(row.ids for row in joined), np.int64, ends[-1])
    loss = np.fromiter(chain.from_iterable(row.loss for row in joined), np.bool_, ends[-1])
    lists = [pa.ListArray.from_arrays(ends, values) for values in (ids, np.where(loss, ids, -100))]
    return pa.RecordBatch.from_arrays(lists, schema=TOKENS)


@contextmanager
def _placed(place: str) -> Iterator[None]:
    try:
        yield
    except TemplateError as error:
        raise TemplateError(f"training rows {place}: {error}") from error


def check_rows(tokenizer: Any, rows: Dataset | IterableDataset) -> None:
    """Refuse a chat template that would spoil training, on small conversations and on the first rows.

    Raises:
        TemplateError: what is wrong and what to do.
    """
    report = check_chat_template(tokenizer)
    if not report.ok:
        wrong = " ".join(f"[{c.name}] {c.message} {c.remedy}" for c in report.failed("error"))
        raise TemplateError(f"training with this chat template would go wrong. {wrong}")
    turns = [turn_of(row, "completion" if "completion" in row else "chosen") for row in islice(rows, SAMPLE)]
    roles = {message["role"] for turn in turns for message in turn.prompt}
    for check in report.failed("warning"):
        if NEEDS.get(check.name, "user") in {"user", *roles}:
            warn_and_log(f"chat template, {check.name}: {check.message} {check.remedy}", TemplateWarning)
    _check_prompts(tokenizer, turns)
    _check_text(tokenizer, turns)


def turn_of(row: Mapping[str, Any], answer: str) -> Turn:
    """A row's prompt and one of its answers, with what the template is told."""
    return Turn(row["prompt"], row[answer], row.get("tools"), row.get(TEMPLATE_OPTIONS, {}))


def _check_prompts(tokenizer: Any, turns: Sequence[Turn]) -> None:
    """Each row has to begin with the prompt that inference would give."""
    rows = tokenize_turns(tokenizer, turns)
    apart = [row for row in rows if row.start < row.prompt_tokens]
    if not apart:
        return
    row = apart[0]
    message = (
        f"{len(apart)} of the first {len(rows)} rows do not begin with the prompt that inference would give: "
        f"behind {tokenizer.decode(row.ids[: row.start][-8:])!r} they go on otherwise. The usual causes: an "
        "answer that begins with white space, or without the thinking that the template opens."
    )
    if 2 * len(apart) > len(rows):
        raise TemplateError(f"{message} So many would train the model on contexts it never meets.")
    warn_and_log(message, TemplateWarning)


def _check_text(tokenizer: Any, turns: Sequence[Turn]) -> None:
    """Say where messages hold special tokens written out: they become the tokens themselves."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not special:
        return
    written = re.compile("|".join(map(re.escape, special)))
    found = [
        (number, match.group())
        for number, turn in enumerate(turns, start=1)
        for message in [*turn.prompt, *turn.answer]
        if (match := written.search(str(message.get("content") or "")))
    ]
    if found:
        number, token = found[0]
        warn_and_log(
            f"row {number} and {len({n for n, _ in found}) - 1} more of the first {len(turns)}: a message "
            f"holds {token!r}, which becomes the special token and not its text. Remove or rewrite it.",
            TemplateWarning,
        )
