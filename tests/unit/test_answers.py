"""The scorer `answer`: which texts are one answer, where an answer stands, and what cannot be read at all."""

from __future__ import annotations

import json
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handbook_utils.sampling.scoring.answers.verdict import AnswerVerdict, reference_answer, same_answer
from handbook_utils.sampling.scoring.bounded import BoundedPool
from handbook_utils.sampling.scoring.score import NoScore
from handbook_utils.sampling.scoring.scorers.verifiers import JsonFits

SAME = [
    ("1,000", "1000"),
    ("1 000", "1000"),
    (r"1\,000", "1000"),
    ("1e3", "1000"),
    (r"3 \cdot 10^8", "3e8"),
    ("3 x 10^8", "300000000"),
    ("−5", "-5"),
    ("½", "0.5"),
    (r"\frac32", "1.5"),
    ("1 1/2", "1.5"),
    (r"1\frac{1}{2}", "3/2"),
    (r"0.\overline{3}", "1/3"),
    ("0.333333", r"\frac{1}{3}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("√2", "1.414214"),
    (r"\frac{\sqrt{8}}{2}", r"\sqrt2"),
    ("2^{10}", "1024"),
    ("2+2=4", "4"),
    ("50%", r"50\%"),
    ("50%", "0.5"),
    ("50 percent", "50"),
    ("5 million", "5,000,000"),
    ("$18", "18 dollars"),
    (r"3\text{ cm}", "3 centimeters"),
    ("3 cm", "3"),
    (r"90^\circ", "90"),
    (r"30^{\circ}", "30"),
    (r"45\degree", "45"),
    (r"90^\text{o}", "90°"),
    (r"\sin 30^\circ", r"\frac12"),
    (r"180^\circ-x", "180-x"),
    (r"e^{i\pi}", "-1"),
    (r"2e^{i\pi/3}", r"1+i\sqrt3"),
    ("x = 5", "5"),
    ("1,2", "2, 1"),
    ("1,2", "(1,2)"),
    ("1 and 2", r"\{1, 2\}"),
    ("100,200", "100, 200"),
    ("(585,647)", "(585, 647)"),
    (r"\{766,771,775\}", "775, 766, 771"),
    ("(1,000, 2,000)", "(1000, 2000)"),
    (r"\left(-\infty, \frac12\right]", "(-∞, 0.5]"),
    ("(1,2),(3,4)", "(3,4),(1,2)"),
    ("Paris", r"\text{paris}."),
    ("北京", "北京。"),
    ("5元", "5"),
    ("B", "(B)"),
    ("B", "B. Paris"),
    ("10:30 a.m.", "10:30 AM"),
    ("1011_2", "1011_{2}"),
    # formulas, by math-verify
    ("x^2+2x+1", "(x+1)^2"),
    ("1<x<2", "(1,2)"),
    (r"x \le 2", r"(-\infty,2]"),
    ("y = x+1", "x+1"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    (r"\pm 2", "-2, 2"),
]
DIFFERENT = [
    ("1,2", "12"),
    ("12,10,6", "12106"),
    ("1e3", "1"),
    ("1 000", "0"),
    ("1 1/2", "1"),
    ("1011_2", "1011"),
    ("1011_2", "1011_3"),
    (r"\sqrt{2}", "2"),
    (r"\sqrt{2}", "1.41"),
    ("0.0000001", "0.0000002"),
    ("0.3333", "1/3"),
    ("listen", "silent"),
    ("five", "5"),
    ("北京", "东京"),
    ("0,1", "01"),
    ("2x+z=1", "1"),
    ("x=5", "y=5"),
    ("(1,2)", "(2,1)"),
    ("[1,2]", "(1,2)"),
    ("[1,2]", "1,2"),
    ("3,1,2", "(1,2,3)"),
    ("3 km", "3 m"),
    ("5 million", "5"),
    ("5x", "5"),
    ("12.5%", "12.5"),
    ("10:30 a.m.", "10:30 p.m."),
    ("2024-05-01", "2018"),
    ("x^2+1", "x^2-1"),
    ("2", r"\pm 2"),
    (r"30^\circ", "31"),
    (r"\sin 30^\circ", r"\sin 30"),
    (r"e^{i\pi}", "1"),
    (r"e^{i\pi/3}", r"e^{-i\pi/3}"),
    ("i^2", "-1"),
    ("5", ""),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_one_answer_in_two_spellings_is_right_in_either_order(a: str, b: str) -> None:
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_two_answers_are_wrong_in_either_order(a: str, b: str) -> None:
    assert not same_answer(a, b)
    assert not same_answer(b, a)


NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.integers(0, 10**9).map("{:,}".format),
    st.tuples(st.integers(-999, 999), st.integers(1, 999)).map(lambda f: rf"\frac{{{f[0]}}}{{{f[1]}}}"),
    st.decimals(-1000, 1000, places=3).map(str),
    st.tuples(st.integers(1, 99), st.integers(1, 99)).map(lambda r: rf"{r[0]}\sqrt{{{r[1]}}}"),
    st.integers(0, 100).map("{}%".format),
)


@settings(max_examples=200)
@given(
    st.lists(NUMBERS, min_size=1, max_size=3).map(", ".join),
    st.lists(NUMBERS, min_size=1, max_size=3).map(", ".join),
)
def test_a_verdict_does_not_depend_on_which_answer_comes_first(a: str, b: str) -> None:
    assert same_answer(a, a)
    assert same_answer(a, b) == same_answer(b, a)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("6 * 7 = <<6*7=42>>42 apples in all.\n#### 42", "42"),
        (r"Since $x-3=0$, we have $x=\boxed{3}$.", "3"),
        (r"The roots are $\boxed{1}$ and $\boxed{2}$.", "1,2"),
        ("First add 1 to 2. The answer is 3.", "3"),
        ("1,2", "1,2"),
        ("July 4, 1776", "July 4, 1776"),
        (r"\text{(C)}", "C"),
    ],
)
def test_a_worked_reference_gives_the_answer_at_its_end(reference: str, answer: str) -> None:
    assert same_answer(reference_answer(reference), answer)


