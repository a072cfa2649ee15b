"""Lets the tests here, and the processes that they start, import ``training_cases``."""

import io
import sys
from pathlib import Path

import pytest
import torch

from sensorium.training import launch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread():
    """Bit-for-bit comparisons with a process of one thread need one thread here too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Launched:
    """What ``launch`` uses of ``subprocess.Popen``, of a forked process."""

    def __init__(self, worker):
        self.kill, self._worker = worker.kill, worker
        worker.start()

    def poll(self):
        return self._worker.exitcode

    def wait(self, seconds=None):
        self._worker.join(seconds)
        return self.returncode

    returncode = property(poll)


@pytest.fixture
def forked_launches(forked, monkeypatch):
    """The further processes of a run do not load torch anew; in ``test_processes`` some start as they do elsewhere."""
    code = "import cloudpickle, os, torch; os.environ.update(environment); torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))"
    code += "; run, job = cloudpickle.loads(payload); run(job)"

    def start(environment, payload):
        return Launched(forked(exec, (code, {"environment": environment, "payload": payload}))), io.BytesIO()

    monkeypatch.setattr(launch, "_start", start)
