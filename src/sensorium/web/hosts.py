"""The names that the page has: requests for another Host, or from another Origin, are not for it.

A web site that a visitor opens can have its own name resolve to this machine (DNS rebinding), or send requests here: it
gives itself away by these two headers, which no script can set.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence

from sensorium.base.reading import printable
from sensorium.errors import SensoriumError

_NAME = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_][a-z0-9._-]*)(?::([0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}


class Foreign(Exception):
    """A request for another host, or from another site; says which header tells."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Hosts:
    """Own names: of this machine alone, the address that the page listens at, and ``allowed`` (NAME or NAME:PORT)."""

    def __init__(self, host: str, port: int, allowed: Sequence[str] = ()) -> None:
        self.port = port
        bare = host.strip("[]").lower()
        self.everywhere = bare in ("0.0.0.0", "::", "")
        self.own = {"localhost", "127.0.0.1", "::1"}
        self.own |= (
            {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"} if self.everywhere else {bare}
        )
        self.allowed: set[tuple[str, int | None]] = set()
        for one in allowed:
            found = _NAME.fullmatch(one.strip().lower())
            if found is None:
                raise SensoriumError(
                    f"--allow-host {printable(one)[:80]}: should be a name or NAME:PORT, without http:// and without a path."
                )
            self.allowed.add((found[1].strip("[]"), int(found[2]) if found[2] else None))

    def check(
        self, headers: Mapping[str, str], server: tuple[str, int] | None, method: str = "GET", path: str = "/"
    ) -> None:
        """Raise Foreign for a request that isn't for this page, or that another site sent. ``server``: the address of
        this machine that was connected to."""
        host = _split(headers.get("host", ""), "http")
        if host is None or not self._ours(host, server):
            raise Foreign(f"Host {printable(headers.get('host', ''))[:80]!r}")
        hosts = [host]
        if "x-forwarded-host" in headers:
            named = _split(headers["x-forwarded-host"].partition(",")[0], "http")
            if named is None or not self._ours(named, server):
                raise Foreign("X-Forwarded-Host")
            hosts.append(named)
        if "origin" in headers:
            scheme, _, rest = headers["origin"].lower().partition("://")
            origin = _split(rest, scheme) if scheme in _PORTS else None
            if origin is None or not (origin in hosts or self._permitted(origin)):
                raise Foreign("Origin")
        visits = method in ("GET", "HEAD") and path == "/" and headers.get("sec-fetch-mode", "navigate") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not visits:
            raise Foreign("Sec-Fetch-Site")

    def _permitted(self, host: tuple[str, int]) -> bool:
        return host in self.allowed or (host[0], None) in self.allowed

    def _ours(self, host: tuple[str, int], server: tuple[str, int] | None) -> bool:
        name, port = host
        if self._permitted(host):
            return True
        here = server is not None and self.everywhere and _same(name, server[0])
        return port == self.port and (name in self.own or here)


def _split(text: str, scheme: str) -> tuple[str, int] | None:
    found = _NAME.fullmatch(text.strip().lower())
    return None if found is None else (found[1].strip("[]").rstrip("."), int(found[2] or _PORTS[scheme]))


def _same(one: str, other: str) -> bool:
    """Whether two texts are the same address (IPv4 may be written within IPv6)."""
    try:
        a, b = (ipaddress.ip_address(text) for text in (one, other.partition("%")[0]))
    except ValueError:
        return False
    mapped = [x.ipv4_mapped or x if x.version == 6 else x for x in (a, b)]
    return mapped[0] == mapped[1]
