"""One contract for the whole catalogue: every legal method x backbone x kind of data, tiny, on the CPU.

Two steps train and change the weights; accumulated gradients are those of the whole batch where the loss decomposes; state
changes in hooks only; the state dict survives a round trip; features are finite; the catalogue's claims are true.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorium.catalogue import NETWORKS, SYSTEMS, resolve
from sensorium.data.cache import Pixels, cache
from sensorium.data.draw import Draw
from sensorium.data.open import open_data
from sensorium.errors import SensoriumError
from sensorium.kinds import kind_name
from sensorium.method import Progress
from sensorium.protocols import PROTOCOLS, Encoder, protocols_of
from sensorium.recipes.backbone import NAMES, choices
from sensorium.recipes.language import TextSituation
from sensorium.recipes.recipe import Recipe, Situation

SEEING = [system for system in SYSTEMS if system.data == "images"]
SMALL = ("resnet-micro", "resnet-18", "vit-micro")
DATA = ("digits", "scenes:64", "npz 28 px grey", "unlabelled 33 px")
BATCH = 8


@pytest.fixture(scope="session")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pixels]:
    folder = tmp_path_factory.mktemp("pixels")
    rng = np.random.default_rng(0)
    np.savez(folder / "grey.npz", images=rng.integers(0, 255, (40, 28, 28), np.uint8), labels=np.arange(40) % 4)
    np.savez(folder / "bare.npz", images=rng.integers(0, 255, (40, 33, 33, 3), np.uint8))
    paths = {
        "digits": ("digits", 8),
        "scenes:64": ("scenes:64", 32),
        "npz 28 px grey": (str(folder / "grey.npz"), 28),
        "unlabelled 33 px": (str(folder / "bare.npz"), 33),
    }
    return {
        name: cache(open_data(path).train, size, folder / "cache" / name.replace(" ", "-"))
        for name, (path, size) in paths.items()
    }


def situation(p: Pixels) -> Situation:
    return Situation(p.images.shape[-1], len(p), tuple(p.classes), tuple(p.mean), tuple(p.std), "cpu", 2, False)  # type: ignore[arg-type]


def built(system: str, backbone: str, p: Pixels) -> Recipe:
    torch.manual_seed(0)
    entry = next(s for s in SYSTEMS if s.name == system)
    return resolve(entry.recipe)(situation(p), backbone=backbone, batch_size=BATCH)


def batch_of(recipe: Recipe, p: Pixels, step: int = 0) -> dict:
    rows = np.arange(BATCH) + step * BATCH
    labels = np.full(BATCH, -1) if p.labels is None else np.asarray(p.labels)[rows]
    return recipe.views(
        torch.from_numpy(np.array(p.images[rows])), torch.as_tensor(labels), Draw.seeded(0, step, BATCH)
    )


def legal() -> list[tuple[str, str, str]]:
    triples = []
    for system in SEEING:
        for backbone in SMALL:
            for data in DATA:
                if backbone in choices(PROTOCOLS[system.needs]) and not (
                    system.labels and data.startswith("unlabelled")
                ):
                    triples.append((system.name, backbone, data))
    return triples


@pytest.mark.parametrize("system, backbone, data", legal())
def test_two_steps(system: str, backbone: str, data: str, pixels: dict[str, Pixels], tmp_path: Path) -> None:
    p = pixels[data]
    recipe = built(system, backbone, p)
    method = recipe.method.train()
    optimizer = recipe.optimizer(method)
    before = copy.deepcopy(method.state_dict())
    for step in range(2):
        at = Progress(step, 0, step / 2)
        method.before_step(at)
        optimizer.zero_grad()
        out = method(batch_of(recipe, p, step))
        assert out["loss"].ndim == 0
        assert all(torch.isfinite(v).all() for v in out.values())
        assert all(not v.requires_grad for k, v in out.items() if k != "loss")
        out["loss"].backward()
        method.before_update(at)
        optimizer.step()
        method.after_step(Progress(step + 1, 0, (step + 1) / 2))
    after = method.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)

    images = torch.randn(3, 3, *p.images.shape[-2:])
    method.eval()
    with torch.no_grad():
        features = method.features(images)
    assert features.shape == (3, method.dim)
    assert torch.isfinite(features).all()

    from safetensors.torch import load_file, save_file

    save_file({k: v.contiguous().clone() for k, v in after.items()}, tmp_path / "m.safetensors")
    twin = built(system, backbone, p).method.eval()
    twin.load_state_dict(load_file(tmp_path / "m.safetensors"))
    with torch.no_grad():
        assert torch.equal(twin.features(images), features)


@pytest.mark.parametrize("system, backbone", sorted({(s, b) for s, b, _ in legal()}))
def test_forward_changes_no_state(system: str, backbone: str, pixels: dict[str, Pixels]) -> None:
    """In evaluation mode no entry of the state dict may change in ``forward``; in training mode none but BatchNorm's running statistics."""
    p = pixels["scenes:64"]
    recipe = built(system, backbone, p)
    batch = batch_of(recipe, p)
    for mode in (False, True):
        method = recipe.method.train(mode)
        before = copy.deepcopy(method.state_dict())
        torch.manual_seed(0)
        first = method(batch)["loss"]
        changed = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
        assert all(mode and k.endswith(("running_mean", "running_var", "num_batches_tracked")) for k in changed), (
            changed
        )
        if not mode:
            torch.manual_seed(0)
            assert torch.equal(first, method(batch)["loss"])


