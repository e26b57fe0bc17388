"""Formulas compared by math-verify: read whole or not at all, and the same whichever answer comes first.

Measured on math-verify 0.9: of what is no LaTeX to its end `parse` takes the last number (`x^2 ? 1` is 1), it
adds numbers that stand side by side and leaves out a subscript of digits; and `verify` has another result
with its arguments exchanged, for equations and for intervals. `tests/contract` holds that.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import regex

from handbook_utils.sampling.scoring.answers.polynomial import read_polynomial
from handbook_utils.sampling.scoring.answers.texts import clean

_PARSES_KEPT = 20_000
_COMMANDS = regex.compile(r"\\text\{[^{}]*\}|\\(?:begin|end)\{\w+\*?\}|\\[a-zA-Z]+")
_PROSE = regex.compile(r"(?<![a-zA-Z])(?!arc|sin|cos|tan|log)[a-zA-Z]{4,}|[a-zA-Z]{2,}\s+[a-zA-Z]{2,}")
_DEGREES = regex.compile(r"(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?")
_OF_ANGLES = regex.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
# numbers side by side, and digits with a subscript
_MISREAD = regex.compile(r"(?<![_^]\s?)\d(?:\s|\\q?quad)+\d|\d\s*_")


def is_formula(text: str) -> bool:
    """Whether math-verify reads a formula, to its end. It takes any prose for a product of letters."""
    cleaned = clean(text)
    if _MISREAD.search(cleaned) or _is_prose(cleaned):
        return False
    return read_polynomial(cleaned) is not None or bool(_parsed(cleaned))


def same_formula(a: str, b: str) -> bool:
    """Whether two formulas are one, in both orders; False where one cannot be read."""
    from math_verify import verify

    polynomials = read_polynomial(clean(a)), read_polynomial(clean(b))
    if polynomials[0] is not None and polynomials[1] is not None:
        return polynomials[0] == polynomials[1]
    first, second = _in_one_world(_parsed(clean(a)), _parsed(clean(b)))
    if not first or not second:
        return False
    return all(
        verify(list(gold), list(given), allow_set_relation_comp=True, timeout_seconds=None)
        for gold, given in ((first, second), (second, first))
    )


def _in_one_world(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Two formulas in which `i` is the imaginary unit where one of them has it above `e`, else a letter."""
    if not any(_turns(formula) for formula in (*first, *second)):
        return first, second
    return tuple(map(_imaginary, first)), tuple(map(_imaginary, second))


def _imaginary(formula: Any) -> Any:
    from sympy import Basic, I  # type: ignore[import-untyped]

    if not isinstance(formula, Basic):
        return formula
    letters = {symbol: I for symbol in formula.free_symbols if str(symbol) == "i"}
    return formula.xreplace(letters).doit() if letters else formula


def _turns(formula: Any) -> bool:
    from sympy import Basic, exp

    powers = formula.atoms(exp) if isinstance(formula, Basic) else ()
    return any(str(symbol) == "i" for power in powers for symbol in power.free_symbols)


def _is_prose(text: str) -> bool:
    return bool(_PROSE.search(_COMMANDS.sub(" \\\\ ", text)))


@lru_cache(maxsize=_PARSES_KEPT)
def _parsed(latex: str) -> tuple[Any, ...]:
    """What math-verify makes of a formula; empty where it cannot read all of it."""
    from math_verify import LatexExtractionConfig, parse

    # its own time limit works in the main thread only, so whoever calls this sets one; it warns of that
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    if _OF_ANGLES.search(latex):  # of an angle in degrees it leaves out the mark
        latex = _DEGREES.sub(r"(\1\\pi/180)", latex)
    # by its default, the last number of what is no LaTeX is taken for the whole
    whole = [LatexExtractionConfig()]
    parsed = parse(f"\\boxed{{{latex}}}", whole, fallback_mode="no_fallback", parsing_timeout=None)
    return tuple(parsed)
