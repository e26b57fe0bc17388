"""What nobody reads in a source: counted row by row, and told once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from handbook_utils.data.keys.messages import EMPTY
from handbook_utils.data.known_formats import FORMATS
from handbook_utils.data.row_reader import TEMPLATE_OPTIONS, RowReader
from handbook_utils.data.shapes.ratings import PAIR_RATINGS
from handbook_utils.errors import DataError
from handbook_utils.runs.log import warn_and_log

# columns that rows of a format may have: read, or known to be of no use to what is made of them
_ALWAYS = (
    *(*PAIR_RATINGS, "gold_chosen", "gold_rejected", "prompt_id", TEMPLATE_OPTIONS, "tools"),
    "judgement",  # who judged what and when, as `handbook data` writes it
)
# a person's label beside a judge's, and which answer was shown first: for win rates
_BESIDE = {"judged": ("label", "first", "seed")}
_KNOWN = {
    name: frozenset({*known.columns, *known.example, *known.names.values(), *_ALWAYS, *_BESIDE.get(name, ())})
    for name, known in FORMATS.items()
}
# columns that say which split a row is of, and what stands there where it is trained on and where it is not
_SPLITS = ("split", "data_split", "partition")
_TRAINED = {"train", "training"}
_HELD_OUT = {
    "test",
    "testing",
    "validation",
    "valid",
    "val",
    "dev",
    "eval",
    "evaluation",
    "heldout",
    "held_out",
}
# what stands in `told` for rows left out
LEFT_OUT = ""


class IgnoredColumnWarning(UserWarning):
    """A column says something that is ignored here."""


class UnreadKeys:
    """Keys of the rows and messages of one source that say something and that nobody reads.

    Attributes:
        columns: rows by the column that is not read.
        keys: messages by the key that is not read.
        skipped: answers by the key that says they are not learned.
        left_out: rows without an answer to learn, because of such keys.
        told: what was told already.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.columns: Counter[str] = Counter()
        self.keys: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.left_out = 0
        self._splits: dict[str, set[str]] = {}
        self.told: set[str] = set()

    def note(self, reader: RowReader, format: str, *, is_left_out: bool) -> None:
        """Count what a row of a format says and nobody has read."""
        known = _KNOWN[format]
        for column in reader.row:
            is_read = column in known or column in reader.read or _repeats(reader, column)
            if not is_read and reader.row[column] not in EMPTY:
                self.columns[str(column)] += 1
        for column in _SPLITS:
            if column in reader.row and column not in known and isinstance(said := reader.row[column], str):
                self._splits.setdefault(column, set()).add(said.strip().lower())
        if reader.unread:
            self.keys.update(reader.unread)
        if reader.skipped:
            self.skipped.update(key for key, _ in reader.skipped)
        self.left_out += is_left_out

    @property
    def is_new(self) -> bool:
        """Whether there is something that has not been told yet."""
        return not (self.columns.keys() <= self.told and self.keys.keys() <= self.told)

    def tell(self, where: str = "") -> None:
        """Warn of what was not told yet; `where` says which rows were looked at.

        Raises:
            DataError: rows of one source say that some are trained on and others are not.
        """
        for column, said in self._splits.items():
            if said & _TRAINED and (held_out := sorted(said & _HELD_OUT)):
                raise DataError(
                    f"{self._name}: '{column}' says that some rows are of 'train' and others of "
                    f"'{held_out[0]}', and all would be read alike. Write the rows of each into a file "
                    "of its own, such as train.jsonl. If it is no split: "
                    f"`columns: {{{column}: {column}_note}}`."
                )
        for news in self._news(where):
            warn_and_log(f"{self._name}: {news}", IgnoredColumnWarning, stacklevel=4)

    def _news(self, where: str) -> list[str]:
        made = []
        counts = [
            f"{what} {_counts(counter, noun, self.told)}"
            for what, noun, counter in (
                ("columns", "row", self.columns),
                ("keys of messages", "message", self.keys),
            )
            if counter.keys() - self.told
        ]
        if counts:
            made.append(
                f"ignored{where}, because nothing reads them: {'; '.join(counts)}. "
                "A column that has another name here is read with `columns: {theirs: ours}`."
            )
        if self.left_out and LEFT_OUT not in self.told:
            marks = " and ".join(f"'{key}'" for key in self.skipped)
            says = "leaves" if len(self.skipped) == 1 else "leave"
            made.append(f"{_count(self.left_out, 'row')}{where} left out: {marks} {says} no answer to learn.")
        self.told |= self.columns.keys() | self.keys.keys() | {LEFT_OUT}
        return made


def _repeats(reader: RowReader, column: str) -> bool:
    """Whether a column repeats the text of a message, as `prompt` does in UltraChat."""
    turns, value = reader.row.get("messages"), reader.row[column]
    if not isinstance(value, str) or not isinstance(turns, list | tuple):
        return False
    return any(isinstance(turn, Mapping) and turn.get("content") == value for turn in turns)


def _counts(counter: Counter[str], noun: str, told: Collection[str]) -> str:
    new = ((key, count) for key, count in counter.most_common() if key not in told)
    return ", ".join(f"'{key}' ({_count(count, noun)})" for key, count in new)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
