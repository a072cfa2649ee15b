"""Several processes for one run, from a command line, a notebook or a test.

Fabric's launchers either rerun the caller's script (which repeats whatever it did before) or fork (which deadlocks
threads and breaks CUDA). Here the caller stays process 0, and the others are new interpreters that receive the run,
closures included, through a pipe. Under ``torchrun`` or ``srun`` the processes exist already, and nothing is started.
"""

from __future__ import annotations

import inspect
import io
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import distributed as dist

from sensorium.base import stop

_PATIENCE = 300.0  # seconds for a process to end after the first has ended


def rank_and_world() -> tuple[int, int]:
    """Rank and world size; (0, 1) if nothing was launched."""
    if by_srun():
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    if "LOCAL_RANK" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK", os.environ["LOCAL_RANK"])), int(os.environ.get("WORLD_SIZE", 1))


def by_srun() -> bool:
    """Whether SLURM's ``srun`` started several tasks, and this is one of them."""
    if "LOCAL_RANK" in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return False
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1


@contextmanager
def launched(run: Callable[[Any], Any], job: Any, count: int) -> Iterator[None]:
    """Start ``count - 1`` processes that call ``run(job)``, and call it here as process 0; ``run`` must be
    importable."""
    if count == 1 or rank_and_world()[1] > 1:
        yield
        return
    threads = torch.get_num_threads()
    share = max(1, threads // count)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    common |= {"OMP_NUM_THREADS": str(share)}
    path = os.pathsep.join(str(Path(p).resolve()) for p in sys.path)
    payload = _pack((run, job))
    before = dict(os.environ)
    workers: list[tuple[subprocess.Popen[bytes], Any]] = []
    try:
        for rank in range(1, count):
            environment = {**before, **common, "LOCAL_RANK": str(rank), "RANK": str(rank), "PYTHONPATH": path}
            workers.append(_start(environment, payload))
        os.environ.update(common, LOCAL_RANK="0", RANK="0")
        torch.set_num_threads(share)
        yield
        _join(workers)
    except BaseException as error:
        _blame(workers, error)
        raise
    finally:
        for process, log in workers:
            process.kill()
            process.wait()
            log.close()
        if dist.is_initialized():
            dist.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads(threads)


def _start(environment: dict[str, str], payload: bytes) -> tuple[subprocess.Popen[bytes], Any]:
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed at the end of the launch
    command = [sys.executable, "-c", "from sensorium.training.launch import work; work()"]
    with stop.deaf():  # the processes agree on when to stop, and the first one hears of it
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        )
    assert process.stdin is not None
    process.stdin.write(payload)
    process.stdin.close()
    return process, log


def work() -> None:
    """Entry point of a launched process: read the run from the pipe and take part in it."""
    run, job = cloudpickle.load(sys.stdin.buffer)  # from our own parent process
    run(job)


def _join(workers: list[tuple[subprocess.Popen[bytes], Any]]) -> None:
    for process, log in workers:
        if process.wait(_PATIENCE) != 0:
            raise RuntimeError(f"a training process ended with code {process.returncode}: {_tail(log)}")


def _blame(workers: list[tuple[subprocess.Popen[bytes], Any]], error: BaseException) -> None:
    """If a process died on its own, its last output explains the failure better than the broken connection does."""
    for process, log in workers:
        if process.poll() not in (None, 0):
            error.add_note(f"A training process ended with code {process.returncode}:\n{_tail(log)}")


def _tail(log: Any) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-15:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Pickler(cloudpickle.Pickler):
    """Sends a memory map as its file's name, not its bytes."""

    def reducer_override(self, obj: Any) -> Any:
        whole = isinstance(obj, np.memmap) and not isinstance(obj.base, np.ndarray) and obj.filename is not None
        if whole:
            return np.memmap, (str(obj.filename), obj.dtype, "r", obj.offset, obj.shape)
        return super().reducer_override(obj)


def _pack(thing: Any) -> bytes:
    """Pickle ``thing``; objects of modules that a new process can't import are pickled by value."""
    foreign = [module for module in list(sys.modules.values()) if _foreign(module)]
    try:
        for module in foreign:
            cloudpickle.register_pickle_by_value(module)
        buffer = io.BytesIO()
        _Pickler(buffer).dump(thing)
        return buffer.getvalue()
    finally:
        for module in foreign:
            cloudpickle.unregister_pickle_by_value(module)


def _foreign(module: Any) -> bool:
    """Whether it was loaded from a file that an import of this name would not find: a user's recipe, a test."""
    name, file = getattr(module, "__name__", None), getattr(module, "__file__", None)
    if not inspect.ismodule(module) or not file or not str(file).endswith(".py") or name == "__main__":
        return False
    if sys.modules.get(str(name)) is not module or str(file).startswith((sys.prefix, sys.base_prefix)):
        return False
    here = Path(file).resolve()
    tail = Path(*str(name).split("."))
    places = [Path(p or ".").resolve() for p in sys.path]
    return not any(here in ((p / tail).with_suffix(".py"), p / tail / "__init__.py") for p in places)
