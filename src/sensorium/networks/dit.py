"""DiT: scalable diffusion models with transformers (Peebles & Xie, 2022, arXiv:2212.09748).

A ViT whose normalization is conditioned on time and label, in place of a U-Net. Images, or latents, are split into
patches.
    c = W2 silu(W1 sinusoids(t)) + embedding(label)                                                    (section 3.2)
    (b1, g1, a1, b2, g2, a2) = W silu(c)            shifts, scales and gates of a block               ("adaLN-Zero")
    x = x + a1 attention(norm(x) (1 + g1) + b1)
    x = x + a2 mlp(norm(x) (1 + g2) + b2)           mlp = fc2(gelu_tanh(fc1(x)))
    y = linear(norm(x) (1 + g) + b)                 each token gives its patch                         ("decoder")
norm has no weights. Gates and the output layer are initialized to zero, so that every block starts as the identity.
Parameters have the names of the authors' code, whose state dicts load unchanged.
Shapes: B images, N patches, D width, p pixels per side of a patch.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import VelocityNet
from sensorium.errors import SensoriumError
from sensorium.networks.unet import sinusoids
from sensorium.parts.block import Attention
from sensorium.parts.init import init_transformer_
from sensorium.parts.patches import PatchEmbed, divisors, grid_of, unpatchify
from sensorium.parts.positions.grid import sincos_2d

WAVES = 256  # channels of the time's sinusoids

# name: (width, depth, heads). "micro" is for a CPU and small images; the others are the paper's (table 1).
DIT_SIZES: dict[str, tuple[int, int, int]] = {
    "micro": (192, 6, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "xlarge": (1152, 28, 16),
}


def dit(size: str, image_size: int, patch_size: int | None = None, **numbers) -> DiT:
    """A DiT by name (see ``DIT_SIZES``) for images of ``image_size`` pixels.

    patch_size: by default the smallest that gives at most 256 patches, 64 for "micro": 2 or 4 for 28 or 32 pixels.
    ``numbers`` are :class:`DiT`'s own keyword arguments. Raises ``SensoriumError`` for an unknown name.
    """
    if size not in DIT_SIZES:
        raise SensoriumError(f"no DiT is called {size!r}: choose {', '.join(DIT_SIZES)}.")
    width, depth, heads = DIT_SIZES[size]
    side = 8 if size == "micro" else 16
    if patch_size is None:
        patch_size = next(d for d in divisors(image_size) if image_size // d <= side)
    return DiT(image_size, patch_size, width, depth, heads, **numbers)


class DiT(nn.Module, VelocityNet):
    """``net(x, t, condition)``: what a diffusion or a flow learns, for images of one size.

    image_size: one number, or height and width, in pixels (or latent cells); patch_size must divide it.
    channels, out_channels: of the input and the output (the same; twice as many where variances are learned too).
    labels: rows of the label embedding, 0 for none. label_dropout: probability of replacing a label by the last row in
    training (the paper's 0.1); 0 if the method drops labels itself. eps, mlp_eps: of the norms, and of those before
    an MLP. freq_shift: of the sinusoids, 0 in the authors' code, 1 in diffusers'.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        *,
        channels: int = 3,
        out_channels: int | None = None,
        mlp_ratio: float = 4.0,
        labels: int = 0,
        label_dropout: float = 0.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        mlp_eps: float | None = None,
        freq_shift: float = 0.0,
    ) -> None:
        super().__init__()
        if label_dropout and labels < 2:
            raise ValueError(f"label_dropout needs a label and one for none, got {labels} labels")
        height, across = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size, self.patch_size, self.grid = (height, across), patch_size, grid_of(height, across, patch_size)
        self.width, self.depth, self.heads, self.mlp_ratio = width, depth, heads, mlp_ratio
        self.channels, self.out_channels = channels, out_channels or channels
        self.labels, self.label_dropout, self.freq_shift = labels, label_dropout, freq_shift

        self.x_embedder = PatchEmbed(patch_size, width, channels)
        self.pos_embed = nn.Parameter(sincos_2d(self.grid, width)[:, 1:], requires_grad=False)
        time = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.t_embedder = nn.ModuleDict({"mlp": time})
        table = {"embedding_table": nn.Embedding(labels, width)} if labels else {}
        self.y_embedder = nn.ModuleDict(table)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, qkv_bias, eps, eps if mlp_eps is None else mlp_eps) for _ in range(depth)
        )
        self.final_layer = FinalLayer(width, patch_size**2 * self.out_channels, eps)
        self._initialize()

    def _initialize(self) -> None:
        init_transformer_(self, "xavier")
        patches = self.x_embedder.proj
        nn.init.xavier_uniform_(patches.weight.flatten(1))
        nn.init.zeros_(cast(Tensor, patches.bias))
        for layer in cast("list[nn.Module]", self.t_embedder["mlp"]):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        if self.labels:
            nn.init.normal_(cast(nn.Embedding, self.y_embedder["embedding_table"]).weight, std=0.02)
        for module in self.modules():
            if isinstance(module, (Block, FinalLayer)):
                nn.init.zeros_(module.adaLN_modulation[1].weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.final_layer.linear.weight)

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The output at x, t, in the network's own scale of time: as ``forward``, for solvers of a published
        network."""
        return self(x, t, condition)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] (0 to about 1000, fractions too), condition int64 [B] -> [B, out_channels, H, W].

        Raises ``SensoriumError`` if the images do not have the network's size.
        """
        if x.shape[-2:] != self.image_size:
            was, now = ("x".join(map(str, size)) for size in (self.image_size, x.shape[-2:]))
            raise SensoriumError(
                f"this DiT was built for {was} images, not {now}: resize them, or build one for {now}."
            )
        c = self._condition(t, condition, x.dtype)
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, c)
        return unpatchify(self.final_layer(tokens, c), self.grid, self.patch_size)

    def _condition(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        """c [B, D]."""
        c = self.t_embedder["mlp"](sinusoids(t, WAVES, cos_first=True, freq_shift=self.freq_shift).to(dtype))
        if (self.labels == 0) != (label is None):
            raise ValueError(f"this DiT has {self.labels} labels: condition {'needed' if self.labels else 'unknown'}")
        if label is None:
            return c
        if self.training and self.label_dropout:
            dropped = torch.rand(len(label), device=label.device) < self.label_dropout
            label = torch.where(dropped, self.labels - 1, label)
        return c + self.y_embedder["embedding_table"](label)


class Block(nn.Module):
    """Attention and MLP, each with an adaptive pre-norm and a gate, conditioned on c. [B, N, D], c [B, D] -> x."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, qkv_bias: bool, eps: float, mlp_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=mlp_eps, elementwise_affine=False)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, int(width * mlp_ratio)), "fc2": nn.Linear(int(width * mlp_ratio), width)}
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        b1, g1, a1, b2, g2, a2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + a1 * self.attn(self.norm1(x) * (1 + g1) + b1)
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x) * (1 + g2) + b2), approximate="tanh")
        return x + a2 * self.mlp["fc2"](hidden)


class FinalLayer(nn.Module):
    """The last norm and each token's patch: [B, N, D], c [B, D] -> [B, N, p * p * C] in (row, column, channel)."""

    def __init__(self, width: int, outputs: int, eps: float) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        b, g = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + g) + b)
