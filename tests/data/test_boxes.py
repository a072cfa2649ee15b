"""Boxes: every layout gives the same, what is wrong is named and counted, views keep boxes on their objects."""

import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sensorium.base.draw import Draw
from sensorium.data.augment.boxes import BoxView, collate, to_original, train_box_views, without_crowd
from sensorium.data.boxes.masks import drawn, outline_of
from sensorium.data.boxes.open import open_boxes
from sensorium.data.boxes.yolo_lines import ordinary, row_of
from sensorium.data.images.decode import BadImage
from sensorium.data.scenes.boxes import open_scene_boxes
from sensorium.errors import SensoriumError

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "bccd"
CLASSES = ("cat", "dog")
SIZES = [(40, 60), (50, 50), (64, 32), (30, 45), (48, 48), (20, 70)]  # (height, width)
# Of each image: (class, x1, y1, x2, y2) in whole pixels.
TRUTH = [
    [(0, 3, 4, 20, 30), (1, 10, 5, 60, 40)],
    [],
    [(1, 0, 0, 32, 64)],
    [(0, 1, 2, 9, 8), (0, 20, 11, 44, 29)],
    [(1, 5, 6, 7, 9)],
    [(0, 30, 1, 69, 19)],
]


PLAIN = {"0", "2", "01", "0.5", ".25", "1e-2", "+1"}
WORDS = st.sampled_from(
    ["0", "2", "01", "0.5", ".25", "1e-2", "+1", "1.2.3", "-", "nan", "a", "1e999", "0,5", "1_0", "\u0663"]
)


@given(st.lists(st.lists(WORDS, min_size=5, max_size=6), max_size=4), st.sampled_from([" ", "\t", "  "]))
@settings(max_examples=300, deadline=None)
def test_ordinary_lines_of_yolo_read_together_are_what_they_are_one_by_one(rows: list[list[str]], between: str):
    lines = [between.join(row) for row in rows]
    found = ordinary(lines)
    if found is None:
        assert not all(re.fullmatch(r"[0-9]+", row[0]) and len(row) == 5 and set(row[1:]) <= PLAIN for row in rows)
        return
    for line, mine in zip(lines, found, strict=True):
        row = row_of(line, {})
        assert row.label == mine[0]
        np.testing.assert_array_equal(row.numbers, mine[1:])


def picture(i: int, folder: Path, name: str | None = None) -> Path:
    """Image i: its boxes painted, red for the first class, green for the second."""
    pixels = np.zeros((*SIZES[i], 3), np.uint8)
    for k, x1, y1, x2, y2 in TRUTH[i]:
        pixels[y1:y2, x1:x2, k] = 200
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"im_{i}.png")
    Image.fromarray(pixels).save(path)
    return path


