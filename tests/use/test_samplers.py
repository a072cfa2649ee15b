"""`sensorium samplers`: what is measured, the verdict, the page, what was measured when it was stopped; `sample --sampler`."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sensorium
from sensorium.errors import SensoriumError
from sensorium.judge.generated import samples
from sensorium.parts.denoising.samplers import STEPPED, evaluations, karras_sigmas, sampled
from sensorium.runs.run import Run
from sensorium.use import samplers as compared
from sensorium.use.samplers import Measured, Planned, chosen, planned, said, samplers_of

Command = Callable[..., tuple[int, str, str]]  # the fixture in tests/conftest.py


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Of pictures without labels, that no classifier has to be trained."""
    folder = tmp_path_factory.mktemp("runs")
    pictures = np.random.default_rng(0).integers(0, 255, (80, 8, 8, 3), np.uint8)
    np.savez(folder / "bare.npz", images=pictures[:60])
    np.savez(folder / "held.npz", images=pictures[60:])
    how: dict[str, Any] = {"test": str(folder / "held.npz"), "budget": "2steps", "progress": False}
    small: dict[str, dict[str, Any]] = {
        "ddpm": {"batch_size": 4},
        "rectified_flow": {"batch_size": 4},
        "nade": {"hidden": 8},
    }
    return {
        name: sensorium.train(name, str(folder / "bare.npz"), out=folder / name, **how, **settings)
        for name, settings in small.items()
    }


@pytest.mark.parametrize("sampler", STEPPED)
@pytest.mark.parametrize("to_data", [True, False])
def test_evaluations_are_those_of_the_denoiser(sampler: str, to_data: bool) -> None:
    for steps in (1, 2, 5):
        called = 0

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal called
            called += 1
            return x / 2

        sigmas = karras_sigmas(steps + (not to_data))
        sampled(denoise, torch.ones(1, 2), sigmas if to_data else sigmas[:-1], sampler)
        assert called == evaluations(sampler, steps, to_data)


@pytest.mark.parametrize("name", ["ddpm", "rectified_flow"])
def test_every_sampler_takes_as_many_evaluations_as_told(name: str, runs: dict[str, Run], tmp_path: Path) -> None:
    run, counts = runs[name], Counter[str]()
    method: Any = run.method
    drawn = {}
    hook = method.net.register_forward_hook(lambda *_: counts.update(["net"]))
    for plan in planned(method, None, [1, 2, 6]):
        counts.clear()
        drawn[plan.sampler, plan.column] = samples(method, None, 2, sampler=plan.sampler, steps=plan.steps)
        assert counts["net"] == plan.evaluations <= plan.column
    hook.remove()
    assert {sampler for sampler, _ in drawn} == set(method.samplers)
    if name == "ddpm":  # of one evaluation all are the same function of the noise, if it is the same
        assert all((drawn[sampler, 1] == drawn["euler", 1]).all() for sampler in method.samplers)


def test_no_number_of_steps_is_measured_twice(runs: dict[str, Run]) -> None:
    plans = planned(runs["ddpm"].method, "heun,euler", "6,5,5")
    assert plans == [Planned("heun", 3, 5, 5), Planned("euler", 5, 5, 5), Planned("euler", 6, 6, 6)]


