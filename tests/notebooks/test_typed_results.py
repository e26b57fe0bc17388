"""No typed results: a sentence about something measured holds no literal figure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from book_pages import ROOT, chapters

PAGES = [*chapters(), ROOT / "README.md"]
MEASURED = re.compile(
    r"\b(reward|gold|accuracy|win rate|loss|KL|perplexity|gains?|gained|faster|slower|took|takes|speed|"
    r"memory|truncated|cut off|refus\w+|scores?|scored|answers?)\b",
    re.IGNORECASE,
)
FIGURE = re.compile(
    r"(?<![\w.])\d+\.\d+(?!\.?\w)|\b\d+(?:\.\d+)?\s?(?:%|percent|GiB|minutes|seconds|tokens/s|times)"
)
NOT_PROSE = [
    re.compile(
        r"<!-- figures:begin.*?<!-- figures:end -->", re.DOTALL
    ),  # written by a tool; another test holds it
    re.compile(r"```.*?```", re.DOTALL),
    re.compile(r"^:[\w-]+:.*$", re.MULTILINE),  # options of a directive
    re.compile(r"\$[^$\n]+\$"),
    re.compile(r"\{[\w:]+\}`[^`]*`"),  # roles, {result} among them
    re.compile(r"`[^`\n]*`"),
    re.compile(r"95 % intervals?"),
    re.compile(r"^\*\*\d\. .*\*\* \(\w+, \d+ minutes\)$", re.MULTILINE),  # an exercise's head: a guess
]


def typed_results(text: str) -> list[str]:
    """Sentences that state a measured figure which nobody measured."""
    cited = re.compile(r"\{cite")
    for pattern in NOT_PROSE:
        # a citation stays visible: a cited sentence reports somebody else's figure
        text = pattern.sub(lambda found: " {cite} " if cited.match(found.group()) else " ", text)
    sentences = re.split(r"(?<=[.!?:|])\s+(?=[A-Z*|(])|\n\n", text)
    return [s.strip() for s in sentences if MEASURED.search(s) and FIGURE.search(s) and not cited.search(s)]


def test_there_are_pages() -> None:
    assert len(PAGES) > 5


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page_holds_no_typed_result(path: Path) -> None:
    assert typed_results(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "planted",
    [
        "After SFT the gold reward is 0.41.",
        "The reward model reaches an accuracy of 71 %.",
        "The whole demo took 6.5 minutes.",
        "A row of prose. DPO gains 0.108 over SFT! More prose.",
        "| SFT | gold reward 0.695 |",
    ],
)
def test_a_typed_result_is_found(planted: str) -> None:
    assert typed_results(planted)


@pytest.mark.parametrize(
    "allowed",
    [
        "The gold reward is {result}`sft:evaluate-sft.gold`, with its 95 % interval.",
        "Python 3.11 or newer is needed.",
        "Others measured a gain of 1.41 {cite:p}`rafailov2023direct`.",
        "An estimate of the reward is written `0.52 [0.48, 0.56]`.",
        "The loss of $0.5 x$ is a formula.",
        "**3. A loss by hand.** (medium, 15 minutes)\nWrite it.",
    ],
)
def test_what_is_no_typed_result_passes(allowed: str) -> None:
    assert typed_results(allowed) == []
