"""Boxes as other tools write them: each input that once went wrong, and its siblings, give the right values."""

import time
from pathlib import Path

import numpy as np
import pytest
from box_cases import BOX, close, coco, pic, told, totals, yolo
from PIL import Image

from sensorium.base import memory
from sensorium.data.boxes.cache import cache_boxes
from sensorium.data.boxes.open import open_boxes
from sensorium.data.boxes.yolo_config import parse_yaml
from sensorium.errors import SensoriumError

# -- 05: poses and saved predictions --


@pytest.mark.parametrize(
    ("line", "yaml"),
    [
        ("0 0.5 0.5 0.2 0.2 0.45 0.45 2 0.55 0.45 2 0.55 0.55 2 0.45 0.55 2\n", "kpt_shape: [4, 3]\nnames: [valve]\n"),
        ("0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 0.45 0.55 0.55 0.45 0.55 0.5 0.5\n", "kpt_shape: [5, 2]\nnames: [face]\n"),
        ("0 0.5 0.5 0.2 0.2 0.45 0.45 2 0.93\n", "kpt_shape: ['1', '3']\nnames: [hand]\n"),  # with its confidence
        ("0 0.5 0.5 0.2 0.2 0.45 0.45 2 0.55 0.45 1\n", "names: [hand]\n"),  # visibilities tell
        ("0 0.5 0.5 0.2 0.2 0.91 12\n", "names: [cat]\n"),
        ("0 0.5 0.5 0.2 0.2 0.91 1\n", "names: [cat]\n"),
        ("0 0.5 0.5 0.2 0.2 0.91\n", "names: [cat]\n"),
        ("0 0.5 0.5 0.2 0.2\n", "kpt_shape: [5, 2]\nnames: [face]\n"),
    ],
)  # fmt: skip
def test_05_pose_labels_and_tracked_predictions_are_boxes(tmp_path: Path, line: str, yaml: str) -> None:
    opened = open_boxes(yolo(tmp_path, line, yaml))
    assert totals(opened) == (5, 5)
    assert not opened.counts
    assert close(opened.train.boxes[:1], BOX)
    assert not opened.train.masked
    assert told(opened, "5 lines", "not used") == (len(line.split()) > 5)


@pytest.mark.parametrize(
    ("line", "points"),
    [
        ("0 0.1 0.1 0.9 0.1 0.9 0.9", 3),
        ("0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9", 4),  # an oriented box
        ("0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9 0.77", 4),  # a saved prediction
        ("0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9 0.77 7", 4),  # and its track
        ("0 0.1 0.1 0.9 0.1 0.9 1", 3),  # no box has its left edge there
    ],
)
def test_polygons_are_still_polygons(tmp_path: Path, line: str, points: int) -> None:
    opened = open_boxes(yolo(tmp_path, line))
    assert opened.train.outlines is not None
    assert not opened.counts
    assert opened.train.outlines[0] is not None
    assert len(opened.train.outlines[0][0]) == 2 * points
    assert abs(opened.train.boxes[0] - [6.4, 4.8, 57.6, 48 if line.endswith(" 1") else 43.2]).max() < 1e-4


def test_lines_that_are_no_boxes_are_counted(tmp_path: Path) -> None:
    text = "0 0.5 0.5 0.2 0.2\n0 .1 .1 .9 .1 .9 .9\n0 .1 .1 .9 .1 .9 .9 .5\n0 1 2\n0.5 1 2 3 4\n-1 .5 .5 .2 .2\n0 a b c d\n"
    opened = open_boxes(yolo(tmp_path, text, count=1))
    assert opened.counts == {"line is not a box": 5}
    (tmp_path / "data.yaml").write_text("names: [a]\nkpt_shape: [7, 2]\n")
    with pytest.raises(SensoriumError, match="kpt_shape"):
        (tmp_path / "data.yaml").write_text("names: [a]\nkpt_shape: [7]\n")
        open_boxes(tmp_path)


# -- 07: numbers as other tools write them --


