"""What every part of ``benchmarks.gpu`` needs: the device, the time that is left, where figures go, pictures."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._paired import Pair
from sensorium.base.bf16 import fast_bf16
from sensorium.data.images.cache import Pixels, cache
from sensorium.data.images.open import open_data
from sensorium.data.images.prepare import Situation

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[3] / "shared" / "data"))
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Dense bfloat16 products with float32 sums, 10^12 operations a second, by what the name of the GPU holds, longer
# names first. NVIDIA's data sheets state twice as many, "with sparsity", except for the A100 and the RTX 4090, where both stand.
PEAKS = {
    "H200 NVL": 835.5,  # H200 data sheet: 1,671
    "H200": 989.5,  # H200 data sheet: 1,979
    "H100 NVL": 835.5,  # H100 data sheet: 1,671
    "H100 PCIe": 756.5,  # H100 PCIe data sheet: 1,513
    "H100": 989.5,  # H100 data sheet, SXM: 1,979
    "A100": 312.0,  # A100 data sheet
    "L4": 121.0,  # L4 data sheet: 242
    "RTX 4090": 165.2,  # Ada architecture white paper, appendix A
}


def peak_of(name: str) -> float | None:
    """The GPU's bfloat16 operations a second; None where none is listed for a GPU of that name."""
    said = f" {name.replace('-', ' ')} "  # "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
    if "Laptop" in said:
        return None
    return next((1e12 * peak for known, peak in PEAKS.items() if f" {known} " in said), None)


@dataclass(frozen=True)
class Here:
    """``dry``: everything tiny on the CPU. ``end``: of the part, by ``time.monotonic``. ``out``: a file of JSON lines."""

    device: torch.device
    dry: bool
    end: float
    out: Path

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def tell(self, row: str, figure: str, **numbers: Any) -> None:
        """Keep a figure, as it is shown, and its numbers."""
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, "figure": figure, **numbers}) + "\n")

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def low(self) -> bool:
        """Whether steps compute in bfloat16."""
        return fast_bf16(self.device) and not self.dry

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.low)

    def cast(self, method: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        """``method`` under autocast, as a step calls it."""

        def call(batch: Any) -> dict[str, Tensor]:
            with self.autocast():
                return method(batch)

        return call


def each(todo: Iterable[tuple[Any, ...]], measure: Callable[..., None]) -> None:
    """``measure(*one)`` for each: an error ends that one alone. Raises SystemExit with all errors at the end."""
    failed = []
    for one in todo:
        try:
            measure(*one)
        except (Exception, SystemExit) as error:
            said = " ".join(str(error).split())[:300] or type(error).__name__
            failed.append(f"{'-'.join(str(x) for x in one if isinstance(x, str | int))}: {said}")
            traceback.print_exc()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if failed:
        raise SystemExit("; ".join(failed))


def ratio(pair: Pair) -> str:
    return f"{pair.ratio:.2f}x ({pair.low:.2f} to {pair.high:.2f})"


def situation(pixels: Pixels, device: torch.device) -> Situation:
    """What a recipe's defaults depend on."""
    mean, std = tuple(map(float, pixels.mean)), tuple(map(float, pixels.std))
    cores, low = os.cpu_count() or 1, fast_bf16(device)
    return Situation(pixels.size, len(pixels), tuple(pixels.classes), mean, std, device.type, cores, low)  # type: ignore[arg-type]


def noise(count: int, side: int) -> Pixels:
    """Pictures for timing: their content does not matter."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 3, side, side), np.uint8)
    return Pixels(images, rng.integers(0, 10, count), CLASSES, (0.5, 0.5, 0.5), (0.29, 0.29, 0.29))


def cifar(here: Here, folder: Path) -> tuple[Pixels, Pixels, str]:
    """Training and test pictures of 32 px in ten classes, and what they are: CIFAR-10 from $SENSORIUM_DATA, or made up."""
    if (DATA / "cifar10").is_dir() and not here.dry:
        opened = open_data(str(DATA / "cifar10"))
        if opened.test is not None:
            train, test = (cache(part, 32, folder) for part in (opened.train, opened.test))
            return train, test, "CIFAR-10"
    train, test = (200, 100) if here.dry else (50_000, 10_000)
    return *made_up(train, test), "made-up pictures"


def made_up(*counts: int) -> list[Pixels]:
    """Sets of pictures of 32 px in ten classes: one of a class's four patterns, anywhere, under noise."""
    make = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.randn(40, 3, 6, 6, generator=make), (32, 32), mode="bicubic").unflatten(0, (10, 4))
    sets = []
    for count in counts:
        labels, images = torch.arange(count) % 10, np.empty((count, 3, 32, 32), np.uint8)
        for begin in range(0, count, 2_000):
            of = labels[begin : begin + 2_000]
            n = len(of)
            chosen = patterns[of, torch.randint(4, (n,), generator=make)]
            shift = torch.randint(32, (n, 2), generator=make)
            rows, columns = ((torch.arange(32) + shift[:, i, None]) % 32 for i in range(2))
            moved = chosen[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
            over = F.interpolate(torch.randn(n, 3, 8, 8, generator=make), (32, 32), mode="bilinear")
            grain = torch.randn(n, 3, 32, 32, generator=make)
            mixed = 128 + 45 * moved + 30 * over + 12 * grain
            images[begin : begin + n] = mixed.clamp(0, 255).byte().numpy()
        some = images[:2_000] / 255
        mean, std = (tuple(map(float, x)) for x in (some.mean((0, 2, 3)), some.std((0, 2, 3))))
        sets.append(Pixels(images, labels.numpy(), CLASSES, mean, std))  # type: ignore[arg-type]
    return sets
