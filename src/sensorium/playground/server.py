"""The page as a server: what it is made of, started and ended together."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import gradio
from fastapi import FastAPI
from gradio import processing_utils

from sensorium.playground.common import READERS
from sensorium.playground.folder import Folder, root
from sensorium.playground.guard import Guard
from sensorium.playground.inputs import CheckedBlocks
from sensorium.playground.login import Login
from sensorium.web.hosts import Hosts
from sensorium.web.listener import Listener

WAITING = 128  # maximum queued events
AT_ONCE = 8  # events of one kind that run at the same time
UPLOADS, UPLOADS_EACH = 16, 8  # times the size of one upload: of all files of the page, of the uploads of one address
_STATES = 128  # pages whose changed controls are remembered
_SWEPT = 30.0  # seconds
processing_utils.hash_seed = secrets.token_bytes(32)  # names of files can't be computed from what is in them


class Page(Listener):
    """The page, listening at ``local_url`` until ``close``."""

    def __init__(self, guard: Guard, blocks: CheckedBlocks, host: str, port: int) -> None:
        self.guard, self.blocks = guard, blocks
        super().__init__(guard, host, port)

    def close(self, verbose: bool = False) -> None:
        """End it: no visitor is waited for, and its files are removed."""
        self.blocks._queue.close()
        self.blocks.is_running = False
        self.server.should_exit = True
        READERS.close()
        super().close(verbose)
        if self.guard.folder.path.exists():
            self.guard.folder.close()


def application(
    build: Callable[[], CheckedBlocks], *, host: str, port: int, password: str | None, upload_mb: int,
    allowed: Sequence[str] = (), **look: Any,
) -> tuple[Guard, CheckedBlocks]:  # fmt: skip
    """The guarded application of a page; ``look``: theme and style."""
    hosts = Hosts(host, port, allowed)
    size = upload_mb << 20
    folder = Folder(UPLOADS * size, UPLOADS_EACH * size)
    try:
        # gradio takes the folder for uploads from here, some of it when a page is made and some at each upload.
        os.environ["GRADIO_TEMP_DIR"] = str(folder.path)
        blocks = build()
        blocks.folder = folder
        blocks.state_session_capacity = _STATES
        blocks.queue(max_size=WAITING, api_open=False, default_concurrency_limit=AT_ONCE)
        app = gradio.mount_gradio_app(
            FastAPI(lifespan=_housekeeping(blocks, folder), docs_url=None, redoc_url=None, openapi_url=None), blocks, "/",
            server_name=host, server_port=port, show_error=False, max_file_size=size, run_history=False, ssr_mode=False,
            enable_monitoring=False, pwa=False, mcp_server=False, footer_links=["settings"], **look,
        )  # fmt: skip
        blocks.has_launched = True  # gradio checks paths only then
    except BaseException:
        folder.close()
        raise
    finally:
        os.environ["GRADIO_TEMP_DIR"] = str(root())
    queue = blocks._queue

    def waiting(session: str) -> int:
        return len(queue.pending_event_ids_session.get(session, ()))

    login = Login(password) if password else None
    return Guard(app, hosts, folder, size, login, waiting, port), blocks


def _housekeeping(blocks: CheckedBlocks, folder: Folder) -> Any:
    """Old files, and what gradio remembers of visitors who have left."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(_SWEPT)
            with suppress(OSError):
                await asyncio.to_thread(folder.sweep)
            for names in blocks.temp_file_sets:
                names.clear()
            queue = blocks._queue
            pending = queue.pending_event_ids_session
            for session in [s for s, events in pending.items() if not events]:
                if session not in queue.pending_messages_per_session:
                    del pending[session]

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()

    return lifespan
