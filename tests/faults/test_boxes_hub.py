"""Detection data as on the Hugging Face hub: boxes in a column of Parquet files or of metadata.jsonl."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from box_cases import pic, told, totals
from PIL import Image

from sensorium.data.boxes.cache import cache_boxes
from sensorium.data.boxes.open import open_boxes
from sensorium.data.look import look
from sensorium.errors import NothingOfItsKind, SensoriumError

BOXES = [[5.0, 6.0, 20.0, 15.0], [1.0, 2.0, 3.0, 4.0]]
LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}
PLAIN = {"_type": "Value", "dtype": "float32"}
FEATURES = {
    "dict of lists": {"feature": {"bbox": {"feature": PLAIN, "length": 4}, "category": LABEL}, "_type": "Sequence"},
    "lists": {
        "bbox": {"feature": {"feature": PLAIN, "_type": "List"}, "_type": "List"},
        "category": {"feature": LABEL},
    },
    "list of dicts": [{"bbox": {"feature": PLAIN, "length": 4}, "category": LABEL}],
}


def encoded(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (seed, 10, 200)).save(file, "PNG")
    return file.getvalue()


def parquet(file: Path, rows: list[dict[str, Any]], features: dict[str, Any] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file, row_group_size=2)
    return file


def rows_of(count: int = 5, objects: Any = None) -> list[dict[str, Any]]:
    objects = objects or {"id": [1, 2], "area": [300.0, 12.0], "bbox": BOXES, "category": [1, 0]}
    image = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(count)]
    return [{"image_id": i, "image": image[i], "width": 64, "height": 48, "objects": objects} for i in range(count)]


@pytest.mark.parametrize("kind", FEATURES)
def test_parquet_with_objects_is_read(tmp_path: Path, kind: str) -> None:
    objects = [{"bbox": BOXES[i], "category": 1 - i, "area": 300.0} for i in range(2)] if "of dicts" in kind else None
    file = parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows_of(5, objects), {"objects": FEATURES[kind]})
    for path in (tmp_path, file):
        opened = open_boxes(path)
        assert (opened.layout, totals(opened), opened.counts) == ("Hugging Face objects", (5, 10), {})
        assert opened.train.classes == ("cat", "dog")
        assert opened.train.truth(0)["boxes"].tolist() == [[5, 6, 25, 21], [1, 2, 4, 6]]
        assert opened.train.truth(0)["labels"].tolist() == [1, 0]
        assert opened.train.truth(0)["area"].tolist()[0] == 300
        assert tuple(opened.train[0]["image"].shape) == (3, 48, 64)
    cached = cache_boxes(opened.train, 64, tmp_path / "cache")
    assert len(cached) == len(opened.train)


def test_splits_of_parquet_are_by_the_names_of_files(tmp_path: Path) -> None:
    features = {"objects": FEATURES["lists"]}
    for split, count in (("train", 4), ("validation", 2), ("test", 3)):
        parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows_of(count), features)
    opened = open_boxes(tmp_path)
    assert opened.test is not None
    assert opened.val is not None
    assert (len(opened.train), len(opened.val), len(opened.test)) == (4, 2, 3)
    found = look(tmp_path)
    assert (found.kind, [one["name"] for one in found.classes]) == ("boxes", ["cat", "dog"])


def test_classes_without_a_schema_are_numbers_or_their_names(tmp_path: Path) -> None:
    opened = open_boxes(parquet(tmp_path / "a.parquet", rows_of()))
    assert opened.train.classes == ("0", "1")
    assert told(opened, "classes are named by number")
    named = {"bbox": BOXES, "category": ["dog", "cat"]}
    opened = open_boxes(parquet(tmp_path / "b.parquet", rows_of(5, named)))
    assert (opened.train.classes, opened.train.truth(0)["labels"].tolist()) == (("cat", "dog"), [1, 0])
    assert not told(opened, "classes are named by number")
    opened = open_boxes(parquet(tmp_path / "c.parquet", rows_of(5, {"bbox": BOXES})))
    assert opened.train.classes == ("object",)
    assert told(opened, "c.parquet: 10 boxes have no class; it is 'object'.")


def test_numbers_without_a_name_and_boxes_that_are_none_are_counted(tmp_path: Path) -> None:
    objects = {"bbox": [*BOXES, [0.0, 0.0, 1.0, 1.0], [1.0, 2.0, 3.0], BOXES[0]], "category": [0, 7, None, 0, 0]}
    file = parquet(tmp_path / "a.parquet", rows_of(3, objects), {"objects": FEATURES["lists"]})
    opened = open_boxes(file, test=file)
    assert opened.counts == {
        "box of an unknown class": 2 * 6,
        "annotation without a box": 2 * 3,
        "box that is given twice": 2 * 3,
    }


def test_other_columns_of_boxes_are_read(tmp_path: Path) -> None:
    image = {"bytes": encoded(), "path": None}
    flat = [{"image": image, "bboxes": BOXES, "labels": [1, 0]}] * 5
    features = {"labels": {"feature": LABEL, "_type": "Sequence"}}
    opened = open_boxes(parquet(tmp_path / "flat.parquet", flat, features))
    assert (totals(opened), opened.train.classes) == ((5, 10), ("cat", "dog"))
    faces = [{"image": image, "faces": {"bbox": BOXES, "blur": [0, 1]}}] * 5
    assert totals(open_boxes(parquet(tmp_path / "faces.parquet", faces))) == (5, 10)
    for i in range(5):
        pic(tmp_path / "named" / f"{i}.jpg", seed=i)
    rows = [{"file_name": f"{i}.jpg", "objects": {"bbox": BOXES, "category": [0, 1]}} for i in range(6)]
    opened = open_boxes(parquet(tmp_path / "named" / "metadata.parquet", rows))
    assert (totals(opened), opened.counts) == ((5, 10), {"image is missing": 1})


def test_parquet_without_boxes_is_left_to_others(tmp_path: Path) -> None:
    image = {"bytes": encoded(), "path": None}
    file = parquet(tmp_path / "a" / "train.parquet", [{"image": image, "label": i % 2} for i in range(6)])
    words = parquet(tmp_path / "b" / "a.parquet", [{"image": image, "bboxes": BOXES, "ner_tags": [1, 2]}] * 6)
    for path in (file, file.parent, words):
        with pytest.raises(NothingOfItsKind, match="has no"):
            open_boxes(path)
    assert look(file.parent).kind == "images"
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(NothingOfItsKind):
        open_boxes(tmp_path / "bad.parquet")
    with pytest.raises(SensoriumError, match="column 'objects' has boxes, but there is no column of images"):
        open_boxes(parquet(tmp_path / "lone.parquet", [{"objects": {"bbox": BOXES, "category": [0, 1]}}] * 3))


def metadata(folder: Path, rows: list[Any], name: str = "metadata.jsonl", count: int = 5) -> Path:
    for i in range(count):
        pic(folder / f"{i}.jpg", seed=i)
    (folder / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return folder


@pytest.mark.parametrize(
    "objects",
    [
        {"bbox": BOXES, "categories": [1, 0]},
        {"bbox": BOXES, "category": ["1", "0"]},
        [{"bbox": box, "label": 1 - i} for i, box in enumerate(BOXES)],
    ],
)
def test_metadata_with_objects_is_read(tmp_path: Path, objects: Any) -> None:
    rows: list[Any] = [{"file_name": f"{i}.jpg", "objects": objects} for i in range(3)]
    rows.insert(0, {"file_name": "3.jpg", "objects": {"bbox": [], "categories": []}})
    opened = open_boxes(
        metadata(tmp_path, ["", *rows, '{"file_name": ', {"file_name": "gone.jpg", "objects": objects}])
    )
    assert (opened.layout, totals(opened)) == ("Hugging Face objects", (4, 6))
    assert opened.train.classes == ("0", "1")
    assert opened.counts == {"line is not a JSON object": 1, "image is missing": 1}
    assert told(opened, "1 picture is not in the metadata and not used, the first is 4.jpg.")
    opened = open_boxes(tmp_path / "metadata.jsonl", test=tmp_path)
    assert opened.train.truth(1)["boxes"].tolist() == [[5, 6, 25, 21], [1, 2, 4, 6]]
    assert opened.train.truth(1)["labels"].tolist() == [1, 0]


def test_metadata_in_folders_of_splits(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        rows = [{"file_name": f"{i}.jpg", "objects": {"bbox": BOXES, "categories": [0, 1]}} for i in range(count)]
        metadata(tmp_path / split, rows, count=count)
    opened = open_boxes(tmp_path)
    assert opened.test is not None
    assert (len(opened.train), len(opened.test), opened.counts) == (4, 2, {})
    assert look(tmp_path).kind == "boxes"


def test_metadata_of_captions_has_no_boxes(tmp_path: Path) -> None:
    folder = metadata(tmp_path, [{"file_name": f"{i}.jpg", "text": "a cat"} for i in range(5)])
    for path in (folder, folder / "metadata.jsonl"):
        with pytest.raises(NothingOfItsKind):
            open_boxes(path)
    assert look(folder).kind == "pairs"
