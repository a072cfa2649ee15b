"""Fuzzing of every reader: valid files are damaged at random, and each must be read or refused in one line.

    python tests/faults/fuzz.py --count 100000          all readers, two processes
    python tests/faults/fuzz.py --only NAME --start K --count 1 --seed S     one case again

A module ``fuzz_*.py`` beside this one has ``SEEDS`` (name -> function that writes a small valid input below a folder and
returns the path to open) and ``OPEN`` (name -> function that reads everything from that path). A case is a function of
(seed, name, number). A failure is a traceback that is no SensoriumError, a crash of the process, more than ``SECONDS``,
more than ``MEGABYTES`` of memory, a program executed, a connection opened, or a file written outside the input's folder.
The inputs that failed are kept in ``fuzz-failures/``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SECONDS, MEGABYTES = 10.0, 2048
HERE = Path(__file__).resolve().parent
_STATE = struct.Struct("<qdqq")  # case, its start on the monotonic clock, done, refused
_EXECUTE = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn")
_CONNECT = ("socket.connect", "socket.getaddrinfo", "urllib.Request", "ftplib.connect", "http.client.connect")
_WRITE = {"os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (1,), "os.symlink": (1,),
          "os.truncate": (0,), "os.chmod": (0,), "shutil.rmtree": (0,)}  # fmt: skip
_NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"99999999999999999999",
    b"2147483648",
    b"1.5",
    b'"1"',
    b"true",
    b"null",
    b"[]",
    b"{}",
)
_WORDS = (
    b"\xff" * 4,
    b"\0" * 8,
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\xff" * 8,
    b"../../x",
    b"/etc/passwd",
    b"%00",
    b"\n",
    b'"',
    b"<<: *a",
)
_VALUES = (
    None,
    True,
    0,
    -1,
    1.5,
    10**9,
    10**30,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "1",
    "../../x",
    "/etc/passwd",
    [],
    {},
    [[]],
    "\ud800",
    "x" * 5000,
)


@dataclass(frozen=True)
class Failure:
    """A case that failed, what happened, and where its input is kept."""

    name: str
    case: int
    what: str
    kept: str = ""


def readers() -> tuple[dict[str, Callable[[Path], Path]], dict[str, Callable[[Path], object]]]:
    """``SEEDS`` and ``OPEN`` of every module beside this one."""
    seeds, opens = {}, {}
    for file in sorted(HERE.glob("fuzz_*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        seeds |= module.SEEDS
        opens |= module.OPEN
    assert seeds.keys() == opens.keys()
    return seeds, opens


def damaged(data: bytes, at: random.Random) -> bytes:
    """One to three random changes: of bytes, of numbers in text, of values in JSON."""
    if at.random() < 0.5 and (changed := _damaged_json(data, at)) is not None:
        return changed
    out = bytearray(data)
    for _ in range(at.choice((1, 1, 2, 3))):
        n = len(out)
        here = at.randrange(min(n, 200) if at.random() < 0.5 else n) if n else 0  # headers matter most
        match at.randrange(8):
            case 0 if n:
                out[here] ^= 1 << at.randrange(8)
            case 1 if n:
                out[here] = at.randrange(256)
            case 2:
                out[here:here] = at.choice(_WORDS)
            case 3:
                word = at.choice(_WORDS)
                out[here : here + len(word)] = word
            case 4:
                del out[here : here + at.choice((1, 2, 8, 64, 1000))]
            case 5:
                del out[here:]
            case 6:
                size = at.choice((1, 16, 300))
                out[here:here] = out[here : here + size] * at.choice((1, 3, 50))
            case _:
                _damage_number(out, at)
    return bytes(out)


def _damage_number(out: bytearray, at: random.Random) -> None:
    digits = [i for i, byte in enumerate(out[:5000]) if 48 <= byte <= 57]
    if digits:
        start = end = at.choice(digits)
        while end < len(out) and (48 <= out[end] <= 57 or out[end] == 46):
            end += 1
        out[start:end] = at.choice(_NUMBERS)


def _damaged_json(data: bytes, at: random.Random) -> bytes | None:
    """JSON (a file, or one line of it) with a value replaced, a key removed, or nested deeply."""
    try:
        whole = json.loads(data)
        before, after = b"", b""
    except (ValueError, RecursionError):
        lines = data.split(b"\n")
        number = at.randrange(len(lines))
        try:
            whole = json.loads(lines[number])
        except (ValueError, RecursionError):
            return None
        before, after = b"\n".join([*lines[:number], b""]), b"\n".join([b"", *lines[number + 1 :]])
    if not isinstance(whole, dict | list):
        return None
    places: list[tuple[dict | list, str | int]] = []
    stack: list[dict | list] = [whole]
    while stack and len(places) < 5000:
        here = stack.pop()
        for key in here if isinstance(here, dict) else range(len(here)):
            value = here[key]  # pyright: ignore[reportArgumentType, reportCallIssue]
            places.append((here, key))
            if isinstance(value, dict | list):
                stack.append(value)
    if not places:
        return None
    holder, key = at.choice(places)
    if at.random() < 0.2:
        del holder[key]  # pyright: ignore[reportArgumentType, reportCallIssue]
    elif at.random() < 0.03:
        return before + b'{"a":' * 3000 + b"1" + b"}" * 3000 + after
    else:
        holder[key] = at.choice(_VALUES)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return before + json.dumps(whole).encode("utf-8", "surrogatepass") + after


class Guard:
    """Notes what a case does that no reading may do, through audit events of the interpreter."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.on, self.found = str(folder), False, ""
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        if event.startswith(_EXECUTE):
            self.found = f"executed {event} {str(args)[:200]}"
        elif event in _CONNECT:
            self.found = f"connected {event} {str(args)[:200]}"
        elif event == "pickle.find_class":
            self.found = f"unpickled {args[1:]}"
        elif event == "open" and isinstance(args[0], str | bytes | os.PathLike) and args[2] & (os.O_WRONLY | os.O_RDWR):
            self._written(args[0])
        elif event in _WRITE:
            for index in _WRITE[event]:
                self._written(args[index])

    def _written(self, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            place = os.path.realpath(os.fsdecode(path))
            if not place.startswith((self.folder + os.sep, "/dev/", "/proc/")) and "__pycache__" not in place:
                self.found = f"wrote outside: {place}"


def _attempt(
    name: str, case: int, seed: int, root: Path, path: Path, files: list[Path], read: Callable, guard: Guard
) -> tuple[bool, str]:
    """(refused, failure) of one case; the input is restored afterwards."""
    from sensorium.errors import SensoriumError

    at = random.Random(f"{seed}:{name}:{case}")
    chosen = at.sample(files, min(len(files), at.choice((1, 1, 1, 2))))
    before = {file: file.read_bytes() for file in chosen}
    for file, data in before.items():
        file.write_bytes(damaged(data, at))
    guard.found, guard.on, what, refused = "", True, "", False
    try:
        read(path)
    except SensoriumError as error:
        refused = True
        if "\n" in str(error).strip() or len(str(error)) > 2000:
            what = f"an error of several lines: {str(error)[:300]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        what = "".join(traceback.format_exception(error)[-3:])
    finally:
        guard.on = False
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if peak > MEGABYTES:
        what = f"{peak:,.0f} MB of memory"
    what = guard.found or what
    if what:
        _keep(name, case, root, what)
    for file, data in before.items():
        file.unlink(missing_ok=True)
        file.write_bytes(data)
    known = set(files)
    for extra in [f for f in root.rglob("*") if f.is_file() and f not in known]:
        extra.unlink()
    return refused, what


def _keep(name: str, case: int, root: Path, what: str) -> None:
    kept = Path("fuzz-failures") / f"{name}-{case}"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(root, kept, symlinks=True)
    (kept / "WHAT.txt").write_text(what, encoding="utf-8", errors="backslashreplace")


def _worker(
    name: str, cases: range, seed: int, state: mmap.mmap, limit: float, pipe: int, make: Callable, read: Callable
) -> None:
    """Run the cases in this (forked) process; each failure is a line of JSON on ``pipe``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print
    folder = Path(tempfile.mkdtemp(prefix="fuzz-")).resolve()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    (folder / "tmp").mkdir()
    root = folder / "input"
    root.mkdir()
    guard, done, no = Guard(folder), 0, 0
    try:
        path = make(root)
        files = sorted(f for f in root.rglob("*") if f.is_file())
        until = time.monotonic() + limit
        for case in cases:
            if done >= 3 and time.monotonic() > until:
                break
            _STATE.pack_into(state, 0, case, time.monotonic(), done, no)
            refused, what = _attempt(name, case, seed, root, path, files, read, guard)
            done, no = done + 1, no + refused
            if what:
                os.write(pipe, (json.dumps([case, what[:1500]]) + "\n").encode())
        _STATE.pack_into(state, 0, -1, 0.0, done, no)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _one_process(
    name: str, cases: range, seed: int, limit: float, hang: float, make: Callable, read: Callable
) -> Iterator[Failure | tuple[int, int]]:
    """The failures of the cases in one process that is watched, then (done, refused)."""
    state = mmap.mmap(-1, _STATE.size)
    _STATE.pack_into(state, 0, cases.start, time.monotonic() + 60, 0, 0)  # the seed is made first
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(out)
            _worker(name, cases, seed, state, limit, into, make, read)
            code = 0
        except BaseException as error:
            os.write(into, (json.dumps([-1, "".join(traceback.format_exception(error))[-1500:]]) + "\n").encode())
        os._exit(code)
    os.close(into)
    hung = False
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        started = _STATE.unpack_from(state)[1]
        if started and time.monotonic() - started > hang:
            hung = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(out, encoding="utf-8") as lines:
        for line in lines:
            case, what = json.loads(line)
            yield Failure(name, case, what, f"fuzz-failures/{name}-{case}")
    case, _, done, refused = _STATE.unpack_from(state)
    yield done, refused
    if hung or status < 0:
        yield Failure(name, case, f"more than {hang:g} s" if hung else f"killed by {signal.Signals(-status).name}")
        if case + 1 < cases.stop:
            yield from _one_process(name, range(case + 1, cases.stop), seed, limit, hang, make, read)


def run(
    *,
    count: int,
    seed: int = 0,
    start: int = 0,
    only: tuple[str, ...] = (),
    seconds: float = float("inf"),
    hang: float = SECONDS,
    progress: bool = False,
) -> tuple[list[Failure], dict[str, tuple[int, int]]]:
    """(failures, {reader: (cases, refused)}) of ``count`` cases over all readers, for ``seconds`` beside those in which
    the inputs are made; at least three of each reader."""
    seeds, opens = readers()
    names = [name for name in seeds if not only or name in only]
    each, failures, table, began = -(-count // len(names)), [], {}, time.monotonic()
    for number, name in enumerate(names):
        limit = seconds / len(names)
        done = refused = 0
        for found in _one_process(name, range(start, start + each), seed, limit, hang, seeds[name], opens[name]):
            if isinstance(found, Failure):
                failures.append(found)
                if progress:
                    print(f"FAILED {found.name} {found.case}: {found.what.strip().splitlines()[-1][:150]}", flush=True)
            else:
                done, refused = done + found[0], refused + found[1]
        table[name] = (done, refused)
        if progress:
            spent = time.monotonic() - began
            left = spent / (number + 1) * (len(names) - number - 1)
            print(
                f"[{number + 1}/{len(names)}] {name}: {done:,} cases, {refused:,} refused; {spent / 60:.1f} min spent, about {left / 60:.0f} min left",
                flush=True,
            )
    return failures, table


def main() -> None:
    ask = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    ask.add_argument("--count", type=int, default=100_000)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--start", type=int, default=0)
    ask.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="for so long, beside making the inputs, each reader a part of it",
    )
    ask.add_argument("--hang", type=float, default=SECONDS, help="seconds after which a case has failed")
    ask.add_argument("--only", default="", help="readers, separated by commas")
    ask.add_argument("--list", action="store_true", help="the readers")
    given = ask.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.list:
        print("\n".join(readers()[0]))
        return
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree("fuzz-failures")
    only = tuple(filter(None, given.only.split(",")))
    failures, table = run(
        count=given.count,
        seed=given.seed,
        start=given.start,
        only=only,
        seconds=given.seconds,
        hang=given.hang,
        progress=True,
    )
    cases, refused = (sum(row[i] for row in table.values()) for i in (0, 1))
    print(
        f"{cases:,} cases over {len(table)} readers, seed {given.seed}: {refused:,} refused in one line, {cases - refused - len(failures):,} read, {len(failures):,} failed"
    )
    for (name, what), n in Counter((f.name, f.what.strip().splitlines()[-1][:120]) for f in failures).most_common(40):
        print(f"  {n:>5}  {name}: {what}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
