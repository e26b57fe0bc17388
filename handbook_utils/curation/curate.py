"""Rows in, curated rows out: every rule asked, every row that goes written down with the reasons.

The rows are read once and kept in a file meanwhile, so memory holds some hundred bytes of each row, whatever
its length. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from handbook_utils.curation.checks import Finding, RowChecks
from handbook_utils.curation.decontaminate import TestedPrompts
from handbook_utils.curation.folder import (
    FLAGGED,
    KEPT,
    REMOVED,
    REPORT,
    check_out,
    exclusive,
    reuse,
    row_json,
)
from handbook_utils.curation.near.duplicates import DuplicateFinder, Repeats
from handbook_utils.curation.near.sketches import require_rensa
from handbook_utils.curation.rows import SourceRows, batches
from handbook_utils.curation.rules.control_tokens import ControlTokens
from handbook_utils.curation.rules.table import RULES, Settings
from handbook_utils.errors import DataError
from handbook_utils.runs.atomic import atomic_folder, explained_os_errors

BATCH, EXAMPLES, SHOWN = 2000, 3, 160
# raised when what a finished folder holds changes its meaning, so that it is not taken for the new one
VERSION = 2


@dataclass
class Curation:
    """What curating came to.

    Attributes:
        folder: where the rows are.
        report: as `curation.json` holds it.
        is_reused: whether the folder was there already, of the same rows and settings.
    """

    folder: Path
    report: dict[str, Any]
    is_reused: bool = False


@dataclass
class _Places:
    """Rows of all sources by one running number."""

    labels: list[str]
    firsts: list[int] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("q"))
    unread: bytearray = field(default_factory=bytearray)  # 1 where training would refuse the row

    def source(self, place: int) -> int:
        return bisect_right(self.firsts, place) - 1

    def id(self, place: int) -> str:
        return f"{self.labels[self.source(place)]}:{self.numbers[place]}"


def curate(
    sources: Sequence[SourceRows],
    out: Path,
    settings: Settings | None = None,
    *,
    tested: TestedPrompts | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
    watch: Callable[[int], None] | None = None,
) -> Curation:
    """Apply the rules to all rows, and write what is kept, what goes and what is to be looked at.

    Args:
        sources: opened by `rows.open_sources`.
        out: the folder to write: `kept/<source>.jsonl` in the shape the rows came in, `removed.jsonl` with
            the rows that went and why, `flagged.jsonl`, and `curation.json` with counts and examples.
        settings: which rules are on, and where they begin.
        tested: prompts that are tested on.
        tokenizer: of the model to be trained; its control tokens are looked for.
        overwrite: replace an earlier curation of other rows or settings.
        watch: told the number of rows read so far.
    Returns:
        The curation; of a folder that holds the same one already, what it says.
    Raises:
        DataError: a source cannot be read, or was changed while it was; no row is left.
        RunFolderError: the folder holds something else, is in use, or cannot be written.
    Book: chapter "Data".
    """
    settings = settings or Settings()
    identity = {
        "version": VERSION,
        "settings": settings.to_json(),
        "sources": [_identity(s) for s in sources],
    }
    check_out(out)
    if settings.is_on("near_duplicate"):
        require_rensa()
    with exclusive(out):
        stored = reuse(out, identity, overwrite=overwrite)
        if stored is not None:
            return Curation(out, stored, is_reused=True)
        control = ControlTokens(tokenizer) if tokenizer and settings.is_on("control_tokens") else None
        checks = RowChecks(settings, tested=tested, control=control)
        with atomic_folder(out) as folder:
            report = _curate(sources, folder, settings, checks, watch or (lambda rows: None))
            report = {"identity": identity, **report}
            text = json.dumps(report, indent=2, ensure_ascii=False)
            (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    return Curation(out, report)


def _identity(source: SourceRows) -> dict[str, Any]:
    files = {str(path.resolve()): list(stamp) for path, stamp in source.stamps.items()}
    return {"source": source.source.model_dump(mode="json"), "kind": source.kind, "files": files}


def _curate(
    sources: Sequence[SourceRows],
    folder: Path,
    settings: Settings,
    checks: RowChecks,
    watch: Callable[[int], None],
) -> dict[str, Any]:
    places = _Places([source.label for source in sources])
    near = settings.is_on("near_duplicate")
    compares = settings.is_on("duplicate", "near_duplicate", "repeated_prompt", "repeated_answer")
    spool, notes = folder / "rows.spool", folder / "findings.spool"
    with DuplicateFinder(folder / "words.spool", near=near) as finder:
        with spool.open("wb") as rows, notes.open("wb") as found:
            alive = _read(
                sources, places, checks, finder if compares else None, (rows, found), settings, watch
            )
        for source in sources:  # the last look: what was read is what is there
            source.check_unchanged()
        thresholds = settings.thresholds
        repeats = (
            finder.repeats(
                np.frombuffer(alive, np.bool_).copy(),
                threshold=thresholds.near,
                min_words=thresholds.repeated_words,
            )
            if compares
            else Repeats()
        )
    later = _later_findings(repeats, checks.boilerplate(), places, settings)
    with spool.open("rb") as rows, notes.open("rb") as found:
        counts = _write(sources, folder, places, (rows, found), later, settings)
    spool.unlink()
    notes.unlink()
    if not sum(counts.kept):
        worst = max(counts.rules, key=lambda name: counts.rules[name]["removed"])
        raise DataError(
            f"no row is left; the rule '{worst}' alone removed {counts.rules[worst]['removed']:,}. "
            f"Look with --flag {worst}, or switch it off with --off {worst}. Nothing was written."
        )
    return counts.report(sources, settings, checks)


def _read(
    sources: Sequence[SourceRows],
    places: _Places,
    checks: RowChecks,
    finder: DuplicateFinder | None,
    files: tuple[BinaryIO, BinaryIO],
    settings: Settings,
    watch: Callable[[int], None],
) -> bytearray:
    """Read all rows once; returns for each whether no rule about single rows removes it."""
    alive = bytearray()
    dropping = {name for name in RULES if settings.action(name) == "drop"}
    for source in sources:
        places.firsts.append(len(alive))
        for batch in batches(source, BATCH):
            first = len(alive)
            readings = [reading for _, _, reading in batch]
            for (number, row, reading), findings in zip(batch, checks(first, readings), strict=True):
                places.numbers.append(number)
                places.unread.append(bool(reading.problem))
                files[0].write(row_json(row) + b"\n")
                if findings:
                    files[1].write(json.dumps([len(alive), findings]).encode() + b"\n")
                alive.append(not any(finding.rule in dropping for finding in findings))
            if finder is not None:
                # what cannot be read has no words; it goes for another reason
                finder.add(
                    [r.asked for r in readings], ["\n".join((*r.answers, *r.rejected)) for r in readings]
                )
            watch(len(alive))
    return alive


def _later_findings(
    repeats: Repeats, boilerplate: Mapping[int, str], places: _Places, settings: Settings
) -> Callable[[int], Iterator[Finding]]:
    """What is known of a row only once all were read."""
    kinds = [
        (name, getattr(repeats, name).of)
        for name in ("duplicate", "near_duplicate", "repeated_prompt", "repeated_answer")
        if settings.is_on(name)
    ]
    words = {
        "duplicate": "in the same words as",
        "near_duplicate": "nearly the same as",
        "repeated_prompt": "asks as",
        "repeated_answer": "answers as",
    }

    def of(place: int) -> Iterator[Finding]:
        for name, alike in kinds:
            if place in alike:
                other, similarity = alike[place]
                how = "" if similarity == 1.0 else f" (Jaccard similarity {similarity:.2f})"
                yield Finding(name, f"{words[name]} {places.id(other)}{how}")
        if place in boilerplate:
            yield Finding("boilerplate", boilerplate[place])

    return of


class _Counts:
    """What went where."""

    def __init__(self, sources: Sequence[SourceRows]) -> None:
        self.rows, self.kept, self.unread, self.flagged, self.firsts = ([0] * len(sources) for _ in range(5))
        self.rules = {
            name: {
                "removed": 0,
                "flagged": 0,
                "by_source": dict.fromkeys((s.label for s in sources), 0),
                "examples": [],
            }
            for name in RULES
        }  # type: dict[str, dict[str, Any]]

    def add(
        self, source: SourceRows, findings: Iterable[Finding], settings: Settings, id: str, row: bytes
    ) -> None:
        """Count a row's findings."""
        for name in {finding.rule for finding in findings}:
            about = self.rules[name]
            about["removed" if settings.action(name) == "drop" else "flagged"] += 1
            about["by_source"][source.label] += 1
            if len(about["examples"]) < EXAMPLES:
                why = next(finding.why for finding in findings if finding.rule == name)
                about["examples"].append({"id": id, "why": why, "shows": _shows(name, row)})

    def report(self, sources: Sequence[SourceRows], settings: Settings, checks: RowChecks) -> dict[str, Any]:
        """All of it, for `curation.json`."""
        about = [
            {
                **{"label": s.label, "name": str(s.source.name or s.source.from_), "kind": s.kind},
                **{"recognised": s.recognised, "rows": self.rows[n], "kept": self.kept[n]},
                "kept_unread": self.unread[n],
                **{"flagged": self.flagged[n], "file": f"{KEPT}/{s.label}.jsonl", "first": self.firsts[n]},
            }
            for n, s in enumerate(sources)
        ]
        rules = {
            name: {
                **{
                    "action": settings.action(name),
                    "finds": RULES[name].finds,
                    "because": RULES[name].because,
                },
                **found,
            }
            for name, found in self.rules.items()
        }
        return {
            "rows": sum(self.rows),
            "kept": sum(self.kept),
            "removed": sum(self.rows) - sum(self.kept),
            "flagged": sum(self.flagged),
            "sources": about,
            "rules": rules,
            "not_checked": settings.not_checked(),
            "length_bias": checks.bias.to_json(),
            "restored": [],
        }


