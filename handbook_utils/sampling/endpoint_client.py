"""Requests to a server that speaks OpenAI's HTTP API: retried where that can help, told apart where not."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2

from handbook_utils.errors import DataError, ModelError, RecipeError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
# the server is busy, restarting, or lost the request: asking again may help
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# key, right or name are wrong: no other request would fare better
HOPELESS = frozenset({401, 403, 404, 405})


class RefusedError(DataError):
    """The server will not answer this one request, or answers with what is no answer."""


@dataclass(frozen=True)
class EndpointClient:
    """Posts JSON to one server; thread-safe.

    Attributes:
        url: up to /v1.
        key: sent as a bearer token; None for none. It is part of no message, record or representation.
        timeout_s: for one try.
        attempts: tries of one request.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    attempts: int = 6
    _client: httpx2.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        client = httpx2.Client(
            headers=headers,
            timeout=self.timeout_s,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
            # a proxy of the environment knows nothing of this machine's own ports
            trust_env=urlsplit(self.url).hostname not in LOOPBACK,
            follow_redirects=False,  # the key is for the server that the recipe names
        )
        object.__setattr__(self, "_client", client)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post a request until it is answered.

        Args:
            path: below the url, such as "/chat/completions".
            body: as JSON.
        Returns:
            The JSON object that came back.
        Raises:
            RefusedError: the server refuses this request, or its answers were not JSON, to the last try.
            ModelError: the server cannot be reached, is overloaded to the last try, or takes no request of
                this key and model.
        """
        for attempt in range(1, self.attempts + 1):
            is_last = attempt == self.attempts
            try:
                response = self._client.post(self.url + path, json=dict(body))
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                if is_last:
                    raise ModelError(self._gave_up(f"{type(error).__name__}: {error}")) from None
                time.sleep(wait_before(attempt, None))
                continue
            if response.status_code in PASSING:
                if is_last:
                    raise ModelError(self._gave_up(_said(response)))
                time.sleep(wait_before(attempt, response.headers.get("Retry-After")))
                continue
            self._raise_for(response)
            content = _json_object(response)
            if content is not None:
                return content
            if not is_last:
                time.sleep(wait_before(attempt, None))
        raise RefusedError(f"{self.url}: {self.attempts} times the answer was no JSON object")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _raise_for(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        if response.status_code in HOPELESS or response.is_redirect:
            raise ModelError(
                f"{self.url}: {_said(response)}. Check the url, `model.name` and the variable of `key_env`."
            )
        raise RefusedError(f"{self.url}: {_said(response)}")

    def _gave_up(self, last: str) -> str:
        return (
            f"{self.url}: no answer in {self.attempts} attempts; the last: {last}. What was finished before "
            "is kept; run the same command again when the server answers."
        )


def key_from(variable: str | None, *, where: str = "engine") -> str | None:
    """The key that an environment variable holds.

    Raises:
        RecipeError: a variable is named, and it is empty or not set.
    """
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise RecipeError(f"{where}.key_env: the environment variable '{variable}' holds no key. Set it.")
    return os.environ[variable]


def wait_before(attempt: int, retry_after: str | None) -> float:
    """Seconds to wait after a failed attempt, counted from 1: as the server asks, else longer each time.

    >>> wait_before(1, "7")
    7.0
    >>> 0.25 <= wait_before(1, None) <= 0.5 and wait_before(30, "junk") <= 60
    True
    """
    asked = _seconds(retry_after) if retry_after else None
    if asked is not None:
        return min(max(asked, 0.0), LONGEST_WAIT_S)
    longest = min(FIRST_WAIT_S * 2.0 ** (attempt - 1), LONGEST_WAIT_S)
    # spread out, so that many waiting requests do not come back at one moment
    return longest * random.uniform(0.5, 1.0)


def _seconds(retry_after: str) -> float | None:
    """What a Retry-After header asks for, a number of seconds or a date (RFC 9110, 10.2.3); None for junk."""
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # junk, or a date without a time zone
        return None


def _json_object(response: httpx2.Response) -> dict[str, Any] | None:
    try:
        content = response.json()
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _said(response: httpx2.Response) -> str:
    text = " ".join(response.text.split())[:200]
    return f"HTTP {response.status_code}" + (f", {text}" if text else "")
