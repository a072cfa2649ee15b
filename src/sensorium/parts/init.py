"""Initial weights of transformers."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

Init = Literal["normal", "xavier"]


def init_transformer_(module: nn.Module, how: Init) -> None:
    """Set every linear layer below ``module``, biases to zero: ``normal`` is ViT's truncated normal of std 0.02,
    ``xavier`` the uniform of MAE (Glorot), which follows the layer's size and suits narrow networks."""
    if how not in get_args(Init):
        raise ValueError(f"init must be one of {', '.join(get_args(Init))}, got {how!r}")
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            if how == "normal":
                nn.init.trunc_normal_(layer.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
