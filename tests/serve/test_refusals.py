"""What the API refuses, and in which words."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sensorium.errors import SensoriumError
from sensorium.runs.run import Run
from sensorium.web.secret import KEY_VARIABLE, chosen_key

pytest.importorskip("fastapi", reason="the API needs fastapi")

from sensorium.serving import answers, open_api, serve
from sensorium.serving.bodies import FILES

Command = Callable[..., tuple[int, str, str]]  # the fixture in tests/conftest.py
KEY = "a-key-of-some-length"


def error(answer: httpx.Response) -> str:
    """The one line of a refusal, which is no page for a browser to make something of."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert list(answer.json()) == ["error"]
    said = answer.json()["error"]
    assert "\n" not in said
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def keyed(start: Any, runs: dict[str, Run]) -> str:
    return start(runs["supervised"], key=KEY)


def test_without_the_key_nothing_is_told(keyed: str, helpers: Any) -> None:
    for path in ("/", "/docs", "/runs", "/openapi.json", "/nothing"):
        for headers in ({}, {"authorization": "Basic YTpi"}, {"authorization": "Bearer"}, {"authorization": "Bearer wrong"},
                        {"authorization": f"Bearer {KEY}x"}, {"authorization": f"Bearer {KEY[:-1]}"}, {"authorization": KEY}):  # fmt: skip
            answer = httpx.get(f"{keyed}{path}", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert error(answer) in (
                "wrong key.",
                "this server needs a key: send the header 'Authorization: Bearer KEY'.",
            )
    assert httpx.post(f"{keyed}/predict", content=helpers.png()).status_code == 401


def test_with_the_key_all_is(keyed: str, helpers: Any) -> None:
    known = {"authorization": f"Bearer {KEY}"}
    assert httpx.post(f"{keyed}/predict", content=helpers.png(), headers=known).status_code == 200
    assert httpx.get(f"{keyed}/runs", headers={"authorization": f"bearer {KEY}"}).status_code == 200
    assert "$SENSORIUM_KEY" in httpx.get(keyed, headers=known).text
    assert KEY not in httpx.get(keyed, headers=known).text


def test_health_needs_no_key_and_tells_nothing(keyed: str) -> None:
    assert httpx.get(f"{keyed}/health").json() == {"status": "ok"}


def test_too_large(address: str, helpers: Any) -> None:
    told = httpx.post(f"{address}/predict", files={"file": ("a.png", bytes(1 << 20))})
    assert told.status_code == 413
    assert error(told) == "larger than the 1 MB that a request may have."

    def pieces() -> Any:  # of no stated length
        for _ in range(40):
            yield bytes(1 << 16)

    assert httpx.post(f"{address}/predict", content=pieces()).status_code == 413
    long = httpx.post(f"{address}/generate", content=b'{"prompt": "' + b"a" * (1 << 16) + b'"}')
    assert long.status_code == 413
    assert httpx.post(f"{address}/predict", content=helpers.png()).status_code == 200


@pytest.mark.parametrize("path", ["predict", "detect", "embed"])
def test_what_is_no_picture_is_named(address: str, path: str, helpers: Any) -> None:
    sent = [
        ("file", ("notes.txt", b"not a picture")),
        ("file", ("torn.png", helpers.png()[:60])),
        ("file", ("empty.png", b"")),
    ]
    answer = httpx.post(f"{address}/{path}", files=sent)
    assert answer.status_code == 422
    found = answer.json()
    assert found["problems"] == 3
    assert [one["picture"] for one in found["pictures"]] == ["notes.txt", "torn.png", "empty.png"]
    assert all(one["problem"] for one in found["pictures"])
    assert found["pictures"][2]["problem"] == "zero bytes"


@pytest.mark.parametrize("path", ["predict", "detect", "embed"])
def test_the_good_ones_beside_a_bad_one_are_answered(address: str, path: str, photos: Path, helpers: Any) -> None:
    good = helpers.files(photos / "a.png", photos / "b.jpg")
    answer = httpx.post(f"{address}/{path}", files=[good[0], ("file", ("bad.jpg", b"\xff\xd8 no")), good[1]])
    assert answer.status_code == 207
    found = answer.json()
    assert found["problems"] == 1
    assert [one["picture"] for one in found["pictures"]] == ["a.png", "bad.jpg", "b.jpg"]
    assert ["problem" in one for one in found["pictures"]] == [False, True, False]
    alone = httpx.post(f"{address}/{path}", files=good).json()["pictures"]
    assert [found["pictures"][0], found["pictures"][2]] == alone


def test_a_picture_of_too_many_pixels(address: str) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    answer = httpx.post(f"{address}/predict", content=bomb)
    assert answer.status_code == 422
    assert "megapixels" in answer.json()["pictures"][0]["problem"]


def test_forms_that_are_none(address: str, helpers: Any) -> None:
    for sent, words in (
        ({"content": b""}, "there is no picture"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, "the form"),
        (
            {"data": {"top": "3"}, "files": {"file": ("a.png", helpers.png())}},
            "options stand in the address (?top=...)",
        ),
        ({"files": [("file", (f"{k}.png", b"x")) for k in range(FILES + 1)]}, str(FILES)),
    ):
        answer = httpx.post(f"{address}/predict", **sent)
        assert answer.status_code == 400, answer.text
        assert words in error(answer)


def test_options_out_of_range_are_named(address: str, helpers: Any) -> None:
    for path, status, words in (
        ("predict?top=0", 422, "top: "), ("predict?top=x", 422, "top: "), ("predict?tops=3", 400, "'tops' is no option of /predict: it takes run, top"),
        ("detect?threshold=2", 422, "threshold: "), ("detect?threshold=nan", 422, "threshold: "), ("detect?top=3", 400, "it takes run, threshold"),
    ):  # fmt: skip
        answer = httpx.post(f"{address}/{path}", content=helpers.png())
        assert answer.status_code == status, answer.text
        assert error(answer).startswith(words) or words in error(answer)
    for body, words in (
        ({"most": 0}, "most: "), ({"most": 10**6}, "most: "), ({"temperature": -1}, "temperature: "), ({"prompt": "a" * 5000}, "prompt: "),
        ({"top_k": 0}, "top_k: "), ({"seed": -1}, "seed: "), ({"path": "/etc/passwd"}, "path: "), ([1], "the body: "),
    ):  # fmt: skip
        answer = httpx.post(f"{address}/generate", json=body)
        assert answer.status_code == 422
        assert error(answer).startswith(words)
    assert error(
        httpx.post(f"{address}/generate", content=b"{", headers={"content-type": "application/json"})
    ).startswith("the body: ")


def test_a_run_that_cannot_says_what_it_can(address: str, start: Any, runs: dict[str, Run], helpers: Any) -> None:
    answer = httpx.post(f"{address}/detect?run=supervised", content=helpers.png())
    assert answer.status_code == 404
    assert "'supervised' (supervised) can't detect: /detect needs a run of " in error(answer)
    assert error(answer).endswith("It can: predict, embed.")
    answer = httpx.post(f"{start(runs['causal_lm'])}/predict", content=helpers.png())
    assert answer.status_code == 404
    assert error(answer).startswith("no run here can predict")
    assert error(answer).endswith("causal_lm can: generate.")


@pytest.mark.parametrize(
    "name", ["../supervised", "/etc", "..", "%2e%2e/supervised", "supervised/", "nothing", "a\0b", "\u202esupervised"]
)
def test_a_run_is_a_name_and_no_path(address: str, name: str, helpers: Any) -> None:
    answer = httpx.post(f"{address}/predict", params={"run": name}, content=helpers.png())
    assert answer.status_code == 404
    assert "there are: supervised, fcos, causal_lm" in error(answer)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\..\\secret.png", "\u202egnp.png", "a" * 900])
def test_a_files_name_is_a_word_of_the_answer_and_no_path(address: str, name: str, helpers: Any) -> None:
    answer = httpx.post(f"{address}/predict", files={"file": (name, helpers.png())})
    assert answer.status_code == 200
    said = answer.json()["pictures"][0]["picture"]
    assert "/" not in said
    assert "\u202e" not in said
    assert len(said) <= 200
    assert httpx.post(f"{address}/predict", content=b"/etc/passwd").status_code == 422  # a path is no picture


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/docs/../../x", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/static/x", "/predict/", "/file=/etc/passwd"]
)  # fmt: skip
def test_there_are_no_other_paths(address: str, path: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as asking:  # a client would tidy the path
        asking.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while piece := asking.recv(4096):
            data += piece
    assert data.startswith((b"HTTP/1.1 404", b"HTTP/1.1 405")), data
    assert b"root:" not in data


def test_other_methods(address: str) -> None:
    for method, path in (
        ("GET", "/predict"),
        ("POST", "/runs"),
        ("PUT", "/predict"),
        ("DELETE", "/"),
        ("OPTIONS", "/predict"),
    ):
        answer = httpx.request(method, f"{address}{path}")
        assert answer.status_code == 405
        assert answer.headers["allow"] in ("GET", "POST")
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example"}, {"host": "127.0.0.1:1"}, {"origin": "http://evil.example"}, {"origin": "null"},
     {"sec-fetch-site": "cross-site"}, {"x-forwarded-host": "evil.example"}],
)  # fmt: skip
def test_other_hosts_and_sites(address: str, headers: dict[str, str], helpers: Any) -> None:
    answer = httpx.post(f"{address}/predict", content=helpers.png(), headers=headers)
    assert answer.status_code == 403
    assert "not the address of this server (see --allow-host)" in error(answer)


