"""How many threads a run takes, what it remembers of that, and how it bears a program that comes later."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sensorium.base import live, threads
from sensorium.base.machine import Moment
from sensorium.base.threads import Threads, Watch, choose, decide, idle_teams
from sensorium.errors import SensoriumError


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run outside of the test is seen, nor any sees it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.parametrize(
    "cores, busy, runs, count",
    [
        (1, 0.0, (), 1),
        (1, 1.0, (None,), 1),
        (2, 0.0, (), 2),
        (2, 0.3, (), 2),  # a quarter of a core now and then is no reason to give one up
        (2, 1.0, (), 1),
        (2, 2.0, (), 1),
        (2, 0.0, (None,), 1),  # both are starting
        (2, 0.9, (None,), 1),  # and the other one is loading torch
        (2, 0.0, (2,), 1),  # the other one is between two steps
        (2, 2.0, (2,), 1),
        (16, 3.0, (), 13),
        (16, 0.0, (None,), 8),
        (16, 1.0, (None,), 8),
        (16, 16.0, (8, 8), 5),
        (16, 16.0, (), 8),
        (16, 8.2, (8,), 8),
        (16, 0.0, (None, None, None), 4),
        (3, 0.0, (1,), 2),
        (2, 9.0, (), 1),
    ],
)
def test_threads_follow_from_what_is_free(cores: int, busy: float, runs: tuple, count: int) -> None:
    assert decide(cores, busy, runs).count == count


def test_runs_that_start_together_don_t_take_more_than_there_is() -> None:
    for cores in range(1, 65):
        for runs in range(1, 9):
            each = decide(cores, 0.0, (None,) * (runs - 1)).count
            assert each * runs <= max(cores, runs)
            assert (each + 1) * runs > cores


def test_the_reason_says_what_was_seen() -> None:
    assert decide(2, 0.0).reason == "2 cores, all free"
    assert decide(2, 1.1).reason == "1 of 2 cores busy with other programs"
    assert decide(4, 0.0, (None, None)).reason == "4 cores, 2 other runs of Sensorium"


def test_what_was_asked_for_or_kept_is_not_decided_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object, **__: object) -> float:
        raise AssertionError("the machine was looked at")

    monkeypatch.setattr(threads.machine, "measure", measured)
    assert choose(asked=7).count == 7
    assert choose(asked=7, kept={"count": 3, "reason": "2 cores"}).count == 7
    again = choose(kept={"count": 3, "spin": 5, "reason": "4 cores, all free"})
    assert (again.count, again.reason) == (3, "4 cores, all free")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose().reason == "OMP_NUM_THREADS"


@pytest.mark.parametrize("wrong", [{"asked": 0}, {"kept": {}}, {"kept": {"count": "2"}}, {"kept": {"count": 0}}])
def test_what_is_no_number_of_threads_is_told(wrong: dict) -> None:
    with pytest.raises(SensoriumError, match="threads"):
        choose(**wrong)


def test_a_second_run_of_a_process_isn_t_bound_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.machine, "quota", lambda: None)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert threads.usable() == 3
        threads.use(Threads(1, None, "busy"))
        assert torch.get_num_threads() == 1
        assert threads.usable() == 3
        torch.set_num_threads(2)  # but by what the program says in between
        assert threads.usable() == 2
        monkeypatch.setattr(threads.machine, "quota", lambda: 1.5)
        assert threads.usable() == 1
    finally:
        torch.set_num_threads(before)


class Machine:
    """Two processors; ``tick`` lets seconds pass in which this process and others use so many cores."""

    def __init__(self) -> None:
        self.moment = Moment(0.0, {0: 0.0, 1: 0.0}, 0.0)

    def tick(self, own: float, others: float, seconds: float = 2.0) -> None:
        m, each = self.moment, (own + others) / 2 * seconds
        self.moment = Moment(m.at + seconds, {c: used + each for c, used in m.cpus.items()}, m.own + own * seconds)

    def __call__(self) -> Moment:
        return self.moment


def test_a_busy_machine_is_told_once_and_waits_are_short_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    watch = Watch(2, cores=2, patience=3, now=machine)
    started = []
    monkeypatch.setattr(watch.waits, "start", lambda count: started.append(count))
    monkeypatch.setattr(watch.waits, "stop", lambda: started.append(0))

    def looks(own: float, others: float, times: int) -> list[str | None]:
        said = []
        for _ in range(times):
            machine.tick(own, others)
            said.append(watch.look())
        return said

    assert looks(1.9, 0.1, 5) == [None] * 5
    assert set(started) <= {0}
    started.clear()
    said = looks(1.2, 0.8, 6)
    assert [line is not None for line in said] == [False, False, True, False, False, False]
    assert "0.8 of 2 cores" in str(said[2])
    assert "2 threads" in str(said[2])
    assert started == [2] * 6
    started.clear()
    assert looks(2.0, 0.0, 4) == [None] * 4
    assert started == [0]
    assert looks(1.0, 1.0, 4) == [None] * 4  # not again
    started.clear()
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert looks(1.0, 1.0, 1) == [None]
    assert started == []  # the user knows better


def test_a_run_that_left_a_core_free_minds_no_program_on_it() -> None:
    machine = Machine()
    watch = Watch(1, cores=2, patience=1, now=machine)
    machine.tick(1.0, 1.0)
    assert watch.look() is None
    machine.tick(0.6, 1.4)
    assert "slows this run" in str(watch.look())


def test_more_threads_than_cores_are_no_other_program() -> None:
    machine = Machine()
    watch = Watch(4, cores=2, patience=1, now=machine)
    machine.tick(2.0, 0.0)
    assert watch.look() is None


def test_the_other_processes_of_a_run_are_not_others() -> None:
    machine = Machine()
    watch = Watch(1, processes=2, cores=2, patience=1, now=machine)
    machine.tick(1.0, 1.0)
    assert watch.look() is None


def test_between_looks_nothing_is_read() -> None:
    machine = Machine()
    watch = Watch(2, cores=2, patience=1, every=60.0, now=machine)
    machine.tick(1.0, 1.0)
    assert watch() is None
    assert not watch.waits.open


@pytest.mark.parametrize("processors", range(2, 40))
def test_idle_teams_are_just_enough_to_have_more_threads_than_processors(processors: int) -> None:
    for count in range(2, processors + 1):
        teams = idle_teams(count, processors)
        assert count + teams * (count - 1) > processors
        assert count + (teams - 1) * (count - 1) <= processors


PROGRAM = """
import json, sys, time
from sensorium.base import threads
threads.before_torch()
import torch
torch.set_num_threads(2)

