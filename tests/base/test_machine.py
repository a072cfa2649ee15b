"""What is read of the machine: processors, limits of containers, and who keeps the cores busy."""

import subprocess
import time
from pathlib import Path

import pytest

from sensorium.base import machine
from sensorium.base.machine import Moment, busy_between, quota, used

STAT = """cpu  1000 100 200 9000 50 10 20 30 0 0
cpu0 600 100 100 4000 25 5 10 15 7 0
cpu1 400 0 100 5000 25 5 10 15 0 0
cpu2 1 1 1 1
intr 348110 0 0
"""


def test_the_time_of_polite_programs_and_of_waiting_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_TICKS", 100)
    assert used(STAT, {0, 1}, with_nice=False) == {0: 7.30, 1: 5.30}
    assert used(STAT, {0}, with_nice=True) == {0: 8.30}
    assert used(STAT, {2}, with_nice=False) == {2: 0.02}


def moment(at: float, *cpus: float, own: float = 0.0, group: float | None = None, load: float | None = None) -> Moment:
    return Moment(at, dict(enumerate(cpus)), own, group, load)


@pytest.fixture(autouse=True)
def cores_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "core_of", str)


def test_busy_is_what_others_used() -> None:
    assert busy_between(moment(0, 5, 5), moment(2, 7, 5), usable=2) == 1.0
    assert busy_between(moment(0, 5, 5), moment(2, 7, 7, own=3), usable=2) == pytest.approx(0.5)
    assert busy_between(moment(0, 5, 5), moment(2, 7, 7, own=2), usable=2, processes=2) == 0.0
    assert busy_between(moment(0, 5, 5), moment(2, 5, 5, own=9), usable=2) == 0.0


def test_cores_beyond_the_limit_may_be_busy() -> None:
    """A container's two cores of eight are free while six others are busy."""
    before = moment(0, *[0] * 8, group=0.0)
    assert busy_between(before, moment(1, *[1] * 6, 0, 0, group=0.0), usable=2) == 0.0
    assert busy_between(before, moment(1, *[1] * 7, 0, group=0.0), usable=2) == 1.0
    assert busy_between(before, moment(1, 1, *[0] * 7, group=1.0), usable=2) == 1.0  # one inside the container


def test_two_threads_of_one_core_are_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "core_of", lambda cpu: str(cpu // 2))
    monkeypatch.setattr(machine, "processors", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(machine, "quota", lambda: None)
    assert machine.cores() == 2
    assert busy_between(moment(0, 0, 0, 0, 0), moment(1, 1, 1, 0, 0), usable=2) == 1.0


def test_without_proc_the_load_average_has_to_do() -> None:
    assert busy_between(moment(0), moment(1, own=0.5, load=1.5), usable=4) == 1.0
    assert busy_between(moment(0), moment(1, load=9.0), usable=4) == 4.0


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "lines, files, limit",
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2.5),
        ("0::/on/the/host\n", {"cpu.max": "150000 100000"}, 1.5),  # seen from inside the container
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("4:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 4),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("1:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "1"}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
    ],
)  # fmt: skip
def test_the_limit_of_a_container(tmp_path: Path, lines: str, files: dict, limit: float | None) -> None:
    write(tmp_path / "proc/self/cgroup", lines)
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text + "\n")
    assert quota(tmp_path / "proc", tmp_path / "cgroup") == limit


def test_no_control_groups_no_limit(tmp_path: Path) -> None:
    assert quota(tmp_path, tmp_path) is None


def test_a_limit_is_at_least_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "quota", lambda: 0.5)
    assert machine.cores() == 1


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux")
def test_a_program_that_never_rests_is_seen_and_one_s_own_work_is_not() -> None:
    """Whatever else runs here: the endless program uses some of the machine, and it is not this process."""
    n = len(machine.processors())
    loop = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        before = machine.now()
        time.sleep(0.6)
        assert busy_between(before, machine.now(), usable=n) > 0.2
    finally:
        loop.kill()
        loop.wait()


def test_a_burst_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1.8, 0.1])
    monkeypatch.setattr(machine, "busy_between", lambda *_, **__: next(readings))
    assert machine.measure(2, seconds=0.0) == 0.1
    readings = iter([0.2])
    assert machine.measure(2, seconds=0.0) == 0.2


def test_the_time_since_a_recent_moment_is_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, slept = [], []
    monkeypatch.setattr(machine.time, "sleep", slept.append)
    monkeypatch.setattr(machine, "busy_between", lambda before, *_, **__: asked.append(before) or 0.1)
    recent, old = machine.Moment(time.monotonic() - 1, {}, 0.0), machine.Moment(time.monotonic() - 60, {}, 0.0)
    assert machine.measure(2, since=recent) == 0.1
    assert (asked, slept) == ([recent], [])
    machine.measure(2, since=old)
    assert old not in asked
    assert slept == [0.5]
