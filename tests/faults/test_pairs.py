"""Tables, shards and captions that others wrote: what they mean is found, what is lost is told."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sensorium.base import memory, reading
from sensorium.base.parquet import Parquet
from sensorium.base.reading import CSV, utf8
from sensorium.data.images.open import open_data
from sensorium.data.images.tables import read_csv
from sensorium.data.pairs.open import open_pairs
from sensorium.errors import SensoriumError

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_pairs import OPEN, SEEDS


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def pictures(folder: Path, count: int, ending: str = ".png", start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        (folder / f"{i}{ending}").write_bytes(png(i))


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def labels(opened) -> dict[str, str | None]:
    """Class by image name, over all sets."""
    found = {}
    for images in (opened.train, opened.test, opened.val):
        for i in range(0 if images is None else len(images)):
            number = -1 if images.labels is None else images.labels[i]
            found[images.names[i]] = images.classes[number] if number >= 0 else None
    return found


def texts(opened) -> list[str]:
    return sorted(
        text for pairs in (opened.train, opened.test, opened.val) if pairs is not None for text in pairs.texts
    )


def said(opened) -> str:
    return " ".join(opened.notes)


# 19: columns that look like labels


def hub(folder: Path, **columns) -> Path:
    count = len(next(iter(columns.values())))
    images = [{"bytes": png(i), "path": None} for i in range(count)]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"img": images} | columns), folder / "train-00000-of-00001.parquet")
    return folder


def test_19_label_columns_unnamed(tmp_path):
    fine = hub(tmp_path / "fine", fine_label=[i % 4 for i in range(16)], coarse_label=[i % 2 for i in range(16)])
    opened = open_data(fine)
    assert opened.train.classes == ("0", "1", "2", "3")
    assert "There is no column 'label': column 'fine_label' is used." in opened.notes
    assert "'coarse_label'" in said(opened)
    breed = hub(tmp_path / "breed", breed=["pug", "husky"] * 8, weight=[float(i) for i in range(16)])
    opened = open_data(breed)
    assert opened.train.labels is None
    assert "Column 'breed' looks like labels and is not used; call it 'label' to use it." in opened.notes
    plain = hub(tmp_path / "plain", label=[i % 2 for i in range(16)], caption=[f"words {i}" for i in range(16)])
    assert not any("looks like labels" in note for note in open_data(plain).notes)


def test_label_columns_of_csv_are_named_too(tmp_path):
    pictures(tmp_path, 12)
    rows = "\n".join(f"{i},{i}.png,{'ab'[i % 2]},{i % 3},100" for i in range(12))
    (tmp_path / "t.csv").write_text(f"Unnamed: 0,image,breed,level,width\n{rows}")
    opened = open_data(tmp_path / "t.csv")
    assert opened.train.labels is None
    assert "Columns 'breed', 'level' look like labels" in said(opened)


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
    for part in ("1 members have the name of another", "1 skipped: a link", "1 members belong to no picture (1 .cls)"):
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
    assert f"1 images are unlabeled: {reason}." in opened.notes


def test_packed_shards_are_refused_with_the_way_out(tmp_path):
    plain = tar(tmp_path / "a.tar", ("0.png", png(0)), ("0.txt", b"words")).read_bytes()
    (tmp_path / "a.tar").write_bytes(gzip.compress(plain))
    for open_ in (open_data, open_pairs):
        with pytest.raises(SensoriumError, match="packed with gzip.*unpack it to a plain .tar"):
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
    assert "1 times a row with fewer fields" in said(opened)


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


# 15: tables whose pictures lie in folders beside them


def test_15_tables_beside_folders(tmp_path):
    pictures(tmp_path / "kaggle/train_images", 20)
    pictures(tmp_path / "kaggle/test_images", 8)  # the same names
    rows = "\n".join(f"{i}.png,{i % 3}" for i in range(20))
    (tmp_path / "kaggle/train.csv").write_text(f"image_id,label\n{rows}")
    opened = open_data(tmp_path / "kaggle/train.csv")
    assert labels(opened) == {f"{i}.png": str(i % 3) for i in range(20)}
    assert {Path(path).parent.name for path in opened.train.base.source.paths} == {"train_images"}
    pictures(tmp_path / "sub/images", 20)
    (tmp_path / "sub/labels.csv").write_text(f"filename,label\n{rows}")
    assert len(labels(open_data(tmp_path / "sub/labels.csv"))) == 20


@pytest.mark.parametrize(
    "form", ["{}", "train/{}", "train\\{}.png", "/kaggle/input/set/train/{}.jpg", "C:\\set\\train\\{}.PNG"]
)
def test_pictures_are_found_by_names_of_other_machines(tmp_path, form):
    pictures(tmp_path / "train", 4)
    rows = "\n".join(f"{form.format(i)},{i % 2}" for i in range(4))
    (tmp_path / "labels.csv").write_text(f"id,label\n{rows}")
    opened = open_data(tmp_path / "labels.csv")
    assert len(labels(opened)) == 4
    assert not opened.skipped


def test_names_that_fit_several_files_or_none_are_counted(tmp_path):
    pictures(tmp_path / "a", 2)
    pictures(tmp_path / "b", 2)
    pictures(tmp_path / "a", 1, start=5)
    rows = ["0,x", "1.png,x", "5,x", "7,x", "http://example.com/1.png,x", ",x", "a/1.png,y"]
    (tmp_path / "t.csv").write_text("\n".join(["image_id,label", *rows]))
    opened = open_data(tmp_path / "t.csv")
    assert labels(opened) == {"5": "x", "a/1.png": "y"}
    for count, reason in ((2, "several files have this name"), (1, "no such file"), (1, "an address on the web")):
        assert f"{count} skipped: {reason}" in said(opened)
    assert "1 images beside these are in no row (the first: a/0.png)." in opened.notes


def test_tables_in_a_folder_of_annotations(tmp_path):
    pictures(tmp_path / "images", 3)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.csv").write_text("file_name,label\n" + "\n".join(f"{i}.png,a" for i in range(3)))
    assert len(labels(open_data(tmp_path / "annotations" / "train.csv"))) == 3


# headers, encodings, rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_03_tables_in_any_encoding(tmp_path, encoding, end):
    pictures(tmp_path, 4)
    rows = [f"{i}.png,K\u00e4fer,{i} k\u00e4fer" for i in range(4)]
    (tmp_path / "a.csv").write_bytes(end.join(['" Image", "LABEL" ,Caption', *rows]).encode(encoding))
    assert set(labels(open_data(tmp_path / "a.csv")).values()) == {"K\u00e4fer"}
    assert texts(open_pairs(tmp_path / "a.csv")) == [f"{i} k\u00e4fer" for i in range(4)]
    lines = end.join(json.dumps({"file": f"{i}.png", "caption": f"{i} \u732b"}, ensure_ascii=False) for i in range(4))
    (tmp_path / "a.jsonl").write_bytes(lines.encode(encoding))
    assert texts(open_pairs(tmp_path / "a.jsonl")) == [f"{i} \u732b" for i in range(4)]


def test_a_table_without_a_header_is_read_and_told(tmp_path):
    pictures(tmp_path, 4)
    (tmp_path / "a.csv").write_text("\n".join(f"{i}.png,{'ab'[i % 2]}" for i in range(4)))
    opened = open_data(tmp_path / "a.csv")
    assert labels(opened) == {f"{i}.png": "ab"[i % 2] for i in range(4)}
    assert "a.csv has no header: its first column is taken as images, the second as labels." in opened.notes
    (tmp_path / "b.csv").write_text("0.png,a,3\n1.png,b,4")
    with pytest.raises(SensoriumError, match="its first line is a row, not a header"):
        open_data(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("a,0.png\nb,1.png")
    with pytest.raises(SensoriumError, match="it has a, 0.png; its first line is a row"):
        open_data(tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label,label\n0.png,a,b\n1.png,a,c", {"a"}),
        (",path,label\n0,0.png,a\n1,1.png,b", {"a", "b"}),
        ("sep=;\npath;label\n0.png;a\n1.png;b", {"a", "b"}),
        ("Image Path|Class Name\n0.png|a\n1.png|b", {"a", "b"}),
        ("path,label\n0.png,1.0\n1.png, 1", {"1"}),
        ("path,label\n0.png,1.0\n1.png,1.5", {"1.0", "1.5"}),
        ("path,label,\n0.png,a,\n1.png,b,", {"a", "b"}),
        ("\n\npath,label\n0.png,a\n\n1.png,b", {"a", "b"}),
    ],
)
def test_headers_and_labels_as_tools_write_them(tmp_path, text, expected):
    pictures(tmp_path, 2)
    (tmp_path / "a.csv").write_text(text)
    opened = open_data(tmp_path / "a.csv")
    assert set(labels(opened).values()) == expected
    assert ("There are 2 columns 'label'; the first is used." in opened.notes) == ("label,label" in text)


def test_labels_that_are_missing_are_unlabeled_and_counted(tmp_path):
    pictures(tmp_path, 8)
    values = ["NaN", "", "null", "N/A", "none", "a", "a", "none"]
    (tmp_path / "a.csv").write_text("path,label\n" + "\n".join(f"{i}.png,{v}" for i, v in enumerate(values)))
    opened = open_data(tmp_path / "a.csv")
    assert [labels(opened)[f"{i}.png"] for i in range(8)] == [None] * 4 + ["none", "a", "a", "none"]
    assert "4 images are unlabeled: label is empty, NaN or null." in opened.notes


def test_04_one_bad_row(tmp_path):
    pictures(tmp_path, 8)
    rows = [b"0.png,a", b"1.png,caf\xe9", b"2.png", b"\xff\xfe.png,a", b"\0\0\0\0", b'3.png,"a', b"4.png,b", b"5.png,a"]
    (tmp_path / "a.csv").write_bytes(b"\n".join([b"path,label", *rows]) + b"\n6.pn")
    opened = open_data(tmp_path / "a.csv")
    assert labels(opened) == {"0.png": "a", "2.png": None, "3.png": "a", "4.png": "b", "5.png": "a"}
    for part in ("label is not UTF-8", "the name is not UTF-8", "not a path", "no such file", "fewer fields", "quote"):
        assert part in said(opened)
    (tmp_path / "c.csv").write_bytes(
        b"image,caption\n0.png,one\n1.png,tw\0o\n2.png,caf\xe9\n3.png\n4.png,\n5.png,six\n6.p"
    )
    opened = open_pairs(tmp_path / "c.csv")
    assert texts(opened) == ["one", "six"]
    for part in ("caption has a zero byte", "caption is not UTF-8", "2 skipped: no caption", "1 skipped: no such file"):
        assert part in said(opened)


@pytest.mark.parametrize("bad", [b"[" * 100_000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b"{", b"\xff", b"null", b"[1]"])
def test_69_deep_json_and_04_bad_lines_cost_one_line(tmp_path, bad):
    pictures(tmp_path, 3)
    good = [json.dumps({"file": f"{i}.png", "caption": f"words {i}"}).encode() for i in range(3)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*good, bad]))
    opened = open_pairs(tmp_path / "a.jsonl")
    assert len(texts(opened)) == 3
    assert len(opened.skipped) == 1
    with pytest.raises(SensoriumError) as error:
        (tmp_path / "captions.json").write_bytes(bad)
        open_pairs(tmp_path / "captions.json")
    assert "\n" not in str(error.value)
    path = tar(tmp_path / "a.tar", ("0.png", png(0)), ("0.json", bad), ("1.png", png(1)), ("1.txt", b"words"))
    assert texts(open_pairs(path)) == ["words"]


def test_words_of_a_split_column(tmp_path):
    pictures(tmp_path, 9)
    words = ["Train", "training", "TEST", "validation", "dev", "", "holdout", "test set", "restval"]
    (tmp_path / "a.csv").write_text(
        "path,label,caption,split\n" + "\n".join(f"{i}.png,a,w{i},{w}" for i, w in enumerate(words))
    )
    opened = open_data(tmp_path / "a.csv")
    assert list(opened.train.names) == ["0.png", "1.png", "5.png", "8.png"]
    assert list(opened.test.names) == ["2.png", "7.png"]
    assert list(opened.val.names) == ["3.png", "4.png"]
    assert "1 skipped: split 'holdout' is not train, val or test" in said(opened)
    pairs = open_pairs(tmp_path / "a.csv")
    assert [list(part.texts) for part in (pairs.train, pairs.test, pairs.val)] == [
        ["w0", "w1", "w5", "w8"], ["w2", "w7"], ["w3", "w4"],
    ]  # fmt: skip
    assert "split 'holdout'" in said(pairs)
    (tmp_path / "b.csv").write_text("path,label,is_test\n0.png,a,False\n1.png,a,True")
    assert list(open_data(tmp_path / "b.csv").test.names) == ["1.png"]


def test_rows_of_several_tables_and_their_split_columns_come_together(tmp_path):
    pictures(tmp_path, 6)
    (tmp_path / "train.csv").write_text("path,label,split\n0.png,a,train\n1.png,a,test\n2.png,b,train")
    (tmp_path / "test.csv").write_text("path,label\n3.png,a\n4.png,b")
    found = read_csv({"train": tmp_path / "train.csv", "test": tmp_path / "test.csv"})
    assert {split: list(images.names) for split, images in found.sets.items()} == {
        "train": ["0.png", "2.png"], "test": ["1.png", "3.png", "4.png"],
    }  # fmt: skip
    (tmp_path / "only.csv").write_text("path,label,split\n0.png,a,test\n1.png,a,test")
    assert "All images are of the test split" in said(open_data(tmp_path / "only.csv"))


# Parquet


@pytest.mark.parametrize(
    "images",
    [
        [png(i) for i in range(4)],
        pa.array([png(i) for i in range(4)], pa.large_binary()),
        [{"bytes": png(i), "path": None} for i in range(4)],
        [{"file": f"{i}.png", "data": png(i)} for i in range(4)],
        [[{"bytes": png(i), "path": "x"}] for i in range(4)],
        [[png(i)] for i in range(4)],
        pa.array([list(png(i)) for i in range(4)], pa.list_(pa.uint8())),
        [{"bytes": None, "path": f"/home/someone/{i}.png"} for i in range(4)],
        [f"{i}.png" for i in range(4)],
        pa.array([f"{i}.png" for i in range(4)], pa.large_string()),
        pa.array([f"{i}.png" for i in range(4)]).dictionary_encode(),
        pa.array(range(4), pa.int64()),
    ],
)
def test_images_in_parquet_of_any_type(tmp_path, images):
    pictures(tmp_path, 4)
    classes = pa.array(["a", "b", "a", "b"]).dictionary_encode()
    table = pa.table({"image": images, "label": classes, "caption": pa.array([[f"w{i}"] for i in range(4)])})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    opened = open_data(tmp_path / "a.parquet")
    assert opened.train.classes == ("a", "b")
    assert not opened.skipped
    seen = {images[i]["image"].numpy().tobytes() for images in (opened.train, opened.test) for i in range(len(images))}
    assert seen == {
        np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(png(i)))).transpose(2, 0, 1)).tobytes() for i in range(4)
    }
    pairs = open_pairs(tmp_path / "a.parquet")
    assert texts(pairs) == [f"w{i}" for i in range(4)]
    skipped = []
    assert sum(len(list(part.readable(skipped))) for part in (pairs.train, pairs.test) if part is not None) == 4


def not_utf8(values: list[bytes]) -> pa.Array:
    """Text as a careless writer makes it."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_text_in_parquet_that_is_not_utf8_costs_its_row(tmp_path):
    pictures(tmp_path, 4)
    names = not_utf8([b"0.png", b"\xff.png", b"2.png", b"3.png"])
    classes = not_utf8([b"a", b"a", b"caf\xe9", b"b"])
    pq.write_table(pa.table({"path": names, "label": classes, "caption": classes}), tmp_path / "a.parquet")
    opened = open_data(tmp_path / "a.parquet")
    assert labels(opened) == {"0.png": "a", "3.png": "b"}
    assert "1 skipped: label is not UTF-8" in said(opened)
    assert texts(open_pairs(tmp_path / "a.parquet")) == ["a", "b"]
    cells = [{"bytes": png(i), "path": None} for i in range(4)]
    pq.write_table(pa.table({"image": cells, "label": classes}), tmp_path / "b.parquet")
    opened = open_data(tmp_path / "b.parquet")
    assert "1 images are unlabeled: label is not UTF-8." in opened.notes


