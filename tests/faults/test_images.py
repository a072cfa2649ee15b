"""Folders of images as people have them, files that are not what they say, and what `sensorium data` tells of it."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sensorium.base import partial
from sensorium.data.images import decode, structure
from sensorium.data.images.cache import cache
from sensorium.data.images.decode import BadImage, header, rgb
from sensorium.data.images.diagnose import diagnose
from sensorium.data.images.open import open_data
from sensorium.data.images.sets import picture
from sensorium.data.look import look
from sensorium.errors import SensoriumError

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_images import png16


def picture_at(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((16, 12), 2).save(path)


def fill(root: Path, counts: dict[str, int]) -> Path:
    """``counts`` pictures in each folder below ``root``, all different."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture_at(root / name / f"{i}.png", 1000 * number + i)
    return root


def encoded(image: Image.Image, kind: str, **how) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def shown(findings, encoding: str = "utf-8") -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    Console(file=out, width=160).print(findings.render())
    out.flush()
    return out.buffer.getvalue().decode(encoding)


# ------------------------------------------------------------------------------------------- 15: splits are no classes


def test_15_split_folders_as_classes(tmp_path):
    sets = open_data(
        fill(
            tmp_path / "sets", {"training_set/cats": 8, "training_set/dogs": 8, "test_set/cats": 4, "test_set/dogs": 4}
        )
    )
    assert sets.train.classes == ("cats", "dogs")
    assert sets.test is not None
    assert (len(sets.train), len(sets.test)) == (16, 8)

    kaggle = fill(tmp_path / "kaggle", {"train_images": 20, "test_images": 8})
    (kaggle / "train.csv").write_text("image_id,label\n")
    (kaggle / "sample_submission.csv").write_text("image_id,label\n")
    opened = open_data(kaggle)
    assert (len(opened.train), opened.train.classes) == (20, ())
    assert any("train.csv" in note and "labels" in note for note in opened.notes)

    coco = open_data(fill(tmp_path / "coco", {"train2017": 12, "val2017": 6}))
    assert coco.test is not None
    assert (len(coco.train), len(coco.test), coco.train.classes) == (12, 6, ())


def test_15_several_folders_of_one_split_are_read_together(tmp_path):
    opened = open_data(
        fill(tmp_path, {"train2014/a": 2, "train2017/a": 3, "train2017/b": 2, "val2014/a": 1, "val2014/b": 1})
    )
    assert (len(opened.train), opened.train.classes) == (7, ("a", "b"))
    assert any("train2014, train2017" in note and "together" in note for note in opened.notes)


def test_15_what_lies_beside_the_splits_is_told(tmp_path):
    fill(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1, "samples": 3})
    picture_at(tmp_path / "overview.png")
    opened = open_data(tmp_path)
    assert any("not read" in note and "samples" in note and "1 images" in note for note in opened.notes)
    assert opened.train.classes == ("a", "b")


@pytest.mark.parametrize("names", [("test_images", "val_images"), ("valid", "test")])
def test_15_other_sets_without_a_training_set_are_no_classes(tmp_path, names):
    fill(tmp_path, dict.fromkeys(names, 3))
    with pytest.raises(SensoriumError, match="no training set"):
        open_data(tmp_path)


@pytest.mark.parametrize("names", [("train", "bus", "car"), ("test tube", "flask"), ("training shoes", "test tube")])
def test_15_classes_with_such_words_stay_classes(tmp_path, names):
    assert set(open_data(fill(tmp_path, dict.fromkeys(names, 2))).train.classes) == set(names)


def test_15_a_folder_called_images_is_no_class(tmp_path):
    opened = open_data(fill(tmp_path, {"images": 5, "annotations": 0}))
    assert (len(opened.train), opened.train.classes) == (5, ())
    opened = open_data(fill(tmp_path / "split", {"train/images": 5, "test/images": 2}))
    assert opened.train.classes == ()
    assert open_data(fill(tmp_path / "cats", {"cat": 5})).train.classes == ("cat",)


def test_15_a_table_that_is_not_of_pictures_does_not_hide_them(tmp_path):
    fill(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "prices.csv").write_text("id,price\n1,2\n")
    opened = open_data(tmp_path)
    assert opened.train.classes == ("a", "b")
    assert any("prices.csv" in note for note in opened.notes)


def test_15_files_of_arrays_that_are_not_read_are_told(tmp_path):
    for name in ("train_1", "train_2", "test"):
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((4, 3, 3), np.uint8), labels=np.arange(4) % 2)
    opened = open_data(tmp_path)
    assert any("train_2.npz" in note and "not read" in note for note in opened.notes)


# ---------------------------------------------------------------------------------- 16, 18: what lies there and isn't read


