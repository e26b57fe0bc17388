"""Anyone's rows as curation sees them: what was asked, what was answered, and why one cannot be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from handbook_utils.data.formats import Normaliser
from handbook_utils.data.known_formats import FORMATS, Row
from handbook_utils.data.load import ResolvedInputs, origin_of
from handbook_utils.data.reading.files import SUFFIXES, data_suffix
from handbook_utils.data.recognise import describe_format, fitting_formats
from handbook_utils.data.shapes.pairs import RATED
from handbook_utils.data.sources import Origin, iterate_rows, read_rows
from handbook_utils.errors import DataError, suggest
from handbook_utils.schema.sections import DataSource
from handbook_utils.schema.stage_table import Kind

# rows that must not all be unreadable: then it is the source that was misunderstood, and not its rows
FIRST_ROWS = 100
# characters from which a batch is handed on, however few its rows
LONG = 8_000_000
# what a row may hold beside its messages and still be read at a glance
_PLAIN = frozenset({"messages", "id", "uuid", "source", "dataset", "category", "origin", "prompt_id"})
_ORDER: tuple[Kind, ...] = ("preference", "feedback", "conversation", "text", "prompt")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one row says.

    Attributes:
        asked: what users say, in their order, one per line.
        answers: each answer that is learned from: of pairs the chosen one.
        rejected: of pairs the rejected answers, in the same order; else empty.
        other: what else is trained on or shown to the model, such as system messages and results of tools.
        problem: why the row cannot be read; "" where it can.
        is_out_of_order: whether the problem is who speaks when.
        is_empty: whether the problem is a message or answer without text.
        is_unlearned: whether nothing of it is learned: it is marked so, or its answers are rated alike.
    """

    asked: str = ""
    answers: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    problem: str = ""
    is_out_of_order: bool = False
    is_empty: bool = False
    is_unlearned: bool = False

    @property
    def answered(self) -> str:
        """All answers, one per line."""
        return self.answers[0] if len(self.answers) == 1 else "\n".join(self.answers)

    @property
    def texts(self) -> Iterator[str]:
        """All that the row says."""
        return chain((self.asked,), self.answers, self.rejected, self.other)


