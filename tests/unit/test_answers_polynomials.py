"""Polynomials worked out here: math-verify reads the same texts and gives the same verdict."""

from __future__ import annotations

import logging
import random

import pytest
from math_verify import LatexExtractionConfig, parse, verify

from handbook_utils.sampling.scoring.answers import formulas
from handbook_utils.sampling.scoring.answers.formulas import is_formula, same_formula
from handbook_utils.sampling.scoring.answers.polynomial import read_polynomial
from handbook_utils.sampling.scoring.answers.texts import clean

PAIRS = 40


def theirs(a: str, b: str) -> tuple[bool, bool] | None:
    """math-verify's verdict with either as the gold answer; None where it cannot read both."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    whole = [LatexExtractionConfig()]
    first, second = (
        parse(f"\\boxed{{{clean(text)}}}", whole, fallback_mode="no_fallback", parsing_timeout=None)
        for text in (a, b)
    )
    if not first or not second:
        return None
    return verify(first, second, timeout_seconds=None), verify(second, first, timeout_seconds=None)


class Writer:
    """Random polynomials in spellings that people use."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def factor(self, depth: int) -> str:
        kind = self.draw.random()
        if depth and kind < 0.25:
            text = f"({self.sum(depth - 1)})"
        elif kind < 0.6:
            text = self.draw.choice("xyz" if kind < 0.5 else "abknpqruvw")
        else:
            text = str(self.draw.randint(0, 30))
        power = self.draw.choice(
            ["", "", "", f"^{self.draw.randint(0, 4)}", f"^{{{self.draw.randint(0, 12)}}}"]
        )
        return text + power

    def product(self, depth: int) -> str:
        times = self.draw.choice(["", "", "*", r" \cdot ", " "])
        return times.join(self.factor(depth) for _ in range(self.draw.choice([1, 1, 2, 2, 3])))

    def sum(self, depth: int = 1) -> str:
        text = self.draw.choice(["", "", "-"]) + self.product(depth)
        for _ in range(self.draw.choice([0, 1, 1, 2])):
            text += self.draw.choice(["+", "-", " + ", " - "]) + self.product(depth)
        return text

    def readable(self) -> str:
        while read_polynomial(clean(text := self.sum())) is None:
            pass
        return text

    def expanded(self, text: str) -> str:
        """The same polynomial, as a sum of its terms in another order."""
        terms = [
            f"{times:+d}" + "".join(f"{letter}^{{{power}}}" for letter, power in monomial)
            for monomial, times in (read_polynomial(clean(text)) or {}).items()
        ]
        self.draw.shuffle(terms)
        return "".join(terms or ["0"]).removeprefix("+")


def test_a_verdict_on_polynomials_is_math_verifys() -> None:
    writer = Writer(seed=3)
    equal = 0
    for number in range(PAIRS):
        a = writer.readable()
        b = writer.expanded(a) if number % 2 else writer.readable()
        ours = same_formula(a, b)
        assert theirs(a, b) == (ours, ours), (a, b)
        equal += ours
    assert PAIRS // 4 < equal < PAIRS


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("(x+1)(x-1)", "x^2-1", True),
        ("2xy - 3", r"-3 + 2 \cdot x \cdot y", True),
        ("(a+b)^{2}", "a^2+2ab+b^2", True),
        ("x^2+5", "x^2-5", False),
        ("-x^2", "(-x)^2", False),
        ("x-x+5y", "5y", True),
        ("xy", "x+y", False),
    ],
)
def test_polynomials_are_one_where_their_terms_are(
    a: str, b: str, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formulas, "_parsed", None)  # math-verify is not asked
    assert same_formula(a, b) == same_formula(b, a) == same
    assert is_formula(a)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "f(x)",
            "x(x+1)",
            "e^x",
            "2i",
            "x^10",
            "x2",
            "1.5x",
            "1,000x",
            "x_1",
            "x'",
            "5!x",
            "xyzzy",
            "x^2^3",
        ),
        *("2^n", "x", "x-s", "15 - c", "2m", "x/2", "x=1", r"\sin x", r"\frac{x}{2}", "(x+1", "x+1)", "x+"),
        *("*x", "", "x^{21}", "(x+y+z+1)^{15}"),
    ],
)
def test_what_can_be_read_in_two_ways_is_left_to_math_verify(text: str) -> None:
    assert read_polynomial(text) is None
