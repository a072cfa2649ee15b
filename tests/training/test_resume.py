"""Killed, stopped, out of disk, damaged: a run that goes on ends where the uninterrupted one does."""

import errno
import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import training_cases
from training_cases import curve, make_method, make_rows, run, same_weights, table, views

from sensorium.base.table import Table
from sensorium.data.rows import ArrayRows
from sensorium.errors import SensoriumError
from sensorium.training import checkpoints


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The uninterrupted run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reference")
    run(folder)
    return folder


def equal(out, reference):
    return curve(out) == curve(reference) and same_weights(out, reference)


def stop_at(step, number=signal.SIGTERM):
    """Views that send this process a signal while they make the batch of ``step``."""
    made = iter(range(10**9))

    def stopping(fields, draw):
        if next(made) == step:
            os.kill(os.getpid(), number)
        return views(fields, draw)

    return stopping


def killed_midway(forked_script, out, processes=1):
    """Start the program, kill it after some steps and a checkpoint: how many rows it had by then."""
    process = forked_script(training_cases.__file__, out, 0.03, processes)
    process.start()
    last = random.randrange(2, 50)
    try:
        deadline = time.time() + 120
        while process.is_alive() and time.time() < deadline:
            path = out / "metrics.csv"
            rows = path.read_text().count("\n") - 1 if path.exists() else 0
            if (out / "last.ckpt").exists() and rows >= last:
                break
            time.sleep(0.003)
    finally:
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
    return last


def test_killed_at_a_random_step(tmp_path, reference, forked_script):
    last = killed_midway(forked_script, tmp_path)
    steps = checkpoints.find_checkpoint(tmp_path)[1]["steps"]
    assert 0 < steps < 60
    outcome = run(tmp_path)
    assert (outcome.steps, outcome.status) == (60, "finished")
    assert equal(tmp_path, reference), f"killed after {last} rows, resumed at step {steps}"


@pytest.mark.usefixtures("forked_launches")
def test_two_processes_killed_at_a_random_step(tmp_path, forked_script):
    """Within 1e-6 of two that were not; rounding may differ where sums over processes do."""
    run(tmp_path / "whole", devices=2)
    killed_midway(forked_script, tmp_path / "killed", processes=2)
    outcome = run(tmp_path / "killed", devices=2)
    assert (outcome.steps, outcome.status) == (60, "finished")
    for one, other in zip(curve(tmp_path / "whole"), curve(tmp_path / "killed"), strict=True):
        assert {name: float(x) for name, x in one.items()} == pytest.approx(
            {k: float(x) for k, x in other.items()}, abs=1e-6
        )
    one, other = (training_cases.weights(tmp_path / name) for name in ("whole", "killed"))
    assert max(float((one[name].double() - other[name].double()).abs().max()) for name in one) <= 1e-6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint(tmp_path, reference, number):
    before = signal.getsignal(number)
    outcome = run(tmp_path, views=stop_at(20, number))
    assert (outcome.status, outcome.steps) == ("interrupted", 21)
    assert signal.getsignal(number) is before
    assert not (tmp_path / "outcome.json").exists()
    elapsed = outcome.seconds
    outcome = run(tmp_path)
    assert outcome.status == "finished"
    assert outcome.seconds > elapsed
    assert equal(tmp_path, reference)
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(states["queue"], training_cases.weights(reference)["queue"])


def test_accumulation_resumes_too(tmp_path):
    run(tmp_path / "whole", accumulate=2, budget="12steps")
    run(tmp_path / "cut", accumulate=2, budget="12steps", views=stop_at(9))
    assert len(table(tmp_path / "cut" / "metrics.csv")) == 5
    run(tmp_path / "cut", accumulate=2, budget="12steps")
    assert equal(tmp_path / "cut", tmp_path / "whole")


