"""One contract for the whole catalogue: every legal method x backbone x kind of data, tiny, on the CPU.

Two steps train and change the weights; accumulated gradients are those of the whole batch where the loss decomposes;
state changes in hooks only; the state dict survives a round trip; features are finite; the catalogue's claims are true.
"""

import copy
import inspect
import os
import signal
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sensorium.abilities import (
    ABILITIES,
    AnySize,
    Autoencoder,
    ClassConditional,
    Completer,
    Detector,
    Encoder,
    FromNoise,
    FuturePredictor,
    Generator,
    HasBackbone,
    HasBody,
    ImageText,
    IterativeGenerator,
    LanguageModel,
    Likelihood,
    MaskedLanguageModel,
    OnlineDetector,
    Reconstructor,
    StreamEncoder,
    TextEncoder,
    Tokenizer,
    abilities_of,
)
from sensorium.base.draw import Draw
from sensorium.catalogue import NETWORKS, find, resolve, starters, systems
from sensorium.data.source import Source
from sensorium.data.wings import kind, kind_name
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.fpn import FPN
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.moe.layer import MoE
from sensorium.published import export as export_network
from sensorium.published.registry import held, writers
from sensorium.recipe.backbone import NAMES, choices
from sensorium.recipe.recipe import Recipe
from sensorium.recipe.trained import make_recipe, roles
from sensorium.runs.options import RunOptions
from sensorium.runs.run import Run
from sensorium.runs.train import write_info
from sensorium.training.fit import Options, fit
from sensorium.training.step import Step
from sensorium.use import FORMATS, export, load

