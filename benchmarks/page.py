"""The page under load: visitors who open it, upload a picture, call the first tab and read the answer, again and again.

    python -m benchmarks.page [RUN] [--visitors 50] [--seconds 600]

The page runs in a process of its own and is asked through the loopback interface only. Printed are the requests, the
errors by kind, the median and 95th percentile of each request's time in ms, and the server's resident memory and open
files every minute. RUN is trained for two steps on the digits if it isn't given.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

API = "/gradio_api"
PAUSE = 1.0  # seconds that a visitor looks at an answer


class Load:
    """What the visitors met."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.errors: Counter[str] = Counter()

    async def timed(self, what: str, request: Any) -> Any:
        begun = time.monotonic()
        answer = await request
        self.times[what].append(1000 * (time.monotonic() - begun))
        if isinstance(answer, httpx.Response) and answer.status_code != 200:
            raise ValueError(f"{what}: {answer.status_code}")
        return answer


async def visitor(number: int, address: str, until: float, load: Load) -> None:
    """One visitor, until the time is over."""
    draws, rounds = np.random.default_rng(number), 0
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        while time.monotonic() < until:
            try:
                await load.timed("page", client.get("/"))
                config = (await load.timed("config", client.get("/config"))).json()
                event = next(one["id"] for one in config["dependencies"] if one["api_name"] == "shown")
                data = io.BytesIO()
                Image.fromarray(draws.integers(0, 255, (48, 48, 3), np.uint8)).save(data, "PNG")
                sent = {"files": ("mine.png", data.getvalue())}
                path = (await load.timed("upload", client.post(f"{API}/upload", files=sent))).json()[0]
                given = {"path": path, "orig_name": "mine.png", "meta": {"_type": "gradio.FileData"}}
                session = f"v{number}r{rounds}"
                await load.timed("answer", answered(client, event, [0, given], session))
            except (httpx.HTTPError, ValueError, StopIteration) as error:
                load.errors[f"{type(error).__name__} {error}"[:90]] += 1
            rounds += 1
            await asyncio.sleep(PAUSE * draws.random() * 2)


async def answered(client: httpx.AsyncClient, event: int, data: list[Any], session: str) -> None:
    """Call the first tab and fetch the first picture of its answer."""
    body = {"data": data, "fn_index": event, "session_hash": session}
    joined = await client.post(f"{API}/queue/join", json=body)
    if joined.status_code != 200:
        raise ValueError(f"join: {joined.status_code} {joined.text[:60]}")
    async with client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as lines:
        async for line in lines.aiter_lines():
            said = json.loads(line[5:]) if line.startswith("data:") else {}
            if said.get("msg") == "process_completed":
                if not said["success"]:
                    raise ValueError(f"answer: {said['output']}")
                break
        else:
            raise ValueError("answer: none came")
    url = next(u for u in json.dumps(said).split('"') if f"{API}/file=" in u)
    if (await client.get(url)).status_code != 200:
        raise ValueError("answer: its picture is not there")


def used(process: int) -> str:
    """Resident memory and open files of the server."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
    return f"{resident:,.0f} MB resident, {len(list(Path(f'/proc/{process}/fd').iterdir()))} open files"


async def measure(process: int, address: str, visitors: int, seconds: float) -> Load:
    """Let the visitors in, and note what the server uses."""
    load, until = Load(), time.monotonic() + seconds
    print(f"at the start: {used(process)}", flush=True)
    coming = [asyncio.create_task(visitor(k, address, until, load)) for k in range(visitors)]
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(60.0, left))
        print(f"after {seconds - max(0.0, until - time.monotonic()):.0f} s: {used(process)}", flush=True)
    await asyncio.gather(*coming)
    await asyncio.sleep(1)
    print(f"at the end: {used(process)}", flush=True)
    return load


def main() -> None:
    """Start the page, let visitors in, print what they met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=600)
    given = parser.parse_args()
    visitors, seconds = max(1, min(200, given.visitors)), max(5.0, min(3600.0, given.seconds))
    with tempfile.TemporaryDirectory() as base:
        run = given.run or str(Path(base) / "run")
        command = [sys.executable, "-m", "sensorium"]
        if given.run is None:
            little = ["--data", "digits", "--limit", "200", "--budget", "2steps", "--batch-size", "16"]
            subprocess.run(
                [*command, "train", "simclr", *little, "--quiet", "--out", run], check=True, stdout=subprocess.DEVNULL
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        kept = {**os.environ, "GRADIO_TEMP_DIR": base}
        with subprocess.Popen(
            [*command, "play", run, "--port", str(port)], stdout=subprocess.PIPE, text=True, env=kept
        ) as page:
            assert page.stdout is not None
            address = page.stdout.readline().split()[0]
            try:
                load = asyncio.run(measure(page.pid, address, visitors, seconds))
            finally:
                page.send_signal(signal.SIGTERM)
    print(
        f"{visitors} visitors, {seconds:.0f} s: {sum(map(len, load.times.values())):,} requests, {load.errors.total()} errors"
    )
    for what, times in load.times.items():
        middle, high = np.percentile(times, [50, 95])
        print(f"  {what:8} {len(times):7,}   p50 {middle:8.1f} ms   p95 {high:8.1f} ms")
    for words, count in load.errors.most_common(10):
        print(f"  {count} x {words}")


if __name__ == "__main__":
    main()
