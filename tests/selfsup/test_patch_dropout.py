"""Patch dropout in systems that learn without labels: who leaves patches out, and when."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sensorium
from sensorium.base.draw import Draw
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import ArrayRows
from sensorium.errors import SensoriumError
from sensorium.judge import finetune as judged
from sensorium.method import Progress
from sensorium.networks.vit import ViT
from sensorium.parts.drop import PatchDropout
from sensorium.recipe.trained import make_recipe
from sensorium.runs.run import Run
from sensorium.training.fit import Options, fit
from sensorium.training.step import Step

DROPPING = ("simclr", "dino", "moco_v3", "byol", "simsiam", "vicreg", "barlow_twins")
TAUGHT = {"dino": "teacher", "byol": "target", "moco_v3": "teacher"}
ON = Situation(16, 64, (), (0.5,) * 3, (0.25,) * 3, "cpu", 2)
SMALL = {"backbone": "vit-micro", "batch_size": 4}
FIELDS = {"image": torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))}
GRID = 64  # patches of 2 pixels


def made(system: str, **more):
    torch.manual_seed(0)
    return make_recipe(system, ON, SMALL | more)


def batch_of(recipe, step: int = 0):
    return recipe.views(FIELDS, Draw.seeded(0, step, 4))


def rates(module) -> set[float]:
    return {part.rate for part in module.modules() if isinstance(part, PatchDropout)}


def lengths(method, batch) -> dict[str, set[int]]:
    """Tokens that enter the first block of each ViT of a method, by the network's name."""
    found: dict[str, set[int]] = {}
    handles = [
        part.blocks[0].register_forward_pre_hook(
            lambda _, given, name=name: found.setdefault(name, set()).add(given[0].shape[1])
        )
        for name, part in method.named_modules()
        if isinstance(part, ViT)
    ]
    method(batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("system", DROPPING)
def test_the_network_that_learns_encodes_a_part_and_a_moving_average_all(system: str) -> None:
    recipe = made(system, patch_dropout=0.75)
    assert recipe.settings["patch_dropout"].value == 0.75
    assert recipe.settings["patch_dropout"].source == "given"
    method, batch = recipe.method.train(), batch_of(recipe)
    found = lengths(method, batch)
    teachers = {name for name in found if name.startswith(f"{TAUGHT.get(system)}.")}
    assert len(teachers) == (system in TAUGHT)
    assert all(found[name] == {1 + GRID} for name in teachers)
    assert all(found[name] == {1 + GRID // 4} for name in set(found) - teachers)
    Step(method, recipe.optimizers, recipe.schedule)([batch], Progress(0, 0, 0.0))
    assert all(torch.isfinite(p).all() for p in method.parameters())


@pytest.mark.parametrize("system", DROPPING)
def test_what_is_judged_is_of_all_patches(system: str) -> None:
    dropping, plain = (made(system, patch_dropout=rate).method.eval() for rate in (0.75, 0.0))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(dropping.features(x), plain.features(x))


@pytest.mark.parametrize("system", DROPPING)
def test_at_0_it_is_the_same_training(system: str) -> None:
    """Also for a checkpoint of a run from before: nothing is recorded."""
    found = []
    for more in ({}, {"patch_dropout": 0.0}):
        recipe = made(system, **more)
        assert "patch_dropout" not in recipe.settings
        method = recipe.method.train()
        torch.manual_seed(3)
        loss = method(batch_of(recipe))["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in method.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("system, accumulate", [("simclr", 1), ("simclr", 2), ("dino", 2)])
def test_stopped_and_gone_on_it_ends_as_if_it_had_not_been(system: str, accumulate: int, tmp_path) -> None:
    rows = ArrayRows({"image": np.random.default_rng(0).integers(0, 256, (20, 3, 16, 16), np.uint8)}, "images")
    more = {"local_crops": 1, "prototypes": 32} if system == "dino" else {}

    def trained(folder: str, stop: int | None) -> str:
        recipe, count = made(system, patch_dropout=0.5, **more), iter(range(100))

        def views(*given):
            if next(count) == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return recipe.views(*given)

        options = Options(progress=False, precision="32-true", device="cpu", accumulate=accumulate)
        return fit(replace(recipe, views=views), rows, budget="4steps", out=tmp_path / folder, options=options).status

    assert trained("even", None) == "finished"
    assert trained("cut", 2) == "interrupted"
    assert trained("cut", None) == "finished"
    even, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("even", "cut"))
    assert all(torch.equal(even[name], cut[name]) for name in even)


def test_micro_batches_keep_patches_of_their_own() -> None:
    recipe = made("simclr", patch_dropout=0.5)
    recipe.method.train()
    x = torch.randn(4, 3, 16, 16)
    torch.manual_seed(0)
    first, second = recipe.method.features(x), recipe.method.features(x)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    "backbone, rate, says",
    [
        ("resnet-micro", 0.5, "--patch-dropout 0.5: resnet-micro can't leave patches out. Choose vit-micro, "),
        ("swin-micro", 0.5, "--patch-dropout 0.5: swin-micro can't leave patches out. Choose vit-micro, "),
        ("vit-micro+rope", 0.5, "--patch-dropout 0.5: vit-micro[+]rope can't leave patches out"),
        ("vit-micro+gau", 0.5, "--patch-dropout 0.5: vit-micro[+]gau can't leave patches out"),
        ("vit-micro", 1.0, "--patch-dropout 1: must be at least 0 and less than 1."),
        ("vit-micro", -0.5, "--patch-dropout -0.5: must be at least 0 and less than 1."),
    ],
)
def test_what_does_not_fit_is_one_line(backbone: str, rate: float, says: str) -> None:
    with pytest.raises(SensoriumError, match=says) as caught:
        made("simclr", backbone=backbone, patch_dropout=rate)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dino"
    how = {"data": "digits", "limit": 64, "batch_size": 8, "budget": "2steps", "progress": False}
    sensorium.train("dino", out=out, backbone="vit-micro", prototypes=32, patch_dropout=0.5, **how)
    return out


def test_a_network_that_is_fine_tuned_leaves_nothing_out(run, monkeypatch) -> None:
    opened = Run(run)
    assert rates(opened.method) == {0.5}  # the setting comes back
    tuned = []
    ready = opened.data()
    judged.finetune(
        opened.method.backbone, ready.train, ready.train, fractions=[1.0], steps=1, head_init="zeros",
        keep_network=lambda name, seed, network: tuned.append(network),
    )  # fmt: skip
    assert [rates(network) for network in tuned] == [{0.0}]
    assert rates(opened.method) == {0.5}  # another copy


def test_supervised_starts_from_it_with_all_patches(run) -> None:
    opened = Run(run)
    recipe = make_recipe("supervised", opened.info.situation, {"start": str(run)})
    assert rates(recipe.method) == {0.0}