def coco(rows: range = range(6)) -> dict:
    categories = [{"id": 17, "name": "cat"}, {"id": 90, "name": "dog"}]
    images = [{"id": 100 + i, "file_name": f"im_{i}.png", "height": SIZES[i][0], "width": SIZES[i][1]} for i in rows]
    boxes = [
        {
            "id": 1,
            "image_id": 100 + i,
            "category_id": categories[k]["id"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": 0,
        }
        for i in rows
        for k, x1, y1, x2, y2 in TRUTH[i]
    ]
    return {"images": images, "annotations": boxes, "categories": categories}


def voc(i: int) -> str:
    things = "".join(
        f"<object><name>{CLASSES[k]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for k, x1, y1, x2, y2 in TRUTH[i]
    )
    h, w = SIZES[i]
    return f"<annotation><filename>im_{i}.png</filename><size><width>{w}</width><height>{h}</height></size>{things}</annotation>"


def yolo(i: int) -> str:
    h, w = SIZES[i]
    return "".join(
        f"{k} {(x1 + x2) / 2 / w:.9f} {(y1 + y2) / 2 / h:.9f} {(x2 - x1) / w:.9f} {(y2 - y1) / h:.9f}\n"
        for k, x1, y1, x2, y2 in TRUTH[i]
    )


def layouts(root: Path) -> dict[str, Path]:
    """The six images in every layout, all as a training set but for the last two, which are the test set."""
    train, test = range(4), range(4, 6)
    made = {}
    for kind in ("coco folder", "coco tar", "coco beside", "voc lists", "voc beside", "yolo split", "yolo beside"):
        made[kind] = here = root / kind.replace(" ", "_")
        for split, rows in (("train", train), ("test", test)):
            where = {
                "coco folder": here / f"{split}2017",
                "coco tar": here / "unpacked",
                "coco beside": here / split,
                "voc lists": here / "JPEGImages",
                "voc beside": here / split,
                "yolo split": here / "images" / split,
                "yolo beside": here / split,
            }[kind]
            files = [picture(i, where) for i in rows]
            if kind == "coco folder":
                (here / "annotations").mkdir(exist_ok=True)
                (here / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(coco(rows)))
                (here / "annotations" / f"captions_{split}2017.json").write_text(json.dumps({"images": []}))
            elif kind == "coco tar":
                (here / f"instances_{split}.json").write_text(json.dumps(coco(rows)))
                with tarfile.open(here / f"images_{split}.tar", "w") as tar:
                    for file in files:
                        tar.add(file, file.name)
                        file.unlink()
            elif kind == "coco beside":
                (where / "_annotations.coco.json").write_text(json.dumps(coco(rows)))
            elif kind.startswith("voc"):
                place = here / "Annotations" if kind == "voc lists" else where
                place.mkdir(exist_ok=True)
                for i in rows:
                    (place / f"im_{i}.xml").write_text(voc(i))
                if kind == "voc lists":
                    (here / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
                    (here / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"im_{i}\n" for i in rows))
            else:
                place = here / "labels" / split if kind == "yolo split" else where
                place.mkdir(parents=True, exist_ok=True)
                for i in rows:
                    if TRUTH[i]:
                        (place / f"im_{i}.txt").write_text(yolo(i))
                if kind == "yolo split":
                    (here / "data.yaml").write_text("train: ../x\nnc: 2\nnames:\n  0: cat\n  1: dog\n")
                else:
                    (here / "classes.txt").write_text("cat\ndog\n")
    return made


def test_every_layout_gives_the_same(tmp_path: Path) -> None:
    for kind, path in layouts(tmp_path).items():
        opened = open_boxes(path)
        assert opened.train.classes == CLASSES, kind
        assert opened.layout == {"c": "COCO json", "v": "Pascal VOC", "y": "YOLO text"}[kind[0]]
        assert not opened.counts, kind
        none = "1 of 4 train pictures has no label file: it is taken to have no objects."
        assert opened.notes == ((none,) if kind.startswith("yolo") else ()), kind
        assert opened.test is not None
        for images, rows in ((opened.train, range(4)), (opened.test, range(4, 6))):
            assert len(images) == len(rows)
            assert [Path(name).name for name in images.names] == [f"im_{i}.png" for i in rows]
            for at, i in enumerate(rows):
                sample = images[at]
                assert sample["image"].shape == (3, *SIZES[i])
                assert sample["image"].dtype == torch.uint8
                assert (sample["boxes"].dtype, sample["labels"].dtype, sample["crowd"].dtype) == (torch.float32, torch.int64, torch.bool)  # fmt: skip
                want = torch.tensor([row[1:] for row in TRUTH[i]], dtype=torch.float32).reshape(-1, 4)
                torch.testing.assert_close(sample["boxes"], want, atol=1e-4, rtol=0)
                assert sample["labels"].tolist() == [row[0] for row in TRUTH[i]]
                assert sample["id"] == (100 + i if kind.startswith("coco") else at)
                assert torch.equal(sample["boxes"], images.truth(at)["boxes"])


def test_one_json_holds_out_a_fifth_and_a_second_path_is_the_test(tmp_path: Path) -> None:
    for i in range(6):
        picture(i, tmp_path / "images")
    (tmp_path / "all.json").write_text(json.dumps(coco()))
    opened = open_boxes(tmp_path / "all.json")
    assert opened.test is not None
    assert (len(opened.train), len(opened.test)) == (5, 1)
    assert "held out" in opened.notes[0]
    assert sorted([*opened.train.ids, *opened.test.ids]) == list(range(100, 106))
    assert sum(len(s.boxes) for s in (opened.train, opened.test)) == 7
    swapped = coco(range(4, 6))
    swapped["categories"].reverse()
    (tmp_path / "test.json").write_text(
        json.dumps(swapped | {"categories": [{"id": 90, "name": "dog"}, {"id": 17, "name": "bird"}]})
    )
    both = open_boxes(tmp_path / "all.json", test=tmp_path / "test.json")
    assert both.test is not None
    assert both.test.labels.tolist() == [1]
    assert both.counts == {"box of an unknown class": 1}
    assert "bird" in both.skipped[0].reason
    few = open_boxes(tmp_path / "all.json", limit=2)
    assert len(few.train) == 2
    again = open_boxes(tmp_path / "all.json", limit=2)
    assert few.train.ids == again.train.ids


def test_what_is_wrong_in_a_coco_file_is_named_and_counted(tmp_path: Path) -> None:
    stored = coco()
    for i in range(5):
        picture(i, tmp_path / "images")
    picture(0, tmp_path, "secret.png")
    bad = tmp_path / "images" / "im_4.png"
    bad.write_bytes(b"no picture")

    def box(values, image=100, category=17, **more):
        stored["annotations"].append({"image_id": image, "category_id": category, "bbox": values, **more})

    box([float("nan"), 1, 2, 3])
    box([1, 2, float("inf"), 3])
    box([1, 2, 10**400, 3])
    box([1, 2, -5, 3])
    box([1, 2, 0, 3])
    box([70, 2, 5, 5])
    box([50, 30, 500, 500], area=123.0, iscrowd=1)
    box([1, 2, 3, 4], category=18)
    box([1, 2, 3, 4], category=None)
    box([1, 2, 3, 4], image=999)
    box([1, 2, 3, 4], image=[1])
    box([1, 2, 3])
    box(None)
    box(["a", 2, 3, 4])
    stored["annotations"].append("nonsense")
    stored["images"] += [
        {"id": 200, "file_name": "../secret.png"},
        {"id": 201, "file_name": "gone.png"},
        {"id": 100, "file_name": "im_1.png"},
        {"id": 202, "file_name": 7},
        {"id": 203, "file_name": "x" * 5000},
        {"id": 204, "file_name": "a\0b.png"},
        3,
    ]
    stored["images"][2]["width"] = 33
    stored["images"][3]["width"] = -4  # says nothing: the file is believed
    stored["categories"] += [{"id": 17, "name": "twice"}, {"name": "none"}]
    (tmp_path / "all.json").write_text(json.dumps(stored))
    opened = open_boxes(tmp_path / "all.json", test=None)
    assert opened.test is not None
    assert opened.counts == {
        "box not finite": 4,
        "box without width or height": 2,
        "box outside the image": 1,
        "box cut to the image": 1,
        "box of an unknown class": 2,
        "annotation of an unknown image": 3,
        "annotation without a box": 2,
        "image is missing": 4,  # the last of the six, too
        "image cannot be read": 1,
        "image of another size than its annotation says": 1,
        "image entry without its own id and a file_name": 4,
        "category without its own id and a name": 2,
    }
    assert sum(opened.counts.values()) - 1 == len(opened.skipped)
    assert all(skip.file and skip.reason and skip.reason.isprintable() for skip in opened.skipped)
    every = [opened.train.truth(i) for i in range(len(opened.train))] + [
        opened.test.truth(i) for i in range(len(opened.test))
    ]
    assert sorted(row["id"] for row in every) == [100, 101, 103]
    first = next(row for row in every if row["id"] == 100)
    assert first["boxes"][-1].tolist() == [50, 30, 60, 40]
    assert first["crowd"].tolist() == [False, False, True]
    assert first["area"].tolist() == [17 * 26, 50 * 35, 123]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not readable as JSON"),
        (b"[1]", "no list 'images'"),
        (b"[" * 100_000, "not readable as JSON"),
        (b'{"images": [], "annotations": {}}', "no list 'annotations'"),
        (json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": [{"id": 1, "name": "x"}]}).encode(), "none of its images was found"),
        (json.dumps({"images": [], "annotations": [], "categories": []}).encode(), "no box has a class"),
        (json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}).encode(), "none of the train images"),
    ],
)  # fmt: skip
def test_useless_json_is_an_error(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "instances_train.json").write_bytes(content)
    with pytest.raises(SensoriumError, match=said):
        open_boxes(tmp_path / "instances_train.json")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="nothing at"):
        open_boxes(tmp_path / "none")
    with pytest.raises(SensoriumError, match=r"Looked for COCO .* Pascal VOC .* YOLO"):
        open_boxes(tmp_path)
    picture(0, tmp_path)
    with pytest.raises(SensoriumError, match="has no boxes in a known format"):
        open_boxes(tmp_path / "im_0.png")
    with pytest.raises(SensoriumError, match="at least 1"):
        open_boxes(tmp_path, limit=0)


