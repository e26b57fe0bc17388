"""Which rows of each source go into a mixture: drawn under the recipe's seed, never the first ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from handbook_utils.data.formats import prompt_hash
from handbook_utils.data.known_formats import Row
from handbook_utils.data.shapes.called import says_tools
from handbook_utils.data.shapes.transcripts import written_end
from handbook_utils.errors import DataError
from handbook_utils.records import Message
from handbook_utils.runs.log import warn_and_log
from handbook_utils.schema.stage_table import Kind

# what stands for a file in the text of LLaVA, LLaMA-Factory and Qwen
_PICTURES = ("<image>", "<video>", "<audio>", "<|vision_start|>", "<|image_pad|>")


class LeakedRowsWarning(UserWarning):
    """Rows of `data` are in `eval_data` too, and were left out of training."""


class UselessExamplesWarning(UserWarning):
    """Examples are trained on that teach nothing: an empty answer, or a pair of equal ones."""


class WrittenEndsWarning(UserWarning):
    """Answers end with the end mark of some chat template, written out."""


class ToolsTwiceWarning(UserWarning):
    """Tools stand in the system's text, and the chat template shows them once more."""


class NoPictureWarning(UserWarning):
    """Text speaks of an image or another file that is not there."""


class LeftOutPromptsWarning(UserWarning):
    """Rows repeat a prompt, or prompts were skipped or cut to fit."""


