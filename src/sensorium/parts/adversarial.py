"""Adversarial losses of a generator and a discriminator.

d(x) are the discriminator's logits of real images, d(y) of generated ones; means are over all of them.
    hinge (Lim & Ye, 2017, arXiv:1705.02894)             D: (mean max(0, 1 - d(x)) + mean max(0, 1 + d(y))) / 2
                                                         G: -mean d(y)
    non-saturating (Goodfellow et al., 2014, 1406.2661)  D: (mean -log s(d(x)) + mean -log(1 - s(d(y)))) / 2
                                                         G: mean -log s(d(y)),   s the logistic function
    Wasserstein (Arjovsky et al., 2017, 1701.07875)      D: mean d(y) - mean d(x)        G: -mean d(y)
The factor 1/2 is from VQGAN's code. A discriminator is kept smooth by the gradients of its logits at images:
    gradient penalty (Gulrajani et al., 2017, arXiv:1704.00028, eq. 3)    mean (|grad d(u x + (1 - u) y)| - 1)^2,   u uniform
    R1 (Mescheder et al., 2018, arXiv:1801.04406, eq. 9)                  mean |grad d(x)|^2 / 2
VQGAN's adaptive weight (arXiv:2012.09841, eq. 7) balances both terms at the last layer
L:
    lambda = |grad_L L_rec| / (|grad_L L_G| + delta)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.parts.gather import sum_over_processes, world_size

DELTA = 1e-4  # of the authors' code; the paper has 1e-6
LARGEST = 1e4


def hinge_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """Logits of any shape -> 0-d: 0 if every real one is at least 1 and every generated one at most -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2


def hinge_generator(made: Tensor) -> Tensor:
    """Logits of any shape -> 0-d, unbounded below."""
    return -made.mean()


def nonsaturating_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """Logits of any shape -> 0-d: log 2 for a discriminator at chance."""
    return (F.softplus(-real).mean() + F.softplus(made).mean()) / 2


def nonsaturating_generator(made: Tensor) -> Tensor:
    """Logits of any shape -> 0-d."""
    return F.softplus(-made).mean()


def wasserstein_discriminator(real: Tensor, made: Tensor) -> Tensor:
    """Logits of any shape -> 0-d, unbounded below."""
    return made.mean() - real.mean()


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, made: Tensor, uniform: Tensor) -> Tensor:
    """Of images [B, ...] between real and generated ones, by ``uniform`` [B] in 0..1 -> 0-d."""
    share = uniform.view(-1, *(1,) * (real.ndim - 1))
    between = (share * real + (1 - share) * made).detach().requires_grad_()
    return (_slopes(discriminator, between).sqrt() - 1).square().mean()


def r1(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Of real images [B, ...] -> 0-d."""
    return _slopes(discriminator, real.detach().requires_grad_()).mean() / 2


def _slopes(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The squared norm of the gradient of each image's logits [B], with a graph for the discriminator's weights; zeros if gradients are
    disabled."""
    if not torch.is_grad_enabled():
        return images.new_zeros(len(images))
    logits = discriminator(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """lambda, 0-d, at most 1e4, without a gradient, from two 0-d losses and the weight of the last layer.

    The graphs are kept. Gradients are those of the global batch. 0 if gradients are disabled.
    """
    if not (reconstruction.requires_grad and adversarial.requires_grad):
        return torch.zeros((), device=last.device)
    norms = []
    for loss in (reconstruction, adversarial):
        (gradient,) = torch.autograd.grad(loss, last, retain_graph=True)
        norms.append((sum_over_processes(gradient.detach()) / world_size()).norm())
    return (norms[0] / (norms[1] + DELTA)).clamp(0.0, LARGEST)
