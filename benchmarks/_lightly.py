"""The other side of timings against lightly (1.6): its users' pictures, networks of the shape of ours, and the loop that its
documented examples of methods have in common; benchmarks/_examples.py has the examples."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.resnet import BasicBlock

SGD = partial(torch.optim.SGD, lr=0.06)  # of the examples for CIFAR-10


def peer_of(ours: Any) -> nn.Sequential:
    """torchvision's blocks in the shape of our ResNet."""
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


def encoder(ours: Any, head: nn.Module) -> nn.Sequential:
    return nn.Sequential(peer_of(ours), nn.Flatten(1), head)


def widths(head: nn.Module) -> list[int]:
    """Of a head's linear layers: what the first takes, and what each gives."""
    layers = [part for part in head.modules() if isinstance(part, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


class Example(nn.Module):
    """What a loop needs of an example. ``batch``: pictures a step; ``crops``: local crops, where the number is a choice;
    ``optimizer``: of parameters."""

    batch, crops = 256, 0
    optimizer: Any = staticmethod(SGD)

    @staticmethod
    def transform() -> Any:
        """From a PIL picture to its views."""
        raise NotImplementedError

    def loader(self, data: Dataset, batch: int, workers: int) -> DataLoader:
        return DataLoader(data, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers)

    def loaded(self, batch: Any) -> Any:
        """What the loss takes, of a batch of the loader: views and labels."""
        return batch[0]

    def ours(self, batch: Mapping[str, Any]) -> Any:
        """The same, of a batch of our recipe."""
        return next(batch[name] for name in ("views", "crops") if name in batch)

    def before_step(self) -> None: ...

    def loss(self, views: Any) -> Tensor:
        raise NotImplementedError

    def before_update(self) -> None: ...

    def after_step(self) -> None: ...


class Pictures(Dataset):
    """PIL pictures through a transform, with a label, as their users' data sets give them. ``images``: uint8 [N, 3, H, W]."""

    def __init__(self, images: np.ndarray, transform: Any) -> None:
        self.pictures = [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in images]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.pictures[index]), 0


def take(example: Example, optimizer: torch.optim.Optimizer, views: Any, *, half: bool = False) -> None:
    """One step; ``half``: forward in bfloat16, by autocast."""
    example.before_step()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = example.loss(views)
    loss.backward()
    example.before_update()
    optimizer.step()
    optimizer.zero_grad()
    example.after_step()


def their_seconds(example: Example, data: Pictures, pictures: int, *, batch: int, workers: int) -> float:
    """Seconds a picture of the example's loop over as many pictures, after its first step. Of two steps at least, and where
    workers give two batches at a time, of an even number of them."""
    optimizer, at = example.optimizer(example.parameters()), []
    example.train()
    for loaded in example.loader(data, batch, workers):
        take(example, optimizer, example.loaded(loaded))
        at.append(time.perf_counter())
        if len(at) * batch >= pictures and len(at) % 2:
            break
    if len(at) < 3:
        raise ValueError(f"{len(data)} pictures make less than three batches of {batch}")
    return (at[-1] - at[0]) / (len(at) - 1) / batch
