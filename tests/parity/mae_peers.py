"""What parity tests of masked autoencoders share: tensors of a peer under our names, and the comparison of all gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Renamed = Callable[
    [dict[str, Tensor], list[str]], dict[str, Tensor]
]  # a peer's tensors, our names -> tensors by our names


class Peer(NamedTuple):
    """A peer's names by ours: ``top`` of what stands alone, ``stacks`` of encoder and decoder, by what comes before
    "blocks." here, ``block`` of the parts of a block, in which {} is one of ``qkv``."""

    top: dict[str, str]
    stacks: dict[str, str]
    block: dict[str, str]
    qkv: tuple[str, str, str]

    def renamed(self, theirs: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
        """Tensors under our names ``wanted``, from the peer's."""
        found = {}
        for name in wanted:
            stem, kind = name.rsplit(".", 1) if name.endswith((".weight", ".bias")) else (name, "")
            stack, _, rest = stem.partition("blocks.")
            index, _, part = rest.partition(".")
            source = f"{self.stacks[stack]}.{index}.{self.block[part]}" if rest else self.top[stem]
            source = f"{source}.{kind}".rstrip(".")
            parts = [theirs[source.format(one)] for one in self.qkv] if "{}" in source else [theirs[source]]
            found[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return found


VIT_MAE = Peer(
    top={
        "backbone.cls_token": "vit.embeddings.cls_token",
        "backbone.pos_embed": "vit.embeddings.position_embeddings",
        "backbone.patch_embed": "vit.embeddings.patch_embeddings.projection",
        "backbone.patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "backbone.norm": "vit.layernorm",
        "mask_token": "decoder.mask_token",
        "decoder_pos_embed": "decoder.decoder_pos_embed",
        "decoder_embed": "decoder.decoder_embed",
        "decoder_norm": "decoder.decoder_norm",
        "decoder_pred": "decoder.decoder_pred",
    },
    stacks={"backbone.": "vit.layers", "decoder_": "decoder.decoder_layers"},
    block={
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.qkv": "attention.{}_proj",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    qkv=("q", "k", "v"),
)


def shaken(model: Any) -> Any:
    """The model with noise on all parameters, also on those that begin at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By name; zeros where there is none."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, renamed: Renamed, atol: float = 1e-4) -> None:
    """Of all trainable parameters of ours, none of which is zero."""
    mine = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    for name, gradient in renamed(gradients(theirs), list(mine)).items():
        torch.testing.assert_close(mine[name].grad, gradient, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert gradient.abs().max() > 0, name
