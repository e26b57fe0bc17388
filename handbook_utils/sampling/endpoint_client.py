"""Requests to a server that speaks OpenAI's HTTP API: retried where that can help, told apart where not."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx2

from handbook_utils.errors import DataError, ModelError, RecipeError
from handbook_utils.redaction import keep_secret, redacted
from handbook_utils.schema.engines import LOOPBACK

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
# the server is busy, restarting, or lost the request: asking again may help
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# key, right or name are wrong: no other request would fare better
HOPELESS = frozenset({401, 403, 404, 405})

Answer = TypeVar("Answer")
# what becomes of a try: it is about to be sent; it was not answered, so nothing was sold; its answer was lost
# on the way, or was none, and may have been paid for
TryEvent = Literal["sent", "unpaid", "lost"]
Watch = Callable[[TryEvent], None]
_loops: dict[int, asyncio.AbstractEventLoop] = {}
_lock = threading.RLock()  # a client that goes may be collected while it is held


class RefusedError(DataError):
    """The server will not answer this one request, or answers with what is no answer."""


@dataclass(frozen=True)
class EndpointClient:
    """Posts JSON to one server, or asks it for some; thread-safe.

    Requests run on an event loop, since only there can a try be ended at its deadline whatever the server
    does: a plain read timeout begins anew with every byte.

    Attributes:
        url: up to /v1.
        key: sent as a bearer token; None for none. It is part of no message, record or representation.
        timeout_s: for one try, from connecting to the answer's last byte.
        attempts: tries of one request.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    attempts: int = 6
    _client: httpx2.AsyncClient = field(init=False, repr=False)

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {keep_secret(self.key)}"} if self.key else {}
        client = httpx2.AsyncClient(
            headers=headers,
            timeout=None,  # `_answered` has one for all of it
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
            # a proxy of the environment knows nothing of this machine's own ports
            trust_env=urlsplit(self.url).hostname not in LOOPBACK,
            follow_redirects=False,  # the key is for the server that the recipe names
        )
        object.__setattr__(self, "_client", client)
        weakref.finalize(self, lambda: _scheduled(client.aclose())).atexit = False

    def post(self, path: str, body: Mapping[str, Any], watch: Watch | None = None) -> dict[str, Any]:
        """Post a request until it is answered.

        Args:
            path: below the url, such as "/chat/completions".
            body: as JSON.
            watch: told of each try; what it raises ends the request.
        Returns:
            The JSON object that came back.
        Raises:
            RefusedError: the server refuses this request, or its answers were not JSON, to the last try.
            ModelError: the server cannot be reached, is overloaded to the last try, or takes no request of
                this key and model.
        """
        return self._request("POST", path, body, watch or _no_watch)

    def get(self, path: str) -> dict[str, Any]:
        """Ask for what is at a path below the url, such as "/models"; returns and raises as `post`."""
        return self._request("GET", path, None, _no_watch)

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, tell: Watch) -> dict[str, Any]:
        for attempt in range(1, self.attempts + 1):
            is_last = attempt == self.attempts
            tell("sent")
            try:
                response = _scheduled(self._answered(method, path, body)).result()
            except (httpx2.TransportError, httpx2.DecodingError, TimeoutError) as error:
                is_unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                tell("unpaid" if is_unsent else "lost")
                if is_last:
                    raise ModelError(self._gave_up(self._trouble(error))) from None
                time.sleep(wait_before(attempt, None))
                continue
            if not response.is_success:
                tell("unpaid")
            if response.status_code in PASSING:
                if is_last:
                    raise ModelError(self._gave_up(_said(response)))
                time.sleep(wait_before(attempt, response.headers.get("Retry-After")))
                continue
            self._raise_for(response)
            content = _json_object(response)
            if content is not None:
                return content
            tell("lost")
            if not is_last:
                time.sleep(wait_before(attempt, None))
        raise RefusedError(f"{self.url}: {self.attempts} times the answer was no JSON object")

    def close(self) -> None:
        """Close the connections."""
        _scheduled(self._client.aclose()).result()

    async def _answered(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        content = None if body is None else dict(body)
        async with asyncio.timeout(self.timeout_s):
            return await self._client.request(method, self.url + path, json=content)

    def _trouble(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"Timeout, no whole answer within {self.timeout_s:g} s (`timeout_s`)"
        return redacted(f"{type(error).__name__}: {error}")

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


def _no_watch(_: TryEvent) -> None:
    """Nobody keeps accounts."""


def _scheduled(request: Coroutine[Any, Any, Answer]) -> Future[Answer]:
    """Run it on this process's event loop for requests, which has a thread of its own."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:  # the first request, or the first one after a fork, which takes no threads along
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="requests", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(request, loop)


def key_from(variable: str | None, *, where: str = "engine") -> str | None:
    """The key that an environment variable holds, without spaces or line breaks around it.

    Raises:
        RecipeError: a variable is named, and it is empty, not set, or holds what no HTTP header can carry.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").removeprefix("\ufeff").strip()  # a file's mark, from `$(cat key.txt)`
    if not key:
        raise RecipeError(f"{where}.key_env: the environment variable '{variable}' holds no key. Set it.")
    keep_secret(key)
    wrong = re.search(r"[^!-~]", key)
    if wrong:
        kind = "a space or line break" if wrong[0].isspace() else "no printable ASCII character"
        raise RecipeError(
            f"{where}.key_env: what the environment variable '{variable}' holds cannot be sent as a key: "
            f"character {wrong.start() + 1} of {len(key)} is {kind}. Set it to the key alone."
        )
    return key


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
        seconds = float(retry_after)
    except ValueError:
        pass
    else:
        return None if math.isnan(seconds) else seconds
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # junk, or a date without a time zone
        return None


def _json_object(response: httpx2.Response) -> dict[str, Any] | None:
    try:
        text = response.content.decode(json.detect_encoding(response.content))
        content = json.loads(redacted(text, by_shape=False))  # a server may echo what it was sent
    except (ValueError, RecursionError):  # no JSON, or nested too deeply
        return None
    return content if isinstance(content, dict) else None


def text_of(content: str) -> str:
    """A text of a server, fit to be kept in a file.

    Raises:
        RefusedError: it has half a surrogate pair, which no file of text can hold.
    """
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefusedError(
            f"the server's answer is no text: half a surrogate pair stands at place {error.start + 1}"
        ) from None
    return content


def _said(response: httpx2.Response) -> str:
    text = redacted(" ".join(response.text.split()))[:200]
    return f"HTTP {response.status_code}" + (f", {text}" if text else "")
