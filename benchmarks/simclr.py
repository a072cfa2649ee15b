"""Whole SimCLR training (data, augmentation, step, logging) against lightly's documented Lightning loop.

Both train the same network on the same CIFAR-10 pictures, in turn in one process; what is
compared is seconds an image. Theirs is the loop of lightly's SimCLR example: PIL pictures, SimCLRTransform at 32 px
without blur, batches of 256, a DataLoader with the best of 0, 1 and 2 workers, SimCLRProjectionHead, NTXentLoss, SGD, a
logged loss, float32; torchvision's blocks in torch's usual memory.
    as shipped   ours with the recipe's defaults on this machine: precision, batch and side of the views
    like theirs  ours with their batch and side of the views, theirs in our precision
Run: python -m benchmarks.simclr
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytorch_lightning as lightning
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.resnet import BasicBlock

from benchmarks._paired import Pair, arguments, show
from sensorium.base.precision import resolve_precision
from sensorium.data.images.cache import Pixels, cache
from sensorium.data.images.open import open_data
from sensorium.data.images.prepare import Situation
from sensorium.selfsup.simclr.recipe import simclr
from sensorium.training.fit import Options, fit

STEPS, BATCH, ROUNDS = 6, 256, 5
DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cifar10" / "train.npz"


class Pictures(Dataset):
    """PIL pictures through lightly's transform, as its users' data sets give them."""

    def __init__(self, images: np.ndarray):
        self.pictures = [Image.fromarray(image) for image in images]
        self.transform = SimCLRTransform(input_size=images.shape[1], gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.pictures[index])


class Theirs(lightning.LightningModule):
    """The module of lightly's example, around ``backbone``."""

    def __init__(self, backbone: nn.Module, dim: int):
        super().__init__()
        self.backbone, self.head, self.criterion = backbone, SimCLRProjectionHead(dim, max(dim, 256), 128), NTXentLoss()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        z0, z1 = (self.head(self.backbone(x).flatten(1)) for x in batch)
        loss = self.criterion(z0, z1)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.06)


def peer_of(ours: nn.Module) -> nn.Module:
    """torchvision's blocks in the shape of our network."""
    first = ours.conv1
    stem = [nn.Conv2d(3, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False)]
    layers: list[nn.Module] = [*stem, nn.BatchNorm2d(first.out_channels), nn.ReLU(inplace=True)]
    for name in ours.stages:
        for block in ours.get_submodule(name):
            inputs, outputs, stride = block.conv1.in_channels, block.conv2.out_channels, block.conv1.stride[0]
            shortcut = None
            if block.downsample is not None:
                shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            layers.append(BasicBlock(inputs, outputs, stride, shortcut))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))


def their_seconds(data: Pictures, workers: int, precision: str, folder: str, ours: nn.Module) -> float:
    """Seconds an image, from the third step on (workers have started, memory is warm)."""
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)
    clock = Clock()
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=1, precision=precision, callbacks=[clock], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Theirs(peer_of(ours), ours.dim), loader)
    return (clock.at[-1] - clock.at[1]) / (len(clock.at) - 2) / BATCH


class Clock(lightning.Callback):
    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.at.append(time.perf_counter())


def our_seconds(pixels: Pixels, on: Situation, folder: str, given: dict[str, int]) -> tuple[float, float]:
    """Seconds an image, from the third step on as theirs, and the share of them spent waiting; as many images as theirs."""
    recipe, out = simclr(on, **given), tempfile.mkdtemp(dir=folder)
    outcome = fit(recipe, pixels, budget=f"{STEPS * BATCH}images", out=out, options=Options(progress=False))
    seconds, images = np.loadtxt(Path(out) / "metrics.csv", delimiter=",", skiprows=1, usecols=(1, 2)).T
    return (seconds[-1] - seconds[1]) / (images[-1] - images[1]), outcome.waiting


def main() -> None:
    options = arguments(__doc__)
    if not DATA.is_file():
        raise SystemExit(f"skipped: {DATA} is not there (set SENSORIUM_DATA to the folder of data sets)")
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    own = resolve_precision("auto", "cpu")
    rows = [("as shipped", {}, "32-true", 2.5), ("like theirs", {"batch_size": BATCH, "view_size": 32}, own, 1.5)]
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        pixels = cache(open_data(str(DATA), limit=8000).train, 32, Path(folder) / "cache")
        mean, std = tuple(map(float, pixels.mean)), tuple(map(float, pixels.std))
        on = Situation(32, len(pixels), tuple(pixels.classes), mean, std, "cpu", os.cpu_count() or 1)  # type: ignore[arg-type]
        data = Pictures(np.ascontiguousarray(np.asarray(pixels.images).transpose(0, 2, 3, 1)))
        ours = simclr(on).method.backbone
        best: dict[str, int] = {}
        for name, given, precision, target in rows:
            if precision not in best:
                trial = {w: their_seconds(data, w, precision, folder, ours) for w in (0, 1, 2)}
                best[precision] = min(trial, key=trial.__getitem__)
            mine, theirs = [], []
            for _ in range(min(options.rounds, ROUNDS)):
                mine.append(our_seconds(pixels, on, folder, given))
                theirs.append(their_seconds(data, best[precision], precision, folder, ours))
            spent, waits = np.array(mine).T
            low, middle, high = np.quantile(np.array(theirs) / spent, [0.25, 0.5, 0.75])
            title = f"SimCLR training an image, {name}; theirs {precision}, {best[precision]} workers; ours waits {np.median(waits):.1%} for data"
            pairs.append(
                Pair(title, float(np.median(spent)), float(np.median(theirs)), middle, low, high, len(mine), target)
            )
        show(pairs, as_json=options.json)


if __name__ == "__main__":
    main()
