"""ViT: an image is worth 16x16 words (Dosovitskiy et al., 2021, arXiv:2010.11929).

An image is split into patches, each a token; a class token is prepended; a pre-norm transformer encodes the sequence:
    z_0 = [x_class; E patch_1; ...; E patch_N] + E_pos          (eq. 1)
    z_l = block_l(z_{l-1})                                      (eqs. 2, 3; see parts/block.py)
    y   = LayerNorm(z_L)                                        (eq. 4)
Registers (Darcet et al., 2024, arXiv:2309.16588) are additional learned tokens without position, dropped from the
output. Optional parts: 2-D RoPE (Heo et al., 2024, arXiv:2403.13298) in place of E_pos, gated attention units, gated
feed-forward layers, experts, and LayerScale (Touvron et al., 2021, arXiv:2103.17239), which makes it DINOv2's (Oquab et
al., 2024, arXiv:2304.07193). Parameter names are those of timm's ``vision_transformer``, so that its state dicts load
unchanged.
Shapes: B images, N = H' * W' patches, n a subset of them, D width.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import AttentionMaps, MaskedEncoder, TokenEncoder
from sensorium.errors import SensoriumError
from sensorium.parts.attention.gau import GatedAttentionUnit
from sensorium.parts.block import Angles, Balanced, Block, Gated, hidden_channels
from sensorium.parts.drop import PatchDropout
from sensorium.parts.feedforward import FeedForward, Kind, rows
from sensorium.parts.init import Init, init_transformer_
from sensorium.parts.moe.layer import MoE
from sensorium.parts.moe.route import deepseek
from sensorium.parts.patches import PatchEmbed, divisors, grid_of
from sensorium.parts.positions.grid import Resampling, resample, sincos_2d
from sensorium.parts.positions.turning import Rotary2D

Pool = Literal["cls", "mean", "fc_norm"]
Positions = Literal["learned", "sincos", "rope"]

# name: (width, depth, heads). "micro" is for a CPU and small images; the others are the papers'.
VIT_SIZES: dict[str, tuple[int, int, int]] = {
    "micro": (192, 6, 3),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


class ViT(nn.Module, TokenEncoder, MaskedEncoder, AttentionMaps):
    """A vision transformer.

    ``image_size`` pixels (one number, or height and width), ``patch_size`` pixels; ``pool``: output of ``features``,
    the class token or the mean of the patches; with "fc_norm" this mean is normed, and no token. ``positions`` are learned, or MAE's fixed sine-cosine table. Images of
    other sizes are supported if the patch divides them: positions are resampled (``resampling``: "bicubic" as in
    transformers, "antialias" as in timm, "offset" as in the code of DINOv2); rotary ones need no table. ``parts`` names
    other parts of a block, at most one for attention and one for the feed-forward layer, and LayerScale (see
    ``ATTENTION_PARTS``, ``FEED_PARTS``, ``SCALE_PARTS``). ``drop_path`` rises linearly from 0 to the given rate at the
    last block. Raises ``SensoriumError`` if the patch does not divide the image.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        registers: int = 0,
        pool: Pool = "cls",
        positions: Positions = "learned",
        resampling: Resampling = "bicubic",
        parts: tuple[str, ...] = (),
        init: Init = "normal",
    ) -> None:
        super().__init__()
        named = {"pool": (pool, Pool), "positions": (positions, Positions), "resampling": (resampling, Resampling)}
        for field, (value, legal) in named.items():
            if value not in get_args(legal):
                raise ValueError(f"{field} must be one of {', '.join(get_args(legal))}, got {value!r}")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.image_size: int | tuple[int, int] = image_size
        height, width_px = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.grid = grid_of(height, width_px, patch_size)
        self.patch_size, self.dim, self.depth, self.heads, self.eps = patch_size, width, depth, heads, eps
        self.channels, self.strides = (width,), (patch_size,)  # of the one map
        self.pool, self.positions, self.registers = pool, positions, registers
        self.resampling: Resampling = resampling
        self.parts, self.mlp_ratio, self.qkv_bias = tuple(parts), mlp_ratio, qkv_bias

        self.patch_embed = PatchEmbed(patch_size, width)
        # rotations are of a whole grid, gated units divide by the number of its tokens
        self.patch_drop = nn.Identity() if positions == "rope" or "gau" in parts else PatchDropout()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.reg_token = nn.Parameter(torch.empty(1, registers, width)) if registers else None
        patches = math.prod(self.grid)
        self.rope = Rotary2D(theta=100.0) if positions == "rope" else None
        self.pos_embed: nn.Parameter | None = None
        if positions != "rope":
            table = torch.empty(1, 1 + patches, width) if positions == "learned" else sincos_2d(self.grid, width)
            self.pos_embed = nn.Parameter(table, requires_grad=positions == "learned")
        numbers: dict[str, Any] = {"mlp_ratio": mlp_ratio, "eps": eps, "qkv_bias": qkv_bias}
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                drop_path=rate,
                **numbers,
                **other_parts(parts, width, heads, 1 + registers + patches, mlp_ratio, depth),
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self._init_weights(init)

    def _init_weights(self, how: Init) -> None:
        init_transformer_(self, how)
        # the patch embedding is a linear layer in a convolution's shape
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        if self.pos_embed is not None and self.pos_embed.requires_grad:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches (rows, columns) of images [B, 3, H, W]; ``SensoriumError`` if the patch does not divide them."""
        return grid_of(images.shape[-2], images.shape[-1], self.patch_size)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> patch tokens with positional embeddings [B, N, D].

        With ``keep`` (indices [B, n]) only these patches are embedded, in that order: [B, n, D].
        """
        return self._placed(self.patch_embed(images, keep), self.grid_of(images), keep)

    def _placed(self, tokens: Tensor, grid: tuple[int, int], keep: Tensor | None = None) -> Tensor:
        if self.pos_embed is None:
            return tokens
        positions = resample(self.pos_embed, self.grid, grid, self.resampling)[:, 1:]
        return tokens + (positions if keep is None else positions[0][keep])

    def angles(self, grid: tuple[int, int]) -> Angles | None:
        """Rotations of the tokens of a ``grid``; none for the tokens before the patches."""
        if self.rope is None:
            return None
        device = self.cls_token.device
        at = torch.cartesian_prod(*(torch.arange(n, device=device) for n in grid))
        dim = cast(Block, self.blocks[0]).attn.head_dim
        return self.rope.angles(F.pad(at, (0, 0, 1 + self.registers, 0)), dim)

    def _sequence(self, patches: Tensor) -> Tensor:
        first = self.cls_token if self.pos_embed is None else self.cls_token + self.pos_embed[:, :1]
        tokens = [first.expand(patches.shape[0], -1, -1)]
        if self.reg_token is not None:
            tokens.append(self.reg_token.expand(patches.shape[0], -1, -1))
        return torch.cat([*tokens, patches], dim=1)

    def _before_last(self, patches: Tensor, angles: Angles | None) -> Tensor:
        x = self._sequence(patches)
        for block in self.blocks[:-1]:
            x = block(x, None, angles)
        return x

    def normed(self, x: Tensor) -> Tensor:
        """The last block's output after the final norm, if that is not one of the mean."""
        return x if self.pool == "fc_norm" else self.norm(x)

    def encode(self, patches: Tensor, angles: Angles | None = None) -> Tensor:
        """Any subset of the patch tokens [B, n, D] -> encoded and normed [B, 1 + n, D], the class token first.

        Rotary positions are not in the tokens: their ``angles`` must be given, and the tokens must be a whole grid.
        """
        if self.rope is not None and angles is None:
            raise ValueError("rotary positions are not in the tokens: give the angles of their grid")
        x = self.normed(self.blocks[-1](self._before_last(patches, angles), None, angles))
        return x if self.reg_token is None else torch.cat([x[:, :1], x[:, 1 + self.registers :]], dim=1)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + N, D] after the final norm: the class token, then the patches; no registers."""
        return self.encode(self.embed(images), self.angles(self.grid_of(images)))

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]: the class token, or the mean of the patch tokens, after the final norm or before it.

        While training, of the patches that :class:`PatchDropout` keeps.
        """
        rows = slice(0, 1) if self.pool == "cls" else slice(1 + self.registers, None)
        angles, patches = self.angles(self.grid_of(images)), self.patch_drop(self.embed(images))
        x = self.normed(self.blocks[-1](self._before_last(patches, angles), rows, angles)).mean(dim=1)
        return self.norm(x) if self.pool == "fc_norm" else x

    def attention(self, images: Tensor) -> Tensor:
        """Attention of the class token in the last block: [B, 3, H, W] -> [B, heads, H', W'], each map sums to at most
        1."""
        last = cast(Block, self.blocks[-1])
        angles = self.angles(self.grid_of(images))
        weights = last.attn.weights(last.norm1(self._before_last(self.embed(images), angles)), slice(0, 1), angles)
        return weights[:, :, 0, 1 + self.registers :].unflatten(-1, self.grid_of(images))

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one feature map [B, D, H', W']."""
        return [self.tokens(images)[:, 1:].transpose(1, 2).unflatten(-1, self.grid_of(images))]

    def masked_map(self, images: Tensor, mask: Tensor, token: Tensor) -> Tensor:
        """[B, 3, H, W], bool [B, H', W'] and a token [..., D] -> [B, D, H', W']: the token stands for masked patches, and has
        their positions."""
        grid = self.grid_of(images)
        patches = torch.where(mask.flatten(1)[..., None], token, self.patch_embed(images))
        x = self.encode(self._placed(patches, grid), self.angles(grid))
        return x[:, 1:].transpose(1, 2).unflatten(-1, grid)

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> [B, D] and the map [B, D, H', W'], in one pass."""
        tokens = self.tokens(images)
        x = tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(dim=1)
        found = tokens[:, 1:].transpose(1, 2).unflatten(-1, self.grid_of(images))
        return self.norm(x) if self.pool == "fc_norm" else x, found

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer, 0 (embeddings) to depth + 1 (final norm): for layer-wise learning rate decay."""
        return {name: layer_index(name, self.depth) for name, _ in self.named_parameters()}


ATTENTION_PARTS = ("gau",)
FEED_PARTS = (*get_args(Kind), "experts")
SCALE_PARTS = ("layerscale",)
BLOCK_PARTS = (*ATTENTION_PARTS, *FEED_PARTS, *SCALE_PARTS)
EXPERTS, ACTIVE = 8, 2


def other_parts(
    parts: tuple[str, ...], width: int, heads: int, tokens: int, ratio: float, depth: int
) -> dict[str, Any]:
    """Arguments of a block for its optional parts: a gated unit of e = D that divides scores by ``tokens``; a
    feed-forward layer, gated ones with two thirds of the channels; ``EXPERTS`` SwiGLU experts, each a fourth of such a
    layer, ``ACTIVE`` of them per token plus one shared by all: less compute than the dense layer, and more weights;
    LayerScale, the smaller at first the more blocks there are (Touvron et al., section 2).
    """
    built: dict[str, Any] = {}
    for part in parts:
        if part not in BLOCK_PARTS:
            raise ValueError(f"unknown part {part!r}: choose among {', '.join(BLOCK_PARTS)}")
        place = "attention" if part in ATTENTION_PARTS else "layer_scale" if part in SCALE_PARTS else "mlp"
        if place in built:
            raise ValueError(f"{' and '.join(parts)}: a block has one {place}")
        if part in SCALE_PARTS:
            built[place] = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
        elif part == "gau":
            unit = GatedAttentionUnit(width, tokens, causal=False, expansion=1.0, shared=width // heads, theta=None)
            built[place] = Gated(unit)
        elif part == "experts":
            hidden, route = int(width * ratio / 6), partial(deepseek, k=ACTIVE)
            built[place] = Balanced(MoE(width, hidden, EXPERTS, route, shared=hidden, bias=True))
        else:
            kind = cast(Kind, part)
            gated = rows(kind, 1) == 2
            built[place] = FeedForward(width, hidden_channels(width, ratio * (2 / 3 if gated else 1)), kind, bias=True)
    return built


def layer_index(name: str, depth: int) -> int:
    """Layer of a ViT's parameter by name, prefixes allowed: embeddings 0, block i is i + 1, all else depth + 1."""
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if re.search(r"(?:^|\.)(cls_token|reg_token|pos_embed|patch_embed)(\.|$)", name) else depth + 1


