"""A first look at data: what rows were taken for and why, counts, lengths, and what is learned of some."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from handbook_utils.chat.conversation import RenderedConversation, render_conversation
from handbook_utils.curation.rows import Reading, SourceRows
from handbook_utils.curation.rules.pairs import LengthBias
from handbook_utils.data.known_formats import Row
from handbook_utils.errors import DataError, TemplateError

SHOWN_ROWS, COUNTED_IN_TOKENS, SHOWN_PROBLEMS = 3, 2000, 5
PERCENTILES = (("shortest", 0), ("median", 50), ("95 %", 95), ("longest", 100))
# columns are named up to here, and counted beyond
SHOWN_COLUMNS = 20


@dataclass(frozen=True)
class ShownRow:
    """One row to look at.

    Attributes:
        number: its place in the source, from 1.
        messages: what it says, by speaker; (speaker, text, whether it is learned).
        rendered: with a tokenizer, its tokens and those that carry loss: one for each answer to be compared.
        problem: why it could not be rendered; "" where it could, or no model was named.
    """

    number: int
    messages: tuple[tuple[str, str, bool], ...]
    rendered: tuple[RenderedConversation, ...] = ()
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        shown = [
            {"text": list(row.pieces), "loss": list(row.loss)} for one in self.rendered for row in one.rows
        ]
        said = [{"role": role, "content": text, "learned": learned} for role, text, learned in self.messages]
        return {"row": self.number, "messages": said, "tokens": shown, "problem": self.problem}


@dataclass
class Look:
    """One source as it is.

    Attributes:
        name: of the source, as the user named it.
        label: its short name.
        kind: the kind of data that the rows are.
        recognised: their format, and why.
        rows: how many there are.
        readable: how many of them training could read.
        problems: the first rows that it could not read: (number, why).
        columns: names of columns, with the number of rows that have them.
        messages: number of messages per row -> number of rows.
        lengths: by part ("asked", "answered") and unit, percentiles over rows.
        sampled: rows of which tokens were counted; None where no model was named.
        length_bias: of pairs, what length alone tells.
        shown: some rows.
    """

    name: str
    label: str
    kind: str
    recognised: str = ""
    rows: int = 0
    readable: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    columns: Counter[str] = field(default_factory=Counter)
    messages: Counter[int] = field(default_factory=Counter)
    lengths: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    sampled: int | None = None
    length_bias: dict[str, Any] | None = None
    shown: list[ShownRow] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            **{"name": self.name, "kind": self.kind, "recognised": self.recognised, "rows": self.rows},
            "readable": self.readable,
            "problems": [{"row": number, "why": why} for number, why in self.problems],
            "columns": dict(self.columns),
            "answers_per_row": {str(number): rows for number, rows in sorted(self.messages.items())},
            "lengths": self.lengths,
            "tokens_counted_in_rows": self.sampled,
            "length_bias": self.length_bias,
            "shown": [row.to_json() for row in self.shown],
        }


def look_at(source: SourceRows, *, tokenizer: Any = None, seed: int = 0, rows: int = SHOWN_ROWS) -> Look:
    """Look at all rows of a source, and show some.

    Args:
        source: opened by `rows.open_sources`.
        tokenizer: of the model to be trained; lengths are counted in its tokens too, on a seeded sample of
            2,000 rows where there are more, and the shown rows say which tokens carry loss.
        seed: of the sample, and of which rows are shown (the first always is).
        rows: how many rows are shown.
    Raises:
        DataError: the source cannot be read.
    """
    look = Look(source.source.label, source.label, source.kind)
    lengths = {(part, unit): array("q") for part in ("asked", "answered") for unit in ("characters", "words")}
    sample = _Sample(COUNTED_IN_TOKENS if tokenizer else rows, seed)
    bias = LengthBias()
    first: tuple[int, Row] | None = None
    for number, row, reading in source:
        look.rows += 1
        look.columns.update(row.keys() if isinstance(row, Mapping) else ())
        if reading.problem:
            if len(look.problems) < SHOWN_PROBLEMS:
                look.problems.append((number, reading.problem))
            continue
        look.readable += 1
        look.messages[len(reading.answers)] += 1
        _measure(lengths, reading)
        for chosen, rejected in zip(reading.answers, reading.rejected, strict=False):
            bias.add(chosen, rejected)
        first = first or (number, row)
        sample.add((number, row, reading))
    look.recognised = source.recognised
    look.length_bias = bias.to_json()
    for (part, unit), counted in lengths.items():
        if counted:
            look.lengths.setdefault(part, {})[unit] = _percentiles(counted)
    chosen_rows = sorted(sample.kept, key=lambda kept: kept[0])
    if tokenizer is not None:
        look.sampled = len(chosen_rows)
        _count_tokens(look, tokenizer, [reading for _, _, reading in chosen_rows])
    picked = random.Random(seed).sample(chosen_rows, min(rows, len(chosen_rows)))
    wanted = {number: row for number, row, _ in picked[: rows - 1]}
    if first is not None and rows:
        wanted[first[0]] = first[1]
    look.shown = [_shown(source, number, row, tokenizer) for number, row in sorted(wanted.items())]
    return look


class _Sample:
    """A sample of fixed size without replacement, drawn in one pass (Vitter's algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._rng, self._seen = size, random.Random(seed), 0
        self.kept: list[tuple[int, Row, Reading]] = []

    def add(self, item: tuple[int, Row, Reading]) -> None:
        self._seen += 1
        if len(self.kept) < self._size:
            self.kept.append(item)
        elif (place := self._rng.randrange(self._seen)) < self._size:
            self.kept[place] = item


def _measure(lengths: Mapping[tuple[str, str], array[int]], reading: Reading) -> None:
    for part, text in (("asked", reading.asked), ("answered", reading.answered)):
        if text:
            lengths[part, "characters"].append(len(text))
            lengths[part, "words"].append(len(text.split()))


def _percentiles(values: Sequence[int] | array[int]) -> dict[str, float]:
    found = np.percentile(values, [share for _, share in PERCENTILES])
    return {name: float(value) for (name, _), value in zip(PERCENTILES, found, strict=True)}


def _count_tokens(look: Look, tokenizer: Any, readings: Iterable[Reading]) -> None:
    readings = list(readings)
    for part in look.lengths:
        texts = [text for r in readings if (text := r.asked if part == "asked" else r.answered)]
        if texts:
            ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            look.lengths[part]["tokens"] = _percentiles([len(one) for one in ids])


def _shown(source: SourceRows, number: int, row: Row, tokenizer: Any) -> ShownRow:
    examples = source.examples(row)
    if not examples:
        return ShownRow(number, (), problem="the row is marked as not to be learned")
    longest = examples[-1]
    if "text" in longest:
        return ShownRow(number, (("text", longest["text"], True),))
    said = [(m["role"], m["content"], False) for m in longest["prompt"]]
    for name in ("completion", "chosen", "rejected"):
        speaker = "assistant" if name == "completion" else name
        said += [(speaker, message["content"], name != "rejected") for message in longest.get(name, ())]
    if tokenizer is None or source.kind == "prompt":
        return ShownRow(number, tuple(said))
    told = {name: longest.get(name) for name in ("tools", "chat_template_kwargs")}
    answers = sum(message["role"] == "assistant" for message in longest["prompt"]) + 1
    # where every answer is learned, all are shown in one row, as training has them
    alone = source.kind != "conversation" or len(examples) < answers
    try:
        rendered = tuple(
            render_conversation(tokenizer, [*longest["prompt"], *longest[name]], **told, last_only=alone)
            for name in ("completion", "chosen", "rejected")
            if name in longest
        )
    except (DataError, TemplateError) as error:
        return ShownRow(number, tuple(said), problem=str(error))
    return ShownRow(number, tuple(said), rendered)