@pytest.mark.parametrize(
    "line",
    [
        "1.0 0.5 0.5 0.2 0.2",
        "1.000000e+00 5.000000e-01 5.000000e-01 2.000000e-01 2.000000e-01",
        "1,0.5,0.5,0.2,0.2",
        "1, 0.5, 0.5, 0.2, 0.2",
        "1;0.5;0.5;0.2;0.2",
        "1\t0.5\t0.5\t0.2\t0.2\t",
        "1 0,5 0,5 0,2 0,2",
        "1;0,5;0,5;0,2;0,2",
        "1 .5 +.5 0.2 0.2\r\n\r\n",
        "dog 0.5 0.5 0.2 0.2",
        "\ufeff1 0.5 0.5 0.2 0.2",
        "1 0.5 0.5 0.2 0.2\r",
    ],
)
def test_07_yolo_float_class_and_separators(tmp_path: Path, line: str) -> None:
    opened = open_boxes(yolo(tmp_path, line))
    assert (totals(opened), opened.counts) == ((5, 5), {})
    assert close(opened.train.boxes[:1], BOX)
    assert set(opened.train.labels.tolist()) == {1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-32"])
def test_label_files_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    opened = open_boxes(yolo(tmp_path, "1 0.5 0.5 0.2 0.2\n".encode(encoding)))
    assert (totals(opened), opened.counts) == ((5, 5), {})


def test_numbers_that_are_none(tmp_path: Path) -> None:
    opened = open_boxes(yolo(tmp_path, "1_0 .5 .5 .2 .2\n0 nan .5 .2 .2\n0 .5 .5 inf .2\n0 .5 .5 1e999 .2\n", count=1))
    assert opened.counts == {"line is not a box": 1, "box not finite": 3}


# -- 09: YAML of others --

BOMB = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [*{chr(97 + i)}, *{chr(97 + i)}, *{chr(97 + i)}, *{chr(97 + i)}]}}\n" for i in range(24)
)  # fmt: skip


def test_09_yolo_yaml_of_other_tools(tmp_path: Path) -> None:
    line = "0 0.5 0.5 0.4 0.4\n"
    root = yolo(tmp_path / "tags", line)
    (root / "args.yaml").write_text('lr: !!python/object/apply:builtins.float ["0.1"]\nnames: {')
    (root / "bad.yaml").write_bytes(b"\x00\x01names: [")
    assert open_boxes(root).train.classes == ("cat", "dog")
    for i, (yaml, names) in enumerate(
        [
            ('names:\n  "0": cat\n  "1": dog\n', ("cat", "dog")),
            ("names:\n  1: dog\n  0: cat\n", ("cat", "dog")),
            ("names: [yes, no, 010, 1e3, ~, 2020-01-01]\n", ("yes", "no", "010", "1e3", "~", "2020-01-01")),
            ("names: !!set {cat, dog}\nnc: 3\ntrain: images\n", None),
            ("names: cat, dog\n", ("cat", "dog")),
            ("names: sub/classes.lst\n", ("cat", "hot dog")),
            ("nc: 3\ntrain: images\n", ("0", "1", "2")),
            ("nc: 1\nnames: ['cat', 'dog']\n", ("cat", "dog")),
            (f"{BOMB}names: [cat, dog]\n", ("cat", "dog")),
            ("names: !!python/tuple [cat, dog]\n", ("cat", "dog")),
        ]
    ):
        root = yolo(tmp_path / str(i), line, yaml)
        (root / "sub").mkdir()
        (root / "sub" / "classes.lst").write_text("cat\r\nhot dog\r\n", newline="")
        if names is None:
            with pytest.raises(SensoriumError, match="must number the classes"):
                open_boxes(root)
        else:
            assert open_boxes(root).train.classes == names, yaml


@pytest.mark.parametrize(
    "yaml",
    [
        BOMB,
        "a: &a\n  b: *a\nnames: *a\n",
        "[" * 3000,
        "{a: " * 3000,
        "- " * 20_000,
        "? " * 3000,
        "a: !<!" + "x" * 5000,
        "%YAML 9.9\n---\na: b\n",
        "--- a\n--- b\n",
        "a: b: c\n",
        "&a " * 2000,
        "\t\tx",
        "'" * 3001,
        "x" * 900_000,
        "a: " + "b" * 2_000_000,
    ],
)
def test_a_yaml_bomb_ends_in_a_moment_and_one_line(tmp_path: Path, yaml: str) -> None:
    (tmp_path / "a.yaml").write_text(yaml)
    began, said = time.process_time(), ""
    try:
        assert isinstance(parse_yaml(tmp_path / "a.yaml"), dict)
    except SensoriumError as error:
        said = str(error)
    assert not said or ("a.yaml" in said and len(said) < 500 and said.isprintable())
    assert time.process_time() - began < 5
    assert len(BOMB) < 2000


# -- COCO's numbers --


