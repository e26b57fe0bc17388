"""Calibration: margins by hand, wording, merging, and a run over seeds."""

from __future__ import annotations

import json

import pytest

from handbook_utils.errors import DataError, RunFolderError
from handbook_utils.records import Estimate
from handbook_utils.reporting.claims import calibrate
from handbook_utils.reporting.claims.calibrate import gather, main, merge_parts, of_the_pipeline, run_seeds
from handbook_utils.reporting.claims.claim import claim, project_root
from handbook_utils.reporting.claims.margins import (
    distances,
    false_alarm_rate,
    margin_sd,
    summarise,
    wording,
)
from handbook_utils.reporting.claims.pipeline import PIPELINE_CLAIMS


def test_distance_is_from_the_end_that_is_asserted():
    above = {"relation": ">", "bound": 0.5, "low": 0.6, "high": 0.9}
    below = {"relation": "<", "bound": 0.5, "low": 0.1, "high": 0.3}
    failing = {"relation": ">", "bound": 0.5, "low": 0.4, "high": 0.9}
    assert distances([above, below, failing]) == pytest.approx([0.1, 0.2, -0.1])


def test_margin_is_the_mean_distance_in_standard_deviations():
    # mean 3, deviations -1 0 1: variance (1 + 0 + 1) / 2 = 1
    assert margin_sd([2.0, 3.0, 4.0]) == pytest.approx(3.0)


def test_margin_of_one_seed_or_of_no_spread_is_undefined():
    assert margin_sd([1.0]) is None
    assert margin_sd([1.0, 1.0]) is None


def test_false_alarm_rate_is_a_student_t_prediction():
    # margin 3, k = 3: t = 3 / sqrt(4/3) = 2.598; with 2 degrees of freedom
    # P(T < -t) = 1/2 - t / (2 sqrt(t^2 + 2)) = 1/2 - 2.598 / (2 * 2.958) = 0.0608
    assert false_alarm_rate([2.0, 3.0, 4.0]) == pytest.approx(0.0608, abs=1e-4)


def test_false_alarm_rate_of_a_claim_at_its_bound_is_a_half():
    assert false_alarm_rate([-1.0, 0.0, 1.0]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([1.0, 1.1, 0.9, 1.05, 0.95], "claim"),
        ([1.0, 1.1, 0.9, 1.05], "observation"),  # four seeds are too few
        ([1.0, 0.2, 0.9, 0.1, 0.5], "observation"),  # all hold, but close to the bound
        ([1.0, 1.1, 0.9, 1.05, -0.01], "observation"),  # one seed fails
        ([0.1, 0.1, -0.1, -0.1], "does not hold"),  # half of them fail
        ([0.1, -0.1, -0.1], "does not hold"),
        ([1.0, 1.0, 1.0, 1.0, 1.0], "claim"),  # no spread at all
    ],
)
def test_wording_follows_margin_and_seeds(found, words):
    assert wording(found) == words


@pytest.fixture
def seeds(finished_pipeline, tmp_path, monkeypatch):
    """Three seeds that were run already, here one and the same pipeline, where `calibrate` looks for them."""
    monkeypatch.setattr(calibrate, "run_seeds", lambda *a, **k: None)
    for seed in (101, 102, 103):
        (tmp_path / f"seed-{seed}").symlink_to(finished_pipeline)
    return tmp_path


def test_every_claim_is_calibrated_over_all_seeds(seeds, capsys):
    out = seeds / "calibration.json"
    assert main(["--seeds", "101", "102", "103", "--out", str(seeds), "--results", str(out)]) == 0
    stored = json.loads(out.read_text())
    assert set(stored["claims"]) == {claim.id for claim in PIPELINE_CLAIMS}
    assert stored["seeds"] == [101, 102, 103]
    first = stored["claims"]["dpo-beats-sft"]
    assert (first["of"], set(first["by_seed"])) == (3, {"101", "102", "103"})
    assert "extrapolated" in stored["note"]
    assert stored["sittings"][0]["versions"]["python"]
    assert "margin" in capsys.readouterr().out


def test_parts_of_several_sittings_equal_one_sitting(seeds):
    whole = gather([101, 102, 103], seeds)
    merged = merge_parts([gather([103], seeds), gather([101, 102], seeds)])
    assert merged["claims"] == whole["claims"]
    assert [sitting["seeds"] for sitting in merged["sittings"]] == [[103], [101, 102]]


def test_sittings_that_disagree_on_a_seed_are_refused(seeds):
    part = gather([101], seeds)
    other = json.loads(json.dumps(part))
    other["claims"]["dpo-wins"]["by_seed"]["101"]["low"] += 0.1
    with pytest.raises(DataError, match="claim 'dpo-wins', seed 101"):
        merge_parts([part, other])


def leave_claim(folder, *, seed=101, name="mask-matters", low=0.1):
    claims = folder / f"seed-{seed}-notebooks" / "sft" / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    record = {"says": "", "relation": ">", "bound": 0.0, "unit": "", "value": 0.5, "low": low, "high": 0.9}
    (claims / f"{name}.json").write_text(json.dumps(record))


