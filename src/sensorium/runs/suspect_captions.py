"""Which training captions are doubtful: pairs whose picture and caption are less similar than those of the rest, for the
comparison's best model of images and texts.

Each pair is compared with other pairs of its picture and of its caption (:mod:`sensorium.metrics.pair_doubts`). The model has learned
from the pairs that it judges, wrong ones too, so that it doubts too few rather than too many, the fewer the longer it was trained.

OUT/suspects.csv    rank, pair (its number among the training pairs), picture, caption, similarity, z, outlier, better (the share of
                    other captions that fit the picture better), nearest (the caption of another picture that fits it best)
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.abilities import ImageText
from sensorium.base.files import write_text
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.data.pairs.prepare import Captioned
from sensorium.judge.pair_scores import embedded, groups_of
from sensorium.metrics.pair_doubts import Side, Standing, nearest, standing
from sensorium.pictures.images import save_picture
from sensorium.runs.results import CaptionSuspect, CaptionSuspects
from sensorium.runs.run import Run

FILE, FOLDER = "suspects.csv", "suspects"
LISTED, CLEAR = -2.0, -3.0  # outliers from which on a pair is listed, and counted as clear
SHOWN, SIDE = 24, 160  # pictures of the report, and their sides in pixels
LEAST, TRIED = 50, 256  # pairs that say what is usual, and by which the speed is measured
COLUMNS = ("rank", "pair", "picture", "caption", "similarity", "z", "outlier", "better", "nearest")
Say = Callable[[str], None]


def keep_caption_suspects(
    run: Run, ready: Any, folder: Path, seconds: float | None, say: Say
) -> CaptionSuspects | None:
    """Write ``folder/suspects.csv`` and the pictures of the report; None if the run doesn't embed images and texts, or
    there are too few pairs.

    seconds: of embedding training pairs, of which only as many as fit are looked at; None for all of them.
    """
    train = ready.train
    if not isinstance(train, Captioned) or not isinstance(run.method, ImageText) or len(train) < LEAST:
        return None
    say("which captions are doubtful")
    chosen = _fitting(run.method, train, seconds)
    part = train.subset(chosen)
    pictures, captions = _sides(run.method, part)
    found = standing(pictures, captions)
    order = np.argsort(found.z, kind="stable")
    order = order[found.outlier[order] <= LISTED]
    others = [part.texts[int(np.flatnonzero(captions.of == k)[0])] for k in nearest(pictures, captions, order)]
    write_text(folder / FILE, _table(part, chosen, found, order, others))
    shown = _shown(part, chosen, found, order[:SHOWN], others, folder)
    clear = int((found.outlier <= CLEAR).sum())
    usual = float(np.median(found.better))
    return CaptionSuspects(FILE, run.folder.name, len(order), clear, len(part), len(train), usual, shown)


def _fitting(method: Any, train: Captioned, seconds: float | None) -> np.ndarray:
    """As many pairs as can be embedded in ``seconds``, drawn at random, in their order: int64 [n]."""
    order = np.random.default_rng(0).permutation(len(train))
    count = len(train)
    if seconds is not None and count > TRIED:
        begun = time.monotonic()
        embedded(method, train.subset(np.sort(order[:TRIED])), device_name())
        count = int(TRIED * seconds / max(time.monotonic() - begun, 1e-3))
    return np.sort(order[: max(count, TRIED)])


def _sides(method: Any, part: Captioned) -> tuple[Side, Side]:
    """Pictures and different captions, and which of them each pair has."""
    images, texts, first = embedded(method, part, device_name())
    of_images, of_texts = groups_of(part)
    number = {part.texts[int(i)]: k for k, i in enumerate(first)}
    of = np.array([number[text] for text in part.texts], np.int64)
    return Side(images, of_images, part.rows), Side(texts, of_texts, of)


def _table(part: Captioned, chosen: np.ndarray, found: Standing, order: np.ndarray, others: list[str]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rank, (i, other) in enumerate(zip(order.tolist(), others, strict=True), 1):
        name = part.pixels.names[int(part.rows[i])]
        numbers = [f"{float(value[i]):.4f}" for value in found]
        writer.writerow(
            [rank, chosen[i], printable(str(name)), printable(str(part.texts[int(i)])), *numbers, printable(other)]
        )
    return table.getvalue()


def _shown(
    part: Captioned, chosen: np.ndarray, found: Standing, order: np.ndarray, others: list[str], folder: Path
) -> tuple[CaptionSuspect, ...]:
    for old in (folder / FOLDER).glob("[0-9][0-9][0-9].jpg"):
        old.unlink()
    shown = []
    for rank, i in enumerate(order.tolist(), 1):
        pixels = np.array(part.pixels.images[int(part.rows[i])]).transpose(1, 2, 0)
        file = f"{FOLDER}/{rank:03}.jpg"
        save_picture(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC), folder / file)
        shown.append(
            CaptionSuspect(int(chosen[i]), str(part.texts[int(i)]), others[rank - 1], float(found.better[i]), file)
        )
    return tuple(shown)
