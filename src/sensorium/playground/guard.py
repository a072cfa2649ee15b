"""What stands between visitors and the page: an ASGI application around the one of gradio.

In this order: Host and Origin are the page's own; the path is one that the page uses; the password was given; the body
is no larger than what the page sends; files are those of the page's folder. Whatever else is refused in one line, and
every answer carries the headers that keep a browser from sharing the page with other sites.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

from sensorium.base.reading import parse_json
from sensorium.errors import SensoriumError
from sensorium.playground.folder import Folder
from sensorium.playground.login import Login, login_page
from sensorium.web.door import Door
from sensorium.web.hosts import Hosts
from sensorium.web.wire import STATIC, Answer, Refused, Request

API = "/gradio_api"
MOST_JSON = 1 << 16  # bytes of a request of the page besides uploads
UPLOAD_EXTRA = 1 << 16  # bytes of a request besides the file that it uploads
UPLOAD_TIME = 300  # seconds
UPLOAD_WAIT = 30  # seconds
UPLOADS_AT_ONCE, UPLOADS_OF_ONE, UPLOADS_WAITING = 8, 6, 128
STREAMS, STREAMS_EACH = 512, 384  # open event streams, of all and of one address
EVENTS_EACH, EVENTS_OF_A_SESSION = 96, 16  # waiting events of an address, and of one opened page
SESSIONS = 2000
HELD = 1.0  # seconds that the answer to a refused guess takes
_SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)
_TOKEN = re.compile(r"[\w-]{20,80}", re.ASCII)
_SHOWN = {"/", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
_SHOWN |= {f"{API}/{name}" for name in ("info", "info/", "theme.css", "app_id", "app_id/")}
_OPEN = {"/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/login", "/login/"}


class Guard(Door):
    """ASGI application that passes on what the page needs. ``upload``: maximum bytes of a file; ``waiting``: the events
    of a session that have not ended."""

    keys = ("session_hash", "__theme")

    def __init__(
        self, app: Any, hosts: Hosts, folder: Folder, upload: int, login: Login | None,
        waiting: Callable[[str], int], port: int,
    ) -> None:  # fmt: skip
        super().__init__(app, hosts)
        self.folder, self.upload, self.login, self.waiting = folder, upload, login, waiting
        self.cookies = f"sensorium-{port}", f"sensorium-visitor-{port}"
        self.sessions: OrderedDict[str, tuple[str, str]] = OrderedDict()  # session -> (visitor, address)
        self.streams: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.held = self.waiting_uploads = 0

    async def _answer(self, request: Request, answer: Answer) -> None:
        kind = _kind(request)
        token = request.cookie(self.cookies[0])
        if request.path in ("/login", "/login/"):
            await self._login(request, answer)
            return
        if self.login is not None and request.path not in _OPEN and not request.path.startswith(STATIC):
            if request.path in ("/logout", "/logout/"):
                self.login.leave(token)
                await answer.words(303, "", ("location", "/"), ("set-cookie", self._cookie("", 0)))
                return
            if not self.login.knows(token):
                if request.path == "/":
                    await answer.words(200, login_page(), html=True)
                    return
                raise Refused(401, "Not authenticated: give the password first.")
        await kind(self, request, answer)

    async def _pass(self, request: Request, answer: Answer) -> None:
        await self.app(request.scope, request.receive, answer)

    async def _page(self, request: Request, answer: Answer) -> None:
        """The page itself: its scripts get a number, so that a script put into it has none and does not run."""
        answer.number = secrets.token_urlsafe(16)
        if not _TOKEN.fullmatch(request.cookie(self.cookies[1])):
            cookie = f"{self.cookies[1]}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Strict"
            answer.extra.append(("set-cookie", cookie))
        await self.app(request.scope, request.receive, answer)

    async def _file(self, request: Request, answer: Answer) -> None:
        """A file of the page's folder; any other path has one answer, whether there is a file or not."""
        if self.folder.holds(request.path.removeprefix(f"{API}/file=")) is None:
            raise Refused(404, "Not found.")
        await self.app(request.scope, request.receive, answer)

    async def _stream(self, request: Request, answer: Answer) -> None:
        """Events for a session, which belongs to whoever named it first."""
        begin = f"{API}/heartbeat/"
        session = request.path.removeprefix(begin) if request.path.startswith(begin) else request.query("session_hash")
        self._own(session, request)
        if self.streams[request.client] >= STREAMS_EACH or self.streams.total() >= STREAMS:
            raise Refused(429, "Too many open pages; close some.", ("retry-after", "5"))
        self.streams[request.client] += 1
        try:
            await self.app(request.scope, request.receive, answer)
        finally:
            _less(self.streams, request.client)

    async def _event(self, request: Request, answer: Answer) -> None:
        """An event or its end: only what the page sends of it is passed on."""
        data = await request.body(MOST_JSON)
        try:
            body = parse_json(data, "the request")
        except SensoriumError as error:
            raise Refused(400, str(error)) from None
        if not isinstance(body, dict):
            raise Refused(400, "the request: should be a JSON object.")
        session = body.get("session_hash")
        self._own(session, request)
        index, event = body.get("fn_index"), body.get("event_id")
        if request.path == f"{API}/queue/join":
            kept = _joined(body)
            held = sum(self.waiting(s) for s, (_, address) in self.sessions.items() if address == request.client)
            if self.waiting(str(session)) >= EVENTS_OF_A_SESSION or held >= EVENTS_EACH:
                raise Refused(429, "Too many requests are waiting; try again in a moment.", ("retry-after", "5"))
            await asyncio.to_thread(self.folder.sweep)
        elif type(index) is int and isinstance(event, str) and _SESSION.fullmatch(event):
            kept = {"fn_index": index, "event_id": event}
        else:
            raise Refused(400, "the request: names no event.")
        request.replace(json.dumps(kept | {"session_hash": session}).encode())
        await self.app(request.scope, request.receive, answer)

    async def _upload(self, request: Request, answer: Answer) -> None:
        """One file. Bytes are counted as they come; older uploads go if there is no room."""
        most = self.upload + UPLOAD_EXTRA
        said = f"Larger than the maximum size of an upload, {self.upload >> 20} MB."
        if request.length() > most:
            raise Refused(413, said)
        await self._turn(request.client)
        self.uploads[request.client] += 1
        try:
            await asyncio.to_thread(self.folder.sweep, most, request.client)
            if self.folder.free() < 4 * most:
                raise Refused(507, "There is no room on the disk for uploads.")
            request.bound(most, said, answer)
            answer.kept = b""
            async with asyncio.timeout(UPLOAD_TIME):
                await self.app(request.scope, request.receive, answer)
        except TimeoutError:
            raise Refused(408, "The upload took too long.") from None
        finally:
            _less(self.uploads, request.client)
            if not self.uploads:
                self.folder.drop_partial()  # at once, before another upload begins
        if request.over:
            raise Refused(413, said)
        with suppress(SensoriumError):
            names = parse_json(answer.kept or b"[]", "")
            if isinstance(names, list):
                given = [name for name in names if isinstance(name, str)]
                await asyncio.to_thread(self.folder.owned, given, request.client)

    async def _turn(self, client: str) -> None:
        """Wait for a place among the uploads under way; nothing of the body is read so far. Raises Refused."""
        begun = time.monotonic()
        while self.uploads[client] >= UPLOADS_OF_ONE or self.uploads.total() >= UPLOADS_AT_ONCE:
            if self.waiting_uploads >= UPLOADS_WAITING or time.monotonic() - begun > UPLOAD_WAIT:
                raise Refused(429, "Others are uploading; try again in a moment.", ("retry-after", "5"))
            self.waiting_uploads += 1
            try:
                await asyncio.sleep(0.05)
            finally:
                self.waiting_uploads -= 1

    async def _reset(self, request: Request, answer: Answer) -> None:
        """What the page sends besides the end of an event, and gradio does nothing for."""
        await request.body(MOST_JSON)
        await answer.words(200, '{"success":true}', ("content-type", "application/json"))

    async def _progress(self, request: Request, answer: Answer) -> None:
        """The progress of uploads isn't shown: gradio would remember each that nobody asks for."""
        await answer.words(200, 'data: {"msg": "done"}\n\n', ("content-type", "text/event-stream"))

    async def _login(self, request: Request, answer: Answer) -> None:
        if self.login is None or request.method != "POST":
            await answer.words(303, "", ("location", "/"))
            return
        browser = "text/html" in request.headers.get("accept", "")
        with suppress(ValueError):
            given = parse_qs((await request.body(4096)).decode("utf-8", "replace"), max_num_fields=8)
            user, password = (given.get(name, [""])[0] for name in ("username", "password"))
            wait = self.login.wait(request.client)
            token = None if wait else self.login.guess(request.client, user, password)
            if token is not None:
                cookie = ("set-cookie", self._cookie(token, 12 * 3600))
                if browser:
                    await answer.words(303, "", ("location", "/"), cookie)
                else:
                    await answer.words(200, '{"success":true}', cookie, ("content-type", "application/json"))
                return
            if self.held < 64:  # so that one connection can't ask hundreds of times a second
                self.held += 1
                try:
                    await asyncio.sleep(HELD)
                finally:
                    self.held -= 1
            seconds = str(int(self.login.wait(request.client)) + 1)
            words = f"Too many wrong guesses: wait {seconds} s." if wait else "Incorrect credentials."
            shown = login_page(words) if browser else words
            await answer.words(429 if wait else 400, shown, ("retry-after", seconds), html=browser)
            return
        raise Refused(400, "Not a login.")

    def _cookie(self, token: str, seconds: int) -> str:
        return f"{self.cookies[0]}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict"

    def _own(self, session: object, request: Request) -> None:
        """Raise Refused if the session is another visitor's."""
        if not isinstance(session, str) or not _SESSION.fullmatch(session):
            raise Refused(400, "the request: names no session.")
        cookie = request.cookie(self.cookies[1])
        visitor = cookie if _TOKEN.fullmatch(cookie) else f"at {request.client}"
        if self.sessions.setdefault(session, (visitor, request.client))[0] != visitor:
            raise Refused(404, "Not found.")
        self.sessions.move_to_end(session)
        while len(self.sessions) > SESSIONS:
            self.sessions.popitem(last=False)


