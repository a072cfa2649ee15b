"""Every mode, orientation and kind of damage loads as uint8 [3, H, W] or is refused by name."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sensorium.data.images import decode
from sensorium.data.images.cache import cache
from sensorium.data.images.decode import BadImage, rgb, square, to_array
from sensorium.data.images.open import open_data


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def load(data: bytes) -> np.ndarray:
    array = to_array(rgb(data, "it.png"))
    assert array.dtype == np.uint8
    assert array.shape[0] == 3
    return array


def refusal(call, *args) -> BadImage | None:
    """What a call refuses with; any other exception is a failure of the test."""
    try:
        call(*args)
    except BadImage as bad:
        return bad
    return None


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_grey_is_repeated():
    grey = noise(5, 7)
    assert np.array_equal(load(encoded(Image.fromarray(grey))), np.stack([grey] * 3))
    bits = load(encoded(Image.fromarray(grey).convert("1")))
    assert set(np.unique(bits)) <= {0, 255}


def test_transparency_is_put_on_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 100, 0, 255)
    rgba[0, 1] = (0, 0, 0, 51)
    array = load(encoded(Image.fromarray(rgba)))
    assert array[:, 0, 0].tolist() == [200, 100, 0]
    assert array[:, 0, 1].tolist() == [204, 204, 204]
    assert array[:, 1, 1].tolist() == [255, 255, 255]
    la = load(encoded(Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")))
    assert la[0].tolist() == [[10, 255]]


def test_palette_with_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert load(encoded(image))[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    assert load(encoded(image, transparency=1))[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk():
    array = load(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(array[:, 4, 4].astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert load(encoded(Image.fromarray(values), kind))[0].tolist() == [[0, 1, 128, 255]]


def test_float_grey():
    ramp = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert load(encoded(Image.fromarray(ramp), "TIFF"))[0].tolist() == [[0, 128, 255]]
    wide = np.array([[-1000.0, np.nan, 1000.0]], np.float32)
    assert load(encoded(Image.fromarray(wide), "TIFF"))[0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    """Each stored form of one picture, turned by its tag, is that picture."""
    upright = Image.fromarray(noise(4, 6, 3))
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(stored, "PNG", exif=exif)
    assert np.array_equal(load(data), to_array(upright))
    assert decode.header(data, "it")[:2] == upright.size


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (5, 4), color) for color in ((255, 0, 0), (0, 0, 255))]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert load(data)[:, 2, 2].tolist() == [255, 0, 0], kind


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (700, 1), (3, 2)])
def test_tiny_and_thin_images_become_squares(shape):
    assert square(Image.fromarray(noise(*shape, 3)), 16).shape == (3, 16, 16)


def test_square_is_resize_then_centre_crop():
    image = Image.fromarray(noise(40, 60, 3))
    whole = np.asarray(image.resize((30, 20), Image.Resampling.BILINEAR))[:, 5:25]
    assert np.abs(square(image, 20).transpose(1, 2, 0).astype(int) - whole).max() <= 1
    same = Image.fromarray(noise(20, 20, 3))
    assert np.array_equal(square(same, 20), to_array(same))


def huge_png(width: int, height: int) -> bytes:
    """A valid PNG header of any size, with next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 12_000, 60_000])
def test_huge_images_are_refused_by_name(side):
    with pytest.raises(BadImage, match=r"big\.png.*megapixels"):
        rgb(huge_png(side, side), "big.png")


