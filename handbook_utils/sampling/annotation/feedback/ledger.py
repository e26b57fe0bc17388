"""What a paid server was asked and has replied: each reply bought once, and a bound that is never passed.

Every try of a request is written down before it is sent, with the most that it can cost; what comes of it is
written behind it. So after a kill, too, the file tells what may have been spent: a try without a reply counts
as what it could have cost. The file holds checksums of requests, replies and counts: no key and no question.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from handbook_utils.errors import DataError, RunFolderError
from handbook_utils.runs.atomic import explained_os_errors
from handbook_utils.sampling.endpoint_client import RefusedError, TryEvent, Watch

PER = 1_000_000
# tokens that a chat template may put around a request, beside those of its texts
TEMPLATE_TOKENS = 256


class BoundReachedError(DataError):
    """One more request could cost more than is allowed."""


@dataclass(frozen=True)
class Spent:
    """Requests and their tokens; of a request whose reply was lost, the most that it can have cost."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(a - b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def _parts(self) -> tuple[int, int, int]:
        return self.requests, self.tokens_in, self.tokens_out


@dataclass(frozen=True)
class Bound:
    """The most that all requests of a file may come to; None for no bound.

    Attributes:
        requests: their number.
        tokens: read and written together.
        cost: in the currency of the prices.
        price_in: per million tokens read.
        price_out: per million tokens written.
    """

    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def cost_of(self, spent: Spent) -> float:
        """What it costs at these prices."""
        return (spent.tokens_in * self.price_in + spent.tokens_out * self.price_out) / PER

    def passed_by(self, spent: Spent) -> str:
        """Which bound this would pass, in words; "" for none."""
        if self.requests is not None and spent.requests > self.requests:
            return f"--max-requests {self.requests:,}"
        if self.tokens is not None and spent.tokens_in + spent.tokens_out > self.tokens:
            return f"--max-tokens {self.tokens:,}"
        if self.cost is not None and self.cost_of(spent) > self.cost:
            return f"--max-cost {self.cost:g}"
        return ""


def most_of(body: Mapping[str, Any]) -> Spent:
    """The most that one request can come to: no token is shorter than a byte.

    >>> most_of({"messages": [{"role": "user", "content": "four"}], "max_tokens": 10})
    Spent(requests=1, tokens_in=260, tokens_out=10)
    """
    texts = sum(len(str(message["content"]).encode()) for message in body["messages"])
    return Spent(1, texts + TEMPLATE_TOKENS, int(body["max_tokens"]))


