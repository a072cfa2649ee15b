"""One contract for the whole catalogue: every legal method x backbone x kind of data, tiny, on the CPU.

Two steps train and change the weights; accumulated gradients are those of the whole batch where the loss decomposes; state
changes in hooks only; the state dict survives a round trip; features are finite; the catalogue's claims are true.
"""

import copy
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sensorium.abilities import (
    PROTOCOLS,
    Detector,
    Encoder,
    Generator,
    ImageText,
    LanguageModel,
    Likelihood,
    OnlineDetector,
    protocols_of,
)
from sensorium.base.draw import Draw
from sensorium.catalogue import NETWORKS, find, resolve, systems
from sensorium.data.source import Source
from sensorium.data.wings import kind, kind_name
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.recipe.backbone import NAMES, choices
from sensorium.recipe.recipe import Recipe
from sensorium.runs.run import make_recipe
from sensorium.training.fit import Options, fit
from sensorium.training.step import Step

SMALL = ("resnet-micro", "resnet-18", "vit-micro")
# name: (kind, side in pixels)
DATA = {
    "digits": ("images", 8),
    "scenes:64": ("images", 32),
    "npz 28 px grey": ("images", 28),
    "unlabelled 33 px": ("images", 33),
    "a book": ("text", None),
    "captions": ("pairs", 32),
    "boxes": ("boxes", 64),
    "clips": ("streams", None),
}
# Settings that keep a system small, where its defaults are not.
TINY: dict[str, dict[str, Any]] = {
    "causal_lm": {"width": 16, "depth": 2, "heads": 2, "length": 12},
    "flash": {"width": 16, "depth": 2, "chunk": 4, "shared": 8},
    "recurrent_lm": {"width": 16, "hidden": 20, "depth": 2},
    "made": {"hidden": 20, "masks": 2},
    "clip": {"backbone": "clip-micro", "text_width": 32, "text_depth": 1, "embed_dim": 16},
    "fcos": {"width": 16, "convs": 1},
    "detr": {"width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 1, "queries": 5},
    "oadtr": {"width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "length": 6, "future": 2},
}
BATCH = 8


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each data set as its kind prepares it."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    paths = {name: name for name in DATA} | {
        "npz 28 px grey": str(folder / "grey.npz"),
        "unlabelled 33 px": str(folder / "bare.npz"),
        "a book": str(folder / "book.txt"),
        **dict.fromkeys(("captions", "boxes", "clips"), "scenes:64"),
    }
    np.savez(folder / "grey.npz", images=rng.integers(0, 255, (40, 28, 28), np.uint8), labels=np.arange(40) % 4)
    np.savez(folder / "bare.npz", images=rng.integers(0, 255, (40, 33, 33, 3), np.uint8))
    (folder / "book.txt").write_text("The cat sat on the mat, and the tired dog sat on it. " * 40)
    ready = {}
    for i, (name, (what, size)) in enumerate(DATA.items()):
        settings = next(TINY.get(system.name, {}) for system in systems() if system.data == what)
        source = Source(paths[name], None, folder / f"cache-{i}", image_size=size, settings=settings)
        ready[name] = kind(what).prepare(source)
    return ready


def built(system: str, backbone: str, ready: Any) -> Recipe:
    torch.manual_seed(0)
    entry = find(system)
    given = TINY.get(system, {}) | ({"backbone": backbone} if backbone else {})
    return resolve(entry.name)(kind(entry.data).situate(ready), batch_size=BATCH, **given)


def batch_of(recipe: Recipe, ready: Any, step: int = 0) -> dict:
    rows = np.arange(BATCH) + step * BATCH
    images, labels = ready.train.images, ready.train.labels
    known = np.full(BATCH, -1) if labels is None else np.asarray(labels)[rows]
    return recipe.views(torch.from_numpy(np.array(images[rows])), torch.as_tensor(known), Draw.seeded(0, step, BATCH))


def legal() -> list[tuple[str, str, str]]:
    """Every system with every backbone that it can use, on every data set of its kind."""
    triples = []
    for system in systems():
        can_use = [b for b in SMALL if b in choices(PROTOCOLS[system.needs])] if system.needs else [""]
        fits = [name for name, (what, _) in DATA.items() if what == system.data]
        triples += [
            (system.name, backbone, data)
            for backbone in can_use
            for data in fits
            if not (system.labels and data.startswith("unlabelled"))
        ]
    return triples


def first(system: str) -> tuple[str, str, str]:
    """The first of a system's triples."""
    return next(triple for triple in legal() if triple[0] == system)


def usual(system: str) -> str:
    """A data set of the system's kind: the embedded one of pictures, or the only one."""
    kinds = [name for name, (what, _) in DATA.items() if what == find(system).data]
    return "scenes:64" if "scenes:64" in kinds else kinds[0]


def offered(method: Any, batch: dict) -> list[Tensor]:
    """What a trained method gives by each of its protocols: finite, and of the shapes that these promise."""
    found = []
    with torch.no_grad():
        if isinstance(method, Encoder):
            side = (batch["image"] if "image" in batch else (batch.get("views") or batch["crops"])[0]).shape[-2:]
            found.append(method.features(torch.randn(3, 3, *side, generator=torch.Generator().manual_seed(1))))
            assert found[-1].shape == (3, method.dim)
        if isinstance(method, Generator):
            found.append(method.sample(2, seed=0, **({"steps": 2} if hasattr(method, "velocity") else {})))
            assert found[-1].shape == (2, *method.shape)
        if isinstance(method, Likelihood):
            found.append(method.log_prob(batch["image"]))
            assert found[-1].shape == (len(batch["image"]),)
        if isinstance(method, LanguageModel):
            found.append(method.log_prob(batch["tokens"]))
            assert found[-1].shape == (len(batch["tokens"]), batch["tokens"].shape[1] - 1)
        if isinstance(method, ImageText):
            found += [method.embed_image(batch["image"]), method.embed_text(batch["tokens"])]
            assert all(torch.allclose(x.norm(dim=-1), torch.ones(len(x)), atol=1e-5) for x in found[-2:])
        if isinstance(method, Detector):
            seen = method.detect(batch["image"][:2], 0.0)
            found += [one[key].float() for one in seen for key in ("boxes", "scores", "labels")]
            assert all(one["boxes"].shape == (len(one["scores"]), 4) for one in seen)
        if isinstance(method, OnlineDetector):
            method.reset()
            found += [method.step(frame) for frame in batch["frames"][0]]
            torch.testing.assert_close(torch.stack(found[-len(batch["frames"][0]) :]), method.predict(batch["frames"][0]), atol=1e-5, rtol=0)  # fmt: skip
    assert found
    assert all(torch.isfinite(x).all() for x in found)
    return found


@pytest.mark.parametrize("system, backbone, data", legal())
def test_two_steps(system: str, backbone: str, data: str, prepared: dict[str, Any], tmp_path: Path) -> None:
    ready = prepared[data]
    recipe = built(system, backbone, ready)
    method = recipe.method.train()
    before = copy.deepcopy(method.state_dict())

    def network(*given: Any) -> dict[str, Tensor]:
        out = method(*given)
        assert out["loss"].ndim == 0
        assert all(torch.isfinite(v).all() for v in out.values())
        assert all(not v.requires_grad for k, v in out.items() if k != "loss")
        return out

    step = Step(method, recipe.optimizers, recipe.schedule, network=network)
    for k in range(2):
        step([batch_of(recipe, ready, k)], Progress(k, 0, k / 2))
    after = method.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)

    batch = batch_of(recipe, ready)
    gives = offered(method.eval(), batch)
    save_file({k: v.contiguous().clone() for k, v in after.items()}, tmp_path / "m.safetensors")
    twin = built(system, backbone, ready).method.eval()
    twin.load_state_dict(load_file(tmp_path / "m.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(offered(twin, batch), gives, strict=True))


def test_a_second_step_on_the_same_text_finds_it_likelier(prepared: dict[str, Any]) -> None:
    recipe = built("causal_lm", "", prepared["a book"])
    batch, step = batch_of(recipe, prepared["a book"]), Step(recipe.method.train(), recipe.optimizers, lambda f: 1.0)
    first, second = (float(step([batch], Progress(k, 0, 0.0))["loss"]) for k in range(2))
    assert second < first


@pytest.mark.parametrize("system, backbone", sorted({(s, b) for s, b, _ in legal()}))
def test_forward_changes_no_state(system: str, backbone: str, prepared: dict[str, Any]) -> None:
    """In evaluation mode no entry of the state dict may change in ``forward``; in training mode none but BatchNorm's running statistics."""
    ready = prepared[usual(system)]
    recipe = built(system, backbone, ready)
    batch = batch_of(recipe, ready)
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


@pytest.mark.parametrize(
    "system", ["mae", "supervised", "causal_lm", "flash", "recurrent_lm", "rectified_flow", "made"]
)
def test_accumulated_gradients_are_those_of_the_batch(system: str, prepared: dict[str, Any]) -> None:
    """For losses that are means over samples, on a network without BatchNorm."""
    entry = find(system)
    ready = prepared[usual(system)]
    recipe = built(system, "vit-micro" if entry.needs else "", ready)
    batch = batch_of(recipe, ready)
    method = recipe.method.train()
    method(batch)["loss"].backward()
    whole = {k: v.grad.clone() for k, v in method.named_parameters() if v.grad is not None}
    method.zero_grad()
    for rows in (slice(0, 4), slice(4, 8)):
        (method({k: v[rows] for k, v in batch.items()})["loss"] / 2).backward()
    for k, v in method.named_parameters():
        if v.grad is not None:
            torch.testing.assert_close(v.grad, whole[k], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("system, backbone, data", [first(system.name) for system in systems()])
def test_killed_and_run_again_it_ends_as_if_it_had_not_been(
    system: str, backbone: str, data: str, prepared: dict[str, Any], tmp_path: Path
) -> None:
    """A signal before the third of five steps; then the losses of all steps and the weights are those of an even run."""

    def trained(folder: str, kill_at: int | None) -> str:
        recipe, made = built(system, backbone, prepared[data]), iter(range(100))

        def views(*given: Any) -> dict[str, Any]:
            if next(made) == kill_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return recipe.views(*given)

        options = Options(progress=False)
        out = tmp_path / folder
        return fit(replace(recipe, views=views), prepared[data].train, budget="5steps", out=out, options=options).status

    assert trained("even", None) == "finished"
    assert trained("killed", 2) != "finished"
    assert trained("killed", None) == "finished"
    even, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("even", "killed"))
    assert all(torch.equal(even[name], killed[name]) for name in even)
    tables = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("even", "killed")]
    head = tables[0][0].split(",")
    of_time = {i for i, name in enumerate(head) if "time" in name or "second" in name}
    losses = [[[x for i, x in enumerate(row.split(",")) if i not in of_time] for row in table] for table in tables]
    assert "loss" in head
    assert losses[0] == losses[1]


@pytest.mark.parametrize("system", systems(), ids=lambda s: s.name)
def test_the_catalogue_tells_the_truth(system, prepared: dict[str, Any]) -> None:
    _, backbone, data = first(system.name)
    method = built(system.name, backbone, prepared[data]).method
    assert set(system.abilities) <= set(protocols_of(method))
    if system.data in ("images", "pairs"):  # others' logits are of no classes of pictures
        assert ("Classifier" in protocols_of(method)) == ("Classifier" in system.abilities)
    assert not system.needs or isinstance(method.backbone, Encoder)
    assert kind_name(system.name) == system.data


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_backbones_offer_what_the_catalogue_says(network, prepared: dict[str, Any]) -> None:
    name = next(n for n in SMALL if n.startswith(network.name))
    backbone = built("simclr", name, prepared["scenes:64"]).method.backbone
    assert protocols_of(backbone) == network.abilities


def test_illegal_pairs_fail_when_built_and_name_the_choices(prepared: dict[str, Any]) -> None:
    with pytest.raises(SensoriumError, match="vit-micro"):
        built("mae", "resnet-micro", prepared["scenes:64"])
    with pytest.raises(SensoriumError, match="Did you mean resnet-18"):
        built("simclr", "resnet-81", prepared["scenes:64"])
    with pytest.raises(SensoriumError, match="two classes"):
        built("supervised", "resnet-micro", prepared["unlabelled 33 px"])


def test_an_unknown_setting_is_named_and_a_recipes_own_error_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SensoriumError, match=r"mae has no setting 'mask_ration'. Did you mean 'mask_ratio'\?"):
        make_recipe("mae", None, {"mask_ration": 0.5})

    def broken(on: Any, *, size: int = 3) -> Recipe:
        raise TypeError("got an unexpected keyword argument from within")

    monkeypatch.setattr("sensorium.runs.run.resolve", lambda name: broken)
    with pytest.raises(TypeError, match="from within"):
        make_recipe("broken", None, {"size": 4})


def test_names_are_ordered_and_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert len({s.name for s in systems()}) == len(systems())
