"""Augmentation of whole batches, equal to torchvision's transforms v2, with parameters drawn per sample.

Every operation has two parts. Its parameters are drawn for all samples at once, on the CPU, from a ``Draw`` (so one
process equals N, and a GPU gets the same numbers). Its pixels are computed by a function of fixed parameters, in a few
passes over a stack of planes:
    crop and resize   out = V x H^T     V, H: one matrix per sample and axis; its rows are the antialiased triangle filter
                                        (the flip is H's rows in reverse)
    blur              out = T x T^T     T: a band of the Gaussian
    color            x <- clamp(f x + (1 - f) y)      y: black (brightness), the image's mean gray (contrast) or its gray
                                                       plane (saturation)
    hue               a shift on the hexagon of HSV, without branches: see ``_hue_``
Each sample draws its own order of the four color operations, as in torchvision; samples are sorted by it.
``View`` (:mod:`sensorium.data.augment.views`) runs them on small stacks of samples that stay in the processor's cache
from the crop to the normalization.

Images: [B, 3, H, W], uint8 in 0..255 or float in 0..1. Results are float32 in 0..1 unless said otherwise; arguments are
never changed. ``which`` [B] bool: the samples that an operation applies to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.base.draw import Draw

GREY = (0.2989, 0.587, 0.114)  # torchvision's and Pillow's weights of red, green and blue (ITU-R 601-2)
HUE = 3  # the operations in ``Jitter.order``: 0 brightness, 1 contrast, 2 saturation, 3 hue
# floats processed at once: a megabyte fits in a core's second-level cache
_CPU_STACK, _GPU_STACK = 1 << 18, 1 << 25
_DENSE = 64  # up to this side a resize by matrices is faster than one call per sample on the CPU
_BLUR_BLOCK = 32  # outputs of a blur computed at once: larger multiplies more zeros, smaller makes more calls


def as_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 0..1; floats become a float32 copy."""
    return images.float().mul_(1 / 255) if images.dtype == torch.uint8 else images.to(torch.float32, copy=True)


# ---------------------------------------------------------------------------------------------------------- crop, flip


