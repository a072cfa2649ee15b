"""Image similarity: peak signal-to-noise ratio, and structural similarity (Wang et al., 2004, IEEE TIP 13(4)).

    PSNR = 10 log10(L^2 / mean (x - y)^2)                                                                       in dB
    SSIM = mean over pixels and channels of (2 m_x m_y + c_1)(2 c_xy + c_2) / ((m_x^2 + m_y^2 + c_1)(v_x + v_y + c_2))
with local means m, variances v and covariance c_xy under a Gaussian window of 11 x 11 and sigma 1.5 that lies within the
image, c_1 = (0.01 L)^2, c_2 = (0.03 L)^2. L is the range of values. Shapes: B images of C channels, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE, SIGMA = 11, 1.5


def psnr(x: Tensor, y: Tensor, span: float = 255.0) -> Tensor:
    """[B, C, H, W] and [B, C, H, W] of any type -> dB [B], float64; 100 if they are equal. span: L."""
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(span**2 / error.clamp_min(span**2 * 1e-10))).clamp_max(100)


def ssim(x: Tensor, y: Tensor, span: float = 255.0) -> Tensor:
    """[B, C, H, W] and [B, C, H, W] of any type -> [B], float64, 1 if they are equal.

    span: L. For images smaller than the window, the window is reduced to their size (an odd number of pixels).
    """
    count = len(x)
    side = min(SIDE, *(n - (n + 1) % 2 for n in x.shape[-2:]))
    at = torch.arange(side, dtype=torch.float64, device=x.device) - side // 2
    line = torch.exp(-at.square() / (2 * SIGMA**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]
    x, y = (part.double().flatten(0, 1)[:, None] for part in (x, y))
    pairs = torch.cat([x, y, x * x, y * y, x * y])
    m_x, m_y, xx, yy, xy = F.conv2d(pairs, window).chunk(5)
    c_1, c_2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    like = (2 * m_x * m_y + c_1) * (2 * (xy - m_x * m_y) + c_2)
    unlike = (m_x.square() + m_y.square() + c_1) * (xx - m_x.square() + yy - m_y.square() + c_2)
    return (like / unlike).view(count, -1).mean(1)
