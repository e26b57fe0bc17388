"""Personal data, keys and addresses in texts: found by patterns, of which the check digits are checked.

Patterns find what has a form of its own. They do not find names, nor what a text says in words: where nothing
was found there may still be something.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from handbook_utils.redaction import KEY_SHAPE


@dataclass
class Found:
    """Rows that hold one kind of private data: how many, and the first one's name."""

    rows: int
    first: str


def _is_card(text: str) -> bool:
    """Whether digits end in the check digit of payment cards (Luhn)."""
    digits = [int(digit) for digit in text if digit.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """Whether the check digits of an IBAN are right (ISO 7064, mod 97)."""
    plain = text.replace(" ", "")
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


_STREET = (
    r"\b\d{1,5}[a-z]?,? (?:[A-Z][\w'.-]* ){1,3}"
    r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Boulevard|Blvd|Drive|Dr)\b"
    r"|\b[A-ZÄÖÜ][\w-]*(?:straße|strasse|str\.|weg|platz|gasse|allee) \d{1,4}\b"
    r"|\b(?:Straße|Strasse|Weg|Platz|Gasse|Allee) \d{1,4}\b"
    r"|\b\d{1,4},? (?:rue|avenue|boulevard|place) (?:de |du |des |la |l')*[A-ZÉÈ]\w+"
)
KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool] | None]] = {
    "e-mail addresses": (re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}"), None),
    "telephone numbers": (
        re.compile(
            r"(?<![\w.])(?:\+\d[\d ()/.-]{7,18}\d|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?!\w)"
        ),
        None,
    ),
    "postal addresses": (re.compile(_STREET), None),
    "IP addresses": (
        re.compile(
            r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)|(?<![\w:])(?:[0-9a-f]{1,4}:){3,7}[0-9a-f]{1,4}(?![\w:])"
        ),
        _is_address,
    ),
    "payment card numbers": (re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-])"), _is_card),
    "IBANs": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _is_iban),
    "social security numbers": (re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), None),
    "keys": (
        re.compile(
            KEY_SHAPE.pattern
            + r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
        ),
        None,
    ),
}


# a sign that each text with one of the kind has, which is quicker to look for; None: there is no such sign
_SIGNS: dict[str, str | None] = {"e-mail addresses": "@", "keys": None}
_DIGIT = re.compile(r"\d")


def kinds_of(text: str) -> dict[str, int]:
    """Kinds of private data in a text, each with where the first begins.

    >>> kinds_of("Write to ann@example.org")
    {'e-mail addresses': 9}
    """
    found = {}
    has_digit = _DIGIT.search(text) is not None
    for kind, (pattern, holds) in KINDS.items():
        sign = _SIGNS.get(kind, "")
        if (sign and sign not in text) or (sign == "" and not has_digit):
            continue
        for match in pattern.finditer(text):
            if holds is None or holds(match[0]):
                found[kind] = match.start()
                break
    return found


def private_data(rows: Iterable[tuple[str, str]]) -> dict[str, Found]:
    """Kinds of private data in rows, each with its number of rows.

    Args:
        rows: (name to call the row, its text).

    >>> private_data([("p1", "Write to ann@example.org"), ("p2", "Hello")])
    {'e-mail addresses': Found(rows=1, first='p1')}
    """
    found: dict[str, Found] = {}
    for name, text in rows:
        for kind in kinds_of(text):
            found.setdefault(kind, Found(0, name)).rows += 1
    return found


def in_words(found: Mapping[str, Found]) -> str:
    """What was found, as a part of a sentence.

    >>> in_words({"keys": Found(2, "p1")})
    "keys (in 2 rows, the first is 'p1')"
    """
    parts = [
        f"{kind} (in {each.rows:,} row{'s' * (each.rows > 1)}, the first is '{each.first}')"
        for kind, each in found.items()
    ]
    return "; ".join(parts)
