"""What a notebook measured on several seeds becomes one figure with an interval between seeds."""

from __future__ import annotations

import json

import pytest
import study_seeds

from handbook_utils.errors import DataError


@pytest.fixture
def calibration(finished_pipeline, tmp_path, monkeypatch):
    """Two seeds of a notebook as `calibrate` leaves them, with one figure that only one of them has."""
    for name in ("_config.yml", "_toc.yml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    for seed, value in {101: 0.2, 102: 0.02}.items():
        runs = tmp_path / f"out/seed-{seed}-notebooks/toy/runs/toy-pocket-{seed}"
        runs.mkdir(parents=True)
        (runs / "sft").symlink_to(finished_pipeline / "sft")
        figure = {"value": value, "low": value - 0.1, "high": value + 0.1, "unit": "gold"}
        groups = {"gain": {"gold": figure}} | ({"extra": {"gold": figure}} if seed == 101 else {})
        (runs / "measured.json").write_text(json.dumps(groups))
    return tmp_path / "out"


def test_the_mean_over_seeds_and_on_how_many_it_holds_are_stored(calibration, monkeypatch):
    monkeypatch.setattr("sys.argv", ["study_seeds.py", "toy", str(calibration)])
    assert study_seeds.main() == 0
    stored = json.loads((calibration.parent / "book/results/toy_seeds.json").read_text())
    gain = stored["measured"]["gain"]["gold"]
    assert gain["value"] == pytest.approx(0.11)
    assert (gain["held"], gain["of"], gain["n"]) == (1, 2, 2)  # of the second, 0.02 +- 0.1 holds 0
    assert gain["by_seed"]["102"] == pytest.approx([0.02, -0.08, 0.12])
    assert stored["seeds"] == [101, 102]
    assert "extra" not in stored["measured"]


def test_seeds_that_were_not_run_say_how_to_run_them(tmp_path):
    with pytest.raises(DataError, match=r"0 seeds of notebook 'toy'.*calibrate --notebooks-only --only toy"):
        study_seeds.measured_by_seed("toy", tmp_path)
