"""Packing of images of native resolution into one row of patches: NaViT's Patch n' Pack (Dehghani et al., 2023,
arXiv:2307.06304) and MoonViT (Kimi-VL, Kimi Team, 2025, arXiv:2504.07491).

Resizing to a fixed square distorts images and removes detail. At native resolution the numbers of patches vary, so
images are concatenated in a row without padding, and a patch attends only to its own image:
    row   = [patches of image 1; ...; patches of image n],    N_i = H'_i W'_i patches each,    S = sum_i N_i
    x     = E row + absolute(at, grid) ,    at = (row, column) of a patch in its image
    x     = block(x), with queries and keys rotated by ``at``, each image a separate document
    y_i   = mean of norm(x) over the patches of image i
Absolute positions of a grid of any size are resampled from one learned table (MoonViT, bicubic), or the sum of a learned
row and a learned column (NaViT, section 2.1), indexed by the patch's index or by its fraction of the side.
Shapes: n images, S patches of all, P = 3 p p values per patch, (H', W') a grid, D width, h heads, d channels per head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.errors import SensoriumError
from sensorium.parts.attention.exact import Attend, fused
from sensorium.parts.block import Block
from sensorium.parts.init import Init, init_transformer_
from sensorium.parts.patches import PatchEmbed, grid_of
from sensorium.parts.positions import Positions
from sensorium.parts.positions.grid import Resampling, resample

Turn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Packed(NamedTuple):
    """Images in one row.

    patches: [1, S, P], pixels in a convolution's order (channel, row, column). at: int64 [S, 2], rows and columns in the
    patch's own image. lengths: patches of each image. grids: (H', W') of each, also of the patches that were dropped.
    """

    patches: Tensor
    at: Tensor
    lengths: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]

    def each(self) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """The grid of every image and the positions [N_i, 2] of its patches."""
        return zip(self.grids, self.at.split(self.lengths), strict=True)


def pack(images: Sequence[Tensor], patch_size: int) -> Packed:
    """Images [3, H_i, W_i] -> one row, in the order given.

    Raises ``SensoriumError`` that names an image that the patch does not divide, ValueError without images.
    """
    if not images:
        raise ValueError("there is no image to pack")
    grids = []
    for i, image in enumerate(images):
        try:
            grids.append(grid_of(image.shape[-2], image.shape[-1], patch_size))
        except SensoriumError as error:
            raise SensoriumError(f"image {i}: {error}") from error
    rows = [F.unfold(image[None], patch_size, stride=patch_size).mT for image in images]
    at = [torch.cartesian_prod(*(torch.arange(n, device=images[0].device) for n in grid)) for grid in grids]
    return Packed(torch.cat(rows, dim=1), torch.cat(at), tuple(row.shape[1] for row in rows), tuple(grids))


def unpack(x: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """Tokens in one row [1, S, D] -> those of each image, n of [N_i, D]."""
    return x[0].split(list(lengths))


def images_of(packed: Packed, patch_size: int) -> list[Tensor]:
    """The inverse of :func:`pack`: n of [3, H_i, W_i]; patches that were dropped are black (zero)."""
    images = []
    for patches, (grid, at) in zip(unpack(packed.patches, packed.lengths), packed.each(), strict=True):
        every = patches.new_zeros(grid[0] * grid[1], patches.shape[1])
        every[at[:, 0] * grid[1] + at[:, 1]] = patches
        size = (grid[0] * patch_size, grid[1] * patch_size)
        images.append(F.fold(every.mT[None], size, patch_size, stride=patch_size)[0])
    return images


def first_fit(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Assign images to rows of at most ``most`` patches: each to the first with enough room (greedy first-fit).

    ``[pack([images[i] for i in row], p) for row in first_fit(lengths, most)]`` are the rows. Raises ``SensoriumError``
    that names an image longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i, length in enumerate(lengths):
        if length > most:
            raise SensoriumError(
                f"image {i} has {length} patches, but a row holds {most}: use a smaller image or a longer row."
            )
        row = next((j for j, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(most)
        rows[row].append(i)
        room[row] -= length
    return rows


def drop(packed: Packed, shares: Sequence[float], generator: torch.Generator | None = None) -> Packed:
    """NaViT's token dropping: a random fraction of each image's patches, 0 to 1 per image; at least one patch is kept.

    Kept patches retain order and positions. ``generator``: on the CPU. Raises ValueError for other fractions.
    """
    if len(shares) != len(packed.lengths) or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"shares must be {len(packed.lengths)} fractions from 0 to 1, got {list(shares)}")
    kept, start = [], 0
    for length, share in zip(packed.lengths, shares, strict=True):
        stay = max(1, length - round(share * length))
        kept.append(start + torch.randperm(length, generator=generator)[:stay].sort().values)
        start += length
    index = torch.cat(kept).to(packed.at.device)
    return Packed(packed.patches[:, index], packed.at[index], tuple(len(k) for k in kept), packed.grids)


def pool(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean of each image's tokens, summed in float32 or better: [1, S, D] -> [n, D]."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return torch.stack([tokens.mean(0, dtype=exact) for tokens in unpack(x, lengths)]).to(x.dtype)


class Resampled(nn.Module):
    """A learned table [h, w, D], resampled to each image's grid: bicubic as in MoonViT; ``antialias`` as in timm."""

    undecayed = ("table",)

    def __init__(self, width: int, grid: tuple[int, int], *, antialias: bool = False, std: float = 0.02) -> None:
        super().__init__()
        self.table, self.antialias = nn.Parameter(torch.randn(*grid, width) * std), antialias

    def forward(self, packed: Packed) -> Tensor:
        """Position embeddings of the patches, [S, D]."""
        old = (self.table.shape[0], self.table.shape[1])
        table = F.pad(self.table.flatten(0, 1), (0, 0, 1, 0))[None]  # the row of a class token, which is not resampled
        how: Resampling = "antialias" if self.antialias else "bicubic"
        sizes = {new: resample(table, old, new, how)[0, 1:] for new in set(packed.grids)}
        return torch.cat([sizes[grid][at[:, 0] * grid[1] + at[:, 1]] for grid, at in packed.each()])


