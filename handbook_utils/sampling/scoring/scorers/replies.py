"""Replies of a paid server, each bought once: a file of them, and a bound on how many may be bought."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from handbook_utils.errors import DataError
from handbook_utils.runs.atomic import explained_os_errors


class ReplyStore:
    """Replies by what was asked, kept in a file with one JSON object per line; thread-safe.

    A line is written as soon as its reply is there, so a killed run has lost none it paid for. The file holds
    requests' checksums and replies: no key, and no question.

    Args:
        path: the file; made where it is missing.
        max_requests: replies that the file may hold, those of earlier runs included.
        version: of the prompt that is asked with; a file that holds replies to another version is refused.

    Raises:
        DataError: the file holds replies to another version of the prompt.
    """

    def __init__(self, path: str | Path, *, max_requests: int, version: str = "") -> None:
        self.path, self._max, self._version = Path(path), max_requests, version
        self._lock = threading.Lock()
        self._pending: dict[str, threading.Lock] = {}
        self._replies = self._read()
        self._asked = len(self._replies)

    def __len__(self) -> int:
        return len(self._replies)

    def reply(self, body: Mapping[str, Any], fetch: Callable[[], str]) -> str:
        """The stored reply to a request, or a new one.

        Args:
            body: all that decides the reply.
            fetch: asks the server.
        Raises:
            DataError: a new reply would go beyond `max_requests`.
        """
        name = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with self._lock:
            pending = self._pending.setdefault(name, threading.Lock())
        with pending:  # whoever asks the same meanwhile waits for the one reply
            return self._bought(name, fetch)

    def _bought(self, name: str, fetch: Callable[[], str]) -> str:
        with self._lock:
            if name in self._replies:
                return self._replies[name]
            if self._asked >= self._max:
                raise DataError(
                    f"{self.path}: {self._asked} replies were asked for, and `max_requests` is {self._max}. "
                    "What was judged is kept there and costs nothing again: raise the bound to go on."
                )
            # reserved before it is asked for: a request that fails may have been paid for too
            self._asked += 1
        text = fetch()
        with self._lock:
            self._replies[name] = text
            version = {"version": self._version} if self._version else {}
            self._append({"request": name, "reply": text, **version})
        return text

    def _read(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        with explained_os_errors(self.path):
            content = self.path.read_text(encoding="utf-8")
        replies = {}
        for line in content.splitlines():
            try:
                record = json.loads(line)
                replies[record["request"]] = record["reply"]
            except (ValueError, KeyError, TypeError):  # what a kill cut short
                continue
            self._check_version(record)
        return replies

    def _check_version(self, record: Mapping[str, Any]) -> None:
        found = record.get("version", self._version)  # older files do not say
        if found != self._version:
            raise DataError(
                f"{self.path}: holds replies to another version of the judge's prompt ('{found}', now "
                f"'{self._version}'), which are not to be mixed with new ones. Name another file as `cache`."
            )

    def _append(self, record: Mapping[str, str]) -> None:
        with explained_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as stream:
                is_cut = stream.tell() > 0 and _last_byte(stream) != b"\n"
                stream.write(b"\n" * is_cut + json.dumps(record).encode() + b"\n")


def _last_byte(stream: Any) -> bytes:
    stream.seek(-1, 2)
    return bytes(stream.read(1))
