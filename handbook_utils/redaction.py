"""Secrets kept out of every text that leaves this process: messages, logs, manifests, reports, answers."""

from __future__ import annotations

import os
import re
import threading
import traceback

MARK = "[secret]"
# a shorter value would be found in harmless words
SHORTEST = 8
# variables that hold secrets by their names, such as HF_TOKEN or OPENAI_API_KEY
_SECRET_NAME = re.compile(
    r"(?:^|_)(?:(?:API|ACCESS|SECRET|PRIVATE|AUTH)_?KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE
)
# keys as services hand them out: each has a beginning of its own, and what follows has digits and is long
KEY_SHAPE = re.compile(
    r"(?<![\w-])(?:"
    r"(?:sk|pk|rk)[-_](?=[\w-]*\d)[\w-]{20,}|(?:gsk_|xai-|pplx-|nvapi-|r8_|glpat-)(?=[\w-]*\d)[\w-]{18,}"
    r"|hf_(?=[a-zA-Z]*\d)[a-zA-Z0-9]{30,}|gh[opsur]_[a-zA-Z0-9]{30,}|github_pat_\w{40,}"
    r"|xox[abprs]-[\w-]{18,}|AKIA[0-9A-Z]{16}|AIza[\w-]{35})"
)

_kept: set[str] = set()
_lock = threading.Lock()


def keep_secret(value: str) -> str:
    """Have `redacted` leave this value out from now on; returns it."""
    if value:
        with _lock:
            _kept.add(value)
    return value


def redacted(text: str, *, by_shape: bool = True) -> str:
    """The text without the secrets that this process was given, also as JSON writes them.

    They are those of `keep_secret`, and the values of environment variables named like secrets (HF_TOKEN).

    Args:
        text: what is to be written or shown.
        by_shape: leave out all else that looks like a key, too; not for data, which stay what they are.

    >>> redacted(f"Bearer {keep_secret('key-of-the-example')} was refused")
    'Bearer [secret] was refused'
    """
    for value in sorted(_secrets(), key=len, reverse=True):  # one may begin another
        for written in {value, value.replace("/", "\\/")}:
            if written in text:
                text = text.replace(written, MARK)
    return KEY_SHAPE.sub(MARK, text) if by_shape else text


def redacted_traceback(error: BaseException) -> str:
    """What Python would print of an error nobody expected, without secrets."""
    return redacted("".join(traceback.format_exception(error)))


def looks_like_a_key(text: str) -> bool:
    """Whether a text has the shape of a key that a service hands out.

    >>> looks_like_a_key("OPENAI_API_KEY"), looks_like_a_key("hf_" + "a1" * 17)
    (False, True)
    """
    return KEY_SHAPE.fullmatch(text.strip()) is not None


def _secrets() -> set[str]:
    of_environment = {
        value.strip()
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value.strip()) >= SHORTEST
    }
    with _lock:
        return _kept | of_environment
