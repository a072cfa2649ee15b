"""What stands before an ASGI application: requests for other hosts, and whatever it refuses, are answered in one line.

The page's guard and the API's gate are doors; each decides in ``_answer`` what is passed on to the application.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.requests import ClientDisconnect

from sensorium.web.hosts import Foreign, Hosts
from sensorium.web.wire import Answer, Refused, Request


class Door:
    """ASGI application around ``app``. ``what``: its name in messages; ``keys``: those of a query that are passed on."""

    what = "page"
    keys: Collection[str] = ()

    def __init__(self, app: Any, hosts: Hosts) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websocket is used
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = Answer(send, scope["path"])
        try:
            request = Request(scope, receive, self.keys)
            self.hosts.check(request.headers, scope.get("server"), request.method, request.path)
            await self._answer(request, answer)
        except ClientDisconnect:
            pass
        except Foreign as foreign:
            said = f"{foreign}: not the address of this {self.what} (see --allow-host)."
            await self._refuse(Refused(403, said), answer)
        except Refused as refused:
            if answer.begun:
                raise  # ends the connection
            await self._refuse(refused, answer)

    async def _answer(self, request: Request, answer: Answer) -> None:
        """Answer it, or pass it on. Raises Refused."""
        raise NotImplementedError

    async def _refuse(self, refused: Refused, answer: Answer) -> None:
        await answer.words(refused.status, refused.words, *refused.headers)
