"""Personal data, keys and addresses in rows: counted and shown before the rows go to a server elsewhere.

Patterns find what has a form of its own. They do not find names, nor what a text says in words: where nothing
was found there may still be something.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from handbook_utils.records import Completion
from handbook_utils.redaction import KEY_SHAPE
from handbook_utils.runs.log import warn_and_log
from handbook_utils.sampling.generation.engines.interface import Prompt
from handbook_utils.schema.engines import LOOPBACK
from handbook_utils.schema.sampling import JudgeSection, ScorerSection


class PrivateDataWarning(UserWarning):
    """Rows that are about to leave this machine hold what looks like personal data or keys."""


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


def private_data(rows: Iterable[tuple[str, str]]) -> dict[str, Found]:
    """Kinds of private data in rows, each with its number of rows.

    Args:
        rows: (name to call the row, its text).

    >>> private_data([("p1", "Write to ann@example.org"), ("p2", "Hello")])
    {'e-mail addresses': Found(rows=1, first='p1')}
    """
    found: dict[str, Found] = {}
    for name, text in rows:
        for kind, (pattern, holds) in KINDS.items():
            if any(holds is None or holds(match[0]) for match in pattern.finditer(text)):
                found.setdefault(kind, Found(0, name)).rows += 1
    return found


def host_elsewhere(url: str) -> str | None:
    """The server's name where what is sent to it leaves this machine, else None.

    >>> host_elsewhere("https://api.example.org/v1"), host_elsewhere("http://localhost:8000/v1")
    ('api.example.org', None)
    """
    host = urlsplit(url).hostname
    return None if host in LOOPBACK else host


def warn_of_private_data(url: str, rows: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Look at rows that are about to be sent, and warn of what they hold; nothing of it is repeated.

    Args:
        url: the server's; of one on this machine nothing is said and no row is looked at.
        rows: (name, text).
    Returns:
        Rows by kind, for the manifest.
    """
    host = host_elsewhere(url)
    if host is None:
        return {}
    found = private_data(rows)
    if found:
        message = (
            f"rows that go to {host} hold {in_words(found)}. Stop now, or go on if they may be sent there."
        )
        warn_and_log(message, PrivateDataWarning)
    return {kind: each.rows for kind, each in found.items()}


def prompt_text(prompt: Prompt) -> tuple[str, str]:
    """A prompt's id and all that its messages say."""
    return prompt[0], _texts(prompt[1])


def row_text(row: Completion) -> tuple[str, str]:
    """A sample's name and all that it says."""
    return f"{row.prompt_id}, sample {row.sample_index}", _texts([row.prompt, row.completion])


def _texts(value: Any) -> str:
    """Every text in nested messages, one per line."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return "\n".join(map(_texts, value)) if isinstance(value, list) else str(value)


def urls_elsewhere(scorers: Iterable[ScorerSection]) -> list[str]:
    """Addresses of the judges among scorers that are not on this machine."""
    urls = [section.url for section in scorers if isinstance(section, JudgeSection)]
    return [url for url in dict.fromkeys(urls) if host_elsewhere(url)]


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