def test_huge_jpeg_is_decoded_at_a_reduced_scale(monkeypatch):
    data = encoded(Image.new("RGB", (1600, 800), (10, 200, 30)), "JPEG")
    monkeypatch.setattr(decode, "MAX_PIXELS", 100_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # Pillow raises beyond twice this
    assert rgb(data, "big.jpg").size == (200, 100)
    assert rgb(data, "big.jpg", at_least=700).size == (200, 100)
    with pytest.raises(BadImage, match="megapixels"):
        rgb(encoded(Image.new("RGB", (1600, 800)), "JPEG", progressive=True), "big.jpg")


def test_reduced_decoding_keeps_enough():
    data = encoded(Image.fromarray(noise(640, 960, 3)), "JPEG")
    assert rgb(data, "a.jpg", at_least=100).size == (240, 160)
    assert rgb(data, "a.jpg", at_least=900).size == (960, 640)


@pytest.mark.parametrize(
    "data, reason", [(b"", "zero bytes"), (b"hello", "not an image"), (b"\x89PNG\r\n\x1a\n", "x.png: .")]
)
def test_what_is_no_image_says_why(data, reason):
    with pytest.raises(BadImage, match=reason) as caught:
        rgb(data, "x.png")
    assert str(caught.value).startswith("x.png: ")
    assert "\n" not in str(caught.value)


def test_postscript_never_reaches_an_interpreter():
    with pytest.raises(BadImage, match="known format"):
        rgb(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "x.png")


SAMPLES = {
    "PNG": encoded(Image.fromarray(noise(9, 11, 3)), "PNG"),
    "JPEG": encoded(Image.fromarray(noise(40, 40, 3)), "JPEG"),
    "GIF": encoded(Image.fromarray(noise(9, 11)), "GIF"),
    "BMP": encoded(Image.fromarray(noise(9, 11, 3)), "BMP"),
    "TIFF": encoded(Image.fromarray(noise(9, 11, 3)), "TIFF"),
    "WEBP": encoded(Image.fromarray(noise(20, 20, 3)), "WEBP"),
    "PPM": encoded(Image.fromarray(noise(9, 11, 3)), "PPM"),
}


@pytest.mark.parametrize("kind", SAMPLES)
@settings(max_examples=60, deadline=None)
@given(
    share=st.floats(0, 1, exclude_max=True), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3)
)
def test_damage_never_escapes(kind, share, flips):
    """Cut anywhere or with bytes changed: pixels of the right form, or BadImage; never another exception."""
    data = bytearray(SAMPLES[kind])
    if flips:
        for where, by in flips:
            data[min(int(where * len(data)), len(data) - 1)] ^= by
    else:
        data = data[: int(share * len(data))]
    for bad in (refusal(load, bytes(data)), refusal(decode.header, bytes(data), "it.png")):
        assert bad is None or (bad.name == "it.png" and bad.reason)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM"])
def test_half_a_file_is_refused(kind):
    with pytest.raises(BadImage):
        load(SAMPLES[kind][: len(SAMPLES[kind]) // 2])


def test_a_folder_of_everything_odd_loads_or_is_skipped_by_name(tmp_path):
    good = {
        "grey.png": encoded(Image.fromarray(noise(9, 9))),
        "rgba.png": encoded(Image.fromarray(noise(9, 9, 4))),
        "pixel.bmp": encoded(Image.fromarray(noise(1, 1, 3)), "BMP"),
        "cmyk.jpg": encoded(Image.new("CMYK", (9, 9)), "JPEG"),
        "deep.png": encoded(Image.fromarray(np.full((9, 9), 40_000, np.uint16))),
    }
    bad = {
        "cut.jpg": SAMPLES["JPEG"][:300],
        "text.png": b"not an image",
        "big.png": huge_png(50_000, 50_000),
        "empty.png": b"",
    }
    for name, data in {**good, **bad}.items():
        (tmp_path / name).write_bytes(data)
    opened = open_data(tmp_path)
    pixels = cache(opened.train, 8, tmp_path / "cache")
    assert sorted(pixels.names) == sorted(good)
    refused = {s.file.rpartition("/")[2] for s in (*opened.skipped, *pixels.skipped)}
    assert refused == set(bad)
    assert pixels.images.shape == (len(good), 3, 8, 8)


@pytest.mark.parametrize("data", [b"\0\0\0\x18ftypheic" + bytes(80), b"anything"])
def test_pictures_of_kinds_that_are_not_read_say_the_way(data, tmp_path):
    for name in ("IMG_1.HEIC", "a.b.psd"):
        (tmp_path / name).write_bytes(data)
        kind = name.rpartition(".")[2].lower()
        with pytest.raises(BadImage, match=rf"a \.{kind} file is not read; convert it to JPEG or PNG"):
            rgb(tmp_path / name, name)