def test_claims_of_notebooks_are_calibrated_too(seeds):
    leave_claim(seeds)
    assert gather([101], seeds)["claims"]["mask-matters"]["held"] == 1


def test_notebooks_alone_need_no_pipeline_and_join_an_earlier_sitting(seeds, tmp_path_factory, monkeypatch):
    earlier, alone = seeds / "earlier.json", tmp_path_factory.mktemp("alone")
    assert main(["--seeds", "101", "--out", str(seeds), "--results", str(earlier)]) == 0
    leave_claim(alone)
    monkeypatch.setattr(calibrate, "run_notebooks", lambda *a: None)
    asked = ["--notebooks-only", "--seeds", "101", "--out", str(alone), "--results", str(alone / "all.json")]
    assert main([*asked, "--merge", str(earlier)]) == 0
    claims = json.loads((alone / "all.json").read_text())["claims"]
    assert set(claims) == {"mask-matters", *(claim.id for claim in PIPELINE_CLAIMS)}


def test_claims_of_a_notebook_that_is_calibrated_anew_replace_the_earlier_ones(tmp_path, monkeypatch):
    earlier, anew = tmp_path / "earlier", tmp_path / "anew"
    for folder, low in ((earlier, 0.1), (anew, 0.3)):
        leave_claim(folder, name="chosen-falls", low=low)
    leave_claim(earlier, name="sft-learns-to-stop")
    monkeypatch.setattr(calibrate, "run_notebooks", lambda *a: None)
    asked = ["--notebooks-only", "--seeds", "101", "--results", str(tmp_path / "all.json")]
    assert main([*asked, "--out", str(earlier)]) == 0
    # the two differ on seed 101, which is refused unless the notebook is named
    again = [*asked, "--out", str(anew), "--merge", str(tmp_path / "all.json")]
    assert main(again) == 2
    assert main([*again, "--only", "dpo"]) == 0
    claims = json.loads((tmp_path / "all.json").read_text())["claims"]
    assert claims["chosen-falls"]["by_seed"]["101"]["low"] == 0.3
    assert set(claims) == {"chosen-falls", "sft-learns-to-stop"}


def test_a_missing_seed_is_an_error(seeds, capsys):
    assert main(["--seeds", "104", "--out", str(seeds), "--results", str(seeds / "x.json")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert not (seeds / "x.json").exists()


def test_a_seed_whose_run_fails_names_its_log(tmp_path):
    with pytest.raises(RunFolderError, match=r"seed 7 failed: .*no such file.*seed-7\.log"):
        run_seeds(str(tmp_path / "missing.yaml"), [7], tmp_path)


def test_the_package_knows_its_claims_on_fresh_seeds_as_the_book_stores_them():
    stored = json.loads((project_root() / "book/results/calibration.json").read_text(encoding="utf-8"))
    assert {each.id: each.fresh for each in PIPELINE_CLAIMS} == of_the_pipeline(stored)
    for each in PIPELINE_CLAIMS:
        assert each.wording == stored["claims"][each.id]["wording"]


def test_the_stored_means_are_those_of_the_stored_seeds():
    stored = json.loads((project_root() / "book/results/calibration.json").read_text(encoding="utf-8"))
    assert merge_parts([stored])["claims"] == stored["claims"]


def test_a_summary_has_the_mean_over_seeds_with_its_interval_and_range():
    seeds = {"101": 0.5, "102": 0.1, "103": 0.3, "104": 0.2, "105": 0.4}
    rest = {"says": "", "relation": ">", "bound": 0.0, "unit": "gold reward"}
    found = summarise({s: rest | {"value": v, "low": v - 0.05, "high": v + 0.05} for s, v in seeds.items()})
    # by hand in test_statistics.py
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.3, 0.1037, 0.4963), abs=1e-4)
    assert (found["lowest"], found["highest"], found["n"], found["over"]) == (0.1, 0.5, 5, "seeds")


def test_a_figure_of_the_computer_is_summarised_over_its_repeats_in_one_run(tmp_path, monkeypatch):
    """Five times in one run: another seed would show the computer's other work, not the claim."""
    times = [1.2, 1.0, 1.1, 1.3, 1.4]
    estimates = [Estimate(time, time, time, 0.95, 1, "s", "one run") for time in times]
    monkeypatch.setenv("HANDBOOK_CLAIMS_DIR", str(tmp_path / "seed-101-notebooks/toy/claims"))
    assert claim("twice-as-fast", estimates, ">", 0.5).value == pytest.approx(1.2)
    part = gather([101], tmp_path, pipeline=False)
    found = part["claims"]["twice-as-fast"]
    assert (found["held"], found["of"], found["over"]) == (5, 5, "repeats")
    assert found["value"] == pytest.approx(1.2)
    assert (found["lowest"], found["highest"]) == (1.0, 1.4)
    assert part["seeds"] == [101]
    assert merge_parts([part])["claims"] == part["claims"]
