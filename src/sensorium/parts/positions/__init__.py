"""How a Transformer is told where a token stands: a small class a scheme, each with its paper.

A scheme acts at up to four places and does nothing at the others. ``at`` are positions, int64 [T], or for images
rows and columns [T, 2].
Shapes: B batch, T queries, S keys, D width, h heads, g key-value heads, d channels a head.
"""

from __future__ import annotations

from torch import Tensor, nn


class Positions(nn.Module):
    """A scheme that does nothing, and the base of all others.

    ``attention`` names the kinds that it composes with: "softmax", which takes all four places, "linear", which has no
    scores to add to, "latent", whose turned channels stand apart, and "gated", whose units turn queries and keys
    themselves: these two go with rotary positions alone. ``scale`` multiplies q k^T / sqrt(d) before ``bias`` is added.
    """

    attention: frozenset[str] = frozenset({"softmax", "linear"})
    scale: float = 1.0

    def embed(self, x: Tensor, at: Tensor) -> Tensor:
        """What enters the first layer: [B, T, D] -> [B, T, D]."""
        return x

    def rotate(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, h, T, d] and keys [B, g, S, d] of a layer, before their products."""
        return q, k

    def bias(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor | None:
        """What is added to the scores q k^T / sqrt(d): [B or 1, h, T, S]; None for nothing."""
        return None

    def read(self, weights: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor | None:
        """What is added to what a head has read, from its weights [B, h, T, S]: [B, h, T, d]; None for nothing."""
        return None
