"""Few labels and many pictures without: every method of pictures learns from them, and what judges leaves them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.base.draw import Draw
from sensorium.catalogue import find, resolve, starters, systems
from sensorium.data.look import look
from sensorium.data.rows import ArrayRows, labeled
from sensorium.data.source import Source
from sensorium.data.wings import kind
from sensorium.judge import features
from sensorium.recipe.recipe import Recipe
from sensorium.runs.compare import compare
from sensorium.runs.train import train

SMALL: dict[str, dict[str, Any]] = {
    "made": {"hidden": 20, "masks": 2},
    "vqgan": {"codes": 16, "code_width": 8, "discriminator_width": 8, "discriminator_depth": 1, "start": 0.4},
    "token_prior": {"width": 16, "depth": 1, "heads": 2},
}
OF_PICTURES = [system.name for system in systems() if system.data == "images" and system.trains]


def photos(folder: Path, per_class: int, without: int, side: int = 16, split: str = "") -> Path:
    """PNG files in class folders and in ``unlabelled``: noise, darker in one class."""
    rng = np.random.default_rng(0)
    for name, count, low in (("cat", per_class, 0), ("dog", per_class, 100), ("unlabelled", without, 50)):
        place = folder / split / name
        place.mkdir(parents=True)
        for k in range(count):
            pixels = rng.integers(low, low + 120, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """22 labeled training pictures of 28 px, and 60 without a label."""
    folder = tmp_path_factory.mktemp("few")
    data = photos(folder / "photos", 14, 60, side=28)
    return kind("images").prepare(Source(str(data), None, folder / "cache", image_size=28))


def built(system: str, few: Any, folder: Path) -> Recipe:
    given = dict(SMALL.get(system, {}))
    if system == "token_prior":
        data = few.opened.path
        tokens = train(
            "vqgan", data, budget="1steps", out=folder / "vqgan", image_size=28, progress=False, **SMALL["vqgan"]
        )
        given["tokens"] = str(tokens.folder)
    if system == "consistency":
        master = train("edm", few.opened.path, budget="1steps", out=folder / "edm", image_size=28, progress=False)
        given["teacher"] = str(master.folder)
    if system == "distill":
        master = train("simclr", few.opened.path, budget="1steps", out=folder / "simclr", image_size=28, progress=False)
        given["teacher"] = str(master.folder)
    if system == "self_training":
        how: dict[str, Any] = {"budget": "1steps", "out": folder / "supervised", "image_size": 28, "progress": False}
        given["teacher"] = str(train("supervised", few.opened.path, **how).folder)
    if find(system).needs:
        given["backbone"] = (
            "vit-micro"
            if find(system).needs in ("TokenEncoder", "MaskedEncoder") or system == "dino"
            else "resnet-micro"
        )
    torch.manual_seed(0)
    return resolve(system)(kind("images").situate(few), batch_size=8, **given)


@pytest.mark.parametrize("system", OF_PICTURES)
def test_every_method_learns(system: str, few: Any, tmp_path: Path) -> None:
    recipe = built(system, few, tmp_path)
    rows = few.train if recipe.derive is None else recipe.derive(few.train, tmp_path, False)
    # others that learn from labels learn from pictures without one, too
    by_labels = find(system).labels and recipe.derive is not None
    assert len(rows) == (22 if by_labels else 82)
    index = np.linspace(0, len(rows) - 1, 8).astype(np.int64)
    batch = recipe.views(rows.take(index), Draw.seeded(0, 0, 8))
    if "label" in batch:
        assert bool((batch["label"] < 0).any()) != by_labels
    out = recipe.method.train()(batch)
    assert all(torch.isfinite(value).all() for value in out.values())
    out["loss"].backward()
    gradients = [p.grad for p in recipe.method.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


def test_only_labeled_rows_are_supervised() -> None:
    rows = ArrayRows({"image": np.arange(5), "label": np.array([0, -1, 1, -1, 0])}, "images", classes=("a", "b"))
    some = labeled(rows)
    taken = some.take(np.array([2, 0]))
    assert (len(some), some.unit, some.classes, some.fields) == (3, "images", ("a", "b"), rows.fields)
    assert [taken[name].tolist() for name in ("image", "label")] == [[4, 0], [0, 0]]  # pyright: ignore
    every = ArrayRows({"label": np.array([0, 1])})
    assert labeled(every) is every


def test_the_online_evaluation_finds_the_few(monkeypatch: pytest.MonkeyPatch, few: Any) -> None:
    monkeypatch.setattr(features, "BANK", 8)
    seen = []
    score = features.knn
    monkeypatch.setattr(features, "knn", lambda *given: seen.append(given[1]) or score(*given))
    method = built("simclr", few, Path()).method.eval()
    assert np.isfinite(features.online(method, few)["knn_top1"])
    assert (seen[0] >= 0).sum() >= 4


@pytest.mark.slow
def test_a_comparison(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", 10, 40)
    asked = {"labels": "50%,100%", "label_seeds": 1, "tune_steps": 1, "full": True, "progress": False}
    compare(["simclr", "supervised"], str(data), budget="2steps", out=tmp_path / "out", **asked)
    kept = json.loads((tmp_path / "out/simclr/evaluation.json").read_text("utf-8"))
    assert {one["labels"] for one in _found(kept, "labels")} >= {8, 16}


def _found(value: Any, key: str) -> list[dict[str, Any]]:
    """The objects within that have a whole number of that name."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    here = [value] if isinstance(value, dict) and isinstance(value.get(key), int) else []
    return here + [one for part in inner for one in _found(part, key)]


def test_what_data_says(tmp_path: Path) -> None:
    found = look(photos(tmp_path / "photos", 12, 30))
    assert [(one["name"], one["train"], one["test"]) for one in found.classes] == [("cat", 10, 2), ("dog", 10, 2)]
    assert found.unlabeled == 30
    assert "30 pictures in 'unlabelled' have no label: methods without labels learn from them, too." in found.notes
    assert any(line.startswith("20 images have a label and 30 images have none: ") for line in found.advice)
    assert found.commands[0].startswith(f"sensorium compare {' '.join(s for s in starters())} ")
    assert found.commands[0].endswith(" --budget 10m --labels 10%,100%")
    many = look(photos(tmp_path / "many", 130, 1, side=8))
    assert many.commands[0].endswith(" --labels 1%,10%,100%")


def test_a_folder_as_people_have_it(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", 10, 12)
    (data / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (data / "unlabelled" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (data / "cat" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (data / "unlabelled" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (data / "dog" / "empty.jpg").write_bytes(b"")
    found = look(data)
    assert sorted(one["file"].rpartition("/")[2] for one in found.broken) == ["broken.png", "empty.jpg"]
    assert "1 .heic file is not read: convert to JPEG or PNG." in found.notes
    assert "DS_Store" not in " ".join(found.notes)
    ready = kind("images").prepare(Source(str(data), None, tmp_path / "cache", image_size=16))
    assert np.bincount(ready.train.labels + 1).tolist() == [12, 8, 8]
    assert ready.test.labels.tolist() == [0, 0, 1, 1]


def test_what_data_says_of_labels_everywhere(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((300, 8, 8), np.uint8), labels=np.arange(300) % 2)
    found = look(tmp_path / "a.npz")
    assert found.unlabeled == 0
    assert "--labels" not in found.commands[0]


def test_the_number_of_labels_is_kept(few: Any) -> None:
    told = kind("images").describe(few)
    assert (told["train"], told["labeled"], told["classes"]) == (82, 22, ["cat", "dog"])
