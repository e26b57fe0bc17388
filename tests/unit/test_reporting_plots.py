"""Pictures: drawn from run folders, with nothing global touched."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import to_rgb
from reporting_fakes import estimate

from handbook_utils.errors import DataError
from handbook_utils.reporting import plots
from handbook_utils.reporting.curves import best_of_n_curves
from handbook_utils.reporting.plots import (
    COLOURS,
    INK,
    PAPER,
    picture_bytes,
    plot_best_of_n,
    plot_estimates,
    plot_rewards,
    plot_training,
)
from handbook_utils.runs.folder import read_result


def test_training_loss_is_drawn_with_held_out_loss(finished_pipeline):
    (axes,) = plot_training(finished_pipeline / "sft").axes
    train, held_out = axes.get_lines()
    assert list(train.get_xdata()) == [0, 10, 20, 30, 40]
    assert list(train.get_ydata()) == pytest.approx([2.0, 1.8, 1.6, 1.4, 1.2])
    assert list(held_out.get_ydata()) == [1.1]
    assert axes.get_ylabel() == "loss, nats per token"


def test_several_runs_share_one_picture(finished_pipeline):
    (axes,) = plot_training([finished_pipeline / "rft", str(finished_pipeline / "rft-control")]).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "rft", "rft, held out", "rft-control", "rft-control, held out",
    ]  # fmt: skip


def test_a_result_can_be_given_in_place_of_its_folder(finished_pipeline):
    assert plot_training(read_result(finished_pipeline / "sft")).axes


def test_rewards_of_dpo_are_drawn(finished_pipeline):
    rewards, accuracy = plot_rewards(finished_pipeline / "dpo").axes
    labels = [text.get_text() for text in rewards.get_legend().get_texts()]
    assert labels == ["chosen", "rejected", "margin"]
    assert accuracy.get_lines()[0].get_ydata() == [0.7]


def test_a_run_without_rewards_is_an_error(finished_pipeline):
    with pytest.raises(DataError, match="no rewards were logged"):
        plot_rewards(finished_pipeline / "sft")


def test_a_run_without_loss_is_an_error(finished_pipeline):
    with pytest.raises(DataError, match="no loss was logged"):
        plot_training(finished_pipeline / "scores")


def test_best_of_n_draws_every_measure_and_arm_with_bands(finished_pipeline):
    figure = plot_best_of_n(finished_pipeline / "best-of-n")
    assert [axes.get_title("left") for axes in figure.axes] == ["gold reward", "selecting score", "words"]
    for axes in figure.axes:
        assert len(axes.get_lines()) == 2
        assert len(axes.collections) == 2  # a band each
        assert list(axes.get_lines()[0].get_xdata()) == [1, 2, 4, 8, 16, 32, 64]


def test_an_unknown_measure_is_an_error(finished_pipeline):
    with pytest.raises(DataError, match="no best-of-n curve of"):
        plot_best_of_n(finished_pipeline / "best-of-n", measures=["golden"])


def test_a_run_without_curves_is_an_error(finished_pipeline):
    with pytest.raises(DataError, match="it has none"):
        plot_best_of_n(finished_pipeline / "sft")


def test_gains_are_no_points_of_a_curve(finished_pipeline):
    curves = best_of_n_curves(read_result(finished_pipeline / "best-of-n").final_metrics)
    assert set(curves) == {(arm, m) for arm in ("proxy", "control") for m in ("gold", "score", "words")}
    assert [n for n, _ in curves["proxy", "gold"]] == [1, 2, 4, 8, 16, 32, 64]


def test_estimates_are_drawn_under_each_other(finished_pipeline):
    (axes,) = plot_estimates({"a": estimate([0.4, 0.6]), "b": estimate([0.7, 0.9])}, reference=0.5).axes
    points = [line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 1]
    assert points == pytest.approx([0.5, 0.8])
    with pytest.raises(DataError, match="no estimates"):
        plot_estimates({})


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2."""
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_and_text_stand_out_on_light_and_dark_paper(dark):
    assert contrast(INK[dark], PAPER[dark]) >= 7
    assert all(contrast(colour, PAPER[dark]) >= 3 for colour in COLOURS)


def test_nothing_global_is_touched(finished_pipeline):
    before = dict(matplotlib.rcParams)
    figure = plot_training(finished_pipeline / "sft", dark=True)
    assert picture_bytes(figure, "png").startswith(b"\x89PNG")
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


def test_no_module_of_the_reports_imports_pyplot():
    sources = [file.read_text(encoding="utf-8") for file in Path(plots.__file__).parent.glob("*.py")]
    assert len(sources) > 10
    assert not any("import pyplot" in text or "matplotlib.pyplot" in text for text in sources)


def test_the_same_figure_gives_the_same_svg(finished_pipeline):
    one, other = (picture_bytes(plot_training(finished_pipeline / "sft"), "svg", name="a") for _ in range(2))
    assert one == other
