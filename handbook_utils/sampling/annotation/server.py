"""The server behind the page to compare answers, for a few people who trust each other.

It listens on this machine alone unless another host is named; then every request needs the token that is
printed once. Whatever is not meant for it is refused: requests under another name than its own (a page
elsewhere whose name was pointed here), and requests that another page has a browser send.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from handbook_utils.errors import HandbookError, LaunchError
from handbook_utils.sampling.annotation.guideline import Block
from handbook_utils.sampling.annotation.session import Session
from handbook_utils.schema.engines import LOOPBACK

COOKIE, TOKEN_HEADER = "handbook_compare", "X-Handbook-Token"
LONGEST_BODY = 65_536
IDLE_S = 60.0
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Who may ask the server.

    Attributes:
        host: that it listens on.
        token: that a browser has to bring; None on this machine alone.
        page_token: that the page itself sends, so that no other page can have its reader's browser ask.
    """

    host: str
    token: str | None
    page_token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @classmethod
    def to(cls, host: str) -> Access:
        """Without a token on this machine alone, with a random one elsewhere."""
        return cls(host, None if host in LOOPBACK else secrets.token_urlsafe(24))

    def is_ours(self, named: str) -> bool:
        """Whether a request's Host header is a name of this server, whatever the port.

        >>> Access("127.0.0.1", None).is_ours("localhost:80"), Access("127.0.0.1", None).is_ours("evil.org")
        (True, False)
        """
        try:
            name = urlsplit(f"//{named}").hostname or ""
        except ValueError:
            return False
        if name in LOOPBACK or name == self.host.lower():
            return True
        return self.token is not None and (_is_address(name) or name == socket.gethostname().lower())

    def has_token(self, cookies: str) -> bool:
        """Whether a browser's cookies hold the token, or none is needed."""
        if self.token is None:
            return True
        try:
            found = SimpleCookie(cookies).get(COOKIE)
        except CookieError:
            return False
        return found is not None and _same(found.value, self.token)


class CompareServer(ThreadingHTTPServer):
    """Serves one session.

    Args:
        session: what is compared.
        access: where to listen, and who may ask.
        port: 0 for any that is free.
        guideline: shown beside the answers; [] for none.

    Raises:
        LaunchError: the port is taken, or there is no such host.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, session: Session, access: Access, port: int, guideline: list[Block]) -> None:
        self.session, self.access, self.guideline = session, access, guideline
        try:
            family = socket.getaddrinfo(access.host, port, type=socket.SOCK_STREAM)[0][0]
            self.address_family = family
            super().__init__((access.host, port), _Handler)
        except OSError as error:
            raise LaunchError(
                f"cannot listen on {access.host}, port {port}: {error.strerror or error}. Name another "
                "--port (0 takes any that is free), or another --host."
            ) from None

    @property
    def url(self) -> str:
        """The address to open, with the token where one is needed."""
        host, port = self.server_address[:2]
        name = f"[{host!s}]" if ":" in str(host) else str(host)
        if self.access.host in ("0.0.0.0", "::"):
            name = socket.gethostname()
        token = f"?token={self.access.token}" if self.access.token else ""
        return f"http://{name}:{port}/{token}"


class _Handler(BaseHTTPRequestHandler):
    server: CompareServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "handbook", ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        """The page and its parts."""
        if not self._is_named_well():
            return
        address = urlsplit(self.path)
        access = self.server.access
        given = parse_qs(address.query).get("token", [""])[0]
        if address.path == "/" and access.token and _same(given, access.token):
            self._answer(
                HTTPStatus.SEE_OTHER,
                b"",
                "text/plain",
                {"Location": "/", "Set-Cookie": _cookie(access.token)},
            )
        elif not access.has_token(self.headers.get("Cookie", "")):
            text = "Open the whole address that the command printed, with its token."
            self._answer(HTTPStatus.FORBIDDEN, text.encode(), "text/plain")
        elif address.path in _PARTS:
            part = _PARTS[address.path]
            content = _part(part)
            if part == "compare.html":
                content = content.replace(b"PAGE_TOKEN", access.page_token.encode())
            self._answer(HTTPStatus.OK, content, _TYPES[part.rpartition(".")[2]])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here.")

    def do_POST(self) -> None:
        """What the page asks for."""
        if not self._is_named_well() or (body := self._body()) is None:
            return
        access = self.server.access
        is_page = _same(self.headers.get(TOKEN_HEADER, ""), access.page_token)
        if not is_page or not access.has_token(self.headers.get("Cookie", "")) or not self._is_same_origin():
            self._refuse(HTTPStatus.FORBIDDEN, "the command was started again. Reload the page.")
            return
        ask = _ASKED.get(self.path)
        if ask is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here.")
            return
        try:
            self._reply(HTTPStatus.OK, ask(self.server, body))
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except (HandbookError, OSError) as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _is_named_well(self) -> bool:
        """Refuse a request under another name, which a page elsewhere may have pointed to this machine."""
        if self.server.access.is_ours(self.headers.get("Host", "")):
            return True
        self.close_connection = True
        self._refuse(
            HTTPStatus.MISDIRECTED_REQUEST, "this server has another name. Open the address that was printed."
        )
        return False

    def _is_same_origin(self) -> bool:
        origin = self.headers.get("Origin")
        return origin is None or urlsplit(origin).netloc == self.headers.get("Host")

    def _body(self) -> Mapping[str, Any] | None:
        """The JSON object that was sent; None once it was refused."""
        try:
            length = int(self.headers.get("Content-Length", ""))
            is_fit = 0 <= length <= LONGEST_BODY and self.headers.get_content_type() == "application/json"
            content = json.loads(self.rfile.read(length)) if is_fit else None
        except (ValueError, RecursionError, OSError):
            content = None
        if isinstance(content, dict):
            return content
        self.close_connection = True  # what is left of the body is not read
        self._refuse(HTTPStatus.BAD_REQUEST, "expected a small JSON object.")
        return None

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._reply(status, {"error": why})

    def _reply(self, status: HTTPStatus, record: Mapping[str, Any]) -> None:
        self._answer(status, json.dumps(record).encode(), "application/json")

    def _answer(
        self, status: HTTPStatus, content: bytes, kind: str, more: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        sized = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        for name, value in {**sized, **_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a log of addresses would hold the token."""


def _ask_show(server: CompareServer, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return server.session.show(body.get("person")) | {"guideline": server.guideline}


def _ask_judge(server: CompareServer, body: Mapping[str, Any]) -> Mapping[str, Any]:
    given = (body.get(name) for name in ("person", "pair", "choice", "seconds"))
    return server.session.judge(*given)


def _ask_undo(server: CompareServer, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return server.session.undo(body.get("person"), body.get("said"))


_ASKED: dict[str, Any] = {"/api/show": _ask_show, "/api/judge": _ask_judge, "/api/undo": _ask_undo}
_PARTS: dict[str, str] = {"/": "compare.html", "/compare.css": "compare.css", "/compare.js": "compare.js"}


def _part(name: str) -> bytes:
    return files("handbook_utils.sampling.annotation").joinpath("page", name).read_bytes()


def _cookie(token: str) -> str:
    return f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