def test_coco_numbers_as_text_and_boxes_as_objects(tmp_path: Path) -> None:
    def change(stored: dict) -> None:
        rows = stored["annotations"]
        for row in stored["images"]:
            row["id"] = str(row["id"])
        rows[0] |= {"bbox": ["5", "6.0", "20", "15"], "area": "300", "iscrowd": "0"}
        rows[1] |= {"bbox": {"x": 5, "y": 6, "width": 20, "height": 15}, "category_id": "1"}
        rows[2] |= {"bbox": None, "segmentation": [[5, 6, 25, 6, 25, 21, 5, 21]]}
        rows[3] |= {"bbox": {"xmin": 5, "ymin": 6, "xmax": 25, "ymax": 21}, "image_id": 4.0}
        del rows[4]["iscrowd"], rows[4]["area"], rows[4]["id"]

    opened = open_boxes(coco(tmp_path, change=change), test=tmp_path)
    assert (opened.train.boxes == [5, 6, 25, 21]).all()
    assert opened.train.ids == [1, 2, 3, 4, 5]
    assert (len(opened.train.boxes), opened.train.areas.tolist()) == (5, [300.0] * 5)
    assert not opened.train.crowd.any()
    assert opened.counts == {"box that is missing, taken from its outline": 2}


def test_coco_entries_that_fit_nothing_are_counted(tmp_path: Path) -> None:
    def change(stored: dict) -> None:
        row = stored["annotations"][0]
        stored["annotations"] += [
            dict(row),  # given twice
            row | {"id": 1, "bbox": [1, 1, 5, 5]},  # another object under the same id
            row | {"id": 7, "image_id": 99},
            row | {"id": 8, "category_id": 99},
            row | {"id": 9, "bbox": None},
            row | {"id": 10, "bbox": {"a": 1}},
        ]
        stored["images"].append({"id": 50, "file_name": "001.jpg", "width": 64, "height": 48})
        stored["annotations"].append(row | {"id": 11, "image_id": 50, "bbox": [30, 30, 4, 4]})

    opened = open_boxes(coco(tmp_path, change=change), test=tmp_path)
    assert opened.counts == {
        "annotation that is given twice": 2,
        "annotation of an unknown image": 2,
        "box of an unknown class": 2,
        "annotation without a box": 4,
        "image entry of the same file as another; their boxes are joined": 2,
    }
    assert opened.train.truth(0)["boxes"].tolist() == [[5, 6, 25, 21], [1, 1, 6, 6], [30, 30, 34, 34]]


def test_coco_boxes_in_fractions(tmp_path: Path) -> None:
    def change(stored: dict) -> None:
        for row in stored["annotations"]:
            row["bbox"] = [0.4, 0.4, 0.2, 0.2]

    opened = open_boxes(coco(tmp_path, change=change))
    assert close(opened.train.boxes[:1], BOX)
    assert told(opened, "fractions")


# -- 12: EXIF orientation --


@pytest.mark.parametrize("turn", [3, 6, 8, 5])
def test_12_exif_size_of_the_stored_pixels(tmp_path: Path, turn: int) -> None:
    root = coco(tmp_path / "phone", turn=turn)
    opened = open_boxes(root)
    assert (totals(opened), opened.counts) == ((5, 5), {})
    if turn != 3:
        assert told(opened, "5 pictures", "without their EXIF orientation")
        with Image.open(root / "images" / f"{opened.train.ids[0]:03}.jpg") as stored:
            assert (opened.train[0]["image"].numpy() == np.asarray(stored).transpose(2, 0, 1)).all()
    else:
        assert told(opened, "5 pictures are turned upright")
    cached = cache_boxes(opened.train, 64, tmp_path / "cache")
    assert cached.inner[0].tolist() == [48, 64]
    assert opened.train.images.header(0)[:2] == (64, 48)


def test_exif_size_of_the_upright_picture_is_turned(tmp_path: Path) -> None:
    opened = open_boxes(coco(tmp_path, size=(48, 64), turn=6))
    assert (totals(opened), opened.counts) == ((5, 5), {})
    assert told(opened, "5 pictures are turned upright")
    assert opened.train[0]["image"].shape == (3, 48, 64)
    pic(tmp_path / "images" / "001.jpg", (48, 64), 1)
    swapped = open_boxes(tmp_path)
    assert swapped.counts == {"image of another size than its annotation says": 1}
    assert "exchanged" in swapped.skipped[0].reason


