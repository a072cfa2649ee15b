"""What priors over codes share: a causal Transformer over tokens of a condition and then the codes of an image, row by row; a frozen tokenizer
that decodes them (Esser, Rombach & Ommer, 2020, arXiv:2012.09841, section 3.2).

    p(s | c) = prod_i p(s_i | c, s_<i),        L = -mean_i log p(s_i | c, s_<i)                          (eq. 8 - 10)
c are the tokens ``before`` the codes; they are not predicted. Codes are sampled one after another, in sliding windows where an image
is larger than those of training (``generative/codes.py``). Of an image that is partly known the codes of the known places are given, the
others sampled (section 3.2, "image completion").
Shapes: B images, h x w grid of codes, T = h w, K codes, P tokens before them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.abilities import AnySize, Completer
from sensorium.base.precision import precise
from sensorium.errors import SensoriumError
from sensorium.generative.codes import Grid, draw_codes
from sensorium.method import Method
from sensorium.networks.decoder import Decoder

ROOM = 2**19  # tokens in the cache at a time


class CodePrior(Method, Completer, AnySize):
    """decoder: a causal Transformer whose first tokens are the codes 0 .. K - 1. tokenizer: frozen. shape: of an image, 3, H, W. top_k,
    temperature: of :meth:`sample`."""

    def __init__(
        self, decoder: Decoder, tokenizer: Any, shape: tuple[int, int, int], top_k: int | None, temperature: float
    ) -> None:
        super().__init__()
        self.decoder, self.tokenizer = decoder, tokenizer.requires_grad_(False).eval()
        self.codes, self.grid = tokenizer.codes, tokenizer.grid
        self.shape, self.top_k, self.temperature = shape, top_k, temperature
        self.patch = shape[1] // self.grid[0], shape[2] // self.grid[1]

    @abstractmethod
    def unconditional(self, n: int) -> Tensor:
        """The tokens before the codes of ``n`` images of which nothing is said: int64 [n, P]."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.tokenizer.eval()
        return self

    def loss(self, before: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """int64 [B, P], [B, h, w] -> the loss, nats per code, and ``bits_per_code``; log2 K for a uniform distribution."""
        loss = F.cross_entropy(self.predicted(before, codes).flatten(0, 1), codes.flatten())
        return {"loss": loss, "bits_per_code": loss.detach() / math.log(2)}

    def predicted(self, before: Tensor, codes: Tensor) -> Tensor:
        """int64 [B, P], [B, h, w] -> logits of each code given what is before it [B, T, K], float32 or better."""
        tokens = torch.cat([before.to(codes.device), codes.flatten(1)[:, :-1]], dim=1)
        read = self.decoder.encode(tokens)[0][:, before.shape[1] - 1 :]
        return precise(self.decoder.predict(read)[..., : self.codes])

    def drawn(
        self,
        before: Tensor,
        *,
        temperature: float,
        top_k: int | None,
        grid: Grid | None = None,
        seed: int = 0,
        unwanted: Tensor | None = None,
        guidance: float = 1.0,
        forced: Tensor | None = None,
        on_code: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Grids of codes int64 [B, h, w] after ``before`` [B, P], as :func:`~sensorium.generative.codes.draw_codes` draws them."""
        where, end = next(self.decoder.parameters()).device, before.shape[1] + math.prod(self.grid)
        dice, done = torch.Generator(where).manual_seed(seed), []
        for rows in torch.arange(len(before)).split(max(1, ROOM // (end * (1 if unwanted is None else 2)))):
            less, fixed = (None if one is None else one[rows].to(where) for one in (unwanted, forced))
            done.append(
                draw_codes(
                    self.decoder, before[rows].to(where), self.codes, self.grid, grid or self.grid,
                    temperature=temperature, top_k=top_k, unwanted=less, guidance=guidance, generator=dice, forced=fixed, on_code=on_code,
                )
            )  # fmt: skip
        return torch.cat(done)

    @torch.no_grad()
    def complete(self, given: Tensor, known: Tensor, *, seed: int = 0) -> Tensor:
        """Codes are known where all their pixels are; a code depends on those before it alone, which are above it and to its left. Images
        may be larger than those of training."""
        given, known = torch.where(known, given, 0), known.to(given.device)
        grid = self.grid_of((given.shape[2], given.shape[3]))
        whole = F.max_pool2d((~known).any(1, keepdim=True).float(), self.patch)[:, 0] == 0
        where = next(self.decoder.parameters())
        codes = torch.where(whole.to(where.device), self.tokenizer.encode(given.to(where)), -1)
        before, how = self.unconditional(len(given)), {"temperature": self.temperature, "top_k": self.top_k}
        pictures = self.decoded(self.drawn(before, grid=grid, seed=seed, forced=codes, **how))
        return torch.where(known.to(pictures.device), given.to(pictures), pictures)

    def grid_of(self, size: Grid) -> Grid:
        """Grid (rows, columns) of images of H, W pixels. Raises SensoriumError if they have none, or are smaller than those of training."""
        (height, width), (step, _), (_, high, wide) = size, self.patch, self.shape
        if height % self.patch[0] or width % self.patch[1] or height < high or width < wide:
            raise SensoriumError(
                f"pictures of {width}x{height} pixels: width and height must be multiples of {step}, and at least the "
                f"{wide}x{high} of training."
            )
        return height // self.patch[0], width // self.patch[1]

    def decoded(self, codes: Tensor) -> Tensor:
        """[n, H, W] -> images, so many at a time that larger ones take as much memory."""
        at_once = max(1, 64 * math.prod(self.grid) // codes[0].numel())
        return torch.cat([self.tokenizer.decode(part) for part in codes.split(at_once)])
