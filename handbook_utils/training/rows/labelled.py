"""Rows as the trainer takes them: the template is checked and answers are marked before a model is loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset

from handbook_utils.chat.bounded_render import templates_of
from handbook_utils.chat.checks import check_chat_template
from handbook_utils.chat.learned import Kind, Lost, lost_parts, unseen_messages, unseen_tools
from handbook_utils.chat.loss_masks import TokenRow, Turn, tokenize_turns
from handbook_utils.chat.thinking import thinking_keys_read, thinking_of, under_names_read
from handbook_utils.data.known_formats import Row
from handbook_utils.data.load import arrow_dataset, to_dataset
from handbook_utils.data.shapes.values import shown
from handbook_utils.data.training_data import SAMPLE, Sample
from handbook_utils.errors import TemplateError
from handbook_utils.libraries.exact_json import ExactJson
from handbook_utils.processes import without_collector
from handbook_utils.runs.log import warn_and_log
from handbook_utils.schema.training import TrainingRecipe
from handbook_utils.training.rows.sharing import json_columns, shared_out, useful_processes
from handbook_utils.training.rows.tokenized import TOKENS, RowTokenizer, columns_of, turn_of

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
# columns of messages
_MESSAGES = ("prompt", "completion", "chosen", "rejected")
# warnings about what only some data has, by the role that has it
NEEDS = {"system-turn": "system", "tool-turns": "tool"}
# what to do where the template loses part of the answers
_CURES: dict[Kind, str] = {
    "thinking": "Use a template that shows the thinking of an answer (`model.chat_template`), or take it out "
    "of the rows.",
    "call": "Use a template that shows calls of tools (`model.chat_template`), such as the instruction-tuned "
    "sibling's, or leave rows with calls out.",
    "text": "Use another template (`model.chat_template`), or mend this one.",
}
_WORDS: dict[Kind, str] = {"thinking": "the thinking", "call": "the tool call", "text": "the text"}


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
    if labels_itself(recipe) and isinstance(rows, Dataset):
        asked = recipe.training.get("dataset_num_proc")
        with without_collector():
            return arrow_dataset(_tokenized(tokenizer, rows, asked), TOKENS)
    return rows if recipe.stage == "pretrain" else _under_names_read(tokenizer, rows)


def labels_itself(recipe: TrainingRecipe) -> bool:
    """Whether a recipe's rows are labelled here, generation marks included, and not by TRL."""
    ours = all(recipe.training.get(name) in values for name, values in TOKEN_FIELDS.items())
    return recipe.stage == "sft" and not recipe.streaming and ours


