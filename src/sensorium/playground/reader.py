"""Uploads are read in processes apart: a file that takes long to read, or breaks its reader, holds nobody else.

``python -m sensorium.playground.reader`` answers one request a line on its standard input: a picture as uint8 RGB, or
the values of a recording. The page ends a process that takes longer than ``LIMIT`` seconds and starts another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.reading import brief
from sensorium.errors import SensoriumError

LIMIT = 10  # seconds to read one upload
WAIT = 60  # seconds to wait for a free process
AT_ONCE = max(2, min(4, os.cpu_count() or 2))
MEMORY = 4 << 30  # address space of a process
WRITTEN = 1 << 30  # an unpacked recording


class Readers:
    """At most ``AT_ONCE`` processes that read, started when needed."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = limit
        self._places, self._busy = threading.BoundedSemaphore(AT_ONCE), threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []
        self._all: set[subprocess.Popen[bytes]] = set()

    def picture(
        self, path: Path, name: str, side: int | None = None, scale: tuple[float, float] | None = None
    ) -> np.ndarray:
        """uint8 [H, W, 3] of a picture, or [3, side, side] of its center; ``scale``: of more than 8 bits. Raises
        SensoriumError that gives the name."""
        return self._ask({"path": str(path), "name": name, "side": side, "scale": scale}, name)

    def recording(self, path: Path, name: str, rate: float | None, most: int) -> np.ndarray:
        """The first recording of a file, [N, ...] with at most ``most`` steps. Raises SensoriumError with the name."""
        return self._ask({"path": str(path), "name": name, "rate": rate, "most": most}, name)

    def close(self) -> None:
        """End all, those that are at work too."""
        with self._busy:
            running = list(self._all)
        for process in running:
            self._ended(process)

    def _ask(self, question: dict[str, Any], name: str) -> np.ndarray:
        if not self._places.acquire(timeout=WAIT):
            raise SensoriumError(f"{name}: others' files are being read; try again in a minute.")
        process, late = None, threading.Event()
        try:
            process = self._process()
            clock = threading.Timer(self.limit, _end, (process, late))
            clock.daemon = True
            clock.start()
            try:
                answer = _exchange(process, question)
            finally:
                clock.cancel()
        except (OSError, ValueError, EOFError):
            if process is not None:
                self._ended(process)
                process = None
            if late.is_set():
                raise SensoriumError(f"{name}: takes longer than {self.limit:g} s to read; store it smaller.") from None
            raise SensoriumError(f"{name}: could not be read; it needs too much memory or is damaged.") from None
        finally:
            if process is not None:
                with self._busy:
                    self._idle.append(process)
            self._places.release()
        if isinstance(answer, str):
            raise SensoriumError(answer)
        return answer

    def _process(self) -> subprocess.Popen[bytes]:
        with self._busy:
            while self._idle:
                process = self._idle.pop()
                if process.poll() is None:
                    return process
                self._all.discard(process)
            process = subprocess.Popen(
                [sys.executable, "-m", "sensorium.playground.reader"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(),
                start_new_session=True,  # Ctrl-C is the page's
            )  # fmt: skip
            self._all.add(process)
            return process

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        self._all.discard(process)


def _end(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _environment() -> dict[str, str]:
    """What a reader needs: neither the page's password nor anything else of it."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "SYSTEMROOT") if name in os.environ}
    places = [str(Path(__file__).parents[2]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}


def _exchange(process: subprocess.Popen[bytes], question: dict[str, Any]) -> np.ndarray | str:
    """An array, or the words of an error. Raises EOFError if the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question).encode() + b"\n")
    process.stdin.flush()
    head = json.loads(process.stdout.readline() or b"null")
    if head is None:
        raise EOFError
    if "error" in head:
        return str(head["error"])
    found = np.empty(head["shape"], head["dtype"])
    view = found.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        got = process.stdout.readinto1(view[done:])  # pyright: ignore[reportAttributeAccessIssue]
        if not got:
            raise EOFError
        done += got
    return found


def _read(question: dict[str, Any]) -> np.ndarray:
    path, name = Path(question["path"]), str(question["name"])
    if "side" in question:
        from sensorium.data.images.decode import rgb, square

        side, scale = question["side"], question["scale"]
        picture = rgb(path, name, side, scale)
        return np.asarray(picture) if side is None else square(picture, side)
    from sensorium.data.streams.files import read_values

    try:
        values = read_values(path, question["rate"])[0][1][: question["most"]]
    except SensoriumError as error:
        raise SensoriumError(str(error).replace(str(path), name)) from None
    if values.nbytes > 1 << 28:
        raise SensoriumError(f"{name}: {values.nbytes >> 20:,} MB of values are more than are played.")
    return np.array(values, values.dtype.newbyteorder("="), order="C")


def _bound(limit: float) -> None:
    """A reader that the page lost sight of ends by itself."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (WRITTEN, WRITTEN))
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + limit + 2)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin.buffer:
        _bound(LIMIT)
        try:
            found = _read(json.loads(line))
        except SensoriumError as error:
            answers.write(json.dumps({"error": str(error)}).encode() + b"\n")
        except MemoryError:
            answers.write(json.dumps({"error": "the file does not fit in memory."}).encode() + b"\n")
        except Exception as error:
            answers.write(json.dumps({"error": f"the file could not be read ({brief(error)})."}).encode() + b"\n")
        else:
            answers.write(json.dumps({"shape": found.shape, "dtype": found.dtype.str}).encode() + b"\n")
            answers.write(found.reshape(-1).view(np.uint8).data)
        answers.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        _serve()
