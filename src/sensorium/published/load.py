"""Other people's checkpoints as our networks.

What decides is ``config.json``'s ``model_type`` where there is one, else the names of the tensors. Networks are built on
the meta device and filled from the file, so that a configuration that lies about its sizes costs nothing but an error.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.language.causal_lm.method import CausalLM
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.norms import Residual
from sensorium.parts.positions.turning import Rotary
from sensorium.published import names
from sensorium.published.files import locate, read_config, read_weights, tensors_of
from sensorium.selfsup.mae.method import MAE

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


# What a directory's config.json, or the key of a file, says it is: the module here, and its function, that reads it.
SYSTEMS = {
    "clip": "clip:load_hf",
    "detr": "detr:load_detr",
    "UNet2DModel": "diffusion:load_diffusers",
    "DiTTransformer2DModel": "diffusion:load_diffusers",
}
KEYS = {
    "transformer.decoder.norm.weight": "detr:load_detr",
    "head.classification_head.cls_logits.weight": "fcos:load_fcos",
    "decoder_cls_token": "oadtr:load_oadtr",
}


def load(path: str | Path, *, heads: int | None = None) -> nn.Module:
    """A network in evaluation mode: :class:`ViT`, :class:`ResNet`, :class:`MAE` (``.normalization`` is its (mean, std)),
    :class:`CausalLM`, :class:`CLIP`, :class:`DETR`, :class:`FCOS`, :class:`OadTR`, or a U-Net or DiT.

    path: a directory with config.json and model.safetensors, whole or in shards (Hugging Face ViT, ViTMAE, ResNet, Llama,
    Mixtral, CLIP, DETR; diffusers' UNet2DModel and DiTTransformer2DModel; ours), a .safetensors or .pth file (timm,
    torchvision's ResNet and FCOS, the authors' of MAE, DINO, DETR and OadTR), or a hub id. heads: attention heads of a ViT
    whose file does not say (64 channels a head otherwise). Raises SensoriumError that names the file and what is wrong with it.
    """
    where = locate(path)
    network = _from_directory(where) if where.is_dir() else _from_file(where, heads)
    return network.eval()


def load_backbone(path: str | Path) -> nn.Module:
    """The backbone of a checkpoint or of a run's folder."""
    folder = Path(path)
    exported = folder / "backbone"
    network: Any = load(exported if (exported / "config.json").is_file() else path)
    return getattr(network, "backbone", network)


def _from_directory(folder: Path) -> nn.Module:
    config = read_config(folder)
    kind = config.get("model_type") or config.get("_class_name")
    if kind in SYSTEMS:
        return _system(kind, folder)
    builders = {
        "vit": _hf_vit,
        "vit_mae": _hf_vit_mae,
        "resnet": _hf_resnet,
        "llama": _hf_llama,
        "mixtral": _hf_llama,
        "sensorium_vit": _own,
        "sensorium_resnet": _own,
        "sensorium_clip_vision": _own,
    }
    if kind is None and "architecture" in config:
        return _from_file(folder / "model.safetensors", config.get("model_args", {}).get("num_heads"))
    if kind not in builders:
        raise SensoriumError(
            f"{folder / 'config.json'}: model_type '{kind}' is not one of {', '.join([*builders, *SYSTEMS])}."
        )
    state = tensors_of(read_weights(folder)) if kind != "vit_mae" else read_weights(folder)
    try:
        network = builders[kind](config, state, str(folder))
    except KeyError as error:
        raise SensoriumError(f"{folder / 'config.json'}: the field {error} is missing.") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise SensoriumError(f"{folder / 'config.json'}: {error}.") from None
    network.normalization = _normalization(folder)  # type: ignore[assignment]
    return network


def _system(kind: str, where: Path) -> Any:
    """A whole system, read by the module of its own."""
    module, function = SYSTEMS.get(kind, kind).split(":")
    return getattr(import_module(f"sensorium.published.{module}"), function)(where)


