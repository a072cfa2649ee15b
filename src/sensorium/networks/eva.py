"""The vision transformers of EVA (Fang et al., 2023, arXiv:2211.07636) and EVA-02 (Fang et al., 2023, arXiv:2303.11331).

A ViT without a bias of keys. EVA-02 also rotates queries and keys of the patches by row and column, counted as on the grid of
its pretraining whatever the size of the image, and its feed-forward layers are SwiGLU; the larger ones have one norm more:
    angles of (r / H') row and (r / W') column,     r = 16 rows and columns in pretraining, theta = 10,000
    x = x + W_down LayerNorm(silu(W x) * V x)       sub-norm (Wang et al., 2022, arXiv:2210.06423); EVA-CLIP: in attention, too
The feature is the norm of the mean of the patches, in EVA-CLIP (Sun et al., 2023, arXiv:2303.15389) the class token.
Shapes: H' x W' patches, D width, h heads, d = D / h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.networks.patch_transformer import PatchTransformer
from sensorium.networks.vit import Pool
from sensorium.parts.block import Angles, Block, Mlp, NoKeyBias
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.positions.turning import Rotary2D


class EVA(PatchTransformer):
    """EVA's and EVA-02's vision transformer.

    ``image_size`` pixels (one number, or height and width), ``patch_size`` pixels, ``hidden`` channels of a feed-forward
    layer; ``gated``: it is SwiGLU; ``reference``: rows and columns of the grid of rotations, 0 for none; ``sub_norm``: a
    norm before its output layer, ``inner_norm``: before attention's. ``pool``: "fc_norm", the norm of the mean of the
    patches, "mean" of normed ones, or "cls". Other sizes are supported if the patch divides them.
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
        gated: bool = True,
        reference: int = 16,
        sub_norm: bool = False,
        inner_norm: bool = False,
        pool: Pool = "fc_norm",
        eps: float = 1e-6,
    ) -> None:
        hidden = int(width * 8 / 3) if hidden is None else hidden
        if sub_norm and not gated:
            raise ValueError("sub_norm needs a gated feed-forward layer")

        def block() -> Block:
            attention = NoKeyBias(width, heads)
            mlp = FeedForward(width, hidden, "swiglu", bias=True) if gated else Mlp(width, hidden)
            if inner_norm:
                attention.proj = nn.Sequential(nn.LayerNorm(width, eps=eps), attention.proj)  # type: ignore[assignment]
            if sub_norm and isinstance(mlp, FeedForward):
                mlp.down = nn.Sequential(nn.LayerNorm(hidden, eps=eps), mlp.down)  # type: ignore[assignment]
            return Block(width, heads, eps=eps, attention=attention, mlp=mlp)

        super().__init__(
            image_size, patch_size, width, heads, (block() for _ in range(depth)), eps=eps, pool=pool, table="all"
        )
        if reference and width // heads % 4:
            raise ValueError(
                f"rotated heads have channels divisible by 4: {heads} heads of a width of {width} have not"
            )
        self.hidden, self.gated, self.reference = hidden, gated, reference
        self.sub_norm, self.inner_norm = sub_norm, inner_norm
        self.rope = Rotary2D(10_000.0) if reference else None
        if reference:
            self.in_attention, self.patch_drop = True, nn.Identity()

    def place(self, grid: tuple[int, int]) -> Angles | None:
        """The rotations of all tokens of a ``grid``, zero for the class token: two [T, 2, d / 2]; None for none."""
        if self.rope is None:
            return None
        device = self.patch_embed.proj.weight.device
        at: Tensor = torch.cartesian_prod(*(torch.arange(n, device=device) / n * self.reference for n in grid))
        return self.rope.angles(F.pad(at, (0, 0, self.before, 0)), self.dim // self.heads)
