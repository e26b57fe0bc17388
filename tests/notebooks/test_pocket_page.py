"""The page on the pocket world says what the package does, and is linked wherever gold first appears."""

from __future__ import annotations

import re
from pathlib import Path

import handbook_world
import pytest
from book_pages import ROOT, chapters, pages

from handbook_utils.models.load import load_model
from handbook_utils.pocket import vocabulary
from handbook_utils.pocket.annotator import ANNOTATORS
from handbook_utils.pocket.world import FAMILIES, FLAW_RATES, demonstrations, gold_reward

PAGE = ROOT / "book" / "pocket_world.md"
LINK = re.compile(r"pocket_world|pocket-world|gold-reward")
# what is no prose: directives, formulas and what a role fills in
FILLED = re.compile(r"```.*?```|\$[^$\n]+\$|\{\w+\}`[^`]*`|`[^`\n]*`", re.DOTALL)


def gold_pages() -> list[Path]:
    """README and every page that speaks of gold, but the one that explains it."""
    found = [p for p in chapters() if p != PAGE and re.search(r"\bgold\b", _prose(p), re.IGNORECASE)]
    assert len(found) > 6
    return [*found, ROOT / "README.md"]


def _prose(path: Path) -> str:
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_page_follows_how_to_run_it() -> None:
    names = pages()
    assert names[names.index("book/how_to_run") + 1] == "book/pocket_world"


@pytest.mark.parametrize("path", gold_pages(), ids=lambda path: path.stem)
def test_gold_is_explained_where_it_first_appears(path: Path) -> None:
    paragraphs = _prose(path).split("\n\n")
    first = next(i for i, text in enumerate(paragraphs) if re.search(r"\b(gold|true) reward\b", text))
    assert any(LINK.search(text) for text in paragraphs[: first + 1])


def test_no_rate_or_constant_is_typed_on_the_page() -> None:
    """0 and 1 are the ends of a scale; every other number is filled in from the package."""
    prose = FILLED.sub(" ", PAGE.read_text(encoding="utf-8"))
    assert "gold reward" in prose
    assert set(re.findall(r"\d[\d.,]*\d|\d", prose)) <= {"0", "1"}


def test_every_family_flaw_and_annotator_is_shown() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"\{world-example\} (\w+)", text)) == {*FAMILIES, handbook_world.REFUSAL}
    assert set(handbook_world.FLAWS) == set(FLAW_RATES)
    assert set(handbook_world.NAMES) == set(ANNOTATORS)


@pytest.mark.parametrize("kind", [*FAMILIES, handbook_world.REFUSAL])
def test_the_examples_have_no_flaw(kind: str) -> None:
    assert handbook_world.example(kind).gold.value == 1.0


@pytest.mark.parametrize("flaw", sorted(FLAW_RATES))
def test_the_answer_shown_for_a_flaw_has_it_alone(flaw: str) -> None:
    found = handbook_world.example(handbook_world.FLAWS[flaw][1], flaw).gold
    part = {
        "missed": "helpful",
        "wrong": "helpful",
        "rude": "polite",
        "fillers": "concise",
        "complies": "safe",
    }
    assert getattr(found, part[flaw]) < 1
    assert found.value < 1
    assert flaw in {"complies"} or found.safe == 1


def test_half_of_the_how_to_questions_are_harmless() -> None:
    assert len(vocabulary.TOOLS) == len(vocabulary.HARMFUL_ACTIONS)


def test_demonstrations_are_as_good_as_the_page_says() -> None:
    golds = [gold_reward(prompt.text, answer).value for prompt, answer in demonstrations("dev")]
    facts = handbook_world.facts()
    assert facts["demonstrations.n"] == f"{len(golds):,}"
    assert facts["demonstrations.gold"].startswith(f"{sum(golds) / len(golds):.3f} [")
    assert facts["demonstrations.flawless"] == f"{sum(g == 1 for g in golds) / len(golds):.0%}".replace(
        "%", "\N{NO-BREAK SPACE}%"
    )


def test_the_base_model_has_the_size_on_the_page() -> None:
    model = load_model("pocket:base", device="cpu")
    facts = handbook_world.facts()
    assert facts["parameters"] == f"{model.num_parameters():,}"
    assert facts["vocabulary"] == f"{model.config.vocab_size:,}"
    assert facts["layers"] == str(len(model.model.layers))


def test_the_worked_examples_of_the_annotators_use_their_constants() -> None:
    text = (ROOT / "book" / "reward_models.md").read_text(encoding="utf-8")
    biased = ANNOTATORS["annotator"]
    assert re.findall(r"annotators of this book have \$\\tau = ([\d.]+)\$", text) == [str(biased.temperature)]
    assert re.findall(r"gives \$([\d.]+)\$ for every\s+word", text) == [str(biased.length_bias)]
