"""Words as numbers, sketches, and rows that repeat earlier ones."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rensa")

from handbook_utils.curation.near.duplicates import DuplicateFinder, Repeats
from handbook_utils.curation.near.sketches import BANDS, ROWS, BandIndex
from handbook_utils.curation.near.words import BLOCK, runs_of_words, text_hashes, word_hashes

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "rk", "st", "l")]


def passage(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def edited(text: str, rng: random.Random, edits: int) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), edits):
        words[place] = "changed"
    return " ".join(words)


def repeats(
    tmp_path: Path, rows: list[tuple[str, str]], alive: list[bool] | None = None, near: float = 0.8
) -> Repeats:
    with DuplicateFinder(tmp_path / "spool") as finder:
        for first in range(0, len(rows), 2):  # what a batch is must not matter
            prompts, answers = zip(*rows[first : first + 2], strict=True)
            finder.add(prompts, answers)
        found = finder.repeats(np.array(alive or [True] * len(rows)), threshold=near, min_words=4)
    assert list(tmp_path.iterdir()) == []  # the file of words is gone
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello, World!", "hello world"),
        ("a  b\n\nc", "A b c."),
        ("caf\u00e9 au lait", "CAFE\u0301 AU LAIT"),  # one character or two, the same letter
        ("\u201cyes\u201d \u2014 she said", '"Yes" - she said'),
    ],
)
def test_case_marks_and_spacing_do_not_count(one: str, other: str) -> None:
    hashes = text_hashes(word_hashes([one, other]))
    assert hashes[0] == hashes[1] != 0


def test_word_order_counts() -> None:
    hashes = text_hashes(word_hashes(["man bites dog", "dog bites man"]))
    assert hashes[0] != hashes[1]


def test_different_words_have_different_numbers() -> None:
    words = sorted({a + b for a in WORDS for b in WORDS})
    assert len(np.unique(word_hashes([" ".join(words)]).values)) == len(words) > 50_000


def test_a_text_longer_than_a_block_is_the_words_it_has() -> None:
    long = "word " * (BLOCK // 2)
    assert len(word_hashes([long, "next"]).of(0)) == BLOCK // 2
    assert word_hashes([long, "next"]).of(1) == word_hashes(["next"]).values


def test_a_script_without_spaces_is_read_by_character() -> None:
    assert len(word_hashes(["\u4f60\u597d\u4e16\u754c"]).values) == 4


def test_the_same_numbers_in_every_process() -> None:
    # computed once; a change would make stored curations mean something else
    assert word_hashes(["hello"]).values.tolist() == [word_hashes(["say hello"]).values[1]]
    assert int(word_hashes(["hello"]).values[0]) == 3973877798973214133


def test_sketches_find_what_theory_says() -> None:
    rng = random.Random(0)
    texts = [passage(rng, 120) for _ in range(400)]
    # 120 words are 118 runs of three; five edits far apart take 15 of them: J = 103 / 133 = 0.77
    others = [edited(text, rng, 5) for text in texts]
    index = BandIndex()
    index.add(runs_of_words(word_hashes(texts), 3))
    found = set()
    for mine, theirs in index.matches(runs_of_words(word_hashes(others), 3)):
        found |= set(zip(mine.tolist(), theirs.tolist(), strict=True))
    recall = sum((n, n) in found for n in range(400)) / 400
    expected = 1 - (1 - 0.77**ROWS) ** BANDS
    assert recall >= expected - 0.02
    assert len(found) < 500  # and little else: other texts share no run


def test_a_row_in_the_same_words_is_a_duplicate_of_the_first(tmp_path: Path) -> None:
    rows = [
        ("What is it?", "A tree."),
        ("Else?", "No."),
        ("what is it", "a tree"),
        ("What is it?", "A tree."),
    ]
    assert repeats(tmp_path, rows).duplicate.of == {2: (0, 1.0), 3: (0, 1.0)}


def test_a_near_duplicate_names_the_earlier_row_and_the_exact_similarity(tmp_path: Path) -> None:
    rng = random.Random(1)
    prompt, answer = passage(rng, 30), passage(rng, 100)
    other = answer.split()
    other[50] = "changed"
    found = repeats(
        tmp_path, [(prompt, answer), (passage(rng, 30), passage(rng, 100)), (prompt, " ".join(other))]
    )
    # 28 + 98 runs of three, of which one edit replaces three: 123 shared of 129
    assert found.near_duplicate.of == {2: (0, pytest.approx(123 / 129))}
    assert found.repeated_prompt.of == {}  # the whole is named, not its parts as well


def test_below_the_threshold_nothing_is_called_near(tmp_path: Path) -> None:
    rng = random.Random(2)
    prompt, answer = passage(rng, 30), passage(rng, 100)
    rows = [(prompt, answer), (prompt, edited(answer, rng, 12))]
    found = repeats(tmp_path, rows)
    assert found.near_duplicate.of == {}
    assert found.repeated_prompt.of == {1: (0, 1.0)}


def test_an_answer_to_another_prompt_is_repeated_unless_it_is_short(tmp_path: Path) -> None:
    rows = [
        ("One?", "Yes."),
        ("Two?", "Yes."),
        ("Three?", "It is so for five reasons."),
        ("Four?", "It is so for five reasons."),
    ]
    assert repeats(tmp_path, rows).repeated_answer.of == {3: (2, 1.0)}


def test_a_row_that_goes_for_another_reason_does_not_take_its_copy_with_it(tmp_path: Path) -> None:
    rows = [("What is it?", "A tree."), ("What is it?", "A tree."), ("What is it?", "A tree.")]
    assert repeats(tmp_path, rows, alive=[False, True, True]).duplicate.of == {2: (1, 1.0)}


def test_rows_without_words_are_not_duplicates_of_each_other(tmp_path: Path) -> None:
    found = repeats(tmp_path, [("", ""), ("", ""), ("...", "!!")])
    assert not found.duplicate.of
    assert not found.near_duplicate.of


def test_a_template_that_all_prompts_share_stays_quick_and_is_no_repetition(tmp_path: Path) -> None:
    rng = random.Random(3)
    template = passage(rng, 60)
    rows = [(f"{template} {passage(rng, 40)}", passage(rng, 60)) for _ in range(150)]
    found = repeats(tmp_path, rows)
    assert all(not alike.of for alike in vars(found).values())


def test_another_question_about_one_long_text_is_no_duplicate(tmp_path: Path) -> None:
    rng = random.Random(4)
    text = passage(rng, 200)
    rows = [(f"{text} Who was it?", "It was the captain."), (f"{text} And when?", "That was in May.")]
    found = repeats(tmp_path, rows)
    assert found.near_duplicate.of == {}
    assert list(found.repeated_prompt.of) == [1]
