"""The image tower of SigLIP (Zhai et al., 2023, arXiv:2303.15343) and SigLIP 2 (Tschannen et al., 2025, arXiv:2502.14786).

A ViT without class token; its feature is the answer of attention to a learned query, the probe (Zhai et al., 2022,
arXiv:2106.04560, section 3.3):
    z_0 = [E patch_1; ...; E patch_N] + E_pos
    z_l = block_l(z_{l-1})                                      see networks/text.py
    z   = LayerNorm(z_L)
    a   = Attention(probe; z)                                   queries of the probe; keys and values of z
    y   = a + Mlp(LayerNorm(a))
The activation of every Mlp is GELU in its tanh approximation.
Shapes: B images, N = H' * W' patches, D width, h heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import AttentionMaps, MapEncoder, TokenEncoder
from sensorium.networks.text import Activation, Block, Mlp, init_blocks_
from sensorium.networks.vit import layer_index
from sensorium.parts.attention.sdpa import sdpa
from sensorium.parts.drop import PatchDropout
from sensorium.parts.patches import PatchEmbed, grid_of
from sensorium.parts.positions.grid import Resampling, resample


class AttentionPool(nn.Module):
    """Attention of one learned query, the ``probe``, to all tokens, and an Mlp with a residual connection."""

    undecayed = ("probe",)

    def __init__(self, width: int, heads: int, hidden: int, *, activation: Activation, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden, activation)
        for weight in (self.probe, self.qkv.weight, self.proj.weight):
            nn.init.xavier_uniform_(weight)
        for bias in (self.qkv.bias, self.proj.bias):
            nn.init.zeros_(bias)

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        width = x.shape[-1]
        weight_q, weight_kv = self.qkv.weight.split([width, 2 * width])
        bias_q, bias_kv = self.qkv.bias.split([width, 2 * width])
        q = F.linear(self.probe, weight_q, bias_q).expand(x.shape[0], -1, -1)
        k, v = F.linear(x, weight_kv, bias_kv).split(width, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, D]."""
        q, k, v = self._queries_keys_values(x)
        y = self.proj(sdpa(q, k, v).transpose(1, 2).flatten(1))
        return y + self.mlp(self.norm(y))

    def weights(self, x: Tensor) -> Tensor:
        """Attention of the probe to the tokens, float32 [B, h, N]; rows sum to 1."""
        q, k, _ = self._queries_keys_values(x)
        return torch.softmax((q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5, dim=-1)[:, :, 0]


class SigLIPVision(nn.Module, TokenEncoder, MapEncoder, AttentionMaps):
    """SigLIP's vision transformer; its feature is pooled by attention, and stands where others have a class token.

    ``image_size`` pixels (one number, or height and width), ``patch_size`` pixels, ``hidden`` channels of a block's Mlp
    (four times the width). Images of other sizes are supported if the patch divides them: positions are resampled
    (``resampling``: see ``resample``). Raises ``SensoriumError`` if the patch does not divide the image.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        *,
        hidden: int | None = None,
        activation: Activation = "gelu_pytorch_tanh",
        eps: float = 1e-6,
        resampling: Resampling = "bicubic",
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.image_size: int | tuple[int, int] = image_size
        self.grid = grid_of(*((image_size, image_size) if isinstance(image_size, int) else image_size), patch_size)
        self.patch_size, self.dim, self.depth, self.heads = patch_size, width, depth, heads
        self.channels, self.strides = (width,), (patch_size,)  # of the one map
        self.hidden = 4 * width if hidden is None else hidden
        self.activation: Activation = activation
        self.eps = eps
        self.resampling: Resampling = resampling
        self.patch_embed = PatchEmbed(patch_size, width)
        self.patch_drop = PatchDropout()
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid), width))
        self.blocks = nn.ModuleList(
            Block(width, heads, self.hidden, activation=activation, eps=eps) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.pool = AttentionPool(width, heads, self.hidden, activation=activation, eps=eps)
        nn.init.normal_(self.pos_embed, std=width**-0.5)
        init_blocks_(self.blocks, width)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches (rows, columns) of images [B, 3, H, W]; ``SensoriumError`` if the patch does not divide them."""
        return grid_of(images.shape[-2], images.shape[-1], self.patch_size)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> patch tokens with positional embeddings [B, N, D].

        With ``keep`` (indices [B, n]) only these patches are embedded, in that order: [B, n, D].
        """
        positions = resample(self.pos_embed, self.grid, self.grid_of(images), self.resampling, first=0)
        return self.patch_embed(images, keep) + (positions if keep is None else positions[0][keep])

    def _encoded(self, patches: Tensor) -> Tensor:
        x = patches
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def encode(self, patches: Tensor) -> Tensor:
        """Any subset of the patch tokens [B, n, D] -> what is pooled of them, and they, encoded and normed [B, 1 + n, D]."""
        x = self._encoded(patches)
        return torch.cat([self.pool(x)[:, None], x], dim=1)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> the patches [B, N, D] after the final norm."""
        return self._encoded(self.embed(images))

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]: the tokens, pooled by attention; while training, those of the patches that are kept."""
        return self.pool(self._encoded(self.patch_drop(self.embed(images))))

    def attention(self, images: Tensor) -> Tensor:
        """Attention of the probe, which stands for a class token: [B, 3, H, W] -> [B, h, H', W'], each map sums to 1."""
        return self.pool.weights(self.tokens(images)).unflatten(-1, self.grid_of(images))

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one feature map [B, D, H', W']."""
        return [self.tokens(images).transpose(1, 2).unflatten(-1, self.grid_of(images))]

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> [B, D] and the map [B, D, H', W'], in one pass."""
        tokens = self.tokens(images)
        return self.pool(tokens), tokens.transpose(1, 2).unflatten(-1, self.grid_of(images))

    def layers_for_decay(self) -> dict[str, int]:
        """Parameter name -> layer, 0 (embeddings) to depth + 1 (norm and pool): for layer-wise learning rate decay."""
        return {name: layer_index(name, self.depth) for name, _ in self.named_parameters()}
