"""Files of labels beside pictures: read, or named."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import fill
from pairs_cases import labels, said

from sensorium.data.images.open import open_data
from sensorium.errors import SensoriumError


def rows(count: int, folder: str = "") -> list[dict]:
    return [{"file_name": f"{folder}{i}.png", "label": "ab"[i % 2]} for i in range(count)]


@pytest.mark.parametrize("indent", [None, 1])
def test_json_lines_of_labels_are_read(tmp_path, indent):
    fill(tmp_path, {"images": 10})
    text = "\n".join(json.dumps(row, indent=indent) for row in rows(10, "images/"))
    (tmp_path / "labels.jsonl").write_text(text + '\n[1]\n{"label": "c"}\n')
    for path in (tmp_path, tmp_path / "labels.jsonl"):
        opened = open_data(path)
        assert opened.train.classes == ("a", "b")
        assert opened.layout == "json lines"
        assert labels(opened) == {f"images/{i}.png": "ab"[i % 2] for i in range(10)}
        assert "no path in this row" in said(opened)


def test_json_lines_with_lists_of_labels_are_told(tmp_path):
    fill(tmp_path, {"images": 4})
    text = "\n".join(json.dumps(row | {"label": ["a", "b"]}) for row in rows(4, "images/"))
    (tmp_path / "labels.jsonl").write_text(text)
    assert "4 rows with several labels in column 'label': one label per row is read" in said(open_data(tmp_path))


@pytest.mark.parametrize("name", ["labels.jsonl", "annotations.csv", "x.tsv", "labels.ndjson", "a.parquet"])
def test_tables_beside_pictures_without_classes_are_named(tmp_path, name):
    fill(tmp_path, {".": 6})
    if name.endswith("parquet"):
        pq.write_table(pa.table({"width": [0.5, 1.5]}), tmp_path / name)
    else:
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows(6))))
    opened = open_data(tmp_path)
    assert len(opened.train) == 6
    told = [note for note in opened.notes if name in note]
    assert len(told) == 1
    assert ("instead to use its labels" in told[0]) == (not name.endswith("parquet"))


@pytest.mark.parametrize("name", ["labels.json", "labels.xlsx", "train_labels.txt", "truth.mat"])
def test_files_of_labels_of_other_kinds_are_named(tmp_path, name):
    fill(tmp_path, {".": 6})
    (tmp_path / name).write_text("a,b")
    assert f"{name} is beside the images and not read; write labels as a .csv" in said(open_data(tmp_path))


def test_tables_in_folders_below_and_beside_splits_are_named(tmp_path):
    fill(tmp_path, {"set/images": 4, "splits/train": 4, "splits/test": 4, "classes/a": 2, "classes/b": 2})
    (tmp_path / "set/images/labels.jsonl").write_text("")
    (tmp_path / "splits/train.jsonl").write_text("")
    (tmp_path / "splits/test.jsonl").write_text("")
    (tmp_path / "classes/labels.csv").write_text("")
    assert "labels.jsonl is beside the images and not read; open it" in said(open_data(tmp_path / "set"))
    assert "train.jsonl, test.jsonl are beside the images and not read" in said(open_data(tmp_path / "splits"))
    assert open_data(tmp_path / "classes").train.classes == ("a", "b")


def test_arrays_and_parquet_of_other_things_do_not_hide_pictures(tmp_path):
    fill(tmp_path, {"a": 4, "b": 4})
    np.savez(tmp_path / "features.npz", features=np.zeros((8, 3)))
    pq.write_table(pa.table({"width": [0.5, 1.5]}), tmp_path / "sizes.parquet")
    opened = open_data(tmp_path)
    assert opened.train.classes == ("a", "b")
    assert "features.npz" in said(opened)
    assert "sizes.parquet" in said(opened)
    (tmp_path / "sizes.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(SensoriumError, match=r"sizes\.parquet"):
        open_data(tmp_path)