def _joined(body: dict[str, Any]) -> dict[str, Any]:
    """An event as the page sends it. Raises Refused."""
    data, index, trigger, about = (body.get(name) for name in ("data", "fn_index", "trigger_id", "event_data"))
    if not isinstance(data, list) or len(data) > 32 or type(index) is not int or not 0 <= index < 10_000:
        raise Refused(400, "the request: is not what the page sends; reload it.")
    place = about.get("index") if isinstance(about, dict) else None
    return {
        "data": data,
        "fn_index": index,
        "trigger_id": trigger if type(trigger) is int else None,
        "event_data": {"index": place, "value": None} if type(place) is int and 0 <= place < 10_000 else None,
    }


def _kind(request: Request) -> Any:
    """What answers the path. Raises Refused for what the page does not use."""
    path, method = request.path, request.method
    if method == "POST":
        posts = {"queue/join": Guard._event, "cancel": Guard._event, "reset": Guard._reset, "upload": Guard._upload}
        login = Guard._login if path in ("/login", "/login/") else None
        found = posts.get(path.removeprefix(f"{API}/")) if path.startswith(f"{API}/") else login
    elif method in ("GET", "HEAD"):
        if path.startswith(f"{API}/file="):
            found = Guard._file
        elif path == f"{API}/queue/data" or path.startswith(f"{API}/heartbeat/"):
            found = Guard._stream if method == "GET" else None
        elif path == f"{API}/upload_progress":
            found = Guard._progress
        elif path.startswith(STATIC):
            found = Guard._pass if not re.search(r"\.\.|//|[\\\0]", path) else None
        else:
            known = path in _SHOWN or path in ("/login", "/login/", "/logout", "/logout/")
            found = (Guard._page if path == "/" else Guard._pass) if known else None
    else:
        raise Refused(405, "Method not allowed.", ("allow", "GET, HEAD, POST"))
    if found is None:
        raise Refused(404, "Not found.")
    return found


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
