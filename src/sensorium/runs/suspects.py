"""Which training labels are doubtful: what the runs of a comparison know of each picture without its own label.

Each encoder's features get a linear classifier that is fitted on four fifths of the labels and asked about the last, in
turn; the probabilities are averaged over the encoders, and confident learning (:mod:`sensorium.metrics.confident`) says
whose label they doubt. An encoder that learned from labels has seen all of them, so that it doubts too few rather than
too many.

OUT/suspects.csv    rank, image (its number among the training pictures), picture, given, likely, the probability of each, margin
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.abilities import Encoder
from sensorium.base.files import write_text
from sensorium.base.reading import printable
from sensorium.judge.feature_scores import Seen, features_of, judgeable, seen
from sensorium.metrics.confident import margins, suspects
from sensorium.metrics.linear import FOLDS, folds
from sensorium.metrics.logistic import Logistic
from sensorium.runs.results import Suspect, Suspects
from sensorium.runs.run import Run

FILE = "suspects.csv"
SHOWN = 48  # pictures of the report
CLEAR = 0.5  # a weak classifier doubts many labels a little
L2 = 0.01  # of the classifiers: probabilities a little too modest are better here than too sure
COLUMNS = ("rank", "image", "picture", "given", "likely", "probability_given", "probability_likely", "margin")


def keep_suspects(runs: Sequence[Run], ready: Any, folder: Path) -> Suspects | None:
    """Write ``folder/suspects.csv``; None where pictures have no labels, or no class has enough of them.

    runs: finished ones on these data; those that are no encoders are passed over.
    """
    able = [run for run in runs if isinstance(run.method, Encoder)]
    images = seen(ready) if able else None
    if images is None or not judgeable(images):
        return None
    labels = np.asarray(images.train.labels, np.int64)
    known = np.flatnonzero(labels >= 0)
    found = [out_of_fold(features_of(run, images)[0][torch.from_numpy(known)], labels[known]) for run in able]
    asked = np.flatnonzero(np.isfinite(found[0]).all(axis=1))
    if not len(asked):
        return None
    chances, known = np.mean([one[asked] for one in found], axis=0), known[asked]
    return _written(labels[known], chances, known, images, folder)


def out_of_fold(features: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Probabilities [N, K] for features [N, D], each by a linear classifier of the other four fifths; nan for a class
    with one picture."""
    problem = Logistic(features, torch.from_numpy(labels), int(labels.max()) + 1)
    fold = torch.from_numpy(folds(labels, 0))
    chances = np.full((len(labels), int(labels.max()) + 1), np.nan)
    for held in range(FOLDS):
        if bool((fold == held).any()):
            problem.reset()  # the last solution was fitted to these labels
            problem.solve(L2, fold != held, 1e-3)
            chances[(fold == held).numpy()] = problem.probabilities(fold == held).cpu().numpy()
    return chances


def _written(labels: np.ndarray, chances: np.ndarray, where: np.ndarray, images: Seen, folder: Path) -> Suspects:
    order = suspects(labels, chances)
    likely, gaps = chances.argmax(axis=1), margins(labels, chances)
    classes, names = images.train.classes, images.train.names
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rank, i in enumerate(order, 1):
        name = printable(str(names[int(where[i])])) if len(names) else f"image {where[i]}"
        pair = (chances[i, labels[i]], chances[i, likely[i]], gaps[i])
        writer.writerow(
            [rank, where[i], name, classes[labels[i]], classes[likely[i]], *(f"{value:.4f}" for value in pair)]
        )
    write_text(folder / FILE, table.getvalue())
    shown = tuple(
        Suspect(
            int(where[i]), int(labels[i]), int(likely[i]), float(chances[i, labels[i]]), float(chances[i, likely[i]])
        )
        for i in order[:SHOWN]
    )
    clear = int((gaps[order] <= -CLEAR).sum())
    return Suspects(FILE, len(order), clear, len(labels), float((likely == labels).mean()), shown)