def test_a_name_that_was_allowed(start: Any, runs: dict[str, Run], helpers: Any) -> None:
    address = start(runs["supervised"], allow_host=["eyes.example:80"])
    for host, status in (("eyes.example", 200), ("eyes.example:81", 403)):
        assert httpx.post(f"{address}/predict", content=helpers.png(), headers={"host": host}).status_code == status


def test_too_many_waiting(runs: dict[str, Run], helpers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, at_once = threading.Event(), threading.Event(), []
    real = answers.predicted

    def slow(*given: Any) -> Any:
        at_once.append(1)
        assert len(at_once) == 1  # one computation at a time
        begun.set()
        assert go.wait(30)
        at_once.pop()
        return real(*given)

    monkeypatch.setattr(answers, "predicted", slow)
    api, found = open_api([runs["supervised"]], port=helpers.free_port(), waiting=2), []
    address = api.local_url.rstrip("/")

    def ask() -> None:
        found.append(httpx.post(f"{address}/predict", content=helpers.png(), timeout=60).status_code)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for one in asking:
        one.start()
    deadline = time.monotonic() + 30
    while not begun.is_set() or api.gate.turns.inside < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    answer = httpx.post(f"{address}/predict", content=helpers.png())
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert error(answer).startswith("busy: 3 requests came before this one")
    assert httpx.get(f"{address}/health").status_code == 200  # what watches it is answered meanwhile
    assert httpx.get(f"{address}/runs").status_code == 200
    go.set()
    for one in asking:
        one.join()
    assert found == [200, 200, 200]
    assert httpx.post(f"{address}/predict", content=helpers.png()).status_code == 200
    api.close()


def test_nothing_is_computed_for_who_is_gone(
    start: Any, runs: dict[str, Run], helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, go = [], threading.Event()

    def slow(*given: Any) -> Any:
        computed.append(given)
        assert go.wait(30)
        return {"pictures": []}

    monkeypatch.setattr(answers, "predicted", slow)
    address = start(runs["supervised"])
    first = threading.Thread(target=lambda: httpx.post(f"{address}/predict", content=helpers.png(), timeout=60))
    first.start()
    deadline = time.monotonic() + 30
    while not computed:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/predict", content=helpers.png(), timeout=0.5)
    go.set()
    first.join()
    assert httpx.post(f"{address}/predict", content=helpers.png()).status_code == 200
    assert len(computed) == 2  # the first and the last


def test_what_breaks_inside_is_one_line(
    address: str, helpers: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("/home/someone/secret")

    monkeypatch.setattr(answers, "predicted", broken)
    answer = httpx.post(f"{address}/predict", content=helpers.png())
    assert answer.status_code == 500
    assert error(answer) == "this did not work (KeyError); the terminal of the server says why."
    assert "/home/someone/secret" in capfd.readouterr().err
    monkeypatch.setattr(answers, "predicted", lambda *_: {"pictures": [], "x": float("nan")})
    assert httpx.post(f"{address}/predict", content=helpers.png()).status_code == 500


def test_a_body_that_does_not_come(start: Any, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sensorium.serving.gate.BODY_TIME", 0.5)
    host, port = start(runs["supervised"]).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as asking:
        asking.settimeout(20)
        asking.sendall(f"POST /predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 99\r\n\r\nhalf".encode())
        assert asking.recv(4096).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org"])
def test_others_need_a_key(host: str, runs: dict[str, Run]) -> None:
    with pytest.raises(SensoriumError, match="--key-file"):
        serve([runs["supervised"]], host=host)


def test_arguments_out_of_range(runs: dict[str, Run], tmp_path: Path) -> None:
    for how, words in (({"upload_mb": 0}, "--upload-mb"), ({"port": 0}, "--port"), ({"waiting": -1}, "--waiting")):
        with pytest.raises(SensoriumError, match=words):
            open_api([runs["supervised"]], **how)
    with pytest.raises(SensoriumError, match="nothing to serve"):
        open_api([runs["made"]])
    for nothing in ([], [tmp_path]):
        with pytest.raises(SensoriumError, match="sensorium train SYSTEM"):
            open_api(nothing)


def test_without_fastapi_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(SensoriumError, match=r"sensorium\[serve\]"):
        serve([])


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert chosen_key(None) is None
    (tmp_path / "key").write_text(f"{KEY}\nmore", encoding="utf-8")
    assert chosen_key(tmp_path / "key") == KEY
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}2")
    assert chosen_key(None) == f"{KEY}2"
    assert KEY_VARIABLE not in os.environ
    for word in ("", "short", "a key with spaces in it", "clé-qui-est-assez-longue", "x" * 1025):
        (tmp_path / "key").write_text(word, encoding="utf-8")
        with pytest.raises(SensoriumError, match=r"a key needs 16 to 1024|more than"):
            chosen_key(tmp_path / "key")


def test_help_teaches(command: Command) -> None:
    code, out, _ = command("serve", "--help")
    assert code == 0
    for words in ("sensorium serve sensorium-compare/winner", "curl", "SENSORIUM_KEY", "--waiting"):
        assert words in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it(runs: dict[str, Run], helpers: Any, number: signal.Signals) -> None:
    words = ["serve", str(runs["supervised"].folder), "--port", str(helpers.free_port())]
    kept = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-m", "sensorium", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=kept) as server:  # fmt: skip
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if line.startswith("http://"):
                break
        assert lines[0] == "supervised: predict, embed\n", lines
        answer = httpx.post(f"{lines[-1].split()[0]}predict", content=helpers.png())
        assert answer.status_code == 200
        server.send_signal(number)
        _, err = server.communicate(timeout=30)
        assert server.returncode == 0
        assert "Traceback" not in err
