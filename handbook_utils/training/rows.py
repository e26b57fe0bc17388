"""Rows as the trainer takes them: the template is checked and answers are marked before a model is loaded."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from handbook_utils.data.template_checks import check_chat_template
from handbook_utils.data.turns import Turn, join_turns, tokenize_turns
from handbook_utils.data.values import TEMPLATE_OPTIONS
from handbook_utils.errors import TemplateError
from handbook_utils.recipe_schema import TrainingRecipe

LOGGER = logging.getLogger("handbook_utils")
# fields that change which tokens a row has or which are learned, and the values under which ours are right
TOKEN_FIELDS: dict[str, tuple[Any, ...]] = {
    "assistant_only_loss": (None, False),
    "chat_template_path": (None,),
    "completion_only_loss": (None, True),
    "dataset_kwargs": (None,),
    "eos_token": (None,),
}
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
    to TRL, which learns the same tokens in a row a turn, and takes no notice of generation marks.

    Args:
        recipe: the stage's recipe.
        tokenizer: with a chat template.
        rows: examples in the stage's form.
    Returns:
        A dataset of `input_ids` and `labels`, -100 where no loss falls; or the rows as they are.
    """
    ours = all(recipe.training.get(name) in values for name, values in TOKEN_FIELDS.items())
    if recipe.stage != "sft" or not isinstance(rows, Dataset) or not ours:  # type: ignore[attr-defined]
        return rows

    def tokenize(batch: Mapping[str, Sequence[Any]], places: Sequence[int]) -> dict[str, list[Any]]:
        rows = ({name: values[i] for name, values in batch.items()} for i in range(len(places)))
        turns = [_turn(row, "completion") for row in rows]
        try:
            joined = join_turns(tokenize_turns(tokenizer, turns))
        except TemplateError as error:
            raise TemplateError(f"training rows {places[0] + 1} to {places[-1] + 1}: {error}") from error
        ids = [np.array(row.ids, dtype=np.int64) for row in joined]
        labels = [np.where(row.loss, row_ids, -100) for row, row_ids in zip(joined, ids, strict=True)]
        return {"input_ids": ids, "labels": labels}

    made: Dataset = rows.map(tokenize, batched=True, with_indices=True, remove_columns=rows.column_names)
    return made


def check_rows(tokenizer: Any, rows: Dataset | IterableDataset) -> None:
    """Refuse a chat template that would spoil training, on small conversations and on the first rows.

    Raises:
        TemplateError: what is wrong and what to do.
    """
    report = check_chat_template(tokenizer)
    if not report.ok:
        wrong = " ".join(f"[{c.name}] {c.message} {c.remedy}" for c in report.failed("error"))
        raise TemplateError(f"training with this chat template would go wrong. {wrong}")
    turns = [_turn(row, "completion" if "completion" in row else "chosen") for row in islice(rows, SAMPLE)]
    roles = {message["role"] for turn in turns for message in turn.prompt}
    for check in report.failed("warning"):
        if NEEDS.get(check.name, "user") in {"user", *roles}:
            tell(f"chat template, {check.name}: {check.message} {check.remedy}", TemplateWarning)
    _check_prompts(tokenizer, turns)
    _check_text(tokenizer, turns)


def _turn(row: Mapping[str, Any], answer: str) -> Turn:
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
    tell(message, TemplateWarning)


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
        tell(
            f"row {number} and {len({n for n, _ in found}) - 1} more of the first {len(turns)}: a message "
            f"holds {token!r}, which becomes the special token and not its text. Remove or rewrite it.",
            TemplateWarning,
        )


def tell(message: str, category: type[Warning]) -> None:
    """Warn, and write it into the run's log."""
    LOGGER.warning(message)
    warnings.warn(message, category, stacklevel=3)
