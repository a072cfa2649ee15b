"""The benchmark of a GPU, as far as it can be tried without one: every part runs, what fails loses nothing, the page follows."""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gpu = pytest.importorskip("benchmarks.gpu", reason="benchmarks are seen from the repository's folder")
here = pytest.importorskip("benchmarks._gpu.here")
cifar = pytest.importorskip("benchmarks._gpu.cifar")
gpu_tests = pytest.importorskip("benchmarks._gpu.tests")


@pytest.mark.slow
def test_a_dry_run_tries_every_part(tmp_path: Path, forked: Any, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Two parts as they are, one of which is in Triton's interpreter; the others in processes that have loaded torch."""
    usual, out = gpu.watched, tmp_path / "found.json"

    def watched(command: list[str], lines: Path, seconds: float, environment: Any) -> dict[str, Any]:
        name = command[command.index("--part") + 1]
        if name in ("tests", "attention"):
            return usual(command, lines, seconds, environment)
        worker = forked(partial(gpu.part, dry=True), (name, lines, seconds))
        worker.start()
        worker.join()
        told = [json.loads(line) for line in lines.read_text("utf-8").splitlines()]
        status = "failed" if worker.exitcode else "done"
        return {"status": status, "said": "", "seconds": 1.0, "rows": {row.pop("row"): row for row in told}}

    monkeypatch.setattr(gpu, "watched", watched)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry", "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    said = capsys.readouterr().out
    assert not stop.value.code, said
    found = json.loads(out.read_text())
    assert list(found["parts"]) == list(gpu.PARTS)
    for name, part in gpu.PARTS.items():
        ended = found["parts"][name]
        assert (ended["status"], ended["said"]) == ("done", "")
        assert set(ended["rows"]) == set(part.rows)
    assert "not yet measured" not in said
    tests = found["parts"]["tests"]["rows"]["tests"]
    assert tests["passed"] >= 2
    assert tests["tests_failed"] == []
    assert found["parts"]["vit"]["rows"]["vit-step"]["flops_per_picture"] > 1e8
    for network in ("resnet-micro", "vit-micro"):
        losses = found["parts"]["compiled"]["rows"][network]["losses"]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)
    with pytest.raises(SystemExit, match="no measurement"):
        gpu.page(gpu.PAGE.read_text(encoding="utf-8"), found)


TELL = "import json, sys; print(json.dumps({'row': 'a', 'figure': '1'}), file=open(sys.argv[1], 'a'), flush=True); "


@pytest.mark.parametrize(
    "code, status, said",
    [
        ("", "done", ""),
        ("sys.exit('no such kernel')", "failed", "no such kernel"),
        ("1 / 0", "failed", "ZeroDivisionError: division by zero"),
        ("import time; print('waiting', flush=True); time.sleep(600)", "out of time", "waiting"),
    ],
)
def test_what_a_part_told_before_it_ended_is_kept(code: str, status: str, said: str, tmp_path: Path) -> None:
    lines = tmp_path / "part.jsonl"
    found = gpu.watched(
        [sys.executable, "-c", TELL + code, str(lines)], lines, 60 if status != "out of time" else 4, os.environ
    )
    assert (found["status"], found["said"]) == (status, said)
    assert found["rows"] == {"a": {"figure": "1"}}


def test_what_a_part_has_started_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); open({str(pid)!r}, 'w').write(str(p.pid)); p.wait()"
    found = gpu.watched([sys.executable, "-c", child], tmp_path / "part.jsonl", 4, os.environ)
    assert found["status"] == "out of time"
    end = time.monotonic() + 10
    while _runs(int(pid.read_text())) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(int(pid.read_text()))


