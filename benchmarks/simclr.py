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
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks._examples import SimCLR
from benchmarks._lightly import Pictures
from benchmarks._paired import Pair, arguments, show
from benchmarks._training import opened, our_seconds
from sensorium.base.precision import resolve_precision
from sensorium.selfsup.simclr.recipe import simclr

STEPS, BATCH, ROUNDS = 6, 256, 5
BEGUN = 2  # steps that are not timed: until then workers start, and memory gets warm


class Theirs(lightning.LightningModule):
    """The module of lightly's example, around a network of the shape of ours."""

    def __init__(self, ours: nn.Module):
        super().__init__()
        self.example = SimCLR(ours)

    def training_step(self, batch: tuple[list[Tensor], Tensor], index: int) -> Tensor:
        loss = self.example.loss(self.example.loaded(batch))
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.example.optimizer(self.parameters())


def their_seconds(data: Pictures, workers: int, precision: str, folder: str, ours: nn.Module) -> float:
    """Seconds an image."""
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)
    clock = Clock()
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=1, precision=precision, callbacks=[clock], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Theirs(ours), loader)
    return (clock.at[-1] - clock.at[BEGUN - 1]) / (len(clock.at) - BEGUN) / BATCH


class Clock(lightning.Callback):
    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.at.append(time.perf_counter())


def main() -> None:
    options = arguments(__doc__)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    own = resolve_precision("auto", "cpu")
    rows = [("as shipped", {}, "32-true", 2.5), ("like theirs", {"batch_size": BATCH, "view_size": 32}, own, 1.5)]
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        pixels, on = opened(8000, Path(folder))
        data = Pictures(pixels.images, SimCLR.transform())
        ours = simclr(on, backbone="resnet-micro").method
        best: dict[str, int] = {}
        for name, given, precision, target in rows:
            if precision not in best:
                trial = {w: their_seconds(data, w, precision, folder, ours) for w in (0, 1, 2)}
                best[precision] = min(trial, key=trial.__getitem__)
            mine, theirs = [], []
            for _ in range(min(options.rounds, ROUNDS)):
                mine.append(
                    our_seconds(
                        simclr(on, backbone="resnet-micro", **given), pixels, STEPS * BATCH, Path(folder), begun=BEGUN
                    )
                )
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
