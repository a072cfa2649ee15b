"""What a visitor of the page may send, and what it answers: one page for the module, asked without a network."""

import io
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensorium.errors import SensoriumError

pytest.importorskip("gradio", reason="the page needs gradio")

from sensorium.playground import build, common, folder, serve
from sensorium.playground.common import public
from sensorium.playground.folder import Folder
from sensorium.playground.guard import API
from sensorium.playground.login import LONGEST, LONGEST_FOR_ALL, Login
from sensorium.playground.reader import Readers
from sensorium.playground.server import application
from sensorium.runs.train import train
from sensorium.web.hosts import Foreign, Hosts
from sensorium.web.secret import VARIABLE, chosen_password

PORT = 7860
OWN = f"http://127.0.0.1:{PORT}"
REFUSED = "this is not an uploaded file"


class Visitor:
    """The page for one visitor."""

    def __init__(self, guard: Any, client: Any) -> None:
        self.guard, self.http, self.count = guard, client, 0
        found = client.get("/config").json()["dependencies"]
        self.events = {one["api_name"]: one["id"] for one in found}

    def upload(self, name: str, data: bytes) -> Any:
        return self.http.post(f"{API}/upload", files={"files": (name, data)})

    def call(self, name: str, data: Any, **more: Any) -> tuple[bool, Any]:
        self.count += 1
        session = f"session{self.count}"
        body = json.dumps({"data": data, "fn_index": self.events[name], "session_hash": session, **more})
        joined = self.http.post(f"{API}/queue/join", content=body, headers={"content-type": "application/json"})
        assert joined.status_code == 200, joined.text
        answer = self.http.get(f"{API}/queue/data", params={"session_hash": session}).text
        said = [json.loads(line[5:]) for line in answer.splitlines() if line.startswith("data:")]
        done = next(one for one in said if one["msg"] == "process_completed")
        return done["success"], done["output"]

    def error(self, name: str, data: Any, **more: Any) -> str:
        fine, output = self.call(name, data, **more)
        assert not fine
        return str(output["error"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("page")
    train("fcos", data="scenes:12", out=base / "det", budget="1steps", progress=False, image_size=64, batch_size=2)
    train("made", data="digits", out=base / "made", budget="1steps", progress=False, hidden=20, masks=2)
    return [base / "det", base / "made"]


@pytest.fixture(scope="module")
def guard(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        patch.setattr(folder, "_root", None)
        made, _ = application(lambda: build(runs), host="127.0.0.1", port=PORT, password=None, upload_mb=1)
        yield made
        made.folder.close()


@pytest.fixture(scope="module")
def visitor(guard: Any) -> Iterator[Visitor]:
    from starlette.testclient import TestClient

    with TestClient(guard, base_url=OWN, raise_server_exceptions=False, client=("127.0.0.1", 5000)) as client:
        yield Visitor(guard, client)


def picture(side: int = 32) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(data, "PNG")
    return data.getvalue()


def file(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}, **more}


def test_53_only_uploads_are_read(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    there = visitor.upload("mine.png", picture()).json()[0]
    assert visitor.call("shown", [0, file(there), 0.99])[0]
    assert visitor.call("shown", [0, {"path": there}, 0.99])[0]
    link = Path(there).with_name("link.png")
    link.symlink_to(tmp_path / "secret.png")
    hard = Path(there).with_name("hard.png")
    hard.hardlink_to(tmp_path / "secret.png")
    foreign = [
        str(tmp_path / "secret.png"),
        "/etc/hostname",
        "/nothere",
        "http://127.0.0.1:9/x.png",
        "file:///etc/hostname",
    ]
    foreign += [f"{there}/../../../../../../etc/hostname", f"{Path(there).parent}", f"{there}\0.png", "", "x" * 9000]
    foreign += [str(link), str(hard), str(visitor.guard.folder.path.parent / "lock"), f"{there}/x"]
    for path in foreign:
        for sent in (file(path), {"path": path}, file(path, url="http://127.0.0.1:9/x.png", is_stream=True)):
            assert visitor.error("shown", [0, sent, 0.99]).startswith(REFUSED), path
    for sent in ({"url": "http://127.0.0.1:9/x.png"}, {"path": 3}, "/etc/hostname", [there], 3, {"meta": {}}):
        assert visitor.error("shown", [0, sent, 0.99]).startswith(REFUSED)
    asked = [visitor.http.get(f"{API}/file={path}") for path in foreign if path and "\0" not in path]
    assert {(one.status_code, one.text) for one in asked} == {(404, "Not found.")}
    assert visitor.http.get(f"{API}/file={there}").content == picture()


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/proxy=http://127.0.0.1:9/x", f"{API}/stream/a/b/1/playlist.m3u8", f"{API}/queue/status", "/monitoring",
        "/monitoring/summary", f"{API}/custom_component/x/client/component/index.js", "/pwa_icon/100000", "/openapi.json",
        f"{API}/openapi.json", "/docs", f"{API}/dev/reload", f"{API}/call/shown/1", f"{API}/startup-events", "/token",
        f"{API}/file/etc/hostname", "/file=/etc/hostname", "/static/../../../../etc/hostname", "/assets/..%2f..%2fx",
        "/assets/%00", "/static//etc/hostname", f"{API}/file=%2e%2e/%2e%2e/etc/hostname", f"{API}/file=", f"{API}/mcp/",
    ],
)  # fmt: skip
def test_53_nothing_but_the_paths_of_the_page(visitor: Visitor, path: str) -> None:
    assert visitor.http.get(path).status_code == 404


@pytest.mark.parametrize(
    "path", ["run/shown", "api/shown", "call/shown", "component_server", "process_recording", "stream/1"]
)
def test_53_no_other_way_in(visitor: Visitor, path: str) -> None:
    assert visitor.http.post(f"{API}/{path}", json={"data": [0, {"path": "/etc/hostname"}, 0.9]}).status_code == 404
    assert visitor.http.request("DELETE", f"{API}/{path}").status_code == 405


def test_53_a_session_is_its_visitors(guard: Any, visitor: Visitor) -> None:
    """Whoever opened the page in a browser has a cookie; another, who knows the session's name, gets nothing of it."""
    from starlette.testclient import TestClient

    mine = TestClient(guard, base_url=OWN)
    assert "HttpOnly; SameSite=Strict" in mine.get("/").headers["set-cookie"]
    event = {"data": [0], "fn_index": visitor.events["offered"], "session_hash": "mine"}
    assert mine.post(f"{API}/queue/join", json=event).status_code == 200
    assert visitor.http.get(f"{API}/queue/data?session_hash=mine").status_code == 404
    assert visitor.http.post(f"{API}/queue/join", json=event).status_code == 404
    assert visitor.http.get(f"{API}/heartbeat/mine").status_code == 404
    cancel = {"session_hash": "mine", "fn_index": 0, "event_id": "x"}
    assert visitor.http.post(f"{API}/cancel", json=cancel).status_code == 404
    assert visitor.http.get(f"{API}/queue/data").status_code == 400


def test_54_its_files_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(folder, "_root", None)
    one, two = Folder(100, 100), Folder(100, 100)
    assert stat.S_IMODE(one.path.parent.stat().st_mode) == 0o700
    (one.path / "a").mkdir()
    (one.path / "a" / "drawn.png").write_bytes(b"x")
    one.close()
    assert not one.path.exists()
    assert two.path.exists()
    two.close()
    assert not one.path.parent.exists()  # beside it gradio may keep files of other pages of this process


def test_54_what_a_killed_page_left_goes_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = (
        "import sys, time\nfrom sensorium.playground.folder import root\n(root() / 'upload.png').write_text('x')\n"
        "print(root(), flush=True)\ntime.sleep(60)"
    )
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", lives], stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        left = Path(page.stdout.readline().strip())
        (tmp_path / f"{folder.PREFIX}link").symlink_to(Path.home())
        folder.remove_leftovers(tmp_path)
        assert (left / "upload.png").is_file()  # it lives
        page.kill()
    folder.remove_leftovers(tmp_path)
    assert not left.exists()
    assert Path.home().exists()


def test_55_guesses_wait_longer_and_longer() -> None:
    now = [0.0]
    login = Login("correct", clock=lambda: now[0])
    waits = []
    for _ in range(12):
        assert login.guess("10.0.0.1", "sensorium", "wrong") is None
        waits.append(login.wait("10.0.0.1"))
        now[0] += waits[-1]
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == LONGEST
    token = login.guess("10.0.0.1", "sensorium", "correct")
    assert token is not None
    assert login.knows(token)
    assert not login.knows("x")
    assert login.guess("10.0.0.2", "root", "correct") is None
    login.leave(token)
    assert not login.knows(token)


def test_55_many_addresses_do_not_help() -> None:
    now = [0.0]
    login = Login("correct", clock=lambda: now[0])
    guesses = 0
    while now[0] < 3600:
        address = f"10.{guesses >> 16}.{guesses >> 8 & 255}.{guesses & 255}"
        now[0] += login.wait(address)
        login.guess(address, "sensorium", f"guess{guesses}")
        guesses += 1
    assert guesses < 200
    assert login.wait("192.168.0.1") <= LONGEST_FOR_ALL
    many = Login("correct", clock=lambda: 0.0)
    many.guess("2001:db8::1", "sensorium", "x")
    assert many.wait("2001:db8::ffff")  # one visitor has a whole /64


def test_55_the_right_password_waits_too(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.testclient import TestClient

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(folder, "_root", None)
    monkeypatch.setattr("sensorium.playground.guard.HELD", 0.0)
    guard, _ = application(lambda: build(runs[1:]), host="127.0.0.1", port=PORT, password="correct", upload_mb=1)
    now = [100.0]
    guard.login = Login("correct", clock=lambda: now[0])
    client = TestClient(guard, base_url=OWN, follow_redirects=False)
    form = client.get("/")
    assert 'type="password"' in form.text
    assert form.headers["referrer-policy"] == "same-origin"  # else a browser sends the form as of no origin
    for path in ("/config", f"{API}/info", f"{API}/heartbeat/a", f"{API}/queue/data?session_hash=a", f"{API}/file=/x"):
        assert client.get(path).status_code == 401
    for path in ("upload", "queue/join", "cancel", "reset"):
        assert client.post(f"{API}/{path}", json={}).status_code == 401

    def answer(word: str) -> Any:
        return client.post("/login", data={"username": "sensorium", "password": word})

    assert answer("wrong").status_code == 400
    locked = answer("correct")
    assert locked.status_code == 429
    assert int(locked.headers["retry-after"]) >= 1
    now[0] += 1.5
    entered = answer("correct")
    assert entered.status_code == 200
    assert "HttpOnly; SameSite=Strict" in entered.headers["set-cookie"]
    assert client.get("/config").status_code == 200
    assert client.get("/logout").status_code == 303
    assert client.get("/config").status_code == 401
    guard.folder.close()


def test_55_the_password_stands_in_no_list_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert chosen_password(False, None) is None
    with pytest.raises(SensoriumError, match="takes no value") as told:
        chosen_password(True, None, [tmp_path, tmp_path / "correct"])
    assert "correct" not in str(told.value)
    (tmp_path / "word").write_text("open sesame\nmore", encoding="utf-8")
    assert chosen_password(False, tmp_path / "word") == "open sesame"
    monkeypatch.setenv(VARIABLE, "of the environment")
    assert chosen_password(False, None) == "of the environment"
    assert VARIABLE not in os.environ
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    with pytest.raises(SensoriumError, match="is empty"):
        chosen_password(False, tmp_path / "empty")
    with pytest.raises(SensoriumError, match="one of them"):
        chosen_password(True, tmp_path / "word")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SensoriumError, match="at a terminal"):
        chosen_password(True, None)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": f"evil.example:{PORT}"}, {"host": "127.0.0.1:80"}, {"host": "127.0.0.1"}, {"host": f"127.0.0.1.evil.example:{PORT}"},
        {"host": ""}, {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:3000"},
        {"origin": f"http://localhost:{PORT}"}, {"x-forwarded-host": "evil.example"}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"host": f"user@127.0.0.1:{PORT}"}, {"origin": f"https://evil.example:{PORT}"},
    ],
)  # fmt: skip
def test_56_other_hosts_and_origins_are_refused(visitor: Visitor, headers: dict[str, str]) -> None:
    for path in ("/", "/config", f"{API}/queue/data?session_hash=z", f"{API}/upload_progress", "/assets/x"):
        answer = visitor.http.get(path, headers=headers)
        assert answer.status_code == 403
        assert "\n" not in answer.text
        assert "access-control-allow-origin" not in answer.headers
    assert visitor.http.post(f"{API}/upload", files={"files": ("a.png", b"x")}, headers=headers).status_code == 403
    assert visitor.http.post(f"{API}/queue/join", json={}, headers=headers).status_code == 403