def _normalization(folder: Path) -> tuple[Any, Any]:
    import json

    try:
        found = json.loads((folder / "preprocessor_config.json").read_text())
        return tuple(map(float, found["image_mean"])), tuple(map(float, found["image_std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return HALF


def _filled(build: Any, state: Mapping[str, Tensor], table: names.Names, where: str) -> Any:
    with torch.device("meta"):
        network = build()
    network.load_state_dict(names.read(state, network.state_dict(), table, where), assign=True)
    return network


def _only(config: Mapping[str, Any], field: str, legal: tuple[Any, ...], where: str) -> None:
    if config.get(field, legal[0]) not in legal:
        raise SensoriumError(
            f"{where}/config.json: {field} '{config[field]}' is not supported; it must be one of {legal}."
        )


def _vit_numbers(config: Mapping[str, Any], state: Mapping[str, Tensor], prefix: str, where: str) -> dict[str, Any]:
    _only(config, "hidden_act", ("gelu",), where)
    _only(config, "num_channels", (3,), where)
    width, patch = int(config["hidden_size"]), config["patch_size"]
    if not isinstance(patch, int):
        raise SensoriumError(f"{where}/config.json: patch_size {patch} is not one number.")
    size = config["image_size"]
    depth = int(config["num_hidden_layers"])
    _bounded(
        depth,
        sum(".layernorm_before.weight" in k and k.startswith(prefix + "encoder") for k in state),
        "num_hidden_layers",
        where,
    )
    return {
        "image_size": size if isinstance(size, int) else tuple(size),
        "patch_size": patch,
        "width": width,
        "depth": depth,
        "heads": int(config["num_attention_heads"]),
        "mlp_ratio": int(config["intermediate_size"]) / width,
        "eps": float(config.get("layer_norm_eps", 1e-12)),
        "qkv_bias": bool(config.get("qkv_bias", True)),
    }


def _bounded(claimed: int, found: int, field: str, where: str) -> None:
    if claimed != found:
        raise SensoriumError(f"{where}/config.json: {field} says {claimed}, the weights have {found}.")


def _hf_vit(config: Mapping[str, Any], state: dict[str, Tensor], where: str) -> ViT:
    prefix = "vit." if any(k.startswith("vit.") for k in state) else ""
    numbers = _vit_numbers(config, state, prefix, where)
    pool = config.get("sensorium_pool", "cls")
    return _filled(lambda: ViT(**numbers, pool=pool), state, names.hf_vit(prefix), where)


def _hf_vit_mae(config: Mapping[str, Any], state: dict[str, Tensor], where: str) -> nn.Module:
    if not any(k.startswith("decoder.") for k in state):  # ViTMAEModel: the encoder alone
        prefix = "vit." if any(k.startswith("vit.") for k in state) else ""
        numbers = _vit_numbers(config, state, prefix, where)
        return _filled(lambda: ViT(**numbers, positions="sincos", pool="mean"), state, names.hf_vit(prefix), where)
    numbers = _vit_numbers(config, state, "vit.", where)
    width, depth = int(config["decoder_hidden_size"]), int(config["decoder_num_hidden_layers"])
    layers = next(
        (p for p in ("decoder.decoder_layers", "decoder.decoder_encoder.layer") if any(k.startswith(p) for k in state)),
        "decoder.decoder_layers",
    )
    _bounded(
        depth,
        len({k.removeprefix(layers).split(".")[1] for k in state if k.startswith(layers)}),
        "decoder_num_hidden_layers",
        where,
    )

    def build() -> MAE:
        return MAE(
            ViT(**numbers, positions="sincos", pool="mean"),
            decoder_width=width,
            decoder_depth=depth,
            decoder_heads=int(config["decoder_num_attention_heads"]),
            decoder_mlp_ratio=int(config["decoder_intermediate_size"]) / width,
            mask_ratio=float(config.get("mask_ratio", 0.75)),
            normalize_targets=bool(config.get("norm_pix_loss", False)),
            eps=numbers["eps"],
            qkv_bias=numbers["qkv_bias"],
        )

    return _filled(build, state, names.hf_vit_mae(layers), where)


def _hf_resnet(config: Mapping[str, Any], state: dict[str, Tensor], where: str) -> ResNet:
    _only(config, "hidden_act", ("relu",), where)
    _only(config, "num_channels", (3,), where)
    _only(config, "layer_type", ("bottleneck", "basic"), where)
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    widths, depths = [int(w) for w in config["hidden_sizes"]], [int(d) for d in config["depths"]]
    prefix = "resnet." if any(k.startswith("resnet.") for k in state) else ""
    _bounded(
        sum(depths),
        len(
            {tuple(k.removeprefix(prefix).split(".")[2:5:2]) for k in state if k.startswith(prefix + "encoder.stages.")}
        ),
        "sum of depths",
        where,
    )
    return _filled(
        lambda: ResNet(
            tuple(depths),
            tuple(w // 4 for w in widths) if bottleneck else tuple(widths),
            bottleneck=bottleneck,
            stem_width=int(config["embedding_size"]),
            first_stride=2 if config.get("downsample_in_first_stage") else 1,
            early_stride=bool(config.get("downsample_in_bottleneck")),
        ),
        state,
        names.hf_resnet(prefix),
        where,
    )


def _hf_llama(config: Mapping[str, Any], state: dict[str, Tensor], where: str) -> CausalLM:
    _only(config, "hidden_act", ("silu",), where)
    _only(config, "attention_bias", (False, None), where)
    _only(config, "mlp_bias", (False, None), where)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise SensoriumError(f"{where}/config.json: rope_type '{kind}' is not supported; it must be 'default'.")
    window, longest = config.get("sliding_window"), int(config.get("max_position_embeddings", 0))
    if window is not None and int(window) < longest:
        raise SensoriumError(f"{where}/config.json: sliding_window {window} is not supported; it must be null.")
    depth, experts = int(config["num_hidden_layers"]), int(config.get("num_local_experts", 0))
    _bounded(depth, _count(state, r"model\.layers\.(\d+)\."), "num_hidden_layers", where)
    found = _count(state, r"model\.layers\.0\.block_sparse_moe\.experts\.(\d+)\.")
    _bounded(experts, found, "num_local_experts", where)
    tied = bool(config.get("tie_word_embeddings", False))
    if tied:
        state = {k: v for k, v in state.items() if k != "lm_head.weight"}  # the embedding once more

    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or width // max(1, heads))
    for name, tensor in state.items():  # joined with keys and values, it would not show
        if name.endswith("self_attn.q_proj.weight") and len(tensor) != heads * head_dim:
            raise SensoriumError(f"{where}: '{name}' has {len(tensor)} rows, but {heads} heads of {head_dim}.")

    def build() -> CausalLM:
        return CausalLM(
            int(config["vocab_size"]),
            width,
            depth,
            heads,
            hidden=int(config["intermediate_size"]),
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            experts=experts,
            active=int(config.get("num_experts_per_tok", 2)),
            balance=float(config.get("router_aux_loss_coef", 0.01)),
            tied=tied,
            positions=Rotary(theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))),
            joint=partial(Residual, kind="rms", eps=float(config.get("rms_norm_eps", 1e-6))),
        )

    return _filled(build, state, names.hf_llama(experts), where)


def _own(config: Mapping[str, Any], state: dict[str, Tensor], where: str) -> nn.Module:
    numbers: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["numbers"].items()}
    if config["model_type"] == "sensorium_vit":
        _bounded(int(numbers["depth"]), _count(state, r"blocks\.(\d+)\."), "depth", where)
        return _filled(lambda: ViT(**numbers), state, names.same(), where)
    if config["model_type"] == "sensorium_clip_vision":
        _bounded(int(numbers["depth"]), _count(state, r"blocks\.(\d+)\."), "depth", where)
        return _filled(lambda: CLIPVision(**numbers), state, names.same(), where)
    _bounded(len(numbers["layers"]), _count(state, r"layer(\d+)\."), "layers", where)
    return _filled(lambda: ResNet(**numbers), state, names.same(), where)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for k in state if (m := re.match(pattern, k))})


