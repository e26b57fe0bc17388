"""Personal data, keys and addresses in rows: counted and shown before the rows go to a server elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from handbook_utils.curation.rules.private_data import in_words, private_data
from handbook_utils.records import Completion
from handbook_utils.runs.log import warn_and_log
from handbook_utils.sampling.generation.engines.interface import Prompt
from handbook_utils.schema.engines import LOOPBACK
from handbook_utils.schema.sampling import JudgeSection, ScorerSection


class PrivateDataWarning(UserWarning):
    """Rows that are about to leave this machine hold what looks like personal data or keys."""


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
