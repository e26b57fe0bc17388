"""Plain technical English wherever a user reads: phrases that STYLE rules out, found by pattern."""

from __future__ import annotations

import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# a rate takes "per": one worker per GPU. What is counted, and what it is counted by
COUNTED = (
    r"nats?|tokens|rows?|answers|samples|passes|steps|batch|bits|bytes|seconds|words|figures?|value|values|"
    r"worker|workers|process|launcher|line|entry|object|column|record|file|folder|box|section|source|"
    r"pairs|prompts|one|scale|type|response|gradients|arithmetic|\d+(?:[.,]\d+)*"
)
UNITS = (
    r"GPU|token|prompt|step|node|worker|second|epoch|device|pass|stage|row|answer|line|score|scorer|"
    r"conversation|weight|parameter|layer|round|seed|pair|sample|turn|family|arm|claim|message"
)
RATE = re.compile(rf"(?<![-\w])(?:{COUNTED})\s+an?\s+(?:{UNITS})\b(?!-)")
# the same words where they are no rate: "which tokens a row has", "the stage evaluate: sample a model"
NO_RATE = re.compile(
    r"(?:\b(?:which|what|how many|number of|of its scored|row of|the|as many)\s+(?:\w+\s+)?)$",
    re.IGNORECASE,
)
PHRASES = {
    "not heeded": "is ignored",
    "for want of": "for lack of",
    "by heart": "memorised",
    "old acquaintance": "already drawn",
    "look twice": "warning sign",
    "of unlike": "of different",
    "for likely": "gives ... probability",
    "label less": "one label fewer",
    "closes up": "becomes",
    "on a GPU not measured": "not measured on a GPU",
    "on a GPU none of this": "not measured on a GPU",
    "made alike by": "the same bytes from any worker",
    "goes by -": "falls by",
    "a worker a": "one worker per",
    "who pays": "account to charge",
    "stand on nothing": "say what happens",
    "padding and end in one": "is both padding and end-of-turn token",
    "whoever bothered": "self-selected users",
    "by whomever": "leave it out",
    "no mistake of anybody": "expected",
    "harmful obeyed": "harmful requests complied with",
    "nobody has asked": "no user message precedes it",
    "has got half": "has half",
    "a step each in turn": "alternating, one step each",
}


def mistakes(text: str) -> list[str]:
    """Every phrase that is ruled out, with what to write instead."""
    flat = re.sub(r"\s+", " ", text)
    found = [
        f"'{rate.group()}': write 'per'"
        for rate in RATE.finditer(flat)
        if not NO_RATE.search(flat[max(0, rate.start() - 30) : rate.start()])
    ]
    return found + [f"'{p}': write '{better}'" for p, better in PHRASES.items() if p in flat.lower()]


def texts() -> Iterator[tuple[str, str]]:
    """Pages, notebooks' prose, recipes, and every string of the package: docstrings, errors, help."""
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"):
        yield name, (ROOT / name).read_text(encoding="utf-8")
    for folder, pattern in (("book", "*.md"), ("handbook_utils/recipes", "**/*.yaml")):
        for path in sorted((ROOT / folder).glob(pattern)):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        prose = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        yield f"notebooks/{path.name}", "\n\n".join(prose)
    for path in sorted((ROOT / "handbook_utils").rglob("*.py")):
        yield str(path.relative_to(ROOT)), "\n\n".join(strings_of(path))


def strings_of(path: Path) -> Iterator[str]:
    kinds = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in kinds:
            yield token.string


TEXTS = dict(texts())


def test_everything_that_a_user_reads_is_looked_at() -> None:
    assert len([name for name in TEXTS if name.startswith("book/")]) > 15
    assert len([name for name in TEXTS if name.startswith("notebooks/")]) >= 8
    assert len([name for name in TEXTS if name.endswith(".py")]) > 150
    assert len([name for name in TEXTS if name.endswith(".yaml")]) > 90


def test_no_phrase_has_to_be_read_twice() -> None:
    assert {name: found for name, text in TEXTS.items() if (found := mistakes(text))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "`--executor ray`: a worker a GPU, over a cluster",
        "loses 0.3 nats a token to full training",
        "samples several\n    answers a prompt",
        "the column 'x' is not heeded: prompts are sampled",
        "often for want of memory",
        "rows are being learned by heart",
        "batch = 4 a device x 1 accumulated",
    ],
)
def test_a_phrase_that_was_here_before_is_found(text: str) -> None:
    assert mistakes(text)


@pytest.mark.parametrize(
    "text",
    [
        "which tokens a conversation becomes",
        "how many prompts a question needs",
        "sample a model on held-out prompts",
        "tokens per second, one worker per GPU",
        "What of its scored samples a round trains on",
    ],
)
def test_a_plain_sentence_is_no_mistake(text: str) -> None:
    assert mistakes(text) == []
