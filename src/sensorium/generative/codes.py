"""Grids of codes that a causal Transformer draws, in sliding windows where they are larger than those of its training: taming transformers
for high-resolution image synthesis (Esser, Rombach & Ommer, 2020, arXiv:2012.09841, section 3.2).

Codes are drawn row by row from the top left. For the code at (i, j) of an H x W grid the Transformer sees a window of its own h x w
grid, of which the code is at the center but for the borders (the authors' code):
    top = min(max(i - h // 2, 0), H - h),     left = min(max(j - w // 2, 0), W - w)
    p(s_ij | the codes of the window before its place (i - top) w + (j - left))
With a guidance g, the logits l of a code are l(unwanted) + g (l(before) - l(unwanted)) (Gafni et al., 2022, arXiv:2203.13131, section 3.4).
A grid of h x w has one window, in which this is p(s_i | s_<i). Where the window stays, keys and values are kept; where it moves, every code
in it has another place, and they are computed anew.
Shapes: B grids, H x W codes, h x w of a window, P tokens before the first code, K codes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from sensorium.base.precision import precise
from sensorium.networks.decoder import Cache, Decoder
from sensorium.parts.modes import evaluating
from sensorium.parts.sampling import draw_token

Grid = tuple[int, int]


@torch.no_grad()
def draw_codes(
    decoder: Decoder,
    before: Tensor,
    codes: int,
    window: Grid,
    grid: Grid,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    unwanted: Tensor | None = None,
    guidance: float = 1.0,
    forced: Tensor | None = None,
    on_code: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Grids of ``codes`` kinds of codes, int64 [B, H, W].

    before: the tokens before the first code of a window, int64 [B, P]. window: h, w of training. grid: H, W. temperature, top_k: see
    :func:`~sensorium.parts.sampling.draw_token`. unwanted: the tokens that ``guidance`` leads away from, int64 [B, P]; None for no guidance.
    forced: int64 [B, H, W], codes that are taken as they are, where they are not negative. on_code: is told how many places are done, and of
    how many.
    """
    first, passes = (before, 1) if unwanted is None else (torch.cat([before, unwanted]), 2)
    drawn = torch.zeros(len(before), *grid, dtype=torch.int64, device=before.device)
    cache, corner, tokens = None, None, first
    with evaluating(decoder):
        for i, j in product(range(grid[0]), range(grid[1])):
            top, left = corner_of((i, j), window, grid)
            if (top, left) != corner:
                seen = drawn[:, top : top + window[0], left : left + window[1]].flatten(1)
                seen = seen[:, : (i - top) * window[1] + j - left].repeat(passes, 1)
                tokens = torch.cat([first, seen], dim=1)
                cache, corner = Cache(decoder, len(first), first.shape[1] + window[0] * window[1]), (top, left)
            with torch.inference_mode():
                last = decoder.encode(tokens, cache=cache)[0][:, -1:]
                logits = precise(decoder.predict(last)[:, -1, :codes])
                if unwanted is not None:
                    wanted, other = logits.chunk(2)
                    logits = other + guidance * (wanted - other)
                chosen = draw_token(logits, temperature=temperature, top_k=top_k, generator=generator)
            if forced is not None:
                chosen = torch.where(forced[:, i, j] >= 0, forced[:, i, j], chosen)
            drawn[:, i, j] = chosen
            tokens = drawn[:, i, j, None].repeat(passes, 1)
            if on_code:
                on_code(i * grid[1] + j + 1, grid[0] * grid[1])
    return drawn


def corner_of(at: Grid, window: Grid, grid: Grid) -> Grid:
    """Top and left of the window that the code ``at`` (i, j) is drawn in."""
    top, left = (
        min(max(place - seen // 2, 0), whole - seen) for place, seen, whole in zip(at, window, grid, strict=True)
    )
    return top, left
