"""A comparison as one evening on two cores gives it: four runs, their files and their pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensorium.catalogue import find
from sensorium.judge.score import Map, Neighbors, Picture, Score, share_error
from sensorium.report.page import write_report
from sensorium.runs.results import Chosen, Data, Request, Results, RunResult
from sensorium.runs.verdict import decide

CLASSES = ("ball", "cup", "lamp", "leaf", "kite", "drum")


@dataclass
class Pixels:
    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]


def smooth_pixels(n: int, seed: int, size: int = 32) -> Pixels:
    """Soft blobs whose color and place follow the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), n)
    y, x = np.mgrid[0:size, 0:size] / size
    images = np.empty((n, 3, size, size), np.uint8)
    for i, label in enumerate(labels):
        turn = 2 * math.pi * label / len(CLASSES)
        cx, cy, r = (
            0.5 + 0.22 * math.cos(turn) + rng.normal(0, 0.06),
            0.5 + 0.22 * math.sin(turn) + rng.normal(0, 0.06),
            rng.uniform(0.12, 0.25),
        )
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / r**2)
        back = rng.uniform(30, 120, 3)
        front = 150 + 100 * np.cos(turn + np.array([0, 2.1, 4.2]))
        picture = back[:, None, None] * (0.7 + 0.6 * y) * (1 - blob) + front[:, None, None] * blob
        images[i] = picture.clip(0, 255).astype(np.uint8)
    return Pixels(images, labels.astype(np.int64), CLASSES)


SIMPLE = {  # what simple models come to: kNN, then by share of the labels; of the linear probe or of fine-tuning
    "most frequent class": ("", 0.22, (0.22, 0.22, 0.22)),
    "raw pixels": ("linear", 0.332, (0.221, 0.297, 0.363)),
    "random resnet-small": ("linear", 0.323, (0.262, 0.341, 0.412)),
    "random vit-micro": ("linear", 0.301, (0.235, 0.305, 0.371)),
    "resnet-small from scratch": ("fine-tuned", None, (0.312, 0.487, 0.668)),
    "vit-micro from scratch": ("fine-tuned", None, (0.271, 0.392, 0.556)),
}
SHARES = (0.01, 0.1, 1.0)


def share_score(name: str, top1: float, **more: Any) -> Score:
    std, subsets = more.pop("std", 0.0), more.get("subsets", 1)
    error = share_error(top1, 10_000, std, subsets)
    spread = std if subsets > 1 else None
    return Score(name, top1, "higher", 10_000, "test images", error=error, share=True, spread=spread, **more)


def beside(way: str, at: int) -> dict[str, float]:
    return {title: values[at] for title, (of, _, values) in SIMPLE.items() if of in ("", way)}


def ladder(way: str, group: str, *top1: float) -> list[Score]:
    """A score at each share of the labels."""
    return [
        share_score(
            f"{way}, {100 * share:g}%", value, std=(0.011, 0.004, 0.0)[i], subsets=1 if share == 1 else 3, at=share,
            labels=(500, 5000, 50_000)[i], group=group, baselines=beside(way, i),
        )
        for i, (share, value) in enumerate(zip(SHARES, top1, strict=True))
    ]  # fmt: skip


def scores_of(knn: float, linear: tuple[float, ...], finetune: tuple[float, ...], rank: float) -> tuple[Score, ...]:
    """As the evaluator of features gives them: the best use of few labels first."""
    rows = [*ladder("linear", "Linear probe", *linear), *ladder("fine-tuned", "Fine-tuned", *finetune)]
    best = max(rows[0], rows[3], key=lambda row: row.value or 0.0)
    simple = {title: values[0] for title, (_, _, values) in SIMPLE.items()}
    way = "linear probe" if best is rows[0] else "fine-tuned"
    first = replace(best, name="top-1 with 1 % of the labels", group="", best_of=way, baselines=simple)
    near = {title: value for title, (_, value, _) in SIMPLE.items() if value is not None}
    kinds = share_score("kNN", knn, curve="knn_top1", at=0.0, baselines=near)
    return (first, kinds, *rows, Score("RankMe", rank, "higher", 1, "run", curve="rank", decides=False))