def auto_patch(image_size: int | tuple[int, int]) -> int:
    """The default patch size for an image: the largest up to 16 that divides it and gives at least 7 patches per side
    (4 below 16 pixels). 8 -> 2, 28 -> 4, 32 -> 4, 64 -> 8, 96 -> 12, 224 -> 16.

    Raises ``SensoriumError`` if, for lack of divisors, that gives more than 1024 patches and a patch of 16 would not.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    side = min(height, width)
    fewest = 4 if side < 16 else 7
    patch = max((d for d in divisors(math.gcd(height, width)) if d <= 16 and side // d >= fewest), default=1)
    if height * width / patch**2 > max(1024, height * width / 16**2):
        unit = 8 if max(height, width) < 256 else 16
        near = [tuple(max(unit, n // unit * unit + more) for n in (height, width)) for more in (0, unit)]
        below, above = (str(h) if isinstance(image_size, int) else f"{h}x{w}" for h, w in near)
        raise SensoriumError(
            f"image_size {height}x{width}: no patch size up to 16 divides it into at most 1024 patches; "
            f"choose image_size {below} or {above}, or give patch_size."
        )
    return patch


def vit(size: str, image_size: int | tuple[int, int], patch_size: int | None = None, **numbers) -> ViT:
    """A ViT by name (see ``VIT_SIZES``); ``patch_size`` depends on the image size by default.

    ``numbers`` are ViT's own keyword arguments. Raises ``SensoriumError`` for an unknown name.
    """
    if size not in VIT_SIZES:
        raise SensoriumError(f"no ViT is called {size!r}: choose {', '.join(VIT_SIZES)}.")
    width, depth, heads = VIT_SIZES[size]
    patch_size = auto_patch(image_size) if patch_size is None else patch_size
    return ViT(image_size, patch_size, width, depth, heads, **numbers)