@dataclass
class SourceRows:
    """One source, opened: what it was taken for, and its rows.

    Attributes:
        source: as a recipe would name it.
        label: a short name of it, which opens the ids of its rows.
        kind: the kind of data that its rows are.
        recognised: the format and why, once the first readable row was reached.
    """

    source: DataSource
    label: str
    kind: Kind
    _origin: Origin
    _reader: RowsReader
    stamps: dict[Path, tuple[int, int]] = field(default_factory=dict)

    @property
    def recognised(self) -> str:
        """What the rows were taken for, and why; "" before the first readable one."""
        return str(self._reader.normalise.found or "")

    @property
    def format(self) -> str:
        """The format's name; "" before the first readable row."""
        found = self._reader.normalise.found
        return found.format if found else ""

    def examples(self, row: Row) -> list[Row]:
        """What the stages would read of a row that was read before."""
        return self._reader.normalise(1, row)

    def __iter__(self) -> Iterator[tuple[int, Row, Reading]]:
        """Yield (row, its number from 1, reading); holds a few rows of a file in memory.

        Raises:
            DataError: the source is empty, cannot be read, or its first rows all cannot; or it was changed,
                moved or deleted meanwhile.
        """
        problems: list[str] = []
        number = 0
        for number, row in _numbered(self._origin):
            reading = self._reader(number, row)
            if reading.problem and len(problems) == number - 1 < FIRST_ROWS:
                problems.append(reading.problem)
            if number == FIRST_ROWS and len(problems) == number:
                break
            yield number, row, reading
        if number and len(problems) == number:
            raise DataError(f"{problems[0]} The same is true of all the first {number} rows.")
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Refuse what is no longer the source that was opened.

        Raises:
            DataError: names the file.
        """
        for path, stamp in self.stamps.items():
            if not path.exists():
                raise DataError(
                    f"{path}: was moved or deleted while it was read, so nothing was written. Put it back, "
                    "and run the same command again."
                )
            if _stamp(path) != stamp:
                raise DataError(
                    f"{path}: was changed while it was read, so nothing was written. Run the same command "
                    "again once it is whole."
                )


def open_sources(sources: Sequence[DataSource], *, kind: Kind | None = None) -> list[SourceRows]:
    """Open sources and recognise their rows.

    Args:
        sources: as under `data` of a recipe; a file or a name is `DataSource(name=...)`.
        kind: what the rows are to be read as; None finds out from the first row.
    Raises:
        DataError: a source is missing, of an unknown type, or its first row is in no known format.
    """
    opened: list[SourceRows] = []
    for source in sources:
        origin = origin_of(source, ResolvedInputs(), seed=0)
        label = _label(origin.name, [other.label for other in opened])
        stamps = {path: _stamp(path) for path in _files(origin)}
        first = next(_numbered(origin), None)
        if first is None:
            raise DataError(f"{origin.name}: no rows in '{source.split}'.")
        found = kind or _kind_of(first[1], source, origin.name)
        reader = RowsReader(source, origin.name, found, first[1])
        opened.append(SourceRows(source, label, found, origin, reader, stamps))
    return opened


class RowsReader:
    """Reads rows of one source; those that cannot be read say why."""

    def __init__(self, source: DataSource, name: str, kind: Kind, first: Row) -> None:
        self.kind = kind
        given: dict[str, Any] = {
            "kind": kind,
            "format": source.format,
            "name": name,
            "columns": source.columns,
            "pairs": source.pairs,
        }
        renamed = {source.columns.get(column, column) for column in first}
        fitting = [source.format] if source.format != "auto" else fitting_formats(dict.fromkeys(renamed, ""))
        rated = next((name for name in fitting if name in RATED), None)
        if rated == "rated_rows":  # each row holds one answer, which is looked at as such
            given |= {"kind": "conversation", "format": "prompt_completion"}
            given["columns"] = {**source.columns, "response": "completion"}
        elif rated and source.pairs is None:
            given["pairs"] = FORMATS[rated].pairs
        self.normalise = Normaliser(**given)
        self._is_plain = False

    def __call__(self, number: int, row: Row) -> Reading:
        """What a row says."""
        if self._is_plain and (plain := _plain_conversation(row)) is not None:
            return plain
        try:
            examples = self.normalise(number, row)
        except DataError as error:
            text = str(error)
            is_empty = " is empty" in text or text.endswith("found null.")
            order = any(words in text for words in _OUT_OF_ORDER)
            return Reading(problem=text, is_out_of_order=order, is_empty=is_empty)
        found = self.normalise.found
        self._is_plain = self.kind == "conversation" and found is not None and found.format == "messages"
        return _reading(examples)


# how the reader of rows words who may not speak now
_OUT_OF_ORDER = (
    "which speaks first or not at all",
    "but no user message precedes it",
    "is a second one of the assistant in a row",
    "is of a tool that no assistant has called",
    "no message of the assistant",
    "an answer.",
    "not of the user.",
)


def _reading(examples: Sequence[Row]) -> Reading:
    """What the examples of one row say together."""
    if not examples:
        return Reading(is_unlearned=True)
    longest = examples[-1]
    if "text" in longest:
        return Reading(answers=(longest["text"],))
    before = longest["prompt"]
    learned = [
        message
        for example in examples
        for message in (example.get("completion") or example.get("chosen") or [])
    ]
    rejected = [_said(message) for example in examples for message in example.get("rejected", ())]
    others = [m["content"] for m in before if m["role"] in ("system", "tool")]
    calls = [_calls(m) for m in learned if m.get("tool_calls") and m["content"].strip()]
    return Reading(
        "\n".join(m["content"] for m in before if m["role"] == "user"),
        tuple(map(_said, learned)),
        tuple(rejected),
        (*others, *calls),
    )


def _said(message: Mapping[str, Any]) -> str:
    """An answer's text; of one that only calls tools, the calls."""
    text: str = message["content"]
    return _calls(message) if message.get("tool_calls") and not text.strip() else text


