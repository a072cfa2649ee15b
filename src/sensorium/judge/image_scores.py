"""Every score of a run on pictures, and the baselines beside it.

Results land in ``RUN/evaluation.json`` piece by piece, so that a stopped judgement goes on where it was. The pictures a
person would look at land in ``RUN/pictures/``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.base.bf16 import fast_bf16
from sensorium.base.files import write_json
from sensorium.base.precision import device_name
from sensorium.data.augment.views import supervised_views
from sensorium.data.images.cache import Pixels
from sensorium.data.images.prepare import Prepared
from sensorium.errors import SensoriumError
from sensorium.judge import baselines
from sensorium.judge.cost import flops_per_image, parameters
from sensorium.judge.encode import encode
from sensorium.judge.finetune import finetune as fine_tune
from sensorium.judge.score import Asked, Trained
from sensorium.metrics.knn import knn
from sensorium.metrics.linear import linear
from sensorium.metrics.neighbors import neighbors
from sensorium.metrics.project import project
from sensorium.metrics.rankme import rankme
from sensorium.metrics.subsets import parse_fractions, stratified
from sensorium.pictures.images import run_pictures

MAPPED = 1000
CPU_TUNING, GPU_TUNING = (
    (250, 64),
    (2000, 128),
)  # most steps and batch size of one fine-tuning: a minute or two a method
QUERIES = 8
FOUND = 6


def judge(run: Trained, ready: Prepared, asked: Asked) -> dict[str, Any]:
    """Every score that the data allows: kNN, linear, fine-tune by share of labels, RankMe; pictures, neighbours, map.

    Without labels or a test set only RankMe, pictures, neighbours and the map remain.
    """
    path = run.folder / "evaluation.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if found.get("asked") != asked.key():
        found = {"asked": asked.key()}
    say = _sayer(asked.progress, run.name)

    def piece(name: str, make: Callable[[], Any]) -> None:
        if name not in found:
            say(name)
            found[name] = make()
            write_json(path, found)

    features = _features(run, ready)
    piece("rankme", lambda: rankme(features[0]))
    piece("parameters", lambda: parameters(run.backbone))
    piece("flops_per_image", lambda: flops_per_image(run.backbone, run.situation.image_size))  # type: ignore[arg-type]
    if judgeable(ready):
        assert ready.test is not None
        fractions, y, yt = parse_fractions(asked.labels), _labels(ready.train), _labels(ready.test)
        seeds = tuple(range(asked.label_seeds))
        classes = ready.train.classes
        piece("knn", lambda: knn(features[0], y, features[1], yt, len(ready.train.classes)))
        piece(
            "linear",
            lambda: linear(features[0], y, features[1], yt, fractions=fractions, seeds=seeds, classes=classes),
        )
        if asked.finetune:
            piece("finetune", lambda: _tuned(fine_tune, run.backbone, ready, fractions, seeds, asked))
    piece("neighbors", lambda: _neighbors(features, ready))
    piece("map", lambda: _map(features[-1], ready))
    piece("pictures", lambda: run_pictures(run, ready))
    return found


def judge_baselines(
    ready: Prepared, networks: dict[str, Callable[[], torch.nn.Module]], folder: Path, asked: Asked
) -> dict[str, Any]:
    """Raw pixels, majority class, and for each backbone its random weights and training from scratch on the same labels.

    ``networks`` gives a fresh backbone by name. Kept in ``folder/baselines.json``.
    """
    if not judgeable(ready):
        return {}
    assert ready.test is not None
    path = folder / "baselines.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if found.get("asked") != asked.key():
        found = {"asked": asked.key(), "random": {}, "scratch": {}}
    fractions, seeds = parse_fractions(asked.labels), tuple(range(asked.label_seeds))
    y, yt = _labels(ready.train), _labels(ready.test)
    say = _sayer(asked.progress, "baselines")
    if "pixels" not in found:
        say("raw pixels")
        found["pixels"] = baselines.pixels(ready.train, ready.test, fractions=fractions, seeds=seeds)
        found["majority"] = baselines.majority(y, yt)
        write_json(path, found)
    for name, fresh in networks.items():
        if name not in found["random"]:
            say(f"random {name}")
            found["random"][name] = baselines.random_network(
                fresh, ready.train, ready.test, fractions=fractions, seeds=seeds, device=device_name()
            )
            write_json(path, found)
        if asked.finetune and name not in found["scratch"]:
            say(f"{name} from scratch")
            found["scratch"][name] = _tuned(baselines.scratch, fresh, ready, fractions, seeds, asked)
            write_json(path, found)
    return found


def judgeable(ready: Prepared) -> bool:
    """Whether scores by label make sense: labelled train and test sets of two classes or more."""
    test = ready.test
    return (
        test is not None and ready.train.labels is not None and test.labels is not None and len(ready.train.classes) > 1
    )


def check_fractions(ready: Prepared, labels: str) -> None:
    """A share that leaves a class without a picture is an error before anything is trained."""
    for fraction in parse_fractions(labels):
        if judgeable(ready):
            stratified(np.asarray(ready.train.labels), fraction, 0, classes=ready.train.classes)


def _features(run: Trained, ready: Prepared) -> list[Tensor]:
    """Features of the training and the test set, kept beside the run."""
    path = run.folder / "features.npz"
    if path.is_file() and path.stat().st_mtime > (run.folder / "model.safetensors").stat().st_mtime:
        kept = np.load(path)
        if len(kept["train"]) == len(ready.train):
            return [torch.from_numpy(kept[name]) for name in kept.files]
    device = device_name()
    sets = {"train": ready.train} | ({"test": ready.test} if ready.test is not None else {})
    features = {name: encode(run.method, pixels, device=device).numpy() for name, pixels in sets.items()}  # type: ignore[arg-type]
    temporary = path.with_name("features.tmp.npz")
    np.savez(temporary, **features)  # type: ignore[arg-type]
    temporary.replace(path)
    return [torch.from_numpy(value) for value in features.values()]


def _tuned(
    how: Callable[..., Any],
    network: Any,
    ready: Prepared,
    fractions: tuple[float, ...],
    seeds: tuple[int, ...],
    asked: Asked,
) -> dict[str, Any]:
    """Fine-tune a backbone, or train what a builder gives from scratch: same labels, batches and augmentation.

    ``asked`` bounds the steps and the seconds of each training.
    """
    train, test, device = ready.train, ready.test, device_name()
    # Light: in the few steps that there are, strong augmentation only leads away from the probe that tuning starts with.
    views = supervised_views(train.mean, train.std, ready.size, scale=(0.6, 1.0), jitter=(0.1, 0.1, 0.1, 0.02))
    steps, batch = CPU_TUNING if device == "cpu" else GPU_TUNING
    precision = "bf16" if fast_bf16(device) else "float32"
    return how(
        network, train, test, fractions=fractions, seeds=seeds, augment=views, device=device, max_steps=asked.tune_steps or steps,
        seconds=asked.tune_seconds, batch_size=batch, precision=precision
    )  # fmt: skip


def _neighbors(features: list[Tensor], ready: Prepared) -> list[dict[str, Any]]:
    """For a few test pictures (of different classes where there are classes), the nearest training pictures."""
    train, queries = features[0], features[-1]
    labels = None if ready.test is None else ready.test.labels
    if labels is not None and len(ready.train.classes) > 1:
        firsts = [np.flatnonzero(np.asarray(labels) == k)[:1] for k in range(len(ready.train.classes))]
        chosen = np.concatenate(firsts)[:QUERIES]
    else:
        chosen = np.linspace(0, len(queries) - 1, min(QUERIES, len(queries))).astype(int)
    same = ready.test is None
    index, _ = neighbors(train, queries[torch.as_tensor(chosen)], FOUND + same)
    return [
        {"query": int(q), "found": [int(i) for i in row if not (same and int(i) == int(q))][:FOUND]}
        for q, row in zip(chosen, index.tolist(), strict=True)
    ]


def _map(features: Tensor, ready: Prepared) -> dict[str, Any]:
    """Up to 1,000 pictures of the test set in two dimensions."""
    pixels = ready.test if ready.test is not None else ready.train
    chosen = np.sort(np.random.default_rng(0).permutation(len(pixels))[:MAPPED])
    where = project(features[torch.as_tensor(chosen)])
    labels = None if pixels.labels is None else np.asarray(pixels.labels)[chosen].tolist()
    return {
        "x": where[:, 0].round(3).tolist(),
        "y": where[:, 1].round(3).tolist(),
        "label": labels,
        "index": chosen.tolist(),
    }


def _labels(pixels: Pixels) -> Tensor:
    if pixels.labels is None:
        raise SensoriumError("this data set has no labels; scores by label need a folder per class or a label column.")
    return torch.as_tensor(np.asarray(pixels.labels))


def _sayer(progress: bool, who: str) -> Callable[[str], None]:
    if not progress:
        return lambda what: None
    from rich.console import Console

    console = Console(stderr=True)
    return lambda what: console.print(f"[dim]{who}: {what}[/]", highlight=False)
