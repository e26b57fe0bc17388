"""Prompts of a recipe's data, one at a time: of a million of them only the names are held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from handbook_utils.data.formats import prompt_hash
from handbook_utils.data.known_formats import Row
from handbook_utils.data.load import Locator, check_asked_once, drawn_rows, normaliser_of, origin_of
from handbook_utils.data.mixture import warn_of_repeats
from handbook_utils.data.reading.arrow import rows_at
from handbook_utils.data.reading.files import data_suffix
from handbook_utils.data.sources import Origin, is_own, iterate_rows, read_rows
from handbook_utils.errors import DataError
from handbook_utils.records import Message
from handbook_utils.schema.sections import DataSource

Prompt = tuple[str, list[Message]]


@dataclass
class LeftOut:
    """Rows of which no prompt was made, counted while prompts are read.

    Attributes:
        bad: what is wrong with each row that is no prompt.
        repeated: rows that ask what an earlier one asked.
        unnamed: those of them that no `prompt_id` says to be of one prompt.
    """

    bad: list[str] = field(default_factory=list)
    repeated: int = 0
    unnamed: int = 0

    def warn(self, asked: int) -> None:
        """Say how many rows repeat a prompt, unless their own `prompt_id` says that they do."""
        warn_of_repeats(self.unnamed, asked)


def iterate_prompts(
    sources: Sequence[DataSource],
    run: Locator,
    *,
    seed: int,
    left_out: LeftOut | None = None,
    on_bad: Callable[[DataError], None] | None = None,
) -> Iterator[Prompt]:
    """Yield (prompt id, messages) of every source in order; a further row of one prompt is left out.

    Args:
        sources: `data` of a recipe.
        run: finds what an earlier run left.
        seed: of samples (`weight`, `max_rows`) and of the order of `pocket:` data.
        left_out: counts repeated prompts.
        on_bad: told of each row that is no prompt, which is then left out; None raises there.
    Raises:
        DataError: a source or row that cannot be read, one prompt id for two prompts, or no prompt at all.
    """
    seen: dict[bytes, bytes] = {}
    for source in sources:
        normalise = normaliser_of(source, run, kind="prompt")
        for number, row in _rows(source, run, seed=seed):
            try:
                [example] = normalise(number, row)
            except DataError as error:
                if on_bad is None:
                    raise
                on_bad(error)
                continue
            if _is_new(example, seen, place=f"{run.locate(source)}: row {number}"):
                yield example["prompt_id"], example["prompt"]
            elif left_out is not None:
                left_out.repeated += 1
                left_out.unnamed += row.get("prompt_id") is None
        if not is_own(origin_of(source, run, seed=seed)):
            normalise.unread.tell()
    if not seen:
        raise DataError("there are no prompts to answer. Check the data's `split`.")


def _rows(source: DataSource, run: Locator, *, seed: int) -> Iterable[tuple[int, Row]]:
    """Numbered rows of a source, from 1 over its split."""
    check_asked_once(source)
    origin = origin_of(source, run, seed=seed)
    if _can_stream(source, origin):
        return iterate_rows(origin)
    first, rows = read_rows(origin)
    drawn = drawn_rows(source, len(rows), seed=seed)
    return ((first + place, row) for place, row in zip(drawn, rows_at(rows, drawn), strict=True))


def _can_stream(source: DataSource, origin: Origin) -> bool:
    """Whether rows can be read as they come; what the hub gives is mapped into memory in any case."""
    is_counted = source.weight != 1 or source.max_rows is not None or "%" in source.split
    return not (is_counted or origin.is_hub or data_suffix(origin.path) == ".json")


def _is_new(example: Row, seen: dict[bytes, bytes], *, place: str) -> bool:
    """Whether this prompt comes for the first time; samples and their noise are named by its id."""
    name = blake2b(example["prompt_id"].encode(), digest_size=16).digest()
    content = bytes.fromhex(prompt_hash(example["prompt"]))
    if name not in seen:
        seen[name] = content
        return True
    if seen[name] != content:
        raise DataError(f"{place} has the prompt_id '{example['prompt_id']}' of another prompt.")
    return False