def _calls(message: Mapping[str, Any]) -> str:
    return json.dumps(message["tool_calls"], ensure_ascii=False)


def _plain_conversation(row: Row) -> Reading | None:
    """What a conversation of plain messages in good order says; None where it needs a closer look."""
    messages = row.get("messages")
    if not row.keys() <= _PLAIN or not isinstance(messages, list) or not messages:
        return None
    asked, answers, other, before = [], [], [], ""
    for message in messages:
        if type(message) is not dict or message.keys() != {"role", "content"}:
            return None
        role, content = message["role"], message["content"]
        if type(content) is not str or not content or content.isspace():
            return None
        if role == "user":
            asked.append(content)
        elif role == "assistant" and before == "user":
            answers.append(content)
        elif role == "system" and not before:
            other.append(content)
        else:
            return None
        before = role
    if not answers or not all(map(_is_whole, chain(asked, answers, other))):
        return None
    return Reading("\n".join(asked), tuple(answers), (), tuple(other))


def _is_whole(text: str) -> bool:
    """Whether no character of a text is half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _numbered(origin: Origin) -> Iterator[tuple[int, Row]]:
    """Rows and their numbers; as a stream where the source can be one."""
    is_counted = origin.split.start.endswith("%") or (origin.split.stop or "").endswith("%")
    if is_counted or data_suffix(origin.path) in (".json", ".json.gz"):
        first, rows = read_rows(origin)
        yield from enumerate(rows, start=first)
        return
    yield from iterate_rows(origin)


def _kind_of(row: Row, source: DataSource, name: str) -> Kind:
    """The kind of data that a row is, by its format."""
    if not isinstance(row, Mapping):
        describe_format(row, kind="conversation", place=f"{name}: row 1")
    ours = {source.columns.get(column, column): value for column, value in row.items()}
    known = fitting_formats(ours) if source.format == "auto" else [source.format]
    fits = any(set(FORMATS[found].columns) <= ours.keys() for found in known)
    missing = next((column for column in source.columns if column not in row), None)
    if missing is not None and not fits:
        raise DataError(f"{name}: no column '{missing}'. {suggest(missing, map(str, row))}")
    if source.format != "auto":
        return next(kind for kind in _ORDER if kind in FORMATS[source.format].kinds)
    kinds = [kind for found in known for kind in FORMATS[found].kinds]
    if not kinds:
        describe_format(ours, kind="conversation", place=f"{name}: row 1")
    return next(kind for kind in _ORDER if kind in kinds)


def _label(name: str, taken: Sequence[str]) -> str:
    """A short name of a source that no other has."""
    plain = name.removeprefix("pocket:").rstrip("/").rpartition("/")[2]
    for suffix in SUFFIXES:
        if plain.lower().endswith(suffix):
            plain = plain[: -len(suffix)]
            break
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in plain).lstrip(".") or "data"
    return next(
        label for label in chain([plain], (f"{plain}-{n}" for n in range(2, 10_000))) if label not in taken
    )


def _files(origin: Origin) -> list[Path]:
    """The files of a source on this machine."""
    path = origin.path
    if path.is_file():
        return [path]
    if path.is_dir() and not origin.is_hub:
        return [file for file in sorted(path.rglob("*")) if file.is_file() and data_suffix(file) in SUFFIXES]
    return []


def _stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def batches(rows: SourceRows, size: int) -> Iterator[list[tuple[int, Row, Reading]]]:
    """Yield (number, row, reading) in lists of at most `size`, fewer where rows are long."""
    batch, characters = [], 0
    for number, row, reading in rows:
        batch.append((number, row, reading))
        characters += sum(map(len, reading.texts))
        if len(batch) == size or characters >= LONG:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
