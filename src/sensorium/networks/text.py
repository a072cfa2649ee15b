"""The text tower of CLIP (Radford et al., 2021, arXiv:2103.00020, section 2.4), and the block of both its towers.

A causal pre-norm transformer; its output at the end-of-text token represents the text:
    z_0 = embed(token) + E_pos
    z_l = z + Attention(LayerNorm(z)),  z + Mlp(LayerNorm(z))        a token attends to itself and earlier ones
    y   = LayerNorm(z_L)[end of text]
The authors' activation is quick_gelu(x) = x sigmoid(1.702 x); many later models use the exact GELU, SigLIP its tanh
approximation. Tokens after the end of text do not affect it, so rows may be padded with anything, or cut after the
longest text of a batch.
Shapes: B texts, T tokens, D width, R chosen rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import TextEncoder
from sensorium.base.records import Count
from sensorium.parts import block
from sensorium.parts.attention.sdpa import sdpa

Activation = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), an approximation of GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),  # transformers' name
}


class Attention(block.Attention):
    """Self-attention, optionally ``causal``."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__(width, heads)
        self.causal = causal

    def forward(self, x: Tensor, rows: slice | None = None, angles: block.Angles | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], or, if it is not causal, [B, R, D] for the chosen ``rows``."""
        if not self.causal:
            return super().forward(x, rows, angles)
        if rows is not None:
            raise ValueError("causal attention gives all rows")
        q, k, v = self._queries_keys_values(x, None, angles)
        return self.proj(sdpa(q, k, v, causal=True).transpose(1, 2).flatten(2))


class Mlp(block.Mlp):
    """fc2(activation(fc1(x)))."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__(width, hidden)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """Attention and Mlp (``hidden`` channels), each pre-norm with a residual connection."""

    def __init__(
        self, width: int, heads: int, hidden: int, *, activation: Activation, eps: float, causal: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden, activation)

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], or [B, R, D] for the chosen ``rows``."""
        branch = self.attn(self.norm1(x), rows)
        x = (x if rows is None else x[:, rows]) + branch
        return x + self.mlp(self.norm2(x))


def init_blocks_(blocks: nn.ModuleList, width: int) -> None:
    """Normal initial weights as in the authors' code, smaller for the output layers of branches; biases zero."""
    into_stream = width**-0.5 * (2 * len(blocks)) ** -0.5
    for name, layer in blocks.named_modules():
        if isinstance(layer, nn.Linear):
            kind = name.rpartition(".")[2]
            std = {"qkv": width**-0.5, "fc1": (2 * width) ** -0.5}.get(kind, into_stream)
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)


class TextTower(nn.Module, TextEncoder):
    """A causal text encoder over ``vocab`` tokens, with at most ``context`` tokens per text.

    ``hidden`` channels of a block's Mlp (four times the width). ``eot``: the end-of-text token, whose first position is
    pooled; None pools at the largest token, as in the authors' code, where end of text is the last of the vocabulary. A
    row without an end of text is pooled at its first token; tokenizers always add one.
    """

    def __init__(
        self,
        vocab: int,
        context: int,
        width: int,
        depth: int,
        heads: int,
        *,
        hidden: int | None = None,
        activation: Activation = "quick_gelu",
        eps: float = 1e-5,
        eot: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if eot is not None and not 0 <= eot < vocab:
            raise ValueError(f"eot {eot} is not in the vocabulary of {vocab} tokens")
        self.vocab, self.context, self.dim, self.depth, self.heads = vocab, context, width, depth, heads
        self.hidden = 4 * width if hidden is None else hidden
        self.activation: Activation = activation
        self.eps, self.eot = eps, eot
        self.token_embed = nn.Embedding(vocab, width)
        self.pos_embed = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, self.hidden, activation=activation, eps=eps, causal=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        nn.init.normal_(self.token_embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        init_blocks_(self.blocks, width)

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> output of the last block [B, T, D], before the final norm."""
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"{length} tokens per text, but positions for {self.context}: truncate the texts")
        x = self.token_embed(tokens) + self.pos_embed[:length]
        for layer in self.blocks:
            x = layer(x)
        return x

    def encode(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> every token encoded and normed [B, T, D]."""
        return self.norm(self.hidden_states(tokens))

    def ends(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> the position of each text's end [B]."""
        return (tokens if self.eot is None else (tokens == self.eot).int()).argmax(dim=1)

    def features(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> [B, D]: the end-of-text token, after the final norm."""
        x = self.hidden_states(tokens)
        return self.norm(x[torch.arange(len(x), device=x.device), self.ends(tokens)])

    def shorten_(self, context: int) -> TextTower:
        """Forget the positions from ``context`` on. In place; nothing changes for texts that are no longer."""
        self.pos_embed = nn.Parameter(self.pos_embed.detach()[:context].clone(), self.pos_embed.requires_grad)
        self.context = min(context, self.context)
        return self


@dataclass(frozen=True)
class TextSizes:
    """What a tower is built of: its arguments."""

    vocab: Count
    context: Count
    width: Count
    depth: Count
    heads: Count
    hidden: Count
    activation: Activation
    eps: float
    eot: Count | None

    @classmethod
    def of(cls, tower: TextTower) -> TextSizes:
        sizes = (tower.vocab, tower.context, tower.dim, tower.depth, tower.heads, tower.hidden)
        return cls(*sizes, tower.activation, tower.eps, tower.eot)

    def build(self) -> TextTower:
        """A tower with random weights."""
        return TextTower(**asdict(self))
