"""COCO AP: equal to pycocotools on random detections, known cases by hand, the worst misses, a detector from end to end."""

import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.data.boxes.cache import cache_boxes
from sensorium.data.boxes.open import open_boxes
from sensorium.data.boxes.seen import Sight
from sensorium.errors import SensoriumError
from sensorium.judge.coco_ap import coco_ap, detect_all, misses

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def random_case(seed: int, images: int = 12, classes: int = 4, most: int = 14):
    """Truth of all sizes, some of it crowd, and detections: shaken copies, wrong classes and inventions."""
    generator = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(images):
        n, extra = int(generator.integers(0, most)), int(generator.integers(0, 9))
        corner, size = generator.uniform(0, 300, (n, 2)), 10 ** generator.uniform(0.7, 2.4, (n, 2))
        boxes, labels = np.concatenate([corner, corner + size], 1), generator.integers(0, classes - 1, n)
        again = generator.uniform(size=n) < 0.8
        shaken = boxes[again] + generator.normal(size=(again.sum(), 4)) * np.tile(size[again], 2) * 0.08
        others = generator.uniform(0, 300, (extra, 2))
        claimed = np.concatenate(
            [shaken, np.concatenate([others, others + 5 + 10 ** generator.uniform(0, 2.2, (extra, 2))], 1)]
        )
        claimed[:, 2:] = np.maximum(claimed[:, 2:], claimed[:, :2] + 1)
        kinds = np.concatenate([labels[again], generator.integers(0, classes, extra)])
        kinds = np.where(generator.uniform(size=len(kinds)) < 0.15, generator.integers(0, classes, len(kinds)), kinds)
        crowd = generator.uniform(size=n) < 0.15
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) * generator.uniform(0.5, 1, n)
        truth.append({"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels), "crowd": torch.from_numpy(crowd), "area": torch.from_numpy(areas)})  # fmt: skip
        scores = generator.uniform(0.05, 1, len(kinds)).round(2)  # some alike
        found.append({"boxes": torch.from_numpy(claimed), "labels": torch.from_numpy(kinds), "scores": torch.from_numpy(scores)})  # fmt: skip
    return found, truth, [f"class {k}" for k in range(classes)]


def peer(found, truth, classes, most):
    """pycocotools' AP, its classes' and its recall."""
    coco, evaluator = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    anns, rows = [], []
    for i, (t, f) in enumerate(zip(truth, found, strict=True)):
        for b, k, c, a in zip(
            t["boxes"].tolist(), t["labels"].tolist(), t["crowd"].tolist(), t["area"].tolist(), strict=True
        ):
            box = [b[0], b[1], b[2] - b[0], b[3] - b[1]]
            anns.append(
                {
                    "id": len(anns) + 1,
                    "image_id": i + 1,
                    "category_id": k + 1,
                    "bbox": box,
                    "area": a,
                    "iscrowd": int(c),
                }
            )
        for b, k, s in zip(f["boxes"].tolist(), f["labels"].tolist(), f["scores"].tolist(), strict=True):
            rows.append([i + 1, b[0], b[1], b[2] - b[0], b[3] - b[1], s, k + 1])
    with contextlib.redirect_stdout(io.StringIO()):
        real = coco.COCO()
        real.dataset = {
            "images": [{"id": i + 1} for i in range(len(truth))],
            "annotations": anns,
            "categories": [{"id": k + 1, "name": n} for k, n in enumerate(classes)],
        }
        real.createIndex()
        judge = evaluator.COCOeval(real, real.loadRes(np.array(rows)), "bbox")
        judge.params.maxDets = [1, 2, most]
        judge.evaluate()
        judge.accumulate()
    precision, recall = judge.eval["precision"][..., 2], judge.eval["recall"][..., 2]

    def mean(x):
        return float(x[x > -1].mean()) if (x > -1).any() else None

    overall = [mean(precision[..., 0]), mean(precision[0, ..., 0]), mean(precision[5, ..., 0])]
    overall += [mean(precision[..., i]) for i in (1, 2, 3)]
    return overall, [mean(precision[:, :, k, 0]) for k in range(len(classes))], mean(recall[..., 0])


@pytest.mark.parametrize("seed, most", [(0, 100), (1, 100), (2, 5), (3, 100)])
def test_equal_to_pycocotools(seed: int, most: int) -> None:
    found, truth, classes = random_case(seed)
    got = coco_ap(found, truth, classes, most=most)
    overall, each, recall = peer(found, truth, classes, most)
    assert 0.02 < overall[0] < 0.9
    for name, want in zip(NAMES, overall, strict=True):
        assert got[name] == pytest.approx(want, abs=1e-12), name
    assert [row["ap"] for row in got["classes"]] == pytest.approx(each, abs=1e-12)
    assert each[-1] is None
    assert got["ar"] == pytest.approx(recall, abs=1e-12)
    assert got["boxes"] == sum(int((~t["crowd"]).sum()) for t in truth) == sum(row["boxes"] for row in got["classes"])
    assert got["boxes"] == sum(got[f"boxes_{size}"] for size in ("small", "medium", "large"))
    assert got["detections"] == sum(len(f["scores"]) for f in found)


def image(boxes, labels, scores=None, crowd=None):
    row = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
    }
    if scores is not None:
        row["scores"] = torch.tensor(scores)
    if crowd is not None:
        row["crowd"] = torch.tensor(crowd)
    return row


def test_known_cases() -> None:
    box, other = [10.0, 10, 60, 60], [100.0, 100, 150, 140]
    truth = [image([box], [0]), image([], []), image([other], [1])]
    perfect = [image([box], [0], [0.9]), image([], [], []), image([other], [1], [0.3])]
    got = coco_ap(perfect, truth, ["a", "b", "never"])
    assert (got["ap"], got["ap50"], got["ap_medium"], got["ar"]) == (1.0, 1.0, 1.0, 1.0)
    assert got["ap_small"] is None
    assert [row["ap"] for row in got["classes"]] == [1.0, 1.0, None]
    assert (got["images"], got["boxes"], got["detections"]) == (3, 2, 2)
    nothing = [image([], [], []) for _ in truth]
    assert coco_ap(nothing, truth, ["a", "b"])["ap"] == 0.0
    assert coco_ap(perfect, [image([], []) for _ in truth], ["a", "b"])["ap"] is None
    # A better scored invention halves the precision of what is found after it.
    worse = [image([box, other], [0, 0], [0.5, 0.9]), image([], [], []), image([other], [1], [0.3])]
    assert coco_ap(worse, truth, ["a", "b"])["classes"][0]["ap"] == pytest.approx(0.5)
    # Boxes shifted by a fifth of their width: IoU 2/3, right at 4 of the 10 thresholds.
    shifted = [image([[20.0, 10, 70, 60]], [0], [0.9]), image([], [], []), image([other], [1], [0.3])]
    assert coco_ap(shifted, truth, ["a", "b"])["classes"][0]["ap"] == pytest.approx(0.4)
    with pytest.raises(ValueError, match="3 images against the truth of 2"):
        coco_ap(perfect, truth[:2], ["a", "b"])
    with pytest.raises(SensoriumError, match=r"image 1: .*diverged"):
        coco_ap([perfect[0], image([[float("nan")] * 4], [0], [0.5]), perfect[2]], truth, ["a", "b"])


def test_misses_by_hand() -> None:
    a, b, c = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10]
    truth = [
        image([a, b, c], [0, 0, 1]),  # b found twice, c as another class, a not surely enough
        image([a], [0]),
        image([a, b, c], [0, 0, 0], crowd=[False, True, False]),  # one on the crowd
        image([], []),
    ]
    found = [
        image([b, b, c, a], [0, 0, 0, 0], [0.9, 0.8, 0.7, 0.1]),
        image([a], [0], [0.5]),
        image([b, b], [0, 0], [0.9, 0.8]),
        image([a], [0], [0.9]),
    ]
    assert misses(found, truth) == [
        {"index": 0, "lost": [0, 2], "boxes": 3, "false": 2},
        {"index": 2, "lost": [0, 2], "boxes": 2, "false": 0},
    ]
    assert [row["index"] for row in misses(found, truth, count=1)] == [0]


