"""Augmentation of whole batches: what torchvision's transforms v2 draw and compute, with the parameters drawn per sample.

Idea: every operation is split in two. Its parameters are drawn for all samples at once, on the CPU, from a ``Draw``
(so one process equals N, and a GPU sees the same numbers). Its pixels are computed by a function of fixed
parameters, written as a few passes over a stack of planes:
    crop and resize   out = V x H^T     V, H: one matrix a sample and axis; its rows are the antialiased triangle filter
                                        (the flip is H's rows in reverse)
    blur              out = T x T^T     T: the Gaussian, with the reflected border folded in
    colour            x <- clamp(f x + (1 - f) y)      y: black (brightness), the image's mean grey (contrast) or its grey
                                                       plane (saturation): one formula for all three, in any order
    hue               a shift on the hexagon of HSV, without branches: see ``_shift_hue_``
``View`` runs them in small stacks of samples that stay in the processor's cache from the crop to the normalisation.

Images: [B, 3, H, W], uint8 in 0..255 or float in 0..1. Results are float32 in 0..1 unless said otherwise; arguments are
never changed. ``which`` [B] bool says which samples an operation is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.data.draw import Draw

GREY = (0.2989, 0.587, 0.114)  # what torchvision and Pillow weigh red, green and blue with (ITU-R 601-2)
HUE = 3  # the operations in ``Jitter.order``: 0 brightness, 1 contrast, 2 saturation, 3 hue
_CPU_STACK, _GPU_STACK = (
    1 << 17,
    1 << 25,
)  # floats worked on at once: half a megabyte stays in a core's second-level cache
_DENSE = 64  # up to this side a resize by matrices beats one call a sample on the CPU
_BLUR_ROWS = 64  # rows of a blur done at once: fewer multiply zeros, more pay for calls


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
    """Boxes as torchvision's RandomResizedCrop draws them: int64 [B, 4] of (top, left, height, width), on the CPU.

    An area in ``scale`` (share of the image) and a log-uniform aspect ratio; the first of ``tries`` that fits is taken,
    else the largest centred box whose ratio is in bounds.
    """
    draw = replace(draw, device="cpu")
    area_BT, ratio_BT = draw.rand(tries, 2).double().unbind(-1)
    area_BT = (area_BT * (scale[1] - scale[0]) + scale[0]) * (height * width)
    low, high = torch.tensor(ratio, dtype=torch.float64).log().tolist()
    ratio_BT = (ratio_BT * (high - low) + low).exp()
    size_BT2 = torch.stack([(area_BT / ratio_BT).sqrt(), (area_BT * ratio_BT).sqrt()], -1).round().long()
    full = torch.tensor([height, width])
    fits_BT = ((size_BT2 > 0) & (size_BT2 <= full)).all(-1)
    first_B = fits_BT.int().argmax(1)  # 0 where none fits
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
    span's ends and normalised.
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
    """Cut ``boxes`` [B, 4] (top, left, height, width; whole pixels inside the image) and resize to [B, 3, size, size].

    Bilinear, antialiased where it shrinks, as torchvision's ``resized_crop(antialias=True)``; samples with ``flipped``
    [B] bool are mirrored left to right. Large uint8 images on the CPU are rounded to whole levels, as torchvision does.
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
    """torch's integer resize takes one crop a call; from a side of about 64 on that is quicker than matrices."""
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
    """torchvision's RandomResizedCrop, one box a sample -> [B, 3, size, size]."""
    return crop_resize(images, crop_boxes(draw, images.shape[-2], images.shape[-1], scale, ratio), size)


def flip(images: Tensor, draw: Draw, p: float = 0.5) -> Tensor:
    """Mirror each sample left to right with probability ``p``; keeps the dtype."""
    return torch.where(draw.chance(p).to(images.device)[:, None, None, None], images.flip(-1), images)


# -------------------------------------------------------------------------------------------------------------- colour


class Jitter(NamedTuple):
    """Parameters of a colour jitter, on the CPU: ``factors`` [B, 4] of brightness, contrast, saturation (1: unchanged) and
    hue (turns, 0: unchanged); ``order`` [B, 4], the operations in the order in which they are applied; ``which`` [B]."""

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
    """Factors uniform in [max(0, 1 - v), 1 + v], hue in [-hue, hue], and an order, each sample its own."""
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
    """Apply a jitter of known parameters, in small stacks of samples; clamped to 0..1 after each operation."""
    out = as_float(images)
    rows_M = _by_hue_position(parameters)
    rows_M = rows_M[parameters.which[rows_M]]
    for rows in rows_M.split(_stack(images.device, images[0].numel())):
        stack = out[rows]
        _jitter_(stack, parameters.factors[rows], parameters.order[rows])
        out[rows] = stack
    return out


