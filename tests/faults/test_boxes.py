"""Boxes as other tools write them: each input that once went wrong, and its siblings, give the right values."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensorium.base import memory
from sensorium.data.boxes.cache import cache_boxes
from sensorium.data.boxes.open import OpenedBoxes, open_boxes
from sensorium.data.boxes.yolo_config import parse_yaml
from sensorium.errors import SensoriumError

BOX = [25.6, 19.2, 38.4, 28.8]  # of "0.5 0.5 0.2 0.2" in 64 x 48 pixels


def pic(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0, turn: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    exif = Image.Exif()
    exif[0x0112] = turn
    more: dict[str, Any] = {} if turn == 1 else {"exif": exif.tobytes()}
    image.save(path, **more)


def yolo(root: Path, text: str | bytes, yaml: str = "names: [cat, dog]\n", count: int = 5) -> Path:
    for i in range(count):
        pic(root / "images" / f"{i:03}.jpg", seed=i)
        (root / "labels").mkdir(parents=True, exist_ok=True)
        (root / "labels" / f"{i:03}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    if yaml:
        (root / "data.yaml").write_text(yaml)
    return root


def coco(
    root: Path,
    name: Callable[[int], str] = lambda i: f"{i:03}.jpg",
    change: Callable[[dict], Any] = lambda stored: None,
    *,
    images: str = "images",
    file: str = "annotations.json",
    size: tuple[int, int] = (64, 48),
    turn: int = 1,
) -> Path:
    for i in range(1, 6):
        pic(root / images / f"{i:03}.jpg", size, i, turn)
    stored = {
        "images": [{"id": i, "file_name": name(i), "width": 64, "height": 48} for i in range(1, 6)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 6, 20, 15], "area": 300, "iscrowd": 0}
            for i in range(1, 6)
        ],
    }
    change(stored)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(stored))
    return root


def totals(opened: OpenedBoxes) -> tuple[int, int]:
    """Pictures and boxes of both sets."""
    parts = [part for part in (opened.train, opened.test) if part is not None]
    return sum(map(len, parts)), sum(len(part.boxes) for part in parts)


def close(boxes: np.ndarray, wanted: list[float]) -> bool:
    return boxes.shape == (1, 4) and bool(np.abs(boxes[0] - wanted).max() < 1e-4)


def told(opened: OpenedBoxes, *words: str) -> bool:
    return any(all(word in note for word in words) for note in opened.notes)


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
    (tmp_path / "labels" / "0.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n" * 2000)
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
    (tmp_path / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n" * 20_000 + "0 2 2 1 1\n" * 5_000)
    began = time.process_time()
    opened = open_boxes(tmp_path, test=tmp_path)
    assert len(opened.train.boxes) == 20_000
    assert opened.counts["box outside the image"] == 10_000
    assert time.process_time() - began < 20


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
    assert told(opened, "1 of 7 train pictures have no label file")
    assert told(opened, "1 label files are of several pictures", "003.txt")
    assert told(opened, "1 pictures are in folders without label files")


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
        assert told(opened, "1 training pictures are also", "not trained on")
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
    assert told(opened, "1 pictures have no annotation that is used, the first is a.jpg")


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
    assert told(opened, "1 names in trainval.txt have no annotation, the first is 77")
    assert told(opened, "1 annotations are in none of the lists")


def test_xml_of_other_kinds_leaves_the_texts_to_be_read(tmp_path: Path) -> None:
    root = yolo(tmp_path, "0 0.5 0.5 0.2 0.2\n")
    (root / "annotations.xml").write_text("<annotations><image/></annotations>")
    opened = open_boxes(root)
    assert (opened.layout, totals(opened)) == ("YOLO text", (5, 5))
    assert told(opened, "1 XML files are no annotations")


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