def test_pictures_whose_size_tells_nothing_are_in_the_frame_of_the_others(tmp_path: Path) -> None:
    def change(stored: dict) -> None:
        del stored["images"][0]["width"]

    coco(tmp_path, change=change, turn=6)
    pic(tmp_path / "images" / "001.jpg", (64, 48), 1, turn=3)
    opened = open_boxes(tmp_path, test=tmp_path)
    assert told(opened, "5 pictures are used as their pixels are stored")
    one = np.asarray(Image.open(tmp_path / "images" / "001.jpg")).transpose(2, 0, 1)
    assert (opened.train[0]["image"].numpy() == one).all()


def test_damaged_exif_is_no_damaged_picture(tmp_path: Path) -> None:
    root = coco(tmp_path)
    Image.new("RGB", (64, 48)).save(root / "images" / "001.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert totals(open_boxes(root)) == (5, 5)


# -- 75: memory --


def test_75_masks_are_drawn_at_the_trained_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (3000, 3000)).save(tmp_path / "images" / "0.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text(
        "".join(f"0 0.1 0.1 0.9 0.1 0.9 {0.9 - i / 1e5:.5f}\n" for i in range(2000))
    )
    opened = open_boxes(tmp_path, test=tmp_path)
    monkeypatch.setattr(memory, "available_memory", lambda: 4 << 30)
    with pytest.raises(SensoriumError, match=r"0\.png: 2,000 masks of 3000 x 3000 pixels: needs 16\.8 GiB"):
        opened.train[0]
    cached = cache_boxes(opened.train, 64, tmp_path / "cache")
    masks = cached.take(np.array([0]), ["masks"])["masks"][0]
    assert masks.shape == (2000, 64, 64)
    assert 0.28 < masks[0].float().mean() < 0.36  # half of 0.8 x 0.8
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 20)
    with pytest.raises(SensoriumError, match="masks of 64 x 64 pixels"):
        cached.take(np.array([0]), ["masks"])


def test_masks_drawn_small_are_those_drawn_large(tmp_path: Path) -> None:
    from sensorium.data.boxes.masks import drawn, outline_of

    size = (60, 90)  # height and width
    runs = np.zeros(size, bool)
    runs[7:40, 20:70] = True
    flat = runs.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [1 - int(flat[-1])]])))
    said = [
        [[20, 7, 70, 7, 70, 40, 20, 40]],
        {"size": [60, "90"], "counts": np.diff([0, *edges.tolist()]).tolist()},
        None,
    ]
    outlines = [outline_of(one, (90, 60)) if one else None for one in said]
    boxes = np.array([[20, 7, 70, 40]] * 3, np.float32)
    for h, w in ((20, 30), (31, 47), (60, 90)):
        small = drawn(outlines, boxes, size, (h, w))
        for mask in small:
            assert abs(mask.mean() - runs.mean()) < 0.05
    assert (drawn(outlines, boxes, size)[1] == runs).all()
    assert (drawn(outlines, boxes, size)[2] == runs).all()


def test_outlines_that_would_take_forever_are_refused() -> None:
    from sensorium.data.boxes.masks import outline_of

    zigzag = np.tile([0.0, 0.0, 1.0, 1.0], 100_000).tolist()
    assert outline_of([zigzag], (3000, 3000), relative=True) is None
    circle = np.stack([np.cos(np.linspace(0, 6, 200_000)), np.sin(np.linspace(0, 6, 200_000))], 1) * 0.4 + 0.5
    assert outline_of([circle.ravel().tolist()], (3000, 3000), relative=True) is not None
    assert outline_of([[1, 2, 3, 4, 5]], (30, 30)) is None  # an odd count
    assert outline_of([1, 2, 9, 2, 9, 9], (30, 30)) is not None  # without the outer list
    assert outline_of([[[1, 2], [9, 2], [9, 9]]], (30, 30)) is not None  # as points
    assert outline_of([["1", "2", "9", "2", "9", "9"]], (30, 30)) is not None


def test_very_many_boxes_on_one_picture(tmp_path: Path) -> None:
    pic(tmp_path / "0.jpg")
    (tmp_path / "0.txt").write_text(
        "".join(f"0 {0.4 + i / 1e5:.5f} 0.5 0.2 0.2\n" for i in range(20_000)) + "0 2 2 1 1\n" * 5_000
    )
    began = time.process_time()
    opened = open_boxes(tmp_path, test=tmp_path)
    assert len(opened.train.boxes) == 20_000
    assert opened.counts["box outside the image"] == 10_000
    assert time.process_time() - began < 20