def test_56_own_names() -> None:
    page = Hosts("127.0.0.1", PORT, ["page.example", "other.example:8443"])
    for host in (
        f"localhost:{PORT}",
        f"127.0.0.1:{PORT}",
        f"[::1]:{PORT}",
        f"LOCALHOST:{PORT}",
        "page.example",
        "other.example:8443",
    ):
        page.check({"host": host, "origin": f"http://{host}".lower()}, ("127.0.0.1", PORT))
    page.check({"host": f"127.0.0.1:{PORT}", "origin": "https://page.example"}, ("127.0.0.1", PORT))
    with pytest.raises(Foreign):
        page.check({"host": "other.example"}, None)
    wide = Hosts("0.0.0.0", PORT)
    wide.check({"host": f"192.168.1.7:{PORT}"}, ("192.168.1.7", PORT))
    with pytest.raises(Foreign):  # not the address that was connected to
        wide.check({"host": f"192.168.1.8:{PORT}"}, ("192.168.1.7", PORT))
    with pytest.raises(SensoriumError, match="--allow-host"):
        Hosts("127.0.0.1", PORT, ["http://page.example/"])


def test_56_every_answer_has_the_headers(visitor: Visitor) -> None:
    page = visitor.http.get("/")
    for answer in (page, visitor.http.get("/config"), visitor.http.get("/nothere"), visitor.http.get("/theme.css")):
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe-eval" not in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
    policy = page.headers["content-security-policy"]
    number = policy.partition("'nonce-")[2].partition("'")[0]
    assert page.text.count("<script") == page.text.count(f'<script nonce="{number}"') > 0
    assert visitor.http.get("/").headers["content-security-policy"] != policy