def test_a_damaged_parquet_among_others_is_skipped_and_alone_is_one_line(tmp_path):
    cells = [{"bytes": png(i), "path": None} for i in range(4)]
    for name in ("train-0.parquet", "train-1.parquet"):
        pq.write_table(pa.table({"image": cells, "label": [0, 1, 0, 1], "caption": list("abcd")}), tmp_path / name)
    whole = (tmp_path / "train-1.parquet").read_bytes()
    (tmp_path / "train-1.parquet").write_bytes(whole[: len(whole) // 2])
    for opened in (open_data(tmp_path), open_pairs(tmp_path)):
        assert "1 skipped: file cannot be read" in said(opened)
        assert len(opened.train) + len(opened.test) == 4
    for open_ in (open_data, open_pairs):
        with pytest.raises(SensoriumError, match=r"train-1\.parquet: not readable as Parquet"):
            open_(tmp_path / "train-1.parquet")


def test_huge_row_groups_and_lying_counts_are_refused(tmp_path, monkeypatch):
    cells = [{"bytes": png(i), "path": None} for i in range(4)]
    pq.write_table(pa.table({"image": cells, "caption": list("abcd")}), tmp_path / "a.parquet")
    monkeypatch.setattr("sensorium.base.parquet._MOST_ROWS", 0)
    pq.write_table(pa.table({"image": pa.nulls(20_000, pa.binary())}), tmp_path / "b.parquet")
    with pytest.raises(SensoriumError, match=r"claims 20,000 rows in"):
        Parquet(tmp_path / "b.parquet")
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    for open_ in (open_data, open_pairs):
        with pytest.raises(SensoriumError, match=r"a\.parquet: a row group: needs .* smaller row groups"):
            open_(tmp_path / "a.parquet")


def test_bytes_are_preferred_to_names_and_labels_that_are_lists_are_told(tmp_path):
    cells = [{"bytes": png(i), "path": None} for i in range(4)]
    table = pa.table({"path": ["x.png"] * 4, "image": cells, "labels": [[0, 1]] * 4})
    pq.write_table(table, tmp_path / "a.parquet")
    opened = open_data(tmp_path / "a.parquet")
    assert len(opened.train) == 4
    assert opened.train[0]["image"].shape == (3, 4, 5)
    assert "4 images are unlabeled: label is a list or an object, not one value." in opened.notes


def test_class_names_of_the_hub_and_labels_beyond_them(tmp_path):
    feature = {"info": {"features": {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}}}
    cells = [{"bytes": png(i), "path": None} for i in range(6)]
    table = pa.table({"image": cells, "label": [0, 1, -1, 7, 1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(feature)}), tmp_path / "a.parquet")
    opened = open_data(tmp_path / "a.parquet")
    assert opened.train.classes == ("zebra", "ant")
    assert sorted(map(str, labels(opened).values())) == ["None", "None", "ant", "ant", "zebra", "zebra"]
    assert "1 images are unlabeled: label is not one of the class names in the schema." in opened.notes
    deep = {"huggingface": '{"a":' * 3000 + "1" + "}" * 3000}
    pq.write_table(table.replace_schema_metadata(deep), tmp_path / "b.parquet")
    assert open_data(tmp_path / "b.parquet").train.classes == ("0", "1", "7", "-1")


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


# the foundations


def test_tables_fit_their_rows_to_the_header(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,c\n1,2,3,4\n1,2\n1,2,3,,\n")
    table = CSV(tmp_path / "a.csv")
    table.spill = 1
    assert [row for _, row in table] == [["1", "2,3", "4"], ["1", "2"], ["1", "2", "3"]]
    assert sum(table.odd.values()) == 2
    assert [row for _, row in CSV(tmp_path / "a.csv", header=["x", "y"])][0] == ["a", "b,c"]


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
        with contextlib.suppress(SensoriumError):
            OPEN[name](path)
