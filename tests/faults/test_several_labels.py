"""Tables whose rows have several labels: one is read, and that is told."""

from __future__ import annotations

import json
from itertools import cycle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pairs_cases import pictures, png, said, tar

from sensorium.data.columns import as_label, joined
from sensorium.data.images.open import open_data

ONE = "one label per row is read"


def table(folder, values, name="labels"):
    pictures(folder, len(values))
    rows = "\n".join(f'{i}.png,"{value}"' for i, value in enumerate(values))
    (folder / "t.csv").write_text(f"path,{name}\n{rows}")
    return open_data(folder / "t.csv")


def test_lists_in_parquet_name_their_column(tmp_path):
    cells = [{"bytes": png(i), "path": None} for i in range(6)]
    pq.write_table(pa.table({"image": cells, "labels": [["a", "b"]] * 5 + [["a"]]}), tmp_path / "a.parquet")
    opened = open_data(tmp_path / "a.parquet")
    assert opened.train.classes == ()
    assert f"6 rows with several labels in column 'labels': {ONE}" in said(opened)
    pictures(tmp_path, 4)
    pq.write_table(
        pa.table({"file_name": [f"{i}.png" for i in range(4)], "category": [[0, 1]] * 4}), tmp_path / "b.parquet"
    )
    assert f"4 rows with several labels in column 'category': {ONE}" in said(open_data(tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    "value", ['[""a"", ""b""]', "['a', 'b']", "['a' 'b']", "{'a', 'b'}", "[a, b]", "[0 1 1]", "[]"]
)
def test_lists_written_in_a_table_of_text_are_no_class(tmp_path, value):
    opened = table(tmp_path, [value, "plain", value])
    assert opened.train.classes == ("plain",)
    assert f"2 rows with several labels in column 'labels': {ONE}" in said(opened)


def test_lists_in_tars_are_told(tmp_path):
    members = [
        (f"{i}.{kind}", data) for i in range(4) for kind, data in (("png", png(i)), ("json", b'{"label": ["a", "b"]}'))
    ]
    opened = open_data(tar(tmp_path / "a.tar", *members, ("4.png", png(4)), ("4.cls", json.dumps(["a", "b"]).encode())))
    assert opened.train.classes == ()
    assert f"5 rows with several labels in the labels: {ONE}" in said(opened)


@pytest.mark.parametrize("separator", ["|", ", ", ";"])
def test_joined_labels_are_told(tmp_path, separator):
    values = ["cat", "dog", f"cat{separator}dog", "bird", f"bird{separator}cat", f"dog{separator}cat"]
    opened = table(tmp_path, values)
    assert f"In column 'labels' '{separator.strip()}' seems to join several labels, in 3 rows" in said(opened)
    assert ONE in said(opened)


def test_joined_labels_that_are_never_alone_are_told_too():
    assert joined(["young|smiling", "young|male", "male|smiling", None]) == (3, "|", "young|smiling")


@pytest.mark.parametrize(
    "values",
    [
        ["Buffalo, NY", "Albany, NY", "Austin, TX", "Dallas, TX"],
        ["Smith, John", "Miller, Ann", "Jones, Bob"],
        ["1,5", "2,5", "1,0", "2,0"],
        ["cat", "dog"] * 10 + ["cat|dog"],
        ["bulb, electric", "lamp", "bulb, plain"],
        ["a|", "|b", "|"],
        [],
        [None],
    ],
)
def test_names_with_commas_are_names(values):
    assert joined(values) is None


def test_names_in_brackets_are_names():
    for name in ("[bold]walk", "(unknown)", "[cat]", "cat (black, white)", "{x}"):
        assert as_label(name) == (name, "")


def test_images_in_several_rows_with_different_labels_are_told(tmp_path):
    pictures(tmp_path, 4)
    rows = "\n".join(f"{i}.png,{name}" for i, name in zip([0, 0, 1, 1, 2, 3, 3], cycle("aab"), strict=False))
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}")
    assert f"2 images are in several rows with different labels (the first: 1.png); {ONE}." in said(
        open_data(tmp_path / "t.csv")
    )
