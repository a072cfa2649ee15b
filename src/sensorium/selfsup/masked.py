"""A masked autoencoder of patches of any kind of data, after masked autoencoders are scalable vision learners (He et al.,
2022, arXiv:2111.06377). What a patch is, and where it stands, is said by the system that inherits from it.

Three quarters of a sample's patches are removed; the encoder gets the rest, and a small decoder predicts the values of the
removed ones from the encoder's output and a learned mask token for each removed patch:
    shuffle = argsort(noise),   keep the first N (1 - mask_ratio) of it                    (section 3, "masking")
    z = encode(embed(x)[keep])                                                             ("encoder")
    y = decoder([z, mask tokens] + positions)                                              ("decoder")
    L = mean over removed patches of |y - t|^2,   t = (values - mean) / sqrt(var + 1e-6)   ("reconstruction target")
A transformer without causal mask is equivariant to the order of its tokens, so the decoder runs in shuffled order: kept
patches first, removed ones last. Nothing has to be unshuffled, and what only the loss needs (the last block's queries
and MLP, the norm, the prediction) is computed for the removed rows only. The results equal the paper's. Decoder
parameters carry the names of the authors' code. With mask_ratio 0 no patch is removed, and all are predicted: an
autoencoder of the same network, to compare with.
Shapes: B samples x, N patches (n kept) of P values each, W width of the decoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.method import Method, Progress
from sensorium.networks.sequence_vit import SequenceViT
from sensorium.parts.block import Angles, Block
from sensorium.parts.init import init_transformer_
from sensorium.parts.moe.layer import update_biases
from sensorium.parts.patches import rows_at
from sensorium.parts.positions.absolute import Sinusoidal
from sensorium.parts.positions.turning import in_time


class MaskedAutoencoder(Method, ABC):
    """A masked autoencoder around a ``backbone`` with ``embed`` and ``encode`` (:class:`sensorium.abilities.TokenEncoder`).

    ``field``: what of a batch it learns from. ``values``: P. ``mask_ratio``: fraction of the patches that is removed;
    ``normalize_targets`` standardizes each target patch by its own mean and (unbiased) variance; ``eps`` and ``qkv_bias``
    are the decoder's.
    """

    field: str

    def __init__(
        self,
        backbone: Any,
        values: int,
        *,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        decoder_mlp_ratio: float = 4.0,
        mask_ratio: float = 0.75,
        normalize_targets: bool = True,
        eps: float = 1e-6,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if decoder_depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {decoder_depth}")
        self.backbone: Any = backbone
        self.dim: int = backbone.dim
        self.mask_ratio, self.normalize_targets = mask_ratio, normalize_targets

        self.decoder_embed = nn.Linear(backbone.dim, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_width))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads, mlp_ratio=decoder_mlp_ratio, eps=eps, qkv_bias=qkv_bias)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=eps)
        self.decoder_pred = nn.Linear(decoder_width, values)
        nn.init.normal_(self.mask_token, std=0.02)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            init_transformer_(part, "xavier")

    @abstractmethod
    def patches(self, x: Tensor) -> Tensor:
        """Samples -> the values of their patches [B, N, P]."""

    @abstractmethod
    def count(self, x: Tensor) -> int:
        """N of samples x."""

    @abstractmethod
    def positions(self, x: Tensor) -> Tensor:
        """The decoder's positions for samples x, [1 + N, W]; the first is the class token's."""

    def kept(self, patches: int) -> int:
        """How many of ``patches`` the encoder gets; ``ValueError`` if none would be kept."""
        kept = int(patches * (1 - self.mask_ratio))
        if not 0 < kept <= patches:
            raise ValueError(
                f"mask_ratio {self.mask_ratio} keeps {kept} of {patches} patches: keep at least 1, at most all"
            )
        return kept

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The samples and, optional, ``noise`` [B, N] (smallest kept) -> the loss, and what :meth:`losses` logs."""
        x = batch[self.field]
        keep, removed = self.mask(x, batch.get("noise"))
        return self.losses(self.predict(x, keep, removed), rows_at(self.patches(x), self.predicted(keep, removed)))

    def losses(self, predicted: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Predictions [B, m, P] and the values of the same patches -> the loss, and what is logged of it.

        Here ``explained``, the fraction of the targets' energy that the prediction explains: 0 for predicting zeros.
        """
        targets = self.targets(values)
        loss = F.mse_loss(predicted.float(), targets)
        return {"loss": loss, "explained": 1 - loss.detach() / targets.square().mean().clamp_min(1e-12)}

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self)

    def mask(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Indices of the kept [B, n] and the removed patches [B, N - n], in the order of the noise."""
        N = self.count(x)
        if noise is None:
            noise = torch.rand(len(x), N, device=x.device)
        if noise.shape != (len(x), N):
            raise ValueError(f"noise must be [{len(x)}, {N}] (one per patch), got {list(noise.shape)}")
        shuffle = torch.argsort(noise, dim=1)
        n = self.kept(N)
        return shuffle[:, :n], shuffle[:, n:]

    def predicted(self, keep: Tensor, removed: Tensor) -> Tensor:
        """Indices of the patches that are predicted: the removed ones, or all if none are removed."""
        return removed if removed.shape[1] else keep

    def targets(self, values: Tensor) -> Tensor:
        """Values of patches [..., P] -> the decoder's targets [..., P], float32."""
        values = values.float()
        if not self.normalize_targets:
            return values
        var, mean = torch.var_mean(values, dim=-1, keepdim=True)
        return (values - mean) * torch.rsqrt(var + 1e-6)

    def encode(self, x: Tensor, keep: Tensor) -> Tensor:
        """The kept patches of samples x, encoded: [B, 1 + n, D]."""
        return self.backbone.encode(self.backbone.embed(x, keep))

    def placed(self, y: Tensor, places: Tensor, x: Tensor) -> tuple[Tensor, Angles | None]:
        """The decoder's input [B, 1 + N, W] -> the same with positions, and what rotates queries and keys of its blocks.
        ``places`` [B, 1 + N]: 0 the class token's, the patches' from 1."""
        return y + F.embedding(places, self.positions(x)), None

    def predict(self, x: Tensor, keep: Tensor, removed: Tensor) -> Tensor:
        """Targets [B, N - n, P] of the ``predicted`` patches, in their order."""
        latent = self.decoder_embed(self.encode(x, keep))  # [B, 1 + n, W]
        places = torch.cat([F.pad(keep + 1, (1, 0)), removed + 1], dim=1)
        gaps = self.mask_token.expand(len(x), removed.shape[1], -1)
        y, angles = self.placed(torch.cat([latent, gaps], dim=1), places, x)
        for block in self.decoder_blocks[:-1]:
            y = block(y, None, angles)
        count = self.predicted(keep, removed).shape[1]  # they are the last rows
        y = self.decoder_blocks[-1](y, slice(y.shape[1] - count, None), angles)
        return self.decoder_pred(self.decoder_norm(y))


class MaskedSequence(MaskedAutoencoder):
    """A masked autoencoder of sequences, streams or text, around a :class:`SequenceViT`: positions of encoder and decoder
    are sinusoids of time, and the class token has none; or rotary, if the encoder's are. ``numbers``: those of
    :class:`MaskedAutoencoder`."""

    def __init__(self, backbone: SequenceViT, values: int, *, decoder_width: int, **numbers: Any) -> None:
        super().__init__(backbone, values, decoder_width=decoder_width, **numbers)
        self.decoder_positions = Sinusoidal(decoder_width)
        self.head_dim: int = cast(Any, self.decoder_blocks[0]).attn.head_dim
        if backbone.rotary and self.head_dim % 2:
            raise ValueError(f"rotated heads have an even number of channels: the decoder's have {self.head_dim}")

    def patches(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, N, P]."""
        return self.backbone.patches(x)

    def count(self, x: Tensor) -> int:
        """N of sequences [B, T, ...]."""
        return self.backbone.count(x)

    def positions(self, x: Tensor) -> Tensor:
        """Sinusoids for the patches of sequences [B, T, ...], after a row of zeros: [1 + N, W]."""
        return F.pad(self.decoder_positions.rows(torch.arange(self.count(x), device=x.device)), (0, 0, 1, 0))

    def encode(self, x: Tensor, keep: Tensor) -> Tensor:
        """The kept patches of sequences x, encoded: [B, 1 + n, D]."""
        return self.backbone.encode(self.backbone.embed(x, keep), keep)

    def placed(self, y: Tensor, places: Tensor, x: Tensor) -> tuple[Tensor, Angles | None]:
        """Sinusoids in the decoder's input [B, 1 + N, W], or rotations of its blocks."""
        return (y, in_time(places, self.head_dim)) if self.backbone.rotary else super().placed(y, places, x)
