"""Expressions of numbers alone, such as `2\\sqrt{3}` or `1 1/2`, worked out to more digits than people write.

math-verify reads them too, a hundred times slower, and some of them wrong: `1e3` as a product, `1 1/2` as 1.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import NoReturn

import regex

# digits beyond those that a text has; what agrees to AGREES of them is one number
DIGITS, AGREES = 60, Decimal("1e-40")
# a decimal is rounded, so it agrees with what rounds to it: to six places, as math-verify has it
PLACES, SMALL, FEW_DIGITS = Decimal("1e-6"), Decimal("1e-3"), Decimal("1e-4")
LONGEST = 400
_TOKEN = regex.compile(
    r"\s*(?:(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?P<exponent>[eE][+-]?\d+(?![\d.]))?"
    r"|(?P<sign>\\(?:frac|sqrt|cdot|times|div|pi|infty)(?![a-zA-Z])|[-+*/^(){}\[\]]))"
)
_VALUED = regex.compile(r"\d|\\pi|\\infty")
_MIXED = regex.compile(
    r"(-?)\s*(\d+)\s*(?:\s(\d+)\s*/\s*(\d+)|\\frac\s*(?:\{(\d+)\}\s*\{(\d+)\}|(\d)\s*(\d)(?!\d)))"
)
_REPEATING = regex.compile(r"(-?)\s*(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{(\d+)\}")
_PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798"
)


@dataclass(frozen=True)
class Number:
    """A number as it was written.

    Attributes:
        value: what it is worth; a percentage is divided by 100.
        is_decimal: it was written with a decimal point, so it may be rounded.
        is_percent: it was written with a percent sign.
        unit: what stood behind it, "" where nothing did.
    """

    value: Decimal
    is_decimal: bool = False
    is_percent: bool = False
    unit: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether it was written without a fraction."""
        written = self.value * 100 if self.is_percent else self.value
        return not self.is_decimal and written == written.to_integral_value()


class _NotANumberError(Exception):
    """The text is no closed expression that this module can read."""


def read_number(text: str) -> Number | None:
    """The number that a text is, all of it; None where it is none, or one that takes algebra to read.

    >>> read_number("1 1/2").value, read_number("2^{10}").value, read_number("1,2")
    (Decimal('1.5'), Decimal('1024'), None)
    """
    if len(text) > LONGEST or not _VALUED.search(text):
        return None
    with decimal.localcontext(prec=DIGITS + len(text)):
        try:
            if mixed := _MIXED.fullmatch(text):
                return Number(_mixed(*(part for part in mixed.groups() if part is not None)))
            if repeating := _REPEATING.fullmatch(text):
                return Number(_repeating(*repeating.groups()))
            return _Reader(text).whole()
        except (_NotANumberError, decimal.DecimalException, RecursionError):
            return None


def same_number(a: Number, b: Number) -> bool:
    """Whether two numbers are one, as math-verify has it, but for small ones, which its rounding makes 0.

    Decimals agree with what rounds to them; a whole percentage is its number with or without the sign.

    >>> third, rounded, percent, half = map(read_number, ("1/3", "0.333333", "50", "0.5"))
    >>> same_number(third, rounded), same_number(percent, half)
    (True, False)
    """
    if _close(a.value, b.value):
        return True
    if a.is_percent != b.is_percent and a.is_whole and b.is_whole:
        return _close(*(one.value * 100 if one.is_percent else one.value for one in (a, b)))
    if not (a.is_decimal or b.is_decimal) or _is_bare_whole(a) or _is_bare_whole(b):
        return False
    return _rounds_alike(a.value, b.value)


def _is_bare_whole(number: Number) -> bool:
    return number.is_whole and not number.is_percent


def _close(a: Decimal, b: Decimal) -> bool:
    if not (a.is_finite() and b.is_finite()):
        return a == b
    with decimal.localcontext(prec=DIGITS + LONGEST):
        return abs(a - b) <= AGREES * max(abs(a), abs(b))


