"""Parquet that others wrote, of any types, or damaged."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sensorium.base import memory
from sensorium.base.parquet import Parquet
from sensorium.data.images.open import open_data
from sensorium.data.pairs.open import open_pairs
from sensorium.errors import SensoriumError

sys.path.insert(0, str(Path(__file__).parent))
from pairs_cases import labels, pictures, png, said, texts

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
    assert "1 image is unlabeled: label is not UTF-8." in opened.notes


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
    assert "1 image is unlabeled: label is not one of the class names in the schema." in opened.notes
    deep = {"huggingface": '{"a":' * 3000 + "1" + "}" * 3000}
    pq.write_table(table.replace_schema_metadata(deep), tmp_path / "b.parquet")
    assert open_data(tmp_path / "b.parquet").train.classes == ("0", "1", "7", "-1")
