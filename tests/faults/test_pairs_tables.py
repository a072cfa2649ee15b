"""Tables of images that others wrote: what their columns mean is found, what is lost is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sensorium.data.images.open import open_data
from sensorium.data.images.tables import read_csv
from sensorium.data.pairs.open import open_pairs
from sensorium.errors import SensoriumError

sys.path.insert(0, str(Path(__file__).parent))
from pairs_cases import labels, pictures, png, said, tar, texts

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
    assert "1 image beside these is in no row (the first: a/0.png)." in opened.notes


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
    with pytest.raises(SensoriumError, match=r"it has a, 0\.png; its first line is a row"):
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
