"""Pictures between those of two seeds: the arc, the command, Python."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import sensorium
from sensorium.errors import SensoriumError
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.use.sampling import drawn_between, on_the_arc, seeds_of

Command = Callable[..., tuple[int, str, str]]  # the fixture in tests/conftest.py


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("drawn")
    rows = {
        "edm": {"batch_size": 4, "steps": 2},
        "vae": {"batch_size": 8},
        "gan": {"batch_size": 4},
        "made": {"hidden": 20},
    }
    return {
        name: train(name, data="digits", out=folder / name, budget="1steps", progress=False, **how)
        for name, how in rows.items()
    }


@pytest.mark.parametrize("shape", [(7,), (3, 5, 4)])
def test_the_arc_has_even_angles_and_the_lengths_of_its_ends(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, *shape, dtype=torch.float64)
    b = b * (a.norm() / b.norm())
    arc = on_the_arc(a, b, torch.linspace(0, 1, 6, dtype=torch.float64))
    torch.testing.assert_close(arc[[0, -1]], torch.stack([a, b]))
    torch.testing.assert_close(arc.flatten(1).norm(dim=1), a.norm().expand(6))
    angles = torch.cosine_similarity(arc[1:].flatten(1), arc[:-1].flatten(1)).acos()
    torch.testing.assert_close(angles, angles[:1].expand(5))
    torch.testing.assert_close(on_the_arc(a, a, torch.linspace(0, 1, 3)), a.expand(3, *shape))
    assert bool(on_the_arc(a, -a, torch.linspace(0, 1, 3)).isfinite().all())


@pytest.mark.parametrize("name", ["edm", "vae", "gan"])
def test_the_ends_are_the_seeds(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    drawn = drawn_between(run, (3, 8), 4, steps=None, label=None, guidance=1.0)
    ends = torch.cat([run.method.sample(1, seed=seed) for seed in (3, 8)])
    torch.testing.assert_close(drawn[[0, -1]], ends, atol=1e-4, rtol=1e-4)
    steps = drawn.diff(dim=0).flatten(1).norm(dim=1)
    assert float(steps.min()) > 0
    assert float(steps.max()) < float((ends[1] - ends[0]).norm())


def test_the_command_and_python(runs: dict[str, Run], tmp_path: Path, command: Command) -> None:
    words = ("sample", str(runs["vae"].folder), "--out", str(tmp_path / "row.png"))
    assert command(*words, "--between", "3,8")[0] == 0
    assert Image.open(tmp_path / "row.png").width == 8 * Image.open(tmp_path / "row.png").height
    pixels = sensorium.sample(runs["vae"], 2, between=(3, 8))
    assert pixels.shape[:2] == (4, 3)
    assert torch.equal(pixels[:1], sensorium.sample(runs["vae"], 1, seed=3))
    for between, seed, said in (((3, 8), 1, "leave --seed"), ((3,), 0, "give two seeds"), ((3, -1), 0, "whole number")):
        with pytest.raises(SensoriumError, match=said):
            sensorium.sample(runs["vae"], between=between, seed=seed)  # type: ignore[arg-type]
    for more, said in (
        (("--between", "3"), "give two seeds, such as --between 3,8"),
        (("--between", "3,x"), "should be a whole number"),
        (("--between", "3,-1"), "should be a whole number"),
        (("--between", "1,2", "--seed", "4"), "leave --seed and --trace out"),
        (("--between", "1,2", "--given", str(tmp_path)), "--given completes pictures"),
        (("--between", "1,2", "--label", "3"), "was trained without labels"),
        (("--between", "1,2", "--prompt", "a cat"), "a prompt is drawn without"),
    ):
        code, _, err = command(*words, *more)
        assert code == 1
        assert said in err
    code, _, err = command("sample", str(runs["made"].folder), "--between", "1,2")
    assert (code, "does not draw from normal noise" in err) == (1, True)
    code, _, err = command("sample", str(runs["gan"].folder), "--label", "3", "--guidance", "2")
    assert (code, "can't be guided" in err) == (1, True)


def test_seeds() -> None:
    assert seeds_of("3, 8") == (3, 8)
    for wrong in ("", "1,2,3", "1;2"):
        with pytest.raises(SensoriumError, match="--between"):
            seeds_of(wrong)
