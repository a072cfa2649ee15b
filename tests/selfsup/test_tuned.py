"""How much of a trained network the supervised baseline trains: all, low-rank products, or its head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sensorium
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.lowrank import is_adapted, merged
from sensorium.published import export
from sensorium.published.export import preferred
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.selfsup.supervised.method import Supervised
from sensorium.training.step import Step
from sensorium.use import export as take_away

STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
QUIET: dict[str, Any] = {"limit": 120, "quiet": True, "threads": 1}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return export(
        ViT(16, 4, 24, 2, 2), "hf", tmp_path_factory.mktemp("published") / "vit", mean=STATISTICS[0], std=STATISTICS[1],
        image_size=16,
    )  # fmt: skip


def tuned(published: Path, out: Path, **how: Any) -> Run:
    return train("supervised", "digits", backbone=str(published), out=out, budget="4steps", **QUIET, **how)


def moved(run: Run, published: Path) -> set[str]:
    """Names of the network's tensors that training changed."""
    before, after = sensorium.load(published).state_dict(), merged(run.method.backbone.network).state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_full_trains_all_at_rates_that_shrink_with_depth(published: Path, tmp_path: Path) -> None:
    run = tuned(published, tmp_path / "full", head_first=0.0)
    assert moved(run, published) == set(sensorium.load(published).state_dict())
    groups = next(iter(Step(run.recipe.method, run.recipe.optimizers, run.recipe.schedule).optimizers.values()))
    rates = sorted({g["lr"] for g in groups.param_groups}, reverse=True)
    assert np.allclose(np.divide(rates[1:], rates[:-1]), 0.75)
    assert len(rates) == 4  # head and last norm, two blocks, embeddings


def test_last_trains_the_head_alone(published: Path, tmp_path: Path) -> None:
    run = tuned(published, tmp_path / "last", tune="last")
    assert moved(run, published) == set()
    torch.manual_seed(run.info.seed)
    assert run.method.head.weight.abs().max() > 0
    step = Step(run.recipe.method, run.recipe.optimizers, run.recipe.schedule)
    assert {id(p) for p in step.parameters["train"]} == {id(p) for p in run.recipe.method.head.parameters()}


def test_lora_trains_products_that_every_export_holds_added(published: Path, tmp_path: Path) -> None:
    run = tuned(published, tmp_path / "lora", tune="lora", rank=2)
    assert is_adapted(run.method)
    assert moved(run, published) == {name for name in sensorium.load(published).state_dict() if name.startswith(("blocks", "patch")) and "weight" in name and "norm" not in name}  # fmt: skip
    images = torch.randn(2, 3, 8, 8)
    seen = run.method.backbone.prepared(images)
    alone = sensorium.load(run.folder / "backbone")
    assert (alone.features(seen) - run.method.features(images)).abs().max() <= 1e-5
    transformers = pytest.importorskip("transformers")
    path = take_away(run, "hf", out=tmp_path / "hf")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(path).eval()
    assert (theirs(seen).logits - run.method.logits(images)).abs().max() <= 1e-5


def test_what_others_open_best_is_found_behind_the_preparation_and_the_products(
    published: Path, tmp_path: Path
) -> None:
    found = preferred(tuned(published, tmp_path / "lora", tune="lora", rank=2).method, "supervised")
    assert found is not None
    assert found.to == "hf"


def test_a_run_of_products_is_an_input_of_another(published: Path, tmp_path: Path) -> None:
    first = tuned(published, tmp_path / "lora", tune="lora", rank=2)
    again = train("supervised", "digits", start=str(first.folder), budget="1steps", out=tmp_path / "again", **QUIET)
    assert not is_adapted(again.method)
    images = torch.randn(2, 3, 8, 8)
    assert (again.recipe.method.features(images) - first.method.features(images)).abs().max() <= 1e-5
    how = {"start": str(again.folder), "tune": "lora", "budget": "1steps", "out": tmp_path / "third"}
    third = Run(train("supervised", "digits", **how, **QUIET).folder)
    assert is_adapted(third.method)


