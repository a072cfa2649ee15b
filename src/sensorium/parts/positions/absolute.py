"""Absolute positions: information about its position in a token's input to the first layer.

Each scheme gives position t a row p_t of D channels, which is added to the token (or multiplied with it):
    Sinusoidal      p_t = [sin(t w_0), cos(t w_0), sin(t w_1), ...], w_i = 10000^(-2i / D)      Vaswani et al., 2017
    Learned         p_t is a row of a table; beyond it interpolated, or composed of two rows          Su, 2020
    Multiplicative  x_t * p_t in place of x_t + p_t                                                   Su, 2021
    Complex         r exp(i (w t + a)) of a token's amplitude r, frequency w and phase a        Wang et al., 2020
    Recursive       dp/dt = h(t, p), h a small network                                           Liu et al., 2020
    Convolutional   a depthwise convolution whose zero padding marks the border                  Chu et al., 2021
    They change the input of attention and nothing inside it, so they work with every kind.
Shapes: B batch, T tokens, D width, N rows of a table, C = D / 2 complex channels, H x W a grid.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sensorium.base.precision import precise
from sensorium.parts.positions import Positions


def sinusoids(at: Tensor, width: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """sin(t w_i) and cos(t w_i) with w_i = theta^(-2i / width), for positions [T]: two float32 [T, width / 2].

    Raises ValueError if the width is odd.
    """
    angle = at.to(torch.float32)[:, None] * _frequencies(width, theta, at.device)
    return angle.sin(), angle.cos()


def _frequencies(width: int, theta: float, device: torch.device | None = None) -> Tensor:
    if width % 2:
        raise ValueError(f"sinusoids need an even width, got {width}")
    return theta ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)


class Absolute(Positions):
    """A scheme that adds one row per position, given by a subclass's ``rows``."""

    def rows(self, at: Tensor) -> Tensor:
        """Positions [T] -> their rows, [T, D]."""
        raise NotImplementedError

    def embed(self, x: Tensor, at: Tensor) -> Tensor:
        """x_t + p_t. [B, T, D] -> [B, T, D]."""
        return x + self.rows(at).to(x.dtype)


