"""Arrays, streams and videos as others leave them: damage is one line, what is skipped is counted, gaps are told."""

import gzip
import io
import json
import os
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from text_cases import refused, write

from sensorium.base.npy import mapped_file
from sensorium.data.images.arrays import read_idx, read_npz
from sensorium.data.streams import video
from sensorium.data.streams.clips import open_clips
from sensorium.data.streams.files import read_table, read_values
from sensorium.data.streams.open import open_streams

# 67


def header(text: bytes, version: bytes = b"\1\0") -> bytes:
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def archive(path: Path, members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


SHAPE = b"{'descr': '|u1', 'fortran_order': False, 'shape': (8, 6, 5, 3), }"
HEADERS = {
    "deep": SHAPE.replace(b"(8, 6, 5, 3)", b"(((8, 6,"),
    "very deep": SHAPE.replace(b"(8, 6, 5, 3)", b"(" * 5000),
    "lying": SHAPE.replace(b"(8, ", b"(800000000000, "),
    "negative": SHAPE.replace(b"(8, ", b"(-8, "),
    "huge": SHAPE.replace(b"(8, ", b"(" + b"9" * 400 + b", "),
    "zero": SHAPE.replace(b"(8, 6", b"(0, " + b"9" * 18),
    "dimensions": SHAPE.replace(b"(8, 6, 5, 3)", b"(" + b"1, " * 70 + b")"),
    "type": SHAPE.replace(b"|u1", b"<f4,(("), "long type": SHAPE.replace(b"|u1", b"<U999999999"),
    "object": SHAPE.replace(b"|u1", b"|O"), "no type": SHAPE.replace(b"|u1", b"<x9"),
    "records": SHAPE.replace(b"'|u1'", b"[('a', '|u1')]"), "code": SHAPE.replace(b"'|u1'", b"__import__('os')"),
    "order": SHAPE.replace(b"False", b"1"), "text": b"no header at all", "bytes": bytes(range(128, 256)),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_67_npy_headers(tmp_path, name):
    whole = header(HEADERS[name]) + bytes(720)
    refused(read_npz, archive(tmp_path / "a.npz", {"images": whole}), said=r"a\.npz: 'images'")
    refused(read_values, write(tmp_path / "a.npy", whole), said=r"a\.npy")
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = archive(tmp_path / "s.npz", {"signal": whole, "label": array(np.zeros(8, int))}, kind)
        refused(open_streams, path, said=r"s\.npz: 'signal'")


def test_67_damage_of_every_kind_is_one_line(tmp_path):
    pixels, labels = array(np.zeros((8, 6, 5, 3), np.uint8)), array(np.arange(8) % 2)
    words = bytearray(array(np.array(["ab", "cd"])))
    words[-1] = 0xFF
    good = {"images": pixels, "labels": labels}
    refused(
        read_npz, archive(tmp_path / "a.npz", good | {"class_names": bytes(words)}), said=r"'class_names': has text"
    )
    data = bytearray(archive(tmp_path / "b.npz", good).read_bytes())
    for at, value in ((8, 99), (10, 77)):  # flags of encryption; an unknown compression
        odd = bytearray(data)
        for mark, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
            place = -1
            while (place := odd.find(mark, place + 1)) >= 0:
                odd[place + at - 2 + shift] = value
        refused(read_npz, write(tmp_path / "b.npz", bytes(odd)), said=r"b\.npz")
    refused(read_npz, write(tmp_path / "c.npz", b"no zip"), said=r"c\.npz: not readable as \.npz")
    refused(read_npz, archive(tmp_path / "d.npz", {"images": b""}), said="'images': not readable as .npy")
    refused(read_npz, archive(tmp_path / "e.npz", {"images": pixels[:6] + b"\3\0" + pixels[8:]}), said=r"format 3\.0")
    refused(
        mapped_file,
        write(tmp_path / "f.npy", pixels[:-1]),
        said="the header gives 720 bytes of values, the file has 719",
    )


def test_67_nothing_larger_than_memory_or_disk_is_unpacked(tmp_path, monkeypatch):
    from sensorium.base import npy

    steps = 200_000
    members = {"signal": array(np.zeros((steps, 3), np.float32)), "label": array(np.zeros(steps, np.int8)),
               "offsets": array(np.array([0, 5, steps]))}  # fmt: skip
    path = archive(tmp_path / "a.npz", members)
    monkeypatch.setattr(npy.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    refused(open_streams, path, said="'signal': unpacks to .* free in")


def test_67_idx_files(tmp_path):
    whole = struct.pack(">BBBB3I", 0, 0, 8, 3, 9, 5, 4) + bytes(180)
    for content in (gzip.compress(whole)[:-9], gzip.compress(whole[:-1]), gzip.compress(whole + b"x"), whole[:7], b"",
                    struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 2**32 - 1, 2**32 - 1), b"\x1f\x8b\x08" + bytes(30)):  # fmt: skip
        path = write(tmp_path / "train-images-idx3-ubyte", content)
        refused(read_idx, {"train": path}, said="train-images-idx3-ubyte")
    write(path, whole)
    write(tmp_path / "other-train-images-idx3-ubyte", whole)
    assert any("1 further IDX files of images are not used" in note for note in read_idx({"train": path}).notes)


# streams


def recordings(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "signal": rng.normal(size=(60, 3)),
        "label": rng.integers(0, 2, 60),
        "class_names": np.array(["none", "walk"]),
    }


def test_streams_of_many_files_are_all_read_and_divided(tmp_path):
    for seed, name in enumerate(["train-0", "train-1", "test-0", "test-1", "validation"]):
        np.savez(tmp_path / f"{name}.npz", **recordings(seed))
    write(tmp_path / "._train-0.npz", b"litter")
    write(tmp_path / "train-2.npz", b"no zip")
    found = open_streams(tmp_path)
    assert [stream.name for stream in found.train] == ["train-0.npz[0]", "train-1.npz[0]"]
    assert [stream.name for stream in found.test] == ["test-0.npz[0]", "test-1.npz[0]"]
    assert [skip.file for skip in found.skipped] == ["train-2.npz"]
    assert any("1 skipped: cannot be read (the first: train-2.npz)" in note for note in found.notes)
    assert any("validation set of 1 recording is not used" in note for note in found.notes)
    for seed, name in enumerate(["Training_Set/a", "Test Set/a"]):
        (tmp_path / "b" / name).parent.mkdir(parents=True)
        np.savez(tmp_path / "b" / f"{name}.npz", **recordings(seed))
    assert np.array_equal(open_streams(tmp_path / "b").test[0].labels, recordings(1)["label"])
    np.savez(tmp_path / "b" / "Training_Set" / "b.npz", **(recordings(2) | {"class_names": np.array(["no", "yes"])}))
    refused(open_streams, tmp_path / "b", said=r"b\.npz: has other classes than a\.npz")


def test_streams_of_arrays_named_by_split(tmp_path):
    labels = {}
    for name in ("train", "test", "Val"):
        np.save(tmp_path / f"{name}.npy", np.ones((12, 2)))
        labels[name] = [0, 1] * 6
    write(tmp_path / "labels.json", json.dumps({"classes": ["none", "walk"], "labels": labels}))
    found = open_streams(tmp_path)
    assert ([s.name for s in found.train], [s.name for s in found.test]) == (["train.npy"], ["test.npy"])


@pytest.mark.parametrize(
    "told",
    [[], {}, {"classes": "ab"}, {"classes": []}, {"classes": ["a", "a"]}, {"classes": [1.5]}, {"classes": {"a": 1}},
     {"labels": []}, {"labels": None}, {"rate": "25"}, {"rate": True}, {"rate": -1}, {"rate": 1e300}, {"rate": [25]}],
)  # fmt: skip
def test_labels_json_is_typed(tmp_path, told):
    good = {"classes": ["a", "b"], "rate": 25, "labels": {"x": [0]}}
    path = write(tmp_path / "labels.json", json.dumps(good | told if told else told))
    refused(read_table, path, said=r"labels\.json: ")
    assert read_table(write(path, json.dumps(good)))[2] == 25.0
    refused(read_table, write(path, '{"a":' * 3000), said=r"labels\.json: not readable as JSON .*nested too deeply")


def test_labels_without_names_make_no_million_classes(tmp_path):
    np.savez(tmp_path / "a.npz", signal=np.ones((9, 2)), label=np.full(9, 10**15), offsets=[0, 4, 9])
    refused(open_streams, tmp_path / "a.npz", said="runs from 1000000000000000")


# 80

av = pytest.importorskip("av")


def movie(path: Path, stamps: list[int], codec: str = "mpeg4") -> Path:
    """A frame at each time in tenths of a second."""
    from fractions import Fraction

    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * i % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_80_video_gaps(tmp_path):
    notes: list[str] = []
    path = movie(tmp_path / "a.mkv", [i * 35_000 for i in range(20)])
    found = [frame.seconds for frame in video.video_frames(path, rate=30, notes=notes)]
    assert len(found) == 19 * 5 * 30 + 1
    assert notes == [
        f"{path}: 19 holes of more than 5 seconds between frames, each filled for 5; 66,405 seconds are left out."
    ]
    notes.clear()
    path = movie(tmp_path / "b.mkv", [0, 1, 2, 42, 43, 44])  # four seconds are filled
    assert len(list(video.video_frames(path, rate=10, notes=notes))) == 45
    assert not notes


def test_80_after_a_hole_time_goes_on_as_it_did(tmp_path):
    path = movie(tmp_path / "a.mkv", [0, 1, 101, 102, 103])
    assert [round(frame.seconds, 3) for frame in video.video_frames(path)] == [0.0, 0.1, 5.1, 5.2, 5.3]


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([3.0, 3.1, 3.2], [0, 0.1, 0.2]),
        ([-2.0, -1.9, -1.8], [0, 0.1, 0.2]),
        ([None, None, None], [0, 0.1, 0.2]),
        ([None, 700.0, 700.1], [0, 0.1, 0.2]),
        ([0, 0, 0], [0, 0.1, 0.2]),
        ([0, float("nan"), 0.2], [0, 0.1, 0.2]),
        ([0, float("inf"), 0.2], [0, 0.1, 0.2]),
        ([0, 0.1, 1e9, 0.3, 0.4], [0, 0.1, 5.1, 5.2, 5.3]),
        ([9e15, 0.1, 0.2], [0, 0.1, 0.2]),
        ([0, 2, 1, 3], [0, 2, 2.1, 3]),
    ],
)
def test_80_broken_timestamps(stamps, expected):
    clock = video._Clock(0.1)
    assert np.allclose([clock(stamp) for stamp in stamps], expected)