def _stack(device: torch.device, floats: int) -> int:
    """How many samples of ``floats`` values are worked on at once."""
    return max(1, (_CPU_STACK if device.type == "cpu" else _GPU_STACK) // floats)


def _by_hue_position(parameters: Jitter) -> Tensor:
    """Rows sorted so that samples whose hue is due at the same moment are neighbours; untouched samples come first."""
    key_B = (parameters.order == HUE).int().argmax(1) * parameters.which + parameters.which
    return torch.argsort(key_B, stable=True)


def _jitter_(images: Tensor, factors: Tensor, order: Tensor) -> None:
    """In place, on float images sorted by the position of hue. Decisions are made from the CPU's copy of the parameters."""
    x_BCN = images.view(len(images), 3, -1)
    on_device_B4 = factors.to(images.device, non_blocking=True)
    position_B = (order == HUE).int().argmax(1)
    ends = torch.bincount(position_B, minlength=4).cumsum(0).tolist()
    blends_B3 = order[order != HUE].view(-1, 3)
    for step in range(4):
        begin, end = ([0, *ends])[step], ends[step]
        if end > begin and bool(factors[begin:end, HUE].any()):
            _shift_hue_(x_BCN[begin:end], on_device_B4[begin:end, HUE])
        if step < 3:
            _blend_(x_BCN, blends_B3[:, step], factors.gather(1, blends_B3[:, step, None])[:, 0])


def _blend_(x_BCN: Tensor, kind_B: Tensor, factor_B: Tensor) -> None:
    """x <- clamp(f x + (1 - f) y), y by ``kind``: 0 for brightness, the mean grey for contrast, the grey for saturation.

    What no sample of the stack asks for is left out; that changes no value, for the terms left out are zero and a
    factor up to 1 never leaves the range.
    """
    rest_B = 1 - factor_B
    add = None
    if bool((kind_B == 2).any()):
        add = _grey(x_BCN).mul_((rest_B * (kind_B == 2)).to(x_BCN.device)[:, None, None])
    if bool((kind_B == 1).any()):
        mean_B1N = _grey(x_BCN.mean(-1, keepdim=True)).mul_((rest_B * (kind_B == 1)).to(x_BCN.device)[:, None, None])
        add = mean_B1N if add is None else add.add_(mean_B1N)
    x_BCN.mul_(factor_B.to(x_BCN.device)[:, None, None])
    if add is not None:
        x_BCN.add_(add)
    if bool((factor_B > 1).any()):
        x_BCN.clamp_(0, 1)


def _grey(x_BCN: Tensor) -> Tensor:
    """[B, 3, ...] -> [B, 1, ...]."""
    red, green, blue = (x_BCN[:, i : i + 1] for i in range(3))
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def _shift_hue_(x_BCN: Tensor, turns_B: Tensor) -> None:
    """Add ``turns`` to the hue of HSV, in place.

    With m, M the least and greatest of (r, g, b) and C = M - m, the hue in sixths of a turn is +-(1 + (g + b - r - m) / C),
    positive where g >= b: on each of the hexagon's sides this is the textbook's case. Back:
        g' = M - C (clamp(|h - 2|, 1, 2) - 1)    b' likewise with 4    r' = m + C (clamp(|h - 3|, 1, 2) - 1)
    Below, h is in turns and c6 = 6 C.
    """
    red, green, blue = x_BCN.unbind(1)
    least = torch.minimum(torch.minimum(red, green), blue)
    most = torch.maximum(torch.maximum(red, green), blue)
    c6 = (most - least).mul_(6)
    hue = (green + blue).sub_(red).sub_(least).div_(c6.clamp(min=1e-12)).add_(1 / 6)
    sign = (green - blue).ge_(0).mul_(2).sub_(1)
    hue = hue.mul_(sign).add_(turns_B[:, None] + 1).frac_()
    for channel, centre, base, way in ((red, 3, least, 1), (green, 2, most, -1), (blue, 4, most, -1)):
        away = torch.sub(hue, centre / 6).abs_().clamp_(1 / 6, 2 / 6).sub_(1 / 6)
        torch.addcmul(base, c6, away, value=way, out=channel)


def _of(images: Tensor, which: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """``images`` with the rows ``which`` (on the CPU) replaced, in place, by ``operation`` of them."""
    if bool(which.all()):
        return operation(images)
    if bool(which.any()):
        rows = which.nonzero()[:, 0].to(images.device)
        images[rows] = operation(images[rows])
    return images


def grayscale(images: Tensor, draw: Draw, p: float = 0.2) -> Tensor:
    """torchvision's RandomGrayscale: each sample gets three equal channels with probability ``p``."""
    return _of(as_float(images), draw.chance(p).cpu(), _three_greys)


def _three_greys(images: Tensor) -> Tensor:
    return _grey(images).expand_as(images).contiguous()


def solarize(images: Tensor, draw: Draw, p: float = 0.2, threshold: float = 128 / 255) -> Tensor:
    """torchvision's RandomSolarize: with probability ``p``, a sample's values from ``threshold`` on become 1 - x."""
    return _of(as_float(images), draw.chance(p).cpu(), lambda x: _inverted(x, threshold))


def _inverted(images: Tensor, threshold: float = 128 / 255) -> Tensor:
    return torch.where(images >= threshold, 1 - images, images)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std a channel, in 0..1 scale."""
    return _normalize_(as_float(images), mean, std)


def _normalize_(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean_C11, std_C11 = (torch.tensor(v, dtype=torch.float32, device=images.device)[:, None, None] for v in (mean, std))
    return images.mul_(1 / std_C11).sub_(mean_C11 / std_C11)


# ---------------------------------------------------------------------------------------------------------------- blur


def gaussian_blur(images: Tensor, draw: Draw, kernel: int, sigma: tuple[float, float], p: float = 0.5) -> Tensor:
    """torchvision's GaussianBlur with ``kernel`` taps (odd, less than twice the side), for each sample with probability
    ``p`` and a standard deviation of its own, uniform in ``sigma`` (pixels)."""
    if kernel % 2 == 0 or kernel // 2 >= min(images.shape[-2:]):
        raise ValueError(
            f"gaussian_blur: kernel {kernel} must be odd and less than twice the side of {tuple(images.shape)}"
        )
    which, sigma_B, out = draw.chance(p).cpu(), draw.uniform(*sigma).cpu(), as_float(images)
    for rows in which.nonzero()[:, 0].split(_stack(out.device, out[0].numel())):
        out[rows] = _blur(out[rows], sigma_B[rows], kernel)
    return out


def _blur(x_BCHW: Tensor, sigma_B: Tensor, kernel: int) -> Tensor:
    """Rows, then columns, ``_BLUR_ROWS`` at a time, each from the source rows that its kernel reaches."""
    for _ in range(2):  # each turn blurs the rows and swaps rows for columns
        side = x_BCHW.shape[2]
        # taps beyond five sigma weigh less than a millionth: not worth multiplying
        reach = min(kernel // 2, math.ceil(5 * float(sigma_B.max())))
        matrix_BHH = _blur_matrix(sigma_B, kernel, side).to(x_BCHW.device)
        block = _BLUR_ROWS if x_BCHW.device.type == "cpu" else side
        out = torch.empty(x_BCHW.mT.shape, device=x_BCHW.device)
        for begin in range(0, side, block):
            end = min(begin + block, side)
            low, high = max(0, begin - reach), min(side, end + reach)
            part = x_BCHW[:, :, low:high].mT @ matrix_BHH[:, None, begin:end, low:high].mT
            out[..., begin:end] = part
        x_BCHW = out
    return x_BCHW


def _blur_matrix(sigma_B: Tensor, kernel: int, side: int) -> Tensor:
    """[B, side, side]: row i holds the weights of the source pixels for output pixel i; the border is reflected."""
    reach = kernel // 2
    tap = torch.arange(-reach, reach + 1)
    weights_BK = torch.exp(-0.5 * (tap / sigma_B[:, None]).square())
    weights_BK = weights_BK / weights_BK.sum(1, keepdim=True)
    padded = F.pad(weights_BK, (side - 1, side - 1))
    band = padded.unfold(1, side + 2 * reach, 1).flip(1)  # row i: the kernel, starting at i, on the padded line
    matrix = band[..., reach : reach + side].clone()
    if reach:
        matrix[..., 1 : reach + 1] += band[..., :reach].flip(-1)
        matrix[..., side - 1 - reach : side - 1] += band[..., side + reach :].flip(-1)
    return matrix


# --------------------------------------------------------------------------------------------------------------- views


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
        boxes = crop_boxes(draw, images.shape[-2], images.shape[-1], self.scale)
        flipped, colour = draw.chance(self.flip_p), jitter_parameters(draw, *self.jitter, p=self.jitter_p)
        grey, blurred, inverted = draw.chance(self.grey_p), draw.chance(self.blur_p), draw.chance(self.solarize_p)
        sigma = draw.uniform(*self.sigma)
        out = torch.empty(len(images), 3, self.size, self.size, device=images.device)
        with torch.autocast(images.device.type, enabled=False):
            for rows in _by_hue_position(colour).split(_stack(images.device, 3 * self.size**2)):
                x = crop_resize(images[rows], boxes[rows], self.size, flipped[rows])
                jittered = rows[colour.which[rows]]
                if len(jittered):  # they come last, see _by_hue_position
                    _jitter_(x[len(rows) - len(jittered) :], colour.factors[jittered], colour.order[jittered])
                x = _of(x, grey[rows], _three_greys)
                x = _of(x, blurred[rows], lambda s, r=rows: _blur(s, sigma[r[blurred[r]]], self.kernel))
                x = _of(x, inverted[rows], _inverted)
                out[rows] = _normalize_(x, mean, std)
        return out


Views = Callable[
    [Tensor, Tensor, Draw], dict[str, Any]
]  # uint8 pixels [B, 3, S, S], labels [B], draw -> a method's batch


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


@torch.no_grad()
def plain(images: Tensor, mean: Sequence[float], std: Sequence[float], size: int) -> Tensor:
    """For evaluation: the whole image, resized if it is not [B, 3, size, size] already, and normalised."""
    if images.shape[-2:] != (size, size):
        whole = torch.tensor([0, 0, *images.shape[-2:]]).expand(len(images), 4)
        images = crop_resize(images, whole, size)
    return normalize(images, mean, std)
