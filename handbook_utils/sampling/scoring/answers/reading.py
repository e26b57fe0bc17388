"""An answer read as what it is: a number, a group, a named answer, words, or a formula for math-verify."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import regex

from handbook_utils.sampling.scoring.answers.number import Number, read_number, same_number
from handbook_utils.sampling.scoring.answers.texts import LONGEST, clean

_MOST_ITEMS = 200
_FUNCTIONS = regex.compile(r"(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|exp|sqrt|frac|mod|gcd|lcm|max|min|det")
# the same unit in several spellings; of other words behind a number nobody can tell, so they count as nothing
_UNITS = {
    name: first
    for first, *others in (
        ("mm", "millimeter", "millimetre"),
        ("cm", "centimeter", "centimetre"),
        ("m", "meter", "metre"),
        ("km", "kilometer", "kilometre"),
        ("in", "inch", "inche"),
        ("ft", "foot", "feet"),
        ("yd", "yard"),
        ("mi", "mile"),
        ("mg", "milligram"),
        ("g", "gram"),
        ("kg", "kilogram"),
        ("lb", "pound", "lbs"),
        ("oz", "ounce"),
        ("ml", "milliliter", "millilitre"),
        ("l", "liter", "litre"),
        ("s", "sec", "second"),
        ("min", "minute"),
        ("h", "hr", "hour"),
        ("day",),
        ("week",),
        ("month",),
        ("yr", "year"),
        ("cent",),
        ("dollar", "usd"),
        ("euro", "eur"),
    )
    for name in (first, *others)
}
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_UNITS = "|".join(sorted((name for name in _UNITS if len(name) <= 3), key=len, reverse=True))
_UNIT = regex.compile(
    r"(?P<number>.*[\d)}%])\s*(?P<unit>(?:\s*\\text\{[^{}]*\}|(?<=[\d)}\s])(?:"
    + _SHORT_UNITS
    + r")(?![a-zA-Z])"
    r"|\s*(?:(?![\x00-\x7f])[^\W\d_])+|\s+[a-zA-Z]{3,}\.?|(?<=[a-zA-Z}])\s*/\s*[a-zA-Z]+)(?:\s*(?:per|[/a-zA-Z]+))*)(?:\s*\^\s*\{?-?\d\}?)?"
)
_DEGREES = regex.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?\s*[CF]?$")
_CURRENCY = regex.compile(r"(-?)\s*(?:\\?\$|£|€|¥|₹|US\$)\s*(?=[\d.-])")
_SIGNED = {"$": "dollar", "€": "euro"}
_BASED = regex.compile(
    r"([0-9A-F]+)\s*_\s*(?:\{\s*(\d+)\s*\}|(\d+)|\\text\{(\w+)\}|\{\s*\\text\{(\w+)\}\s*\})"
)
_NAMED = regex.compile(
    r"((?:[a-zA-Z]|\\[a-zA-Z]+)(?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?'?)\s*(?:=|\\in(?![a-zA-Z]))\s*([^=]+)"
)
_AND = regex.compile(r"\s*,?\s*(?:\\text\{\s*(?:and|or)\s*\}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z]))\s*|\s*;\s*")
_DATE = regex.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}[-/]\d{1,2}[-/]\d{4}")
_CLOCK = regex.compile(r"(\d{1,2}:\d{2})\s*(?:\\text\s*\{)?\s*([aApP])\.?\s*[mM]\.?\s*\}?")
_WRITTEN = regex.compile(r"\w")
_UNIT_SIGNS = regex.compile(r"\\text|[{}.]")
_BRACKET_OR_COMMA = regex.compile(r"\\?[{}()\[\]]|,")
_THOUSANDS_BEFORE = regex.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})*$")
_THOUSANDS_BEHIND = regex.compile(r"\d{3}(?:,\d{3})*(?![\d])(?!,\d)")
_TEXT = regex.compile(r"\\text\s*\{([^{}]*)\}")
_LETTER = regex.compile(r"\s*\(?\s*(?:[a-zA-Z]|[Nn]o|NO)\s*\)?\s*")
_RUN = regex.compile(r"[^\W\d_]{3,}")
_FOREIGN = regex.compile(r"(?![\x00-\x7f])[^\W\d_]")
_FORMULA_SIGN = regex.compile(r"[\\=^_<>|+*{}\[\]]")
_NO_WORD = regex.compile(r"[^\w\s'/.-]")
_OPTION = regex.compile(r"\(?([A-J])(?:\)|[.:](?=\s|$))\s*(.*)", regex.DOTALL)


@dataclass(frozen=True)
class Words:
    """Plain words, or a letter, in the form in which they are compared."""

    text: str


@dataclass(frozen=True)
class Based:
    """Digits in a number system, such as 1011_2: math-verify reads the digits alone."""

    digits: str
    base: str


@dataclass(frozen=True)
class Named:
    """`x = 5` or `x \\in [1, 2]`: where only one of two answers has the name, it counts for nothing."""

    name: str
    value: Reading


@dataclass(frozen=True)
class Group:
    """A list, set, pair or interval; `opens` and `closes` are "" for a list."""

    opens: str
    items: tuple[Reading, ...]
    closes: str


@dataclass(frozen=True)
class Formula:
    """What only math-verify can read, if anything can."""

    latex: str


Reading = Number | Words | Based | Named | Group | Formula


@lru_cache(maxsize=4096)
def read(text: str) -> Reading | None:
    """What an answer is; None where nothing is written, or far too much.

    >>> read("\\\\{1, 1/2\\\\}").items[1].value, read("$Paris$.").text
    (Decimal('0.5'), 'paris')
    """
    if len(text) > LONGEST:
        return None
    cleaned = clean(text)
    return _read(cleaned) if _WRITTEN.search(cleaned) else None


def _read(text: str) -> Reading:
    if _DATE.fullmatch(text):  # not a difference
        return Words(text)
    if found := _CLOCK.fullmatch(text):  # not a ratio
        return Words(f"{found[1]} {found[2]}m".casefold())
    # (585,647) is a pair, though 585,647 is a number
    pair = _group(text) if text[0] in "([{\\" else None
    return (
        pair
        or _number(text)
        or _based(text)
        or _chained(text)
        or _group(text)
        or _words(text)
        or Formula(text)
    )


def _number(text: str) -> Number | None:
    plain = _CURRENCY.sub(r"\1", text, count=1)
    unit, sign = "", next((name for mark, name in _SIGNED.items() if mark in text and plain != text), "")
    if (number := read_number(plain)) is not None:
        return replace(number, unit=sign)
    plain = _DEGREES.sub("", plain)
    if plain.endswith("%"):
        return _percent(plain[:-1])
    if found := _UNIT.fullmatch(plain):
        plain, unit = found["number"], _UNIT_SIGNS.sub(" ", found["unit"]).casefold()
    words = unit.split()
    if words and words[0] in ("percent", "percentage", "pct"):
        return _percent(plain)
    number = read_number(plain.strip())
    if number is None:
        return None
    if words and words[0] in _SCALES:
        number = Number(number.value * _SCALES[words[0]], is_decimal=number.is_decimal)
        words = words[1:]
    return Number(number.value, number.is_decimal, unit=_unit(" ".join(words)) or sign)


def _percent(text: str) -> Number | None:
    number = read_number(text.strip())
    return number and Number(number.value / 100, number.is_decimal, is_percent=True)


def _unit(words: str) -> str:
    word = words.strip()
    return _UNITS.get(word) or _UNITS.get(word.removesuffix("s")) or ""


def _based(text: str) -> Based | None:
    found = _BASED.fullmatch(text)
    if not found:
        return None
    base = next(part for part in found.groups()[1:] if part)
    return Based(found[1].lstrip("0"), {"two": "2", "three": "3", "eight": "8", "ten": "10"}.get(base, base))


def _chained(text: str) -> Reading | None:
    """`x = 5`, and of `2 + 2 = 4` its last part."""
    if found := _NAMED.fullmatch(text):
        value = _read(found[2].strip())
        if not isinstance(value, Words):
            return Named(found[1], value)
    parts = text.split("=")
    if 1 < len(parts) <= 10 and all(parts) and all(read_number(part.strip()) for part in parts):
        return _number(parts[-1].strip())
    return None


def _group(text: str) -> Group | None:
    opens, inner, closes = _unwrapped(text)
    parts = _split(inner.replace(";", ","), is_bracketed=True) if opens else _split(_AND.sub(",", inner))
    if parts is None or not all(parts) or (len(parts) == 1 and opens != "\\{") or len(parts) > _MOST_ITEMS:
        return None
    if opens and len(parts) != 2 and opens + closes not in ("()", "[]", "\\{\\}"):
        return None
    items = tuple(_read(part) for part in parts)
    # words with a comma are a sentence, and what math-verify has to read it reads whole
    return Group(opens, items, closes) if all(map(_is_plain, items)) else None


def _is_plain(item: Reading) -> bool:
    return _is_plain(item.value) if isinstance(item, Named) else isinstance(item, Number | Group | Based)


def _unwrapped(text: str) -> tuple[str, str, str]:
    for opens, closes in (("\\{", "\\}"), ("{", "}"), ("(", ")"), ("(", "]"), ("[", ")"), ("[", "]")):
        if text.startswith(opens) and text.endswith(closes):
            inner = text[len(opens) : -len(closes)]
            if _split(inner) is not None:
                return ("\\{", inner, "\\}") if "{" in opens else (opens, inner, closes)
    return "", text, ""


def _split(text: str, *, is_bracketed: bool = False) -> list[str] | None:
    """The parts between commas outside brackets; None where the brackets do not fit.

    A comma between digits by three, without a space, is that of thousands; in brackets only where others have
    a space: (585,647) is a pair.
    """
    has_thousands = not is_bracketed or ", " in text
    parts, start, depth = [], 0, 0
    for found in _BRACKET_OR_COMMA.finditer(text):
        if found[0] != ",":
            depth += 1 if found[0][-1] in "{([" else -1
            if depth < 0:
                return None
        elif depth == 0 and not (has_thousands and _is_of_thousands(text, found.start())):
            parts.append(text[start : found.start()].strip())
            start = found.end()
    return [*parts, text[start:].strip()] if depth == 0 else None


def _is_of_thousands(text: str, place: int) -> bool:
    before = _THOUSANDS_BEFORE.search(text[:place])
    return bool(before and before[0][0] != "0" and _THOUSANDS_BEHIND.match(text[place + 1 :]))


def _words(text: str) -> Words | None:
    plain = _TEXT.sub(r" \1 ", text)
    if _LETTER.fullmatch(plain):
        return Words(plain.strip(" ()").casefold())
    if _OPTION.fullmatch(plain.strip()):
        return Words(plain.strip().casefold())
    runs = _RUN.findall(plain)
    is_foreign = _FOREIGN.search(plain)  # letters that no formula has
    if _FORMULA_SIGN.search(plain):
        return None
    if not is_foreign and (not runs or all(map(_FUNCTIONS.fullmatch, runs))):
        return None
    return Words(" ".join(_NO_WORD.sub(" ", plain).casefold().split()).strip(" .'"))


def same_reading(a: Reading, b: Reading) -> bool | None:
    """Whether two answers are one; None where math-verify has to say."""
    if isinstance(a, Named) and isinstance(b, Named):
        return a.name == b.name and same_reading(a.value, b.value)
    if isinstance(a, Named) or isinstance(b, Named):
        return same_reading(*(one.value if isinstance(one, Named) else one for one in (a, b)))
    if isinstance(a, Words) or isinstance(b, Words):
        return a == b
    if isinstance(a, Based) or isinstance(b, Based):
        return a == b
    if isinstance(a, Formula) or isinstance(b, Formula):
        return None
    if isinstance(a, Number) and isinstance(b, Number):
        return same_number(a, b) and (a.unit == b.unit or not a.unit or not b.unit)
    return _same_group(_as_group(a), _as_group(b))


def _as_group(one: Reading) -> Group:
    return one if isinstance(one, Group) else Group("", (one,), "")


def _same_group(a: Group, b: Group) -> bool | None:
    unordered = ("", "\\{")
    if a.opens in unordered and b.opens in unordered:
        return _covers(a, b) and _covers(b, a)
    if (a.opens + a.closes != b.opens + b.closes) and not _is_list_and_tuple(a, b):
        return False
    if len(a.items) != len(b.items):
        return False
    return all(same_reading(x, y) for x, y in zip(a.items, b.items, strict=True))


def _is_list_and_tuple(a: Group, b: Group) -> bool:
    """`1,2` and `(1,2)`: the same where the order is."""
    return {a.opens in ("", "\\{"), b.opens in ("", "\\{")} == {True, False} and "()" in (
        a.opens + a.closes,
        b.opens + b.closes,
    )


def _covers(a: Group, b: Group) -> bool:
    return all(any(same_reading(x, y) for y in b.items) for x in a.items)


def option_letter(text: str) -> str | None:
    """The letter of `(B) Paris` or `B. Paris`, by which an option is chosen; None where there is none.

    >>> option_letter("(B) Paris"), option_letter("Both")
    ('b', None)
    """
    found = _OPTION.fullmatch(clean(text))
    return found[1].casefold() if found else None