def make_run(
    name: str, seed: int, knn: float, linear: tuple[float, ...], finetune: tuple[float, ...], pixels: dict[str, Pixels],
    **more: Any,
) -> RunResult:  # fmt: skip
    rng = np.random.default_rng(seed)
    labels = pixels["test"].labels
    assert labels is not None
    turn = 2 * math.pi * labels[:300] / len(CLASSES)
    place = np.stack([np.cos(turn), np.sin(turn)], 1) * 3 + rng.normal(0, 0.9 + seed / 3, (300, 2))
    vit = name == "mae"
    curve = [
        {
            "step": float(57 * k),
            "seconds": float(30 * k),
            "seen": float(14_700 * k),
            "knn_top1": float(0.3 + (knn - 0.3) * (1 - math.exp(-k / 6)) + rng.normal(0, 0.004)),
            "rank": float((30 + 10 * seed) * (1 - math.exp(-k / 5)) + 4),
            "spread": 0.1,
        }
        for k in range(1, 21)
    ]
    near = [Neighbors(q, tuple(int(i) for i in rng.choice(400, 8, replace=False))) for q in range(8)]
    return RunResult(
        name, name, title=find(name).short, backbone="vit-micro" if vit else "resnet-small",
        by_labels=find(name).labels, caveat=find(name).caveat, abilities=find(name).abilities, exports=find(name).exports,
        seconds=600.4 + seed, steps=1148 + 31 * seed, seen=293_888.0 + 7936 * seed,
        per_second=489.5 + 13 * seed, peak_memory_mb=1180.0 + 90 * seed, precision="bf16-mixed",
        parameters=2_787_264 if vit else 698_000, flops_per_image=3.5e8 if vit else 7.4e7,
        scores=scores_of(knn, linear, finetune, 61.3 + 20 * seed), checkpoint=f"{name}/model.safetensors",
        settings={
            "lr": Chosen(0.0015 * (1 + seed), "batch size 256 x 1.5e-4 / 256"),
            "batch_size": Chosen(256, "given"),
            "image_size": Chosen(32, "the images are 32 px"),
        },
        curve=tuple(curve), neighbors=tuple(near),
        map=Map(tuple(place[:, 0].tolist()), tuple(place[:, 1].tolist()), tuple(labels[:300].tolist()), tuple(range(300))),
        **more,
    )  # fmt: skip


def with_files(run: RunResult, folder: Path, seed: int) -> RunResult:
    """What a run leaves behind: its losses and two pictures."""
    (folder / run.name / "pictures").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = ["step,seconds,images,loss"]
    for step in range(1, (run.steps or 0) + 1):
        loss = 0.4 + 4 / (1 + seed) * math.exp(-step / 220) + rng.normal(0, 0.03)
        lines.append(f"{step},{step * 0.52:.3f},{step * 256},{loss:.6f}")
    (folder / run.name / "metrics.csv").write_text("\n".join(lines) + "\n")
    pictures = []
    for title, size in (("Reconstruction", 96), ("Where it looks", 64)):
        shown = smooth_pixels(12, seed + size, 32).images
        grid = np.concatenate([np.concatenate(list(shown[i : i + 6]), 2) for i in (0, 6)], 1)
        file = f"{run.name}/pictures/{title.split()[0].lower()}.png"
        Image.fromarray(np.moveaxis(grid, 0, -1)).resize((6 * size, 2 * size), Image.Resampling.NEAREST).save(
            folder / file
        )
        pictures.append(Picture(file, title, "Each row: original, visible patches, reconstruction."))
    return replace(run, pictures=tuple(pictures))