def test_16_empty_class_folder(tmp_path):
    fill(
        tmp_path, {"train/apple": 6, "train/pear": 6, "val/apple": 3, "val/pear": 3, "train/quince": 0, "val/quince": 0}
    )
    notes = open_data(tmp_path).notes
    assert "1 class folder of train is empty: quince." in notes
    assert "1 class folder of val is empty: quince." in notes


def test_16_a_class_that_only_the_test_set_has(tmp_path):
    opened = open_data(fill(tmp_path, {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2, "test/quince": 3}))
    assert opened.test is not None
    assert len(opened.test) == 4
    assert opened.test.classes == ("a", "b")
    assert any("3 test images are left aside" in note and "quince" in note for note in opened.notes)


@pytest.mark.parametrize("names", [("Cat", "cat", "dog"), ("cat", "cat ", "dog")])
def test_16_names_that_differ_in_case_or_spaces(tmp_path, names):
    opened = open_data(fill(tmp_path, dict.fromkeys(names, 2)))
    assert any("differ only in case or spaces" in note and f"'{names[0]}'" in note for note in opened.notes)
    assert not any("differ only" in note for note in open_data(fill(tmp_path / "x", {"a": 2, "b": 2})).notes)


@pytest.mark.parametrize("suffix", ["HEIC", "nef", "dcm", "svg", "psd", "CR2", "exr", "jxl"])
def test_18_unread_formats_unnamed(tmp_path, suffix):
    for i in range(10):
        (tmp_path / f"IMG_{i}.{suffix}").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(SensoriumError, match=rf"10 \.{suffix.lower()} files are not read: convert to JPEG"):
        open_data(tmp_path)
    picture_at(tmp_path / "a.png")
    assert any(f"10 .{suffix.lower()} files are not read" in note for note in open_data(tmp_path).notes)


def test_18_videos_and_other_files_are_counted(tmp_path):
    picture_at(tmp_path / "a.png")
    for name in ("b.mp4", "c.txt", "d"):
        (tmp_path / name).write_bytes(b"x")
    notes = " ".join(open_data(tmp_path).notes)
    assert "1 .mp4 file is not read: extract frames" in notes
    assert "2 files without an image extension ignored" in notes


def test_18_broken_links_zero_bytes_and_pipes_are_counted(tmp_path):
    picture_at(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "d.jpg")
    opened = open_data(tmp_path)
    assert sorted(skip.reason for skip in opened.skipped) == ["broken link", "not a regular file", "zero bytes"]
    told = " ".join(opened.notes)
    assert "1 skipped: zero bytes" in told
    assert "b.png" in told
    for read in (rgb, header):
        with pytest.raises(BadImage, match="not a regular file"):
            read(tmp_path / "d.jpg", "d.jpg")
    (tmp_path / "a.png").unlink()
    with pytest.raises(SensoriumError, match="3 files could not be read"):
        open_data(tmp_path)


# ------------------------------------------------------------------------------------------------- 17: more than 8 bits


def cells(kind: str, i: int) -> np.ndarray:
    """A picture of 12 bits in 16."""
    y, x = np.mgrid[:40, :48]
    return (700 + 500 * np.sin(x / (3 + i)) + 400 * (kind == "cell") * np.cos(y / 4)).clip(0, 4095).astype(np.uint16)


def test_17_sixteen_bit_dark(tmp_path):
    for kind in ("cell", "empty"):
        (tmp_path / kind).mkdir()
        for i in range(6):
            Image.fromarray(cells(kind, i)).save(tmp_path / kind / f"{i}.png")
    opened = open_data(tmp_path)
    pixels = np.stack([np.asarray(opened.train[i]["image"]) for i in range(len(opened.train))])
    assert pixels.max() >= 95
    assert len(np.unique(pixels)) > 60
    assert any("12 bits" in note and "4,095 is white" in note for note in opened.notes)


