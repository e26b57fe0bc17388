"""A gain that fresh seeds have measured is shown as their mean; the tuning seed's own only where it is named.

Settings were chosen on seed 0, so what it shows flatters them: every fresh seed of DPO's gain lies below it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import handbook_results
import pytest
from book_pages import ROOT, chapters

RESULTS = ROOT / "book" / "results"
PAGES = [*chapters(), ROOT / "README.md"]
ROLE = re.compile(r"\{result\}`(\w+):([^`|]+)(?:\|\w+)?`")
TABLE = re.compile(r"```\{results-table\} (\w+)\n((?::\w+:.*\n)+)```")
NAMED = re.compile(r"\bseed\s+0\b|\btuning\s+seed\b", re.IGNORECASE)


@cache
def fresh() -> dict[str, Any]:
    """Claims that fresh seeds have tried."""
    found: dict[str, Any] = handbook_results.load_results(RESULTS, "calibration")["claims"]
    return found


@cache
def tuned(name: str) -> dict[tuple[float, float, float], str]:
    """Figures of a results file that are a claim's on the tuning seed, where fresh seeds tried it."""
    claims = handbook_results.load_results(RESULTS, name).get("claims", {})
    return {_ends(record): claim for claim, record in claims.items() if claim in fresh()}


def _ends(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    return figure["value"], figure.get("low", 0.0), figure.get("high", 0.0)


def shown_of_the_tuning_seed(text: str) -> Iterator[tuple[str, str]]:
    """(claim, paragraph) of each gain of the tuning seed that a page shows.

    A table's paragraph is the one before it, with the table.
    """
    for found in ROLE.finditer(text):
        name, key = found.groups()
        if name != "calibration" and _figure(name, key) in tuned(name):
            yield tuned(name)[_figure(name, key)], _paragraph(text, found.start())
    for found in TABLE.finditer(text):
        name, options = found[1], dict(re.findall(r":(\w+): (.*)", found[2]))
        rows, columns = (options[each].split(",") for each in ("rows", "columns"))
        figures = handbook_results.all_figures(handbook_results.load_results(RESULTS, name))
        for key in (f"{r.strip()}.{c.partition('|')[0].strip()}" for r in rows for c in columns):
            if key in figures and _ends(figures[key]) in tuned(name):
                yield tuned(name)[_ends(figures[key])], _paragraph(text, found.start() - 2) + found[2]


def _figure(name: str, key: str) -> tuple[float, float, float]:
    return _ends(handbook_results.find_figure(handbook_results.load_results(RESULTS, name), key))


def _paragraph(text: str, place: int) -> str:
    start = text.rfind("\n\n", 0, place) + 2
    end = text.find("\n\n", place)
    return text[start : end if end >= 0 else len(text)]


def unnamed(text: str) -> list[str]:
    """Claims whose gain on the tuning seed is shown without saying that it is of that seed."""
    return [claim for claim, paragraph in shown_of_the_tuning_seed(text) if not NAMED.search(paragraph)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_page_shows_a_gain_of_the_tuning_seed_without_naming_it(path: Path) -> None:
    assert unnamed(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_written_figure_is_a_gain_of_the_tuning_seed_without_its_name(path: Path) -> None:
    """The README's tables are written, not filled in: their sections have to name the seed."""
    claims = handbook_results.load_results(RESULTS, "demo")["claims"]
    written = {handbook_results.render_figure(claims[name]): name for name in claims.keys() & fresh().keys()}
    sections = re.split(r"^#+ ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [
        n for part in sections for text, n in written.items() if text in part and not NAMED.search(part)
    ] == []


def test_the_landing_page_and_the_readme_show_fresh_seeds() -> None:
    index, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("book/index.md", "README.md"))
    assert "{result}`calibration:claim.dpo-beats-sft" in index
    assert handbook_results.render_figure(fresh()["dpo-beats-sft"]) in readme


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("DPO gains {result}`dpo:claim.dpo-improves-on-sft`.\n", ["dpo-improves-on-sft"]),
        ("DPO gains {result}`dpo:evaluate-dpo.gold_gain_vs_evaluate-sft|rises`.\n", ["dpo-improves-on-sft"]),
        ("On seed 0 DPO gains {result}`dpo:claim.dpo-improves-on-sft`.\n", []),
        ("DPO gains {result}`calibration:claim.dpo-improves-on-sft`.\n", []),
        ("Seed 0.\n\nDPO gains {result}`dpo:claim.dpo-improves-on-sft`.\n", ["dpo-improves-on-sft"]),
        # no fresh seeds have tried this one
        ("It costs {result}`scaling:claim.twice-the-batch-learns-less`.\n", []),
        (
            "Gains:\n\n```{results-table} demo\n:rows: evaluate-dpo\n"
            ":columns: gold, gold_gain_vs_evaluate-sft\n```\n",
            ["dpo-beats-sft"],
        ),
    ],
)
def test_an_unnamed_tuning_seed_is_found(text: str, claims: list[str]) -> None:
    assert unnamed(text) == claims


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_table_of_claims_shows_fresh_seeds_first(path: Path) -> None:
    for name, record in json.loads(path.read_text(encoding="utf-8")).get("claims", {}).items():
        if path.stem == "calibration":
            continue
        says, mean, spread, _, held, tuning = handbook_results.claim_cells(record, fresh().get(name))
        if name in fresh():
            assert mean == handbook_results.render_figure(fresh()[name])
            assert " to " in spread.replace("\N{NO-BREAK SPACE}", " ")
            assert (says.startswith(record["says"][:10])) == (fresh()[name]["wording"] == "claim")
            assert held.startswith(f"{fresh()[name]['held']} of 5")
        else:
            assert (mean, held) == ("not tried on fresh seeds", handbook_results.DASH)
        assert tuning.startswith(handbook_results.render_figure(record))
