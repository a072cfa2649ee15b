"""A random view of images: operations of :mod:`sensorium.data.augment.images` in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sensorium.base.draw import Draw, Views
from sensorium.data.augment import images as augment
from sensorium.data.augment.mixing import mixed
from sensorium.data.augment.shifts import shifted
from sensorium.data.rows import reads


@dataclass(frozen=True)
class View:
    """One random view: crop, flip, jitter, gray, blur, solarize, in this order. With ``shift`` the crop is the picture
    moved by up to so many pixels, mirrored at its borders, instead of a part of it. ``jitter`` holds the four ColorJitter
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
    shift: int = 0

    @property
    def kernel(self) -> int:
        """Taps of the blur: a tenth of the side, odd (SimCLR's rule: 23 at 224), at least 3."""
        return max(3, 2 * round(self.size / 20) + 1)

    @torch.no_grad()
    def __call__(self, images: Tensor, draw: Draw, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """[B, 3, H, W] -> normalized float32 [B, 3, size, size], on the images' device."""
        draw = replace(draw, device="cpu")
        if self.shift:
            images, boxes = shifted(images, draw, self.shift)
        else:
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


def supervised_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    *,
    scale: tuple[float, float] = (0.35, 1.0),
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    shift: int = 0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Views:
    """``{"image", "label"}``: crop (or ``shift``), flip and a color ``jitter`` (brightness, contrast, saturation, hue) of every
    sample.

    With the alpha of ``mixup`` or ``cutmix`` above 0 two pictures are mixed (see :mod:`sensorium.data.augment.mixing`):
    ``other``, the label of what was mixed in, and ``weight``, that of ``label``."""
    view = View(size, scale, jitter=jitter, jitter_p=float(any(jitter)), shift=shift)

    @reads("image", "label")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        image, label = view(fields["image"], draw, mean, std), fields["label"]
        if not mixup and not cutmix:
            return {"image": image, "label": label}
        image, other, weight = mixed(image, label, draw, mixup=mixup, cutmix=cutmix)
        return {"image": image, "label": label, "other": other, "weight": weight}

    return views


def masked_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    rank: Callable[[Draw], Tensor],
    *,
    scale: tuple[float, float] = (0.2, 1.0),
) -> Views:
    """``{"image", "noise" [B, N]}``: crop and flip only; the noise ranks the patches for masking, as ``rank`` makes it of a
    draw (:mod:`sensorium.parts.masking`). Crops are bilinear (MAE's and SimMIM's: bicubic)."""
    view = View(size, scale)

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        image = view(fields["image"], draw, mean, std)
        return {"image": image, "noise": rank(draw).to(image.device)}

    return views
