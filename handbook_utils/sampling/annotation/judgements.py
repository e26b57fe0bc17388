"""Judgements in a file: one line each, on the disk before anyone is told that it is kept, and read back.

Every line is a row of preference data in the format `judged`, so the file can be trained on as it is. It
begins with a weight: 1, or 0 for what was skipped or taken back, which the reader of data leaves out. To take
a judgement back these first bytes are overwritten in place, all at once, and no line ever moves.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from handbook_utils.errors import DataError, RunFolderError
from handbook_utils.runs.atomic import explained_os_errors, sync
from handbook_utils.sampling.annotation.pairs import AnswerPair

VERDICTS = ("a", "b", "tie", "skip")
_START = '{{"weight": {}, "judgement": {{"undone": {}'
# of one length, so that one can be written over another
_KEPT, _SKIPPED, _UNDONE = (_START.format(*given) for given in ((1, "false"), (0, "false"), (0, " true")))


@dataclass(frozen=True)
class Judgement:
    """What a person said of a pair.

    Attributes:
        person: their name.
        pair: id of the pair.
        verdict: "a" or "b", the better answer; "tie"; or "skip".
        first: the answer that was shown first, "a" or "b".
        seconds: from the pair being shown to the verdict; None where not known.
        at: when, as ISO 8601 in UTC.
    """

    person: str
    pair: str
    verdict: str
    first: str
    seconds: float | None
    at: str


@dataclass
class Line:
    """A judgement in its file.

    Attributes:
        judgement: what was said.
        row: the line as it was read or written.
        is_undone: whether it was taken back.
        start: byte in the file where the line begins.
    """

    judgement: Judgement
    row: Mapping[str, Any]
    is_undone: bool
    start: int


class JudgementFile:
    """The file that judgements are appended to; one process at a time; not thread-safe.

    What a kill cut short is the last line alone, of which nobody was told that it is kept. It is removed.

    Args:
        path: a .jsonl file, made where it is missing.

    Raises:
        DataError: the file holds lines that are no judgements (the first is named).
        RunFolderError: another process writes to it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".jsonl":
            raise DataError(f"{path}: judgements are appended to a .jsonl file. Name such a file by --out.")
        self.path = path
        with explained_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock()
            self.lines = list(self._read())
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: Any, __: TracebackType | None) -> None:
        os.close(self._descriptor)

    def append(self, judgement: Judgement, pair: AnswerPair) -> None:
        """Keep a judgement; it is on the disk when this returns.

        Raises:
            RunFolderError: the disk is full, or the file was moved, deleted or written to by another program;
                the file is as it was before.
        """
        row = _row(judgement, pair)
        text = json.dumps(row, ensure_ascii=False)
        start = _SKIPPED if judgement.verdict == "skip" else _KEPT
        assert text.startswith(start)
        with explained_os_errors(self.path):
            self._check_unchanged()
            try:
                _write(self._descriptor, text.encode() + b"\n", self._end)
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, self._end)
                raise
        self.lines.append(Line(judgement, row, False, self._end))
        self._end += len(text.encode()) + 1

    def take_back(self, person: str) -> Judgement | None:
        """Take the last thing back that a person said; None where there is nothing.

        Raises:
            RunFolderError: as `append`.
        """
        line = next(
            (n for n in reversed(self.lines) if n.judgement.person == person and not n.is_undone), None
        )
        if line is None:
            return None
        with explained_os_errors(self.path):
            self._check_unchanged()
            if os.pread(self._descriptor, len(_KEPT), line.start).decode(errors="replace") not in (
                _KEPT,
                _SKIPPED,
            ):
                raise RunFolderError(
                    f"{self.path}: the line of this judgement was written anew by another program, so it "
                    "cannot be taken back here. Write `weight: 0` into it."
                )
            _write(self._descriptor, _UNDONE.encode(), line.start)
            os.fsync(self._descriptor)
        line.is_undone = True
        return line.judgement

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{self.path}: another process writes judgements to it. Open the address that it printed, "
                "stop it, or name another file by --out."
            ) from None

    def _read(self) -> Iterator[Line]:
        """What the file holds; its last line is completed, or removed where it was cut."""
        with explained_os_errors(self.path, reading=True):
            content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        rest = content[len(whole) :]
        if rest and _parsed(rest) is not None:  # somebody's editor has left out the last line break
            _write(self._descriptor, b"\n", len(content))
            whole = content + b"\n"
        elif rest:
            os.ftruncate(self._descriptor, len(whole))
        os.fsync(self._descriptor)
        sync(self.path.parent)
        self._end = len(whole)
        yield from _lines(self.path, whole)

    def _check_unchanged(self) -> None:
        own = os.fstat(self._descriptor)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_ino, there.st_dev) != (own.st_ino, own.st_dev):
            raise RunFolderError(
                f"{self.path}: was moved or deleted while judgements were written to it. Put it back and "
                "start the command again; what was said last is not kept."
            )
        if own.st_size != self._end:
            raise RunFolderError(
                f"{self.path}: was changed by another program while judgements were written to it. Start "
                "the command again, which reads it anew; what was said last is not kept."
            )


