"""WebDataset shards that others wrote: dots, litter, labels of any kind."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensorium.data.images.open import open_data
from sensorium.data.pairs.open import open_pairs
from sensorium.errors import SensoriumError

sys.path.insert(0, str(Path(__file__).parent))
from pairs_cases import labels, png, said, tar, texts

# 22: dots in the names of shards


def test_22_webdataset_dots(tmp_path):
    dogs = tar(tmp_path / "dogs.tar", *((f"{c}.{i}.png", png(i)) for c in ("cat", "dog") for i in range(6)))
    opened = open_data(dogs)
    assert len(opened.train) == 12
    assert "dogs.tar: keys end at the last dot; at the first, 12 of 12 pictures share a key" in said(opened)
    members = [m for i in range(10) for m in ((f"22.{i:02}.png", png(i)), (f"22.{i:02}.cls", b"%d" % (i % 2)))]
    found = labels(open_data(tar(tmp_path / "dec.tar", *members)))
    assert found == {f"dec.tar/22.{i:02}.png": str(i % 2) for i in range(10)}
    members = [m for i in range(10) for m in ((f"v1.{i}.png", png(i)), (f"v1.{i}.txt", b"words %d" % i))]
    assert texts(open_pairs(tar(tmp_path / "caps.tar", *members))) == [f"words {i}" for i in range(10)]


def test_samples_of_several_pictures_keep_their_label_and_are_told(tmp_path):
    members = [
        (f"{i}.{kind}", data)
        for i in range(6)
        for kind, data in (("left.png", png(i)), ("right.png", png(9)), ("cls", b"%d" % (i % 2)))
    ]
    opened = open_data(tar(tmp_path / "stereo.tar", *members))
    assert labels(opened) == {f"stereo.tar/{i}.left.png": str(i % 2) for i in range(6)}
    assert "12 of 12 pictures share a key with another" in said(opened)
    masked = [(f"{i}.{kind}", png(i)) for i in range(4) for kind in ("seg.png", "jpg")] + [
        (f"{i}.cls", b"1") for i in range(4)
    ]
    assert set(labels(open_data(tar(tmp_path / "masked.tar", *masked)))) == {f"masked.tar/{i}.jpg" for i in range(4)}


def test_members_that_overwrite_or_are_litter_or_links_are_told(tmp_path):
    path = tar(
        tmp_path / "a.tar", ("0.png", png(0)), ("0.png", png(1)), ("._0.png", b"x"), ("__MACOSX/1.png", b"x"),
        ("PaxHeaders.1/2.png", b"x"), ("2.png", png(2)), ("3.cls", b"1"),
    )  # fmt: skip
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("9.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        archive.addfile(link)
    opened = open_data(path)
    assert list(opened.train.names) == ["a.tar/0.png", "a.tar/2.png"]
    assert np.array_equal(
        opened.train[0]["image"].numpy(), np.asarray(Image.open(io.BytesIO(png(1)))).transpose(2, 0, 1)
    )
    for part in ("1 member has the name of another", "1 skipped: a link", "1 member belongs to no picture (1 .cls)"):
        assert part in said(opened)


def test_members_need_not_be_sorted(tmp_path):
    members = [*((f"{i}.png", png(i)) for i in range(4)), *((f"{i}.cls", b"%d" % (i % 2)) for i in range(4))]
    assert labels(open_data(tar(tmp_path / "a.tar", *members))) == {f"a.tar/{i}.png": str(i % 2) for i in range(4)}


@pytest.mark.parametrize(
    "data", [b"3", b"3\n", b"\xef\xbb\xbf3", "3".encode("utf-16"), "3\r\n".encode("utf-16"), b" 3 ", b"3.0"]
)
def test_labels_of_shards_are_text_of_any_kind(tmp_path, data):
    path = tar(tmp_path / "a.tar", ("0.png", png(0)), ("0.cls", data), ("1.png", png(1)), ("1.cls", b"3"))
    assert open_data(path).train.classes == ("3",)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("0.cls", b"x" * 1_100_000, "label of more than 1 MiB"),
        ("0.cls", b"x" * 1_000, "label of more than 256 characters"),
        ("0.cls", b"caf\xe9", "label is not UTF-8"),
        ("0.json", b"[" * 100_000, ".json cannot be read"),
        ("0.json", b'["cat"]', ".json is not an object"),
        ("0.json", b'{"label": ', ".json cannot be read"),
        ("0.cls", b"", "label is empty, NaN or null"),
    ],
)
def test_labels_of_shards_that_cannot_be_used_are_counted(tmp_path, name, data, reason):
    members = [m for i in range(1, 4) for m in ((f"{i}.png", png(i)), (f"{i}.cls", b"cat"))]
    opened = open_data(tar(tmp_path / "a.tar", ("0.png", png(0)), (name, data), *members))
    assert labels(opened)["a.tar/0.png"] is None
    assert f"1 image is unlabeled: {reason}." in opened.notes


def test_packed_shards_are_refused_with_the_way_out(tmp_path):
    plain = tar(tmp_path / "a.tar", ("0.png", png(0)), ("0.txt", b"words")).read_bytes()
    (tmp_path / "a.tar").write_bytes(gzip.compress(plain))
    for open_ in (open_data, open_pairs):
        with pytest.raises(SensoriumError, match=r"packed with gzip.*unpack it to a plain \.tar"):
            open_(tmp_path / "a.tar")
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.gz")
    with pytest.raises(SensoriumError, match=r"a\.tar\.gz must be unpacked first"):
        open_pairs(tmp_path)


def test_folders_of_splits_within_a_shard_are_splits(tmp_path):
    members = [
        (f"{split}/{i}.{kind}", data)
        for split, start in (("train", 0), ("test", 10))
        for i in range(start, start + 4)
        for kind, data in (("png", png(i)), ("cls", b"%d" % (i % 2)), ("txt", b"words %d" % i))
    ]
    path = tar(tmp_path / "all.tar", *members)
    assert sorted(open_data(path).test.names) == [f"all.tar/test/{i}.png" for i in range(10, 14)]
    assert sorted(open_pairs(path).test.texts) == [f"words {i}" for i in range(10, 14)]
    classes = [(f"{name}/{i}.png", png(i)) for name in ("cat", "dog") for i in range(3)]
    assert "(cat, dog) are not used as labels" in said(open_data(tar(tmp_path / "classes.tar", *classes)))
