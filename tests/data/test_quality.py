"""Doubtful pictures are found, good ones are not, and neither are those of data in which all are so."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from rich.console import Console

from sensorium.data.images.diagnose import diagnose
from sensorium.data.images.open import open_data
from sensorium.data.images.quality import (
    BLUR,
    FEW,
    TINY,
    Measures,
    judge,
    levels,
    levels_of_each,
    sampled,
    sharpness,
)
from sensorium.data.images.sets import ArrayImages, Numbered, Opened

sys.path.insert(0, str(Path(__file__).parent))
from quality_cases import FAULTS, drawn, folder_of, gray_levels, strokes

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real data not at {DATA}; set SENSORIUM_DATA")


def in_memory(images: list[Image.Image]) -> Opened:
    pixels = np.stack([np.asarray(image) for image in images])
    return Opened("here", "npz", ArrayImages(pixels, Numbered("train", len(pixels))))


def counts(found) -> dict[str, int]:
    return {kind: one["count"] for kind, one in found.quality.items() if one["count"]}


def text(findings) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(findings.render())
    return out.getvalue()


# ------------------------------------------------------------------------------------------------ found, and not found


def test_good_pictures_are_not_doubtful(tmp_path):
    found = diagnose(open_data(folder_of(tmp_path, [drawn(k) for k in range(60)])))
    assert counts(found) == {}
    assert set(found.quality) == {"blurred", "dark", "bright", "little_information", "odd_shape", "odd_size"}
    assert not any("look at" in line for line in found.advice)


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("many", [1, 3])
def test_each_kind_is_found_named_and_told(tmp_path, kind, many):
    images = [drawn(k) for k in range(40)]
    bad = [5, 18, 31][:many]
    for k in bad:
        images[k] = FAULTS[kind](images[k])
    found = diagnose(open_data(folder_of(tmp_path, images)))
    assert counts(found) == {kind: many}
    names = {f"{'ab'[k % 2]}/{k:03}.png" for k in bad}
    assert set(found.quality[kind]["examples"]) == names
    line = next(line for line in found.advice if all(name in line for name in names))
    assert line.startswith(f"{many} image{'s are' if many > 1 else ' is'} ")
    assert found.quality[kind]["examples"][0] in text(found)
    assert not any("usual" in note for note in found.notes)


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if not kind.startswith("odd")])
def test_pictures_in_memory_are_measured_alike(tmp_path, kind):
    images = [drawn(k) for k in range(30)]
    images[7] = FAULTS[kind](images[7])
    assert counts(diagnose(in_memory(images))) == counts(diagnose(open_data(folder_of(tmp_path, images)))) == {kind: 1}


def test_the_worst_are_named_first(tmp_path):
    images = [drawn(k) for k in range(40)]
    for k, radius in ((3, 3), (11, 5), (25, 4)):
        images[k] = images[9].filter(ImageFilter.GaussianBlur(radius))
    found = diagnose(open_data(folder_of(tmp_path, images)))
    assert [Path(name).stem for name in found.quality["blurred"]["examples"]] == ["011", "025", "003"]


def test_pictures_of_all_sets_are_judged_beside_one_another(tmp_path):
    train, test = [drawn(k) for k in range(30)], [drawn(100 + k) for k in range(6)]
    test[2] = FAULTS["dark"](test[2])
    folder_of(tmp_path / "train", train)
    folder_of(tmp_path / "test", test)
    found = diagnose(open_data(tmp_path))
    assert counts(found) == {"dark": 1}
    assert found.quality["dark"]["examples"][0].endswith("002.png")


def test_of_few_pictures_the_thresholds_alone_decide(tmp_path):
    images = [FAULTS["dark"](drawn(k)) for k in range(3)] + [drawn(3)]
    assert counts(diagnose(open_data(folder_of(tmp_path, images)))) == {"dark": 3}


def test_a_blank_picture_is_told_once(tmp_path):
    images = [drawn(k) for k in range(30)]
    images[4] = Image.new("RGB", (120, 90))
    images[9] = Image.new("RGB", (120, 90), (255, 255, 255))
    found = diagnose(open_data(folder_of(tmp_path, images)))
    assert found.constant["count"] == 2
    assert counts(found) == {}


def test_fog_is_no_blur():
    image = drawn(1)
    foggy = gray_levels(lambda v: 140 + 0.2 * v)(image)
    assert sharpness(foggy) > BLUR
    assert sharpness(foggy) == pytest.approx(sharpness(image), rel=0.2)


# ------------------------------------------------------------------------------------------------------- uniform data


@pytest.mark.parametrize("kind", ["blurred", "dark", "bright", "little_information", "odd_shape"])
@pytest.mark.parametrize("share", [1, 2, 4])
def test_what_many_pictures_are_is_told_of_the_data_not_of_a_picture(tmp_path, kind, share):
    images = [drawn(k) if k % share else FAULTS[kind](drawn(k)) for k in range(40)]
    found = diagnose(open_data(folder_of(tmp_path, images)))
    assert counts(found) == {}
    assert {kind: one["count"] for kind, one in found.usual.items()} == {kind: 40 // share}
    (note,) = (note for note in found.notes if "usual" in note)
    assert note.startswith(f"{40 // share} images ({100 / share:.1f} %) are ")
    assert not any("look at" in line for line in found.advice)


def test_digits_and_strokes_are_not_told_of():
    assert counts(diagnose(open_data("digits"))) == {}
    found = diagnose(in_memory([strokes(k) for k in range(200)]))
    assert sum(counts(found).values()) == 0
    assert "little_information" not in {*found.quality, *found.usual}


@needs_data
def test_small_photographs_are_seldom_told_of():
    found = diagnose(open_data(DATA / "cifar10" / "train.npz", limit=4000))
    assert found.usual == {}
    assert sum(counts(found).values()) < 40


def test_small_pictures_are_called_blurred_beside_the_others(tmp_path):
    small = [drawn(k, 48, 40) for k in range(40)]
    small[3], small[17] = (small[k].filter(ImageFilter.GaussianBlur(4)) for k in (3, 17))
    found = diagnose(open_data(folder_of(tmp_path / "small", small))).quality["blurred"]
    assert found["count"] == 2
    assert sorted(int("".join(filter(str.isdigit, Path(name).stem))) for name in found["examples"]) == [3, 17]
    few = [small[3], small[17], *small[4:9]]
    assert "blurred" not in diagnose(open_data(folder_of(tmp_path / "few", few))).quality
    assert np.isnan(sharpness(drawn(0, TINY - 1, 12)))
    assert np.isfinite(sharpness(drawn(0, TINY, 12)))


def test_as_arrays_they_are_judged_alike(tmp_path):
    small = [drawn(k, 32, 32) for k in range(40)]
    small[5] = small[5].filter(ImageFilter.GaussianBlur(3))
    np.savez(tmp_path / "a.npz", images=np.stack([np.asarray(one) for one in small]))
    assert counts(diagnose(open_data(tmp_path / "a.npz"))) == {"blurred": 1}


def test_sizes_that_differ_a_little_are_not_odd(tmp_path):
    images = [drawn(k) for k in range(40)]
    images[3], images[4] = drawn(3, 121, 90), drawn(4, 130, 95)
    assert counts(diagnose(open_data(folder_of(tmp_path, images)))) == {}


# ----------------------------------------------------------------------------------------------------------- measures


def brightness(pixels: np.ndarray) -> np.ndarray:
    return np.sqrt(pixels.astype(float) ** 2 @ np.array([0.241, 0.691, 0.068])) / 255


@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 128), height=st.integers(1, 128))
@settings(max_examples=30, deadline=None)
def test_levels_are_percentiles_and_entropy(seed, width, height):
    image = drawn(seed, width, height)
    pixels = np.asarray(image)
    high, low, entropy = levels(pixels[None])[0]
    ranked = np.sort(brightness(pixels), axis=None)
    for value, share in ((high, 0.99), (low, 0.05)):
        at = share * (len(ranked) - 1)  # within a rank and half a gray level
        assert ranked[max(0, int(at) - 1)] - 0.003 <= value <= ranked[min(len(ranked) - 1, int(at) + 1)] + 0.003
    assert entropy == pytest.approx(image.entropy() - np.log2(3), abs=1e-3)


@given(seed=st.integers(0, 2**32 - 1), width=st.integers(40, 200), height=st.integers(64, 200))
@settings(max_examples=20, deadline=None)
def test_turning_and_mirroring_leaves_the_measures(seed, width, height):
    image = drawn(seed, width, height)
    plain, sharp = levels(sampled(np.asarray(image)[None]))[0], sharpness(image)
    ranked = np.sort(brightness(np.asarray(image)), axis=None)
    rank = lambda share: float(ranked[round(share * (len(ranked) - 1))])  # noqa: E731
    for turn in Image.Transpose:
        turned = image.transpose(turn)
        assert sharpness(turned) == pytest.approx(sharp, rel=0.1)
        # of larger pictures every second pixel is taken, others of a turned one: the ranks of their percentiles are near
        high, low, entropy = levels(sampled(np.asarray(turned)[None]))[0]
        assert rank(0.96) - 0.003 <= high <= rank(1.0) + 0.003
        assert rank(0.02) - 0.003 <= low <= rank(0.08) + 0.003
        assert entropy == pytest.approx(plain[2], abs=0.3)
        if max(width, height) <= 64:
            np.testing.assert_array_equal(levels(np.asarray(turned)[None]), levels(np.asarray(image)[None]))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_more_blur_is_less_sharp(seed):
    image = drawn(seed)
    found = [sharpness(image.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)
    assert found[0] > BLUR
    assert found[-1] < BLUR


@given(seed=st.integers(0, 2**32 - 1), gain=st.floats(0.4, 1.0))
@settings(max_examples=20, deadline=None)
def test_light_leaves_sharpness(seed, gain):
    image = drawn(seed)
    assert sharpness(gray_levels(lambda v: gain * v)(image)) == pytest.approx(sharpness(image), rel=0.15)


def test_measures_do_not_depend_on_the_others_of_a_batch():
    images = [np.asarray(drawn(k, 30 + 7 * (k % 3), 40)) for k in range(12)]
    together = levels_of_each(images)
    for image, found in zip(images, together, strict=True):
        np.testing.assert_array_equal(levels(image[None])[0], found)


def test_the_grid_is_of_every_picture():
    for shape in ((1, 1), (1, 5000), (129, 3), (4000, 257)):
        some = sampled(np.zeros((*shape, 3), np.uint8))
        assert min(some.shape[:2]) > 0
        assert max(some.shape[:2]) <= 64


@given(count=st.integers(FEW, 60), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_pictures_does_not_matter(count, seed):
    rng = np.random.default_rng(seed)
    high, low, entropy, sharp = rng.uniform(0, 1, (4, count)).astype(np.float32)
    sizes = rng.integers(1, 3000, (count, 2)).astype(float)
    spared = rng.random(count) < 0.1
    order = rng.permutation(count)
    plain = judge(Measures(high, low, 8 * entropy, sharp, sizes), spared)
    mixed = judge(Measures(high[order], low[order], 8 * entropy[order], sharp[order], sizes[order]), spared[order])
    for one, other in ((plain.told, mixed.told), (plain.usual, mixed.usual)):
        assert {k: set(v.tolist()) for k, v in one.items()} == {k: set(order[v].tolist()) for k, v in other.items()}


def test_nothing_readable_has_no_quality(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nope")
    assert counts(diagnose(open_data(tmp_path))) == {}