def _rounds_alike(a: Decimal, b: Decimal) -> bool:
    if not (a.is_finite() and b.is_finite()):
        return False
    with decimal.localcontext(prec=2 * LONGEST):
        if max(abs(a), abs(b)) < SMALL:
            return abs(a - b) < FEW_DIGITS * max(abs(a), abs(b))
        try:
            return a.quantize(PLACES) == b.quantize(PLACES)
        except decimal.InvalidOperation:  # more digits than any rounding matters for
            return False


def _mixed(sign: str, whole: str, above: str, below: str) -> Decimal:
    value = Decimal(whole) + Decimal(above) / Decimal(below)
    return -value if sign else value


def _repeating(sign: str, whole: str, before: str, period: str) -> Decimal:
    value = Decimal(f"{whole or 0}.{before or 0}")
    value += Decimal(period) / Decimal(10 ** len(period) - 1) / Decimal(10 ** len(before))
    return -value if sign else value


class _Reader:
    """Recursive descent: sums of products of powers of what stands in brackets, fractions and roots."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        self._numbers: list[Decimal | None] = []
        self._is_decimal = False
        place = 0
        text = text.rstrip()
        while place < len(text):
            token = _TOKEN.match(text, place)
            if token is None:
                _fail()
            self._add(token["number"], token["exponent"] or "", token["sign"])
            place = token.end()
        self._place = 0

    def _add(self, number: str | None, exponent: str, sign: str | None) -> None:
        if number is not None:
            self._is_decimal |= "." in number
            self._numbers.append(Decimal(number.replace(",", "") + exponent))
            self._tokens.append("number")
        else:
            self._numbers.append(None)
            self._tokens.append(sign or "")

    def whole(self) -> Number:
        """All of the text."""
        value = self._sum()
        if self._place != len(self._tokens):
            _fail()
        return Number(+value, is_decimal=self._is_decimal)

    def _next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _took(self, *tokens: str) -> str:
        token = self._next()
        if not token or token not in tokens:
            return ""
        self._place += 1
        return token

    def _sum(self) -> Decimal:
        sign = self._took("+", "-")
        value = -self._product() if sign == "-" else self._product()
        while sign := self._took("+", "-"):
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Decimal:
        value, is_slashed = self._power(), False
        while True:
            if self._took("*", "\\cdot", "\\times"):
                value *= self._signed(self._power)
            elif self._took("/", "\\div"):
                value, is_slashed = value / self._signed(self._power), True
            elif self._next() in ("(", "\\frac", "\\sqrt", "\\pi"):
                if is_slashed:  # 1/2\sqrt{3}: people mean either
                    _fail()
                value *= self._power()
            else:
                return value

    def _signed(self, part: Callable[[], Decimal]) -> Decimal:
        return -part() if self._took("-") else part()

    def _power(self) -> Decimal:
        base = self._base()
        if not self._took("^"):
            return base
        return Decimal(base ** self._signed(self._base))

    def _base(self) -> Decimal:
        token, place = self._next(), self._place
        self._place += 1
        number = self._numbers[place] if place < len(self._numbers) else None
        if number is not None:
            return number
        if token in ("(", "{"):
            return self._up_to(")" if token == "(" else "}")
        if token == "\\frac":
            return self._braced() / self._braced()
        if token == "\\sqrt":
            return self._root()
        if token == "\\pi":
            return _PI
        if token == "\\infty":
            return Decimal("Infinity")
        _fail()

    def _up_to(self, closing: str) -> Decimal:
        value = self._sum()
        if not self._took(closing):
            _fail()
        return value

    def _braced(self) -> Decimal:
        if not self._took("{"):
            _fail()
        return self._up_to("}")

    def _root(self) -> Decimal:
        degree = self._up_to("]") if self._took("[") else Decimal(2)
        opened = self._took("{", "(")
        value = self._up_to("}" if opened == "{" else ")") if opened else self._base()
        if value < 0 and degree == 3:
            return -((-value) ** (1 / degree))
        return value.sqrt() if degree == 2 else Decimal(value ** (1 / degree))


def _fail() -> NoReturn:
    raise _NotANumberError