WIDE = {
    "png": lambda a: encoded(Image.fromarray(a), "PNG"),
    "tif": lambda a: encoded(Image.fromarray(a), "TIFF"),
    "lzw.tif": lambda a: encoded(Image.fromarray(a), "TIFF", compression="tiff_lzw"),
    "float.tif": lambda a: encoded(Image.fromarray(a.astype(np.float32)), "TIFF"),
    "rgb.png": lambda a: png16(np.repeat(a[..., None], 3, 2)),
    "rgba.png": lambda a: png16(np.stack([a, a, a, np.full_like(a, 65535)], 2)),
    "pgm": lambda a: b"P5\n%d %d\n4095\n" % a.shape[::-1] + a.astype(">u2").tobytes(),
    "ppm": lambda a: b"P6\n%d %d\n4095\n" % a.shape[::-1] + np.repeat(a[..., None], 3, 2).astype(">u2").tobytes(),
    "65535.pgm": lambda a: b"P5\n%d %d\n65535\n" % a.shape[::-1] + a.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("kind", WIDE)
def test_17_every_kind_of_file_keeps_its_bits(tmp_path, kind):
    values = cells("cell", 1)
    (tmp_path / f"a.{kind}").write_bytes(WIDE[kind](values))
    found = np.asarray(picture(open_data(tmp_path).train, 0))
    want = np.round(values * (255 / 4095))
    assert np.abs(found.astype(float) - want[..., None]).max() <= 1


def test_17_a_set_is_scaled_alike_whatever_its_pictures(tmp_path):
    """A dark picture of a set stays dark, and its test set is scaled as it is."""
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for i, top in enumerate((100, 4000)):
            Image.fromarray(np.full((4, 5), top, np.uint16)).save(tmp_path / split / f"{i}.png")
    opened = open_data(tmp_path)
    for images in (opened.train, opened.test):
        assert images is not None
        assert [int(images[i]["image"].max()) for i in (0, 1)] == [6, 249]
    assert int(cache(opened.train, 4, tmp_path / "c").images[0].max()) == 6
    dark = diagnose(opened).dark
    assert dark["count"] == 2
    assert any("nearly black when read" in line for line in diagnose(opened).advice)


def test_17_whole_ranges_and_eight_bits_are_left_alone(tmp_path):
    Image.fromarray(np.array([[0, 40000, 65535]], np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 7, 30]], np.uint8)).save(tmp_path / "b.png")
    opened = open_data(tmp_path)
    assert [int(opened.train[i]["image"].max()) for i in (0, 1)] == [255, 30]
    assert not any("bits" in note for note in opened.notes)


def test_17_floats_of_a_set_share_a_range(tmp_path):
    for i, top in enumerate((0.25, 1.0)):
        Image.fromarray(np.full((3, 3), top, np.float32)).save(tmp_path / f"{i}.tif")
    assert [int(s["image"].max()) for s in open_data(tmp_path).train] == [64, 255]
    Image.fromarray(np.array([[-5.0, np.nan, 9.0]], np.float32)).save(tmp_path / "2.tif")
    opened = open_data(tmp_path)
    assert any("own range" in note for note in opened.notes)
    assert opened.train[2]["image"][0].tolist() == [[0, 91, 255]]


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
    assert time.monotonic() - started < 2
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
    assert time.monotonic() - started < 2
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
    assert time.monotonic() - started < 2


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
        with decode._room(need):
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


# ------------------------------------------------------------------------------------------- 63: parts of dead processes


def test_63_cache_parts_left(tmp_path):
    """A process that is killed while it writes leaves a part; the next removes it, but not that of one that lives."""
    code = (
        "import sys, time; from pathlib import Path; from sensorium.base.partial import writing\n"
        "with writing(Path(sys.argv[1])) as file:\n    file.write(bytes(1000)); file.flush(); print('in', flush=True); time.sleep(60)"
    )
    begun = []
    for name in ("one", "two"):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        begun.append(child)
    begun[0].send_signal(signal.SIGKILL)
    begun[0].wait()
    assert len(list(tmp_path.glob("*.part-*"))) == 2
    (tmp_path / "pixels-8-abc.u8.part-12345").write_bytes(b"of a former version")
    cache(open_data("scenes:5").train, 8, tmp_path)
    left = [path.name for path in tmp_path.glob("*.part-*")]
    assert [name.partition(".")[0] for name in left] == ["two"]
    begun[1].kill()
    begun[1].wait()
    cache(open_data("scenes:5").train, 8, tmp_path)  # made before: found, and swept all the same
    assert not list(tmp_path.glob("*.part-*"))


def test_63_what_fails_leaves_the_former_file_and_no_part(tmp_path):
    (tmp_path / "a").write_bytes(b"former")

    def fail():
        with partial.writing(tmp_path / "a") as file:
            file.write(b"new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"former")]
    with partial.writing(tmp_path / "a") as one, partial.writing(tmp_path / "a") as two:  # two at once
        one.write(b"1")
        two.write(b"2")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"1")]


# --------------------------------------------------------------------------------- 45: whatever lies there, and how to use it


def yolo(root: Path) -> Path:
    for split in ("train", "valid"):
        for i in range(8):
            picture_at(root / split / "images" / f"{i}.png", i + 100 * (split == "valid"))
            (root / split / "labels").mkdir(exist_ok=True)
            (root / split / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n" + "0 9 9 0.1 0.1\n" * (i == 0))
    (root / "data.yaml").write_text("names: [cat]\n")
    return root


def coco(root: Path) -> Path:
    for split in ("train", "val"):
        images = [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 12} for i in range(6)]
        boxes = [{"id": i, "image_id": i, "category_id": 7, "bbox": [1, 1, 5, 5]} for i in range(5)]
        for i in range(6):
            picture_at(root / f"{split}2017" / f"{i}.png", i + 50 * (split == "val"))
        (root / "annotations").mkdir(exist_ok=True)
        listed = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "[red]cat"}]}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(listed))
    return root


