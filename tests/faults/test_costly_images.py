"""Image files that ask for minutes or gigabytes."""

from __future__ import annotations

import io
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensorium.data.images import decode, structure
from sensorium.data.images.decode import BadImage, header, rgb

sys.path.insert(0, str(Path(__file__).parent))
from made import encoded

# --------------------------------------------------------------------------------------- 58: files that ask for too much


def scans(count: int, side: int, between: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan comes ``count`` more times."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    at = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xda"]
    tables = data.rfind(b"\xff\xc4", 0, at[-1])
    start = tables if tables > at[-2] else at[-1]
    return data[:-2] + (between + data[start:-2]) * count + b"\xff\xd9"


HIDDEN = b"\xff\xfe\0\x04\xff\xd9"  # a comment that holds the mark of the end


@pytest.mark.parametrize("between", [b"", HIDDEN, b"junk\xff\xff"])
def test_58_jpeg_of_many_scans(monkeypatch, between):
    monkeypatch.setattr(structure, "MAX_SCANNED", 10**7)
    started = time.monotonic()
    with pytest.raises(BadImage, match="scans"):
        rgb(scans(60, 500, between), "a.jpg")
    assert time.monotonic() - started < 8
    assert rgb(scans(20, 500), "a.jpg").size == (500, 500)


def test_58_ordinary_jpegs_have_few_scans():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[271] = "camera"
    thumbnail = encoded(image, "JPEG", progressive=True)
    plain = encoded(image, "JPEG", exif=exif.tobytes() + thumbnail, restart_marker_blocks=1)
    assert structure.inspect(io.BytesIO(plain), "a").scans == 1
    assert header(plain, "a")[:2] == (64, 64)
    long = plain[:2] + segment(0xE2, bytes(65_000)) * 4 + plain[2:]  # more header than is read at first
    assert structure.inspect(io.BytesIO(long), "a", header=True).scans == 1
    assert header(long, "a")[:2] == rgb(long, "a").size == (64, 64)
    assert 6 <= structure.inspect(io.BytesIO(thumbnail), "a").scans <= 12


def ifd(entries: int, size: int) -> bytes:
    """A TIFF of many tags, all of which are the same ``size`` bytes."""
    end = 8 + 2 + 12 * entries + 4
    tags = b"".join(struct.pack("<HHII", (i + 1000) % 65536, 7, size, end) for i in range(entries))
    return struct.pack("<4sIH", b"II*\0", 8, entries) + tags + bytes(4 + size)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", head), *more, chunk(b"IDAT", rows), chunk(b"IEND", b"")])


def segment(kind: int, data: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data


def ico(data: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(data), 22) + data


def jpeg_with(kind: int, data: bytes) -> bytes:
    jpeg = encoded(Image.new("RGB", (8, 8)), "JPEG")
    return jpeg[:2] + segment(kind, data) + jpeg[2:]


def j2k(size: tuple[int, int], tile: tuple[int, int] | None = None) -> bytes:
    """A JPEG 2000 codestream that claims another size, and tiles."""
    data = bytearray(encoded(Image.new("L", (64, 64)), "JPEG2000", no_jp2=True))
    data[8:16] = struct.pack(">II", *size)
    data[24:32] = struct.pack(">II", *(tile or size))
    return bytes(data)


def gif_with(blocks: bytes) -> bytes:
    gif = encoded(Image.new("P", (8, 8)), "GIF")
    at = 13 + (3 << ((gif[10] & 7) + 1))
    return gif[:at] + blocks + gif[at:]


BITMAP = struct.pack("<IiiHHIIiiII", 40, 30_000, 6000, 1, 32, 0, 0, 0, 0, 0, 0) + bytes(99)
RLE = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 1078, 40, 9000, 9000, 1, 8, 1, 0, 0, 0, 256, 0)
WITHIN = struct.pack("<4sIHHHIII", b"II*\0", 8, 1, 34665, 4, 1, 26, 0)  # EXIF in a directory of its own


def within(bomb: bytes) -> bytes:
    """The directory of ``bomb`` as one that another points to."""
    count = struct.unpack_from("<H", bomb, 8)[0]
    return WITHIN + bomb[8 : 10 + 12 * count + 4] + bytes(1 << 20)


COSTLY = {
    "tags.tif": lambda: ifd(60_000, 1 << 20),
    "within.tif": lambda: within(ifd(60_000, 1 << 20)),
    "exif.jpg": lambda: jpeg_with(0xE1, b"Exif\0\0" + ifd(2600, 30_000)[:65_000]),
    "mpf.jpg": lambda: jpeg_with(0xE2, b"MPF\0" + ifd(2600, 30_000)[:65_000]),
    "exif.png": lambda: png(4, 4, chunk(b"eXIf", ifd(60_000, 1 << 20))),
    "exif.avif": lambda: b"\0\0\0\x1cftypavif" + bytes(100) + ifd(60_000, 1 << 20),
    "text.png": lambda: png(4, 4, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50 << 20), 1))),
    "profile.png": lambda: png(4, 4, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50 << 20), 1))),
    "chunks.png": lambda: png(4, 4, chunk(b"abCd", b"") * 250_000),
    "comments.gif": lambda: gif_with(b"!\xfe" + (b"\xff" + bytes(255)) * 30_000 + b"\0"),
    "many.gif": lambda: gif_with(b"!\xfe\1x\0" * 100_000),
    "comments.pgm": lambda: b"P2 20 20 255\n" + b"#\n" * 500_000,
    "header.pgm": lambda: b"P5 #" + b"x" * 3_000_000 + b"\n2 2 255\n1234",
    "numbers.ppm": lambda: b"P3 1500 1500 255\n" + b"1 " * 3_000_000,
    "rle.bmp": lambda: RLE + bytes(1024) + b"\1\5" * 3_000_000,
    "png.ico": lambda: ico(png(5000, 5000)),
    "bitmap.ico": lambda: ico(BITMAP),
    "large.j2k": lambda: j2k((9900, 9900)),
    "tiles.j2k": lambda: j2k((8000, 8000), (9, 9)),
}