class Ledger:
    """A file of tries and replies; thread-safe; one process at a time.

    Args:
        path: the file; made where it is missing.
        bound: of all that the file tells of, earlier runs included.

    Raises:
        RunFolderError: another process uses the file, or it cannot be written.
    """

    def __init__(self, path: Path, bound: Bound) -> None:
        self.path, self.bound = path, bound
        self._replies: dict[str, Mapping[str, Any]] = {}
        self._pending: dict[str, threading.Lock] = {}
        self._changed = threading.Condition()
        self._in_flight = Spent()
        with explained_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._lock()
            self.spent = self._read()
        except BaseException:
            os.close(self._descriptor)
            raise
        self.earlier = self.spent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def reply(
        self,
        body: Mapping[str, Any],
        *,
        url: str,
        fetch: Callable[[Watch], Mapping[str, Any]],
        read: Callable[[Mapping[str, Any]], str],
    ) -> str:
        """The stored reply to a request, or a new one.

        Args:
            body: of the request: all that decides the reply.
            url: of the server, which decides it as well.
            fetch: asks the server and tells of each try.
            read: the text of what the server sent, or a `RefusedError` that says why there is none.
        Raises:
            BoundReachedError: a new reply could pass the bound.
            RefusedError: the server refuses the request, or its reply holds no text; the latter was paid for,
                so the same is said without asking again.
        """
        content = json.dumps({"url": url, **body}, sort_keys=True)
        name = hashlib.sha256(content.encode()).hexdigest()
        with self._changed:
            pending = self._pending.setdefault(name, threading.Lock())
        with pending:  # whoever asks the same meanwhile waits for the one reply
            known = self._replies.get(name)
            if known is None:
                known = self._bought(name, most_of(body), fetch, read)
        if "failure" in known:
            raise RefusedError(str(known["failure"]))
        return str(known["text"])

    def _bought(
        self,
        name: str,
        most: Spent,
        fetch: Callable[[Watch], Mapping[str, Any]],
        read: Callable[[Mapping[str, Any]], str],
    ) -> Mapping[str, Any]:
        is_open = False

        def watch(event: TryEvent) -> None:
            nonlocal is_open
            if event == "sent":
                self._reserve(name, most)
                is_open = True
                return
            is_open = False
            self._settle(most, Spent() if event == "unpaid" else most)
            if event == "unpaid":
                self._write({"unpaid": name})

        try:
            content = fetch(watch)
        except BaseException:
            if is_open:
                self._settle(most, most)
            raise
        used = _used(content.get("usage"), most)
        self._settle(most, used)
        try:
            found = {"text": read(content)}
        except RefusedError as error:
            found = {"failure": str(error)}
        self._write({"reply": name, **found, "usage": [used.tokens_in, used.tokens_out]})
        self._replies[name] = found
        return found

    def _reserve(self, name: str, most: Spent) -> None:
        """Set the most aside that a request can cost; waits where others in flight may leave enough."""
        with self._changed:
            while passed := self.bound.passed_by(self.spent + self._in_flight + most):
                if not self._in_flight.requests:
                    raise BoundReachedError(
                        f"one more request could pass {passed}: {self.spent.requests:,} requests were made, "
                        f"with {self.spent.tokens_in + self.spent.tokens_out:,} tokens"
                    )
                self._changed.wait()
            self._in_flight += most
            try:
                self._write({"asked": name, "most": [most.tokens_in, most.tokens_out]})
            except BaseException:
                self._in_flight -= most
                raise

    def _settle(self, most: Spent, used: Spent) -> None:
        with self._changed:
            self._in_flight -= most
            self.spent += used
            self._changed.notify_all()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"{self.path}: another process buys replies into it. Wait for it, or name another --out."
            ) from None

    def _write(self, record: Mapping[str, Any]) -> None:
        """Append a line, on the disk when this returns; where that fails, nothing of it."""
        line = json.dumps(record).encode() + b"\n"
        with self._changed, explained_os_errors(self.path):
            end = os.fstat(self._descriptor).st_size
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, end)
                raise

    def _read(self) -> Spent:
        with explained_os_errors(self.path, reading=True):
            content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # what a kill cut short
            os.ftruncate(self._descriptor, len(whole))
        spent, open_tries = Spent(), Counter[str]()
        most: dict[str, Spent] = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                if "asked" in record:
                    most[record["asked"]] = Spent(1, *map(int, record["most"]))
                    open_tries[record["asked"]] += 1
                elif "unpaid" in record:
                    open_tries[record["unpaid"]] -= 1
                else:
                    self._replies[record["reply"]] = record
                    open_tries[record["reply"]] -= 1
                    spent += Spent(1, *map(int, record["usage"]))
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{self.path}: line {number} is no entry of `handbook data label`. Name another --out."
                ) from None
        for name, count in open_tries.items():
            for _ in range(count):
                spent += most[name]
        return spent

    def to_json(self) -> dict[str, Any]:
        """What was spent, in all and by this run."""
        return {
            **asdict(self.spent),
            "cost": self.bound.cost_of(self.spent),
            "this_run": asdict(self.spent - self.earlier),
        }


def _used(usage: Any, most: Spent) -> Spent:
    """What the server says that it was, or the most where it does not say."""
    said = usage if isinstance(usage, Mapping) else {}
    found = [said.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in found):
        return Spent(1, int(found[0] or 0), int(found[1] or 0))
    return most
