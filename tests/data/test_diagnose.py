"""A diagnosis finds what was planted, and little else."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from rich.console import Console

from sensorium.data.images.diagnose import diagnose
from sensorium.data.images.duplicates import difference_hashes, groups_of_equal, near_pairs, resize_weights, thumbnails
from sensorium.data.images.open import open_data
from sensorium.data.images.sets import ArrayImages, Numbered, Opened, subset
from sensorium.data.log import Skipped

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real data not at {DATA}; set SENSORIUM_DATA")


def scenery(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, uint8 [N, side, side, 3]: alike in kind, different in content."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 5, 5, 3)).astype(np.float32)
    up = resize_weights(5, side)
    return np.clip(np.einsum("hi,nijc,wj->nhwc", up, coarse, up, optimize=True), 0, 255).astype(np.uint8)


def opened(train, train_labels=None, test=None, test_labels=None, classes=("a", "b"), **more) -> Opened:
    def images(x, y):
        return ArrayImages(x, Numbered("train" if x is train else "test", len(x)), y, classes if y is not None else ())

    return Opened(
        "here", "npz", images(train, train_labels), None if test is None else images(test, test_labels), **more
    )


def text(findings) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(findings.render())
    return out.getvalue()


def test_clean_data_is_called_clean():
    x = scenery(1200)
    found = diagnose(opened(x[:1000], np.arange(1000) % 2, x[1000:], np.arange(200) % 2))
    assert (
        found.duplicates["count"]
        == found.near_duplicates["count"]
        == found.overlap["exact"]
        == found.overlap["near"]
        == 0
    )
    assert found.advice == []
    assert "No problems found" in text(found)
    assert found.sizes["min"] == found.sizes["max"] == [32, 32]
    assert found.counts == {"train": 1000, "test": 200}


def test_planted_faults_are_found():
    x = scenery(300)
    train, test = x[:200].copy(), x[200:].copy()
    train[7], train[9] = train[3], train[3]  # two exact copies, of another class one of them
    train[20] = 128  # nothing to see
    train[31] = np.clip(train[30].astype(int) + 8, 0, 255)  # a brighter copy
    test[5] = train[50]
    test[6] = np.clip(train[60].astype(int) - 10, 0, 255)
    labels = np.where(np.arange(200) < 195, 0, 1)
    labels[9] = 1
    found = diagnose(opened(train, labels, test, np.zeros(100, np.int64)))
    assert (found.duplicates["count"], found.duplicates["groups"]) == (2, 1)
    assert found.duplicates["examples"] == [["train[3]", "train[7]", "train[9]"]]
    assert found.conflicts["count"] == 1
    assert found.constant == {"count": 1, "examples": ["train[20]"]}
    assert found.near_duplicates["examples"] == [["train[30]", "train[31]"]]
    assert (found.overlap["exact"], found.overlap["near"]) == (1, 1)
    assert found.overlap["exact_examples"] == [["train[50]", "test[5]"]]
    assert found.overlap["near_examples"] == [["train[60]", "test[6]"]]
    assert found.imbalance["smallest"] == {"name": "b", "images": 6}
    advice = " ".join(found.advice)
    for words in ("also in the training set", "near copy", "different labels", "exact copies", "one color", "Class 'b' has 6 images", "1 % of the labels would hold none",
                  "imbalanced", "no test image"):  # fmt: skip
        assert words in advice, words
    assert json.loads(json.dumps(found.as_dict()))["overlap"]["exact"] == 1
    assert "train[50] ~ test[5]" in text(found)


def test_files_recompressed_and_resized_are_near_copies(tmp_path):
    for k, pixels in enumerate(scenery(60, 96)):
        folder = tmp_path / "ab"[k % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    first = Image.open(tmp_path / "a" / "0.png")
    first.save(tmp_path / "a" / "again.jpg", quality=60)
    first.resize((70, 70)).save(tmp_path / "a" / "small.png")
    ImageEnhance.Brightness(Image.open(tmp_path / "b" / "1.png")).enhance(1.05).save(tmp_path / "b" / "bright.png")
    (tmp_path / "a" / "cut.png").write_bytes((tmp_path / "a" / "2.png").read_bytes()[:500])
    found = diagnose(open_data(tmp_path))
    pairs = found.near_duplicates["examples"] + found.overlap["near_examples"]
    groups = {frozenset(name.rpartition("/")[2] for name in pair) for pair in pairs}
    assert {"0.png", "again.jpg"} in groups
    assert {"0.png", "small.png"} in groups
    assert {"1.png", "bright.png"} in groups
    assert groups <= {
        frozenset(g)
        for g in (("0.png", "again.jpg"), ("0.png", "small.png"), ("again.jpg", "small.png"), ("1.png", "bright.png"))
    }
    assert [b["file"] for b in found.broken] == ["a/cut.png"]
    assert "a/cut.png" in text(found)


def test_unlabelled_and_one_class_are_said():
    x = scenery(10)
    assert any("no labels" in line for line in diagnose(opened(x)).advice)
    assert any(
        "one class only" in line for line in diagnose(opened(x, np.zeros(10, np.int64), classes=("only",))).advice
    )


def test_names_are_shown_not_interpreted():
    found = diagnose(
        opened(scenery(4), np.array([0, 1, 0, 1]), classes=("[red]x", "[/]"), skipped=(Skipped("[bold]f.png", "[x]"),))
    )
    shown = text(found)
    assert "[red]x" in shown
    assert "[bold]f.png: [x]" in shown


def test_looking_stops_at_the_bound(tmp_path):
    for k, pixels in enumerate(scenery(30)):
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    seen = []
    found = diagnose(open_data(tmp_path), max_encoded=10, progress=lambda done, total: seen.append((done, total)))
    assert found.decoded == {"train": 10}
    assert found.counts == {"train": 30}
    assert any("10 of the 30" in note for note in found.notes)
    assert seen[-1] == (10, 10)


def test_generated_images_are_diagnosed():
    found = diagnose(open_data("scenes:60"))
    assert found.decoded == {"train": 60, "test": 12}
    assert found.modes == {"RGB": 72}
    assert found.overlap["exact"] == 0


def test_views_are_looked_at_in_their_order():
    x = scenery(20)
    x[11] = x[4]
    base = opened(x, np.arange(20) % 2).train
    found = diagnose(Opened("here", "npz", subset(base, np.array([11, 3, 4]))))
    assert found.duplicates["examples"] == [["train[11]", "train[4]"]]


def test_thumbnails_agree_with_pillow():
    x = np.random.default_rng(0).integers(0, 256, (3, 37, 50, 3), dtype=np.uint8)
    want = np.stack([np.asarray(Image.fromarray(i).resize((16, 16), Image.Resampling.BILINEAR)) for i in x])
    assert np.abs(thumbnails(x).astype(int) - want).max() <= 1


def test_bands_find_what_all_pairs_find():
    x = scenery(1500)
    x[1000:1200] = np.clip(x[:200].astype(int) + np.random.default_rng(1).integers(-6, 7, x[:200].shape), 0, 255)
    thumbs = thumbnails(x)
    every = {tuple(pair) for pair in near_pairs(thumbs).pairs.tolist()}
    banded = {tuple(pair) for pair in near_pairs(thumbs, all_pairs=0).pairs.tolist()}
    planted = {(k, 1000 + k) for k in range(200)}
    assert planted <= every
    assert len(every - planted) <= 2
    assert banded <= every
    assert len(banded & planted) >= 195


def test_counting_of_pairs_is_bounded():
    x = np.clip(
        scenery(1)[0][None].astype(int) + np.random.default_rng(0).integers(-3, 4, (400, 32, 32, 3)), 0, 255
    ).astype(np.uint8)
    some = near_pairs(thumbnails(x), max_pairs=50)
    assert len(some.pairs) <= 50
    assert len(set(map(tuple, some.pairs.tolist()))) == len(some.pairs)


def test_groups_of_equal_are_in_order():
    groups = groups_of_equal(np.array([5, 1, 5, 2, 1, 5], np.uint64))
    assert [g.tolist() for g in groups] == [[0, 2, 5], [1, 4]]
    across, down = difference_hashes(thumbnails(scenery(2)))
    assert across.dtype == down.dtype == np.uint64
    assert across.shape == (2,)


def test_nothing_readable_still_reports(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nope")
    found = diagnose(open_data(tmp_path))
    assert found.decoded == {"train": 0}
    assert found.broken[0]["file"] == "a.png"
    assert "a.png" in text(found)


@needs_data
def test_cifar_has_few_near_copies():
    """A quarter of the set: some true copies, no hail of false ones, and quick."""
    cifar = open_data(DATA / "cifar10" / "train.npz", test=DATA / "cifar10" / "test.npz", limit=3000)
    start = time.process_time()
    found = diagnose(cifar)
    assert time.process_time() - start < 15
    assert found.duplicates["count"] == found.overlap["exact"] == 0
    assert found.near_duplicates["count"] < 20
    assert found.overlap["near"] < 20