@pytest.mark.parametrize("name", COSTLY)
def test_58_files_that_cost_minutes_or_gigabytes_are_refused_at_once(name):
    data = COSTLY[name]()
    started = time.monotonic()
    with pytest.raises(BadImage) as caught:
        rgb(data, name)
    assert time.monotonic() - started < 8
    assert str(caught.value).startswith(f"{name}: ")
    assert "known format" not in str(caught.value)


def test_58_a_profile_of_overlapping_tags_is_read_at_no_cost():
    """EXIF data as text of a PNG, and of a WebP: only the orientation is looked for."""
    bomb = ifd(15_000, 200_000)
    text = b"\nexif\n  %d\n" % len(bomb) + bomb.hex().encode()
    files = {
        "a.png": png(4, 4, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))),
        "a.webp": encoded(Image.new("RGB", (4, 4)), "WEBP", exif=b"Exif\0\0" + bomb),
    }
    started = time.monotonic()
    for name, data in files.items():
        assert rgb(data, name).size == header(data, name)[:2] == (4, 4)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_58_orientation_is_still_found(kind):
    """A TIFF's is found once: its decoder turns it already."""
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(Image.new("RGB", (5, 3)), kind, exif=exif)
    assert header(data, "a")[:2] == rgb(data, "a").size == (3, 5)


def test_58_threads_share_a_bound_of_memory(monkeypatch):
    """Images that together need more than the bound are decoded one after another."""
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(decode, "_TOGETHER", 1000)
    inside, most = [], []

    def slow(need):
        with decode._Room(need):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(slow, [600] * 8))
        assert max(most) == 1
        list(pool.map(slow, [100] * 8))
        assert max(most) > 1
    slow(5000)  # alone, whatever it needs


def test_58_what_free_memory_does_not_hold_is_refused(monkeypatch):
    monkeypatch.setattr("sensorium.base.memory.available_memory", lambda: 50 << 20)
    data = encoded(Image.new("L", (3000, 3000)), "TIFF", compression="tiff_deflate")
    with pytest.raises(BadImage, match="free memory"):
        rgb(data, "a.tif")


def test_58_bytes_that_are_no_image_are_not_taken_for_a_targa():
    data = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 2, 24, 0) + bytes(12)
    assert rgb(data, "a.tga").size == (2, 2)
    with pytest.raises(BadImage, match="not an image in a known format"):
        rgb(data, "a.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_short_way_through_a_plain_picture_finds_what_the_walk_finds(monkeypatch, kind):
    """Whatever is in a small file: bytes changed and put in, markers and names of chunks among them."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8))
    parts = [b"\xff\xda", b"\xff\xff\xda", b"\xff\xe1\0\x08Exif\0\0", b"eXIf", b"tEXtRaw profile type ", b"\xff\xc2"]
    files = [encoded(image, kind), encoded(image, kind, progressive=True)]
    for _ in range(300):
        data = bytearray(files[rng.integers(2)])
        at = int(rng.integers(2, len(data)))
        data[at : at + int(rng.integers(0, 9))] = parts[rng.integers(len(parts))]
        files.append(bytes(data))

    def found(data: bytes) -> object:
        try:
            return structure.inspect(io.BytesIO(data), "a")
        except ValueError as error:
            return str(error)

    short = [found(data) for data in files]
    monkeypatch.setattr(structure, "_SCAN", b"")  # which any file has more than one of
    monkeypatch.setattr(structure, "_SMALL", -1)
    assert short == [found(data) for data in files]
    assert len({str(one) for one in short}) > 1


def test_a_file_that_cannot_be_wide_has_no_peak_and_one_of_16_bits_has():
    eight, sixteen = np.zeros((5, 6), np.uint8), np.full((5, 6), 3000, np.uint16)
    assert decode.peak(encoded(Image.fromarray(eight), "PNG"), "a") is None
    assert decode.peak(encoded(Image.fromarray(eight), "JPEG"), "a") is None
    assert decode.peak(encoded(Image.fromarray(sixteen), "PNG"), "a") == (3000, 3000)


def test_a_run_length_coded_bmp_of_many_pixels_is_refused():
    head = struct.pack("<2sIHHIIiiHHII", b"BM", 1096, 0, 0, 54, 40, 16_777_224, 4, 1, 8, 1, 1042)
    with pytest.raises(BadImage, match="run-length coded BMP"):
        rgb(head.ljust(1096, b"\0"), "a.bmp")
