"""Views: what a method sees of a batch of pixels, composed from the operations of :mod:`sensorium.data.augment.images`.

A view function takes uint8 pixels [B, 3, S, S], labels [B] (-1 unknown) and a ``Draw``, and gives the batch dictionary of a
method. Everything random in it comes from the draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sensorium.base.draw import Draw, Views
from sensorium.data.augment import images as augment


@dataclass(frozen=True)
class View:
    """One random view: crop, flip, jitter, grey, blur, solarize, in this order. ``jitter`` holds the four ColorJitter
    strengths; each ``*_p`` is the probability that a sample gets the operation; ``sigma`` is in output pixels."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    flip_p: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    grey_p: float = 0.0
    blur_p: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float = 0.0

    @property
    def kernel(self) -> int:
        """Taps of the blur: a tenth of the side, odd (SimCLR's rule: 23 at 224), at least 3."""
        return max(3, 2 * round(self.size / 20) + 1)

    @torch.no_grad()
    def __call__(self, images: Tensor, draw: Draw, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """[B, 3, H, W] -> normalised float32 [B, 3, size, size], on the images' device."""
        draw = replace(draw, device="cpu")
        boxes = augment.crop_boxes(draw, images.shape[-2], images.shape[-1], self.scale)
        mirrored, colour = draw.chance(self.flip_p), augment.jitter_parameters(draw, *self.jitter, p=self.jitter_p)
        grey, inverted, blurred = draw.chance(self.grey_p), draw.chance(self.solarize_p), draw.chance(self.blur_p)
        taps = augment.gaussian_taps(draw.uniform(*self.sigma), self.kernel)
        centre, inverse = augment.affine_of(mean, std, images.device)
        out = torch.empty(len(images), 3, self.size, self.size, device=images.device)
        stack = augment.stack_of(images.device, 3 * self.size**2)
        plan = torch.arange(len(images)) if stack == 1 else augment.by_order(colour)
        boxes, mirrored, factors, order, taps = (t[plan] for t in (boxes, mirrored, colour.factors, colour.order, taps))
        jittered, grey, inverted, blurred = (t[plan].tolist() for t in (colour.which, grey, inverted, blurred))
        with torch.autocast(images.device.type, enabled=False):
            for begin in range(0, len(images), stack):
                now = slice(begin, begin + stack)
                rows = now if stack == 1 else plan[now]  # a slice copies nothing
                x = augment.crop_resize(images[rows], boxes[now], self.size, mirrored[now])
                if count := sum(jittered[now]):  # the plan puts them last
                    augment.jitter_(x[-count:], factors[now][-count:], order[now][-count:])
                x = augment.apply_where(x, grey[now], augment.three_greys)
                x = augment.apply_where(
                    x, blurred[now], lambda s, now=now: augment.blur(s, taps[now][torch.tensor(blurred[now])])
                )
                x = augment.apply_where(x, inverted[now], augment.inverted).mul_(inverse)
                if stack == 1:
                    torch.sub(x, centre, out=out[now])
                else:
                    out[rows] = x.sub_(centre)
        return out


def simclr_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    *,
    strength: float | None = None,
    blur: float | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
) -> Views:
    """SimCLR (arXiv:2002.05709, appendix A): ``{"views": [x1, x2], "label"}``, both views drawn alike.

    Up to 64 pixels, ``strength`` of the jitter is 0.5 and there is no ``blur`` (its probability), as in the paper's
    CIFAR-10 runs; above, 1.0 and 0.5.
    """
    small = size <= 64
    s = (0.5 if small else 1.0) if strength is None else strength
    p = (0.0 if small else 0.5) if blur is None else blur
    view = View(size, scale, jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s), jitter_p=0.8, grey_p=0.2, blur_p=p)

    def views(pixels: Tensor, labels: Tensor, draw: Draw) -> dict[str, Any]:
        return {"views": [view(pixels, draw, mean, std) for _ in range(2)], "label": labels}

    return views


def dino_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    local_size: int,
    local_crops: int,
    *,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
    blur: bool | None = None,
) -> Views:
    """DINO's multi-crop (arXiv:2104.14294; the augmentation is BYOL's): ``{"crops": [2 global, then local], "label"}``.

    The first global crop is always blurred, the second in one case of ten, local ones in half; the second is solarized
    in one of five. ``blur`` defaults to off up to 64 pixels, where it would leave little to see. Crops are bilinear
    (the authors': bicubic).
    """
    blurs = size > 64 if blur is None else blur

    def crop(side: int, scale: tuple[float, float], blur_p: float, solarize_p: float = 0.0) -> View:
        jitter = (0.4, 0.4, 0.2, 0.1)
        p = blur_p if blurs else 0.0
        return View(side, scale, jitter=jitter, jitter_p=0.8, grey_p=0.2, blur_p=p, solarize_p=solarize_p)

    first, second = crop(size, global_scale, 1.0), crop(size, global_scale, 0.1, 0.2)
    every = [first, second, *[crop(local_size, local_scale, 0.5)] * local_crops]

    def views(pixels: Tensor, labels: Tensor, draw: Draw) -> dict[str, Any]:
        return {"crops": [view(pixels, draw, mean, std) for view in every], "label": labels}

    return views


def mae_views(
    mean: Sequence[float], std: Sequence[float], size: int, patches: int, *, scale: tuple[float, float] = (0.2, 1.0)
) -> Views:
    """MAE (arXiv:2111.06377): crop and flip only, ``{"image", "noise" [B, patches], "label"}``; the noise ranks the
    patches for masking. Crops are bilinear (the authors': bicubic)."""
    view = View(size, scale)

    def views(pixels: Tensor, labels: Tensor, draw: Draw) -> dict[str, Any]:
        image = view(pixels, draw, mean, std)
        return {"image": image, "noise": draw.rand(patches).to(pixels.device), "label": labels}

    return views


def supervised_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    *,
    scale: tuple[float, float] = (0.35, 1.0),
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
) -> Views:
    """``{"image", "label"}``: crop, flip and a colour ``jitter`` (brightness, contrast, saturation, hue) of every sample."""
    view = View(size, scale, jitter=jitter, jitter_p=float(any(jitter)))

    def views(pixels: Tensor, labels: Tensor, draw: Draw) -> dict[str, Any]:
        return {"image": view(pixels, draw, mean, std), "label": labels}

    return views
