"""The password of the page: guesses that wait longer and longer, and the sessions of those who knew it."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from html import escape

USER = "sensorium"
LONGEST = 300.0  # seconds that one address waits at most
LONGEST_FOR_ALL = 30.0  # seconds that everybody waits at most: whoever guesses must not lock others out for long
SPARED = 8  # wrong guesses of all addresses together that nobody waits for
FORGOTTEN = 60.0  # seconds after which one wrong guess of all is forgotten
LASTS = 12 * 3600.0  # seconds of a session
_MOST_ADDRESSES, _MOST_SESSIONS = 10_000, 1000


class Login:
    """Who may see the page. Guesses are counted by address, and together, so that many addresses do not help.

    A guess within the wait is not looked at, be it right or wrong: its answer says nothing.
    """

    def __init__(self, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._password, self._clock = password.encode("utf-8", "surrogatepass"), clock
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self._wrong: OrderedDict[str, tuple[int, float]] = (
            OrderedDict()
        )  # address -> (guesses, when the next is looked at)
        self._all, self._all_until, self._all_at = 0.0, 0.0, clock()

    def wait(self, address: str) -> float:
        """Seconds until a guess from this address is looked at."""
        until = max(self._wrong.get(_network(address), (0, 0.0))[1], self._all_until)
        return max(0.0, until - self._clock())

    def guess(self, address: str, user: str, password: str) -> str | None:
        """The token of a new session; None if the guess is wrong. Only for an address that need not wait."""
        network, now = _network(address), self._clock()
        given = password.encode("utf-8", "surrogatepass")
        known = hmac.compare_digest(given, self._password)
        if not hmac.compare_digest(user.strip().encode("utf-8", "surrogatepass"), USER.encode()) or not known:
            self._all = max(0.0, self._all - (now - self._all_at) / FORGOTTEN) + 1
            self._all_at = now
            wrong = self._wrong.pop(network, (0, 0.0))[0] + 1
            self._wrong[network] = wrong, now + min(LONGEST, 2.0 ** min(wrong - 1, 20))
            if self._all > SPARED:
                self._all_until = now + min(LONGEST_FOR_ALL, 2.0 ** min(self._all - SPARED - 1, 20))
            while len(self._wrong) > _MOST_ADDRESSES:
                self._wrong.popitem(last=False)
            return None
        self._wrong.pop(network, None)
        token = secrets.token_urlsafe(32)
        self._sessions[token] = now + LASTS
        while len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return token

    def knows(self, token: str) -> bool:
        """Whether the token is of a session that goes on."""
        until = self._sessions.get(token, 0.0)
        if until <= self._clock():
            self._sessions.pop(token, None)
            return False
        return True

    def leave(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(token, None)


def _network(address: str) -> str:
    """What one visitor has: an IPv4 address, or a /64 of IPv6."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 6 and not found.is_loopback:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def login_page(words: str = "") -> str:
    """The form that asks for the password."""
    said = f'<p role="alert">{escape(words)}</p>' if words else ""
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sensorium</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root{{color-scheme:light dark;font-family:ui-sans-serif,system-ui,sans-serif}}
form{{max-width:20rem;margin:15vh auto;display:grid;gap:.8rem}}
input,button{{font:inherit;padding:.5rem;width:100%;box-sizing:border-box}}p{{margin:0;color:#c33}}</style></head>
<body><form method="post" action="login"><h1>Sensorium</h1>{said}
<label>User name<input name="username" autocomplete="username" value="{USER}"></label>
<label>Password<input name="password" type="password" autocomplete="current-password" autofocus></label>
<button>Login</button></form></body></html>"""