@pytest.mark.parametrize("how", [{"tune": "lora"}, {"tune": "last"}, {"head_first": 0.5}])
def test_in_pieces_is_the_same_as_at_once(how: dict[str, Any], published: Path, tmp_path: Path) -> None:
    from sensorium.data.images.prepare import Situation
    from sensorium.selfsup.supervised.recipe import supervised

    on = Situation(8, 100, ("a", "b", "c"), *STATISTICS, "cpu", 1)
    batch = {"image": torch.randn(6, 3, 8, 8), "label": torch.arange(6) % 3}

    def step() -> tuple[Any, Step]:
        torch.manual_seed(0)
        recipe = supervised(on, backbone=str(published), **how)
        return recipe.method, Step(recipe.method.train(), recipe.optimizers, recipe.schedule)

    whole, steps = step()
    for k in range(4):
        steps([batch], Progress(k, 0, k / 4))
    first, steps = step()
    for k in range(2):
        steps([batch], Progress(k, 0, k / 4))
    second, later = step()
    second.load_state_dict(first.state_dict())
    later.load_state_dict(steps.state_dict())
    for k in range(2, 4):
        later([batch], Progress(k, 0, k / 4))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


def method(network: Callable[[], Any], *, head_first: float) -> tuple[Supervised, Step]:
    torch.manual_seed(0)
    one = Supervised(network(), 3).train()
    one.head_first = head_first
    return one, Step(one, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), lambda done: 1.0)


def test_the_head_is_first_and_batch_norms_rest_with_it() -> None:
    one, step = method(lambda: ResNet((1, 1), 8, stem="small"), head_first=0.5)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    batch = {"image": torch.randn(6, 3, 8, 8), "label": torch.arange(6) % 3}
    for k in range(4):
        step([batch], Progress(k, 0, k / 4))
        changed = {
            name.partition(".")[0] for name, value in one.state_dict().items() if not torch.equal(value, before[name])
        }
        assert changed == ({"head"} if k < 2 else {"head", "backbone"})
    statistics = [name for name in before if "running_mean" in name]
    assert statistics
    assert all(not torch.equal(one.state_dict()[name], before[name]) for name in statistics)


def test_several_processes_drop_the_gradients_that_one_does_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    from sensorium.selfsup.supervised import method as module
    from sensorium.training import step as update

    batch = {"image": torch.randn(6, 3, 8, 8), "label": torch.arange(6) % 3}
    found = []
    for world in (1, 2):
        one, step = method(lambda: ViT(8, 4, 12, 1, 2), head_first=0.5)
        monkeypatch.setattr(module, "world_size", lambda world=world: world)
        monkeypatch.setattr(update, "world_size", lambda world=world: world)
        monkeypatch.setattr(module, "sum_over_processes", lambda x, world=world: x * world)
        step([batch], Progress(0, 0, 0.0))
        found.append({name: value.clone() for name, value in one.state_dict().items()})
    for name in found[0]:
        assert (found[0][name] - found[1][name]).abs().max() <= (1e-6 if name.startswith("head") else 0)


@pytest.mark.parametrize(
    "how, said",
    [
        ({"tune": "lora"}, "--tune lora: of a random network all must be trained"),
        ({"tune": "last", "backbone": "vit-micro"}, "--tune last: of a random network"),
        ({"side": 32}, "--side is for the network of a checkpoint"),
        ({"layer_decay": 0.0}, "--layer-decay 0.0: must be above 0"),
        ({"head_first": 1.0}, "--head-first 1: must be at least 0 and less than 1"),
        ({"drop_path": 0.1, "backbone": "resnet-micro"}, "--drop-path 0.1: ResNet has no branches to skip"),
        ({"drop_path": 1.0, "backbone": "vit-micro"}, "--drop-path 1: must be at least 0 and less than 1"),
        ({"mixup": -1.0}, "--mixup -1: must not be negative"),
        ({"cutmix": float("nan")}, "--cutmix nan: must not be negative"),
        ({"backbone": "PATH", "tune": "lora", "rank": 0}, "rank must be at least 1"),
        ({"backbone": "PATH", "side": 30}, "30"),
        ({"backbone": "PATH", "side": 4}, "--side 4: must be at least 8"),
        ({"backbone": "PATH", "tune": "lowrank"}, "lowrank"),
    ],
)
def test_bad_settings_are_one_line(how: dict[str, Any], said: str, published: Path, tmp_path: Path) -> None:
    given = {key: str(published) if value == "PATH" else value for key, value in how.items()}
    with pytest.raises(SensoriumError, match=said) as error:
        train("supervised", "digits", budget="1steps", out=tmp_path / "run", **QUIET, **given)
    assert "\n" not in str(error.value)
