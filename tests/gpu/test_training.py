"""Training on a GPU: the CPU's numbers, exact resuming, checkpoints for any machine, float16, FSDP, rows that stay there."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import training_cases
from training_cases import curve, make_method, run, same_weights, table, views, weights

from sensorium.training import options, resident

pytestmark = pytest.mark.gpu

_spec = importlib.util.spec_from_file_location("golden_cases", Path(__file__).parents[1] / "golden" / "cases.py")
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)
# Of all systems only this one draws random numbers in its forward pass, of which a GPU has others.
CHANGES: dict[str, dict[str, Any]] = {"oadtr": {"dropout": 0.0}}


@pytest.mark.parametrize("case", cases.CASES)
def test_two_steps_of_every_system_are_the_cpus(
    case: str, gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights moved by 3e-7 of themselves, more than rounding does, change no loss of these by more than 2e-6."""
    found = []
    for i, kind in enumerate(("cpu", gpu.type)):
        monkeypatch.setattr(options, "_device", lambda asked, count, kind=kind: kind)
        folder = tmp_path / str(i)
        folder.mkdir()
        found.append(cases.losses(case, folder, steps=2, inputs=tmp_path / "inputs", **CHANGES.get(case, {})))
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-4)


def stop_at(step: int) -> Callable[..., Any]:
    """Views that ask this process to stop while they make the batch of ``step``."""
    made = iter(range(10**9))

    def stopping(fields: Any, draw: Any) -> Any:
        if next(made) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return views(fields, draw)

    return stopping


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_an_interrupted_run_goes_on_exactly(precision: str, gpu: torch.device, tmp_path: Path) -> None:
    asked = {"device": gpu.type, "precision": precision, "budget": "12steps"}
    run(tmp_path / "whole", **asked)
    assert run(tmp_path / "parts", views=stop_at(4), **asked).status == "interrupted"
    outcome = run(tmp_path / "parts", **asked)
    assert (outcome.steps, outcome.status) == (12, "finished")
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert same_weights(tmp_path / "parts", tmp_path / "whole")


def test_the_same_run_twice_gives_the_same_numbers(gpu: torch.device, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name, device=gpu.type, budget="8steps")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_float16_learns_with_scaled_losses(gpu: torch.device, tmp_path: Path) -> None:
    run(tmp_path, device=gpu.type, precision="16-mixed", budget="60steps")
    losses = [float(row["loss"]) for row in table(tmp_path / "metrics.csv")]
    assert all(loss == loss for loss in losses)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    kept = torch.load(tmp_path / "last.ckpt", map_location="cpu", weights_only=True)
    if gpu.type == "cuda":
        assert kept["precision"]["scale"] > 0
    assert all(x.dtype == torch.float32 for x in weights(tmp_path).values() if x.is_floating_point())


def test_a_checkpoint_goes_on_without_a_gpu(gpu: torch.device, tmp_path: Path) -> None:
    """Within 1e-4, as no dropout draws numbers that a CPU has not."""
    asked = {"budget": "12steps", "optimizer": training_cases.sgd, "device": gpu.type}
    run(tmp_path / "whole", make_method(dropout=0.0), **asked)
    parts = tmp_path / "parts"
    run(parts, make_method(dropout=0.0), views=stop_at(4), **asked)
    program = [sys.executable, training_cases.__file__, str(parts), "0", "1", "12steps", "plain"]
    path = os.pathsep.join(p for p in sys.path if p)
    subprocess.run(program, env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}, check=True)
    one, other = weights(parts), weights(tmp_path / "whole")
    assert len(table(parts / "metrics.csv")) == 12
    assert max(float((one[name].double() - other[name].double()).abs().max()) for name in one) <= 1e-4


def test_rows_on_the_gpu_give_the_numbers_of_the_host(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    usual = resident.fitting

    def noted(*given: Any) -> Any:
        kept.append((found := usual(*given)) is not None)
        return found

    monkeypatch.setattr(resident, "fitting", noted)
    for name, most in (("there", resident.MOST), ("host", 0)):
        monkeypatch.setattr(resident, "MOST", most)
        run(tmp_path / name, device=gpu.type, budget="10steps", accumulate=2)
    assert kept == ([True, False] if gpu.type == "cuda" else [])
    assert curve(tmp_path / "there") == curve(tmp_path / "host")
    assert same_weights(tmp_path / "there", tmp_path / "host")


def test_fsdp_in_one_process(gpu: torch.device, in_processes: Callable[[str, int], list[Any]]) -> None:
    (found,) = in_processes(str(Path(__file__).with_name("one_process.py")), 1)
    plain, sharded = found["plain"], found["sharded"]
    assert sharded["split"]
    assert not plain["split"]
    assert sharded["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    torch.testing.assert_close(sharded["features"], plain["features"], atol=1e-5, rtol=0)
    assert sharded["weights"].keys() == plain["weights"].keys()
    for name, value in plain["weights"].items():
        torch.testing.assert_close(sharded["weights"][name], value, atol=1e-5, rtol=0, msg=name)