class Sinusoidal(Absolute):
    """Fixed sinusoids, sines and cosines interleaved (Vaswani et al., 2017, arXiv:1706.03762, section 3.5); any length,
    no weights.

    Positions [T, 2] are rows and columns: the first half of the channels encodes the row, the second the column.
    Sinusoids have magnitude 1 and dominate small embeddings: the paper multiplies these by sqrt(D).
    """

    def __init__(self, width: int, theta: float = 10_000.0) -> None:
        super().__init__()
        self.width, self.theta = width, theta

    def rows(self, at: Tensor) -> Tensor:
        """Positions [T] or [T, 2] -> float32 [T, D]. Raises ValueError if D is odd, or in 2-D if D / 2 is."""
        if at.ndim == 2:
            return torch.cat([self._waves(one, self.width // 2) for one in at.unbind(1)], dim=1)
        return self._waves(at, self.width)

    def _waves(self, at: Tensor, width: int) -> Tensor:
        return torch.stack(sinusoids(at, width, self.theta), dim=-1).flatten(1)


class Learned(Absolute):
    """A table with a row for each of ``length`` positions, as in BERT and GPT, extended to ``reach`` positions.

    Beyond its length a table is extended by one of two rules:
    - "interpolation": position t is interpolated linearly at row t (length - 1) / (reach - 1);
    - "decomposition" (Su, 2020, kexue.fm/archives/7947), up to length^2: position i n + j, n = length, has
      alpha u_i + (1 - alpha) u_j with u_i = (p_i - alpha p_0) / (1 - alpha), which is p_j itself where i = 0.
    ``reach`` is an attribute, so a trained table may be extended later; the rows of a position depend only on it, never
    on the length of the text. Raises ValueError if the rule can't reach that far.
    """

    undecayed = ("table",)

    def __init__(
        self,
        width: int,
        length: int,
        *,
        reach: int | None = None,
        rule: Literal["interpolation", "decomposition"] = "interpolation",
        alpha: float = 0.4,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.reach, self.rule, self.alpha = reach or length, rule, alpha
        self.table = nn.Parameter(torch.randn(length, width) * std)

    def rows(self, at: Tensor) -> Tensor:
        """Positions [T], below ``reach`` -> [T, D]."""
        length = len(self.table)
        farthest = length**2 if self.rule == "decomposition" else self.reach
        if not length <= self.reach <= farthest or length == 1 < self.reach:
            raise ValueError(f"{self.rule} of {length} positions cannot reach {self.reach}")
        if self.reach == length:
            return self.table[at]
        return self._composed(at) if self.rule == "decomposition" else self._between(at)

    def _between(self, at: Tensor) -> Tensor:
        last = len(self.table) - 1
        below = at * last // (self.reach - 1)
        # the remainder of an integer is exact, while a quotient in float32 would be inaccurate for a long table
        share = ((at * last % (self.reach - 1)) / (self.reach - 1)).to(self.table.dtype)
        return torch.lerp(self.table[below], self.table[(below + 1).clamp(max=last)], share[:, None])

    def _composed(self, at: Tensor) -> Tensor:
        u = (self.table - self.alpha * self.table[0]) / (1 - self.alpha)
        return self.alpha * u[at // len(u)] + (1 - self.alpha) * u[at % len(u)]


class Multiplicative(Learned):
    """x_t * p_t instead of x_t + p_t (an open question in Su, 2021, kexue.fm/archives/8130), with a table initialized
    near one."""

    def __init__(self, width: int, length: int, *, reach: int | None = None, std: float = 0.02) -> None:
        super().__init__(width, length, reach=reach, std=std)
        nn.init.normal_(self.table, mean=1.0, std=std)

    def embed(self, x: Tensor, at: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return x * self.rows(at).to(x.dtype)


class ComplexWords(nn.Module):
    """Word embeddings that are functions of the position (Wang et al., 2020, arXiv:1912.12333), of any length:

    f(word j, position t) = r_j exp(i (w_j t + a_j)),      amplitude, frequency and phase by token and channel,
    returned as concatenated real and imaginary parts, for real-valued networks. A negative r is a phase of pi, so
    amplitudes are unconstrained. Frequencies are initialized to those of the sinusoids, the same for all tokens.
    """

    def __init__(self, vocab: int, width: int, theta: float = 10_000.0) -> None:
        super().__init__()
        self.amplitude = nn.Embedding(vocab, width // 2)
        self.frequency = nn.Embedding.from_pretrained(_frequencies(width, theta).repeat(vocab, 1), freeze=False)
        self.phase = nn.Embedding(vocab, width // 2)
        nn.init.uniform_(self.phase.weight, 0, 2 * torch.pi)

    def forward(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Tokens int64 [B, T], positions [T] -> [B, T, D], real parts and then imaginary ones."""
        r, w, a = self.amplitude(tokens), precise(self.frequency(tokens)), precise(self.phase(tokens))
        angle = w * at[:, None] + a
        return torch.cat([r * angle.cos().to(r.dtype), r * angle.sin().to(r.dtype)], dim=-1)


class Complex(Positions):
    """The same on top of any embedding, with frequencies shared by all tokens (Wang et al., 2020, arXiv:1912.12333).

    A token's channels are C real and C imaginary parts of r exp(i a): its amplitude and phase. Position t rotates them
    to r exp(i (w t + a)) with learned frequencies w [C], initialized to those of the sinusoids.
    """

    def __init__(self, width: int, theta: float = 10_000.0) -> None:
        super().__init__()
        self.frequency = nn.Parameter(_frequencies(width, theta))

    def embed(self, x: Tensor, at: Tensor) -> Tensor:
        """[B, T, 2C] -> [B, T, 2C]."""
        angle = at[:, None] * precise(self.frequency)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        real, imaginary = x.chunk(2, dim=-1)
        return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)


class Recursive(Absolute):
    """FLOATER: positions that follow a learned ODE (Liu et al., 2020, arXiv:2003.09229, eq. 8), of any length:

        p(t) = p(0) + integral from 0 to t of h(s, p(s)) ds,      p_i = p(i delta),
    with p(0) learned and h(s, p) = W_2 relu(W_1 [p, s] + b_1) + b_2. The integral is computed in ``steps`` fixed steps
    per position, by Euler's or the classical Runge-Kutta method. W_2 is initialized to zero: at first every position is
    p(0). Positions are sequential, so T tokens cost T * steps calls of h on one row each.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        delta: float = 0.1,
        steps: int = 1,
        solver: Literal["euler", "runge-kutta"] = "runge-kutta",
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.delta, self.steps, self.solver = delta, steps, solver
        self.start = nn.Parameter(torch.randn(width) * std)
        self.fc1, self.fc2 = nn.Linear(width + 1, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def force(self, t: float, p: Tensor) -> Tensor:
        """h(t, p): [D] -> [D]."""
        return self.fc2(self.fc1(torch.cat([p, p.new_tensor([t])])).relu())

    def rows(self, at: Tensor) -> Tensor:
        """Positions [T] -> [T, D]; synchronizes with the device to read the last position."""
        path: list[Tensor] = [self.start]
        size = self.delta / self.steps
        for i in range(int(at.max()) * self.steps):
            path.append(self._step(i * size, path[-1], size))
        return torch.stack(path[:: self.steps])[at]

    def _step(self, t: float, p: Tensor, size: float) -> Tensor:
        k1 = self.force(t, p)
        if self.solver == "euler":
            return p + size * k1
        k2 = self.force(t + size / 2, p + size / 2 * k1)
        k3 = self.force(t + size / 2, p + size / 2 * k2)
        k4 = self.force(t + size, p + size * k3)
        return p + size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class Convolutional(Positions):
    """Conditional positions for images of any size: x + DWConv(x) on the grid (CPVT: Chu et al., 2021,
    arXiv:2102.10882).

    A convolution is translation-equivariant; the zero padding around the grid provides position information, which
    propagates from the border layer by layer (Islam et al., 2020, arXiv:2001.08248). Positions are rows and columns [T,
    2]: a class token is excluded. Missing tokens and the padding count as zero. Every token depends on its neighbors on
    all sides, so it is not for causal models.
    """

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a kernel of {kernel} has no center")
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)

    def embed(self, x: Tensor, at: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]; synchronizes with the device to read the size of the grid. Raises ValueError without
        a grid."""
        if at.ndim != 2:
            raise ValueError("a convolution needs rows and columns [T, 2] as positions")
        row, column = at.unbind(1)
        height, width = (at.amax(0) + 1).tolist()
        grid = x.new_zeros(x.shape[0], x.shape[2], height, width)
        grid[..., row, column] = x.mT
        return x + self.conv(grid)[..., row, column].mT