@dataclass(frozen=True)
class SourceReport:
    """What one source gave to a mixture.

    Attributes:
        source: its name, or the earlier run it is.
        split: the split and slice that were read.
        format: what its rows were taken for.
        because: the reason.
        rows: rows in the slice; None on a stream, which is not counted.
        used: rows that went in, repeats counted each time; None on a stream.
        examples: examples made of them (a conversation gives one an assistant turn) and trained on; None on a
            stream.
        left_out: examples made of them and not trained on, as they are tested on; None on a stream.
    """

    source: str
    split: str
    format: str
    because: str
    rows: int | None = None
    used: int | None = None
    examples: int | None = None
    left_out: int | None = None
    ties: int | None = None

    def __str__(self) -> str:
        counted = (
            "streamed"
            if self.rows is None
            else f"{self.used:,} of {self.rows:,} rows, {self.examples:,} examples"
        )
        ties = f", {self.ties:,} ties left out" if self.ties else ""
        return f"{self.source} {self.split}: {counted}{ties}, {self.format} ({self.because})"

    def to_json(self) -> dict[str, Any]:
        """Plain content, for the manifest."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def draw_rows(rows: int, *, weight: float = 1.0, max_rows: int | None = None, seed: str = "") -> list[int]:
    """Positions of the rows that a source gives to a mixture.

    Each row comes `weight` times: whole repeats of all rows, and for what is left over a sample without
    repeats. One seed draws the same rows for every run, and a smaller weight draws part of what a larger
    one does.

    Args:
        rows: how many there are.
        weight: above 0; 0.25 takes a quarter of them, 2.5 all of them twice and half of them once more.
        max_rows: at most this many in the end.
        seed: a text that names the draw.
    Returns:
        Positions from 0; within each repeat in the order of the source.
    Raises:
        DataError: that would be no row at all.

    >>> draw_rows(4, weight=2.0)
    [0, 1, 2, 3, 0, 1, 2, 3]
    >>> len(draw_rows(1000, weight=0.25, seed="a")), draw_rows(1000, weight=0.25, seed="a")[:3]
    (250, [0, 4, 5])
    """
    total = int(rows * weight + 0.5)
    total = total if max_rows is None else min(total, max_rows)
    if total == 0:
        raise DataError(f"weight {weight:g} of {rows:,} rows is less than one row. Raise it.")
    repeats, rest = divmod(total, rows)
    drawn = [position for _ in range(repeats) for position in range(rows)]
    if rest:
        order = list(range(rows))
        random.Random(f"mixture {seed}").shuffle(order)
        drawn += sorted(order[:rest])
    return drawn


def warn_of_repeats(rows: int, asked: int) -> None:
    """Warn of rows that repeat a prompt and are left out; `asked` prompts are there without them."""
    if rows:
        message = (
            f"{rows:,} rows repeat the prompt of an earlier row: left out, which leaves {asked:,} prompts. "
            "For several answers to a prompt raise `samples`."
        )
        warn_and_log(message, LeftOutPromptsWarning)


def warn_of_useless(name: str, examples: Sequence[Row], *, where: str = "") -> None:
    """Warn of examples that teach nothing, or what no one means; `where` says which rows were looked at."""
    equal = [n for n, row in enumerate(examples, 1) if "chosen" in row and row["chosen"] == row["rejected"]]
    empty = [n for n, row in enumerate(examples, 1) if row.get("label", True) and _says_nothing(row)]
    for found, what in (
        (equal, "both answers are the same, so nothing can be learned from them"),
        (empty, "the answer is empty, so that a model learns to say nothing"),
    ):
        if found:
            message = (
                f"{name}: in {len(found):,} of {len(examples):,} examples{where} {what}; the first is "
                f"example {found[0]:,}. Leave such rows out."
            )
            warn_and_log(message, UselessExamplesWarning)
    _warn_of_written_ends(name, examples, where)
    _warn_of_tools_twice(name, examples, where)
    _warn_of_no_picture(name, examples, where)


def _warn_of_tools_twice(name: str, examples: Sequence[Row], where: str) -> None:
    """Warn of tools that the model sees twice, in two forms, of which one says how to call them."""
    found = [
        n for n, row in enumerate(examples, 1) if row.get("tools") and says_tools(row["prompt"], row["tools"])
    ]
    if found:
        message = (
            f"{name}: in {len(found):,} of {len(examples):,} examples{where} the system's text lists the "
            "tools, and the column 'tools' has the chat template show them again; the first is example "
            f"{found[0]:,}. Leave one of the two out: `columns: {{tools: tools_note}}` beside the source "
            "keeps the text."
        )
        warn_and_log(message, ToolsTwiceWarning)


def _warn_of_no_picture(name: str, examples: Sequence[Row], where: str) -> None:
    """Warn of prompts with the mark of an image, as LLaVA writes it, in rows that have none."""
    marked = [(n, mark) for n, row in enumerate(examples, 1) if (mark := _picture(row.get("prompt") or []))]
    if marked:
        number, mark = marked[0]
        message = (
            f"{name}: {len(marked):,} of {len(examples):,} examples{where} ask about a file that is not "
            f"there ('{mark}'); the first is example {number:,}. It is trained on as text. Leave such "
            "rows out."
        )
        warn_and_log(message, NoPictureWarning)


def _picture(prompt: Sequence[Message]) -> str:
    """The mark of a file that opens or closes what the user said last; "" where there is none."""
    text = prompt[-1]["content"].strip() if prompt and prompt[-1]["role"] == "user" else ""
    return next((mark for mark in _PICTURES if text.startswith(mark) or text.endswith(mark)), "")


def _warn_of_written_ends(name: str, examples: Sequence[Row], where: str) -> None:
    """Warn of answers that end with the end mark of some chat template, which is learned as text."""
    found = [
        (number, mark)
        for number, row in enumerate(examples, 1)
        for column in ("completion", "chosen", "rejected")
        if row.get(column) and (mark := written_end(row[column][-1]["content"]))
    ]
    if found:
        number, mark = found[0]
        message = (
            f"{name}: {len(found):,} answers of {len(examples):,} examples{where} end with the end mark of a "
            f"chat template, written out; the first is of example {number:,}, '{mark}'. It is learned as "
            "text, before the template's own end. Take it out of the file."
        )
        warn_and_log(message, WrittenEndsWarning)


def _says_nothing(example: Row) -> bool:
    answers = example.get("completion") or example.get("chosen") or []
    return bool(answers) and not any(
        len(message) > 2 or message["content"].strip() for message in answers
    )  # beside role and content there are calls or thinking


def example_key(example: Row, kind: Kind) -> str:
    """What makes two examples the same for a test: the prompt, or the whole text where there is none.

    >>> example_key({"text": "a"}, "text")
    'a'
    """
    return str(example["text"]) if kind == "text" else prompt_hash(example["prompt"])


def without_test_rows(examples: Sequence[Row], tested: Iterable[str], *, kind: Kind) -> list[Row]:
    """The examples whose key is not among those tested on."""
    keys = frozenset(tested)
    return [example for example in examples if example_key(example, kind) not in keys]