def test_80_sizes_are_checked_before_a_frame_is_allocated(tmp_path, monkeypatch):
    path = movie(tmp_path / "a.mkv", list(range(5)))
    monkeypatch.setattr(video, "MAX_PIXELS", 63 * 48)
    refused(list, video.video_frames(path), said=r"a\.mkv: frames of 64 x 48 pixels are too large")
    monkeypatch.undo()
    data = bytearray(movie(tmp_path / "b.mkv", list(range(5)), "mjpeg").read_bytes())
    at = -1
    while (at := data.find(b"\xff\xc0\x00\x11\x08", at + 1)) >= 0:  # a frame's own size: 30,000 x 30,000
        data[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
    refused(list, video.video_frames(write(tmp_path / "b.mkv", bytes(data))), said=r"b\.mkv: ")


def test_80_what_is_asked_for_is_bounded_and_lists_are_not_followed(tmp_path):
    path = movie(tmp_path / "a.mkv", list(range(5)))
    refused(list, video.video_frames(path, rate=1e9), said="at most 1000 are read")
    for content in (
        "#EXTM3U\n#EXTINF:10,\na.mkv\n",
        "ffconcat version 1.0\nfile a.mkv\n",
        "\ufeff<?xml version='1.0'?>",
    ):
        refused(list, video.video_frames(write(tmp_path / "b.mp4", content)), said="a list of other files")
    os.mkfifo(tmp_path / "pipe.mp4")
    refused(list, video.video_frames(tmp_path / "pipe.mp4"), said="not a regular file")


def test_clips_that_were_kept_and_damaged_are_drawn_again(tmp_path):
    first = open_clips(2, 2, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    again = open_clips(2, 2, tmp_path)
    assert np.array_equal(first.train[0].frames(0, 9), again.train[0].frames(0, 9))
