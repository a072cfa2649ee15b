"""A network in a frame (``frames.py``): the denoiser that it makes, and what it learns by.

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise),        L = w mean |F - (data - c_skip x) / c_out|^2,     x = data + sigma n
Shapes: B samples; sigma [B].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sensorium.base.precision import precise
from sensorium.parts.denoising.frames import Frame

Net = Callable[[Tensor, Tensor], Tensor]  # F: c_in x [B, ...] and c_noise [B] -> [B, ...]


def denoised(frame: Frame, net: Net, x: Tensor, sigma: Tensor) -> Tensor:
    """D of x [B, ...] at sigma [B], float32 at least."""
    sigma = _exact(sigma)
    out = precise(_output(frame, net, x, sigma))
    found = broad(frame.skip(sigma), x) * x + broad(frame.out(sigma), x) * out
    return found.to(torch.promote_types(x.dtype, torch.float32))


def denoising_loss(frame: Frame, net: Net, data: Tensor, noise: Tensor, level: Tensor) -> dict[str, Tensor]:
    """data and normal noise [B, ...], level [B] in (0, 1) -> the ``loss`` L, and ``explained``: which part of what F should be it
    predicts, 0 for zeros."""
    sigma = frame.draw(_exact(level))
    noisy = data + broad(sigma, data) * noise
    wanted = ((data - broad(frame.skip(sigma), data) * noisy) / broad(frame.out(sigma), data)).to(data.dtype)
    each = (precise(_output(frame, net, noisy, sigma)) - wanted).square().flatten(1).mean(1)
    loss = (frame.weight(sigma).to(each) * each).mean()
    return {"loss": loss, "explained": 1 - each.detach().mean() / wanted.square().mean().clamp_min(1e-12)}


def _output(frame: Frame, net: Net, x: Tensor, sigma: Tensor) -> Tensor:
    return net((broad(frame.inputs(sigma), x) * x).to(x.dtype), frame.time(sigma).to(x))


def _exact(sigma: Tensor) -> Tensor:
    """Where frames can compute in float64, which Apple's GPUs have not."""
    return sigma.cpu() if sigma.device.type == "mps" else sigma


def broad(value: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], in the precision of ``like``."""
    return value.to(like.device, like.dtype).view(-1, *(1,) * (like.ndim - 1))
