"""Connections that send nothing, or half of what they should, or read nothing, do not keep their place."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

from sensorium.playground.server import Page
from sensorium.web import connections

HEAD = 0.6  # seconds instead of 20
WHOLE = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


class Application:
    """An application that answers /slow after three times the time for a head, and /large with 32 MB."""

    hosts = SimpleNamespace(everywhere=False)

    def __init__(self, folder: Path) -> None:
        self.folder = SimpleNamespace(path=folder / "none")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for word in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{word}.complete"})
            return
        if scope["path"] == "/slow":
            await asyncio.sleep(3 * HEAD)
        body = bytes(32 << 20) if scope["path"] == "/large" else b"answer"
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Iterator[Page]:
    monkeypatch.setattr(connections, "HEAD_TIME", HEAD)
    monkeypatch.setattr(connections, "READ_TIME", HEAD)
    blocks: Any = SimpleNamespace(_queue=SimpleNamespace(close=lambda: None), is_running=True)
    made = Page(Application(tmp_path), blocks, "127.0.0.1", free_port + 5)  # type: ignore[arg-type]
    yield made
    made.close()


def connected(page: Page) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", int(page.local_url.rstrip("/").rpartition(":")[2])))
    found.settimeout(5)
    return found


def ended(visitor: socket.socket, trickle: bytes = b"") -> float:
    """Seconds until the page closes the connection, to which a byte of ``trickle`` is sent every tenth of a second."""
    begun = time.monotonic()
    visitor.settimeout(0.1)
    while time.monotonic() - begun < 5:
        try:
            if trickle:
                visitor.send(trickle[:1])
                trickle = trickle[1:]
            if not visitor.recv(1 << 16):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - begun


def answered(visitor: socket.socket, path: bytes = b"") -> bytes:
    visitor.sendall(WHOLE % path)
    data = b""
    while not data.endswith(b"answer"):
        data += (piece := visitor.recv(4096))
        assert piece, data
    return data


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_nothing_or_half_a_head(page: Page, sent: bytes) -> None:
    with connected(page) as visitor:
        visitor.sendall(sent)
        assert 0.8 * HEAD < ended(visitor) < 4 * HEAD


def test_a_head_that_trickles(page: Page) -> None:
    with connected(page) as visitor:
        assert ended(visitor, b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * 200) < 4 * HEAD


def test_half_a_head_after_a_request(page: Page) -> None:
    with connected(page) as visitor:
        assert answered(visitor).startswith(b"HTTP/1.1 200")
        visitor.sendall(b"GET / HT")
        assert ended(visitor) < 4 * HEAD


def test_a_body_that_trickles_after_the_answer(page: Page) -> None:
    with connected(page) as visitor:
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 999\r\n\r\n")
        assert ended(visitor, b"x" * 200) < 4 * HEAD


def test_an_answer_that_nobody_reads(page: Page) -> None:
    with connected(page) as visitor:
        visitor.sendall(WHOLE % b"large")
        assert visitor.recv(1024)
        assert page.server.server_state.connections
        begun = time.monotonic()
        while page.server.server_state.connections and time.monotonic() - begun < 5:
            time.sleep(0.05)
        assert not page.server.server_state.connections


def test_who_waits_for_an_answer_is_not_cut_off(page: Page) -> None:
    with connected(page) as visitor:
        assert answered(visitor, b"slow").startswith(b"HTTP/1.1 200")
        assert answered(visitor).startswith(b"HTTP/1.1 200")
        visitor.sendall(WHOLE % b"slow" + WHOLE % b"slow")  # the second one waits behind the first
        data = b""
        while data.count(b"answer") < 2:
            data += (piece := visitor.recv(4096))
            assert piece


def test_a_connection_notices_that_the_other_end_is_gone(page: Page) -> None:
    assert page._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
