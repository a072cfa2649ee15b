"""Batch normalization over the batch of all processes (Ioffe & Szegedy, 2015, arXiv:1502.03167), on every device.

torch's ``SyncBatchNorm`` does not support the CPU, and normalizing two halves of a batch separately differs from
normalizing the whole batch. Here every process gathers (n_r, mean_r, M2_r), its count, mean and sum of squared
deviations per channel, and merges them without cancellation (Chan et al., 1979):

    N = sum n_r    mean = sum n_r mean_r / N    var = sum (M2_r + n_r (mean_r - mean)^2) / N
    y = (x - mean) s w + b,   s = 1 / sqrt(var + eps)

The backward needs two sums over the whole batch, g1 = sum dy and g2 = sum dy xh with xh = (x - mean) s:

    dx = w s (dy - g1 / N - xh g2 / N)      dw, db: this process's share of g2, g1

Gradients follow the convention of :mod:`sensorium.parts.gather`. Shapes: B batch, C channels.

:func:`in_groups` normalizes parts of a batch apart, in one pass of the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sensorium.parts.gather import gather, sum_over_processes, world_size


class BatchNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` whose training statistics are those of the global batch. [B, C] or [B, C, L]."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and world_size() > 1:
            self._check_input_dim(input)
            return _normalize(self, input)
        return super().forward(input)


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose training statistics are those of the global batch. [B, C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and world_size() > 1:
            self._check_input_dim(input)
            return _normalize(self, input)
        return super().forward(input)


def synchronize_batchnorm(module: nn.Module) -> nn.Module:
    """Make every ``nn.BatchNorm1d`` and ``nn.BatchNorm2d`` inside ``module`` use the global batch. In place; returns
    ``module``.

    Parameters, buffers, names and hooks stay the same objects, so an existing optimizer stays valid.
    """
    for layer in module.modules():
        # The synchronized classes add behavior and no state, so that changing the class is the whole conversion.
        if type(layer) is nn.BatchNorm1d:
            layer.__class__ = BatchNorm1d
        elif type(layer) is nn.BatchNorm2d:
            layer.__class__ = BatchNorm2d
    return module


@contextmanager
def in_groups(module: nn.Module, sizes: Sequence[int]) -> Iterator[None]:
    """Within it each batch norm inside ``module`` normalizes the first ``sizes[0]`` samples of its input, the next
    ``sizes[1]`` and so on apart, and updates its running statistics after each of them, as one pass a group would; the other
    layers see the batch whole, which costs far less than a pass a group. For inputs of sum(sizes) samples."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    try:
        for layer in layers:
            layer.forward = partial(_each, layer.forward, list(sizes))
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _each(forward: Any, sizes: list[int], input: Tensor) -> Tensor:
    return torch.cat([forward(part) for part in input.split(sizes)])


def _normalize(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, var, count = _global_statistics(x.detach())
    if layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None:
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            weight = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), weight)
            layer.running_var.lerp_((var * (count / (count - 1))).to(layer.running_var.dtype), weight)
    return _Normalize.apply(x, layer.weight, layer.bias, mean, var, count, layer.eps)


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, C, ...] -> mean [C], biased variance [C], values per channel (0-d), over all processes, in float32 or
    better."""
    x = x.to(_precise(x.dtype))
    var_r, mean_r = torch.var_mean(x, dim=_all_but_channels(x), correction=0)
    n_r = mean_r.new_full((1,), x.numel() // x.shape[1])
    n, mean_rs, var_rs = gather(torch.cat([n_r, mean_r, var_r])[None]).split([1, x.shape[1], x.shape[1]], dim=1)
    share = n / n.sum()  # [R, 1]
    mean = (share * mean_rs).sum(0)
    var = (share * (var_rs + (mean_rs - mean).square())).sum(0)
    return mean, var, n.sum()


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _all_but_channels(x: Tensor) -> list[int]:
    return [d for d in range(x.ndim) if d != 1]


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, count: Tensor, eps: float) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, s, count = ctx.saved_tensors
        channels = [1, -1] + [1] * (x.ndim - 2)
        dy = grads[0].to(mean.dtype)
        centred = x.to(mean.dtype) - mean.view(channels)
        over = _all_but_channels(x)
        g1, g2 = dy.sum(over), (dy * centred).sum(over) * s
        mean1, mean2 = sum_over_processes(torch.stack([g1, g2])) / count
        dx = (dy - mean1.view(channels) - centred * (s * mean2).view(channels)) * s.view(channels)
        if weight is not None:
            dx = dx * weight.view(channels)
        dw = g2.to(weight.dtype) if weight is not None and ctx.needs_input_grad[1] else None
        db = g1.to(mean.dtype) if ctx.needs_input_grad[2] else None
        return dx.to(x.dtype), dw, db, None, None, None, None
