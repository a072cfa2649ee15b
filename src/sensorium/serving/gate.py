"""What stands before the API's endpoints.

In this order: Host and Origin are the server's own; the key was given; the path, the method and the options are known; there is
a place among those who wait; the body is no larger than it may be, and comes in time. Whatever else is refused in one
line of JSON, {"error": "..."}, and every answer carries the headers that keep a browser from sharing it with other sites.
"""

from __future__ import annotations

import hmac
from typing import Any, NamedTuple

from sensorium.base.reading import printable
from sensorium.serving.endpoints import JSON, refusal
from sensorium.serving.turns import Turns
from sensorium.web.door import Door
from sensorium.web.hosts import Hosts
from sensorium.web.wire import Answer, Refused, Request

BODY_TIME = 60.0  # seconds that a body may take to come: it holds a place meanwhile
MOST_JSON = 1 << 16  # bytes


class Path(NamedTuple):
    """The method of a path, the options that its address may have, and whether its body is pictures."""

    method: str
    options: tuple[str, ...] = ()
    pictures: bool = False


PATHS = {
    "/health": Path("GET"),
    "/": Path("GET"),
    "/docs": Path("GET"),
    "/openapi.json": Path("GET"),
    "/runs": Path("GET"),
    "/predict": Path("POST", ("run", "top"), True),
    "/detect": Path("POST", ("run", "threshold"), True),
    "/embed": Path("POST", ("run",), True),
    "/generate": Path("POST", ("run",)),
}
_OPEN = ("/health",)
_PAGES = ("/", "/docs")


class Gate(Door):
    """ASGI application that passes on what the endpoints answer. ``key``: None for none; ``upload``: maximum bytes of a
    request; ``manual``: the page that lists the endpoints, in HTML."""

    what = "server"
    keys = ("run", "top", "threshold")

    def __init__(self, app: Any, hosts: Hosts, key: str | None, upload: int, turns: Turns, manual: str) -> None:
        super().__init__(app, hosts)
        self.key, self.upload, self.turns, self.manual = key, upload, turns, manual

    async def _answer(self, request: Request, answer: Answer) -> None:
        if request.path not in _OPEN:
            self._require_key(request)  # first: who has none learns nothing, not even which paths there are
        path = PATHS.get(request.path)
        if path is None:
            raise Refused(404, "Not found; GET / lists what there is.")
        if request.method != path.method:
            raise Refused(405, f"{request.path} takes {path.method}.", ("allow", path.method))
        if unknown := next((key for key in request.queried if key not in path.options), None):
            takes = f"it takes {', '.join(path.options)}" if path.options else "it takes none"
            raise Refused(400, f"'{printable(unknown)[:40]}' is no option of {request.path}: {takes}.")
        if request.path in _PAGES:
            await answer.words(200, self.manual, html=True)
        elif path.method == "GET":
            await self.app(request.scope, request.receive, answer)
        else:
            with self.turns.place():
                most = self.upload if path.pictures else MOST_JSON
                size = f"{most >> 20} MB" if path.pictures else f"{most >> 10} KB"
                request.again(await request.body(most, f"larger than the {size} that a request may have.", BODY_TIME))
                await self.app(request.scope, request.receive, answer)

    def _require_key(self, request: Request) -> None:
        if self.key is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        told = ("www-authenticate", "Bearer")
        if kind.lower() != "bearer":
            raise Refused(401, "this server needs a key: send the header 'Authorization: Bearer KEY'.", told)
        if not hmac.compare_digest(given.strip().encode("latin-1"), self.key.encode()):
            raise Refused(401, "wrong key.", told)

    async def _refuse(self, refused: Refused, answer: Answer) -> None:
        words = refusal(refused.words).decode()
        await answer.words(refused.status, words, ("content-type", JSON), *refused.headers)
