"""MAE of streams: a masked autoencoder (He et al., 2022, arXiv:2111.06377) of signals and of features in time.

Three quarters of a window's patches are removed; the encoder gets the rest, and a small decoder predicts the removed ones.
Masking, decoder, targets and loss are in :mod:`sensorium.selfsup.masked`; here is what is a stream's:
    patch      k consecutive frames, all channels,  t = (values - mean) / sqrt(var + 1e-6)
    positions  sinusoids of time, of encoder and decoder; the class token has none
Shapes: B windows, T frames of F values, N = T / k patches of P = k F values.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sensorium.abilities import StreamEncoder
from sensorium.networks.sequence_vit import SequenceViT
from sensorium.selfsup.masked import MaskedSequence


class StreamMAE(MaskedSequence, StreamEncoder):
    """A masked autoencoder of windows of ``features`` values per frame, in patches of ``patch`` frames.

    width, depth, heads: of the encoder. ``numbers``: the decoder's and the mask's, as of :class:`MaskedSequence`.
    """

    field = "frames"

    def __init__(
        self, features: int, patch: int, width: int, depth: int, heads: int, *, eps: float = 1e-6, **numbers: Any
    ) -> None:
        values = patch * features
        backbone = SequenceViT(nn.Linear(values, width), patch, width, depth, heads, eps=eps)
        super().__init__(backbone, values, eps=eps, **numbers)

    def features(self, frames: Tensor) -> Tensor:
        """[B, T, F] -> [B, dim]: the backbone's features of the whole window."""
        return self.backbone.features(frames)