def test_a_finished_run_returns_at_once_and_fresh_starts_over(tmp_path):
    first = run(tmp_path, budget="5steps")
    stamp = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert run(tmp_path, budget="5steps") == first
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == stamp
    run(tmp_path, budget="5steps", fresh=True)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns != stamp


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"batch_size": 10}, "batch_size"),
        ({"seed": 5}, "seed"),
        ({"schedule": lambda f: 1.0}, "schedule"),
        ({"optimizer": lambda m: torch.optim.SGD(m.parameters(), 0.1)}, "optimizer"),
        ({"rows": make_rows(seed=1)}, "data"),
        ({"settings": {"mask_ratio": 0.6}}, "mask_ratio"),
        ({"method": make_method(norm=False)}, "weights"),
    ],
)
def test_other_settings_are_refused(interrupted, changes, name):
    with pytest.raises(SensoriumError, match=rf"{name} was .*--fresh"):
        run(interrupted, **({"settings": {"mask_ratio": 0.75}} | changes))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    run(folder, views=stop_at(2), settings={"mask_ratio": 0.75})
    return folder


def test_a_damaged_checkpoint_gives_way_to_the_previous_one(tmp_path, reference):
    run(tmp_path, views=stop_at(30), checkpoint_every=0.0)
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    assert previous.exists()
    data = bytearray(last.read_bytes())
    weight = torch.load(last, weights_only=True)["state_dict"]["head.weight"].numpy().tobytes()
    data[data.index(weight) + 5] ^= 0xFF  # one byte of a tensor: only the checksum can tell
    last.write_bytes(data)
    outcome = run(tmp_path)
    assert any("last.ckpt is damaged" in note for note in outcome.notes)
    assert equal(tmp_path, reference)


def test_without_any_good_checkpoint_it_starts_again_and_says_so(tmp_path, reference):
    run(tmp_path, views=stop_at(1))
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    outcome = run(tmp_path)
    assert (outcome.status, outcome.steps) == ("finished", 60)
    assert outcome.notes[-1] == "No checkpoint of this run can be read: it starts again."
    assert (tmp_path / "last.damaged.ckpt").read_bytes() == b"not a checkpoint"
    assert equal(tmp_path, reference)


class _Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_a_malicious_checkpoint_is_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"sensorium": _Trap()}, tmp_path / "last.ckpt")
    assert any("not a checkpoint" in note for note in run(tmp_path, budget="2steps").notes)
    assert not Path("trapped").exists()


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, reference, monkeypatch):
    save = torch.save

    def full(thing, path, *args, **kwargs):
        if thing["sensorium"]["steps"] == 20:  # the disk is full then, however many checkpoints there was time for
            path.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(thing, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", full)
        with pytest.raises(SensoriumError, match=r"could not write .*last\.ckpt: .*No space left"):
            run(tmp_path, views=stop_at(19), checkpoint_every=1e9, online=lambda m: {"x": 1.0}, online_every="10%")
    assert not list(tmp_path.glob(".*.partial"))
    assert checkpoints.find_checkpoint(tmp_path)[1]["steps"] == 18  # the last look's
    run(tmp_path)
    assert equal(tmp_path, reference)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_disk_that_really_refuses(tmp_path, reference):
    run(tmp_path, views=stop_at(10))
    steps = checkpoints.find_checkpoint(tmp_path)[1]["steps"]
    size = (tmp_path / "last.ckpt").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        with pytest.raises(SensoriumError, match="could not write"):
            run(tmp_path, checkpoint_every=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.find_checkpoint(tmp_path)[1]["steps"] == steps
    run(tmp_path)
    assert equal(tmp_path, reference)


def test_a_table_forgets_what_comes_again_and_what_was_cut_short(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("step,loss\n0,1.5\n1,1.25\n2,1.1\n3,0.")
    rows = Table(path, before=2)
    rows.extend([{"step": 2, "loss": 1.0, "extra": 7}])
    rows.close()
    assert path.read_text() == "step,loss,extra\n0,1.5,\n1,1.25,\n2,1.0,7\n"


def test_mapped_pixels_of_another_content_are_noticed(tmp_path):
    columns = make_rows().columns
    changed = np.array(columns["image"])
    changed[0, 0, 0, 0] ^= 1
    assert ArrayRows({**columns, "image": changed}).digest != ArrayRows(columns).digest
