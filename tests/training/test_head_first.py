"""The heads learn first where the network comes from a checkpoint: settings, schedule, gradients, going on."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sensorium.data.images.prepare import Situation
from sensorium.data.source import Source
from sensorium.data.wings import kind
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.published import export
from sensorium.recipe.heads import staged
from sensorium.recipe.recipe import Recipe
from sensorium.selfsup.byol.recipe import byol
from sensorium.selfsup.mae.method import MAE
from sensorium.selfsup.simclr.recipe import simclr
from sensorium.selfsup.simmim.method import SimMIM
from sensorium.training.fit import Options, fit
from sensorium.training.step import Step

GREY = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
ON = Situation(8, 64, ("a", "b"), *GREY, "cpu", 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    network = ResNet((1, 1), 8, stem="small")
    out = tmp_path_factory.mktemp("published") / "resnet"
    return str(export(network, "safetensors", out, mean=GREY[0], std=GREY[1], image_size=8))


def test_a_checkpoint_rests_for_a_tenth_and_random_weights_not_at_all(checkpoint: str) -> None:
    trained, fresh = simclr(ON, backbone=checkpoint), simclr(ON)
    assert (trained.method.head_first, fresh.method.head_first) == (0.1, 0.0)
    assert trained.settings["head_first"].value == 0.1
    assert "head_first" not in fresh.settings
    assert [simclr(ON, backbone=name, head_first=0.3).method.head_first for name in (checkpoint, None)] == [0.3, 0.3]
    off = simclr(ON, backbone=checkpoint, head_first=0.0)
    assert off.method.head_first == 0
    assert [off.schedule(done / 10) for done in range(11)] == [fresh.schedule(done / 10) for done in range(11)]


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_other_fractions_are_refused(value: float) -> None:
    with pytest.raises(SensoriumError, match=r"--head-first .* must be at least 0 and less than 1"):
        simclr(ON, head_first=value)


def test_the_rate_warms_up_and_falls_in_both_parts() -> None:
    schedule = staged(lambda done: done, 0.2)
    assert [schedule(done) for done in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.5, 0.0, 0.5, 1.0])


@pytest.mark.parametrize("system", ["mae", "simmim"])
def test_what_is_learned_beside_the_network_gets_its_gradient_through_it(system: str) -> None:
    """SimMIM's mask token goes into the network that rests."""
    torch.manual_seed(0)
    network = ViT(8, 4, 12, 1, 2)
    method: Any = (
        SimMIM(network, mask_unit=4)
        if system == "simmim"
        else MAE(network, decoder_width=12, decoder_depth=1, decoder_heads=2, mask_ratio=0.5)
    )
    method.head_first = 0.5
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step = Step(method.train(), lambda m: torch.optim.AdamW(m.parameters(), lr=0.1), lambda done: 1.0)
    step([{"image": torch.randn(4, 3, 8, 8)}], Progress(0, 0, 0.0))
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert "mask_token" in changed
    assert not any(name.startswith("backbone.") for name in changed)
    step([{"image": torch.randn(4, 3, 8, 8)}], Progress(1, 0, 0.5))
    assert any(not torch.equal(value, before[f"backbone.{name}"]) for name, value in network.state_dict().items())


def test_the_moving_average_rests_too_and_its_head_follows(checkpoint: str) -> None:
    torch.manual_seed(0)
    recipe = byol(ON, backbone=checkpoint, batch_size=8, head_first=0.5)
    method, step = recipe.method.train(), Step(recipe.method, recipe.optimizers, recipe.schedule)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step([{"views": [torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8)]}], Progress(0, 0, 0.2))
    changed = {".".join(n.split(".")[:2]) for n, v in method.state_dict().items() if not torch.equal(v, before[n])}
    assert {"online.projector", "target.projector"} <= changed
    assert not changed & {"online.backbone", "target.backbone"}


@pytest.mark.parametrize("kill_at", [1, 4])
def test_killed_in_either_part_it_ends_as_if_it_had_not_been(kill_at: int, checkpoint: str, tmp_path: Path) -> None:
    ready = kind("images").prepare(Source("digits", None, tmp_path / "cache", limit=64))

    def trained(folder: str, kill: int | None) -> str:
        torch.manual_seed(0)
        recipe: Recipe = byol(kind("images").situate(ready), backbone=checkpoint, batch_size=8, head_first=0.5)
        made = iter(range(100))

        def views(*given: Any) -> dict[str, Any]:
            if next(made) == kill:
                os.kill(os.getpid(), signal.SIGTERM)
            return recipe.views(*given)

        options = Options(progress=False)
        again = replace(recipe, views=views)
        return fit(again, ready.train, budget="6steps", out=tmp_path / folder, options=options).status

    assert trained("even", None) == "finished"
    assert trained("killed", kill_at) != "finished"
    assert trained("killed", None) == "finished"
    even, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("even", "killed"))
    assert all(torch.equal(even[name], killed[name]) for name in even)
    assert any(not torch.equal(even[name], value) for name, value in initial(checkpoint, ready).items())


def initial(checkpoint: str, ready: Any) -> dict[str, torch.Tensor]:
    """A run's weights before its first step, of the network alone."""
    recipe = byol(kind("images").situate(ready), backbone=checkpoint, batch_size=8)
    return {name: value for name, value in recipe.method.state_dict().items() if name.startswith("online.backbone")}
