"""The vision transformer of BEiT (Bao et al., 2022, arXiv:2106.08254) and BEiT v2 (Peng et al., 2022, arXiv:2208.06366).

A ViT with LayerScale and without a bias of keys, whose attention knows distances in place of positions:
    y = softmax(q k^T / sqrt(d) + bias) v
    bias[t, s] = table[row t - row s, column t - column s]      learned per head, of each layer or shared by all
with three more entries: from the class token, to it, and its own. The feature is the norm of the mean of the patches, or the
class token. For other grids the table is resampled, bilinear, as in transformers.
Shapes: H' x W' patches, T = 1 + H' W' tokens, D width, h heads, R chosen rows.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.networks.patch_transformer import PatchTransformer
from sensorium.networks.vit import Pool
from sensorium.parts.attention.sdpa import sdpa
from sensorium.parts.attention.window import distances
from sensorium.parts.block import Block, Mlp, NoKeyBias

Distances = Literal["each", "shared"]
EXTRA = 3  # entries of the table with the class token: to a patch, from a patch, to itself


class DistanceBias(nn.Module):
    """``table`` [(2 H' - 1) (2 W' - 1) + 3, h]: by distance of rows, then of columns, from the most negative on."""

    undecayed = ("table",)

    def __init__(self, grid: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.sides = tuple(2 * n - 1 for n in grid)
        self.table = nn.Parameter(torch.empty(self.sides[0] * self.sides[1] + EXTRA, heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """The bias of all tokens of a ``grid``: [1, h, T, T]."""
        sides, table = tuple(2 * n - 1 for n in grid), self.table
        if sides != self.sides:
            plane = table[:-EXTRA].T.unflatten(1, self.sides)[None]
            plane = F.interpolate(plane.float(), size=sides, mode="bilinear", align_corners=False).to(table.dtype)
            table = torch.cat([plane[0].flatten(1).T, table[-EXTRA:]])
        count = sides[0] * sides[1]
        index = F.pad(distances(grid).to(table.device), (1, 0, 1, 0))
        index[0], index[:, 0], index[0, 0] = count, count + 1, count + 2
        return table[index].permute(2, 0, 1)[None]


class DistanceAttention(NoKeyBias):
    """Self-attention with a bias by distance, of its own, or else the one that it is given."""

    def __init__(self, width: int, heads: int, *, biased: bool, grid: tuple[int, int] | None) -> None:
        super().__init__(width, heads, biased=biased)
        self.distances = None if grid is None else DistanceBias(grid, heads)

    def _scores(self, place: Any, rows: slice | None) -> Tensor:
        bias = place if self.distances is None else self.distances(place)
        return bias if rows is None else bias[:, :, rows]

    def forward(self, x: Tensor, rows: slice | None = None, angles: Any = None) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, R, D] for the chosen ``rows``; ``angles``: the grid, or the shared bias."""
        q, k, v = self._queries_keys_values(x, rows, None)
        y = sdpa(q, k, v, self._scores(angles, rows).to(q.dtype))
        return self.proj(torch.cat(y.unbind(1), dim=-1))  # a view of y would depend on its kernel

    def weights(self, x: Tensor, rows: slice, angles: Any = None) -> Tensor:
        """Attention of the chosen rows to all tokens, float32 [B, h, R, T]; rows sum to 1."""
        q, k, _ = self._queries_keys_values(x, rows, None)
        scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
        return torch.softmax(scores + self._scores(angles, rows).float(), dim=-1)


class BEiT(PatchTransformer):
    """BEiT's vision transformer.

    ``image_size`` pixels (one number, or height and width), ``patch_size`` pixels, ``hidden`` channels of a block's Mlp;
    ``relative``: "each" layer has a bias by distance, or one is "shared"; ``absolute``: learned positions as well;
    ``biased``: queries and values have a bias; ``scaled``: LayerScale. ``pool``: "fc_norm", the norm of the mean of the
    patches, "mean" of normed ones, or "cls". Other sizes are supported if the patch divides them.
    """

    in_attention = True

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        *,
        hidden: int | None = None,
        relative: Distances = "each",
        absolute: bool = False,
        biased: bool = True,
        scaled: bool = True,
        pool: Pool = "fc_norm",
        eps: float = 1e-6,
    ) -> None:
        if relative not in get_args(Distances):
            raise ValueError(f"relative must be one of {', '.join(get_args(Distances))}, got {relative!r}")
        hidden = 4 * width if hidden is None else hidden
        side = (image_size, image_size) if isinstance(image_size, int) else image_size
        grid = (max(1, side[0] // max(1, patch_size)), max(1, side[1] // max(1, patch_size)))
        super().__init__(
            image_size,
            patch_size,
            width,
            heads,
            (
                Block(
                    width,
                    heads,
                    eps=eps,
                    attention=DistanceAttention(width, heads, biased=biased, grid=grid if relative == "each" else None),
                    mlp=Mlp(width, hidden),
                    layer_scale=0.1 if scaled else None,
                )
                for _ in range(depth)
            ),
            eps=eps,
            pool=pool,
            table="all" if absolute else "none",
            resampling="bicubic",
        )
        self.hidden, self.absolute, self.biased, self.scaled = hidden, absolute, biased, scaled
        self.relative: Distances = relative
        self.distances = DistanceBias(grid, heads) if relative == "shared" else None

    def place(self, grid: tuple[int, int]) -> Any:
        """The ``grid``, of which each layer makes its bias, or the shared bias [1, h, T, T]."""
        return grid if self.distances is None else self.distances(grid)

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer, 0 (embeddings, the shared bias) to depth + 1 (norm): for layer-wise learning rate decay."""
        return super().layers_for_decay() | ({} if self.distances is None else {"distances.table": 0})