def crop_boxes(
    draw: Draw,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    tries: int = 10,
) -> Tensor:
    """Boxes of torchvision's RandomResizedCrop: int64 [B, 4] of (top, left, height, width), on the CPU.

    An area in ``scale`` (fraction of the image) and a log-uniform aspect ratio; the first of ``tries`` that fits is
    taken, else the largest centered box whose ratio is in bounds.
    """
    draw = replace(draw, device="cpu")
    area_BT, ratio_BT = draw.rand(tries, 2).double().unbind(-1)
    area_BT = (area_BT * (scale[1] - scale[0]) + scale[0]) * (height * width)
    low, high = torch.tensor(ratio, dtype=torch.float64).log().tolist()
    ratio_BT = (ratio_BT * (high - low) + low).exp()
    size_BT2 = torch.stack([(area_BT / ratio_BT).sqrt(), (area_BT * ratio_BT).sqrt()], -1).round().long()
    full = torch.tensor([height, width])
    fits_BT = ((size_BT2 > 0) & (size_BT2 <= full)).all(-1)
    first_B = fits_BT.int().argmax(1)  # 0 if none fits
    size_B2 = size_BT2[torch.arange(len(first_B)), first_B]
    offset_B2 = torch.minimum((draw.rand(2).double() * (full - size_B2 + 1)).long(), full - size_B2)
    shape = width / height
    if shape < min(ratio):
        fallback = torch.tensor([round(width / min(ratio)), width])
    elif shape > max(ratio):
        fallback = torch.tensor([height, round(height * max(ratio))])
    else:
        fallback = full
    chosen = fits_BT.any(1, keepdim=True)
    return torch.cat(
        [torch.where(chosen, offset_B2, (full - fallback) // 2), torch.where(chosen, size_B2, fallback)], 1
    )


def _resize_weights(start_B: Tensor, length_B: Tensor, source: int, size: int, flipped_B: Tensor | None) -> Tensor:
    """[B, size, source]: row i holds the weights of the source pixels for output pixel i of the span [start, start + length).

    The triangle filter of bilinear interpolation, widened by the factor of reduction (antialiasing), is cut off at the
    span's ends and normalized.
    """
    scale_B1 = length_B[:, None] / size
    at_1S = torch.arange(size, device=start_B.device)[None] + 0.5
    at_BS = at_1S if flipped_B is None else torch.where(flipped_B[:, None], size - at_1S, at_1S)
    centre_BS1 = (start_B[:, None] - 0.5 + at_BS * scale_B1)[..., None]
    pixel_N = torch.arange(source, device=start_B.device)
    inside_B1N = ((pixel_N >= start_B[:, None]) & (pixel_N < (start_B + length_B)[:, None])).float()[:, None]
    weights = (
        (pixel_N - centre_BS1).abs_().mul_(-1 / scale_B1.clamp(min=1)[..., None]).add_(1).clamp_(min=0).mul_(inside_B1N)
    )
    return weights.div_(weights.sum(-1, keepdim=True))


def crop_resize(images: Tensor, boxes: Tensor, size: int, flipped: Tensor | None = None) -> Tensor:
    """Crop ``boxes`` [B, 4] (top, left, height, width; integers inside the image) and resize to [B, 3, size, size].

    Bilinear, antialiased when downsampling, as torchvision's ``resized_crop(antialias=True)``; samples with ``flipped``
    [B] bool are flipped horizontally. Large uint8 images on the CPU are rounded to integers, as in torchvision.
    """
    if images.dtype == torch.uint8 and images.device.type == "cpu" and max(*images.shape[-2:], size) > _DENSE:
        return _crop_resize_one_by_one(images, boxes, size, flipped)
    top, left, height, width = boxes.to(images.device, torch.float32).unbind(1)
    flipped = None if flipped is None else flipped.to(images.device)
    vertical = _resize_weights(top, height, images.shape[-2], size, None)
    horizontal = _resize_weights(left, width, images.shape[-1], size, flipped)
    if images.dtype == torch.uint8:
        vertical.mul_(1 / 255)
    return vertical[:, None] @ images.float() @ horizontal.mT[:, None]


def _crop_resize_one_by_one(images: Tensor, boxes: Tensor, size: int, flipped: Tensor | None) -> Tensor:
    """torch's integer resize takes one crop per call; from a side of about 64 it is faster than matrices."""
    out = torch.empty(len(images), images.shape[1], size, size)
    mirror = [False] * len(images) if flipped is None else flipped.tolist()
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        crop = images[i : i + 1, :, top : top + height, left : left + width]
        done = F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)[0]
        out[i] = done.flip(-1) if mirror[i] else done
    return out.mul_(1 / 255)


def random_resized_crop(
    images: Tensor,
    size: int,
    draw: Draw,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """torchvision's RandomResizedCrop, one box per sample -> [B, 3, size, size]."""
    return crop_resize(images, crop_boxes(draw, images.shape[-2], images.shape[-1], scale, ratio), size)


def flip(images: Tensor, draw: Draw, p: float = 0.5) -> Tensor:
    """Flip each sample horizontally with probability ``p``; keeps the dtype."""
    return torch.where(draw.chance(p).to(images.device)[:, None, None, None], images.flip(-1), images)


# -------------------------------------------------------------------------------------------------------------- color


class Jitter(NamedTuple):
    """Parameters of a color jitter, on the CPU: ``factors`` [B, 4] of brightness, contrast, saturation (1: unchanged)
    and hue (turns, 0: unchanged); ``order`` [B, 4], the operations in the order in which they are applied; ``which``
    [B]."""

    factors: Tensor
    order: Tensor
    which: Tensor


def jitter_parameters(
    draw: Draw,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    p: float = 1.0,
) -> Jitter:
    """Factors uniform in [max(0, 1 - v), 1 + v], hue in [-hue, hue], and an order, per sample."""
    draw = replace(draw, device="cpu")
    low = torch.tensor([max(0.0, 1 - brightness), max(0.0, 1 - contrast), max(0.0, 1 - saturation), -hue])
    high = torch.tensor([1 + brightness, 1 + contrast, 1 + saturation, hue])
    factors = draw.rand(4) * (high - low) + low
    return Jitter(factors, torch.argsort(draw.rand(4), dim=1, stable=True), draw.chance(p))


def color_jitter(
    images: Tensor,
    draw: Draw,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    p: float = 1.0,
) -> Tensor:
    """torchvision's ColorJitter, applied to each sample with probability ``p``."""
    return jitter(images, jitter_parameters(draw, brightness, contrast, saturation, hue, p))


def jitter(images: Tensor, parameters: Jitter) -> Tensor:
    """Apply a jitter with given parameters, clamped to 0..1 after each operation as in torchvision."""
    out = as_float(images)
    plan = by_order(parameters)
    for rows in plan[parameters.which[plan]].split(stack_of(images.device, images[0].numel())):
        stack = out[rows]
        jitter_(stack, parameters.factors[rows], parameters.order[rows])
        out[rows] = stack
    return out


def stack_of(device: torch.device, floats: int) -> int:
    """Number of samples of ``floats`` values that are processed at once."""
    return max(1, (_CPU_STACK if device.type == "cpu" else _GPU_STACK) // floats)


def by_order(parameters: Jitter) -> Tensor:
    """Rows sorted so that samples with the same operation at the same step are adjacent, above all hue, the most
    expensive; samples without jitter come first."""
    key_B = (parameters.order * torch.tensor([64, 16, 4, 1])).sum(1) + 256 * (parameters.order == HUE).int().argmax(1)
    return torch.argsort(torch.where(parameters.which, key_B, -1), stable=True)


def jitter_(images: Tensor, factors: Tensor, order: Tensor) -> None:
    """In place on float images; runs of samples whose next operation is the same go together."""
    x_BCN = images.view(len(images), 3, -1)
    single = factors[0].tolist() if len(images) == 1 else []  # plain numbers avoid many small calls
    factors = factors if single else factors.to(images.device, non_blocking=True)[..., None, None]
    for step in range(4):
        begin = 0
        for operation, run in itertools.groupby(order[:, step].tolist()):
            end = begin + len(list(run))
            _ADJUST[operation](x_BCN[begin:end], single[operation] if single else factors[begin:end, operation])
            begin = end


def _brightness_(x_BCN: Tensor, factor: float | Tensor) -> None:
    _clamp_(x_BCN.mul_(factor), factor)


def _contrast_(x_BCN: Tensor, factor: float | Tensor) -> None:
    mean_B11 = _grey(x_BCN.mean(-1, keepdim=True))
    _clamp_(x_BCN.mul_(factor).add_(mean_B11.mul_(1 - factor)), factor)


def _saturation_(x_BCN: Tensor, factor: float | Tensor) -> None:
    grey_B1N = _grey(x_BCN)
    if isinstance(factor, Tensor):
        x_BCN.mul_(factor).add_(grey_B1N.mul_(1 - factor))
    else:
        torch.lerp(grey_B1N.expand_as(x_BCN), x_BCN, factor, out=x_BCN)
    _clamp_(x_BCN, factor)


def _clamp_(x_BCN: Tensor, factor: float | Tensor) -> None:
    """Factors up to 1 mix two images in range: nothing to clamp."""
    if isinstance(factor, Tensor) or factor > 1:
        x_BCN.clamp_(0, 1)


def _hue_(x_BCN: Tensor, turns: float | Tensor) -> None:
    """Add ``turns`` to the hue of HSV.

    With m, M the minimum and maximum of (r, g, b) and C = M - m, the hue in sixths of a turn is +-(1 + (g + b - r - m)
    / C), positive where g >= b: on each of the hexagon's sides this is the textbook's case. Back, with a(k) = clamp(|h
    - k|, 1, 2):
        r' = m - C + C a(3)        g' = M + C - C a(2)        b' = M + C - C a(4)
    """
    if not isinstance(turns, Tensor) and turns == 0:
        return
    red, green, blue = x_BCN.split(1, 1)
    least, most, hue, sign = torch.minimum(green, blue), torch.maximum(green, blue), green + blue, green - blue
    torch.minimum(least, red, out=least)
    torch.maximum(most, red, out=most)
    hue.sub_(red).sub_(least)
    sign.ge_(0).mul_(2 / 6).sub_(1 / 6)  # of a turn
    hue.div_(torch.sub(most, least, out=red).clamp_(min=1e-12)).add_(1).mul_(sign)
    hue.add_(turns + 1).frac_().mul_(6)
    chroma = torch.sub(most, least, out=sign)  # reuse buffers: everything has to fit in the cache
    torch.sub(hue, torch.tensor([[[3.0], [2.0], [4.0]]], device=hue.device), out=x_BCN)
    x_BCN.abs_().clamp_(1, 2).mul_(chroma)
    red.add_(least.sub_(chroma))
    most.add_(chroma)
    torch.sub(most, green, out=green)
    torch.sub(most, blue, out=blue)


_ADJUST = (_brightness_, _contrast_, _saturation_, _hue_)


def _grey(x_BCN: Tensor) -> Tensor:
    """[B, 3, ...] -> [B, 1, ...]."""
    red, green, blue = x_BCN.split(1, 1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def apply_where(images: Tensor, which: list[bool], operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``operation`` to the rows ``which`` of ``images``, in place."""
    if all(which):
        return operation(images)
    if any(which):
        rows = torch.tensor(which).nonzero()[:, 0].to(images.device)
        images[rows] = operation(images[rows])
    return images


def grayscale(images: Tensor, draw: Draw, p: float = 0.2) -> Tensor:
    """torchvision's RandomGrayscale: each sample gets three equal channels with probability ``p``."""
    return apply_where(as_float(images), draw.chance(p).tolist(), three_greys)


def three_greys(images: Tensor) -> Tensor:
    return _grey(images).expand_as(images).contiguous()


def solarize(images: Tensor, draw: Draw, p: float = 0.2, threshold: float = 128 / 255) -> Tensor:
    """torchvision's RandomSolarize: with probability ``p``, a sample's values from ``threshold`` on become 1 - x."""
    return apply_where(as_float(images), draw.chance(p).tolist(), lambda x: inverted(x, threshold))


def inverted(images: Tensor, threshold: float = 128 / 255) -> Tensor:
    return torch.where(images >= threshold, 1 - images, images)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std per channel, in 0..1 scale."""
    centre, inverse = affine_of(mean, std, images.device)
    return as_float(images).mul_(inverse).sub_(centre)


def affine_of(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """mean / std and 1 / std, [3, 1, 1] each."""
    mean_C11, std_C11 = (torch.tensor(v, dtype=torch.float32, device=device)[:, None, None] for v in (mean, std))
    return mean_C11 / std_C11, 1 / std_C11


# ---------------------------------------------------------------------------------------------------------------- blur


def gaussian_blur(images: Tensor, draw: Draw, kernel: int, sigma: tuple[float, float], p: float = 0.5) -> Tensor:
    """torchvision's GaussianBlur with ``kernel`` taps (odd, less than twice the side), for each sample with probability
    ``p`` and its own standard deviation, uniform in ``sigma`` (pixels)."""
    if kernel % 2 == 0 or kernel // 2 >= min(images.shape[-2:]):
        raise ValueError(
            f"gaussian_blur: kernel {kernel} must be odd and less than twice the side of {tuple(images.shape)}"
        )
    which, taps_BK, out = draw.chance(p).cpu(), gaussian_taps(draw.uniform(*sigma).cpu(), kernel), as_float(images)
    for rows in which.nonzero()[:, 0].split(stack_of(out.device, out[0].numel())):
        out[rows] = blur(out[rows], taps_BK[rows])
    return out


def gaussian_taps(sigma_B: Tensor, kernel: int) -> Tensor:
    """[B, kernel], rows sum to 1."""
    return torch.softmax(-0.5 * (torch.arange(kernel) - kernel // 2).div(sigma_B[:, None]).square(), 1)


def blur(x_BCHW: Tensor, taps_BK: Tensor) -> Tensor:
    """Along rows, then columns: each line is split into overlapping pieces, and one banded matrix of the Gaussian
    computes ``_BLUR_BLOCK`` outputs of each. The planes are laid out as [H, 3, W], where both directions are plain
    matrix products.
    """
    n, _, height, width = x_BCHW.shape
    reach = taps_BK.shape[1] // 2
    if n == 1:  # skip taps below a millionth
        kept = max(1, int((taps_BK[0] > 1e-6).sum()) // 2)
        taps_BK, reach = taps_BK[:, reach - kept : reach + kept + 1], kept
    block = min(max(height, width), _BLUR_BLOCK)
    piece, tall, wide = block + 2 * reach, -(-height // block), -(-width // block)  # pieces down and across, rounded up
    line = F.pad(taps_BK, (block - 1, block - 1))
    band_BPK = line.unfold(1, piece, 1).flip(1).to(x_BCHW.device)  # row i: the taps, starting at i

    rows = x_BCHW.new_empty(n, height, 3, wide * block + 2 * reach)
    rows[..., reach : reach + width] = x_BCHW.transpose(1, 2)
    pieces = _reflect_(rows, reach, 3, width).view(n, height * 3, -1).unfold(2, piece, block).transpose(1, 2)
    done = (pieces @ band_BPK.mT[:, None]).view(n, wide, height, 3, block)

    columns = x_BCHW.new_empty(n, tall * block + 2 * reach, 3, wide * block)
    columns[:, reach : reach + height].view(n, height, 3, wide, block).copy_(done.permute(0, 2, 3, 1, 4))
    pieces = _reflect_(columns, reach, 1, height).flatten(2).unfold(1, piece, block).mT
    out = (band_BPK[:, None] @ pieces).view(n, tall * block, 3, wide * block)
    return out[:, :height, :, :width].transpose(1, 2)


def _reflect_(x: Tensor, reach: int, dim: int, size: int) -> Tensor:
    """Along ``dim``, ``size`` entries begin at ``reach``; mirror them into the ``reach`` before and after (the border itself
    not twice), and fill the rest with zeros."""
    x.narrow(dim, 0, reach).copy_(x.narrow(dim, reach + 1, reach).flip(dim))
    x.narrow(dim, reach + size, reach).copy_(x.narrow(dim, size - 1, reach).flip(dim))
    x.narrow(dim, size + 2 * reach, x.shape[dim] - size - 2 * reach).zero_()
    return x


@torch.no_grad()
def plain(images: Tensor, mean: Sequence[float], std: Sequence[float], size: int) -> Tensor:
    """For evaluation: the whole image, resized if it is not [B, 3, size, size] already, and normalized."""
    if images.shape[-2:] != (size, size):
        whole = torch.tensor([0, 0, *images.shape[-2:]]).expand(len(images), 4)
        images = crop_resize(images, whole, size)
    return normalize(images, mean, std)
