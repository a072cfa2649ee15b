"""Requests and answers of the page, and of the API, as the door before them sees them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

BODY_TIME = 30  # seconds
STATIC = ("/assets/", "/static/", "/svelte/")
_DROPPED = ("x-forwarded", "x-gradio", "x-ip", "x-real-ip", "x-direct", "x-original", "forwarded")
_FOLDERS = re.compile(r"(?<![\w.:/<])(?:[A-Za-z]:)?[/\\](?:[^/\\\s:'\"<>]+[/\\])+")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), display-capture=(), usb=()",
    "x-dns-prefetch-control": "off",
    "x-robots-tag": "noindex",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; sandbox"
_FORM = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
_PAGE = (
    "default-src 'none'; script-src 'self' 'nonce-{}'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "manifest-src 'self'; form-action 'self'; base-uri 'self'; object-src 'none'; frame-ancestors 'none'"
)


def public(error: Exception) -> str:
    """What visitors are told of an error: one line, of paths only the last part."""
    return _FOLDERS.sub("", " ".join(str(error).split()))[:600]


class Refused(Exception):
    """A request that is not answered: its status, and why in one line."""

    def __init__(self, status: int, words: str, *headers: tuple[str, str]) -> None:
        super().__init__(words)
        self.status, self.words, self.headers = status, words, headers


class Request:
    """An HTTP request. ``headers`` as they came; ``scope`` is what the page gets of it: neither headers of proxies,
    which any visitor can write, nor other ``keys`` of the query."""

    def __init__(self, scope: Any, receive: Any, keys: Collection[str] = ()) -> None:
        raw = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        self.headers = dict(raw)
        if sum(name == "host" for name, _ in raw) != 1 or sum(name == "origin" for name, _ in raw) > 1:
            raise Refused(400, "One Host is needed, and at most one Origin.")
        self.method, self.path = scope["method"], scope["path"]
        self.client = (scope.get("client") or ("",))[0]
        dropped = (*_DROPPED, "accept-encoding") if self.path == "/" else _DROPPED
        self._kept = [(name, value) for name, value in raw if not name.startswith(dropped)]
        try:
            self._query = dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=32))
        except ValueError:
            raise Refused(400, "the request: its query has too many fields.") from None
        named = self.headers.get("x-forwarded-host", "").partition(",")[0].strip()
        if named:  # has been checked when this is passed on
            self._kept = [(name, named if name == "host" else value) for name, value in self._kept]
        secure = self.headers.get("x-forwarded-proto", "") == "https"
        query = urlencode({key: value for key, value in self._query.items() if key in keys})
        self.scope = dict(scope) | {"query_string": query.encode(), "scheme": "https" if secure else scope["scheme"]}
        self._headed()
        self._receive, self._body = receive, None
        self._most, self._got, self._answer = None, 0, None
        self.over = False

    @property
    def queried(self) -> tuple[str, ...]:
        """The keys of the query, of those too that are not passed on."""
        return tuple(self._query)

    def query(self, key: str) -> str:
        """A value of the query."""
        return self._query.get(key, "")

    def cookie(self, name: str) -> str:
        """A cookie, or nothing."""
        try:
            found = SimpleCookie(self.headers.get("cookie", "")).get(name)
        except CookieError:
            return ""
        return "" if found is None else found.value

    def length(self) -> int:
        """The number of bytes that the body is said to have; 0 if it isn't said."""
        said = self.headers.get("content-length", "0")
        return int(said) if said.isascii() and said.isdigit() and len(said) < 19 else 1 << 62

    async def body(self, most: int, said: str = "", seconds: float = BODY_TIME) -> bytes:
        """The whole body. Raises Refused if it is larger (``said``), or takes too long to come."""
        said = said or f"Larger than the {most >> 10} KB that a request may have."
        if self.length() > most:
            raise Refused(413, said)
        data, more = bytearray(), True
        try:
            async with asyncio.timeout(seconds):
                while more:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        raise Refused(400, "The request ended early.")
                    data += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(data) > most:
                        raise Refused(413, said)
        except TimeoutError:
            raise Refused(408, "The request took too long.") from None
        return bytes(data)

    def again(self, body: bytes) -> None:
        """Pass on the body that was read, as it came."""
        self._body = body

    def replace(self, body: bytes) -> None:
        """Pass on this body instead of the one that came."""
        self._body = body
        self._kept = [
            pair for pair in self._kept if pair[0] not in ("content-length", "transfer-encoding", "content-type")
        ]
        self._kept += [("content-length", str(len(body))), ("content-type", "application/json")]
        self._headed()

    def bound(self, most: int, said: str, answer: Answer) -> None:
        """Raise Refused when more bytes come than that, whatever the request says of its length."""
        self._most, self._said, self._answer = most, said, answer

    async def receive(self) -> Any:
        """The messages of ASGI."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        self._got += len(message.get("body", b""))
        if self._most is not None and self._got > self._most and self._answer is not None:
            self.over = self._answer.muted = True
            raise Refused(413, self._said)
        return message

    def _headed(self) -> None:
        self.scope["headers"] = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._kept]


class Answer:
    """What is sent: with the headers that every answer has. ``number``: of the scripts of the page itself; ``kept``: the
    body so far, if not None; ``muted``: nothing more is sent."""

    def __init__(self, send: Any, path: str) -> None:
        self._send, self._static = send, path.startswith(STATIC)
        self.begun = self.muted = False
        self.number = ""
        self.kept: bytes | None = None
        self.extra: list[tuple[str, str]] = []
        self._start: Any = None
        self._page = b""

    async def __call__(self, message: Any) -> None:
        if self.muted:
            return
        if message["type"] == "http.response.start":
            self._start = dict(message)
            html = any(n.lower() == b"content-type" and v.startswith(b"text/html") for n, v in message["headers"])
            self.number = self.number if html else ""
            if not self.number:
                await self._begin(_PAGE.format("none") if html else _NOTHING)
            return
        if message["type"] != "http.response.body":
            return
        if self.kept is not None:
            self.kept = (self.kept + message.get("body", b""))[: 1 << 20]
        if not self.number:
            await self._send(message)
            return
        self._page += message.get("body", b"")
        if not message.get("more_body", False):
            body = _numbered(self._page, self.number)
            headers = [pair for pair in self._start["headers"] if pair[0].lower() != b"content-length"]
            length = [(b"content-length", str(len(body)).encode())] if self._page else []
            self._start["headers"] = [*headers, *length]
            await self._begin(_PAGE.format(self.number))
            await self._send({"type": "http.response.body", "body": body})

    async def words(self, status: int, words: str, *headers: tuple[str, str], html: bool = False) -> None:
        """A whole answer of one line, or of a form."""
        body = words.encode("utf-8", "replace")
        kind = "text/html; charset=utf-8" if html else "text/plain; charset=utf-8"
        own = [] if any(name == "content-type" for name, _ in headers) else [("content-type", kind)]
        own = [*own, ("content-length", str(len(body))), *headers]
        self._start = {"type": "http.response.start", "status": status, "headers": _bytes(own)}
        self.muted = False
        await self._begin(_FORM if html else _NOTHING)
        await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, policy: str) -> None:
        kept = [
            (name, value)
            for name, value in self._start["headers"]
            if not name.lower().startswith((b"access-control-", b"server"))
            and name.lower().decode("latin-1") not in _HEADERS
        ]
        if not self._static:
            kept = [pair for pair in kept if pair[0].lower() != b"cache-control"]
            self.extra.append(("cache-control", "no-store"))
        # Without a referrer a browser sends a form with "Origin: null", which is nobody's.
        common = _HEADERS | ({"referrer-policy": "same-origin"} if policy == _FORM else {})
        fixed = [*common.items(), ("content-security-policy", policy), *self.extra]
        self.begun = True
        await self._send(self._start | {"headers": [*kept, *_bytes(fixed)]})


def _bytes(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _numbered(page: bytes, number: str) -> bytes:
    """The page with its scripts numbered, and without what its maker would fetch from elsewhere."""
    page = re.sub(rb"<link\b[^>]*(?:preconnect|dns-prefetch|https?://)[^>]*>", b"", page)
    page = re.sub(rb"<script\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>\s*</script>", b"", page)
    return re.sub(rb"<script\b", f'<script nonce="{number}"'.encode(), page)
