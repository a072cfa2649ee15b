"""Captions, and text tables in general: what others wrote is understood, what is lost is told."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sensorium.base import memory, reading
from sensorium.base.reading import CSV, utf8
from sensorium.data.images.open import open_data
from sensorium.data.images.tables import read_csv
from sensorium.data.pairs.open import open_pairs
from sensorium.errors import SensoriumError

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_pairs import OPEN, SEEDS
from pairs_cases import pictures, said, texts

# 23: unquoted commas


def test_23_captions_cut_at_commas(tmp_path):
    pictures(tmp_path / "d", 12)
    rows = "\n".join(f"{i}.png,a dog runs, jumps and barks {i}" for i in range(12))
    (tmp_path / "d" / "captions.csv").write_text(f"image,caption\n{rows}")
    opened = open_pairs(tmp_path / "d")
    assert texts(opened) == sorted(f"a dog runs, jumps and barks {i}" for i in range(12))
    assert "captions.csv: 12 times a row with more fields than the header" in said(opened)
    pictures(tmp_path / "l", 12)
    rows = "\n".join(f"{i}.png,cat, {'black' if i % 2 else 'white'}" for i in range(12))
    (tmp_path / "l" / "t.csv").write_text(f"path,label\n{rows}")
    opened = open_data(tmp_path / "l" / "t.csv")
    assert opened.train.classes == ("cat, black", "cat, white")
    assert "12 times a row with more fields" in said(opened)


def test_a_comma_in_a_caption_that_is_not_the_last_column(tmp_path):
    pictures(tmp_path, 4)
    rows = ["0.png,one, two,train", "1.png,three,train,", "2.png,four,test", "3.png,five"]
    (tmp_path / "a.csv").write_text("\n".join(["image,caption,split", *rows]))
    opened = open_pairs(tmp_path / "a.csv")
    assert sorted(opened.train.texts) == ["five", "one, two", "three"]
    assert list(opened.test.texts) == ["four"]
    assert "1 time a row with fewer fields" in said(opened)


# 60: gzip bombs


def test_60_gz_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SMALL", 1 << 20)
    bomb = gzip.compress(b"file,caption\n" + b"a.png,aaaaaaaaaaaaaaaa\n" * 200_000)
    (tmp_path / "c.csv.gz").write_bytes(bomb)
    for open_ in (open_pairs, open_data):
        with pytest.raises(SensoriumError, match=r"c\.csv\.gz: unpacks to more than"):
            open_(tmp_path / "c.csv.gz")


def test_a_bomb_behind_harmless_bytes_is_refused_by_the_ratio_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SMALL", 1 << 20)
    noise = np.random.default_rng(0).bytes(200_000)
    whole = gzip.compress(b"\0" * 15_000_000) + gzip.compress(noise)
    (tmp_path / "a.gz").write_bytes(whole)
    with reading.stream(tmp_path / "a.gz") as file, pytest.raises(SensoriumError, match="unpacks to more than"):
        count = 0
        while block := file.read(1 << 16):
            count += len(block)
            assert count < 4 << 20


def test_rows_are_gathered_only_as_long_as_memory_is_free(tmp_path, monkeypatch):
    pictures(tmp_path, 1)
    (tmp_path / "a.csv").write_text("path,label\n" + "0.png,1\n" * 40_000)
    free = iter([8 << 30, *[1 << 30] * 100])
    monkeypatch.setattr(memory, "available_memory", lambda: next(free))
    with pytest.raises(SensoriumError, match=r"a\.csv: .* entries leave only 1\.0 GiB of free memory"):
        read_csv({"train": tmp_path / "a.csv"})


# captions as tutorials have them


def test_captions_of_flickr(tmp_path):
    pictures(tmp_path / "flickr30k_images", 3, ".jpg")
    rows = [f"{i}.jpg| {k}| Two men , one | or two , {i} {k} ." for i in range(3) for k in range(2)]
    (tmp_path / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *rows]))
    opened = open_pairs(tmp_path / "results.csv")
    assert len(texts(opened)) == 6
    assert texts(opened)[0] == "Two men , one | or two , 0 0 ."
    for name in ("Flickr8k.token.txt", "captions.txt"):
        folder = tmp_path / name.split(".")[0]
        pictures(folder / "Images", 3, ".jpg")
        (folder / name).write_text(
            "".join(f"{i}.jpg#{k}\tA child, a dog {i} {k} .\n" for i in range(3) for k in range(5))
        )
        opened = open_pairs(folder)
        assert len(texts(opened)) == 15
        assert "A child, a dog 0 4 ." in texts(opened)
        assert set(opened.train.names) <= {f"{i}.jpg" for i in range(3)}
        assert open_pairs(folder / name).layout == "captions file"


@pytest.mark.parametrize("place", ["annotations", "."])
def test_captions_of_coco(tmp_path, place):
    for split, count in (("train", 4), ("val", 2)):
        pictures(tmp_path / f"{split}2017", count)
        images = [{"id": i, "file_name": f"{i}.png"} for i in range(count)]
        notes = [{"image_id": i, "caption": f"{split} {i} {k}"} for i in range(count) for k in range(2)]
        notes += [{"image_id": 99, "caption": "of nothing"}, {"image_id": 0}]
        (tmp_path / place).mkdir(exist_ok=True)
        data = json.dumps({"images": images, "annotations": notes})
        (tmp_path / place / f"captions_{split}2017.json").write_text(data)
    opened = open_pairs(tmp_path)
    assert opened.layout == "captions JSON"
    assert sorted(opened.train.texts) == [f"train {i} {k}" for i in range(4) for k in range(2)]
    assert sorted(opened.test.texts) == [f"val {i} {k}" for i in range(2) for k in range(2)]
    assert {Path(path).parent.name for path in opened.test.source.paths} == {"val2017"}
    assert "2 skipped: caption of an unknown image_id" in said(opened)
    assert "2 skipped: annotation without a caption" in said(opened)


def test_captions_of_karpathy_and_lists_of_objects(tmp_path):
    pictures(tmp_path / "images", 4)
    images = [
        {
            "filename": f"{i}.png",
            "split": ("train", "restval", "val", "test")[i],
            "sentences": [{"raw": f"w{i}"}, {"raw": "x"}],
        }
        for i in range(4)
    ]
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    opened = open_pairs(tmp_path / "dataset_flickr8k.json")
    assert list(opened.train.texts) == ["w0", "x", "w1", "x"]
    assert list(opened.test.texts) == ["w3", "x"]
    (tmp_path / "list.json").write_text(json.dumps([{"image": f"{i}.png", "caption": f"w{i}"} for i in range(4)] + [3]))
    opened = open_pairs(tmp_path / "list.json")
    assert texts(opened) == ["w0", "w1", "w2", "w3"]
    assert "1 skipped: not a JSON object" in said(opened)


def test_several_columns_of_captions_and_those_not_used(tmp_path):
    pictures(tmp_path, 3)
    rows = "\n".join(f"{i}.png,a{i},b{i}" for i in range(3))
    (tmp_path / "a.csv").write_text(f"image,caption_0,caption_1\n{rows}")
    assert texts(open_pairs(tmp_path / "a.csv")) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    (tmp_path / "b.csv").write_text(f"image,raw_caption,TEXT\n{rows}")
    opened = open_pairs(tmp_path / "b.csv")
    assert texts(opened) == ["b0", "b1", "b2"]
    assert "Captions are those of 'TEXT'; not used: raw_caption." in opened.notes
    (tmp_path / "c.csv").write_text(
        'filename,raw\n0.png,"[\'one\', \'it\'\'s two\']"\n1.png,"[""three""]"'.replace("''s", "s")
    )
    assert texts(open_pairs(tmp_path / "c.csv")) == ["its two", "one", "three"]


def test_pictures_without_captions_and_files_that_are_not_read_are_told(tmp_path):
    pictures(tmp_path, 5)
    (tmp_path / "captions.csv").write_text("image,caption\n0.png,a\n1.png,b\n")
    (tmp_path / "labels.csv").write_text("image,label\n0.png,1\n")
    (tmp_path / "meta.json").write_text("{}")
    opened = open_pairs(tmp_path)
    assert texts(opened) == ["a", "b"]
    for part in ("3 images beside these are in no row", "1 skipped: file cannot be read", "meta.json"):
        assert part in said(opened)


def test_texts_beside_pictures_of_their_names(tmp_path):
    for folder in ("a", "b"):  # the same names in two folders are two pictures
        pictures(tmp_path / folder, 3, ".jpg")
        for i in range(3):
            (tmp_path / folder / f"{i}.txt").write_text(f"{folder} {i}")
    assert texts(open_pairs(tmp_path / "a")) == ["a 0", "a 1", "a 2"]
    opened = open_pairs(tmp_path)
    assert texts(opened) == ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]
    assert len({*opened.train.names, *opened.test.names}) == 6


def test_tables_of_addresses_and_of_pixels_are_told_the_way_out(tmp_path):
    pictures(tmp_path, 2)
    (tmp_path / "a.csv").write_text("url,caption\nhttp://example.com/0.jpg,a\n")
    with pytest.raises(SensoriumError, match="fetch the images first"):
        open_pairs(tmp_path / "a.csv")
    pixels = ",".join(f"pixel{i}" for i in range(64))
    (tmp_path / "b.csv").write_text(f"label,{pixels}\n1,{','.join('0' * 64)}\n")
    with pytest.raises(SensoriumError, match=r"pixels in columns are not read: save them as \.npz"):
        open_data(tmp_path / "b.csv")


# the foundations


def test_tables_fit_their_rows_to_the_header(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,c\n1,2,3,4\n1,2\n1,2,3,,\n")
    table = CSV(tmp_path / "a.csv")
    table.spill = 1
    assert [row for _, row in table] == [["1", "2,3", "4"], ["1", "2"], ["1", "2", "3"]]
    assert sum(table.odd.values()) == 2
    assert next(row for _, row in CSV(tmp_path / "a.csv", header=["x", "y"])) == ["a", "b,c"]


@pytest.mark.parametrize("data", [b"\xff\xfe not text", b"\xff\xfe\0\xd8", b"caf\xe9", b""])
def test_bytes_that_cannot_be_decoded_stay_as_they_are(data):
    assert utf8(data) == data


@pytest.mark.parametrize("name", SEEDS)
def test_damage_is_one_line(tmp_path, name):
    path = SEEDS[name](tmp_path)
    OPEN[name](path)
    whole = path.read_bytes()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data[: len(data) if seed % 3 else int(rng.integers(0, len(data)))])
        said = ""
        try:
            OPEN[name](path)
        except SensoriumError as error:
            said = str(error).strip()
        assert "\n" not in said
