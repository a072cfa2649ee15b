"""The range test of the learning rate: curves with a known answer, the same steps taken by hand, and when it isn't sure."""

import json
import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sensorium.data.source import Source
from sensorium.data.wings import kind
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.recipe.trained import make_recipe
from sensorium.runs import rates as tested
from sensorium.runs.options import Common
from sensorium.runs.rates import HIGHEST, LOWEST, STEPS, TIMED, Rising, compared, rates_of, read, rise, said
from sensorium.training.batches import Batches, Share

RATES = np.geomspace(LOWEST, HIGHEST, STEPS)


def curve(at: float, least: float, noise: float = 0.0, seed: int = 0, high: float = 3.0) -> Rising:
    """A loss that falls from ``high`` to 1 around the rate ``at``, and diverges beyond ``least``."""
    x = np.log10(RATES)
    losses = high - (high - 1) / (1 + np.exp(-6 * (x - math.log10(at))))
    losses = losses + np.exp(12 * (x - math.log10(least)))
    losses += noise * np.random.default_rng(seed).standard_normal(STEPS)
    n = int((losses < 4).argmin()) or STEPS
    return Rising(RATES[:n].tolist(), losses[:n].tolist(), 1e-3, "diverged" if n < STEPS else "")


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("at", [3e-5, 1e-3, 1e-2])
def test_the_marks_are_where_the_curve_has_them(at: float, noise: float) -> None:
    found = curve(at, 30 * at, noise)
    marks = read(found)
    assert marks.doubt == ""
    assert at / 1.6 < marks.steepest < at * 1.6
    smooth = curve(at, 30 * at)
    truth = smooth.rates[int(np.argmin(smooth.losses))]
    assert truth / 2.5 < marks.least < truth * 2.5
    assert marks.tenth == marks.least / 10


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_or_noisy_loss_is_not_sure(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for losses in (3 + 0.1 * rng.standard_normal(STEPS), np.full(STEPS, 3.0), np.linspace(3.0, 4.0, STEPS)):
        marks = read(Rising(RATES.tolist(), losses.tolist(), 1e-3))
        assert "hardly falls" in marks.doubt or "noisy" in marks.doubt
    assert read(curve(1e-3, 3e-2, noise=3.0, seed=seed)).doubt
    first, second = said(curve(1e-3, 1e-2), marks, "The default of a here is")
    assert first.startswith("Not sure: the loss hardly falls, from 3.0")
    assert second.startswith("The default of a here is 0.001. More --steps")


def test_what_ends_too_early_is_not_sure() -> None:
    whole = curve(1e-3, 1.0)
    cut = Rising(whole.rates[:110], whole.losses[:110], 1e-3, "time")
    assert "still falling at 0.0019, and the time was up" in read(cut).doubt
    lost = Rising(whole.rates[:3], [3.0, math.inf, math.nan], 1e-3, "diverged")
    assert "known of 1 step only" in read(lost).doubt


@pytest.mark.parametrize(
    "usual, words",
    [(1e-3, "which agrees"), (1e-5, "times below both"), (0.5, "times above both"), (1.5e-3, "which agrees")],
)
def test_the_default_stands_beside(usual: float, words: str) -> None:
    found = curve(1e-3, 3e-2)
    found = Rising(found.rates, found.losses, usual, found.ended)
    first, second = said(found, read(found), "The default of a here is")
    assert first.startswith("The loss falls most steeply at a learning rate of 0.00")
    assert second.startswith(f"The default of a here is {usual:.2g}, ")
    assert words in second


@pytest.fixture
def digits(tmp_path: Path) -> Any:
    return kind("images").prepare(Source("digits", None, tmp_path / "cache", limit=200))


def made(ready: Any, **settings: Any) -> Recipe:
    torch.manual_seed(0)
    return make_recipe("mae", kind("images").situate(ready), {"batch_size": 8, "backbone": "vit-micro", **settings})


def test_the_steps_are_those_taken_by_hand(digits: Any) -> None:
    """The optimizer's rates set by hand, the same batches: the same losses."""
    found = rise(made(digits), digits.train, steps=20, seed=0, device=torch.device("cpu"))
    assert found.rates == pytest.approx(np.geomspace(1e-6, 1.0, 20)[: len(found.rates)])
    assert found.usual == made(digits, lr=None).settings["lr"].value
    recipe = made(digits)
    batches = Batches(digits.train, recipe.views, Share(8), seed=0)
    optimizer = recipe.optimizers(recipe.method)  # type: ignore[operator]
    losses = []
    for rate in [1e-6] * TIMED + found.rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = recipe.method(next(batches))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert found.losses == pytest.approx(losses[TIMED:], rel=1e-5)


class Line(Method):
    """Least squares by plain gradient descent: beyond a rate of 2 / curvature it diverges."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 3.0))

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": 20 * (self.weight**2).sum() + 1}


def falling(lr: float = 0.01) -> Recipe:
    def build(method: Method) -> torch.optim.Optimizer:
        groups = [{"params": [method.weight], "lr_scale": 0.5}]
        return torch.optim.SGD(groups, lr=lr)  # type: ignore[arg-type]

    return Recipe("line", Line(), lambda fields, draw: {}, build, lambda fraction: 1 / 0, 8, Settings())


def test_it_ends_where_the_loss_diverges(digits: Any) -> None:
    shown = []
    found = rise(
        falling(),
        digits.train,
        steps=300,
        seed=0,
        device=torch.device("cpu"),
        advance=lambda done, of: shown.append((done, of)),
    )
    assert found.ended == "diverged"
    assert found.usual == 0.005  # no setting says it: the group's own
    # beyond 2 / 40 of the curvature the weights grow again, from nearly nothing
    assert 0.05 < found.rates[-1] < 1
    assert shown == [(k + 1, 300) for k in range(len(found.rates) - 1)]
    marks = read(found)
    assert not marks.doubt
    assert marks.steepest < min(0.05, marks.least)


def test_slow_steps_are_fewer_and_there_is_an_end(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slow(seconds: float) -> Recipe:
        recipe = falling(1e-9)

        def views(fields: Any, draw: Any) -> dict[str, Any]:
            now[0] += seconds
            return {}

        return Recipe("line", recipe.method, views, recipe.optimizers, recipe.schedule, 8, Settings())

    monkeypatch.setattr(tested.time, "perf_counter", lambda: now[0])
    device = torch.device("cpu")
    told: list[int] = []
    for seconds, of, ended in ((0.1, 200, "diverged"), (1.0, 80, "diverged"), (4.0, 40, "time")):
        now[0] = 0.0
        told.clear()
        found = rise(
            slow(seconds), digits.train, steps=200, seed=0, device=device, advance=lambda done, n: told.append(n)
        )
        assert set(told) == {of}
        assert found.ended == ended
        assert now[0] <= 130


@pytest.mark.parametrize("system", ["simclr", "supervised", "dino"])
def test_page_and_numbers(system: str, tmp_path: Path) -> None:
    options = Common(data="digits", out=tmp_path / "a", limit=64, quiet=True)
    found, page = rates_of(system, options, {"batch_size": 8, "backbone": "resnet-micro", "lr": None}, steps=41)
    assert found == json.loads((tmp_path / "a" / "rates.json").read_text())
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) <= 41
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("<figure>") == 1
    assert all(escape(one) in text for one in found["said"])
    assert f"default {found['usual']:.2g}" in text
    assert {one.name for one in (tmp_path / "a").iterdir()} <= {"cache", "rates.html", "rates.json"}


def test_the_command(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    words = ("--data", "digits", "--limit", "64", "--steps", "40", "--out", str(tmp_path / "a"))
    code, out, err = command("rates", "mae,batch_size=8,lr=0.001", *words)
    assert code == 0, err
    assert "The learning rate given to mae is 0.001" in " ".join(out.split())
    assert "rates.html" in out
    kept = json.loads((tmp_path / "a" / "rates.json").read_text())
    kept |= {"sure": True, "usual": 1e-3, "steepest": 3e-4, "tenth": 1e-3}
    assert compared(kept, "mae") == "sensorium ablate mae --vary lr=0.001,0.0003 --data digits"
    assert compared(kept | {"steepest": 1e-3}, "mae") is None
    assert compared(kept | {"sure": False}, "mae") is None


def test_what_cannot_work_is_said_and_a_stop_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Common(data="digits", out=tmp_path / "a", limit=64, quiet=True)
    with pytest.raises(SensoriumError, match="--steps 1: should be"):
        rates_of("mae", options, {}, steps=1)
    with pytest.raises(SensoriumError, match="frozen: nothing of it is trained"):
        rates_of("frozen", options, {"backbone": "resnet-micro"})

    def stop(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tested, "rise", stop)
    with pytest.raises(KeyboardInterrupt):
        rates_of("mae", options, {})
    assert not list((tmp_path / "a").glob("rates.*"))
