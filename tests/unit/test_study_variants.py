"""The comparison of losses: its choices and figures follow from the stored runs, and no run is paid twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import study_variants
import variants_runs
from variants_runs import FRESH, LEARNING_RATES, TRIAL, TUNING, VARIANTS, Job, Size, Store

from handbook_utils.errors import DataError

Found = dict[str, Any]


def made_up(gold: Callable[[Job], float], nats: float = 1.0) -> Callable[..., Found]:
    """Training that takes no time: three looks, on a straight line from the start to the end."""

    def train(job: Job, *_: Any) -> Found:
        looks = [
            {"step": 10 * n, "gold": 0.5 + n / 2 * gold(job), "kl": n / 2 * nats, "words": 20}
            for n in range(3)
        ]
        return {"looks": looks, "seconds": 2.0, "preparation": 1.0}

    return train


def by_setting(job: Job) -> float:
    """Best at the middle of the grid; DPO worse by a tenth; the fresh seeds differ a little."""
    right = job.learning_rate == LEARNING_RATES[1] and job.beta in (None, 0.3)
    spread = 0.01 * FRESH.index(job.seed) if job.seed in FRESH else 0.0
    return (0.3 if right else 0.1) - (0.1 if job.loss == "dpo" else 0.0) + spread


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(variants_runs, "train", made_up(by_setting))
    kept = Store(tmp_path, TRIAL)
    assert variants_runs.run_all(["dpo", "hinge", "chosen-only"], kept, tmp_path, TRIAL, 1e9)
    return kept


def test_the_setting_is_chosen_by_validation_prompts_on_the_tuning_seeds_alone(store: Store) -> None:
    assert variants_runs.best_setting("hinge", store) == (LEARNING_RATES[1], 0.3)
    assert {job.seed for job in variants_runs.tuning("hinge")} == set(TUNING)
    assert not study_variants.is_at_edge("hinge", LEARNING_RATES[1], 0.3)
    assert study_variants.is_at_edge("hinge", LEARNING_RATES[1], VARIANTS["hinge"].betas[0])
    prompts = [
        variants_runs.changes_of(job, Size(), store.path.parent)["held_out_samples"]["data"][0]["split"]
        for job in (variants_runs.tuning("hinge")[0], variants_runs.reported("hinge", store)[0])
    ]
    assert [split.partition("[")[0] for split in prompts] == ["dev", "test"]


def test_a_loss_is_held_to_dpo_seed_by_seed_at_the_end_and_at_equal_kl(store: Store) -> None:
    found = study_variants.results(["dpo", "hinge", "chosen-only"], store)
    gap = found["measured"]["hinge"]["over-dpo"]
    assert (gap["value"], gap["low"], gap["n"]) == (pytest.approx(0.1), pytest.approx(0.1), len(FRESH))
    assert found["measured"]["hinge"]["over-dpo-at-equal-kl"]["value"] == pytest.approx(0.1)
    assert "over-dpo" not in found["measured"]["dpo"]
    assert found["measured"]["start"]["gold"]["value"] == 0.5
    assert found["measured"]["study"]["runs"]["value"] == 2 * 18 + 6 + 3 * 5
    assert found["measured"]["study"]["processor_time"]["value"] == 3 * (2 * 18 + 6 + 3 * 5)


def test_at_equal_kl_a_run_that_went_further_is_read_where_it_was_as_far() -> None:
    near = [{"kl": 0.0, "gold": 0.5, "words": 20}, {"kl": 1.0, "gold": 0.7, "words": 20}]
    far = [{"kl": 0.0, "gold": 0.5, "words": 20}, {"kl": 4.0, "gold": 0.9, "words": 20}]
    pairs = [near] * 5, [far] * 5
    found = study_variants.against(*pairs, compared=1)
    assert found["over-dpo"]["value"] == pytest.approx(-0.2)
    assert found["equal-kl"]["value"] == 1.0
    assert found["over-dpo-at-equal-kl"]["value"] == pytest.approx(0.7 - 0.6)


def test_several_comparisons_together_have_wider_intervals() -> None:
    alone, together = (study_variants.over_seeds([0.1, 0.2, 0.3, 0.2, 0.1], "x", compared=n) for n in (1, 9))
    assert together["high"] - together["low"] > 1.5 * (alone["high"] - alone["low"])


def test_a_finished_run_is_not_run_again_and_another_size_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Found:
        raise AssertionError("a run was paid twice")

    monkeypatch.setattr(variants_runs, "train", refuse)
    assert variants_runs.run_all(["dpo", "hinge"], Store(tmp_path, TRIAL), tmp_path, TRIAL, 1e9)
    with pytest.raises(DataError, match="holds runs of another size"):
        Store(tmp_path, Size())


def test_when_the_time_is_up_only_whole_losses_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants_runs, "train", made_up(by_setting))
    kept = Store(tmp_path, TRIAL)
    variants_runs.run_all(["dpo"], kept, tmp_path, TRIAL, 1e9)
    assert not variants_runs.run_all(["dpo", "hinge"], kept, tmp_path, TRIAL, -1)
    assert variants_runs.finished(["dpo", "hinge"], kept) == ["dpo"]
    lines = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 18 + 5
    assert json.loads(lines[0])["pairs"] == TRIAL.pairs


def test_a_run_whose_loss_is_no_number_is_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: Job, *_: Any) -> Found:
        found = made_up(by_setting)(job)
        return found if job.learning_rate < LEARNING_RATES[1] else {**found, "looks": []}

    monkeypatch.setattr(variants_runs, "train", broken)
    kept = Store(tmp_path, TRIAL)
    variants_runs.run_all(["hinge"], kept, tmp_path, TRIAL, 1e9)
    assert variants_runs.best_setting("hinge", kept)[0] == LEARNING_RATES[0]


def test_an_unknown_loss_is_refused_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["study_variants.py", "--out", str(tmp_path), "--losses", "hings"])
    assert study_variants.main() == 2
    assert "Did you mean 'hinge'?" in capsys.readouterr().err