BOMB = '<!DOCTYPE a [<!ENTITY a "' + "x" * 1000 + '">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 50}">' for i in range(8)
) + "]><annotation><filename>&i;</filename></annotation>"  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "document type"),
        ('<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation><filename>&f;</filename></annotation>', "document type"),
        ("<annotation><object>", "no element found"),
        ("", "no element found"),
        ("<a>" * 50_000, "no element found"),
        ("<a>&undefined;</a>", "undefined entity"),
        ("\0\1\2", "not well-formed"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "unknown encoding"),
    ],
)  # fmt: skip
def test_bad_xml_is_skipped_by_name(tmp_path: Path, text: str, said: str) -> None:
    for i in range(3):
        picture(i, tmp_path)
        (tmp_path / f"im_{i}.xml").write_text(voc(i))
    (tmp_path / "im_1.xml").write_text(text)
    opened = open_boxes(tmp_path)
    assert opened.counts == {"annotation cannot be read": 1}
    assert opened.skipped[0].file == "im_1.xml"
    assert said in opened.skipped[0].reason
    assert len(opened.train.boxes) + len(opened.test.boxes) == 3  # type: ignore[union-attr]


def test_voc_oddities(tmp_path: Path) -> None:
    picture(0, tmp_path, "photo.png")
    picture(2, tmp_path)
    corner = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    things = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult>{corner.format(*box)}</object>"
        for name, hard, box in [
            ("cat", 1, (0, 0, 10, 10)),  # counted from 0
            (" dog ", 0, (1.0, 1.0, 60.0, 40.0)),
            ("dog", 0, (30, 10, 20, 20)),
            ("", 0, (1, 1, 5, 5)),
            ("dog", 0, ("x", "", "1e999", 5)),
        ]
    )
    # The size says nothing and the name leads to the picture, for the annotation is called otherwise.
    (tmp_path / "a.xml").write_text(f"<annotation><filename>photo.png</filename><size><width>0</width></size>{things}<object/></annotation>")  # fmt: skip
    (tmp_path / "b.xml").write_text("<annotation><filename>other.png</filename></annotation>")
    (tmp_path / "im_2.xml").write_text(voc(2))
    opened = open_boxes(tmp_path, test=tmp_path)
    assert opened.counts == {
        "box without width or height": 2,
        "box of an unknown class": 2,
        "box not finite": 4,
        "image is missing": 2,
    }
    assert opened.train.classes == CLASSES
    truth = opened.train.truth(0)
    assert truth["boxes"].tolist() == [[0, 0, 10, 10], [0, 0, 60, 40]]
    assert truth["crowd"].tolist() == [True, False]
    assert "1 box is marked difficult" in opened.notes[0]


