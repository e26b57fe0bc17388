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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

    @property
    def is_set(self) -> bool:
        """Whether anything is bounded."""
        return any(each is not None for each in (self.requests, self.tokens, self.cost))

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
    """A file of tries and replies; thread-safe.

    Several ledgers, also those of other processes, may buy replies into one file: each reads what the others
    wrote before it asks. Inside a `with` block no other ledger writes to the file. The file is made when
    something is written.

    Args:
        path: the file.
        bound: of all that the file tells of, earlier runs included.
        version: of the words that are asked with; a file that holds replies to other words is refused.
            Replies without a version go with any.

    Raises:
        DataError: the file holds something else, or replies to another version.
    """

    def __init__(self, path: str | Path, bound: Bound, *, version: str = "") -> None:
        self.path, self.bound, self.version = Path(path), bound, version
        self._replies: dict[str, Mapping[str, Any]] = {}
        self._pending: dict[str, threading.Lock] = {}
        self._changed = threading.Condition()
        self._in_flight = 0
        self._open_tries: dict[str, list[Spent]] = {}
        self._descriptor: int | None = None
        self._bytes_read = self._lines_read = 0
        self.spent = self.earlier = Spent()
        if self.path.exists():
            with explained_os_errors(self.path), self.path.open("rb") as stream:
                self._read_on(stream.fileno())
        self.earlier = self.spent

    def __enter__(self) -> Self:
        self._descriptor = self._opened()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read_on(self._descriptor)
        except BlockingIOError:
            os.close(self._descriptor)
            raise RunFolderError(
                f"{self.path}: another process buys replies into it. Wait for it, or name another --out."
            ) from None
        except BaseException:
            os.close(self._descriptor)
            raise
        self.earlier = self.spent
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

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
            if name not in self._replies:
                with self._turn():
                    pass  # another ledger may have bought it
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
            if event == "unpaid":
                self._write({"unpaid": name})
            is_open = False
            self._landed()

        try:
            content = fetch(watch)
            try:
                found = {"text": read(content)}
            except RefusedError as error:
                found = {"failure": str(error)}
            used = _used(content.get("usage"), most)
            version = {"version": self.version} if self.version else {}
            usage = [used.tokens_in, used.tokens_out]
            return self._write({"reply": name, **found, "usage": usage, **version})
        finally:
            if is_open:
                self._landed()

    def _reserve(self, name: str, most: Spent) -> None:
        """Set the most aside that a request can cost; waits where others in flight may leave enough."""
        with self._changed:
            while True:
                with self._turn() as descriptor:
                    passed = self.bound.passed_by(self.spent + most)
                    if not passed:
                        tokens = [most.tokens_in, most.tokens_out]
                        self._append(descriptor, {"asked": name, "most": tokens})
                        self._in_flight += 1
                        return
                if not self._in_flight:
                    raise BoundReachedError(
                        f"one more request could pass {passed}: {self.spent.requests:,} requests were made, "
                        f"with {self.spent.tokens_in + self.spent.tokens_out:,} tokens"
                    )
                self._changed.wait()

    def _landed(self) -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def _write(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._turn() as descriptor:
            self._append(descriptor, record)
        return record

    @contextmanager
    def _turn(self) -> Iterator[int]:
        """The open file, which no other ledger writes to meanwhile, read to its end."""
        with self._changed:
            is_held = self._descriptor is not None
            descriptor = self._opened() if self._descriptor is None else self._descriptor
            try:
                if not is_held:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                self._read_on(descriptor)
                yield descriptor
            finally:
                if not is_held:
                    os.close(descriptor)

    def _opened(self) -> int:
        with explained_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def _append(self, descriptor: int, record: Mapping[str, Any]) -> None:
        """Append a line, on the disk when this returns; where that fails, nothing of it."""
        line = json.dumps(record).encode() + b"\n"
        with explained_os_errors(self.path):
            end = os.fstat(descriptor).st_size
            if end > self._bytes_read:  # what a kill cut short is a line of its own
                line = b"\n" + line
            try:
                while line:
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        self._read_on(descriptor)

    def _read_on(self, descriptor: int) -> None:
        """Take in the whole lines that are not read yet."""
        with explained_os_errors(self.path), open(descriptor, "rb", closefd=False) as stream:
            if os.fstat(descriptor).st_size < self._bytes_read:  # somebody removed the file
                self._bytes_read = self._lines_read = 0
            stream.seek(self._bytes_read)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._lines_read += 1
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # what a kill cut short
            try:
                self._take(record)
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{self.path}: line {self._lines_read} is no entry of a file of bought replies. Name "
                    "another --out (`handbook data label`) or `cache` (a judge)."
                ) from None
            self._check_version(record)
        self._bytes_read += len(whole)

    def _take(self, record: Mapping[str, Any]) -> None:
        """Count an entry; a try costs the most it can until more is known."""
        if "asked" in record:
            most = Spent(1, *map(int, record["most"]))
            self._open_tries.setdefault(record["asked"], []).append(most)
            self.spent += most
            return
        # files of judges once held no tries, and no tokens
        is_of_old = "request" in record
        name = record["request"] if is_of_old else record.get("unpaid") or record["reply"]
        if self._open_tries.get(name):
            self.spent -= self._open_tries[name].pop()
        if "unpaid" in record:
            return
        self.spent += Spent(1, *map(int, record.get("usage", (0, 0))))
        self._replies[name] = {"text": str(record["reply"])} if is_of_old else record

    def _check_version(self, record: Mapping[str, Any]) -> None:
        found = record.get("version", self.version)
        if found != self.version:
            raise DataError(
                f"{self.path}: holds replies to another version of the judge's prompt ('{found}', now "
                f"'{self.version}'), which are not to be mixed with new ones. Name another file as `cache`."
            )

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
