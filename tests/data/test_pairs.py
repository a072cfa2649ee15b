"""Pairs of pictures and captions: every layout gives the same, what is broken is skipped by name, nothing leaks."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sensorium.data.images.cache import cache
from sensorium.data.images.sets import ImageSet
from sensorium.data.pairs.open import Pairs, open_pairs
from sensorium.errors import SensoriumError

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[3] / "shared" / "data"))
EMOJI = DATA / "emoji"
needs_emoji = pytest.mark.skipif(not EMOJI.is_dir(), reason=f"emoji pictures are not at {EMOJI}; set SENSORIUM_DATA")

N = 20
CAPTIONS = [f"picture number {i}, ünter \u201cquotes\u201d" for i in range(N)]


def png(number: int, side: int = 6) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 1, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def layouts(folder: Path) -> dict[str, Path]:
    """The same pairs in every layout."""
    files = folder / "files"
    files.mkdir()
    for i in range(N):
        (files / f"{i:02d}.png").write_bytes(png(i))
    rows = [{"file": f"{i:02d}.png", "caption": text} for i, text in enumerate(CAPTIONS)]
    made = {"jsonl": files / "a.jsonl", "csv": files / "a.csv", "tsv": files / "a.tsv"}
    made["jsonl"].write_text("\n".join(json.dumps(row) for row in rows))
    made["csv"].write_text("Caption,FILE\n" + "\n".join(f'"{r["caption"]}",{r["file"]}' for r in rows))
    made["tsv"].write_text("file_name\ttext\n" + "\n".join(f"{r['file']}\t{r['caption']}" for r in rows))
    texts = tar(folder / "a.tar", {k: v for i in range(N) for k, v in {
        f"{i:02d}.png": png(i), f"{i:02d}.txt": CAPTIONS[i].encode(), f"{i:02d}.json": b'{"caption": "no"}'
    }.items()})  # fmt: skip
    objects = tar(folder / "b.tar", {k: v for i in range(N) for k, v in {
        f"x/{i:02d}.json": json.dumps({"caption": CAPTIONS[i]}).encode(), f"x/{i:02d}.png": png(i)
    }.items()})  # fmt: skip
    paths, cells = files / "paths.parquet", folder / "cells.parquet"
    pq.write_table(pa.table({"image": [r["file"] for r in rows], "text": CAPTIONS}), paths)
    images = [{"bytes": png(i), "path": None} for i in range(N)]
    pq.write_table(pa.table({"image": images, "caption": CAPTIONS}), cells, row_group_size=7)
    return made | {"tar": texts, "tar of json": objects, "paths": paths, "cells": cells}


def test_every_layout_gives_the_same_pairs(tmp_path):
    for name, path in layouts(tmp_path).items():
        found = open_pairs(path)
        assert not found.skipped, name
        assert len(found.train) == 18
        assert len(found.test) == 2
        assert "2 of 20 pairs are held out" in found.notes[0]
        seen = {}
        for pairs in (found.train, found.test):
            for sample in (pairs[i] for i in range(len(pairs))):
                assert set(sample) == {"image", "text"}
                seen[sample["text"]] = sample["image"]
        assert sorted(seen) == sorted(CAPTIONS), name
        for i, text in enumerate(CAPTIONS):
            wanted = np.asarray(Image.open(io.BytesIO(png(i)))).transpose(2, 0, 1)
            assert seen[text].dtype == torch.uint8
            assert np.array_equal(seen[text].numpy(), wanted), name


def test_pairs_are_images_for_the_cache(tmp_path):
    found = open_pairs(layouts(tmp_path)["tar"])
    assert isinstance(found.train, ImageSet)
    pixels = cache(found.train, 4, tmp_path / "cache")
    assert pixels.images.shape == (18, 3, 4, 4)
    assert tuple(pixels.names) == tuple(found.train.names)
    other = cache(found.test, 4, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 2
    assert not np.array_equal(other.images[0], pixels.images[0])


def test_splits_by_file_name_and_by_folder(tmp_path):
    flat, nested = tmp_path / "flat", tmp_path / "nested"
    for folder in (flat, nested / "train", nested / "val", nested / "test"):
        folder.mkdir(parents=True)
    sizes = {"train": 3, "val": 2, "test": 1}
    for split, size in sizes.items():
        members = {
            f"{i}.{kind}": data for i in range(size) for kind, data in (("png", png(i)), ("txt", split.encode()))
        }
        tar(flat / f"{split}-0000.tar", members)
        tar(nested / split / "shard.tar", members)
    for folder in (flat, nested):
        found = open_pairs(folder)
        assert {s: len(getattr(found, s)) for s in sizes} == sizes
        assert found.notes == ()
        assert found.val[0]["text"] == "val"
    (flat / "test-0000.tar").unlink()
    found = open_pairs(flat)
    assert (len(found.train), len(found.test), found.val) == (3, 2, None)
    assert "validation set" in found.notes[0]
    assert len(open_pairs(flat, test=nested / "test").test) == 1
    assert len(open_pairs(flat, limit=2).train) == 2
    with pytest.raises(SensoriumError, match="limit"):
        open_pairs(flat, limit=0)


def test_a_split_column_and_several_captions(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    rows = [
        {"file": "0.png", "caption": ["one", " two "], "split": "train"},
        {"file": "1.png", "caption": "three", "split": "test"},
        {"file": "2.png", "caption": [], "split": "train"},
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = open_pairs(tmp_path)
    assert list(found.train.texts) == ["one", "two"]
    assert list(found.train.names) == ["0.png"] * 2
    assert list(found.test.texts) == ["three"]
    assert [(s.file, s.reason) for s in found.skipped] == [("2.png", "no caption")]


def test_what_is_broken_in_a_tar_is_skipped_by_name(tmp_path):
    good = {f"{i}.{kind}": data for i in range(5) for kind, data in (("png", png(i)), ("txt", f"t{i}".encode()))}
    bad = {
        "../out.png": png(6), "../out.txt": b"climbs",
        "/etc/root.png": png(6), "/etc/root.txt": b"absolute",
        "a/../../b.png": png(6), "a/../../b.txt": b"climbs",
        "mute.png": png(7),
        "blank.png": png(7), "blank.txt": b" \n ",
        "latin.png": png(8), "latin.txt": "caf\u00e9".encode("latin-1"),
        "latin2.png": png(8), "latin2.json": b'{"caption": "caf\xe9"}',
        "json.png": png(8), "json.json": b"{",
        "long.png": png(9), "long.txt": b"x" * ((1 << 20) + 1),
        "empty.png": b"", "empty.txt": b"zero bytes",
        "alone.txt": b"no picture",
        "broken.png": png(10)[:40], "broken.txt": b"half a picture",
        "not.png": b"no picture at all", "not.txt": b"text in disguise",
    }  # fmt: skip
    path = tar(tmp_path / "train.tar", good | bad)
    other = tar(tmp_path / "test.tar", good)
    whole = other.read_bytes()
    other.write_bytes(whole[: 6 * 1024 + 532])  # within the fourth picture
    found = open_pairs(tmp_path)
    reasons = {s.file.removeprefix(f"{path.name}/"): s.reason for s in found.skipped}
    climbing = "its path leads outside the archive"
    wanted = {
        "../out.png": climbing, "/etc/root.png": climbing, "a/../../b.png": climbing,
        "mute.png": "no caption", "blank.png": "no caption", "json.png": "no caption",
        "latin.png": "caption is not UTF-8", "latin2.png": "caption is not UTF-8",
        "long.png": "caption of more than 1 MiB", "empty.png": "zero bytes", "alone": "a caption without a picture",
    }  # fmt: skip
    assert {name: reasons[name] for name in wanted} == wanted
    (damage,) = [reason for file, reason in reasons.items() if file.endswith("test.tar")]
    assert damage.startswith("damaged after")
    assert len(found.skipped) == len(wanted) + 1
    assert f"3 skipped: {climbing} (the first: train.tar/../out.png)." in found.notes
    assert 0 < len(found.test) < 5
    assert len(found.train) == 7
    skipped = []
    assert [sample["text"] for sample in found.train.readable(skipped)] == [f"t{i}" for i in range(5)]
    assert [s.file for s in skipped] == ["train.tar/broken.png", "train.tar/not.png"]
    assert all(s.reason for s in skipped)
    pixels = cache(found.train, 4, tmp_path / "cache")
    kept = found.train.without(pixels.skipped)
    assert (len(pixels), list(kept.names)) == (5, list(pixels.names))
    assert kept.texts == [f"t{i}" for i in range(5)]


def test_what_is_broken_in_a_table_is_skipped_by_name(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    lines = [
        b"file,caption",
        b"0.png,zero",
        b"1.png,caf\xe9",
        b"2.png",
        b",no file",
        b"gone.png,gone",
        b"2.png,two, comma",
    ]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines))
    found = open_pairs(tmp_path / "a.csv")
    assert sorted([*found.train.texts, *found.test.texts]) == ["two, comma", "zero"]
    assert [(s.file, s.reason) for s in found.skipped] == [
        ("1.png", "caption is not UTF-8"),
        ("2.png", "no caption"),
        ("a.csv line 5", "no file in this row"),
        ("gone.png", "no such file"),
    ]
    rows = [
        b'{"file": "0.png", "caption": "zero"}',
        b"{",
        b"3",
        b'{"file": "0.png", "caption": "\xe9"}',
        b'{"file": 3}',
        b"",
    ]
    (tmp_path / "b.jsonl").write_bytes(
        b"\n".join([*rows, b'{"file": "a\\u0000", "caption": "x"}', b'{"file": "%s", "caption": "x"}' % (b"a" * 5000)])
    )
    found = open_pairs(tmp_path / "b.jsonl")
    assert list(found.train.texts) == ["zero"]
    assert found.test is None
    assert any("share images or captions" in note for note in found.notes)
    assert [s.reason for s in found.skipped] == [
        "not a JSON object", "not a JSON object", "caption is not UTF-8", "no file in this row", "not a path",
        "not a path",
    ]  # fmt: skip


def test_what_is_broken_in_parquet_is_skipped_by_name(tmp_path):
    values = pa.array([b"fine", b"caf\xe9", None, b"", b"well"], pa.binary())
    texts = pa.Array.from_buffers(
        pa.string(), 5, values.buffers(), values.null_count
    )  # as a careless writer makes them
    images = [{"bytes": png(i), "path": None} for i in range(5)]
    images[4] = {"bytes": None, "path": None}
    pq.write_table(pa.table({"image": images, "text": texts}), tmp_path / "a.parquet")
    found = open_pairs(tmp_path)
    assert [(s.file, s.reason) for s in found.skipped] == [
        ("a.parquet[0:1]", "caption is not UTF-8"),
        ("a.parquet[0:2]", "no caption"),
        ("a.parquet[0:3]", "no caption"),
    ]
    both = [found.train, found.test]
    skipped = []
    assert [s["text"] for pairs in both for s in pairs.readable(skipped)] == ["fine"]
    assert [(s.file, s.reason) for s in skipped] == [("a.parquet[0:4]", "empty cell")]
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SensoriumError, match="not readable as Parquet"):
        open_pairs(tmp_path)
    pq.write_table(pa.table({"image": ["a"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SensoriumError, match="no column of captions; it has image, label"):
        open_pairs(tmp_path)


def test_what_holds_no_pairs_is_said(tmp_path):
    with pytest.raises(SensoriumError, match="nothing at"):
        open_pairs(tmp_path / "none")
    with pytest.raises(SensoriumError, match=r"no pictures with captions\. Looked for tars"):
        open_pairs(tmp_path)
    (tmp_path / "a.csv").write_text("file,label\n0.png,1")
    with pytest.raises(SensoriumError, match=r"a\.csv: no column of captions; .* it has file, label"):
        open_pairs(tmp_path)
    (tmp_path / "a.csv").write_text("file,caption\n0.png,zero")
    with pytest.raises(SensoriumError, match=r"0\.png: no such file"):
        open_pairs(tmp_path)


class Nowhere:
    def read(self, index):
        raise OSError("gone")

    def sign(self, digest, indices):
        pass


def test_pairs_that_share_a_picture_or_a_caption_belong_together_and_are_never_parted(tmp_path):
    names = ["a", "b", "c", "b", "d", "e", "f", "a"]
    texts = ["x", "y", "x", "z", "w", "z", "v", "u"]
    pairs = Pairs(Nowhere(), names, texts)
    assert pairs.groups().tolist() == [0, 1, 0, 1, 2, 1, 3, 0]
    assert pairs.subset(np.array([7, 4])).groups().tolist() == [0, 1]
    assert pairs.subset(np.array([7, 4])).texts == ["u", "w"]
    for i in range(30):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "a.csv").write_text("file,caption\n" + "\n".join(f"{i}.png,caption {i // 3}" for i in range(30)))
    found = open_pairs(tmp_path)
    assert len(found.test) == 3
    assert len(set(found.test.texts)) == 1
    assert not set(found.test.texts) & set(found.train.texts)
    assert open_pairs(tmp_path).test.texts == found.test.texts


@needs_emoji
def test_emoji():
    found = open_pairs(EMOJI)
    assert (len(found.train), len(found.test)) == (2844, 368)
    assert not found.skipped
    assert not set(found.train.texts) & set(found.test.texts)
    groups = found.test.groups()
    assert len(groups) == 368
    assert groups.max() + 1 == len(set(found.test.texts)) < 368  # two styles of one emoji share its name
    sample = found.test[5]
    assert sample["image"].shape[0] == 3
    assert sample["text"] == found.test.texts[5]
    one = open_pairs(EMOJI / "val-00000.tar", limit=10)
    assert len(one.train) == 10
    assert len(list(one.train.readable([]))) == 10