def captions(root: Path) -> Path:
    fill(root, {"images": 12})
    rows = [f"images/{i}.png,a picture of {i}" for i in range(12)]
    (root / "captions.csv").write_text("\n".join(["file,caption", *rows, "images/gone.png,nothing"]))
    return root


def recordings(root: Path) -> Path:
    root.mkdir()
    values, labels = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32), np.arange(60) // 10 % 2
    classes = np.array(["still", "[bold]walk"])
    np.savez(root / "a.npz", signal=values, label=labels, offsets=np.array([0, 20, 40, 60]), class_names=classes)
    return root / "a.npz"


def words(root: Path) -> Path:
    root.mkdir()
    (root / "book.txt").write_text("words " * 1000)
    return root / "book.txt"


@pytest.mark.parametrize(
    ("make", "kind", "lines"),
    [
        (yolo, "boxes", ("YOLO", "8 train, 8 test", "cat", "outside the image")),
        (coco, "boxes", ("COCO", "5 train, 5 test", "[red]cat")),
        (captions, "pairs", ("different captions", "no such file")),
        (recordings, "streams", ("recordings", "[bold]walk", "steps")),
        (words, "text", ("bytes", "documents", "held out")),
        (lambda root: fill(root, {"a": 4, "b": 4}), "images", ("2 classes",)),
    ],
)
def test_45_data_knows_only_pictures(tmp_path, make, kind, lines):
    from sensorium.catalogue import find

    path = make(tmp_path / "my set")
    found = look(path)
    assert found.kind == kind
    for encoding in ("utf-8", "cp1252", "ascii"):
        told = shown(found, encoding)
        for line in lines:
            assert line in told
    assert found.commands
    for command in found.commands:
        assert f"--data '{path}'" in command
        assert find(command.split()[2]).data == kind
    stored = json.loads(json.dumps(found.as_dict()))
    assert stored["kind"] == kind
    assert stored["counts"]["train"] > 0


def test_45_without_labels_nothing_that_needs_them_is_named(tmp_path):
    from sensorium.catalogue import systems

    told = " ".join(look(fill(tmp_path, {"": 4})).commands).replace(",", " ").split()
    assert told
    assert not {system.name for system in systems() if system.labels and system.data == "images"} & set(told)


def test_45_what_is_skipped_is_counted_by_reason(tmp_path):
    assert look(yolo(tmp_path / "yolo")).skipped["box outside the image"] == 2
    assert look(captions(tmp_path / "captions")).skipped == {"no such file": 1}


def test_45_the_pictures_of_other_data_are_diagnosed_too(tmp_path):
    root = yolo(tmp_path / "yolo")
    (root / "valid" / "images" / "3.png").write_bytes((root / "train" / "images" / "5.png").read_bytes())
    found = look(root)
    assert found.overlap["exact"] == 1
    assert any("also in the training set" in line for line in found.advice)
    assert not any("labels" in line for line in found.advice)


def test_45_damaged_annotations_are_told(tmp_path):
    root = coco(tmp_path / "coco")
    (root / "annotations" / "instances_train2017.json").write_text('{"images": [')
    (root / "annotations" / "instances_val2017.json").unlink()
    found = look(root)
    assert found.kind == "images"
    assert any("Not read as boxes" in note and "JSON" in note for note in found.notes)


def test_45_labels_in_a_table_with_captions_are_classes_first(tmp_path):
    fill(tmp_path, {"images": 12})
    rows = [f"images/{i}.png,{'ab'[i % 2]},a picture of {i}" for i in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,caption", *rows]))
    found = look(tmp_path)
    assert found.kind == "images"
    assert [one["name"] for one in found.classes] == ["a", "b"]
    assert list(found.also) == ["captions"]


def test_45_nothing_that_can_be_read_is_one_line(tmp_path):
    with pytest.raises(SensoriumError, match="no such file or folder"):
        look(tmp_path / "nowhere")
    (tmp_path / "x.HEIC").write_bytes(b"x" * 99)
    with pytest.raises(SensoriumError, match=r"1 \.heic file is not read"):
        look(tmp_path)
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(SensoriumError, match="64 bytes"):
        look(tmp_path / "a.txt")


# -------------------------------------------------------------------------------------- 38, 39: names and terminals


def test_38_names_are_shown_as_they_are(tmp_path):
    found = look(fill(tmp_path, {"[bold]x": 10, "[red]dog": 10, "plain": 10}))
    told = shown(found)
    assert "[bold]x" in told
    assert "[red]dog" in told


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_39_bars_are_of_characters_that_the_terminal_has(tmp_path, encoding):
    told = shown(look(fill(tmp_path, {"cat": 12, "dog": 6})), encoding)
    assert "#" * 20 in told