def _write(
    sources: Sequence[SourceRows],
    folder: Path,
    places: _Places,
    files: tuple[BinaryIO, BinaryIO],
    later: Callable[[int], Iterator[Finding]],
    settings: Settings,
) -> _Counts:
    (folder / KEPT).mkdir()
    counts = _Counts(sources)
    notes = _Notes(files[1])
    with ExitStack() as opened, explained_os_errors(folder):
        kept = [opened.enter_context((folder / KEPT / f"{s.label}.jsonl").open("wb")) for s in sources]
        removed = opened.enter_context((folder / REMOVED).open("wb"))
        flagged = opened.enter_context((folder / FLAGGED).open("wb"))
        for place, line in enumerate(files[0]):
            at = places.source(place)
            counts.firsts[at] = counts.firsts[at] or places.numbers[place]
            counts.rows[at] += 1
            findings = [*notes.of(place), *later(place)]
            if not findings:
                counts.kept[at] += 1
                counts.unread[at] += places.unread[place]
                kept[at].write(line)
                continue
            counts.add(sources[at], findings, settings, places.id(place), line)
            goes = any(settings.action(finding.rule) == "drop" for finding in findings)
            about = {
                "id": places.id(place),
                "source": sources[at].label,
                "row": places.numbers[place],
                "rules": [finding._asdict() for finding in findings],
            }
            if places.unread[place]:
                about["unread"] = True
            head = json.dumps(about).encode()
            if goes:  # the row itself stands behind its reasons, byte for byte as it would have been kept
                removed.write(head[:-1] + b', "data": ' + line.rstrip(b"\n") + b"}\n")
            else:
                counts.kept[at] += 1
                counts.unread[at] += places.unread[place]
                counts.flagged[at] += 1
                kept[at].write(line)
                flagged.write(head + b"\n")
    return counts


class _Notes:
    """Findings that were written while the rows were read, in the same order."""

    def __init__(self, lines: BinaryIO) -> None:
        self._lines = lines
        self._next: tuple[int, list[Finding]] | None = self._read()

    def of(self, place: int) -> list[Finding]:
        if self._next is None or self._next[0] != place:
            return []
        found = self._next[1]
        self._next = self._read()
        return found

    def _read(self) -> tuple[int, list[Finding]] | None:
        line = self._lines.readline()
        if not line:
            return None
        place, findings = json.loads(line)
        return place, [Finding(*finding) for finding in findings]


def _shows(rule: str, row: bytes) -> str:
    """The beginning of a row; of what is private nothing."""
    if rule == "private_data":
        return ""
    text = row.decode().strip()
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