def _under_names_read(tokenizer: Any, rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Rows for TRL, which hands messages to the template as they are: thinking has the name it reads."""

    def renamed(row: Row) -> dict[str, Any]:
        template = tokenizer.get_chat_template(None, row.get("tools"))
        columns = [name for name in _MESSAGES if name in row]
        return {**row, **{name: under_names_read(template, row[name]) for name in columns}}

    if not any(map(thinking_keys_read, templates_of(tokenizer))):
        return rows
    if isinstance(rows, IterableDataset):
        return rows.map(renamed)
    # messages of a role and a content alone have columns of their own in Arrow
    columns = [name for name in _MESSAGES if isinstance(rows.features.get(name), ExactJson)]
    thinks = any(thinking_of(message) for name in columns for messages in rows[name] for message in messages)
    return to_dataset([renamed(row) for row in rows]) if thinks else rows


def _tokenized(tokenizer: Any, rows: Dataset, asked: int | None) -> Iterator[pa.RecordBatch]:
    """Tokens of the rows by batch; the same whatever the machine, for turns are joined within a batch."""
    tokenize = RowTokenizer(tokenizer)

    def placed(number: int, batch: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
        size = len(next(iter(batch.values())))
        with _placed(f"{number * BATCH + 1} to {number * BATCH + size}"):
            return tokenize(batch)

    processes = useful_processes(-(-len(rows) // BATCH), asked)
    as_json = json_columns(rows)
    if processes == 1 or as_json is None:
        yield from (placed(number, batch) for number, batch in enumerate(rows.iter(BATCH)))
        return
    yield from shared_out(
        tokenizer,
        rows.with_format("arrow").iter(BATCH),
        as_json,
        lambda number, table: placed(number, columns_of(table, as_json)),
        processes=processes,
    )


@contextmanager
def _placed(place: str) -> Iterator[None]:
    try:
        yield
    except TemplateError as error:
        raise TemplateError(f"training rows {place}: {error}") from error


def check_rows(tokenizer: Any, rows: Iterable[Row]) -> None:
    """Refuse a chat template that would spoil training, on small conversations and on the first rows.

    Raises:
        TemplateError: what is wrong and what to do.
    """
    check_samples(tokenizer, [Sample("", list(islice(rows, SAMPLE)))])


def check_samples(tokenizer: Any, samples: Sequence[Sample], *, has_marks: bool = True) -> None:
    """Refuse a chat template that would spoil training, on small conversations and on rows of each source.

    Args:
        tokenizer: with its chat template.
        samples: the first rows of each source.
        has_marks: whether the template's generation marks decide what is learned.
    Raises:
        TemplateError: what is wrong and what to do.
    """
    report = check_chat_template(tokenizer)
    if not report.ok:
        wrong = " ".join(f"[{c.name}] {c.message} {c.remedy}" for c in report.failed("error"))
        raise TemplateError(f"training with this chat template would go wrong. {wrong}")
    turns = {sample.name: [turn for row in sample.rows for turn in _turns(row)] for sample in samples}
    roles = {message["role"] for turn in chain.from_iterable(turns.values()) for message in turn.prompt}
    said = {NEEDS[check.name] for check in report.failed("warning") if check.name in NEEDS}
    for check in report.failed("warning"):
        if NEEDS.get(check.name, "user") in {"user", *roles}:
            warn_and_log(f"chat template, {check.name}: {check.message} {check.remedy}", TemplateWarning)
    for name, found in turns.items():
        with _placed(f"of {name}"):
            rows = tokenize_turns(tokenizer, found)
        place = f"{name}: " if name else ""
        _check_learned(tokenizer, place, found, rows, has_marks=has_marks)
        _check_tools(tokenizer, place, found, rows)
        _check_messages(tokenizer, place, found, rows, but=said)
        _check_prompts(tokenizer, place, rows)
        _check_text(tokenizer, place, found)


def _turns(row: Row) -> list[Turn]:
    """A row's answer, or both answers of a pair."""
    return [turn_of(row, column) for column in ("completion", "chosen", "rejected") if column in row]


def _check_learned(
    tokenizer: Any, place: str, turns: Sequence[Turn], rows: Sequence[TokenRow], *, has_marks: bool
) -> None:
    """What answers say has to be learned: some templates leave out what they do not know."""
    lost: dict[Kind, list[tuple[int, Lost]]] = {}
    for number, (turn, row) in enumerate(zip(turns, rows, strict=True), start=1):
        for part in lost_parts(tokenizer, turn, row, has_marks=has_marks):
            lost.setdefault(part.kind, []).append((number, part))
    if not lost:
        return
    said = [_lost(kind, found, place, len(turns)) for kind, found in lost.items()]
    if 2 * len({number for found in lost.values() for number, _ in found}) > len(turns):
        raise TemplateError(f"training would learn other answers than the data has. {' '.join(said)}")
    for text in said:
        warn_and_log(text, TemplateWarning)


def _check_tools(tokenizer: Any, place: str, turns: Sequence[Turn], rows: Sequence[TokenRow]) -> None:
    """Say where a model would learn to answer without the tools that its row gives it."""
    unseen = [
        (number, names[0])
        for number, (turn, row) in enumerate(zip(turns, rows, strict=True), start=1)
        if (names := unseen_tools(tokenizer, turn, row))
    ]
    if unseen:
        number, name = unseen[0]
        warn_and_log(
            f"{place}the chat template does not show the tools of {len(unseen)} of the first {len(turns)} "
            f"answers; the first is answer {number}, {shown(name)}. Use a template that shows tools "
            "(`model.chat_template`), such as the instruction-tuned sibling's.",
            TemplateWarning,
        )


def _check_messages(
    tokenizer: Any, place: str, turns: Sequence[Turn], rows: Sequence[TokenRow], *, but: Collection[str]
) -> None:
    """Say where an answer would be learned without what it answers, such as the result of a tool."""
    unseen = [
        (number, found[0])
        for number, (turn, row) in enumerate(zip(turns, rows, strict=True), start=1)
        if (found := unseen_messages(tokenizer, turn, row, but=but))
    ]
    if unseen:
        number, message = unseen[0]
        warn_and_log(
            f"{place}the chat template does not show all that was said before {len(unseen)} of the first "
            f"{len(turns)} answers; the first is answer {number}, where the {message['role']} says "
            f"{shown(message['content'])}. Use a template that shows every message (`model.chat_template`).",
            TemplateWarning,
        )


def _lost(kind: Kind, found: Sequence[tuple[int, Lost]], place: str, answers: int) -> str:
    number, first = found[0]
    count = len({number for number, _ in found})
    how = "has no loss on" if first.is_rendered else "leaves out"
    return (
        f"{place}the chat template {how} {_WORDS[kind]} ('{first.where}') in {count} of the first {answers} "
        f"answers; the first is answer {number}, {shown(first.said)}. {_CURES[kind]}"
    )


def _check_prompts(tokenizer: Any, place: str, rows: Sequence[TokenRow]) -> None:
    """Each row has to begin with the prompt that inference would give."""
    apart = [row for row in rows if row.start < row.prompt_tokens]
    if not apart:
        return
    row = apart[0]
    message = (
        f"{place}{len(apart)} of the first {len(rows)} rows do not begin with the prompt that inference "
        f"would give: behind {tokenizer.decode(row.ids[: row.start][-8:])!r} they go on otherwise. The usual "
        "causes: an answer that begins with white space, or without the thinking that the template opens."
    )
    if 2 * len(apart) > len(rows):
        raise TemplateError(f"{message} So many would train the model on contexts it never meets.")
    warn_and_log(message, TemplateWarning)


def _check_text(tokenizer: Any, place: str, turns: Sequence[Turn]) -> None:
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
            f"{place}row {number} and {len({n for n, _ in found}) - 1} more of the first {len(turns)}: a "
            f"message holds {token!r}, which becomes the special token and not its text. Remove or rewrite "
            "it.",
            TemplateWarning,
        )
