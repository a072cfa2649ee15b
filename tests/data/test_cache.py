"""The cache holds what decoding gives, is reused only when it is right, and fails in one line."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sensorium.data.images import cache as module
from sensorium.data.images.cache import Pixels, cache, natural_size
from sensorium.data.images.decode import square
from sensorium.data.images.open import open_data
from sensorium.data.images.sets import ArrayImages, Numbered, picture, subset
from sensorium.errors import SensoriumError


def arrays(count=10, height=8, width=8, channels=3, seed=0) -> ArrayImages:
    shape = (count, height, width, channels) if channels else (count, height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return ArrayImages(pixels, Numbered("x", count), np.arange(count) % 2, ("a", "b"))


def folder_of(tmp_path, count=6, broken=()):
    rng = np.random.default_rng(1)
    for k in range(count):
        at = tmp_path / "set" / "ab"[k % 2]
        at.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12 + k, 20, 3), dtype=np.uint8)).save(at / f"{k}.png")
        if k in broken:
            (at / f"{k}.png").write_bytes((at / f"{k}.png").read_bytes()[:60])
    return tmp_path / "set"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0, 1, 2, 3, 4]), st.integers(1, 10), st.integers(1, 7))
def test_pixels_are_the_squares_of_the_images(tmp_path_factory, height, width, channels, size, count):
    images = arrays(count, height, width, channels)
    pixels = cache(images, size, tmp_path_factory.mktemp("c"))
    want = np.stack([square(picture(images, k), size) for k in range(count)])
    assert np.array_equal(pixels.images, want)
    assert pixels.labels.tolist() == images.labels.tolist()
    x = want.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(pixels.mean, x.mean(1), atol=1e-9)
    np.testing.assert_allclose(pixels.std, np.maximum(x.std(1), 1 / 255), atol=1e-7)


def test_threads_and_views_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    opened = open_data(folder_of(tmp_path, 17))
    images = subset(opened.train, np.arange(len(opened.train))[::-1])
    one, four = cache(images, 8, tmp_path / "1", workers=1), cache(images, 8, tmp_path / "4", workers=4)
    assert np.array_equal(one.images, four.images)
    assert np.array_equal(one.labels, opened.train.labels[::-1])
    assert list(one.names) == list(opened.train.names)[::-1]


def test_broken_images_go_with_their_labels(tmp_path):
    opened = open_data(folder_of(tmp_path, 12, broken=(4,)))
    whole = np.concatenate([cache(s, 8, tmp_path / "c").labels for s in (opened.train, opened.test)])
    skipped = [skip for s in (opened.train, opened.test) for skip in cache(s, 8, tmp_path / "c").skipped]
    assert len(whole) == 11
    assert np.bincount(whole).tolist() == [5, 6]
    assert [skip.file for skip in skipped] == ["a/4.png"]
    assert skipped[0].reason


def test_reused_when_unchanged_and_made_again_when_not(tmp_path, monkeypatch):
    opened = open_data(folder_of(tmp_path, 10))
    calls = []
    build = module._build
    monkeypatch.setattr(module, "_build", lambda *args: calls.append(1) or build(*args))
    first = cache(opened.train, 8, tmp_path / "c")
    assert np.array_equal(cache(opened.train, 8, tmp_path / "c").images, first.images)
    assert len(calls) == 1
    cache(opened.train, 9, tmp_path / "c")
    assert len(calls) == 2
    image = tmp_path / "set" / opened.train.names[0]
    os.utime(image, ns=(1, 1))
    cache(opened.train, 8, tmp_path / "c")
    assert len(calls) == 3
    cache(subset(opened.train, np.arange(3)), 8, tmp_path / "c")
    assert len(calls) == 4


@pytest.mark.parametrize("harm", ["cut", "grow", "flip", "side cut", "side gone", "side odd", "other images"])
def test_a_damaged_cache_is_made_again(tmp_path, harm):
    images = arrays()
    right = np.array(cache(images, 8, tmp_path).images)
    data, side = next(tmp_path.glob("*.u8")), next(tmp_path.glob("*.json"))
    content = bytearray(data.read_bytes())
    if harm == "cut":
        data.write_bytes(content[:-1])
    elif harm == "grow":
        data.write_bytes(content + b"x")
    elif harm == "flip":
        content[777] ^= 1
        data.write_bytes(content)
    elif harm == "side cut":
        side.write_text(side.read_text()[:-9])
    elif harm == "side gone":
        side.unlink()
    elif harm == "side odd":
        side.write_text(json.dumps([1, 2]))
    else:
        side.write_text(side.read_text().replace('"hash": "', '"hash": "0'))
    assert np.array_equal(cache(images, 8, tmp_path).images, right)
    assert len(list(tmp_path.iterdir())) == 2


def test_bounds_and_full_disks_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(SensoriumError, match=r"lower the image size to 5 or less"):
        cache(arrays(), 8, tmp_path, max_bytes=10 * 3 * 5 * 5)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(SensoriumError, match="disk"):
        cache(arrays(), 8, tmp_path)
    monkeypatch.undo()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SensoriumError, match="No space left"):
        cache(arrays(), 8, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_decode_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(SensoriumError, match=r"none of the 1 image can be decoded: a\.png"):
        cache(open_data(tmp_path).train, 8, tmp_path / "c")
    with pytest.raises(SensoriumError, match="none of the images can be read"):
        natural_size(open_data(tmp_path).train, cpu=True)


def test_progress_reaches_the_end(tmp_path):
    seen = []
    cache(arrays(600), 8, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (600, 600)
    assert seen == sorted(seen)


def test_subset_takes_images_labels_and_names(tmp_path):
    pixels = cache(arrays(), 8, tmp_path)
    some = pixels.subset([7, 2])
    assert isinstance(some, Pixels)
    assert (len(some), some.size, some.mean) == (2, 8, pixels.mean)
    assert np.array_equal(some.images[0], pixels.images[7])
    assert some.labels.tolist() == [1, 0]
    assert list(some.names) == ["x[7]", "x[2]"]
    mask = np.arange(10) < 3
    assert np.array_equal(pixels.subset(mask).images, pixels.subset(slice(0, 3)).images)
    assert len(pixels.subset([])) == 0
    with pytest.raises(ValueError, match="read-only"):
        pixels.images[0] = 0


def test_generated_images_are_cached_too(tmp_path):
    opened = open_data("scenes:20")
    pixels = cache(opened.train, 24, tmp_path)
    assert pixels.images.shape == (20, 3, 24, 24)
    again = cache(open_data("scenes:20").train, 24, tmp_path)
    assert np.array_equal(pixels.images, again.images)
    cache(opened.test, 24, tmp_path)
    assert len(list(tmp_path.glob("*.u8"))) == 2


@pytest.mark.parametrize(
    "height, width, cpu, size",
    [(8, 8, True, 8), (28, 28, True, 28), (64, 64, True, 64), (48, 60, False, 48), (65, 65, True, 64), (300, 400, True, 64),
     (300, 400, False, 224), (130, 400, False, 128), (100, 100, False, 96)],
)  # fmt: skip
def test_natural_size(height, width, cpu, size):
    assert natural_size(arrays(3, height, width), cpu) == size


def test_natural_size_of_mixed_images(tmp_path):
    for k, side in enumerate((20, 40, 70, 110, 500)):
        Image.new("L", (side, 2 * side)).save(tmp_path / f"{k}.png")
    assert natural_size(open_data(tmp_path).train, cpu=False) == 64
    assert natural_size(open_data(tmp_path, limit=1).train, cpu=True) <= 64
