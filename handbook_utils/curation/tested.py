"""The prompts that are tested on, read from anyone's files; and the rows of a source that hold them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handbook_utils.curation.checks import leaks
from handbook_utils.curation.decontaminate import TestedPrompt, TestedPrompts
from handbook_utils.curation.rows import SourceRows, batches, open_sources
from handbook_utils.curation.rules.table import Thresholds
from handbook_utils.errors import DataError
from handbook_utils.runs.checksums import checksum_of
from handbook_utils.schema.sections import DataSource

BATCH = 2000


def read_tested(
    names: Sequence[DataSource], trained: Sequence[SourceRows], thresholds: Thresholds | None = None
) -> TestedPrompts:
    """Read what is tested on.

    Args:
        names: the evaluation sets, as sources of a recipe are named; rows of any known format.
        trained: the sources that are compared with them.
        thresholds: from where a row holds a tested prompt.
    Raises:
        DataError: a set cannot be read or is empty; or one is a file of the data that is trained on.
    """
    thresholds = thresholds or Thresholds()
    prompts: list[TestedPrompt] = []
    for source in open_sources(names):
        _refuse_same(source, trained)
        for number, _, reading in source:
            if reading.problem:
                raise DataError(
                    f"{reading.problem} What is tested on has to be readable as a whole, or a leak is missed."
                )
            # text alone is its own prompt
            text = reading.asked or reading.answered
            prompts.append(TestedPrompt(f"{source.label}:{number}", text))
    return TestedPrompts(
        prompts, words=thresholds.leak_words, share=thresholds.leak_share, near=thresholds.leak_near
    )


@dataclass(frozen=True)
class Leak:
    """A row that holds a tested prompt: its id, and the reason with the words in their place."""

    id: str
    why: str


@dataclass
class LeakReport:
    """What of the data is tested on.

    Attributes:
        rows: rows that were compared.
        tested: prompts that they were compared with.
        template_runs: runs of words that many of these share, which were ignored.
        leaks: rows by source that hold one of them.
        unread: rows by source that could not be read, and so were not compared.
    """

    rows: int
    tested: int
    template_runs: int
    leaks: dict[str, list[Leak]] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        leaks = {label: [vars(leak) for leak in found] for label, found in self.leaks.items()}
        return {**vars(self), "leaks": leaks}


def find_leaks(
    sources: Sequence[SourceRows], tested: TestedPrompts, *, watch: Callable[[int], None] | None = None
) -> LeakReport:
    """Rows that hold a tested prompt; nothing is written.

    Args:
        sources: opened by `rows.open_sources`.
        tested: from `read_tested`.
        watch: told the number of rows compared so far.
    """
    report = LeakReport(0, len(tested), tested.template_runs)
    for source in sources:
        found = report.leaks.setdefault(source.label, [])
        report.unread[source.label] = 0
        for batch in batches(source, BATCH):
            for place, why in leaks(tested, [reading for _, _, reading in batch]):
                found.append(Leak(f"{source.label}:{batch[place][0]}", why))
            report.rows += len(batch)
            report.unread[source.label] += sum(bool(reading.problem) for _, _, reading in batch)
            if watch:
                watch(report.rows)
    return report


def _refuse_same(source: SourceRows, trained: Sequence[SourceRows]) -> None:
    """Refuse a set that is the data: every row would be found in it."""
    for other in trained:
        for mine in source.stamps:
            for theirs in other.stamps:
                if _is_same(mine, theirs):
                    copied = "" if mine.resolve() == theirs.resolve() else f", a copy of {theirs}"
                    raise DataError(
                        f"{mine}: is the data itself{copied}, so every row would count as a leak. Name the "
                        "file that you test on with --against."
                    )


def _is_same(mine: Path, theirs: Path) -> bool:
    if mine.resolve() == theirs.resolve():
        return True
    return mine.stat().st_size == theirs.stat().st_size and checksum_of(mine) == checksum_of(theirs)