class Factorised(nn.Module):
    """A learned row plus a learned column (NaViT, section 2.1), from tables with the numbers of entries in ``reach``.

    They are indexed by the patch's index, or with ``fractional`` by its fraction of the image's side, with linear
    interpolation. Raises ``SensoriumError`` that names an image whose indices exceed a table.
    """

    undecayed = ("rows", "columns")

    def __init__(self, width: int, reach: tuple[int, int], *, fractional: bool = False, std: float = 0.02) -> None:
        super().__init__()
        self.rows, self.columns = (nn.Parameter(torch.randn(n, width) * std) for n in reach)
        self.fractional = fractional

    def forward(self, packed: Packed) -> Tensor:
        """Position embeddings of the patches, [S, D]."""
        if self.fractional:
            each = [
                _stretched(self.rows, grid[0])[at[:, 0]] + _stretched(self.columns, grid[1])[at[:, 1]]
                for grid, at in packed.each()
            ]
            return torch.cat(each)
        for i, (height, width) in enumerate(packed.grids):
            if height > len(self.rows) or width > len(self.columns):
                raise SensoriumError(
                    f"image {i} has {height}x{width} patches, but positions cover {len(self.rows)}x{len(self.columns)}: "
                    "use a smaller image, or fractional positions."
                )
        return self.rows[packed.at[:, 0]] + self.columns[packed.at[:, 1]]


def _stretched(table: Tensor, length: int) -> Tensor:
    exact = table.to(torch.promote_types(table.dtype, torch.float32))
    return F.interpolate(exact.mT[None], size=length, mode="linear", align_corners=False)[0].mT.to(table.dtype)


def packed_block(
    block: Block, x: Tensor, lengths: Sequence[int], *, turn: Turn | None = None, attend: Attend = fused
) -> Tensor:
    """A :class:`Block` over a row, with each image separate: [1, S, D] -> the same.

    turn: rotates queries and keys [1, h, S, d] by positions. attend: an implementation of exact attention. Stochastic
    depth drops whole images, as in a batch.
    """

    def join(x: Tensor, branch: Tensor) -> Tensor:
        if not (block.training and block.drop_path.rate):
            return x + branch
        survives = block.drop_path(branch.new_ones(len(lengths)))
        counts = torch.tensor(lengths, device=x.device)
        return x + branch * survives.repeat_interleave(counts, output_size=x.shape[1])[:, None]

    q, k, v = (
        part.unflatten(-1, (block.attn.heads, -1)).transpose(1, 2)
        for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=-1)
    )
    if turn is not None:
        q, k = turn(q, k)
    y = attend(q, k, v, lengths=lengths)
    x = join(x, block.attn.proj(y.transpose(1, 2).flatten(2)))
    return join(x, block.mlp(block.norm2(x)))


class PackedViT(nn.Module):
    """A pre-norm transformer over packed images of any size, without a class token.

    ``patch_size`` pixels. absolute: a module that gives the position embeddings of a :class:`Packed`,
    :class:`Resampled` or :class:`Factorised`. rotary: rotates queries and keys by rows and columns, ``Rotary2D()``.
    MoonViT has both. drop_path: rises linearly from 0 to this rate at the last block. attend: an implementation of
    exact attention.
    """

    def __init__(
        self,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        *,
        absolute: nn.Module | None = None,
        rotary: Positions | None = None,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        drop_path: float = 0.0,
        init: Init = "normal",
        attend: Attend = fused,
    ) -> None:
        super().__init__()
        self.patch_size, self.dim, self.attend = patch_size, width, attend
        self.patch_embed = PatchEmbed(patch_size, width)
        self.absolute, self.rotary = absolute, rotary
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio=mlp_ratio, eps=eps, drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=eps)
        init_transformer_(self.blocks, init)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))

    def forward(self, packed: Packed) -> Tensor:
        """A row of images -> their tokens after the final norm, [1, S, D]."""
        proj = self.patch_embed.proj
        x = F.linear(packed.patches, proj.weight.flatten(1), proj.bias)
        if self.absolute is not None:
            x = x + self.absolute(packed).to(x.dtype)
        turn = None if self.rotary is None else partial(self.rotary.rotate, at_q=packed.at, at_k=packed.at)
        for block in self.blocks:
            x = packed_block(cast(Block, block), x, packed.lengths, turn=turn, attend=self.attend)
        return self.norm(x)

    def features(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """Images [3, H_i, W_i], or a batch [B, 3, H, W] -> the mean of each one's tokens, [n, D]."""
        packed = pack(list(images), self.patch_size)
        return pool(self(packed), packed.lengths)