def test_56_no_websockets(guard: Any, visitor: Visitor) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), visitor.http.websocket_connect(f"{API}/queue/data"):
        pass


def test_57_requests_and_all_uploads_are_bounded(visitor: Visitor) -> None:
    kept = visitor.guard.folder
    for name, data in (("a.png", b"x" * (5 << 20)), ("b.png", b"x" * (1100 << 10))):
        answer = visitor.upload(name, data)
        assert answer.status_code == 413
        assert "\n" not in answer.text
    many = [("files", (f"{k}.png", os.urandom(1 << 19))) for k in range(8)]
    assert visitor.http.post(f"{API}/upload", files=many).status_code == 413

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(80):
            yield bytes(1 << 16)

    kind = {"content-type": "multipart/form-data; boundary=x"}
    answer = visitor.http.post(f"{API}/upload", content=endless(), headers=kind)
    assert (answer.status_code, "maximum size" in answer.text) == (413, True)
    assert not [one for one in kept.path.iterdir() if one.is_file()]  # nothing is left of those broken off
    newest = ""
    for _ in range(12):
        newest = visitor.upload("f.png", os.urandom(900 << 10)).json()[0]
    total = sum(one.stat().st_size for one in kept.path.rglob("*") if one.is_file())
    assert total <= kept.each + (1 << 20)
    assert Path(newest).is_file()
    for _ in range(3):
        (kept.path / f"drawn{_}").write_bytes(bytes(kept.most // 2))
        time.sleep(0.01)
    kept._next = 0.0
    kept.sweep()
    assert sum(one.stat().st_size for one in kept.path.rglob("*") if one.is_file()) <= kept.most


def test_57_bodies_are_bounded(visitor: Visitor) -> None:
    long = {"data": [0], "fn_index": 0, "session_hash": "a", "more": "x" * (1 << 17)}
    assert visitor.http.post(f"{API}/queue/join", json=long).status_code == 413
    assert visitor.http.post(f"{API}/queue/join", content=b"[" * 60_000).status_code == 400
    for body in (b"", b"[]", b"3", b"{", b"\xff", b'{"data": 3, "fn_index": 0, "session_hash": "a"}'):
        answer = visitor.http.post(f"{API}/queue/join", content=body)
        assert answer.status_code == 400
        assert "\n" not in answer.text
    assert visitor.http.get("/?" + "&".join(f"a{k}=1" for k in range(90))).status_code == 400


def test_57_numbers_of_events_and_streams_are_bounded(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"data": [0], "fn_index": visitor.events["offered"], "session_hash": "many"}
    monkeypatch.setattr(visitor.guard, "waiting", lambda session: 16)
    assert visitor.http.post(f"{API}/queue/join", json=event).status_code == 429
    monkeypatch.setitem(visitor.guard.streams, "127.0.0.1", 1000)
    assert visitor.http.get(f"{API}/heartbeat/many").status_code == 429


@pytest.mark.parametrize("value", [1e9, 65, 0, -1, float("nan"), float("inf"), 10**400, None, "8", [8], {"a": 1}, True])
def test_57_a_slider_has_its_limits_for_everyone(visitor: Visitor, value: Any) -> None:
    given = [0, 2, 0, 1, "any class", 1]
    drawn = next(name for name in visitor.events if name == "shown_1")
    assert "must be" in visitor.error(drawn, [given[0], value, *given[2:]])


def test_57_each_kind_of_input(visitor: Visitor) -> None:
    there = visitor.upload("mine.png", picture()).json()[0]
    for which in (1, -1, 2**70, "0", None, [0], True, 0.5):  # one run has a detector
        said = visitor.error("shown", [which, file(there), 0.99]) if which is not None else "Run: "
        assert said.startswith("Run: ")
    for data in ([], [0], [0] * 20, [0, file(there), 0.5, 1]):
        assert "reload" in visitor.error("shown", data)
    chosen = {"event_data": {"index": 10**3, "value": {"path": "/etc/hostname"}}}
    assert "choose one" in visitor.error("taken", [0], **chosen)
    assert "went wrong" not in visitor.error("taken", [0], event_data={"index": [[1]], "value": 1})


def test_58_a_slow_picture_holds_nobody(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("L", (3000, 3000), 128).save(data, "JPEG", progressive=True)
    whole = data.getvalue()
    last = whole.rfind(b"\xff\xda")
    (tmp_path / "slow.jpg").write_bytes(whole[:last] + whole[last:-2] * 3000 + b"\xff\xd9")
    (tmp_path / "small.png").write_bytes(picture())
    readers = Readers(limit=1.0)
    try:
        readers.picture(tmp_path / "small.png", "small.png")
        begun = time.monotonic()
        with pytest.raises(SensoriumError, match=r"slow\.jpg: "):
            readers.picture(tmp_path / "slow.jpg", "slow.jpg")
        assert time.monotonic() - begun < 8
        assert readers.picture(tmp_path / "small.png", "small.png").shape == (32, 32, 3)
        assert readers.picture(tmp_path / "small.png", "small.png", 8).shape == (3, 8, 8)
    finally:
        readers.close()


def test_58_a_reader_ends_in_time(tmp_path: Path) -> None:
    """Whatever holds it, here a recording that never comes: the next upload has another."""
    (tmp_path / "small.png").write_bytes(picture())
    readers = Readers(limit=0.0)
    with pytest.raises(SensoriumError, match="takes longer than 0 s"):
        readers.picture(tmp_path / "small.png", "small.png")
    readers.limit = 10.0
    assert readers.picture(tmp_path / "small.png", "small.png").shape == (32, 32, 3)
    readers.close()


def test_58_readers_read_what_the_page_reads(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    (tmp_path / "torn.png").write_bytes(picture()[:40])
    np.testing.assert_array_equal(common.READERS.recording(tmp_path / "a.npy", "a.npy", None, 10), values[:10])
    for name in ("torn.png", "nothere.png"):
        with pytest.raises(SensoriumError, match=name) as told:
            common.READERS.picture(tmp_path / name, name)
        assert str(tmp_path) not in str(told.value)
    environment = os.environ.copy()
    assert VARIABLE not in environment
    common.READERS.close()


def test_errors_are_one_line_without_folders() -> None:
    said = public(SensoriumError("/home/someone/data/lost.npz: no longer there.\nTraceback"))
    assert said == "lost.npz: no longer there. Traceback"
    assert public(SensoriumError("16/9 of http://127.0.0.1/x")) == "16/9 of http://127.0.0.1/x"


def test_an_unexpected_error_says_no_more_than_its_kind(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise RuntimeError("/home/someone/secret\nTraceback")

    there = visitor.upload("mine.png", picture()).json()[0]
    monkeypatch.setattr("sensorium.playground.detect.decoded", broken)
    said = visitor.error("shown", [0, file(there), 0.5])
    assert "RuntimeError" in said
    assert "secret" not in said


def test_the_page_of_others_needs_a_password(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=VARIABLE):
        serve([tmp_path], host="0.0.0.0")
