"""Which rows `training.max_length` leaves out or cuts: counted as a trainer has prepared them, and said."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset

from handbook_utils.chat.loss_masks import Turn, encode_conversations
from handbook_utils.data.training_data import SAMPLE
from handbook_utils.errors import DataError
from handbook_utils.runs.log import warn_and_log
from handbook_utils.schema.training import TrainingRecipe
from handbook_utils.training.plan import setting
from handbook_utils.training.rows.prepared import BATCH, sequence_lengths
from handbook_utils.training.rows.tokenized import turn_of

# of pairs whose prompt and answers are one sequence each, what is learned of them
_LABELS = ("chosen_labels", "rejected_labels")


class LengthWarning(UserWarning):
    """Rows are longer than `training.max_length`, and so are left out or cut."""


class Shortened(NamedTuple):
    """What `max_length` did to some rows.

    Attributes:
        left_out: rows that are not trained on.
        cut: rows of which the end is missing, or with `truncation_mode: keep_end` the beginning.
    """

    left_out: int
    cut: int


def report_lengths(
    trainer: Any, data: tuple[Dataset, Dataset | None], *, end: int, quiet: bool = False
) -> Shortened | None:
    """Count what `max_length` left out or cut, and warn of it: the trainers do either in silence.

    Args:
        trainer: with its rows prepared.
        data: training and held-out rows as they were given to it.
        end: the token that ends an answer.
        quiet: count without a warning, as processes that are not the main one do.
    Returns:
        What became of the training rows; None where packing has cut them in pieces, which loses none.
    Raises:
        DataError: no row is left.
    """
    found = None
    for which, given, prepared in zip(
        ("", "held-out "), data, (trainer.train_dataset, trainer.eval_dataset), strict=True
    ):
        if given is None or prepared is None:
            continue
        # held-out rows are never packed where the recipe does not ask for it
        packs = getattr(trainer.args, "eval_packing" if which else "packing", None)
        packs = getattr(trainer.args, "packing", False) if packs is None else packs
        counted = left_out_and_cut(prepared, given, trainer.args, end=end, packs=packs)
        if counted is not None:
            _say(counted, len(given), which, trainer.args, quiet=quiet)
        found = found if which else counted
    return found


def left_out_and_cut(
    prepared: Dataset, given: Dataset, arguments: Any, *, end: int, packs: bool
) -> Shortened | None:
    """How many rows `max_length` left out, and of how many it cut a part off.

    Args:
        prepared: the rows as the trainer has prepared them.
        given: the rows it was given.
        arguments: the trainer's.
        end: the token that ends an answer.
        packs: whether several rows were joined into one.
    Returns:
        None where packing has cut rows in pieces, which loses none.
    """
    limit = arguments.max_length
    if limit is None:
        return Shortened(0, 0) if packs else Shortened(len(given) - len(prepared), 0)
    if not packs:
        return Shortened(len(given) - len(prepared), _cut(prepared, given, arguments, end))
    if "seq_lengths" not in prepared.column_names or arguments.packing_strategy != "bfd":
        return None
    # what is as long as a row has one to itself; cut before its answer, there is nothing left to learn
    full = [line for line, lengths in enumerate(prepared["seq_lengths"]) if lengths == [limit]]
    whole = [row for row in prepared.select(full) if row["input_ids"][-1] != end]
    without_answer = sum(set(row["labels"]) == {-100} for row in whole)
    return Shortened(without_answer, len(whole) - without_answer)


def with_answers(rows: Dataset | None) -> Dataset | None:
    """Rows of ORPO and CPO without those of which `max_length` left no answer: their loss is no number."""
    if rows is None or not set(_LABELS) <= set(rows.column_names):
        return rows
    learned = [
        number
        for number, labels in enumerate(zip(*(rows[name] for name in _LABELS), strict=True))
        if all(any(label != -100 for label in side) for side in labels)
    ]
    return rows if len(learned) == len(rows) else rows.select(learned)


def check_stream_lengths(recipe: TrainingRecipe, tokenizer: Any, rows: IterableDataset) -> None:
    """Warn where the first rows of a stream, which is never counted, are longer than `max_length`."""
    limit = setting(recipe, "max_length")
    if not limit:
        return
    sample = list(islice(rows, SAMPLE))
    if "text" in (sample[0] if sample else {}):
        lengths = [len(ids) for ids in tokenizer([row["text"] for row in sample])["input_ids"]]
    else:
        sides = [name for name in ("completion", "chosen", "rejected") if sample and name in sample[0]]
        each = [_tokens(tokenizer, [turn_of(row, side) for row in sample]) for side in sides]
        lengths = list(map(max, *each)) if len(each) > 1 else list(*each)
    if too_long := sum(length > limit for length in lengths):
        warn_and_log(
            f"{too_long} of the first {len(sample)} rows of the stream are longer than training.max_length = "
            f"{limit} tokens. Such rows are cut, or left out where nothing to learn would remain.",
            LengthWarning,
        )


def _tokens(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    told = [{"tools": turn.tools or None, **turn.options} for turn in turns]
    whole = [[*turn.prompt, *turn.answer] for turn in turns]
    return [len(ids) for ids in encode_conversations(tokenizer, whole, template_kwargs=told)]


def _cut(prepared: Dataset, given: Dataset, arguments: Any, end: int) -> int:
    """Rows that are there and lack a part."""
    limit: int = arguments.max_length
    columns = set(prepared.column_names)
    if "input_ids" in given.column_names:  # tokenized before TRL cut them: what it left out was longer too
        longer = sum(1 for row in given["input_ids"] if len(row) > limit)
        return max(0, longer - (len(given) - len(prepared)))
    if "input_ids" in columns:
        keeps_end = getattr(arguments, "truncation_mode", "") == "keep_end"
        ids = prepared["input_ids"]
        return sum(1 for row in ids if len(row) == limit and (keeps_end or row[-1] != end))
    if "chosen_input_ids" in columns:  # ORPO and CPO cut before they batch
        sides = zip(prepared["chosen_input_ids"], prepared["rejected_input_ids"], strict=True)
        return sum(1 for pair in sides if any(len(row) >= limit and row[-1] != end for row in pair))
    cut = 0
    for batch in prepared.with_format("arrow").iter(batch_size=BATCH):
        lengths = sequence_lengths(batch, None)
        cut += 0 if lengths is None else int((np.max(lengths, axis=0) > limit).sum())
    return cut


def _say(found: Shortened, rows: int, which: str, arguments: Any, *, quiet: bool) -> None:
    limit = arguments.max_length
    if found.left_out == rows:
        raise DataError(
            f"all {rows} {which}rows are longer than training.max_length = {limit} tokens. Raise it."
        )
    if quiet:
        return
    if found.left_out:
        warn_and_log(
            f"{found.left_out} of {rows} {which}rows do not fit into training.max_length = {limit} tokens: "
            "left out.",
            LengthWarning,
        )
    if found.cut:
        lost = "ends are cut off, and with them the token that ends an answer"
        if getattr(arguments, "truncation_mode", "") == "keep_end":
            lost = "beginnings are cut off"
        warn_and_log(
            f"{found.cut} of {rows} {which}rows are longer than training.max_length = {limit} tokens: their "
            f"{lost}.",
            LengthWarning,
        )