def make_data() -> Data:
    return Data(
        path="photos/garden",
        layout="folder of classes",
        train=50_000,
        test=10_000,
        classes=CLASSES,
        image_size=32,
        diagnosis={
            "advice": [
                "Class drum has only 3 % of the images: expect it to be learned last.",
                "2 files could not be read and were left out.",
            ],
            "counts": {"train": 50_000, "test": 10_000},
            "decoded": {"train": 19_999, "test": 9_999},
            "sizes": {
                "min": [24, 24],
                "median": [120, 98],
                "max": [640, 480],
                "different": 212,
                "common": [{"size": [120, 98], "images": 18_400}, {"size": [640, 480], "images": 5_020}],
            },
            "modes": {"RGB": 49_310, "L": 602, "RGBA": 88},
            "classes": [{"name": name, "train": 11_000 - 1_800 * i, "test": 2_000} for i, name in enumerate(CLASSES)],
            "imbalance": {"ratio": 5.5, "smallest": {"name": "drum", "images": 2_000}},
            "duplicates": {"count": 2, "groups": 2, "examples": [["a/1.png", "a/2.png"], ["b/7.png", "c/7.png"]]},
            "near_duplicates": {"count": 37, "examples": [["a/5.png", "a/6.png"]], "complete": True},
            "overlap": {"exact": 12, "near": 3, "exact_examples": [["a/1.png", "t/9.png"]], "near_examples": []},
            "conflicts": {"count": 0, "examples": []},
            "constant": {"count": 0, "examples": []},
            "quality": {
                "blurred": {"count": 2, "examples": ["cup/0007.jpg", "kite/0118.jpg"]},
                "dark": {"count": 1, "examples": ["drum/0042.jpg"]},
                "odd_size": {"count": 0, "examples": []},
            },
            "broken": [
                {"file": "cup/0193.jpg", "reason": "truncated at byte 4,096"},
                {"file": "kite/9.png", "reason": "no image"},
            ],
            "notes": ["29,998 of the 60,000 images were examined, evenly spaced."],
        },
    )


def make_results(folder: Path, pixels: dict[str, Pixels]) -> Results:
    """Four runs as one evening on two cores gives them."""
    noted = ("The teacher's center moved little in the last tenth.",)
    runs = (
        make_run("mae", 0, 0.366, (0.331, 0.422, 0.474), (0.352, 0.468, 0.612), pixels),
        make_run("simclr", 1, 0.561, (0.431, 0.532, 0.598), (0.442, 0.561, 0.701), pixels),
        make_run("dino", 2, 0.508, (0.402, 0.489, 0.551), (0.398, 0.528, 0.688), pixels, notes=noted),
        make_run("supervised", 3, 0.724, (0.688, 0.712, 0.731), (0.671, 0.709, 0.742), pixels),
    )
    return judged(
        Results(
            2, make_data(), tuple(with_files(run, folder, seed) for seed, run in enumerate(runs)),
            Request("10m", "1%,10%,100%", 0, 3), created="2026-03-14 21:07",
            versions={"sensorium": "0.1.0", "torch": "2.15.0", "python": "3.11.9"},
            warnings=("12 images are in both the training and the test set: scores are a little too high.",),
        )
    )  # fmt: skip


def judged(results: Results) -> Results:
    """With the verdict."""
    verdict = decide(results.runs)
    return replace(results, winner=verdict.winner, verdict=verdict.said)


@pytest.fixture(scope="module")
def pixels() -> dict[str, Pixels]:
    return {"train": smooth_pixels(400, 1), "test": smooth_pixels(300, 2)}


@pytest.fixture(scope="module")
def made(tmp_path_factory, pixels) -> tuple[Results, Path, str]:
    folder = tmp_path_factory.mktemp("runs")
    results = make_results(folder, pixels)
    return results, folder, write_report(results, folder, pixels=pixels).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def make():
    """The maker itself, for tests that spoil what it makes."""
    return make_results


@pytest.fixture(scope="session")
def again():
    """Judges spoiled results again."""
    return judged