class Seer(torch.nn.Module):
    """Finds what is bright, in pixels of what it is shown; one box an image."""

    def detect(self, images, threshold, *, sizes):
        results = []
        for one in images:
            y, x = torch.where(one[0] > 0.5)
            box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()[None]
            results.append({"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([0])})
        return results


def test_a_detector_from_files_to_scores(tmp_path) -> None:
    generator = np.random.default_rng(0)
    for i, (h, w) in enumerate([(60, 90), (100, 50), (64, 64), (80, 80), (90, 70)]):
        pixels = np.zeros((h, w, 3), np.uint8)
        x, y = (int(v) for v in generator.integers(5, 20, 2))
        pixels[y : y + 24, x : x + 18] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"0 {(x + 9) / w} {(y + 12) / h} {18 / w} {24 / h}\n")
    opened = open_boxes(tmp_path)
    broken = tmp_path / opened.train.names[1]
    net = Seer().train()
    sight = Sight((0.0,) * 3, (1.0,) * 3, (200, 200), 224)
    part = cache_boxes(opened.train, 200, tmp_path / "cache")
    found, truth, indices = detect_all(net, part, sight, batch_size=3)
    assert indices == [0, 1, 2, 3]
    got = coco_ap(found, truth, opened.train.classes)
    assert got["ap50"] == 1.0
    assert got["ap"] > 0.8
    assert (got["images"], misses(found, truth)) == (4, [])
    assert net.training
    broken.write_bytes(broken.read_bytes()[:90])
    part = cache_boxes(opened.train, 200, tmp_path / "second")
    found, truth, _ = detect_all(net, part, sight)
    assert len(part.pixels.skipped) == 1
    assert (len(found), coco_ap(found, truth, opened.train.classes)["ap50"]) == (3, 1.0)