def _from_file(path: Path, heads: int | None) -> nn.Module:
    """timm, torchvision, MAE's and DINO's authors: told apart by their keys."""
    with torch.serialization.safe_globals([argparse.Namespace]):  # authors keep their arguments beside the weights
        state = tensors_of(read_weights(path), "teacher", "model", "state_dict")
    state = {k: v for k, v in state.items() if not k.startswith("head.mlp") and not k.startswith("head.last_layer")}
    where = str(path)
    if found := next((reader for key, reader in KEYS.items() if key in state), None):
        return _system(found, path)
    if "patch_embed.proj.weight" in state and "pos_embed" in state and "cls_token" in state:
        numbers = _sniffed_vit(state, heads, where)
        if "decoder_embed.weight" in state:
            network = _authors_mae(state, numbers, where)
        else:
            network = _filled(lambda: ViT(**numbers), state, names.same(), where)
    elif "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        network = _sniffed_resnet(state, where)
    else:
        raise SensoriumError(
            f"{where}: neither a ViT nor a ResNet by its keys (it begins with {', '.join(list(state)[:3]) or 'nothing'})."
        )
    network.normalization = IMAGENET  # type: ignore[assignment]
    return network


def _sniffed_vit(state: Mapping[str, Tensor], heads: int | None, where: str) -> dict[str, Any]:
    weight, positions = state["patch_embed.proj.weight"], state["pos_embed"]
    if weight.ndim != 4 or weight.shape[-1] != weight.shape[-2] or positions.ndim != 3:
        raise SensoriumError(
            f"{where}: 'patch_embed.proj.weight' {list(weight.shape)} or 'pos_embed' {list(positions.shape)} is not a ViT's."
        )
    width, patch = weight.shape[0], weight.shape[-1]
    side = math.isqrt(positions.shape[1] - 1)
    if side * side != positions.shape[1] - 1:
        raise SensoriumError(
            f"{where}: 'pos_embed' has {positions.shape[1]} places, which is no square grid and a class token."
        )
    hidden = state.get("blocks.0.mlp.fc1.weight")
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "width": width,
        "depth": _count(state, r"blocks\.(\d+)\."),
        "heads": heads or {1280: 16}.get(width, max(1, width // 64)),
        "mlp_ratio": hidden.shape[0] / width if hidden is not None else 4.0,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "registers": registers,
    }


def _authors_mae(state: Mapping[str, Tensor], numbers: dict[str, Any], where: str) -> MAE:
    width = state["decoder_embed.weight"].shape[0]

    def build() -> MAE:
        return MAE(
            ViT(**numbers, positions="sincos", pool="mean"),
            decoder_width=width,
            decoder_depth=_count(state, r"decoder_blocks\.(\d+)\."),
            decoder_heads=16 if width % 16 == 0 and width >= 256 else max(1, width // 32),
            normalize_targets=True,
        )

    return _filled(build, state, names.authors_mae, where)


def _sniffed_resnet(state: Mapping[str, Tensor], where: str) -> ResNet:
    stages = _count(state, r"layer(\d+)\.")
    bottleneck = "layer1.0.conv3.weight" in state
    layers = tuple(len({k.split(".")[1] for k in state if k.startswith(f"layer{i + 1}.")}) for i in range(stages))
    widths = tuple(state[f"layer{i + 1}.0.conv1.weight"].shape[0] for i in range(stages))
    kernel = state["conv1.weight"].shape[-1]
    if kernel not in (3, 7):
        raise SensoriumError(
            f"{where}: a ResNet whose first convolution is {kernel}x{kernel} is not known; 7x7 and 3x3 are."
        )
    stem = "imagenet" if kernel == 7 else "small"
    build = {"bottleneck": bottleneck, "stem": stem, "stem_width": state["conv1.weight"].shape[0]}
    return _filled(lambda: ResNet(layers, widths, **build), state, names.same(), where)
