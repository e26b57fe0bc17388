"""Claims: what they assert, draw and write."""

from __future__ import annotations

import json
import math

import pytest

from handbook_utils.errors import ClaimError, DataError
from handbook_utils.records import Estimate
from handbook_utils.reporting.claims.claim import claim, make_claim, project_root, read_claims


def found(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 0.95, 200, "gold reward", "bootstrap-t", 7)


@pytest.fixture(autouse=True)
def claims_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDBOOK_CLAIMS_DIR", str(tmp_path / "claims"))
    return tmp_path / "claims"


@pytest.mark.parametrize(
    ("low", "high", "relation", "bound", "holds"),
    [
        (0.1, 0.3, ">", 0.0, True),
        (-0.1, 0.3, ">", 0.0, False),  # the value 0.1 is above 0, the interval is not
        (0.0, 0.3, ">", 0.0, False),  # touching the bound is not clearing it
        (-0.3, -0.1, "<", 0.0, True),
        (-0.3, 0.1, "<", 0.0, False),
        (-0.3, 0.0, "<", 0.0, False),
    ],
)
def test_a_claim_holds_when_the_interval_clears_the_bound(low, high, relation, bound, holds):
    assert make_claim("a-claim", found(low, high), relation, bound).holds is holds


def test_a_claim_that_holds_returns_its_estimate_and_leaves_its_record(claims_folder):
    measured = found(0.1, 0.3)
    assert claim("dpo-beats-sft", measured, ">", 0.05, says="DPO helps") is measured
    record = json.loads((claims_folder / "dpo-beats-sft.json").read_text())
    assert record == {
        "id": "dpo-beats-sft",
        "says": "DPO helps",
        "value": 0.2,
        "low": 0.1,
        "high": 0.3,
        "level": 0.95,
        "n": 200,
        "unit": "gold reward",
        "method": "bootstrap-t",
        "seed": 7,
        "relation": ">",
        "bound": 0.05,
        "holds": True,
    }


def test_a_claim_that_fails_is_drawn_and_recorded_before_it_raises(claims_folder, capsys):
    with pytest.raises(
        ClaimError, match=r"claim 'a-claim' does not hold: 0\.200 \[0\.100, 0\.300\].* not > 0\.5"
    ):
        claim("a-claim", found(0.1, 0.3), ">", 0.5)
    assert "✘ a-claim" in capsys.readouterr().out
    assert [record["holds"] for record in read_claims(claims_folder)] == [False]


def test_a_claim_error_is_an_assertion_error():
    with pytest.raises(AssertionError):
        claim("a-claim", found(0.1, 0.3), "<", 0.0)


def test_a_terminal_shows_one_line(capsys):
    claim("a-claim", found(0.1, 0.3), ">", 0, says="It helps")
    shown = capsys.readouterr().out
    assert shown == ("✔ a-claim: It helps: 0.200 [0.100, 0.300] gold reward > 0 (95 % interval, n = 200)\n")


@pytest.mark.parametrize("bad", ["", "With Capitals", "a/../b", "under_score", "-first", "a\n", "a--b"])
def test_an_id_that_cannot_name_a_file_is_refused(bad, claims_folder):
    with pytest.raises(DataError, match="cannot name a record"):
        claim(bad, found(0.1, 0.3), ">", 0)
    assert not claims_folder.exists()


def test_a_relation_other_than_above_and_below_is_refused():
    with pytest.raises(DataError, match="'>=' is neither"):
        claim("a-claim", found(0.1, 0.3), ">=", 0)


def test_a_bound_that_is_not_a_number_is_refused():
    with pytest.raises(DataError, match="no finite number"):
        claim("a-claim", found(0.1, 0.3), ">", math.nan)


def test_an_infinite_end_fails_and_is_stored_as_null(claims_folder):
    with pytest.raises(ClaimError):
        claim("a-claim", Estimate(0.2, -math.inf, 0.3, 0.95, 2, "", "t"), ">", 0)
    assert read_claims(claims_folder)[0]["low"] is None


def test_the_block_in_a_notebook_shows_text_as_text():
    record = make_claim("a-claim", found(0.1, 0.3), ">", 0, says="<script>alert(1)</script>")
    assert "<script" not in record._repr_html_()
    assert "&lt;script&gt;" in record._repr_html_()


def test_a_notebook_gets_a_block_and_plain_text(monkeypatch):
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": 1})())
    monkeypatch.setattr(IPython.display, "display", lambda bundle, raw: shown.append(bundle))
    claim("a-claim", found(0.1, 0.3), ">", 0)
    assert "<svg" in shown[0]["text/html"]
    assert shown[0]["text/plain"].startswith("✔ a-claim")


def test_records_of_notebooks_and_of_the_command_line_meet_in_one_folder(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_config.yml").touch()
    (tmp_path / "_toc.yml").touch()
    assert project_root(tmp_path / "notebooks") == tmp_path