def test_the_distance_is_that_of_judging(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["rectified_flow"]
    judged = {one.name: one for one in run.judge().scores}["Fréchet distance"]
    found, _ = samplers_of(run, samplers=["heun"], evaluations=[50], n=judged.n or 0, out=tmp_path / "a")
    (point,) = found["points"]
    assert (point["steps"], found["n"]) == (25, judged.n)
    assert point["distance"] == pytest.approx(judged.value, rel=1e-6)
    assert point["error"] == pytest.approx(judged.error, rel=1e-6)
    assert found["said"].endswith("nothing else was measured beside it.")


def measured(sampler: str, count: int, distance: float, again: list[float]) -> Measured:
    plan = Planned(sampler, count, count, count)
    return Measured(plan, distance, torch.tensor(again), 0.01, np.zeros((0, 3, 8, 8), np.uint8))


def test_the_verdict_is_paired() -> None:
    """Both vary by 1 from drawing to drawing, but the second is by 0.5 worse in each of them, the third by as much or little."""
    best = measured("heun", 25, 5.0, [4.0, 5.0, 6.0])
    worse = measured("euler", 12, 5.5, [4.5, 5.5, 6.5])
    alike = measured("euler", 12, 5.5, [5.5, 5.0, 6.0])
    assert chosen([worse, best]) == (best, best)
    assert chosen([alike, best]) == (best, alike)
    both = [alike, measured("dpm", 12, 5.4, [5.4, 4.9, 5.9]), best]
    assert chosen(both)[1].plan.sampler == "dpm"  # of as many evaluations the nearest
    assert said([worse, best], best, best) == (
        "Take heun with 25 steps (distance 5 ± 1, 10 ms a picture): it has the least distance, clearly less than with fewer "
        "evaluations; more may do better still."
    )
    assert said([alike, best], best, alike) == (
        "Take euler with 12 steps (distance 5.5 ± 0.5, 10 ms a picture): heun with 25 steps (distance 5 ± 1, 10 ms a picture) is nearer "
        "by 0.5 ± 0.87, which is within error."
    )


def test_page_numbers_and_pictures(runs: dict[str, Run], tmp_path: Path, command: Command) -> None:
    folder = runs["ddpm"].folder
    code, out, err = command("samplers", str(folder), "--evaluations", "2,4", "--n", "4", "--out", str(tmp_path / "a"))
    assert code == 0, err
    kept = json.loads((tmp_path / "a" / "samplers.json").read_text())
    names = {row["sampler"] for row in kept["points"]}
    assert names == set(STEPPED)
    # a step of langevin takes one evaluation, two take six
    assert [row["column"] for row in kept["points"]] == [2] * len(names) + [4] * (len(names) - 1)
    assert all(row["distance"] > 0 and row["error"] > 0 and row["seconds"] > 0 for row in kept["points"])
    assert {one.name for one in (tmp_path / "a").iterdir()} == {
        "samplers.html",
        "samplers.json",
        *(f"{name}.png" for name in names),
    }
    text = (tmp_path / "a" / "samplers.html").read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("data:image/png") == len(names)
    assert kept["held_out"] is not None
    assert "held-out pictures" in text
    said = " ".join(out.split())
    assert kept["said"] in said
    take = kept["take"]
    assert kept["command"] == f"sensorium sample {folder} --sampler {take['sampler']} --steps {take['steps']}"
    code, out, err = command(*kept["command"].split()[1:], "--n", "3", "--out", str(tmp_path / "drawn.png"))
    assert code == 0, err


@pytest.mark.parametrize("after", [0, 3])
def test_a_stop_ends_with_what_was_measured(
    after: int, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    draw, drawn = compared.Bench.draw, []

    def stopping(bench: Any, sampler: str, steps: int) -> Any:
        drawn.append(sampler)
        if len(drawn) > after + 1:  # the first is not timed
            raise KeyboardInterrupt
        return draw(bench, sampler, steps)

    monkeypatch.setattr(compared.Bench, "draw", stopping)
    words = ("samplers", str(runs["ddpm"].folder), "--evaluations", "2,4", "--n", "4", "--out", str(tmp_path / "a"))
    code, out, err = command(*words)
    assert code == 130
    assert "stopped." in err
    if not after:
        assert not (tmp_path / "a").exists()
        return
    kept = json.loads((tmp_path / "a" / "samplers.json").read_text())
    assert (kept["stopped"], len(kept["points"])) == (True, after)
    assert "stopped before all was measured" in (tmp_path / "a" / "samplers.html").read_text()
    assert "Draw with it" in out


def test_what_cannot_work_is_said_before_anything_is_drawn(
    runs: dict[str, Run], tmp_path: Path, command: Command
) -> None:
    run = runs["ddpm"]
    for words, cause in (
        (("--samplers", "euler,ddim"), "--samplers ddim: this run's are euler, heun, ancestral, dpm, dpm-sde, plms, langevin. DDIM is euler"),
        (("--samplers", "adaptive"), "--samplers adaptive: this run's are euler"),
        (("--evaluations", "6,0"), "--evaluations 0: must be at least 1."),
        (("--evaluations", "6,many"), "--evaluations many: should be a whole number from 1 to 1000."),
        (("--evaluations", "2000"), "--evaluations 2000: should be"),
        (("--n", "1"), "--n 1: should be a whole number from 4"),
        (("--out", run.info.data.path), "--out"),
    ):  # fmt: skip
        code, out, err = command("samplers", str(run.folder), *words)
        assert (code, out) == (1, ""), words
        assert cause in err
    code, _, err = command("samplers", str(runs["rectified_flow"].folder), "--samplers", "heun", "--evaluations", "1")
    assert code == 1
    assert "--evaluations: heun takes at least 2." in err
    code, _, err = command("samplers", str(runs["nade"].folder), "--out", str(tmp_path / "a"))
    assert code == 1
    assert "(nade) can't be used by `sensorium samplers`, which needs a run of " in err
    assert not (tmp_path / "a").exists()


def test_samples_by_a_sampler(runs: dict[str, Run], tmp_path: Path, command: Command) -> None:
    run = runs["ddpm"]
    method: Any = run.method
    drawn = sensorium.sample(run, 2, steps=3, sampler="euler", seed=5)
    assert torch.equal(drawn, method.to_pixels(method.sample(2, seed=5, steps=3, sampler="euler")))
    assert not torch.equal(drawn, sensorium.sample(run, 2, steps=3, sampler="ancestral", seed=5))
    words = ("sample", str(run.folder), "--n", "2", "--steps", "3", "--out", str(tmp_path / "x.png"))
    found = []
    for sampler in ("euler", "ancestral"):
        code, _, err = command(*words, "--sampler", sampler)
        assert code == 0, err
        found.append(np.asarray(Image.open(tmp_path / "x.png")))
    assert (found[0] != found[1]).any()
    assert command(*words, "--sampler", "heun", "--between", "1,2")[0] == 0
    with pytest.raises(SensoriumError, match=r"--sampler dpm: choose euler, heun\."):
        sensorium.sample(runs["rectified_flow"], 2, sampler="dpm")
    with pytest.raises(SensoriumError, match=r"--sampler: .* does not sample in steps"):
        sensorium.sample(runs["nade"], 2, sampler="euler")
    with pytest.raises(SensoriumError, match="--steps, --sampler and --size out"):
        sensorium.sample(runs["ddpm"], 2, sampler="euler", given="digits")
    with pytest.raises(SensoriumError, match="--sampler ddim: choose euler"):
        sensorium.sample(run, prompt="a cat", sampler="ddim")
