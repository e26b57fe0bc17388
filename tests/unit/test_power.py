"""How many prompts an evaluation needs: against simulation and the textbook, and refused where unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from handbook_utils.cli.app import app
from handbook_utils.errors import DataError
from handbook_utils.evaluation.power import (
    achieved_power,
    plan_from_pilot,
    plan_from_sd,
    prompts_for,
    smallest_effect,
    win_rate_sd,
)
from handbook_utils.pipeline.pilot import pilot_values

SIMULATED = 4000


def seen(values: np.ndarray) -> float:
    """Share of data sets, one per row, whose 95 % interval excludes zero."""
    return float(np.mean(stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05))


def test_the_prompts_asked_for_see_a_planted_effect_as_often_as_promised() -> None:
    for power in (0.8, 0.9):
        prompts = prompts_for(0.1, 0.3, power=power)
        drawn = np.random.default_rng(0).normal(0.1, 0.3, (SIMULATED, prompts))
        assert seen(drawn) == pytest.approx(power, abs=0.02)  # three standard errors of the simulation


def test_the_prompts_for_a_win_rate_see_a_planted_rate() -> None:
    prompts = prompts_for(0.06, win_rate_sd(0.56, ties=0.2))
    drawn = np.random.default_rng(0).choice([0.5, 0.0, -0.5], (SIMULATED, prompts), p=[0.46, 0.2, 0.34])
    assert seen(drawn) == pytest.approx(0.8, abs=0.02)


def test_the_range_from_a_pilot_holds_the_true_need_of_nearly_every_pilot() -> None:
    needed = prompts_for(0.05, 0.3)
    rng = np.random.default_rng(0)
    plans = [plan_from_pilot(rng.normal(0.02, 0.3, 100), effect=0.05) for _ in range(20)]
    # 95 % of them do: 16 or fewer of 20 come about once in 60 times
    assert sum(plan.prompts_low <= needed <= plan.prompts_high for plan in plans) >= 17
    assert all(plan.prompts_low < plan.prompts < plan.prompts_high for plan in plans)


def test_it_is_the_smallest_number_of_prompts_and_near_the_books_formula() -> None:
    prompts = prompts_for(0.02, 0.3)
    assert achieved_power(0.02, 0.3, prompts) >= 0.8 > achieved_power(0.02, 0.3, prompts - 1)
    assert prompts == pytest.approx(((1.959964 + 0.841621) * 0.3 / 0.02) ** 2, rel=0.01)
    assert prompts_for(-0.02, 0.3) == prompts
    assert prompts_for(50.0, 0.1) == 2  # an interval needs two prompts, however large the effect


def test_the_smallest_effect_is_the_inverse() -> None:
    assert prompts_for(smallest_effect(0.3, 250), 0.3) == 250


def test_no_effect_is_seen_as_often_as_the_level_says() -> None:
    assert achieved_power(1e-12, 1.0, 50) == pytest.approx(0.05)
    assert achieved_power(10.0, 1.0, 50) == pytest.approx(1.0)


def test_the_spread_of_a_win_rate_is_that_of_its_wins_ties_and_losses() -> None:
    # 0.46 wins, 0.2 ties, 0.34 losses: mean 0.56; 0.46 * 0.44^2 + 0.2 * 0.06^2 + 0.34 * 0.56^2
    assert win_rate_sd(0.56, ties=0.2) == pytest.approx((0.46 * 0.1936 + 0.2 * 0.0036 + 0.34 * 0.3136) ** 0.5)
    with pytest.raises(DataError, match="not possible"):
        win_rate_sd(0.9, ties=0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_from_pilot([1.0] * 20, effect=0.1), "all 20 prompts of the pilot have the same value"),
        (lambda: plan_from_pilot([1.0], effect=0.1), "at least 10 prompts, got 1"),
        (lambda: plan_from_pilot([1.0, float("nan")] * 9, effect=0.1), "row 1 is nan"),
        (lambda: plan_from_sd(0.0, 1.0), "a number other than 0"),
        (lambda: plan_from_sd(0.1, 0.0), "must be above 0"),
        (lambda: plan_from_sd(0.1, 1.0, power=1.0), "power must be between"),
        (lambda: plan_from_sd(0.1, 1.0, level=0.0), "level must be between"),
        (lambda: plan_from_sd(1e-9, 1.0), "would change what you do"),
        (lambda: smallest_effect(0.1, 1), "at least 2 prompts"),
    ],
)
def test_what_cannot_be_planned_is_refused(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def scores(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_a_file_of_scores_is_a_pilot(tmp_path: Path) -> None:
    name = scores(
        tmp_path / "s.jsonl", [{"prompt_id": f"p{i}", "old": 1.0, "new": 1.0 + i % 3} for i in range(12)]
    )
    assert sorted(pilot_values([name], by="new", minus="old").tolist()) == [0.0] * 4 + [1.0] * 4 + [2.0] * 4
    assert set(pilot_values([name], by="new", minus="old", wins=True).tolist()) == {0.0, 0.5}
    with pytest.raises(DataError, match="Did you mean 'new'"):
        pilot_values([name], by="nwe", minus="old")
    with pytest.raises(DataError, match="--minus COLUMN"):
        pilot_values([name], by="new")
    with pytest.raises(DataError, match="got 3 names"):
        pilot_values([name] * 3, by="new")


def test_a_repeated_prompt_is_refused(tmp_path: Path) -> None:
    name = scores(tmp_path / "s.jsonl", [{"prompt_id": "p", "old": 1.0, "new": 2.0}] * 2)
    with pytest.raises(DataError, match="row 2 repeats prompt id 'p'"):
        pilot_values([name], by="new", minus="old")


def test_the_command_says_what_to_plan_with(tmp_path: Path) -> None:
    run = CliRunner()
    rng = np.random.default_rng(0)
    name = scores(
        tmp_path / "s.jsonl",
        [{"prompt_id": f"p{i}", "old": 0.0, "new": float(rng.normal())} for i in range(40)],
    )
    shown = run.invoke(app, ["power", name, "--by", "new", "--minus", "old", "--effect", "0.2"])
    assert shown.exit_code == 0, shown.output
    assert "Plan with the larger number" in shown.output
    found = json.loads(run.invoke(app, ["power", "--win-rate", "0.55", "--ties", "0.2", "--json"]).output)
    assert found["prompts"] == prompts_for(0.05, win_rate_sd(0.55, ties=0.2))
    for arguments, message in (
        (["power", "--sd", "1"], "say what to see"),
        (["power", "--effect", "1"], "the spread is not known"),
        (["power", name, "--win-rate", "0.6", "--sd", "1"], "shows the spread"),
    ):
        refused = run.invoke(app, arguments)
        assert isinstance(refused.exception, DataError)
        assert message in str(refused.exception)


@pytest.mark.parametrize("command", ["power", "score", "instruction-report"])
def test_a_run_that_is_not_finished_is_refused_since_its_rows_are_not_all_there(
    handbook: Any, tmp_path: Path, command: str
) -> None:
    half = tmp_path / "half"
    (half / "scores").mkdir(parents=True)
    manifest = {"format": 1, "stage": "evaluate", "status": "running", "recipe": {}}
    (half / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    options = {
        "power": (half, half, "--effect", "0.1"),
        "score": (half, "-s", "fits={kind: length, at_most: 2}", "--out", tmp_path / "out.jsonl"),
        "instruction-report": (half, "--prompts", "pocket:instructions"),
    }[command]
    code, _, err = handbook(command, *options)
    assert code == 2
    assert f"{half}: the run is running, not finished. Run it again to go on." in err


@pytest.mark.parametrize(
    ("given", "says"), [({"rate": 55}, "rate is 55"), ({"rate": 0.6, "ties": 20}, "ties is 20")]
)
def test_a_percentage_where_a_share_is_meant_is_told_so(given: dict[str, float], says: str) -> None:
    with pytest.raises(DataError, match=f"{says} and must be between 0 and 1"):
        win_rate_sd(**given)