def spun():  # seconds of a processor that the thread that waits burns while there is nothing to do
    torch.ones(1 << 20).add_(1)
    before = time.process_time()
    time.sleep(0.2)
    return time.process_time() - before

waits = threads.ShortWaits()
found = [spun()]
waits.start(2)
time.sleep(0.3)
found.append(spun())
waits.stop()
time.sleep(0.3)
found.append(spun())
print(json.dumps({"spun": found, "spin": threads.spin()}))
"""


def run(program: str, **environment: str) -> dict:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux" or len(threads.machine.processors()) < 2, reason="libgomp on two cores")
def test_short_waits_spin_no_longer_and_end() -> None:
    """Spinning is made endless, so that the waiting thread's burned time shows whether it spins."""
    found = run(PROGRAM, GOMP_SPINCOUNT="10000000000")
    before, during, after = found["spun"]
    assert during < 0.01 < 0.02 < min(before, after), found
    assert found["spin"] == 10_000_000_000  # the user's own stays


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp")
def test_torch_is_told_how_long_to_spin_before_it_is_loaded() -> None:
    found = run(PROGRAM)
    assert found["spin"] == threads.SPIN
    assert found["spun"][0] < 0.005, "libgomp's own spin count is seen at once: 5 to 10 ms"
    late = "import torch, json, os; from sensorium.base import threads; threads.before_torch()"
    late += "; print(json.dumps([threads.spin(), os.environ['GOMP_SPINCOUNT']]))"
    assert run(late) == [None, str(threads.SPIN)]  # too late for this process, not for those that it starts


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp")
def test_a_user_s_policy_of_waiting_is_left_alone() -> None:
    program = "import json, os; from sensorium.base import threads; threads.before_torch()"
    program += "; print(json.dumps(['GOMP_SPINCOUNT' in os.environ, threads.spin()]))"
    assert run(program, OMP_WAIT_POLICY="PASSIVE") == [False, None]


def test_numbers_are_the_same_while_waits_are_short() -> None:
    before = torch.get_num_threads()
    waits = threads.ShortWaits()
    try:
        torch.set_num_threads(2)
        x = torch.randn(400, 300, requires_grad=True)

        def gradient() -> torch.Tensor:
            return torch.autograd.grad(torch.nn.functional.layer_norm(x @ x.T, (400,)).exp().sum(), x)[0]

        quiet = gradient()
        waits.start(2)
        assert torch.equal(gradient(), quiet)
    finally:
        waits.stop()
        torch.set_num_threads(before)


def test_a_run_knows_of_the_others_until_they_end(tmp_path: Path) -> None:
    program = """
import sys
from sensorium.base import live
live.register(); print("registered", flush=True)
sys.stdin.readline(); live.settle(3); print("settled", flush=True)
sys.stdin.readline()
"""
    path = os.pathsep.join(p for p in sys.path if p)
    assert live.others() == []
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        assert live.others() == [None]
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        assert live.others() == [3]
    finally:
        child.kill()
        child.wait()
    assert list((tmp_path / "sensorium").glob("*.run"))  # it could not tidy up
    assert live.others() == []
    assert not list((tmp_path / "sensorium").glob("*.run"))


def test_a_run_is_not_beside_itself(tmp_path: Path) -> None:
    live.register()
    try:
        live.register()
        live.settle(2)
        assert live.others() == []
        assert [path.read_text() for path in (tmp_path / "sensorium").glob("*.run")] == ["2"]
    finally:
        live.release()
    assert not list((tmp_path / "sensorium").glob("*.run"))


def test_where_there_can_be_no_folder_a_run_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file"))
    live.register()
    assert live.others() == []
    live.release()
