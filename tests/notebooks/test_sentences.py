"""Sentences that say in words what a stored figure shows: the page has them, and the figure agrees."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import handbook_outputs
import handbook_results
import nbformat
import pytest
from book_pages import ROOT, chapters

from handbook_utils import load_dataset
from handbook_utils.pocket.world import FLAW_RATES
from handbook_utils.schema.recipe import load_recipe

DIRECTIVE = re.compile(r"```\{notebook-output\} (\w+)\n((?::\w+:.*\n)+)```")
TRIPLE = r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]"


@cache
def results(name: str) -> dict[str, dict[str, Any]]:
    """Every figure of a results file, by its key."""
    return handbook_results.all_figures(handbook_results.load_results(ROOT / "book" / "results", name))


def shown(page: str) -> list[str]:
    """The notebook outputs that a page shows, as a reader sees them."""
    found = []
    for notebook, lines in DIRECTIVE.findall((ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")):
        options: dict[str, Any] = dict(re.findall(r":(\w+): (.*)", lines))
        options |= {name: int(options[name]) for name in ("blocks", "skip") if name in options}
        found.append(handbook_outputs.stored_output(ROOT / "notebooks" / f"{notebook}.ipynb", **options))
    return found


def value(name: str, key: str) -> float:
    return float(results(name)[key]["value"])


def the_control_answers_another_question() -> bool:
    """Its loss is the higher one, and neither answer names a thing that was asked for."""
    text = shown("sft")[2]  # after the masked row and an answer of the base model
    pairs = re.findall(r"USER  (.*)\nMODEL (.*)", text)
    # words with a meaning: names, countries, things
    strange = all(not _content(asked) & _content(answered) for asked, answered in pairs)
    return len(pairs) == 2 and strange and value("sft", "shuffled.eval_loss") > value("sft", "sft.eval_loss")


def _content(text: str) -> set[str]:
    return {word for word in re.findall(r"[A-Z][a-z]+|[a-z]{5,}", text) if word not in {"Write", "Give"}}


def chosen_fell_a_little_and_rejected_several_times_as_far() -> bool:
    line = shown("dpo")[1]  # after a pair
    chosen, rejected = (tuple(map(float, each)) for each in re.findall(TRIPLE, line))
    return chosen[2] < 0 and rejected[2] < 0 and rejected[0] < 2 * chosen[0]


def training_loss_does_not_fall_in_every_round() -> bool:
    (text,) = shown("rejection_sampling")
    ends = [tuple(map(float, pair)) for pair in re.findall(r"from ([\d.]+) to ([\d.]+)", text)]
    return len(ends) == 2 and any(last >= first for first, last in ends)


def dpo_went_farther_than_the_control() -> bool:
    return value("dpo", "evaluate-dpo.kl") > value("dpo", "evaluate-chosen-only.kl")


def the_gain_over_the_control_is_less_than_half() -> bool:
    gain = value("dpo", "evaluate-dpo.gold_gain_vs_evaluate-chosen-only")
    return 0 < gain < 0.5 * value("dpo", "evaluate-dpo.gold_gain_vs_evaluate-sft")


def the_mean_went_less_far_than_the_sum() -> bool:
    return value("dpo", "evaluate-hot-mean.kl") < value("dpo", "evaluate-hot.kl")


def all_three_moved_farther_and_none_has_its_gold() -> bool:
    fast = ("evaluate-beta-3.0", "evaluate-hot", "evaluate-beta-0.01")
    kl, gold = value("dpo", "evaluate-dpo.kl"), value("dpo", "evaluate-dpo.gold")
    return all(value("dpo", f"{run}.kl") > 3 * kl and value("dpo", f"{run}.gold") < gold for run in fast)


def the_demo_trains_on_more_pairs() -> bool:
    samples = load_recipe("pocket/samples").data[0].split
    first, last = map(int, re.findall(r"\d+", samples))
    notebook = (ROOT / "notebooks" / "dpo.ipynb").read_text(encoding="utf-8")
    ours = re.search(r'run_recipe\(\\"samples\\".*?train\[(\d+):(\d+)\]', notebook)
    assert ours
    return last - first > 2 * (int(ours[2]) - int(ours[1]))


def our_rate_is_hundreds_of_times_the_recipes() -> bool:
    rate = float(load_recipe("pocket/dpo").training["learning_rate"])
    return 200 <= rate / 5e-7 < 1000


TRIED = [key.removesuffix(".over-dpo") for key in results("variants_seeds") if key.endswith(".over-dpo")]


def over_dpo(loss: str, which: str) -> tuple[float, float]:
    found = results("variants_seeds")[f"{loss}.over-dpo{which}"]
    return found["low"], found["high"]


def nobody_is_ahead_of_dpo() -> bool:
    return all(over_dpo(loss, which)[0] <= 0 for loss in TRIED for which in ("", "-at-equal-kl"))


def only_robust_stays_apart_among_all_comparisons() -> bool:
    alone = [loss for loss in TRIED if over_dpo(loss, "-at-equal-kl")[1] < 0]
    together = [loss for loss in TRIED if over_dpo(loss, "-at-equal-kl-together")[1] < 0]
    count = value("variants_seeds", "study.compared")
    return 2 * len(alone) > len(TRIED) == count == 11 and together == ["robust"]


def nine_are_ahead_of_dpos_median_setting() -> bool:
    stored = handbook_results.load_results(ROOT / "book" / "results", "variants_seeds")["grid"]
    golds = {loss: sorted(setting[2] for setting in settings) for loss, settings in stored.items()}
    median = golds["dpo"][len(golds["dpo"]) // 2]
    return sum(golds[loss][-1] > median for loss in TRIED) == 9


def settings_lie_farther_apart_than_losses() -> bool:
    return value("variants_seeds", "study.between_settings") > value("variants_seeds", "study.between_losses")


def the_control_gains_nearly_as_much_and_goes_farther() -> bool:
    gain, kl = (
        value("variants_seeds", f"chosen-only.{name}") / value("variants_seeds", f"dpo.{name}")
        for name in ("gain", "kl")
    )
    return 0.8 < gain < 1 and kl > 3 and results("variants_seeds")["orpo.gain"]["high"] < 0


def eleven_of_twelve_end_at_an_edge() -> bool:
    at_edge = [loss for loss in ("dpo", *TRIED) if value("variants_seeds", f"{loss}.at_edge")]
    lowest = [loss for loss in at_edge if value("variants_seeds", f"{loss}.learning_rate") == 2.5e-4]
    return (len(at_edge), len(TRIED) + 1) == (11, 12) and 2 * len(lowest) > len(at_edge)


def gap(arm: str, end: str = "value") -> float:
    return float(results("drop_one")[f"{arm}.gap"][end])


def dpo_alone_is_about_as_bad_as_the_base() -> bool:
    return abs(value("drop_one", "no-sft.gold") - value("demo", "evaluate-base.gold")) < 0.02


def more_demonstrations_are_no_pairs() -> bool:
    over_sft = value("drop_one", "no-pairs.gold") - value("drop_one", "no-dpo.gold")
    return 0 < over_sft < -0.5 * gap("no-dpo") and gap("no-pairs", "high") < 0


def others_pairs_give_more_and_their_writers_are_better() -> bool:
    pairs = load_dataset("pocket:preferences", kind="preference", split="train[9000:9500]")
    written = [gold for side in ("gold_chosen", "gold_rejected") for gold in pairs[side]]
    better = sum(written) / len(written) > value("drop_one", "no-dpo.gold")
    return better and gap("no-own-answers", "low") > 0


def better_labels_give_most_and_shorter_answers() -> bool:
    arms = ("no-dpo", "no-sft", "no-own-answers", "no-pairs")
    words = value("drop_one", "no-bias.words") < value("drop_one", "whole.words")
    return all(gap("no-bias", "low") > gap(arm, "high") for arm in arms) and words


def batches_of_like_length_pass_in_no_stage() -> bool:
    def within(name: str, figure: str) -> bool:
        found, bound = results("length_batching")[f"{name}.gap"], value("length_batching", f"bounds.{figure}")
        return bool(-bound <= found["low"] and found["high"] <= bound)

    shorter = results("length_batching")["evaluate-sft-words.gap"]["value"] < -1
    return shorter and not within("reward-accuracy", "accuracy") and not within("evaluate-gold", "gold")


def survives(claim: str, notebook: str, name: str) -> bool:
    """Whether a claim held under a break."""
    places = handbook_results.load_results(ROOT / "book" / "results", "sabotage")["places"]
    return bool(places[notebook][name]["claims"][claim] == "held")


def likelihood_alone_lets_chosen_answers_fall() -> bool:
    return survives("chosen-falls", "dpo", "likelihood-loss")


def likelihood_alone_costs_as_well() -> bool:
    return survives("too-far-costs", "dpo", "likelihood-loss")


SENTENCES: list[tuple[str, str, Callable[[], bool]]] = [
    ("sft", "they have nothing to do with the question", the_control_answers_another_question),
    (
        "dpo",
        "The chosen answers fell a little, the rejected ones several times as far",
        chosen_fell_a_little_and_rejected_several_times_as_far,
    ),
    (
        "dpo",
        "less than half of what it gains over SFT",
        the_gain_over_the_control_is_less_than_half,
    ),
    ("dpo", "The loss is not the only cause.", likelihood_alone_lets_chosen_answers_fall),
    ("dpo", "The high learning rate is enough for that", likelihood_alone_costs_as_well),
    ("dpo", "the two did not go equally far", dpo_went_farther_than_the_control),
    ("dpo", "it also went less far", the_mean_went_less_far_than_the_sum),
    (
        "dpo",
        "All three moved much farther than the DPO run of the experiment",
        all_three_moved_farther_and_none_has_its_gold,
    ),
    ("dpo", "In `make demo`, on more pairs", the_demo_trains_on_more_pairs),
    ("dpo", "want hundreds of times the rate of a 7B model", our_rate_is_hundreds_of_times_the_recipes),
    ("rejection_sampling", "It does not fall in every round", training_loss_does_not_fall_in_every_round),
    ("scaling", "No stage passes.", batches_of_like_length_pass_in_no_stage),
    ("pipeline", "answers about as badly as the base", dpo_alone_is_about_as_bad_as_the_base),
    ("pipeline", "most of what DPO gives is missing", more_demonstrations_are_no_pairs),
    (
        "pipeline",
        "here the writers answer better than the model does",
        others_pairs_give_more_and_their_writers_are_better,
    ),
    ("pipeline", "gives more than any change of method", better_labels_give_most_and_shorter_answers),
    ("variants", "**No loss beats DPO here,** neither at the end nor at equal KL", nobody_is_ahead_of_dpo),
    (
        "variants",
        "For nine of the eleven other losses, the best setting beats DPO's median setting",
        nine_are_ahead_of_dpos_median_setting,
    ),
    ("variants", "all together, only that of `robust` does", only_robust_stays_apart_among_all_comparisons),
    ("variants", "**Settings matter more than losses.**", settings_lie_farther_apart_than_losses),
    (
        "variants",
        "gains nearly as much as DPO, but goes several times as far for it",
        the_control_gains_nearly_as_much_and_goes_farther,
    ),
    (
        "variants",
        "For eleven of the twelve, the best setting lies at an end of it, mostly at the lowest learning rate",
        eleven_of_twelve_end_at_an_edge,
    ),
]


@pytest.mark.parametrize(("page", "sentence", "bears_out"), SENTENCES, ids=[s[1][:40] for s in SENTENCES])
def test_a_sentence_agrees_with_what_is_stored(
    page: str, sentence: str, bears_out: Callable[[], bool]
) -> None:
    text = " ".join((ROOT / "book" / f"{page}.md").read_text(encoding="utf-8").split())
    assert sentence in text, "the sentence was changed: change its test as well"
    assert bears_out()


def test_a_perfect_student_has_the_flaws_it_was_shown() -> None:
    """The chapter names these three flaws with their rates."""
    text = (ROOT / "book" / "sft.md").read_text(encoding="utf-8")
    assert (
        set(re.findall(r"\{world\}`rate\.(\w+)`", text)) == {"missed", "rude", "fillers"} <= set(FLAW_RATES)
    )


def outputs() -> Iterator[str]:
    for path in chapters():
        if DIRECTIVE.search(path.read_text(encoding="utf-8")):
            yield path.stem


@pytest.mark.parametrize("page", sorted(outputs()))
def test_every_output_that_a_page_shows_is_stored(page: str) -> None:
    assert all(shown(page))


def notebook_that_prints(tmp_path: Path, *cells: tuple[str, str]) -> Path:
    book = nbformat.v4.new_notebook()
    for source, text in cells:
        cell = nbformat.v4.new_code_cell(source)
        cell.outputs = [nbformat.v4.new_output("stream", text=text)]
        book.cells.append(cell)
    path = tmp_path / "small.ipynb"
    path.write_text(json.dumps(book), encoding="utf-8")
    return path


def test_an_output_is_found_by_its_cell_and_cut_to_blocks_and_lines(tmp_path: Path) -> None:
    path = notebook_that_prints(tmp_path, ("show(1)", "a 1\nb 1\n\na 2\n\n"), ("other()", "c\n"))
    assert handbook_outputs.stored_output(path, "show(") == "a 1\nb 1\n\na 2"
    assert handbook_outputs.stored_output(path, "show(", blocks=1) == "a 1\nb 1"
    assert handbook_outputs.stored_output(path, "show(", skip=1, blocks=1) == "a 2"
    assert handbook_outputs.stored_output(path, "show(", matching="b") == "b 1"


@pytest.mark.parametrize(
    ("cell", "matching", "said"),
    [("nowhere", "", "0 code cells"), ("(", "", "2 code cells"), ("show", "z", "printed no such line")],
)
def test_an_output_that_is_not_there_is_named(tmp_path: Path, cell: str, matching: str, said: str) -> None:
    path = notebook_that_prints(tmp_path, ("show(1)", "a\n"), ("other()", "c\n"))
    with pytest.raises(handbook_outputs.NoOutputError, match=said):
        handbook_outputs.stored_output(path, cell, matching=matching)


def test_code_is_shown_as_the_notebook_defines_it_and_in_the_order_asked_for(tmp_path: Path) -> None:
    path = notebook_that_prints(tmp_path, ("def a():\n    return 1  # one\n\n\ndef b(): ...\n\n\na()", "1\n"))
    assert handbook_outputs.stored_code(path, ["b", "a"]) == "def b(): ...\n\n\ndef a():\n    return 1  # one"


def test_code_that_is_not_there_or_too_long_for_a_page_is_named(tmp_path: Path) -> None:
    path = notebook_that_prints(tmp_path, ("def long():\n" + "    pass\n" * 15, ""))
    with pytest.raises(handbook_outputs.NoOutputError, match="defines no 'short'"):
        handbook_outputs.stored_code(path, ["short"])
    with pytest.raises(handbook_outputs.NoOutputError, match=r"16 lines of .* are more than the 15"):
        handbook_outputs.stored_code(path, ["long"])


@pytest.mark.parametrize(
    ("value", "style", "reads"),
    [
        (0.061, "rises", "rises by 0.061 [0.051, 0.071]"),
        (-0.061, "rises", "falls by 0.061 [0.051, 0.071]"),
        (0.061, "gains", "gains 0.061 [0.051, 0.071]"),
        (-0.061, "gains", "loses 0.061 [0.051, 0.071]"),
        (0.061, "above", "0.061 [0.051, 0.071] above"),
        (-0.061, "above", "0.061 [0.051, 0.071] below"),
    ],
)
def test_a_difference_is_worded_by_its_sign(value: float, style: str, reads: str) -> None:
    figure = {"value": value, "low": value - 0.01, "high": value + 0.01}
    assert handbook_results.render_figure(figure, style) == reads


def test_a_fall_that_may_be_a_rise_keeps_its_interval_across_zero() -> None:
    """-0.004 from -0.010 to 0.002: a fall of 0.004 that may be 0.010, or a rise of 0.002."""
    figure = {"value": -0.004, "low": -0.010, "high": 0.002}
    assert handbook_results.render_figure(figure, "rises") == "falls by 0.004 [-0.002, 0.010]"


def test_no_sentence_says_by_a_signed_figure_of_either_sign() -> None:
    """ "by" before a figure that is below zero in its file asks for the form that words its direction."""
    wrong = []
    for path in chapters():
        text = " ".join(path.read_text(encoding="utf-8").split())
        for name, key in re.findall(r"\bby \{result\}`(\w+):([^`|]+)`", text):
            if value(name, key) < 0:
                wrong.append(f"{path.stem}: by {name}:{key}")
    assert wrong == []
