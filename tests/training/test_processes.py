import functools
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import training_cases
from training_cases import curve, make_method, make_rows, run, same_weights, sgd, weights

from sensorium.data.rows import ArrayRows
from sensorium.training import launch


def test_two_processes_equal_one(tmp_path):
    """Batch normalization, a queue and closures included; the data as a memory map."""
    columns = make_rows().columns
    mapped = np.memmap(tmp_path / "images", np.uint8, "w+", shape=columns["image"].shape)
    mapped[:] = columns["image"]
    noise = 0.1

    def views(fields, draw):  # a closure of a module that a fresh process cannot import
        image = fields["image"]
        return {"image": image.float() / 128 - 1 + noise * draw.randn(*image.shape[1:]), "label": fields["label"]}

    before = dict(os.environ)
    changes = {"views": views, "optimizer": sgd, "budget": "15steps", "checkpoint_every": 0.0}
    for count in (1, 2):
        method, data = make_method(dropout=0.0), ArrayRows({**columns, "image": mapped})
        outcome = run(
            tmp_path / str(count),
            method,
            data,
            devices=count,
            online=lambda m: {"x": 1.0},
            online_every="20%",
            **changes,
        )
        assert (outcome.steps, outcome.seen, outcome.status) == (15, 180, "finished")
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()
    assert_equal_within_rounding(tmp_path / "1", tmp_path / "2")


def assert_equal_within_rounding(one_run, other_run):
    for one, two in zip(curve(one_run), curve(other_run), strict=True):
        for name in one:
            assert float(one[name]) == pytest.approx(float(two[name]), abs=1e-6), (one["step"], name)
    one, two = weights(one_run), weights(other_run)
    assert max(float((one[name].double() - two[name].double()).abs().max()) for name in one) <= 1e-6


@pytest.mark.slow
def test_torchrun_and_srun_start_the_processes_themselves(tmp_path):
    program = [training_cases.__file__, *(str(tmp_path / "torchrun"), "0", "1", "8steps")]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | {"OMP_NUM_THREADS": "1"}
    elastic = [*("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port"), str(launch._free_port())]
    subprocess.run([sys.executable, *elastic, *program], env=clean, check=True)
    job = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NAME": "train",
    }
    job |= {"SLURM_JOB_ID": "12345", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(launch._free_port())}
    program[1] = str(tmp_path / "srun")
    tasks = [
        subprocess.Popen([sys.executable, *program], env=clean | job | {"SLURM_PROCID": i, "SLURM_LOCALID": i})
        for i in ("0", "1")
    ]
    assert [task.wait(200) for task in tasks] == [0, 0]
    run(tmp_path / "ours", devices=2, budget="8steps")
    for name in ("torchrun", "srun"):
        assert curve(tmp_path / name) == curve(tmp_path / "ours")
        assert same_weights(tmp_path / name, tmp_path / "ours")


@pytest.fixture
def two_machines():
    """Two network namespaces, joined by a cable: what each has to say to the other goes over the network.

    -> for each, the command that runs another one in it, its address and its network interface.
    """
    tag = f"s{os.getpid() % 100_000}"
    names, cable = [f"{tag}a", f"{tag}b"], [f"{tag}va", f"{tag}vb"]

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        ip("netns", "add", names[0])
        ip("netns", "add", names[1])
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for i in (0, 1):
            ip("link", "set", cable[i], "netns", names[i])
            ip("-n", names[i], "addr", "add", f"10.207.0.{i + 1}/24", "dev", cable[i])
            ip("-n", names[i], "link", "set", cable[i], "up")
            ip("-n", names[i], "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        pytest.skip(f"no network namespaces here: {str(said).strip()}")
    else:
        yield [(["ip", "netns", "exec", names[i]], f"10.207.0.{i + 1}", cable[i]) for i in (0, 1)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_two_machines_equal_one_process(tmp_path, two_machines):
    program = [training_cases.__file__, str(tmp_path / "machines"), "0", "1", "8steps", "plain"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | {"OMP_NUM_THREADS": "1"}
    elastic = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--master-addr={two_machines[0][1]}"]
    nodes = [
        subprocess.Popen(
            [*inside, sys.executable, *elastic, "--master-port=29531", f"--node-rank={i}", *program],
            env=clean | {"GLOO_SOCKET_IFNAME": interface},
        )
        for i, (inside, _, interface) in enumerate(two_machines)
    ]
    try:
        assert [node.wait(200) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    plain = {"optimizer": sgd, "budget": "8steps"}
    run(tmp_path / "one", make_method(dropout=0.0), **plain)
    assert_equal_within_rounding(tmp_path / "machines", tmp_path / "one")
    run(tmp_path / "two", make_method(dropout=0.0), devices=2, **plain)
    assert curve(tmp_path / "machines") == curve(tmp_path / "two")
    assert same_weights(tmp_path / "machines", tmp_path / "two")


def test_one_task_of_srun_is_a_process_like_any_other(monkeypatch):
    for name, value in {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    assert launch.rank_and_world() == (0, 1)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert launch.rank_and_world() == (3, 4)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # an allocation in which one works by hand
    assert launch.rank_and_world() == (0, 1)
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv("LOCAL_RANK", "1")  # our own processes, in a job of one task
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.rank_and_world() == (1, 2)


def test_a_failing_process_is_quoted():
    with pytest.raises(RuntimeError, match="the second one fell over"), launch.launched(fall_over, None, 2):
        pass
    assert "LOCAL_RANK" not in os.environ


def fall_over(job):
    raise ValueError("the second one fell over")


def test_what_travels_by_value(tmp_path, monkeypatch):
    """A user's recipe file, which no module search would find; and the name of a memory map, not its bytes."""
    (tmp_path / "mine.py").write_text("def views(images):\n    return 'made by my own views'\n")
    spec = importlib.util.spec_from_file_location("mine_loaded_from_a_file", tmp_path / "mine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    packed = launch._pack((functools.partial(module.views), make_rows()))
    assert b"made by my own views" in packed
    array = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(1000, 1000))
    assert len(launch._pack(array)) < 1000
    assert len(launch._pack(array[10:20])) >= 10_000  # a part of a map has no name of its own