def _runs(pid: int) -> bool:
    """Whether the process is there, and more than an entry that nobody has read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_that_fails_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    given = {
        "tests": {"status": "failed", "said": "no pytest", "seconds": 1.0, "rows": {}},
        "vit": {"status": "done", "said": "", "seconds": 2.0, "rows": {"vit-step": {"figure": "900 pictures/s"}}},
    }
    asked: dict[str, float] = {}

    def start(name, out, seconds, *, dry):
        asked[name] = seconds
        return given[name]

    on = {"gpu": "NVIDIA H200", "torch": "2", "date": "today"}
    monkeypatch.setattr(gpu, "start", start)
    monkeypatch.setattr(gpu, "machine", lambda dry: on)
    out = tmp_path / "new" / "found.json"
    gpu.measure(["tests"], out, 8, dry=False)
    found = gpu.measure(["vit"], out, 8, dry=False)  # keeps the other part
    assert found["parts"] == given
    assert json.loads(out.read_text()) == found
    assert "tests FAILED after 1 s: no pytest" in capsys.readouterr().out
    assert asked["vit"] == pytest.approx(8 * 60 - gpu.GRACE, abs=2)
    gpu.measure(["tests", "vit"], out, 8, dry=False)
    shares = [gpu.PARTS[name].share for name in ("tests", "vit")]
    assert asked["tests"] == pytest.approx(480 * shares[0] / sum(shares) - gpu.GRACE, abs=2)
    page = gpu.page(f"before\n{gpu.BEGIN}\nold\n{gpu.END}\nafter\n", found)
    assert page.startswith(f"before\n{gpu.BEGIN}")
    assert page.endswith(f"{gpu.END}\nafter\n")
    assert "| 900 pictures/s |" in page
    assert "Measured on NVIDIA H200" in page
    assert "| not yet measured |" in page
    assert "old" not in page


def test_the_page_is_what_was_kept() -> None:
    text = gpu.PAGE.read_text(encoding="utf-8")
    assert gpu.page(text, gpu.kept(gpu.KEPT)) == text, "run python -m benchmarks.gpu --table"


def test_rows_have_one_name_each() -> None:
    names = [row for part in gpu.PARTS.values() for row in part.rows]
    assert len(names) == len(set(names))
    assert sum(part.share for part in gpu.PARTS.values()) == 480  # seconds of eight minutes


def test_without_a_gpu_one_line_names_the_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    said = str(stop.value)
    assert said.startswith("there is no GPU here")
    assert "--dry" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40S", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_are_found_by_name(name: str, peak: float | None) -> None:
    assert here.peak_of(name) == peak


def test_accuracy_by_time_in_words() -> None:
    looks = [(0.0, 0.1), (2.0, 0.5), (5.0, 0.93), (7.5, 0.94), (10.0, 0.955)]
    assert (
        cifar.told(looks, 10.0)
        == "94 % after 7.5 s; 10.0 % at 0 s, 50.0 % at 2 s, 93.0 % at 5 s, 94.0 % at 8 s, 95.5 % at 10 s"
    )
    assert cifar.told(looks[:3], 5.0).startswith("94 % not reached; ")


def test_made_up_pictures_are_the_same_each_time() -> None:
    (train, test), again = here.made_up(200, 100), here.made_up(200, 100)
    assert np.array_equal(train.images, again[0].images)
    assert not np.array_equal(train.images[:100], test.images)
    assert train.fields["image"].shape == (3, 32, 32)
    assert np.bincount(train.labels).tolist() == [20] * 10
    assert all(0.05 < x < 0.4 for x in train.std)


def test_the_files_of_gpu_tests_need_no_peer() -> None:
    """A bare machine has none: a file that imports one would end the collection."""
    peers = ("timm", "transformers", "lightly", "diffusers", "open_clip", "pycocotools", "torchmetrics")
    names = {path.name for path in gpu_tests.files()}
    assert {"test_networks.py", "test_training.py", "test_attention.py", "test_augment.py"} <= names
    for path in gpu_tests.files():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [
            line for line in lines if line.startswith(("import ", "from ")) and line.split()[1].startswith(peers)
        ]