def read_judgement_file(path: Path) -> list[Line]:
    """The judgements of a file; a last line that was cut is left out.

    Raises:
        DataError: there is no such file, or it holds lines that are no judgements.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. `handbook data compare FILE --out {path}` makes one.")
    with explained_os_errors(path, reading=True):
        content = path.read_bytes()
    is_whole = content.endswith(b"\n") or _parsed(content[content.rfind(b"\n") + 1 :]) is not None
    whole = content if is_whole else content[: content.rfind(b"\n") + 1]
    return list(_lines(path, whole))


def _lines(path: Path, content: bytes) -> Iterator[Line]:
    start = 0
    for number, raw in enumerate(content.split(b"\n"), start=1):
        if raw.strip():
            row = _parsed(raw)
            line = _line(row, start) if row is not None else None
            if line is None:
                raise DataError(
                    f"{path}: line {number} is no judgement of `handbook data compare`. Name another file."
                )
            yield line
        start += len(raw) + 1


def _parsed(raw: bytes) -> Mapping[str, Any] | None:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _line(row: Mapping[str, Any], start: int) -> Line | None:
    said = row.get("judgement")
    if not isinstance(said, dict) or said.get("verdict") not in VERDICTS:
        return None
    texts = [said.get(name) for name in ("by", "pair", "verdict", "first", "at")]
    seconds, is_undone = said.get("seconds"), said.get("undone")
    if not all(isinstance(text, str) for text in texts) or not isinstance(is_undone, bool):
        return None
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
        return None
    by, pair, verdict, first, at = map(str, texts)
    return Line(Judgement(by, pair, verdict, first, seconds, at), row, is_undone, start)


def _row(judgement: Judgement, pair: AnswerPair) -> dict[str, Any]:
    is_skip = judgement.verdict == "skip"
    return {
        "weight": 0 if is_skip else 1,
        "judgement": {
            "undone": False,
            "by": judgement.person,
            "pair": judgement.pair,
            "verdict": judgement.verdict,
            "first": judgement.first,
            "seconds": judgement.seconds,
            "at": judgement.at,
            "origins": list(pair.origins),
        },
        "prompt_id": pair.prompt_id,
        "prompt": pair.prompt,
        "answer_a": pair.a,
        "answer_b": pair.b,
        "preference": None if is_skip else judgement.verdict,
        **pair.beside,
    }


def _write(descriptor: int, content: bytes, at: int) -> None:
    """All of it, in one call where the system takes it at once."""
    while content:
        written = os.pwrite(descriptor, content, at)
        content, at = content[written:], at + written


def counted(lines: Iterable[Line]) -> list[Line]:
    """Lines that say something: neither skipped nor taken back."""
    return [line for line in lines if not line.is_undone and line.judgement.verdict != "skip"]