def test_yolo_oddities(tmp_path: Path) -> None:
    for i in range(3):
        picture(i, tmp_path / "train" / "images")
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "im_0.txt").write_text(
        "0 0.5 0.5 0.2 0.2\n\n7 0.5 0.5 1.2 0.2\n0 0.1 0.2 0.3 0.2 0.3 0.4\n1 0.5 0.5 0 0.1\n0 nan 0.5 0.1 0.1\n"
        "x 0.5 0.5 0.1 0.1\n0 0.5 0.5\n0 0.5 0.5 0.1 0.1 0.9\n99999999999 0.1 0.1 0.1 0.1\n0 1.5 1.5 0.2 0.2\n0 a b c d\n"
    )
    opened = open_boxes(tmp_path, test=tmp_path)
    assert opened.train.classes == ("0", "1", "7")
    assert any("named by number" in note for note in opened.notes)
    assert opened.counts == {  # of both sets
        "line is not a box": 8,
        "box without width or height": 2,
        "box not finite": 2,
        "box outside the image": 2,
        "box cut to the image": 2,
    }
    truth = opened.train.truth(0)
    want = torch.tensor([[24.0, 16, 36, 24], [0, 16, 60, 24], [6, 8, 18, 16], [27, 18, 33, 22]])
    torch.testing.assert_close(truth["boxes"], want)
    assert truth["labels"].tolist() == [0, 2, 0, 0]
    assert len(opened.train) == 3  # pictures without a text, too
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    assert open_boxes(tmp_path).counts["box of an unknown class"] == 1  # 7; that of 1 is flat already
    for text, said in (("names: {0: a, 5: b}", "0, 1, 2"), ("names: [", "not readable as YAML")):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(SensoriumError, match=said):
            open_boxes(tmp_path)


