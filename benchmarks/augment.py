"""Two-view SimCLR augmentation against lightly's SimCLRTransform: one thread, the same operations on both sides.

lightly gets PIL images one by one, as its users' data sets hand them over, and its tensors are stacked, as their
DataLoader does; ours gets the batch of uint8 pixels that the cache hands over.
Run: python -m benchmarks.augment
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image

from benchmarks._paired import Pair, arguments, paired, show
from sensorium.base.draw import Draw
from sensorium.data.augment.crops import simclr_views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def smooth_images(count: int, size: int) -> torch.Tensor:
    """Random uint8 images [count, 3, size, size] with the smoothness of photographs: noise of four octaves."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(count, 3, size, size)
    for octave in range(4):
        noise = torch.rand(count, 3, 4 << octave, 4 << octave, generator=generator) - 0.5
        total += F.interpolate(noise, size=(size, size), mode="bicubic") / (1 << octave)
    return ((total + 0.5).clamp(0, 1) * 255).round().byte()


def pair(size: int, batch: int, blur: float, target: float, rounds: int) -> Pair:
    pixels = smooth_images(batch, size)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    transform = SimCLRTransform(input_size=size, gaussian_blur=blur)
    views = simclr_views(MEAN, STD, size, strength=1.0, blur=blur)
    steps = itertools.count()

    def theirs() -> list[torch.Tensor]:
        return [torch.stack(view) for view in zip(*(transform(picture) for picture in pictures), strict=True)]

    def ours() -> list[torch.Tensor]:
        return views({"image": pixels}, Draw.seeded(0, next(steps), batch))["views"]

    return paired(f"SimCLR two views, {size} px, batch {batch}", ours, theirs, rounds=rounds, limit=20, target=target)


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pairs = [pair(32, 256, 0.0, 5.0, options.rounds), pair(224, 32, 0.5, 2.0, options.rounds)]
    show(pairs, as_json=options.json)


if __name__ == "__main__":
    main()
