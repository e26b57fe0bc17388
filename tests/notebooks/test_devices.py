"""What a reader may expect of every chapter, from its first promise to why to read on."""

from __future__ import annotations

import re

import pytest
import yaml
from book_pages import ROOT

MINUTES = r"^\*\*\d\. .*\*\* \((easy|medium|hard|open), \d+ minutes\)$"
# what a page holds of each device, and how often at least
DEVICES: dict[str, tuple[str, int]] = {
    "what you will be able to do": (r"^\*\*After this chapter you can\*\*", 1),
    "what to know first": (r"^\*\*What to know first:\*\*", 1),
    "the naive answer": (r"^## A question and the naive answer$", 1),
    "a failure on purpose": (r"^##+ A failure on purpose", 1),
    "a command for the reader's own data": (r"^(    |)handbook ", 1),
    "what transfers": (r"^## What transfers", 1),
    "exercises with difficulty and minutes": (MINUTES, 4),
    "a checklist": (r"^- \[ \] ", 5),
    "further reading": (r"^## Further reading$", 1),
    "why to read on": (r"^\*\*Next:\*\* .*", 1),
}
# measured ones, of the chapters that a notebook backs
MEASURED = {"the measured cost": (r"^```\{results-cost\}", 1), "its claims": (r"^```\{results-claims\}", 1)}
# a device that stands in a chapter in another shape, and where
ELSEWHERE = {
    ("data", "a failure on purpose"): "the naive answer fails on a sorted file",
    ("metrics", "a failure on purpose"): "What looks wrong and is not",
    ("online_rl", "a failure on purpose"): "When the reward is learned",
    ("using", "a failure on purpose"): "the naive answer copies the weights alone",
    ("pipeline", "a failure on purpose"): "the other chapters' failures are what its checklist is made of",
    ("pipeline", "a command for the reader's own data"): "in its checklist",
    ("pipeline", "what transfers"): "What published recipes reached",
}
CONTENTS = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
(CHAPTERS,) = (part["chapters"] for part in CONTENTS["parts"] if part["caption"] == "Chapters")


def text_of(entry: dict[str, str]) -> str:
    return (ROOT / f"{entry['file']}.md").read_text(encoding="utf-8")


def lacking(entry: dict[str, str]) -> list[str]:
    """The devices that a chapter lacks."""
    text, name = text_of(entry), entry["file"].removeprefix("book/")
    asked = DEVICES | (MEASURED if "sections" in entry else {})
    return [
        device
        for device, (pattern, least) in asked.items()
        if len(re.findall(pattern, text, re.MULTILINE)) < least and (name, device) not in ELSEWHERE
    ]


def questions_and_answers(text: str) -> tuple[int, int]:
    """How many questions the section *Recall* asks, and how many its fold answers."""
    (recall,) = re.findall(r"^## Recall\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    asked, _, folded = recall.partition(":::{dropdown} Answers\n")
    return len(re.findall(r"^\d\. ", asked, re.MULTILINE)), len(re.findall(r"^\d\. ", folded, re.MULTILINE))


def test_there_are_chapters() -> None:
    assert len(CHAPTERS) > 10


@pytest.mark.parametrize("entry", CHAPTERS, ids=lambda entry: entry["file"].removeprefix("book/"))
def test_a_chapter_has_every_device(entry: dict[str, str]) -> None:
    assert lacking(entry) == []


@pytest.mark.parametrize("entry", CHAPTERS, ids=lambda entry: entry["file"].removeprefix("book/"))
def test_a_chapter_asks_five_questions_and_answers_each_in_a_fold(entry: dict[str, str]) -> None:
    asked, answered = questions_and_answers(text_of(entry))
    assert asked == answered >= 5


def test_a_missing_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = CHAPTERS[0]
    monkeypatch.setitem(DEVICES, "a riddle", (r"^## A riddle$", 1))
    assert lacking(entry) == ["a riddle"]


def test_what_stands_elsewhere_is_missing_in_its_usual_shape() -> None:
    """An exception that is no longer needed goes."""
    entries = {entry["file"].removeprefix("book/"): entry for entry in CHAPTERS}
    for name, device in ELSEWHERE:
        pattern, least = DEVICES[device]
        assert len(re.findall(pattern, text_of(entries[name]), re.MULTILINE)) < least, (name, device)
