"""Files of boxes under the names, in the folders and in the splits of other tools."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from box_cases import coco, pic, told, totals, yolo
from PIL import Image

from sensorium.data.boxes.open import open_boxes
from sensorium.errors import SensoriumError

# -- 10: paths as other tools write them --


@pytest.mark.parametrize(
    ("name", "images", "file"),
    [
        (lambda i: f"images\\{i:03}.jpg", "images", "annotations.json"),
        (lambda i: f"..\\image\\{i:03}.jpg", "images", "annotations.json"),
        (lambda i: f"/home/someone/set/images/{i:03}.jpg", "images", "annotations.json"),
        (lambda i: f"C:\\Users\\x\\{i:03}.JPG", "images", "annotations.json"),
        (lambda i: f"project/images/{i:03}.jpg", "images", "annotations.json"),
        (lambda i: f"{i:03}.jpg", "data", "labels.json"),
        (lambda i: f"{i:03}.jpg", "deep/below/it", "annotations.json"),
        (lambda i: f"./images/{i:03}.jpg", "images", "annotations/instances_default.json"),
        (lambda i: f"http://images.example.org/a/{i:03}.jpg", "images", "annotations.json"),
        (lambda i: f" {i:03}.jpg ", "images", "annotations.json"),
    ],
)
def test_10_coco_paths(tmp_path: Path, name: Callable[[int], str], images: str, file: str) -> None:
    opened = open_boxes(coco(tmp_path / "set", name, images=images, file=file))
    assert (totals(opened), opened.counts) == ((5, 5), {})
    opened = open_boxes(coco(tmp_path / "set", name, images=images, file=file) / file)
    assert totals(opened) == (5, 5)


def test_absolute_paths_of_this_machine_are_followed_and_told(tmp_path: Path) -> None:
    pictures = tmp_path / "elsewhere"
    coco(pictures)
    (pictures / "annotations.json").unlink()
    root = coco(tmp_path / "set", lambda i: str(pictures / "images" / f"{i:03}.jpg"), images="none")
    for file in (root / "none").iterdir():
        file.unlink()
    opened = open_boxes(root)
    assert totals(opened) == (5, 5)
    assert told(opened, "5 images lie outside")


def test_a_message_names_what_the_file_says(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=r"none of its images was found \(the first is called a/9\.png\)"):
        open_boxes(coco(tmp_path, lambda i: f"a/{i + 8}.png"))


def test_names_in_two_folders_are_never_confused(tmp_path: Path) -> None:
    root = coco(tmp_path, lambda i: f"{'ab'[i % 2]}/{i // 2}.jpg")
    for i in range(1, 6):
        pic(root / "images" / "ab"[i % 2] / f"{i // 2}.jpg", seed=i)
    opened = open_boxes(root)
    for part in (opened.train, opened.test):
        assert part is not None
        for at, key in enumerate(part.ids):
            with Image.open(root / "images" / f"{key:03}.jpg") as same:
                assert (part[at]["image"].numpy() == np.asarray(same.convert("RGB")).transpose(2, 0, 1)).all()
    (root / "images" / "c").mkdir()
    (root / "images" / "a" / "2.jpg").rename(root / "images" / "c" / "2.jpg")  # still of one folder, as "b/2.jpg" is
    assert open_boxes(root).counts == {"image is missing": 1}


def test_splits_of_coco_files(tmp_path: Path) -> None:
    for split, images in (("train2017", "train2017"), ("val2017", "val2017")):
        coco(tmp_path, images=images, file=f"annotations/instances_{split}.json")
        (tmp_path / "annotations" / f"captions_{split}.json").write_text("{}")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    opened = open_boxes(tmp_path)
    assert opened.test is not None
    assert (len(opened.train), len(opened.test)) == (5, 5)
    assert told(opened, "passed over: 1")
    assert "train2017" in str(opened.train.images.source.source.paths[0])  # type: ignore[attr-defined]
    (tmp_path / "annotations" / "instances_train2017.json").unlink()
    coco(tmp_path, images="test2017", file="annotations/instances_test2017.json")
    with pytest.raises(SensoriumError, match="no training annotations"):
        open_boxes(tmp_path)
    for name in ("a.json", "b.json"):
        coco(tmp_path / "several", file=name)
    with pytest.raises(SensoriumError, match=r"which COCO file to use: a\.json, b\.json"):
        open_boxes(tmp_path / "several")


# -- YOLO: which text is of which picture, and which split --


def test_same_stems_in_different_folders_and_cases(tmp_path: Path) -> None:
    for camera, center in (("a", 0.25), ("b", 0.75)):
        for name in ("IMG.JPG", "x.y.jpeg"):
            pic(tmp_path / "Images" / camera / name)
        (tmp_path / "Labels" / camera).mkdir(parents=True)
        (tmp_path / "Labels" / camera / "img.TXT").write_text(f"0 {center} 0.5 0.2 0.2\n")
        (tmp_path / "Labels" / camera / "x.y.txt").write_text(f"0 {center} 0.5 0.2 0.2\n")
    opened = open_boxes(tmp_path, test=tmp_path)
    assert len(opened.train.boxes) == 4
    centers = {name: box[[0, 2]].mean() / 64 for name, box in zip(opened.train.names, opened.train.boxes, strict=True)}
    assert {name.split("/")[1]: round(float(center), 2) for name, center in centers.items()} == {"a": 0.25, "b": 0.75}


def test_pictures_and_texts_without_each_other_are_told(tmp_path: Path) -> None:
    root = yolo(tmp_path, "0 0.5 0.5 0.2 0.2\n")
    pic(root / "images" / "lone.jpg")
    pic(root / "images" / "003.png")  # beside 003.jpg
    pic(root / "masks" / "001.png")
    pic(root / ".thumbnails" / "001.png")
    (root / "labels" / "orphan.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "labels" / "README.txt").write_text("How to read this\n")
    (root / "labels" / "classes.txt").write_text("cat\ndog\n")
    opened = open_boxes(root)
    assert totals(opened) == (7, 6)
    assert opened.counts == {"label file without a picture": 1}
    assert told(opened, "1 of 7 train pictures has no label file")
    assert told(opened, "1 label file is of several pictures", "003.txt")
    assert told(opened, "1 picture is in folders without label files")


@pytest.mark.parametrize(
    "yaml",
    [
        "train: pictures/first\nval: pictures/second\n",
        "path: .\ntrain: ./pictures/first/\nval: [pictures/second]\n",
        "path: ../nowhere/set\ntrain: pictures/first\nval: pictures/second\n",
        "train: ../set/pictures/first\nval: ../set/pictures/second\n",
        "train: C:\\sets\\pictures\\first\nval: C:\\sets\\pictures\\second\n",
        "train: /content/set/pictures/first\nval: /content/set/pictures/second\n",
        "train: first.list\nval: second.list\n",
        "train: {here}/pictures/first\nval: {here}/pictures/second\n",
        "path: {here}\ntrain: pictures/first\nvalid: pictures/second\n",
    ],
)
def test_splits_of_data_yaml(tmp_path: Path, yaml: str) -> None:
    root = tmp_path / "set"
    for split, count in (("first", 4), ("second", 3)):
        for i in range(count):
            pic(root / "pictures" / split / f"{i}.jpg")
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        lines = "".join(f"data\\pictures\\{split}\\{i}.jpg\n" for i in range(count))
        (root / f"{split}.list").write_text(lines)
    (root / "data.yaml").write_text(f"names: [cat]\n{yaml.format(here=root)}")
    opened = open_boxes(root)
    assert opened.test is not None
    assert (len(opened.train.boxes), len(opened.test.boxes)) == (4, 3)
    assert told(opened, "validation set is used")
    assert open_boxes(root / "data.yaml").test is not None


def test_one_folder_as_both_sets_is_not_tested_on(tmp_path: Path) -> None:
    root = yolo(tmp_path, "0 0.5 0.5 0.2 0.2\n", "names: [cat]\ntrain: images\nval: images\n")
    opened = open_boxes(root)
    assert opened.test is not None
    assert (len(opened.train), len(opened.test)) == (4, 1)
    assert told(opened, "val pictures include all training pictures")


def test_lists_of_darknet(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set", "0 0.5 0.5 0.2 0.2\n", "")
    for i in range(5):
        (root / "labels" / f"{i:03}.txt").rename(root / "images" / f"{i:03}.txt")
    (root / "labels").rmdir()
    (root / "images").rename(root / "obj_train_data")
    (root / "obj.names").write_text("cat\nhot dog\n")
    (root / "obj.data").write_text(
        "classes = 2\ntrain = data/train.txt\nvalid = data/test.txt\nnames = data/obj.names\n"
    )
    (root / "train.txt").write_text("".join(f"data/obj_train_data/{i:03}.jpg\n" for i in (0, 1, 2, 9)))
    (root / "test.txt").write_text("".join(f"data/obj_train_data/{i:03}.jpg\n" for i in (2, 3, 4)))
    for given in (root, root / "obj.data"):
        opened = open_boxes(given)
        assert opened.train.classes == ("cat", "hot dog")
        assert opened.test is not None
        assert (len(opened.train), len(opened.test)) == (2, 3)
        assert opened.counts == {"image is missing": 1}
        assert told(opened, "1 training picture is also a", "not trained on")
    (root / "obj.data").unlink()
    (root / "train.txt").unlink()
    opened = open_boxes(root)
    assert (len(opened.train), opened.counts) == (2, {})  # without the test list's three


def test_test_data_alone_are_not_trained_on(tmp_path: Path) -> None:
    for split in ("valid", "test"):
        yolo(tmp_path / split, "0 0.5 0.5 0.2 0.2\n", "")
    with pytest.raises(SensoriumError, match="no training images; there are test, val"):
        open_boxes(tmp_path)
    yolo(tmp_path / "train", "0 0.5 0.5 0.2 0.2\n", "")
    opened = open_boxes(tmp_path)
    assert opened.test is not None
    assert (len(opened.train), len(opened.test)) == (5, 5)
    for file in (tmp_path / "test" / "labels").iterdir():
        file.unlink()
    opened = open_boxes(tmp_path)
    assert told(opened, "5 test pictures have no label files")
    assert told(opened, "validation set is used")


def test_a_wrapper_folder_is_stepped_into(tmp_path: Path) -> None:
    yolo(tmp_path / "unzipped" / "set", "0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "__MACOSX").mkdir()
    assert totals(open_boxes(tmp_path)) == (5, 5)


def test_a_second_folder_without_names_has_those_of_the_first(tmp_path: Path) -> None:
    first = yolo(tmp_path / "a", "1 0.5 0.5 0.2 0.2\n")
    second = yolo(tmp_path / "b", "1 0.5 0.5 0.2 0.2\n", "")
    opened = open_boxes(first, test=second)
    assert opened.test is not None
    assert opened.test.labels.tolist() == [1] * 5
    assert not opened.counts


# -- Pascal VOC --


def voc(name: str, box: str = "<xmin>6</xmin><ymin>7</ymin><xmax>25</xmax><ymax>21</ymax>", size: str = "") -> str:
    return f"<annotation><filename>{name}</filename>{size}<object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"


def test_voc_as_other_tools_write_it(tmp_path: Path) -> None:
    for i in range(4):
        pic(tmp_path / "JPEGImages" / f"{i}.JPG")
        pic(tmp_path / "SegmentationClass" / f"{i}.png", (64, 48))
    (tmp_path / "annotations" / "xmls").mkdir(parents=True)
    (tmp_path / "annotations" / "trimaps").mkdir()
    pic(tmp_path / "annotations" / "trimaps" / "0.png")
    floats = "<xmin>6.0</xmin><ymin> 7 </ymin><xmax>2.5e1</xmax><ymax>21.00</ymax>"
    texts = [
        voc("0.jpg"),
        voc("C:\\x\\1.jpg", floats, "<size><width>0</width><height>0</height></size>"),
        "\ufeff" + voc("2.jpg", size="<size><width>64.0</width><height>48</height></size>"),
        '<?xml version="1.0" encoding="UTF-16"?>' + voc("3.jpg"),
    ]
    for i, text in enumerate(texts):
        encoding = "utf-16" if i == 3 else "utf-8"
        (tmp_path / "annotations" / "xmls" / f"{i}.xml").write_text(text, encoding=encoding)
    opened = open_boxes(tmp_path, test=tmp_path)
    assert (len(opened.train), opened.counts) == (4, {})
    assert opened.train.names == [f"{i}.JPG" for i in range(4)]
    assert (opened.train.boxes == [5, 6, 25, 21]).all()


def test_voc_pictures_of_one_stem_are_told_apart(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        pic(tmp_path / name)
    (tmp_path / "a.xml").write_text(voc("a.png"))
    (tmp_path / "b.xml").write_text(voc("b.png"))
    opened = open_boxes(tmp_path, test=tmp_path)
    assert opened.train.names == ["a.png", "b.png"]
    assert told(opened, "1 picture has no annotation that is used, the first is a.jpg")


def test_voc_lists(tmp_path: Path) -> None:
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    for i in range(6):
        pic(tmp_path / "JPEGImages" / f"{i}.jpg")
        (tmp_path / "Annotations" / f"{i}.xml").write_text(voc(f"{i}.jpg"))
    (lists / "test.txt").write_bytes("4\r\n5.jpg\r\n".encode("utf-16"))
    opened = open_boxes(tmp_path)
    assert opened.test is not None
    assert (opened.train.names, opened.test.names) == (["0.jpg", "1.jpg", "2.jpg", "3.jpg"], ["4.jpg", "5.jpg"])
    (lists / "trainval.txt").write_text("0\n1 -1\n2\n4\n77\n")
    opened = open_boxes(tmp_path)
    assert opened.train.names == ["0.jpg", "1.jpg", "2.jpg"]
    assert told(opened, "1 name in trainval.txt has no annotation, the first is 77")
    assert told(opened, "1 annotation is in none of the lists")


def test_xml_of_other_kinds_leaves_the_texts_to_be_read(tmp_path: Path) -> None:
    root = yolo(tmp_path, "0 0.5 0.5 0.2 0.2\n")
    (root / "annotations.xml").write_text("<annotations><image/></annotations>")
    opened = open_boxes(root)
    assert (opened.layout, totals(opened)) == ("YOLO text", (5, 5))
    assert told(opened, "1 XML file is no annotation")


def test_json_of_other_kinds_leaves_the_texts_to_be_read(tmp_path: Path) -> None:
    root = yolo(tmp_path, "0 0.5 0.5 0.2 0.2\n")
    (root / "train.json").write_text('{"lr": 1}')
    opened = open_boxes(root)
    assert (opened.layout, totals(opened)) == ("YOLO text", (5, 5))
    assert told(opened, "train.json", "passed over")
    for file in (root / "labels").iterdir():
        file.unlink()
    with pytest.raises(SensoriumError, match="no list 'images'"):
        open_boxes(root)


def test_pictures_of_a_given_test_set_are_not_trained_on(tmp_path: Path) -> None:
    root = yolo(tmp_path / "all", "0 0.5 0.5 0.2 0.2\n")
    part = yolo(tmp_path / "part", "0 0.5 0.5 0.2 0.2\n", count=2)
    for file in (part / "images").iterdir():
        file.unlink()
        file.symlink_to(root / "images" / file.name)
    opened = open_boxes(root, test=part)
    assert opened.test is not None
    assert (len(opened.train), len(opened.test)) == (3, 2)
    assert told(opened, "2 training pictures are also test pictures")


def test_a_folder_around_the_data_is_never_walked(tmp_path: Path) -> None:
    outside = tmp_path / "other"
    pic(outside / "9.jpg")
    root = yolo(tmp_path / "set", "0 0.5 0.5 0.2 0.2\n")
    for said in ("/", "..", "../..", str(tmp_path), "\\\\"):
        (root / "data.yaml").write_text(f"names: [cat]\ntrain: {said}\n")
        assert totals(open_boxes(root)) == (5, 5), said
        (root / "data.yaml").write_text(f"names: [cat]\npath: {said}\ntrain: images\n")
        assert totals(open_boxes(root)) == (5, 5), said
    (tmp_path / "secret.txt").write_text("secret\n")
    (root / "data.yaml").write_text(f"names: {tmp_path}/secret.txt\n")
    with pytest.raises(SensoriumError, match="outside the folder"):
        open_boxes(root)


def test_why_nothing_was_found_is_said(tmp_path: Path) -> None:
    root = coco(tmp_path / "a", change=lambda stored: stored.pop("categories"))
    with pytest.raises(SensoriumError, match=r"has no boxes\. .*annotations\.json: .* no list 'categories'"):
        open_boxes(root)
    (root / "annotations.json").write_text('{"images": [')
    with pytest.raises(SensoriumError, match="not readable as JSON"):
        open_boxes(root)
    pic(tmp_path / "b" / "1.jpg")
    (tmp_path / "b" / "1.txt").write_text("a caption of a picture\n")
    with pytest.raises(SensoriumError, match=r"no box has a class.*'a' is not a class number"):
        open_boxes(tmp_path / "b")
    assert told(open_boxes(yolo(tmp_path / "c", "1 20 30 40 50\n")), "are they pixels?")
