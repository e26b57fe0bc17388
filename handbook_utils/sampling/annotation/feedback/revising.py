"""Answers criticised and revised by written principles; the revision is preferred to what it came from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from handbook_utils.errors import DataError
from handbook_utils.records import Message
from handbook_utils.runs.atomic import explained_os_errors
from handbook_utils.sampling.asking import (
    UNTRUSTED,
    Asker,
    as_json,
    between_marks,
    last_lines,
)
from handbook_utils.sampling.endpoint_client import RefusedError

_VERDICT = re.compile(r"\W*VERDICT\W*[:=]\W*(KEEP|REVISE)\W*", re.IGNORECASE)
_POINT = re.compile(r"(?:[-*+]|\d{1,3}[.)])\s+")
_CRITIQUE = """You review one answer to a conversation by one principle:
{principle}

The conversation and the answer {untrusted}

Say what in the answer goes against the principle, and quote it. Then end with one line, which is one of:
VERDICT: KEEP
VERDICT: REVISE"""
_REVISE = """You rewrite one answer to a conversation so that it follows one principle:
{principle}

The conversation, the answer and a review of it {untrusted}

Change what the review names and leave the rest as it is. Reply with the whole new answer and nothing else."""


@dataclass(frozen=True)
class Step:
    """One principle applied: what the review said, and whether the answer was changed for it."""

    principle: str
    critique: str
    revised: bool


@dataclass(frozen=True)
class Revised:
    """An answer after all steps; its text is the first one's where every review let it be."""

    text: str
    steps: tuple[Step, ...]


def read_principles(path: Path) -> list[str]:
    """The principles of a file of text or Markdown: one per line, headings and empty lines left out.

    Raises:
        DataError: no such file, or no principle in it.
    """
    if not path.is_file():
        raise DataError(f"--principles: there is no file {path}.")
    try:
        with explained_os_errors(path):
            lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"--principles: {path} is no UTF-8 text. Write one principle per line.") from None
    kept = [
        _POINT.sub("", line.strip(), count=1) for line in lines if line.strip() and line.strip()[0] != "#"
    ]
    if not kept:
        raise DataError(f"--principles: {path} holds none. Write one principle per line.")
    return list(dict.fromkeys(kept))


def drawn_principles(principles: Sequence[str], name: str, *, steps: int, seed: int) -> list[str]:
    """Different principles for one answer, by the seed and the answer's name."""

    def place(principle: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{name}\0{principle}".encode()).digest()

    return sorted(principles, key=place)[:steps]


def revise(ask: Asker, prompt: Sequence[Message], answer: str, principles: Sequence[str]) -> Revised:
    """Review an answer by each principle in turn, and have it rewritten where the review asks for it.

    Raises:
        RefusedError: a review holds no verdict, or there is no reply.
    """
    steps = []
    for principle in principles:
        texts = {"conversation": as_json(prompt), "answer": answer}
        critique = ask(between_marks(_filled(_CRITIQUE, principle), texts))
        said = _VERDICT.fullmatch(last_lines(critique, 1)[0])
        if said is None:
            raise RefusedError(f"no verdict in the review, which ends: {critique[-80:]!r}")
        is_revised = said[1].upper() == "REVISE"
        if is_revised:
            answer = ask(between_marks(_filled(_REVISE, principle), {**texts, "review": critique})).strip()
        steps.append(Step(principle, critique, is_revised))
    return Revised(answer, tuple(steps))


def _filled(task: str, principle: str) -> str:
    return task.replace("{untrusted}", UNTRUSTED).replace("{principle}", principle)
