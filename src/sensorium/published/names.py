"""Whose parameter is whose: for each format of others, one function from our name to theirs.

``theirs(our_name) -> tuple of their names``, joined along the first dimension where there are several (query, key and
value against our fused ``qkv``). The same function serves reading (join) and writing (split). What of theirs has no
counterpart is listed with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sensorium.errors import SensoriumError

Names = Callable[[str], tuple[str, ...]]

# pattern of their name -> why it is left out
DROPPED: dict[str, str] = {
    r"(^|\.)(classifier|head|fc)(\.\d+)?\.(weight|bias)$": "a classifier belongs to the labels it was trained on",
    r"(^|\.)pooler\.": "the pooler's layer is no part of the published features",
    r"\.num_batches_tracked$": "a counter that evaluation does not read",
    r"(^|\.)mask_token$": "only masked training uses it",
    r"(^|\.)decoder": "only masked training uses it",
    r"\.rotary_emb\.inv_freq$": "follows from the rotary base",
}

_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def _hf_block(rest: str, prefix: str) -> tuple[str, ...]:
    layer, _, kind = rest.rpartition(".")
    if layer == "attn.qkv":
        return tuple(f"{prefix}.attention.attention.{part}.{kind}" for part in ("query", "key", "value"))
    return (f"{prefix}.{_BLOCK[layer]}.{kind}",)


def hf_vit(prefix: str = "vit.") -> Names:
    """Hugging Face ViT; ``prefix`` is "vit." where a head was saved with it, else ""."""
    stem = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }

    def theirs(ours: str) -> tuple[str, ...]:
        if ours in stem:
            return (prefix + stem[ours],)
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", ours)
        if not block:
            raise SensoriumError(f"'{ours}' has no place in a Hugging Face ViT.")
        return _hf_block(block[2], f"{prefix}encoder.layer.{block[1]}")

    return theirs


def hf_vit_mae(layers: str = "decoder.decoder_layers") -> Names:
    """Hugging Face ViTMAE; ``layers`` is how the decoder's blocks are called (the hub's files and newer ones differ)."""
    encoder = hf_vit("vit.")

    def theirs(ours: str) -> tuple[str, ...]:
        if ours.startswith("backbone."):
            return encoder(ours.removeprefix("backbone."))
        block = re.fullmatch(r"decoder_blocks\.(\d+)\.(.+)", ours)
        return _hf_block(block[2], f"{layers}.{block[1]}") if block else (f"decoder.{ours}",)

    return theirs


def hf_resnet(prefix: str = "resnet.") -> Names:
    """Hugging Face ResNet; ``prefix`` is "resnet." where a head was saved with it, else ""."""

    def theirs(ours: str) -> tuple[str, ...]:
        stem = re.fullmatch(r"(conv|bn)1\.(.+)", ours)
        if stem:
            return (f"{prefix}embedder.embedder.{_HF_KIND[stem[1]]}.{stem[2]}",)
        found = re.fullmatch(r"layer(\d+)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(.+)", ours)
        if not found:
            raise SensoriumError(f"'{ours}' has no place in a Hugging Face ResNet.")
        stage, layer, kind, number, shortcut, rest = found.groups()
        where = f"{prefix}encoder.stages.{int(stage) - 1}.layers.{layer}"
        if shortcut is not None:
            return (f"{where}.shortcut.{('convolution', 'normalization')[int(shortcut)]}.{rest}",)
        return (f"{where}.layer.{int(number) - 1}.{_HF_KIND[kind]}.{rest}",)

    return theirs


_HF_KIND = {"conv": "convolution", "bn": "normalization"}


_LLAMA = {
    "norm1.norm": ("input_layernorm",),
    "norm2.norm": ("post_attention_layernorm",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.o_proj",),
    "ffn.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn.down": ("mlp.down_proj",),
    "ffn.router": ("block_sparse_moe.gate",),
}
_MIXTRAL = {"ffn.gate_up": ("w1", "w3"), "ffn.down": ("w2",)}


def hf_llama(experts: int = 0) -> Names:
    """Hugging Face Llama; with ``experts`` Mixtral, whose files hold each expert's matrices apart."""
    stem = {
        "embed.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    }

    def theirs(ours: str) -> tuple[str, ...]:
        if ours in stem:
            return (stem[ours],)
        layer, rest = re.fullmatch(r"layers\.(\d+)\.(.+)", ours).groups()  # type: ignore[union-attr]
        where = f"model.layers.{layer}"
        if rest in _MIXTRAL:
            expert = f"{where}.block_sparse_moe.experts"
            return tuple(f"{expert}.{e}.{part}.weight" for e in range(experts) for part in _MIXTRAL[rest])
        return tuple(f"{where}.{part}.weight" for part in _LLAMA[rest.removesuffix(".weight")])

    return theirs


def same(prefix: str = "") -> Names:
    """timm's ViT and torchvision's or timm's ResNet use our names."""
    return lambda ours: (prefix + ours,)


def authors_mae(ours: str) -> tuple[str, ...]:
    """facebookresearch/mae: the encoder's names stand bare beside the decoder's."""
    return (ours.removeprefix("backbone."),)


def read(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: Names, where: str) -> dict[str, Tensor]:
    """Their state -> ours, float32: each target is filled, each source used once or dropped for a written reason, shapes equal.

    ``wanted`` gives our names and shapes (tensors may be on the meta device). Raises SensoriumError that names the entry.
    """
    used: set[str] = set()
    ours: dict[str, Tensor] = {}
    for name, target in wanted.items():
        sources = list(names(name))
        if name.endswith("num_batches_tracked") and sources[0] not in state:
            ours[name] = torch.zeros((), dtype=torch.long)
            continue
        missing = [source for source in sources if source not in state]
        if missing:
            raise SensoriumError(f"{where}: '{missing[0]}' is missing.")
        tensor = torch.cat([state[source] for source in sources]) if len(sources) > 1 else state[sources[0]]
        if len(sources) > 1 and target.ndim == tensor.ndim + 1 and tensor.numel() == target.numel():
            tensor = tensor.view(target.shape)  # a stack of experts
        if tensor.shape != target.shape:
            raise SensoriumError(
                f"{where}: '{sources[0]}' has shape {list(tensor.shape)}, its place {list(target.shape)}."
            )
        tensor = tensor.to(target.dtype)
        if tensor.stride() != target.stride():  # convolutions may want another order in memory
            tensor = torch.empty_like(target, device=tensor.device).copy_(tensor)
        ours[name] = tensor
        used.update(sources)
    strange = [name for name in state if name not in used and not any(re.search(p, name) for p in DROPPED)]
    if strange:
        raise SensoriumError(
            f"{where}: '{strange[0]}' is unknown{f' (and {len(strange) - 1} more)' if len(strange) > 1 else ''}."
        )
    return ours


def write(
    state: Mapping[str, Tensor], names: Names, rows: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Ours -> theirs: the inverse of :func:`read`. rows: by the end of our name, how many rows each of theirs has, where
    they have not equally many."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        targets, tensor = names(name), tensor.detach().cpu()
        if tensor.ndim == 3 and len(targets) > 1 and len(targets) % len(tensor) == 0:
            tensor = tensor.flatten(0, 1)  # a stack of experts
        uneven = next((counts for end, counts in (rows or {}).items() if name.endswith(end)), None)
        parts = [tensor] if len(targets) == 1 else tensor.split(uneven) if uneven else tensor.chunk(len(targets))
        theirs |= {target: part.contiguous().clone() for target, part in zip(targets, parts, strict=True)}
    return theirs
