"""Folders of images as people have them, pictures of more than 8 bits, and caches of killed processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensorium.data.images.cache import cache
from sensorium.data.images.decode import BadImage, header, rgb
from sensorium.data.images.diagnose import diagnose
from sensorium.data.images.open import open_data
from sensorium.data.images.sets import picture
from sensorium.errors import SensoriumError

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_images import png16
from made import encoded, fill, picture_at

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
    assert any("not read" in note and "samples" in note and "1 image" in note for note in opened.notes)
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
    assert any(
        "differ only in case, spaces or Unicode form" in note and f"'{names[0]}'" in note for note in opened.notes
    )
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
    assert any("-5 is black and 9 is white" in note for note in opened.notes)
    assert opened.train[2]["image"][0].tolist() == [[0, 91, 255]]


# ------------------------------------------------------------------------------------------- 63: parts of dead processes


def test_63_cache_parts_left(tmp_path):
    """A process that is killed while it writes leaves a part; the next removes it, but not that of one that lives."""
    code = (
        "import sys, time; from pathlib import Path; from sensorium.base.files import write_bytes\n"
        "def slow(file):\n    file.write(bytes(1000)); file.flush(); print('in', flush=True); time.sleep(60)\n"
        "write_bytes(Path(sys.argv[1]), slow)"
    )
    begun = []
    for name in ("one", "two"):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        begun.append(child)
    begun[0].send_signal(signal.SIGKILL)
    begun[0].wait()
    assert len(list(tmp_path.glob(".*.partial"))) == 2
    cache(open_data("scenes:5").train, 8, tmp_path)
    left = [path.name for path in tmp_path.glob(".*.partial")]
    assert [name.split(".")[1] for name in left] == ["two"]
    begun[1].kill()
    begun[1].wait()
    cache(open_data("scenes:6").train, 8, tmp_path)
    assert not list(tmp_path.glob(".*.partial"))


def test_labels_of_minus_one_are_hidden_ones(tmp_path):
    """Test sets are published with -1 for every label; it was taken for the first class."""
    for i in range(6):
        picture_at(tmp_path / f"{i}.png", i)
    for name, labels in (("train", [0, 1, 0, 1, 0, 1]), ("test", [-1] * 6)):
        rows = [f"{i}.png,{label}" for i, label in enumerate(labels)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *rows]), "utf-8")
    with pytest.raises(SensoriumError, match="the test set has no labels"):
        open_data(tmp_path / "train.csv", test=tmp_path / "test.csv")
    (tmp_path / "test.csv").write_text("path,label\n0.png,-1\n1.png,1", "utf-8")
    with pytest.raises(SensoriumError, match="class '-1' is unknown"):
        open_data(tmp_path / "train.csv", test=tmp_path / "test.csv")


def test_an_archive_is_told_to_be_unpacked(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(SensoriumError, match="unpack it"):
        open_data(tmp_path / "a.zip")


def test_names_that_differ_in_unicode_form_are_told(tmp_path):
    for name in ("caf\u00e9", "cafe\u0301", "tea"):
        for i in range(3):
            picture_at(tmp_path / name / f"{i}.png", i)
    assert any("are they one class" in note for note in open_data(tmp_path).notes)
