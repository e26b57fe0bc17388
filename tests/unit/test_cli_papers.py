"""The table of methods: every entry can be used as written, and its citation is whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from handbook_utils.cli.papers import methods
from handbook_utils.schema.fields import trainer_fields
from handbook_utils.schema.sampling import Strategy
from handbook_utils.schema.stage_table import STAGES

BIBLIOGRAPHY = Path(__file__).parents[2] / "book" / "references.bib"


def test_every_stage_that_is_listed_is_one() -> None:
    stages = [method.name for method in methods() if not method.stage]
    assert len(stages) > 5
    assert set(stages) <= set(STAGES)


def test_every_loss_that_is_listed_is_taken_by_its_stage() -> None:
    losses = [method for method in methods() if method.stage not in ("", "select")]
    assert len(losses) > 15
    for method in losses:
        assert method.name in trainer_fields(method.stage)["loss_type"]["choices"]


def test_the_ways_to_select_are_all_listed() -> None:
    assert {method.name for method in methods() if method.stage == "select"} == set(get_args(Strategy))


def test_a_citation_has_a_title_and_a_number_of_its_year() -> None:
    cited = [method for method in methods() if method.arxiv]
    assert len(cited) > 15
    for method in cited:
        assert method.paper
        assert re.fullmatch(r"\d{4}\.\d{5}", method.arxiv)
        assert f"20{method.arxiv[:2]}" == str(method.year)


def test_a_paper_in_the_bibliography_has_the_same_title_here() -> None:
    text = re.sub(r"[{}]", "", BIBLIOGRAPHY.read_text(encoding="utf-8")).replace('\\"u', "ü")
    entries = [
        re.search(r"title = (.+?),\n(?:.*\n)*?.*?arxiv.org/abs/([\d.]+)", each) for each in text.split("@")
    ]
    known = {entry[2]: entry[1] for entry in entries if entry}
    shared = [method for method in methods() if method.arxiv in known]
    assert shared
    for method in shared:
        assert method.paper == known[method.arxiv]
