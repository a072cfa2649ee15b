"""Whole SimCLR training (data, augmentation, step, logging) against lightly's documented Lightning loop.

Both train the same network with the same batch on the same CIFAR-10 pictures, both through Lightning, in turn in one
process. Theirs is the loop of lightly's SimCLR example: LightlyDataset-style PIL pictures, SimCLRTransform without blur,
a DataLoader with the best of 0, 1 and 2 workers, SimCLRProjectionHead, NTXentLoss, SGD, a logged loss; a torchvision
network in torch's usual memory. The second row gives theirs our precision (the same as the first on a machine whose
own precision is float32).
Run: python -m benchmarks.simclr
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.resnet import BasicBlock

from benchmarks._paired import Pair, arguments, show
from sensorium.data.cache import cache
from sensorium.data.open import open_data
from sensorium.recipes.recipe import Situation
from sensorium.recipes.selfsup import simclr
from sensorium.training.fit import fit
from sensorium.training.precision import resolve_precision

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


def their_seconds(module: Theirs, data: Pictures, workers: int, precision: str, folder: str) -> float:
    """Seconds a step, from the third step on (workers have started, memory is warm)."""
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)
    clock = Clock()
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=1, precision=precision, callbacks=[clock], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    return clock.per_step()


class Clock(lightning.Callback):
    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.at.append(time.perf_counter())

    def per_step(self) -> float:
        return (self.at[-1] - self.at[1]) / (len(self.at) - 2)


def main() -> None:
    options = arguments(__doc__)
    if not DATA.is_file():
        raise SystemExit(f"skipped: {DATA} is not there (set SENSORIUM_DATA to the folder of data sets)")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        pixels = cache(open_data(str(DATA), limit=8000).train, 32, Path(folder) / "cache")
        mean, std = tuple(map(float, pixels.mean)), tuple(map(float, pixels.std))
        on = Situation(32, len(pixels), tuple(pixels.classes), mean, std, "cpu", os.cpu_count() or 1)  # type: ignore[arg-type]
        data = Pictures(np.ascontiguousarray(np.asarray(pixels.images).transpose(0, 2, 3, 1)))
        counter = iter(range(10_000))

        def our_seconds() -> tuple[float, float]:
            recipe = simclr(
                on, batch_size=BATCH, view_size=32
            )  # as theirs; the recipe's own default is smaller on a CPU
            out = Path(folder) / f"run{next(counter)}"
            outcome = fit(
                recipe.method, pixels, views=recipe.views, optimizer=recipe.optimizer, schedule=recipe.schedule, batch_size=BATCH,
                budget=f"{STEPS}steps", out=out, progress=False,
            )  # fmt: skip
            return outcome.seconds / outcome.steps, outcome.waiting

        ours = simclr(on, batch_size=BATCH).method.backbone
        own = resolve_precision("auto", "cpu")
        pairs = []
        for precision, target in {"32-true": 2.5, own: 1.5}.items():
            trial = {w: their_seconds(Theirs(peer_of(ours), ours.dim), data, w, precision, folder) for w in (0, 1, 2)}
            best = min(trial, key=trial.__getitem__)
            mine, theirs, waits = [], [], []
            for _ in range(min(options.rounds, ROUNDS)):
                seconds, waiting = our_seconds()
                mine.append(seconds)
                waits.append(waiting)
                theirs.append(their_seconds(Theirs(peer_of(ours), ours.dim), data, best, precision, folder))
            ratios = np.array(theirs) / np.array(mine)
            low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
            name = f"SimCLR training step, batch {BATCH}, theirs at {precision} with {best} workers; waiting for data {np.median(waits):.1%}"
            pairs.append(
                Pair(
                    name,
                    float(np.median(mine)),
                    float(np.median(theirs)),
                    float(middle),
                    float(low),
                    float(high),
                    len(mine),
                    target,
                )
            )
        show(pairs, as_json=options.json)


if __name__ == "__main__":
    main()