@pytest.mark.parametrize(
    "reference",
    ["", "$$", r"\boxed{}", r"\frac{1", r"\sqrt{", "[asy] draw(x); [/asy]", r"\boxed{7", "x^2 ? 1"],
)
def test_a_reference_that_cannot_be_read_to_its_end_is_an_error(reference: str) -> None:
    with pytest.raises(ValueError, match=r"it is empty|no answer is written|neither a number"):
        reference_answer(reference)


@pytest.mark.parametrize("reference", ["She has three left.\nSo it is three.", "so they went on " * 10])
def test_a_solution_that_states_no_answer_is_an_error_for_nothing_would_equal_it(reference: str) -> None:
    with pytest.raises(ValueError, match="words that states no answer"):
        reference_answer(reference)


@pytest.mark.parametrize(
    ("reference", "completion", "right"),
    [
        ("42", "So the total is 42 in the end.", 1),
        ("42", "It is 42, not 41.", 0),
        ("42", "**Answer: 42**", 1),
        ("42", "The final answer is 42 because 6 times 7 is 42.", 1),
        ("4", "The answer is:\n$$4$$", 1),
        # in part, `2` is read of it, which turned the reward round
        (r"2\sqrt{3}", r"So the length is 2\sqrt{3}", 1),
        ("2", r"So the length is 2\sqrt{3}", 0),
        ("18", "She makes $9 and then $9, so $18 in total.", 1),
        ("-5", "So the result is −5.", 1),
        ("(3,4)", "The point is (3, 4).", 1),
        ("1,2", "The roots are $1$ and $2$.", 1),
        ("1,2", r"\boxed{1} and \boxed{2}", 1),
        ("1", r"\boxed{1} or \boxed{2}", 0),
        ("3", r"First \boxed{1}. A long way on we find \boxed{3}", 1),
        ("72", "48 + 24 = 72\n#### 72 clips", 1),
        ("B", "The correct answer is **B**.", 1),
        ("A", "The answer is a banana", 0),
        ("Paris", "The answer is Paris, the capital of France.", 1),
        ("Paris", "Rome", 0),
        # what was only thought is no answer, and what was cut is none either
        ("5", r"<think>perhaps \boxed{4}</think> \boxed{5}", 1),
        ("5", r"<think>perhaps \boxed{5}", 0),
        ("7", r"\boxed{7", 0),
        ("4", "", 0),
        ("4", "I do not know.", 0),
    ],
)
def test_the_answer_is_found_where_a_completion_states_it(
    reference: str, completion: str, right: int
) -> None:
    assert AnswerVerdict()((reference, completion)) == right


@pytest.mark.parametrize(
    "text", ["(" * 9000, r"\boxed{" * 3000, "1,2(" * 5000, "$x" * 9000, "answer " * 5000, "1" * 20000]
)
def test_a_text_made_to_be_slow_is_read_at_once(text: str) -> None:
    start = time.process_time()
    assert AnswerVerdict()(("7", text)) == 0
    assert time.process_time() - start < 2


def slow(item: float) -> float:
    time.sleep(item)
    return item


@pytest.fixture(scope="module")
def pool() -> BoundedPool:
    return BoundedPool(seconds=1, processes=2)  # on a busy machine importing takes a part of it


def test_a_check_that_takes_too_long_has_no_score_in_any_thread_and_the_others_keep_theirs(
    pool: BoundedPool,
) -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(pool.map(slow, [0.0, 30.0, 0.01])))
    thread.start()
    thread.join()
    assert found == [0.0, NoScore("TimeoutError: it took longer than 1 s"), 0.01]


def deaf(numbers: int) -> int:
    """One operation, in which Python hears no alarm."""
    return sum(range(numbers))


def test_a_process_that_hears_no_alarm_is_ended_and_the_next_one_goes_on(pool: BoundedPool) -> None:
    assert pool.map(deaf, [10**12, 1]) == [NoScore("TimeoutError: it took longer than 1 s"), 0]


def test_json_that_takes_too_long_to_check_has_no_score(pool: BoundedPool) -> None:
    # every item is compared with every other
    many = json.dumps([{"a": [number]} for number in range(12_000)])
    first, second = pool.map(JsonFits({"uniqueItems": True}), [many, "[1, 2]"])
    assert isinstance(first, NoScore)
    assert second == 1


def test_json_nested_without_end_and_numbers_beyond_all_bounds_score_0() -> None:
    check = JsonFits({"multipleOf": 2, "items": {"$ref": "#"}})
    assert [check("[" * 5000 + "]" * 5000), check("1e999"), check("4")] == [0, 0, 1]


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        *(("$5", "5 dollars", True), ("\\$5", "5", True), ("$5.00", "\\$5", True), ("€5", "5 euros", True)),
        *(
            ("5 cents", "$5", False),
            ("5 cents", "\\$5", False),
            ("$5", "€5", False),
            ("$5 million", "5 cm", False),
        ),
        *(("$5$ cm", "5 cm", True), ("$5$ cm", "5 dollars", False), ("£5", "5", True)),
    ],
)
def test_the_sign_of_a_currency_is_its_unit(one: str, other: str, is_same: bool) -> None:
    assert same_answer(one, other) is is_same
    assert same_answer(other, one) is is_same
