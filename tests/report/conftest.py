"""A comparison as one evening on two cores gives it: four runs, their files and their pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensorium.catalogue import find
from sensorium.report.page import write_report

CLASSES = ("ball", "cup", "lamp", "leaf", "kite", "drum")


@dataclass
class Pixels:
    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]


def smooth_pixels(n: int, seed: int, size: int = 32) -> Pixels:
    """Soft blobs whose colour and place follow the class."""
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


def score(top1: float, std: float = 0.0, seeds: int = 3, labels: int = 500, n: int = 10_000) -> dict[str, Any]:
    return {"top1": top1, "std": std, "n": n, "labels": labels, "seeds": list(range(seeds))}


def ladder(low: float, middle: float, high: float) -> dict[str, Any]:
    return {
        "1%": score(low, 0.011),
        "10%": score(middle, 0.004, labels=5000),
        "100%": score(high, seeds=1, labels=50_000),
    }


def make_run(
    name: str, seed: int, knn: float, linear: Any, finetune: Any, pixels: dict[str, Pixels], **more: Any
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    at = np.arange(1, 21)
    labels = pixels["test"].labels
    turn = 2 * math.pi * labels[:300] / len(CLASSES)
    place = np.stack([np.cos(turn), np.sin(turn)], 1) * 3 + rng.normal(0, 0.9 + seed / 3, (300, 2))
    vit = name == "mae"
    return {
        "name": name,
        "method": name,
        "title": find(name).short,
        "caveat": find(name).caveat,
        "exports": list(find(name).exports),
        "backbone": "vit-micro" if vit else "resnet-small",
        "status": "finished",
        "error": None,
        "seconds": 600.4 + seed,
        "steps": 1148 + 31 * seed,
        "images_seen": 293_888 + 7936 * seed,
        "images_per_second": 489.5 + 13 * seed,
        "peak_memory_mb": 1180 + 90 * seed,
        "parameters": 2_787_264 if vit else 698_000,
        "flops_per_image": 3.5e8 if vit else 7.4e7,
        "precision": "bf16-mixed",
        "knn": {"top1": knn, "n": 10_000, "k": 20},
        "linear": linear,
        "finetune": finetune,
        "rankme": 61.3 + 20 * seed,
        "checkpoint": f"{name}/model.safetensors",
        "settings": {
            "lr": {"value": 0.0015 * (1 + seed), "source": "batch size 256 x 1.5e-4 / 256"},
            "batch_size": {"value": 256, "source": "given"},
            "image_size": {"value": 32, "source": "the images are 32 px"},
        },
        "notes": [],
        "curve": [
            {
                "step": float(57 * k),
                "seconds": float(30 * k),
                "images": float(14_700 * k),
                "knn_top1": float(0.3 + (knn - 0.3) * (1 - math.exp(-k / 6)) + rng.normal(0, 0.004)),
                "rank": float((30 + 10 * seed) * (1 - math.exp(-k / 5)) + 4),
                "spread": 0.1,
            }
            for k in at
        ],
        "neighbors": [
            {"query": int(q), "found": [int(i) for i in rng.choice(len(pixels["train"].labels), 8, replace=False)]}
            for q in range(8)
        ],
        "map": {
            "x": place[:, 0].tolist(),
            "y": place[:, 1].tolist(),
            "label": labels[:300].tolist(),
            "index": list(range(300)),
        },
        **more,
    }


def write_files(run: dict[str, Any], folder: Path, seed: int) -> None:
    """What a run leaves behind: its losses and two pictures."""
    (folder / run["name"] / "pictures").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = ["step,seconds,images,loss"]
    for step in range(1, run["steps"] + 1):
        loss = 0.4 + 4 / (1 + seed) * math.exp(-step / 220) + rng.normal(0, 0.03)
        lines.append(f"{step},{step * 0.52:.3f},{step * 256},{loss:.6f}")
    (folder / run["name"] / "metrics.csv").write_text("\n".join(lines) + "\n")
    run["pictures"] = []
    for title, size in (("Reconstruction", 96), ("Where it looks", 64)):
        shown = smooth_pixels(12, seed + size, 32).images
        grid = np.concatenate([np.concatenate(list(shown[i : i + 6]), 2) for i in (0, 6)], 1)
        file = f"{run['name']}/pictures/{title.split()[0].lower()}.png"
        Image.fromarray(np.moveaxis(grid, 0, -1)).resize((6 * size, 2 * size), Image.Resampling.NEAREST).save(
            folder / file
        )
        run["pictures"].append(
            {"title": title, "caption": "Each row: the picture, what the network saw, what it painted.", "file": file}
        )


def make_data() -> dict[str, Any]:
    return {
        "path": "photos/garden",
        "layout": "folder of classes",
        "train": 50_000,
        "test": 10_000,
        "classes": list(CLASSES),
        "image_size": 32,
        "diagnosis": {
            "advice": [
                "Class drum has only 3 % of the images: expect it to be learnt last.",
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
            "broken": [
                {"file": "cup/0193.jpg", "reason": "truncated at byte 4,096"},
                {"file": "kite/9.png", "reason": "no image"},
            ],
            "notes": ["29,998 of the 60,000 images were looked at, spread evenly."],
        },
    }


def make_baselines() -> dict[str, Any]:
    return {
        "majority": {"top1": 0.22, "n": 10_000},
        "pixels": {"knn": {"top1": 0.332, "n": 10_000}, "linear": ladder(0.221, 0.297, 0.363)},
        "random": {
            "resnet-small": {
                "knn": {"top1": 0.323, "n": 10_000},
                "linear": ladder(0.262, 0.341, 0.412),
                "rankme": 22.1,
            },
            "vit-micro": {
                "knn": {"top1": 0.301, "n": 10_000},
                "linear": ladder(0.235, 0.305, 0.371),
                "rankme": 30.4,
            },
        },
        "scratch": {"resnet-small": ladder(0.312, 0.487, 0.668), "vit-micro": ladder(0.271, 0.392, 0.556)},
    }


def make_results(folder: Path, pixels: dict[str, Pixels]) -> dict[str, Any]:
    """Four runs as one evening on two cores gives them."""
    runs = [
        make_run("mae", 0, 0.366, ladder(0.331, 0.422, 0.474), ladder(0.352, 0.468, 0.612), pixels),
        make_run("simclr", 1, 0.561, ladder(0.431, 0.532, 0.598), ladder(0.442, 0.561, 0.701), pixels),
        make_run(
            "dino",
            2,
            0.508,
            ladder(0.402, 0.489, 0.551),
            ladder(0.398, 0.528, 0.688),
            pixels,
            notes=["The teacher's centre moved little in the last tenth."],
        ),
        make_run(
            "supervised",
            3,
            0.724,
            ladder(0.688, 0.712, 0.731),
            ladder(0.671, 0.709, 0.742),
            pixels,
            trains_on_labels=True,
        ),
    ]
    for seed, run in enumerate(runs):
        write_files(run, folder, seed)
    return {
        "schema": 1,
        "asked": {"budget": "10m", "labels": "1%,10%,100%", "seed": 0, "label_seeds": 3},
        "created": "2026-03-14 21:07",
        "versions": {"sensorium": "0.1.0", "torch": "2.15.0", "python": "3.11.9"},
        "warnings": ["12 images are in both the training and the test set: scores are a little too high."],
        "data": make_data(),
        "baselines": make_baselines(),
        "runs": runs,
        "winner": None,
        "verdict": "",
    }


@pytest.fixture(scope="module")
def pixels() -> dict[str, Pixels]:
    return {"train": smooth_pixels(400, 1), "test": smooth_pixels(300, 2)}


@pytest.fixture(scope="module")
def made(tmp_path_factory, pixels) -> tuple[dict[str, Any], Path, str]:
    folder = tmp_path_factory.mktemp("runs")
    results = make_results(folder, pixels)
    return results, folder, write_report(results, folder, pixels=pixels).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def make():
    """The maker itself, for tests that spoil what it makes."""
    return make_results
