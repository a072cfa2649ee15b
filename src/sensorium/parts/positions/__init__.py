"""Position encodings of a Transformer: one small class per scheme, each with its paper.

A scheme overrides some of four hooks; the others do nothing. ``at`` are positions, int64 [T], or for images rows and
columns [T, 2].
Shapes: B batch, T queries, S keys, D width, h heads, g key-value heads, d channels per head.
"""

from __future__ import annotations

from torch import Tensor, nn


class Positions(nn.Module):
    """A scheme that does nothing, and the base of all others.

    ``attention``: the kinds of attention that support it: "softmax", which has all four hooks, "linear", which has no
    scores to add a bias to, "latent", with separate rotary channels, and "gated", whose units rotate queries and keys
    themselves: these two only work with rotary positions. ``scale`` multiplies q k^T / sqrt(d) before ``bias`` is
    added.
    """

    attention: frozenset[str] = frozenset({"softmax", "linear"})
    scale: float = 1.0

    def embed(self, x: Tensor, at: Tensor) -> Tensor:
        """Hook on the input of the first layer: [B, T, D] -> [B, T, D]."""
        return x

    def rotate(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> tuple[Tensor, Tensor]:
        """Hook on queries [B, h, T, d] and keys [B, g, S, d] of a layer, before their products."""
        return q, k

    def bias(self, q: Tensor, k: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor | None:
        """Bias of the scores q k^T / sqrt(d): [B or 1, h, T, S]; None for none."""
        return None

    def read(self, weights: Tensor, at_q: Tensor, at_k: Tensor) -> Tensor | None:
        """Added to a head's output, from its weights [B, h, T, S]: [B, h, T, d]; None for none."""
        return None
