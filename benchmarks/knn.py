"""kNN of features against scikit-learn's KNeighborsClassifier, brute force with the cosine and the same vote.

20,000 x 4,000 features of 512 dimensions are timed in turn. 1,281,167 x 50,000 (ImageNet) is timed at a sixteenth of
both counts and multiplied by 256, for the work is their product. Memory (on Linux) is what the peak of a fresh process rises
by during the call, at an eighth and at a quarter of ImageNet's training set: ours does not grow with it.
Run: python -m benchmarks.knn
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks._paired import arguments, paired, seconds, show
from sensorium.metrics.knn import knn

D, CLASSES, K, TEMPERATURE = 512, 10, 20, 0.07
TRAIN, TEST = 1_281_167, 50_000
LIMIT = 2.0


def features(train: int, test: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for n in (train, test):
        found += [torch.randn(n, D, generator=generator), torch.randint(CLASSES, (n,), generator=generator)]
    return tuple(found)


def ours(bank, labels, asked, truth) -> float:
    return float(knn(bank, labels, asked, truth, CLASSES, k=K, temperature=TEMPERATURE)["top1"])


def theirs(bank, labels, asked, truth) -> float:
    from sklearn.neighbors import KNeighborsClassifier

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / TEMPERATURE)

    model = KNeighborsClassifier(K, weights=weights, algorithm="brute", metric="cosine")
    return float(model.fit(bank.numpy(), labels.numpy()).score(asked.numpy(), truth.numpy()))


def rise(side: str, train: int, test: int) -> float:
    """MiB by which the peak of a fresh process rises during the call, a small call having loaded the libraries."""
    code = f"from benchmarks.knn import _rise; _rise({side!r}, {train}, {test})"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def _rise(side: str, train: int, test: int) -> None:
    call, inputs = {"ours": ours, "theirs": theirs}[side], features(train, test)
    call(*features(100, 10))
    before = _peak()
    call(*inputs)
    print(_peak() - before)


def _peak() -> float:
    """This process's largest resident memory so far, MiB (getrusage would count its parent's too)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    options = arguments(__doc__)
    inputs = features(20_000, 4_000)
    assert abs(ours(*inputs) - theirs(*inputs)) < 0.002, "the two sides disagree"
    pair = paired(
        "kNN, 20,000 x 4,000 x 512", lambda: ours(*inputs), lambda: theirs(*inputs), rounds=options.rounds, limit=30
    )
    small = features(TRAIN // 16, TEST // 16)
    scaled = statistics.median(seconds(lambda: ours(*small)) for _ in range(3)) * 256
    memory = {
        f"{side}, 1/{part} of {TRAIN:,} x 4,000": round(rise(side, TRAIN // part, 4_000))
        for side in ("ours", "theirs")
        for part in (8, 4)
    }
    figures = {
        "threads": torch.get_num_threads(),
        "20,000 x 4,000: seconds": round(pair.ours, 2),
        "20,000 x 4,000: seconds allowed": LIMIT,
        f"{TRAIN:,} x {TEST:,}: minutes, extrapolated": round(scaled / 60, 1),
        "memory beyond the features, MiB": memory,
    }
    show([pair], as_json=options.json)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