def test_a_yaml_that_stands_for_more_than_memory_holds(tmp_path: Path) -> None:
    picture(0, tmp_path)
    (tmp_path / "im_0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "data.yaml").write_text("\n".join([*lines, "names: [*a11]"]))
    assert open_boxes(tmp_path, test=tmp_path).train.classes == ("0",)


def test_damaged_tars_and_images_that_end_early(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(4):
            tar.add(picture(i, tmp_path / "made"), f"deep/im_{i}.png")
    (tmp_path / "images.tar").write_bytes(buffer.getvalue()[:2600])  # within the second member
    (tmp_path / "all.json").write_text(json.dumps(coco(range(4))))
    opened = open_boxes(tmp_path / "all.json")
    assert opened.counts["image is missing"] >= 2
    assert opened.counts["tar is damaged"] == 1
    late = tmp_path / "late"
    file = picture(0, late)
    (late / "im_0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    whole = file.read_bytes()
    images = open_boxes(late, test=late).train
    file.write_bytes(whole[:-40])
    with pytest.raises(BadImage, match="im_0"):
        images[0]


@pytest.mark.skipif(not DATA.is_dir(), reason="the blood cells are not there (set SENSORIUM_DATA)")
def test_real_blood_cells() -> None:
    opened = open_boxes(DATA)
    assert opened.train.classes == ("RBC", "WBC", "Platelets")
    assert opened.test is not None
    assert (len(opened.train), len(opened.train.boxes)) == (205, 2804)
    assert (len(opened.test), len(opened.test.boxes)) == (87, 1137)
    assert np.bincount(opened.train.labels).tolist() == [2381, 214, 209]
    assert not opened.counts
    sample = opened.train[0]
    assert sample["image"].shape == (3, 480, 640)
    batch = train_box_views((0.5,) * 3, (0.25,) * 3, 256)([opened.train[i] for i in range(4)], Draw.seeded(0, 0, 4))
    assert max(batch["image"].shape[2:]) == 256
    assert all(len(b) for b in batch["boxes"])


# ---------------------------------------------------------------------------------------------------------------- views


def painted(h: int, w: int, boxes: list[tuple[int, int, int, int]], **more) -> dict:
    """A sample whose first box is red; black elsewhere."""
    image = torch.zeros(3, h, w, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes[:1]:
        image[0, y1:y2, x1:x2] = 255
    n = len(boxes)
    return {
        "image": image, "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.arange(n),
        "crowd": torch.zeros(n, dtype=torch.bool), "area": torch.ones(n), "id": 7, **more,
    }  # fmt: skip


def around(image: torch.Tensor) -> list[float]:
    """Edges of what is red."""
    y, x = torch.where(image[0].float() > 127)
    return [float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0, 0.999), min_size=11, max_size=11),
    st.sampled_from([(70, 100), (64, 64), (101, 37)]),
    st.integers(24, 150),
)
def test_boxes_stay_on_their_objects(numbers: list[float], shape: tuple[int, int], size: int) -> None:
    h, w = shape
    sample = painted(h, w, [(8, 12, 30, 40)])
    seen = BoxView(size, crop_p=0.7, scale=(0.2, 1.0), visible=0.5, flip_p=0.5)(sample, numbers)
    assert max(seen["image"].shape[1:]) == size
    assert len(seen["boxes"]) == len(seen["labels"]) == 1
    box = seen["boxes"][0]
    assert (box >= 0).all()
    assert (box <= torch.tensor([*seen["image"].shape[:0:-1]] * 2)).all()
    assert torch.tensor(around(seen["image"])).sub(box).abs().max() <= 1 + 0.5 * size / min(h, w)
    assert torch.equal(seen["original"], torch.tensor(shape))
    assert torch.equal(sample["boxes"], torch.tensor([[8.0, 12, 30, 40]]))


def test_crops_drop_what_is_hidden_and_keep_what_is_empty() -> None:
    view = BoxView(100, crop_p=1.0, scale=(0.25, 0.25), visible=0.5)
    sample = painted(100, 100, [(2, 2, 20, 20), (40, 40, 60, 60), (70, 70, 95, 95)])
    seen = view(sample, [0, 0, 0.5, 0, 0, *[0.5] * 6])  # the upper left quarter
    assert seen["labels"].tolist() == [0]
    assert seen["boxes"].tolist() == [[4, 4, 40, 40]]
    assert len(seen["area"]) == 1
    hidden = view(painted(100, 100, [(80, 80, 90, 90)]), [0, 0, 0.5, 0, 0, *[0.5] * 6])
    assert hidden["boxes"].tolist() == [[80, 80, 90, 90]]  # given up
    none = view(painted(100, 100, []), [0, 0, 0.5, 0, 0, *[0.5] * 6])
    assert none["boxes"].shape == (0, 4)


def test_batches_are_padded_and_found_boxes_return() -> None:
    samples = [painted(60, 90, [(10, 20, 40, 50)]), painted(50, 30, []), painted(90, 90, [(0, 0, 90, 90)])]
    view = BoxView(64)
    seen = [view(sample, [0.5] * 11) for sample in samples]
    batch = collate(seen, (0.5, 0.5, 0.5), (0.25, 0.5, 0.5), divisor=96)
    assert batch["image"].shape == (3, 3, 96, 96)
    assert batch["sizes"].tolist() == [[43, 64], [64, 38], [64, 64]]
    assert batch["original"].tolist() == [[60, 90], [50, 30], [90, 90]]
    assert batch["id"] == [7, 7, 7]
    assert batch["image"][0, :, 43:].eq(0).all()
    assert batch["image"][1, :, :, 38:].eq(0).all()
    assert batch["image"][2, 0, :64, :64].eq(2).all()
    assert batch["image"][2, 1, :64, :64].eq(-1).all()
    found = [{"boxes": b, "scores": torch.ones(len(b)), "labels": torch.zeros(len(b)).long()} for b in batch["boxes"]]
    for result, sample in zip(to_original(found, batch), samples, strict=True):
        torch.testing.assert_close(result["boxes"], sample["boxes"], atol=1e-4, rtol=0)
    tall = collate([BoxView(40)(painted(80, 40, []), [0.5] * 11)], (0.0,) * 3, (1.0,) * 3, divisor=16)
    assert tall["image"].shape == (1, 3, 48, 32)


def test_random_views_are_a_function_of_the_draw_and_of_each_sample() -> None:
    samples = [painted(60 + i, 90, [(10, 20, 40, 50), (3, 3, 9, 9)]) for i in range(4)]
    samples[1]["crowd"][1] = True
    views = train_box_views((0.5,) * 3, (0.25,) * 3, 64)
    whole = views(samples, Draw.seeded(3, 5, 4))
    again = views(samples, Draw.seeded(3, 5, 4))
    other = views(samples, Draw.seeded(3, 6, 4))
    half = views(samples[2:], Draw.seeded(3, 5, 4, 2, 4))
    assert torch.equal(whole["image"], again["image"])
    assert not torch.equal(whole["image"][..., :64, :64], other["image"][..., :64, :64])
    for a, b in zip(whole["boxes"][2:], half["boxes"], strict=True):
        assert torch.equal(a, b)
    h, w = half["image"].shape[2:]
    assert torch.equal(whole["image"][2:, :, :h, :w], half["image"])
    assert not any(c.any() for c in whole["crowd"])
    assert len(without_crowd(samples[1])["boxes"]) == 1
    with pytest.raises(ValueError, match="draw"):
        views(samples, None)


def test_colours_change_in_every_order() -> None:
    view = BoxView(16, jitter=(0.5, 0.5, 0.5, 0.2))
    image = torch.randint(256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sample = painted(16, 16, []) | {"image": image}
    seen = [view(sample, [0.5] * 6 + [0.9, 0.2, 0.8, 0.7, (i + 0.5) / 24])["image"] for i in range(24)]
    assert len({x.numpy().tobytes() for x in seen}) == 24
    assert torch.equal(view(sample, [0.5] * 11)["image"], image)


def painted_with_masks(h: int, w: int, seed: int) -> dict:
    """Three discs, each of a color of its own and nothing over another: what the mask must stay on."""
    rng = np.random.default_rng(seed)
    image, masks, boxes = np.zeros((3, h, w), np.uint8), np.zeros((3, h, w), bool), []
    y, x = np.mgrid[:h, :w]
    for k in range(3):
        free = (y - rng.integers(h)) ** 2 + (x - rng.integers(w)) ** 2 <= rng.integers(4, 9) ** 2
        masks[k] = free & ~masks[:k].any(0)
        masks[k] |= (y == k) & (x == k)  # never empty
        masks[:k, k, k] = False
        image[k][masks[k]] = 255
        at = np.argwhere(masks[k])
        boxes.append([at[:, 1].min(), at[:, 0].min(), at[:, 1].max() + 1, at[:, 0].max() + 1])
    columns = {"labels": torch.arange(3), "crowd": torch.zeros(3, dtype=torch.bool), "area": torch.ones(3)}
    boxed = {"image": torch.from_numpy(image), "boxes": torch.tensor(boxes, dtype=torch.float32)}
    return boxed | columns | {"masks": torch.from_numpy(masks), "id": seed}


def rim(mask: torch.Tensor) -> torch.Tensor:
    """Pixels within one of an edge."""
    near = [F.max_pool2d(one[None].float(), 3, 1, 1)[0] > 0 for one in (mask, ~mask)]
    return near[0] & near[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 0.999), min_size=11, max_size=11), st.integers(0, 50), st.sampled_from([24, 40, 61]))
def test_masks_stay_on_their_objects(numbers: list[float], seed: int, size: int) -> None:
    sample = painted_with_masks(40, 56, seed)
    seen = BoxView(size, crop_p=1.0, flip_p=0.5, visible=0.01)(sample, numbers)
    assert seen["masks"].shape == (len(seen["boxes"]), *seen["image"].shape[1:])
    assert seen["masks"].dtype == torch.bool
    for mask, box, label in zip(seen["masks"], seen["boxes"].tolist(), seen["labels"].tolist(), strict=True):
        bright = seen["image"][label] >= 128
        # nearest and antialiased resizing part at the rim alone
        assert not ((mask != bright) & ~rim(mask) & ~rim(bright)).any()
        at = mask.nonzero()
        if len(at):
            assert box[0] - 1.5 <= at[:, 1].min()
            assert at[:, 1].max() + 1 <= box[2] + 1.5
            assert box[1] - 1.5 <= at[:, 0].min()
            assert at[:, 0].max() + 1 <= box[3] + 1.5


def test_batches_carry_masks_where_every_sample_has_them() -> None:
    samples = [painted_with_masks(40, 56, 0), painted_with_masks(20, 30, 1)]
    samples[0]["crowd"][1] = True
    batch = collate([without_crowd(one) for one in samples], (0.5,) * 3, (0.5,) * 3)
    assert [tuple(one.shape) for one in batch["masks"]] == [(2, 64, 64), (3, 64, 64)]
    assert int(batch["masks"][1].sum()) == int(samples[1]["masks"].sum())
    assert not batch["masks"][1][:, 20:].any()
    none = {k: v[:0] if k in ("boxes", "labels", "crowd", "area", "masks") else v for k, v in samples[0].items()}
    assert BoxView(24)(none, [0.5] * 11)["masks"].shape == (0, 17, 24)
    del samples[1]["masks"]
    assert "masks" not in collate(samples, (0.5,) * 3, (0.5,) * 3)


def run_lengths(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [1 - int(flat[-1])]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


def test_outlines_of_coco_files(tmp_path: Path) -> None:
    from faster_coco_eval.core import mask as peer

    picture(0, tmp_path / "images")
    h, w = SIZES[0]
    y, x = np.mgrid[:h, :w]
    disc = (y - 20) ** 2 + (x - 30) ** 2 <= 81
    packed = peer.encode(np.asfortranarray(disc.astype(np.uint8)))
    polygon = [5.0, 5.0, 25.0, 5.0, 25.0, 30.0, 5.0, 30.0]
    size = [h, w]
    said = {
        "polygon": [polygon],
        "two parts": [[1, 1, 4, 1, 4, 4, 1, 4], [10, 10, 14, 10, 14, 14]],
        "counts": {"size": size, "counts": run_lengths(disc)},
        "text": {"size": size, "counts": packed["counts"].decode() if isinstance(packed["counts"], bytes) else packed["counts"]},
        "far outside": [[-1e12, 5, 1e12, 5, 1e12, 9, -1e12, 9]],
        "none": [],
        "too long": {"size": size, "counts": [10, 10**12]},
        "negative": {"size": size, "counts": [-5, h * w + 5]},
        "other size": {"size": [w, h], "counts": [h * w]},
        "no numbers": [["a", "b", 1, 2, 3, 4]],
        "two points": [[1, 2, 3, 4]],
        "not finite": [[1, 2, float("nan"), 4, 5, 6]],
        "no text": {"size": size, "counts": "\u00ff{}"},
        "endless": {"size": size, "counts": "o" * 40},
        "a word": "polygon",
        "a number": 7,
    }  # fmt: skip
    stored = coco(range(1))
    stored["annotations"] = [
        {"id": i, "image_id": 100, "category_id": 17, "bbox": [4, 4, 30, 30], "iscrowd": 0, "segmentation": one}
        for i, one in enumerate(said.values())
    ]
    (tmp_path / "images.json").write_text(json.dumps(stored))
    opened = open_boxes(tmp_path / "images.json")
    good = dict(zip(said, opened.train[0]["masks"].numpy(), strict=True))
    assert (good["counts"] == disc).all()
    assert (good["text"] == disc).all()
    expected = peer.decode(peer.merge(peer.frPyObjects([polygon], h, w))) > 0
    assert (good["polygon"] == expected).all()
    assert 400 < expected.sum() < 620
    assert good["two parts"][2, 2]
    assert good["two parts"][11, 13]
    assert not good["two parts"][7, 7]
    assert good["far outside"][7].all()
    assert not good["far outside"][20].any()
    box = np.zeros((h, w), bool)
    box[4:34, 4:34] = True
    bad = list(said)[5:]
    assert all((good[name] == box).all() for name in bad)
    assert opened.counts["outline does not match the image; the box is kept"] == len(bad) - 1  # no outline is no fault
    assert len(opened.train.subset(np.array([0, 0]))[1]["masks"]) == len(said)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30))
def test_a_text_of_run_lengths_is_a_mask_or_is_refused(text: str) -> None:
    outline = outline_of({"size": [7, 9], "counts": text}, (9, 7))
    assert outline is None or drawn([outline], np.zeros((1, 4)), (7, 9)).shape == (1, 7, 9)


def test_scenes_bring_their_masks(tmp_path: Path) -> None:
    opened = open_scene_boxes("scenes:4", 48, tmp_path)
    for i in range(4):
        sample = opened.train[i]
        assert sample["masks"].shape == (len(sample["boxes"]), 48, 48)
        for mask, (x1, y1, x2, y2) in zip(sample["masks"], sample["boxes"].tolist(), strict=True):
            at = mask.nonzero()
            assert [at[:, 1].min(), at[:, 0].min(), at[:, 1].max() + 1, at[:, 0].max() + 1] == [x1, y1, x2, y2]
