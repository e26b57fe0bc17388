"""Polynomials with whole coefficients, such as `2x^2-3xy+1`, worked out exactly and quickly.

The grammar is so narrow that math-verify reads all of it alike, which a test holds. What is not in it is left
to math-verify: `f(x)`, `x^10` without braces, `e` and `i`, which are numbers, `c`, `m` and others, which it
takes for units at the end of a text, and a letter alone, which it compares as a name.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import NoReturn

import regex

LONGEST, MOST_TERMS, MOST_DEGREE = 200, 200, 20
_TOKEN = regex.compile(
    r"\s*(?:(?P<number>\d+)(?!\s*[.,\d])|(?P<letter>[abknpqruvwxyz])(?!\s*[\d(_'])(?![a-zA-Z]{2})"
    r"|\^(?:\{\s*(?P<braced>\d{1,2})\s*\}|(?P<bare>\d)(?!\d))(?!\s*[\^\d(!])|(?P<sign>\\cdot(?![a-zA-Z])|[-+*()]))\s*"
)
# the powers of its letters, in their order
Monomial = tuple[tuple[str, int], ...]


class _NotAPolynomialError(Exception):
    """The text is none that this module can read."""


@lru_cache(maxsize=4096)
def read_polynomial(text: str) -> dict[Monomial, int] | None:
    """Coefficients by monomial, none of them 0; None for a text that is no polynomial of this grammar.

    >>> read_polynomial("(x+1)(x-1)")
    {(('x', 2),): 1, (): -1}
    """
    if not 1 < len(text) <= LONGEST:
        return None
    try:
        return _Reader(text).whole()
    except _NotAPolynomialError:
        return None


class _Reader:
    """Recursive descent: sums of products of powers of numbers, letters and what stands in brackets."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        self._place = place = 0
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                _fail()
            kind = str(found.lastgroup)
            self._tokens.append(("power" if kind in ("braced", "bare") else kind, found[kind]))
            place = found.end()

    def whole(self) -> dict[Monomial, int]:
        """All of the text."""
        found = self._sum()
        if self._place != len(self._tokens):
            _fail()
        return {monomial: factor for monomial, factor in found.items() if factor}

    def _next(self) -> tuple[str, str]:
        return self._tokens[self._place] if self._place < len(self._tokens) else ("", "")

    def _took(self, *signs: str) -> str:
        kind, text = self._next()
        if kind != "sign" or text not in signs:
            return ""
        self._place += 1
        return text

    def _sum(self) -> Counter[Monomial]:
        sign = self._took("+", "-")
        total = _scaled(self._product(), -1 if sign == "-" else 1)
        while sign := self._took("+", "-"):
            total.update(_scaled(self._product(), -1 if sign == "-" else 1))
        return total

    def _product(self) -> Counter[Monomial]:
        value = self._power()
        while True:
            is_written = bool(self._took("*", "\\cdot"))
            kind, text = self._next()
            if not is_written and kind != "letter" and (kind, text) != ("sign", "("):
                return value
            value = _times(value, self._power())

    def _power(self) -> Counter[Monomial]:
        kind, text = self._next()
        self._place += 1
        base: Counter[Monomial]
        if kind == "number":
            base = Counter({(): int(text)})
        elif kind == "letter":
            base = Counter({((text, 1),): 1})
        elif (kind, text) == ("sign", "("):
            base = self._sum()
            if not self._took(")"):
                _fail()
        else:
            _fail()
        kind, text = self._next()
        if kind != "power":
            return base
        self._place += 1
        result: Counter[Monomial] = Counter({(): 1})
        if int(text) > MOST_DEGREE:
            _fail()
        for _ in range(int(text)):
            result = _times(result, base)
        return result


def _scaled(value: Counter[Monomial], factor: int) -> Counter[Monomial]:
    return Counter({monomial: factor * times for monomial, times in value.items()})


def _times(a: Counter[Monomial], b: Counter[Monomial]) -> Counter[Monomial]:
    product: Counter[Monomial] = Counter()
    for one, times in a.items():
        for other, again in b.items():
            powers = Counter(dict(one))
            powers.update(dict(other))
            if powers.total() > MOST_DEGREE:
                _fail()
            product[tuple(sorted(powers.items()))] += times * again
    if len(product) > MOST_TERMS:
        _fail()
    return product


def _fail() -> NoReturn:
    raise _NotAPolynomialError