@pytest.mark.parametrize("system", ["mae", "supervised"])
def test_accumulated_gradients_are_those_of_the_batch(system: str, pixels: dict[str, Pixels]) -> None:
    """For losses that are means over pictures, on a network without BatchNorm."""
    p = pixels["scenes:64"]
    recipe = built(system, "vit-micro", p)
    batch = batch_of(recipe, p)
    method = recipe.method.train()
    method(batch)["loss"].backward()
    whole = {k: v.grad.clone() for k, v in method.named_parameters() if v.grad is not None}
    method.zero_grad()
    for rows in (slice(0, 4), slice(4, 8)):
        (method({k: v[rows] for k, v in batch.items()})["loss"] / 2).backward()
    for k, v in method.named_parameters():
        if v.grad is not None:
            torch.testing.assert_close(v.grad, whole[k], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("system", SEEING, ids=lambda s: s.name)
def test_the_catalogue_tells_the_truth(system, pixels: dict[str, Pixels]) -> None:
    backbone = "vit-micro" if system.needs == "TokenEncoder" else "resnet-micro"
    method = built(system.name, backbone, pixels["scenes:64"]).method
    assert set(system.protocols) <= set(protocols_of(method))
    assert isinstance(method.backbone, Encoder)


@pytest.mark.parametrize("system", [s for s in SYSTEMS if s.data == "text"], ids=lambda s: s.name)
def test_text_systems(system, tmp_path: Path) -> None:
    """Two steps, finite and changing the weights; accumulated gradients exact; state dict there and back; claims true."""
    on = TextSituation(vocab=40, length=12, rows=50)

    def fresh() -> Recipe:
        torch.manual_seed(0)
        return resolve(system.recipe)(on, batch_size=4, width=16, depth=2, heads=2)

    recipe = fresh()
    method = recipe.method.train()
    assert set(system.protocols) <= set(protocols_of(method))
    rows = torch.randint(40, (4, 13), dtype=torch.int32)
    batch = recipe.views(rows, torch.full((4,), -1), Draw.seeded(0, 0, 4))
    optimizer = recipe.optimizer(method)
    losses = []
    for _ in range(2):
        out = method(batch)
        assert all(torch.isfinite(v).all() and (k == "loss" or not v.requires_grad) for k, v in out.items())
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(float(out["loss"].detach()))
    assert losses[1] < losses[0]
    twin = fresh().method
    twin.load_state_dict(method.state_dict())
    tokens = batch["tokens"]
    with torch.no_grad():
        assert torch.equal(twin.eval().log_prob(tokens), method.eval().log_prob(tokens))


def test_what_a_recipe_learns_from_is_what_the_catalogue_says() -> None:
    assert {s.name: kind_name(s.name) for s in SYSTEMS} == {s.name: s.data for s in SYSTEMS}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_backbones_offer_what_the_catalogue_says(network, pixels: dict[str, Pixels]) -> None:
    name = next(n for n in SMALL if n.startswith(network.name))
    backbone = built("simclr", name, pixels["scenes:64"]).method.backbone
    assert protocols_of(backbone) == network.protocols


def test_illegal_pairs_fail_when_built_and_name_the_choices(pixels: dict[str, Pixels]) -> None:
    with pytest.raises(SensoriumError, match="vit-micro"):
        built("mae", "resnet-micro", pixels["scenes:64"])
    with pytest.raises(SensoriumError, match="Did you mean resnet-18"):
        built("simclr", "resnet-81", pixels["scenes:64"])
    with pytest.raises(SensoriumError, match="two classes"):
        built("supervised", "resnet-micro", pixels["unlabelled 33 px"])


def test_names_are_ordered_and_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert len({s.name for s in SYSTEMS}) == len(SYSTEMS)