SMALL = ("resnet-micro", "resnet-18", "vit-micro", "convnext-micro", "swin-micro")
# name: (kind, side in pixels)
DATA = {
    "digits": ("images", 8),
    "scenes:64": ("images", 32),
    "npz 28 px gray": ("images", 28),
    "unlabeled 33 px": ("images", 33),
    "a book": ("text", None),
    "captions": ("pairs", 32),
    "boxes": ("boxes", 64),
    "clips": ("streams", None),
    "unlabeled recordings": ("streams", None),
}
# Settings that keep a system small, where its defaults are not.
TINY: dict[str, dict[str, Any]] = {
    "causal_lm": {"width": 16, "depth": 2, "heads": 2, "length": 12},
    "flash": {"width": 16, "depth": 2, "chunk": 4, "shared": 8},
    "recurrent_lm": {"width": 16, "hidden": 20, "depth": 2},
    "made": {"hidden": 20, "masks": 2},
    "nice": {"hidden": 20, "layers": 2},
    "realnvp": {"width": 8, "blocks": 1},
    "glow": {"width": 8, "steps": 2},
    "maf": {"hidden": 20, "layers": 2},
    "planar": {"layers": 4},
    "vae": {"width": 8, "hidden": 16, "latents": 4},
    "vq_vae": {"codes": 16, "code_width": 8},
    "gan": {"width": 4, "discriminator_width": 8, "noise": 8},
    "clip": {"backbone": "clip-micro", "text_width": 32, "text_depth": 1, "embed_dim": 16},
    "fcos": {"width": 16, "convs": 1},
    "detr": {"width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 1, "queries": 5},
    "oadtr": {"width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "length": 6, "future": 2},
    "vqgan": {"codes": 16, "code_width": 8, "discriminator_width": 8, "discriminator_depth": 1, "start": 0.4},
    "kl_autoencoder": {"latent": 2, "discriminator_width": 8, "discriminator_depth": 1, "start": 0.4},
    "token_prior": {"width": 16, "depth": 1, "heads": 2},
    "text_prior": {"width": 16, "depth": 1, "heads": 2},
    "latent_diffusion": {"text_width": 32, "text_depth": 1},
    "frozen": {"backbone": "vit-micro"},
    "deep_infomax": {"units": 16, "outputs": 12},
    "cpc": {"context_width": 16, "context_depth": 1, "targets": 12},
    "mae_streams": {"width": 16, "depth": 1, "heads": 2, "length": 6},
    "cpc_streams": {"width": 16, "state": 16, "length": 6},
    "mae_text": {"width": 16, "depth": 1, "heads": 2, "length": 12},
    "cpc_text": {"width": 16, "state": 16, "length": 12},
}
TRAINED = [system for system in systems() if system.trains]
# Which system makes the run that a recipe cannot do without, by the role that it has there.
MAKERS = {
    "tokens": "vqgan",
    "latent_diffusion tokens": "kl_autoencoder",
    "teacher": "simclr",
    "self_training teacher": "supervised",
    "consistency teacher": "edm",
}
# Sides of pictures that a system takes are multiples of so many pixels.
MULTIPLES = {"vqgan": 4, "vq_vae": 4, "kl_autoencoder": 4, "token_prior": 4, "text_prior": 4, "latent_diffusion": 4}
BATCH = 8
# Settings of networks that other libraries have, too; of an encoder without an entry a ViT.
EXPORTED: dict[str, dict[str, Any]] = {
    "deep_infomax": {"backbone": "resnet-micro"},
    "supervised": {"backbone": "resnet-18"},
    "self_training": {"backbone": "resnet-18"},
    "detr": {"backbone": "resnet-18"},
    "fcos": {"backbone": "resnet-18", "width": 32, "convs": 4},
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each data set as its kind prepares it."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    paths = {name: name for name in DATA} | {
        "npz 28 px gray": str(folder / "grey.npz"),
        "unlabeled 33 px": str(folder / "bare.npz"),
        "a book": str(folder / "book.txt"),
        "unlabeled recordings": str(folder / "bare recordings.npz"),
        **dict.fromkeys(("captions", "boxes", "clips"), "scenes:64"),
    }
    np.savez(folder / "grey.npz", images=rng.integers(0, 255, (40, 28, 28), np.uint8), labels=np.arange(40) % 4)
    np.savez(folder / "bare.npz", images=rng.integers(0, 255, (40, 33, 33, 3), np.uint8))
    np.savez(folder / "bare recordings.npz", signal=rng.normal(size=(90, 3)), offsets=[0, 40, 70, 90])
    (folder / "book.txt").write_text("The cat sat on the mat, and the tired dog sat on it. " * 40)
    ready = {}
    for i, (name, (what, size)) in enumerate(DATA.items()):
        settings: dict[str, Any] = {}
        for system in systems():  # what shapes the data is alike in all
            settings |= TINY.get(system.name, {}) if system.data == what else {}
        source = Source(paths[name], None, folder / f"cache-{i}", image_size=size, settings=settings)
        ready[name] = kind(what).prepare(source)
    return ready


def given_to(system: str, on: Any) -> dict[str, Any]:
    """Settings that keep a system small, with the folders of the runs that it cannot do without."""
    parameters = inspect.signature(resolve(system)).parameters
    needed = [role for role in roles(system) if parameters[role].default is inspect.Parameter.empty]
    return TINY.get(system, {}) | {
        role: str(made_for(MAKERS.get(f"{system} {role}", MAKERS[role]), on)) for role in needed
    }


@cache
def made_for(system: str, on: Any) -> Path:
    """The folder of a run of a system on data of such a kind, as if it had been trained."""
    folder = Path(mkdtemp(prefix=f"{system}-", dir=_made.name))
    torch.manual_seed(0)
    sort = kind(find(system).data).SITUATION  # pictures with captions are pictures
    on = on if type(on) is sort else sort(**{one.name: getattr(on, one.name) for one in fields(sort)})
    write_run(system, resolve(system)(on, batch_size=BATCH, **given_to(system, on)), on, folder)
    return folder


_made = TemporaryDirectory()  # goes with the process


def write_run(system: str, recipe: Recipe, on: Any, folder: Path) -> None:
    """run.json, the weights and the outcome of a run that made no step."""
    asked = {"recipe": system, "kind": find(system).data, "seed": 0, "given": {}, "budget": "1steps"}
    asked |= {"data": {"path": "digits"}}
    write_info(folder, recipe, on, asked)
    state = {k: v.contiguous().clone() for k, v in recipe.method.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "outcome.json").write_text("{}")


def batched(system: str) -> dict[str, int]:
    return {"batch_size": BATCH} if find(system).trains else {}


def built(system: str, backbone: str, ready: Any) -> Recipe:
    entry = find(system)
    on = kind(entry.data).situate(ready)
    given = given_to(system, on) | ({"backbone": backbone} if backbone else {})
    torch.manual_seed(0)
    return resolve(entry.name)(on, **batched(system), **given)


def rows_of(recipe: Recipe, ready: Any) -> Any:
    """What a recipe learns from: the data, or what it makes of them."""
    return ready.train if recipe.derive is None else recipe.derive(ready.train, Path(_made.name), False)


def batch_of(recipe: Recipe, ready: Any, step: int = 0) -> dict:
    rows = np.arange(BATCH) + step * BATCH
    return recipe.views(rows_of(recipe, ready).take(rows), Draw.seeded(0, step, BATCH))


def legal() -> list[tuple[str, str, str]]:
    """Every system with each backbone that it can use, and on each data set of its kind, though not each pair of these: what
    goes wrong is of the one or of the other, and pairs grow with every system."""
    triples = []
    for system in TRAINED:
        can_use = [b for b in SMALL if b in choices(ABILITIES[system.needs])] if system.needs else [""]
        fits = [name for name, (what, _) in DATA.items() if what == system.data]
        triples += [
            (system.name, backbone, data)
            for backbone in can_use
            for data in fits
            if not (system.labels and data.startswith("unlabeled"))
            and not (DATA[data][1] or 0) % MULTIPLES.get(system.name, 1)
            and (backbone == can_use[0] or data == fits[0])
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
    """What a trained method gives by each of its abilities: finite, and of the shapes that these promise."""
    found = []
    with torch.no_grad():
        if isinstance(method, Encoder):
            side = (batch["image"] if "image" in batch else (batch.get("views") or batch["crops"])[0]).shape[-2:]
            found.append(method.features(torch.randn(3, 3, *side, generator=torch.Generator().manual_seed(1))))
            assert found[-1].shape == (3, method.dim)
        if isinstance(method, StreamEncoder):
            found.append(method.features(batch["frames"]))
            assert found[-1].shape == (len(batch["frames"]), method.dim)
        if isinstance(method, Generator):
            how: dict[str, Any] = {"steps": 2} if isinstance(method, IterativeGenerator) else {}
            if isinstance(method, ClassConditional) and method.classes:
                how["condition"] = method.classes - 1
            found.append(method.sample(2, seed=0, **how))
            assert found[-1].shape == (2, *method.shape)
            pixels = method.to_pixels(found[-1])
            assert (pixels.shape[:2], pixels.dtype) == ((2, 3), torch.uint8)
            assert torch.equal(method.to_pixels(method.from_pixels(pixels)), pixels)
            if isinstance(method, AnySize):
                high, wide = (2 * side for side in method.shape[1:])
                found.append(method.sample(1, seed=0, size=(high, wide)))
                assert found[-1].shape == (1, method.shape[0], high, wide)
        if isinstance(method, Completer):
            given = method.sample(2, seed=1)
            known = torch.arange(given[0].numel()).view(given.shape[1:]).expand_as(given) % 3 == 0
            found.append(method.complete(given, known, seed=0))
            assert torch.equal(found[-1][known], given[known])
        if isinstance(method, IterativeGenerator):
            assert method.sample(2, steps=3, trace=True).shape == (4, 2, *method.shape)
        if isinstance(method, FromNoise):
            start, how = method.noise_of(3, 0), {"steps": 2} if isinstance(method, IterativeGenerator) else {}
            found.append(method.sample(3, start=start, **how))
            # other batches are summed in another order, which an SDE's large first step multiplies
            torch.testing.assert_close(method.sample(1, start=start[2:], **how)[0], found[-1][2], atol=1e-3, rtol=1e-3)
        if isinstance(method, Reconstructor):
            found.append(method.reconstruct(batch["image"]))
            size, height, width = len(batch["image"]), *batch["image"].shape[2:]
            assert found[-1].shape == (size, 3, height, width * len(method.panels))
        if isinstance(method, Likelihood):
            found.append(method.log_prob(batch["image"]))
            assert found[-1].shape == (len(batch["image"]),)
        if isinstance(method, Autoencoder):
            encoded = method.encode(batch["image"])
            assert encoded[0].numel() < batch["image"][0].numel()
            found.append(method.decode(encoded))
            assert found[-1].shape == batch["image"].shape
            pixels = method.to_pixels(found[-1])
            assert torch.equal(method.to_pixels(method.from_pixels(pixels)), pixels)
        if isinstance(method, Tokenizer):
            codes = method.encode(batch["image"])
            assert (codes.dtype, codes.ndim, len(codes)) == (torch.int64, 3, len(batch["image"]))
            assert 0 <= int(codes.min()) <= int(codes.max()) < method.codes
        if isinstance(method, LanguageModel):
            found.append(method.log_prob(batch["tokens"]))
            assert found[-1].shape == (len(batch["tokens"]), batch["tokens"].shape[1] - 1)
        if isinstance(method, MaskedLanguageModel):
            masked = torch.arange(batch["tokens"].shape[1]).expand_as(batch["tokens"]) % 3 == 1
            found.append(method.masked_log_prob(batch["tokens"], masked))
            assert found[-1].shape == (len(masked), int(masked[0].sum()))
        if isinstance(method, FuturePredictor):
            found.append(method.tell(batch["frames"] if "frames" in batch else batch["tokens"]))
            assert found[-1].shape == (BATCH, method.steps)
        if isinstance(method, TextEncoder):
            found.append(method.features(batch["tokens"]))
            assert found[-1].shape == (len(batch["tokens"]), method.dim)
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
    """In evaluation mode no entry of the state dict may change in ``forward``; in training mode none but BatchNorm's
    running statistics."""
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
    "system", [one.name for one in TRAINED if one.needs and "vit-micro" in choices(ABILITIES[one.needs])]
)
def test_biases_of_a_backbones_experts_move_after_a_step(system: str, prepared: dict[str, Any]) -> None:
    ready = prepared[usual(system)]
    recipe = built(system, "vit-micro+experts", ready)
    method = recipe.method.train()
    method.before_step(Progress(0, 0, 0.0))
    for micro in range(2):
        method(batch_of(recipe, ready, micro))
    biased = [one for one in method.modules() if isinstance(one, MoE)]
    assert biased
    assert not any(one.bias.any() for one in biased if one.bias is not None)
    method.after_step(Progress(0, 0, 0.0))
    assert all(one.bias.any() for one in biased if one.bias is not None)  # of a moving average too


@pytest.mark.parametrize(
    "system",
    [
        "mae",
        "mae_streams",
        "mae_text",
        "simmim",
        "i_jepa",
        "supervised",
        "causal_lm",
        "flash",
        "recurrent_lm",
        "rectified_flow",
        "made",
    ],
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


@pytest.mark.parametrize("system, backbone, data", [first(system.name) for system in TRAINED])
def test_killed_and_run_again_it_ends_as_if_it_had_not_been(
    system: str, backbone: str, data: str, prepared: dict[str, Any], tmp_path: Path
) -> None:
    """A signal before the third of five steps; then the losses of all steps and the weights are those of an even
    run."""

    def trained(folder: str, kill_at: int | None) -> str:
        recipe, made = built(system, backbone, prepared[data]), iter(range(100))

        def views(*given: Any) -> dict[str, Any]:
            if next(made) == kill_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return recipe.views(*given)

        options = Options(progress=False)
        out = tmp_path / folder
        rows = rows_of(recipe, prepared[data])
        return fit(replace(recipe, views=views), rows, budget="5steps", out=out, options=options).status

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


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks, one with batch norms, as others publish them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    grey = ((0.5,) * 3, (0.2,) * 3)
    torch.manual_seed(1)
    networks = {"ResNet": ResNet((1, 1), 8, stem="small"), "ViT": ViT(32, 8, 24, 2, 2)}
    return {
        name: export_network(one, "safetensors", folder / name, mean=grey[0], std=grey[1], image_size=32)
        for name, one in networks.items()
    }


def alike(method: nn.Module, network: nn.Module) -> list[nn.Module]:
    """The modules of a method that have the class and the tensors of a network: the backbone and its moving averages."""
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    found = [part for part in method.modules() if type(part) is type(network)]
    return [part for part in found if {name: value.shape for name, value in part.state_dict().items()} == shapes]


def resting() -> list[tuple[str, str]]:
    """Systems that can begin with the network of a checkpoint, and the networks."""
    named = [one for one in TRAINED if "head_first" in inspect.signature(resolve(one.name)).parameters]
    masking = ("TokenEncoder", "MaskedEncoder")
    return [
        (one.name, name) for one in named for name in ("ResNet", "ViT") if name == "ViT" or one.needs not in masking
    ]


def test_every_system_that_trains_an_encoder_of_pictures_can_train_its_heads_first() -> None:
    encoders = {one.name for one in TRAINED if one.family == "selfsup" and one.data == "images"}
    assert {name for name, _ in resting()} == encoders


@pytest.mark.parametrize("system, network", resting())
def test_the_network_of_a_checkpoint_rests_while_the_heads_learn(
    system: str, network: str, prepared: dict[str, Any], checkpoints: dict[str, Path]
) -> None:
    """No tensor of it or of a moving average changes, statistics of batch norms included; then all of it is trained."""
    ready, on = prepared[usual(system)], kind("images").situate(prepared[usual(system)])
    torch.manual_seed(0)
    given = given_to(system, on) | {"backbone": str(checkpoints[network]), "head_first": 0.25}
    recipe = resolve(system)(on, batch_size=BATCH, **given)
    method = recipe.method.train()
    assert isinstance(method, HasBackbone)
    found = alike(method, method.backbones()[0])
    assert {id(one) for one in found} == {id(one) for one in method.backbones()}
    before, whole = [copy.deepcopy(one.state_dict()) for one in found], copy.deepcopy(method.state_dict())
    modes = [(part.training, [p.requires_grad for p in part.parameters()]) for part in method.modules()]
    step = Step(method, recipe.optimizers, recipe.schedule)
    for k in range(2):
        step([batch_of(recipe, ready, k)], Progress(k, 0, k / 8))
    for one, was in zip(found, before, strict=True):
        assert [name for name, value in one.state_dict().items() if not torch.equal(value, was[name])] == []
    assert any(not torch.equal(value, whole[name]) for name, value in method.state_dict().items())
    assert [(part.training, [p.requires_grad for p in part.parameters()]) for part in method.modules()] == modes
    step([batch_of(recipe, ready, 2)], Progress(2, 0, 0.5))
    assert any(not torch.equal(value, before[0][name]) for name, value in method.backbones()[0].state_dict().items())


@pytest.mark.parametrize("system", systems(), ids=lambda s: s.name)
def test_the_catalogue_tells_the_truth(system, prepared: dict[str, Any]) -> None:
    _, backbone, data = first(system.name) if system.trains else ("", "resnet-micro", "digits")
    method = built(system.name, backbone, prepared[data]).method
    assert set(abilities_of(method)) == set(system.abilities)
    for name in system.abilities:  # what an ability declares is there
        assert all(hasattr(method, field) for field in get_type_hints(ABILITIES[name])), name
    if system.needs:
        assert isinstance(method, HasBackbone)
        backbone = method.backbone.body if isinstance(method.backbone, FPN) else method.backbone
        assert isinstance(backbone, ABILITIES[system.needs])
    assert kind_name(system.name) == system.data


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_backbones_offer_what_the_catalogue_says(network, prepared: dict[str, Any]) -> None:
    names = [n for n in (*SMALL, *NAMES) if n.startswith(f"{network.name}-")]
    if names:
        backbone = built("simclr", names[0], prepared["scenes:64"]).method.backbone
    else:  # it is only read from files
        module = import_module(f"sensorium.networks.{network.name}")
        own = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
        backbone = next(one for one in own if issubclass(one, Encoder))(28, 7, 24, 1, 2)
    assert abilities_of(backbone) == network.abilities


def test_illegal_pairs_fail_when_built_and_name_the_choices(prepared: dict[str, Any]) -> None:
    with pytest.raises(SensoriumError, match="vit-micro"):
        built("mae", "resnet-micro", prepared["scenes:64"])
    with pytest.raises(SensoriumError, match="Did you mean resnet-18"):
        built("simclr", "resnet-81", prepared["scenes:64"])
    with pytest.raises(SensoriumError, match="two classes"):
        built("supervised", "resnet-micro", prepared["unlabeled 33 px"])
    with pytest.raises(SensoriumError, match="--discriminator-depth 2 needs 12 pixels or more, not 8"):
        on = kind("images").situate(prepared["scenes:64"])
        make_recipe("vqgan", replace(on, image_size=8), {})


def test_an_unknown_setting_is_named_and_a_recipes_own_error_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SensoriumError, match=r"mae has no setting 'mask_ration'. Did you mean 'mask_ratio'\?"):
        make_recipe("mae", None, {"mask_ration": 0.5})

    def broken(on: Any, *, size: int = 3) -> Recipe:
        raise TypeError("got an unexpected keyword argument from within")

    monkeypatch.setattr("sensorium.recipe.trained.resolve", lambda name: broken)
    with pytest.raises(TypeError, match="from within"):
        make_recipe("broken", None, {"size": 4})


def test_names_are_ordered_and_unique() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert len({s.name for s in systems()}) == len(systems())


def test_systems_to_start_with_learn_from_one_kind_of_data() -> None:
    assert starters()
    assert len({find(name).data for name in starters()}) == 1


@pytest.mark.parametrize("system", systems(), ids=lambda s: s.name)
def test_no_setting_of_a_recipe_is_an_option_of_the_run(system: Any) -> None:
    """Both are flags of one command, and keywords of one function."""
    options = {field.name for field in fields(RunOptions)} | {"judge", "progress", "prepared", "cache_folder", "name"}
    assert not options & set(inspect.signature(resolve(system.name)).parameters)


@pytest.mark.parametrize("ability", ABILITIES.values(), ids=ABILITIES)
def test_what_lacks_an_ability_cannot_be_built(ability: type) -> None:
    class Lacking(nn.Module, ability):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Lacking()


def exported() -> list[tuple[str, str]]:
    """ONNX of a backbone is the same whatever trained it: SimCLR's stands for the others."""
    found = [(system, form) for system in systems() for form in system.exports]
    alike = [one.name for one, _ in found if one.needs == "Encoder" and one.abilities == ("Encoder",)]
    return [(one.name, form) for one, form in found if form != "onnx" or one.name not in alike or one.name == "simclr"]


@pytest.fixture(scope="session")
def finished(prepared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A run of a system, as if it had been trained: its folder with run.json and weights."""
    made: dict[str, Run] = {}

    def run_of(name: str) -> Run:
        if name not in made:
            data, folder = usual(name), tmp_path_factory.mktemp(name)
            sort = find(name).data
            on = kind(sort).situate(prepared[data])
            on = (
                replace(on, image_size=96) if sort == "boxes" or "Classifier" in find(name).abilities else on
            )  # stems of larger pictures
            plain = {"backbone": "vit-micro"} if find(name).needs == "Encoder" else {}
            given = given_to(name, on) | EXPORTED.get(name, plain)
            torch.manual_seed(0)
            write_run(name, resolve(name)(on, **batched(name), **given), on, folder)
            kind(sort).keep(prepared[data], folder)
            made[name] = Run(folder)
        return made[name]

    return run_of


@pytest.mark.parametrize("system, form", exported())
def test_what_is_said_to_export_is_written(
    system: str, form: str, finished: Callable[[str], Run], tmp_path: Path
) -> None:
    if form == "onnx":
        pytest.importorskip("onnx", reason="ONNX is an extra")
    written = export(finished(system), form, tmp_path / "out")
    assert written.exists()
    if form in ("safetensors", "hf", "torchvision"):  # what we read, too, comes back as it was
        network = load(written)
        assert sum(p.numel() for p in network.parameters()) > 0


@pytest.mark.parametrize("system", systems(), ids=lambda s: s.name)
def test_what_can_be_exported_is_said(system: Any, finished: Callable[[str], Run]) -> None:
    """All that a format holds: of the whole method, or besides that of its backbone."""
    method = finished(system.name).method
    backbone = method.backbone if isinstance(method, HasBackbone) else None
    inner = backbone.body if isinstance(backbone, HasBody) else backbone
    whole, parts = writable(method), writable(method, backbone, inner)
    parts |= {"onnx"} if isinstance(inner or method, Encoder) else set()
    whole |= {"onnx"} if isinstance(method, Detector) else set()
    assert set(system.exports) in (whole, parts)


def writable(*networks: Any) -> set[str]:
    """Of what ``export --to`` knows, the formats that hold one of ``networks``."""
    return {form.to for form in writers() for one in networks if form.to in FORMATS and held(form, one) is not None}


@pytest.mark.parametrize("system", systems(), ids=lambda s: s.name)
def test_other_formats_are_refused_by_name(system: Any, finished: Callable[[str], Run], tmp_path: Path) -> None:
    for form in set(FORMATS) - set(system.exports):
        with pytest.raises(SensoriumError, match=f"'{system.name}' does not export to {form}"):
            export(finished(system.name), form, tmp_path / form)
