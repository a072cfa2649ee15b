"""The API under load: clients who send a picture, read its class, and send the next at once.

    python -m benchmarks.serve [RUN] [--clients 50] [--seconds 300] [--pictures 1]

The server runs in a process of its own and is asked through the loopback interface only, by clients of this process, who
take part of the machine's time. Printed are the requests, the errors by kind, the median and 95th percentile of the time
of an answer in ms, and the server's resident memory and open files at the start, after each minute and at the end. RUN, a
classifier, is trained for two steps on the digits if it isn't given.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from benchmarks.page import Load, used


def picture(draws: np.random.Generator) -> bytes:
    """A PNG of noise."""
    data = io.BytesIO()
    Image.fromarray(draws.integers(0, 255, (48, 48, 3), np.uint8)).save(data, "PNG")
    return data.getvalue()


async def client(number: int, address: str, until: float, pictures: int, load: Load) -> None:
    """One client, until the time is over."""
    draws = np.random.default_rng(number)
    async with httpx.AsyncClient(base_url=address, timeout=120) as asking:
        while time.monotonic() < until:
            files = [("file", (f"{k}.png", picture(draws))) for k in range(pictures)]
            try:
                answer = await load.timed("predict", asking.post("/predict", files=files))
                if len([one for one in answer.json()["pictures"] if one["classes"]]) != pictures:
                    raise ValueError("predict: an answer lacks a picture")
            except (httpx.HTTPError, ValueError, KeyError) as error:
                load.errors[f"{type(error).__name__} {error}"[:90]] += 1


async def measure(process: int, address: str, clients: int, seconds: float, pictures: int) -> Load:
    """Let the clients ask, and note what the server uses."""
    load, until = Load(), time.monotonic() + seconds
    print(f"at the start: {used(process)}", flush=True)
    asking = [asyncio.create_task(client(k, address, until, pictures, load)) for k in range(clients)]
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(60.0, left))
        print(f"after {seconds - max(0.0, until - time.monotonic()):.0f} s: {used(process)}", flush=True)
    await asyncio.gather(*asking)
    await asyncio.sleep(1)
    print(f"at the end: {used(process)}", flush=True)
    return load


def main() -> None:
    """Start the server, let clients ask, print what they met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--pictures", type=int, default=1, help="of a request")
    given = parser.parse_args()
    clients, seconds = max(1, min(200, given.clients)), max(5.0, min(3600.0, given.seconds))
    pictures = max(1, min(64, given.pictures))
    with tempfile.TemporaryDirectory() as base:
        run = given.run or str(Path(base) / "run")
        command = [sys.executable, "-m", "sensorium"]
        if given.run is None:
            little = ["--data", "digits", "--limit", "200", "--budget", "2steps", "--batch-size", "16"]
            subprocess.run(
                [*command, "train", "supervised", *little, "--quiet", "--out", run],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        kept = {name: value for name, value in os.environ.items() if name != "SENSORIUM_KEY"}
        waiting = ["--waiting", str(clients)]
        with subprocess.Popen(
            [*command, "serve", run, "--port", str(port), *waiting], stdout=subprocess.PIPE, text=True, env=kept
        ) as server:
            assert server.stdout is not None
            address = next(line.split()[0] for line in server.stdout if line.startswith("http://"))
            try:
                load = asyncio.run(measure(server.pid, address, clients, seconds, pictures))
            finally:
                server.send_signal(signal.SIGTERM)
    print(f"{clients} clients, {seconds:.0f} s, {pictures} a request: {len(load.times['predict']):,} requests, "
          f"{load.errors.total()} errors")  # fmt: skip
    middle, high = np.percentile(load.times["predict"], [50, 95])
    print(f"  p50 {middle:.1f} ms   p95 {high:.1f} ms   {len(load.times['predict']) / seconds:.1f} requests a second")
    for words, count in load.errors.most_common(10):
        print(f"  {count} x {words}")


if __name__ == "__main__":
    main()
