"""Names, keys and boxes that a file of boxes gives more than once: none of them is merged or dropped without a word."""

from pathlib import Path
from typing import Any

import pytest
from box_cases import coco, pic, told, totals, yolo

from sensorium.data.boxes.open import open_boxes
from sensorium.errors import SensoriumError

LINE = "0 0.5 0.5 0.2 0.2\n"


def voc(root: Path, objects: str) -> Path:
    for i in range(5):
        pic(root / "JPEGImages" / f"{i}.jpg", seed=i)
        (root / "Annotations").mkdir(exist_ok=True)
        size = "<size><width>64</width><height>48</height></size>"
        (root / "Annotations" / f"{i}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return root


def thing(name: str = "cat", left: int = 5, difficult: int = 0) -> str:
    box = f"<xmin>{left}</xmin><ymin>6</ymin><xmax>30</xmax><ymax>40</ymax>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


# -- names --


def test_categories_of_one_name_are_one_class_and_told(tmp_path: Path) -> None:
    def change(stored: dict) -> None:
        stored["categories"] += [{"id": 4, "name": "cat"}, {"id": 7, "name": "dog"}]
        stored["annotations"][0]["category_id"] = 4

    opened = open_boxes(coco(tmp_path, change=change))
    assert (opened.train.classes, totals(opened), opened.counts) == (("cat", "dog"), (5, 5), {})
    assert told(opened, "annotations.json: numbers of one name are one class: 'cat' (1, 4).")


def test_classes_of_one_name_in_a_yaml_or_a_list_are_told(tmp_path: Path) -> None:
    opened = open_boxes(yolo(tmp_path / "yaml", LINE + "2 0.2 0.2 0.1 0.1\n", "names: [cat, dog, cat]\n"))
    assert (opened.train.classes, set(opened.train.labels.tolist())) == (("cat", "dog"), {0})
    assert told(opened, "data.yaml: numbers of one name are one class: 'cat' (0, 2).")
    root = yolo(tmp_path / "list", LINE, "")
    (root / "labels" / "classes.txt").write_text("cat\ncat \ndog\n")
    opened = open_boxes(root)
    assert opened.train.classes == ("cat", "dog")
    assert told(opened, "classes.txt: numbers of one name are one class: 'cat' (0, 1).")


ALIKE = "differ only in case, spaces or Unicode form"


def test_alike_names_of_categories_are_told(tmp_path: Path) -> None:
    def change(stored: dict) -> None:
        stored["categories"] += [
            {"id": 2, "name": " Cat"},
            {"id": 3, "name": "cafe\u0301"},
            {"id": 4, "name": "Caf\xe9"},
        ]

    assert told(open_boxes(coco(tmp_path, change=change)), ALIKE, "'cat' = ' Cat', 'cafe\u0301' = 'Caf\xe9'")
    assert not told(open_boxes(coco(tmp_path / "plain")), ALIKE)


@pytest.mark.parametrize("names", ["[cat, Cat]", '["cat", " cat"]', "{0: cat, 1: 'CAT '}"])
def test_alike_names_of_yolo_are_told(tmp_path: Path, names: str) -> None:
    opened = open_boxes(yolo(tmp_path, LINE, f"names: {names}\n"))
    assert len(opened.train.classes) == 2
    assert told(opened, ALIKE, "are they one class?")
    assert not told(open_boxes(yolo(tmp_path / "plain", LINE)), ALIKE)


def test_alike_names_of_voc_are_told(tmp_path: Path) -> None:
    assert told(open_boxes(voc(tmp_path, thing("cat") + thing("Cat", 7))), ALIKE, "'Cat' = 'cat'")


def test_a_test_set_that_spells_a_class_otherwise_is_told(tmp_path: Path) -> None:
    def change(stored: dict) -> None:
        stored["categories"][0]["name"] = "Cat"

    opened = open_boxes(coco(tmp_path / "a"), test=coco(tmp_path / "b", change=change))
    assert opened.counts == {"box of an unknown class": 5}
    assert told(opened, ALIKE, "'cat' = 'Cat'")


# -- keys --


@pytest.mark.parametrize(
    ("yaml", "key", "lines"),
    [
        ("names: [cat, dog]\nnc: 2\nnames: [dog, cat]\n", "names", "lines 1 and 3"),
        ("names:\n  0: cat\n  1: dog\n  0: fox\n", "names: 0", "lines 2 and 4"),
        ("names: {0: cat, 1: dog, 1: fox}\n", "names: 1", "line 1"),
        ("train: images\nval: images\nnames: [cat, dog]\ntrain: other\n", "train", "lines 1 and 4"),
        ("nc: 2\nnames: [cat, dog]\nnc: 3\n", "nc", "lines 1 and 3"),
    ],
)
def test_keys_of_a_yaml_that_are_given_twice_are_an_error(tmp_path: Path, yaml: str, key: str, lines: str) -> None:
    with pytest.raises(SensoriumError) as error:
        open_boxes(yolo(tmp_path, LINE, yaml))
    assert f"data.yaml: '{key}' is given twice ({lines}); keep one." in str(error.value)
    (tmp_path / "data.yaml").rename(tmp_path / "other.yml")
    with pytest.raises(SensoriumError, match=r"other\.yml: .*twice"):
        open_boxes(tmp_path / "other.yml")


def test_other_keys_of_a_yaml_do_not_matter(tmp_path: Path) -> None:
    opened = open_boxes(yolo(tmp_path, LINE, "names: [cat, dog]\nlicense: a\nlicense: b\n"))
    assert opened.train.classes == ("cat", "dog")
    (tmp_path / "hyp.yaml").write_text("path: a\npath: b\n")
    (tmp_path / "data.yaml").unlink()
    assert open_boxes(tmp_path).train.classes == ("0",)


def test_a_configuration_that_is_passed_over_is_told(tmp_path: Path) -> None:
    root = yolo(tmp_path, LINE, "names: {1: cat, 2: dog}\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    opened = open_boxes(root)
    assert opened.train.classes == ("cat", "dog")
    assert told(opened, "data.yaml", "must number the classes", "It is passed over.")


def test_keys_of_darknet_that_are_given_twice_are_an_error(tmp_path: Path) -> None:
    root = yolo(tmp_path, LINE, "")
    (root / "a.names").write_text("cat\n")
    (root / "obj.data").write_text("classes = 1\nnames = a.names\nnames = b.names\n")
    with pytest.raises(SensoriumError, match=r"obj\.data: 'names' is given twice; keep one"):
        open_boxes(root)


def test_lists_of_coco_that_are_given_twice_are_an_error(tmp_path: Path) -> None:
    root = coco(tmp_path)
    file = root / "annotations.json"
    file.write_text(f'{file.read_text()[:-1]}, "annotations": []}}')
    for path in (root, file):
        with pytest.raises(SensoriumError, match=r"annotations\.json: 'annotations' is given twice; join its lists"):
            open_boxes(path)


def test_keys_of_coco_rows_that_are_given_twice_are_told(tmp_path: Path) -> None:
    root = coco(tmp_path)
    file = root / "annotations.json"
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 0, "bbox": [1, 2, 3, 4]'))
    opened = open_boxes(root)
    assert told(
        opened, "annotations.json: keys are given twice in one object, and the last is used: 'bbox' in 5 objects."
    )
    assert opened.train.boxes[0].tolist() == [1, 2, 4, 6]


def test_names_and_boxes_of_a_voc_object_that_are_given_twice(tmp_path: Path) -> None:
    objects = thing().replace("</object>", "<name>dog</name></object>") + thing("dog", 9).replace(
        "</object>", "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"
    )
    opened = open_boxes(voc(tmp_path, objects))
    assert totals(opened) == (5, 10)
    assert opened.train.boxes[1].tolist() == [8, 5, 30, 40]
    assert opened.counts == {f"object with two of '{field}'; the first is used": 5 for field in ("name", "bndbox")}


# -- boxes --

TWICE = "box that is given twice"


def counts_of(root: Path) -> dict[str, int]:
    return open_boxes(root, test=root).counts


@pytest.mark.parametrize("again", [LINE, "0 0.50 .5 0.2 0.20\n", "0 0.5 0.5 0.2 0.2 0.9\n", "cat 0.5 0.5 0.2 0.2\n"])
def test_lines_of_yolo_that_are_given_twice(tmp_path: Path, again: str) -> None:
    opened = open_boxes(yolo(tmp_path, LINE + "1 0.5 0.5 0.2 0.2\n" + again + "0 0.5 0.5 0.2 0.21\n"))
    assert totals(opened) == (5, 15)
    assert opened.counts == {TWICE: 5}
    assert opened.skipped[0].reason == f"{TWICE}: box 3, 25.6, 19.2, 38.4, 28.8"


def test_polygons_of_yolo_that_are_given_twice(tmp_path: Path) -> None:
    one, other = "0 0.1 0.1 0.9 0.1 0.9 0.9\n", "0 0.1 0.1 0.9 0.1 0.1 0.9\n"
    opened = open_boxes(yolo(tmp_path, one + other + one))
    assert totals(opened) == (5, 10)
    assert opened.counts == {TWICE: 5, f"{TWICE} with another outline or flag; both are kept": 5}
    assert opened.train.outlines is not None
    assert len(opened.train.outlines) == len(opened.train.boxes)


def test_annotations_of_coco_that_are_given_twice(tmp_path: Path) -> None:
    def change(stored: dict) -> None:
        row: dict[str, Any] = stored["annotations"][0]
        stored["categories"] += [{"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}]
        stored["annotations"] += [
            row | {"id": 50, "area": 299},
            row | {"id": 51, "category_id": 2},  # of the same name
            row | {"id": 52, "category_id": 3},
            row | {"id": 53, "iscrowd": 1},
            row | {"id": 54, "segmentation": [[5, 6, 25, 6, 25, 21]]},
            row | {"id": 55, "segmentation": [[5, 6, 25, 6, 25, 21]]},
            *({k: v for k, v in row.items() if k != "id"} for _ in range(2)),
            row | {"id": 56, "category_id": 98},
            row | {"id": 57, "category_id": 99},
        ]

    opened = open_boxes(coco(tmp_path, change=change), test=tmp_path)
    assert opened.counts == {
        TWICE: 2 * 5,
        f"{TWICE} with another outline or flag; both are kept": 2 * 2,
        "box of an unknown class": 2 * 2,
    }
    assert opened.train.truth(0)["labels"].tolist() == [0, 1, 0, 0]
    assert opened.train.truth(0)["crowd"].tolist() == [False, False, True, False]
    assert len(opened.train.areas) == len(opened.train.boxes) == 8


def test_objects_of_voc_that_are_given_twice(tmp_path: Path) -> None:
    opened = open_boxes(voc(tmp_path, thing() + thing("dog") + thing() + thing(left=6)))
    assert (totals(opened), opened.counts) == ((5, 15), {TWICE: 5})
    opened = open_boxes(voc(tmp_path / "b", thing() + thing(difficult=1)))
    assert opened.counts == {f"{TWICE} with another outline or flag; both are kept": 5}


def test_equal_boxes_of_two_pictures_are_two(tmp_path: Path) -> None:
    assert counts_of(yolo(tmp_path, LINE)) == {}
    assert counts_of(coco(tmp_path / "b")) == {}
