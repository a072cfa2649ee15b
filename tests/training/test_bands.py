"""Bands of the loss: scales by method, averages, where a run lies, and what it says."""

import importlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from sensorium.base.files import write_json
from sensorium.catalogue import systems
from sensorium.data.images.prepare import Situation
from sensorium.recipe.recipe import READ, Recipe, Setting
from sensorium.recipe.trained import roles
from sensorium.runs.train import train
from sensorium.selfsup.barlow_twins.method import barlow_loss
from sensorium.selfsup.byol.method import byol_loss
from sensorium.selfsup.dino.method import dino_loss
from sensorium.selfsup.i_jepa.method import ZERO
from sensorium.selfsup.margin_contrastive.method import margin_loss
from sensorium.selfsup.simclr.recipe import simclr
from sensorium.selfsup.simsiam.method import simsiam_loss
from sensorium.selfsup.swav.method import swav_loss
from sensorium.selfsup.vicreg.method import EPS, vicreg_loss
from sensorium.training import bands
from sensorium.training.bands import AT, averaged, place, read_bands

GREY = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
ON = Situation(32, 1000, ("a", "b"), *GREY, "cpu", 1)
OURS = [one for one in systems() if one.family == "selfsup" and one.data == "images" and one.trains]
RULED = [one.name for one in OURS if not roles(one.name)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scale(system: str, **settings: Any) -> tuple[float, float]:
    made = importlib.import_module(f"sensorium.selfsup.{system}.recipe")
    found = bands.scale_of(getattr(made, system)(ON, **settings).method, {"ceiling": 5.0})
    assert found is not None
    return found


def test_the_loss_of_unrelated_outputs_is_that_of_chance() -> None:
    """Each method's own loss, of outputs that tell nothing."""
    K, P, N = 64, 512, 400
    one, other = noise(N, P), noise(N, P, seed=1)
    uniform = torch.zeros(2, N, K)
    found = {
        "byol": (byol_loss(one, other, other.flip(0), one.flip(0)), scale("byol")),
        "simsiam": (simsiam_loss(one, other, one.flip(0), other.flip(0)), scale("simsiam")),
        "dino": (
            dino_loss(uniform, uniform, torch.zeros(K), tau_t=0.04, tau_s=0.1)["loss"],
            scale("dino", prototypes=K),
        ),
        "swav": (swav_loss(uniform, uniform.softmax(-1))["loss"], scale("swav", prototypes=K)),
        "barlow_twins": (barlow_loss(one, other, 0.0)["loss"], scale("barlow_twins", projection=P)),
        "margin_contrastive": (margin_loss(0 * one, 0 * one, 2.0), scale("margin_contrastive", margin=2.0)),
        "vicreg": (vicreg_loss(0 * one, 0 * one, 25, 20, 1)["loss"] / (1 - EPS**0.5), scale("vicreg", variance=20.0)),
        "i_jepa": (F.smooth_l1_loss(0 * noise(10**6), noise(10**6)), (0.0, ZERO)),
        "simmim": (noise(10**6).abs().mean(), scale("simmim")),
        "mae": (noise(10**6).square().mean(), scale("mae")),
    }
    for name, (loss, (_, chance)) in found.items():
        assert float(loss) == pytest.approx(chance, rel=0.01, abs=0.02), name


def test_contrastive_losses_have_the_ceiling_of_their_bound() -> None:
    assert scale("simclr") == scale("moco_v2") == scale("cpc") == (0.0, 5.0)
    assert scale("moby") == (0.0, 10.0)
    assert scale("moco_v3", temperature=0.2) == (0.0, pytest.approx(4 * 0.2 * 5.0))
    assert scale("deep_infomax") == (-5.0, 0.0)
    assert bands.scale_of(simclr(ON).method, {}) is None


@pytest.mark.parametrize("system", RULED)
def test_a_scale_is_known_or_nothing_is_said(system: str) -> None:
    method = getattr(importlib.import_module(f"sensorium.selfsup.{system}.recipe"), system)(ON).method
    found = bands.scale_of(method, {"ceiling": 5.0})
    assert found is None or (math.isfinite(found[0]) and found[0] < found[1])


def test_losses_are_averaged_around_each_fraction() -> None:
    assert averaged([float(i) for i in range(1000)]) == pytest.approx([99.5, 249.5, 499.5, 749.5, 987.0])
    assert len(averaged([1.0] * 100)) == len(AT)


def band(low: float, high: float, **other: Any) -> dict[str, Any]:
    """A band as the command writes it: relative losses between two numbers at each fraction."""
    ends = {"low": [low] * len(AT), "median": [(low + high) / 2] * len(AT), "high": [high] * len(AT)}
    return {"network": "ResNet", "sides": [28, 32], "runs": 12, "at": list(AT), **ends, **other}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Writes bands where those of all systems are looked for."""
    monkeypatch.setattr(bands, "bands_path", lambda system: tmp_path / f"{system.name}.json")
    return lambda *rows: write_json(tmp_path / "simclr.json", {"made": "here", "bands": list(rows)})


def recipe(**settings: Any) -> Recipe:
    return simclr(ON, backbone="resnet-micro", **settings)


@pytest.mark.parametrize(
    "loss, said",
    [
        (2.0, "loss 2 at the end: within what 12 runs of SimCLR (ResNet) reached on pictures of 28 to 32 px (1.5 to 2.5)."),
        (2.6, "loss 2.6 at the end: above what 12 runs of SimCLR (ResNet) reached on pictures of 28 to 32 px (1.5 to 2.5). Train longer or"),
        (1.4, "loss 1.4 at the end: below what 12 runs of SimCLR (ResNet) reached on pictures of 28 to 32 px (1.5 to 2.5). Look whether"),
    ],
)  # fmt: skip
def test_a_run_is_told_where_its_loss_lies(loss: float, said: str, kept: Any) -> None:
    kept(band(0.3, 0.5), band(0.9, 1.0, network="ViT"), band(0.8, 0.9, sides=[224, 224]))
    found = place(recipe(), 32, [5.0] * 60 + [loss] * 60, {"ceiling": 5.0})
    assert found is not None
    assert found.said.startswith(said)
    assert found.said.endswith(".")
    assert found.band == tuple((at, pytest.approx(1.5), pytest.approx(2.5)) for at in AT)


def test_nothing_is_said_without_a_band_for_the_run(kept: Any) -> None:
    losses, scalars = [2.0] * 200, {"ceiling": 5.0}
    assert place(recipe(), 32, losses, scalars) is None  # no file
    kept(band(0.3, 0.5))
    assert place(recipe(), 32, losses, scalars) is not None
    assert place(recipe(), 224, losses, scalars) is None
    assert place(recipe(), None, losses, scalars) is None
    assert place(recipe(), 32, losses[:50], scalars) is None
    assert place(recipe(), 32, losses, {}) is None
    assert place(simclr(ON, backbone="vit-micro"), 32, losses, scalars) is None
    began = recipe()
    began.settings[READ] = Setting("ResNet", "read from a file")
    assert place(began, 32, losses, scalars) is None


@pytest.mark.parametrize("system", [one for one in systems() if one.trains], ids=lambda one: one.name)
def test_the_bands_that_are_shipped_can_be_read(system: Any) -> None:
    for one in read_bands(bands.bands_path(system)):
        assert one.runs >= bands.FEWEST_RUNS
        assert one.at == AT
        assert all(low <= mid <= high for low, mid, high in zip(one.low, one.median, one.high, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of a system, one too short, and one of another that no band is known of."""
    out = tmp_path_factory.mktemp("runs")
    how: dict[str, Any] = {"data": "digits", "limit": 64, "batch_size": 8, "quiet": True, "threads": 1}
    for seed in range(3):
        train("simsiam", budget="100steps", out=out / f"run-{seed}", seed=seed, **how)
    train("simsiam", budget="20steps", out=out / "short", **how)
    return out


def test_the_command_makes_bands_of_runs_and_a_later_run_reads_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    measured = pytest.importorskip("benchmarks.bands", reason="benchmarks are seen from the repository's folder")
    for module in (measured, bands):
        monkeypatch.setattr(module, "bands_path", lambda system: tmp_path / f"{system.name}.json")
    measured.main([str(folder), "--dry-run"])
    assert not list(tmp_path.iterdir())
    measured.main([str(folder)])
    printed = capsys.readouterr().out
    assert "short: left out: fewer than 100 steps" in printed
    assert "simsiam, Airbench, 8 to 8 px, 3 runs" in printed
    found = read_bands(tmp_path / "simsiam.json")
    assert [(one.network, one.sides, one.runs) for one in found] == [("Airbench", (8, 8), 3)]
    how: dict[str, Any] = {"data": "digits", "limit": 64, "batch_size": 8, "quiet": True, "threads": 1}
    run = train("simsiam", budget="100steps", out=tmp_path / "again", seed=1, **how)
    said = [note for note in run.outcome.notes if note.startswith("loss -")]
    assert len(said) == 1
    assert "what 3 runs of SimSiam (Airbench) reached on pictures of 8 px" in said[0]
    assert [at for at, _, _ in run.outcome.band] == list(AT)
    measured.main([str(folder), "--fewest", "4"])
    assert "no band" in capsys.readouterr().out


def test_the_report_shades_the_band_behind_the_curve(tmp_path: Path) -> None:
    from sensorium.report.curves import losses as drawn
    from sensorium.report.curves import read_band

    (tmp_path / "run").mkdir()
    rows = [f"{step},{step},{8 * step},{1 / (step + 1)}" for step in range(50)]
    (tmp_path / "run" / "metrics.csv").write_text("step,seconds,seen,loss\n" + "\n".join(rows) + "\n")
    results: Any = SimpleNamespace(runs=[SimpleNamespace(name="run", shown="Run")])
    assert 'class="area"' not in str(drawn(results, tmp_path))
    write_json(tmp_path / "run" / "outcome.json", {"band": [[0.1, 0.4, 0.6], [1.0, 0.1, 0.2]]})
    assert read_band(tmp_path, "run") == ((0.1, 0.4, 0.6), (1.0, 0.1, 0.2))
    shown = str(drawn(results, tmp_path))
    assert 'class="area"' in shown
    assert "Shaded" in shown
    write_json(tmp_path / "run" / "outcome.json", {"band": [[0.1, "x", 0.6]]})
    assert read_band(tmp_path, "run") == ()
