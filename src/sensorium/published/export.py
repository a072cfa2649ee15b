"""Our networks as checkpoints of others: the inverse of :mod:`sensorium.published.load`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.language.causal_lm.method import CausalLM
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.resnet import Bottleneck, ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.moe.layer import MoE
from sensorium.parts.norms import Residual
from sensorium.parts.positions.rotary import rotary_table
from sensorium.parts.positions.turning import Rotary
from sensorium.published import names
from sensorium.selfsup.mae.method import MAE

Statistics = Sequence[float]
# Whole systems, each written by a module of its own.
SYSTEMS = {
    "CLIP": "clip:export_hf",
    "UNet": "diffusion:export_diffusers",
    "DiT": "diffusion:export_diffusers",
    "RectifiedFlow": "diffusion:export_flow",
    "DETR": "detr:export_hf",
}


def export(
    network: nn.Module,
    to: str,
    out: Path,
    *,
    mean: Statistics | None = None,
    std: Statistics | None = None,
    image_size: int | None = None,
) -> Path:
    """Write ``network`` (a backbone, or a method that has one) as "safetensors", "hf", "timm" or "onnx"; give the path.

    An MAE goes to Hugging Face whole, as ViTMAE, and a DETR; an FCOS goes to "torchvision"; every other method as its backbone. mean, std: of the pixels in 0..1
    scale. Raises SensoriumError where the format cannot hold the network, and says which can.
    """
    if isinstance(network, CausalLM):
        return _language(network, to, out)
    if type(network).__name__ in SYSTEMS and to == "hf":
        module, function = SYSTEMS[type(network).__name__].split(":")
        return getattr(import_module(f"sensorium.published.{module}"), function)(network, out)
    if to == "torchvision":
        return import_module("sensorium.published.fcos").export_torchvision(network, out)
    told: Any = getattr(network, "normalization", None)
    told = told or ((0.5,) * 3, (0.5,) * 3)
    mean = told[0] if mean is None else mean
    std = told[1] if std is None else std
    assert mean is not None
    assert std is not None
    whole = isinstance(network, MAE) and to == "hf"
    inner = network if whole else getattr(network, "backbone", network)
    inner = getattr(inner, "body", inner)  # of a pyramid
    if isinstance(inner, CLIPVision) and to in ("hf", "timm"):
        raise SensoriumError(f"the image tower of a CLIP has no format of {to} alone. Use --to safetensors or onnx.")
    if not isinstance(inner, (ViT, ResNet, MAE, CLIPVision)):
        raise SensoriumError(f"{type(inner).__name__} cannot be exported: a ViT, a ResNet or a method around one can.")
    training = inner.training
    inner.eval()
    try:
        if to == "onnx":
            return _onnx(inner, out, image_size)
        config, table = {"safetensors": _own, "hf": _hugging_face, "timm": _timm}[to](inner)
        return _directory(out, config, names.write(inner.state_dict(), table), mean, std, image_size)
    finally:
        inner.train(training)


def _directory(
    out: Path, config: dict[str, Any], state: Mapping[str, Tensor], mean: Statistics, std: Statistics, size: int | None
) -> Path:
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1))
    side = size or config.get("image_size") or 224
    shape = {"height": side, "width": side} if isinstance(side, int) else {"height": side[0], "width": side[1]}
    normalization = {
        "image_mean": list(mean),
        "image_std": list(std),
        "size": shape,
        "do_normalize": True,
        "do_resize": True,
        "do_rescale": True,
    }
    (out / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", **normalization}, indent=1)
    )
    return out


def _language(model: CausalLM, to: str, out: Path) -> Path:
    """A language model as a directory of Hugging Face's Llama or Mixtral."""
    from safetensors.torch import save_file

    if to != "hf":
        raise SensoriumError(f"a language model is exported to hf (Llama or Mixtral), not to {to}.")
    positions, layer_norm = model.positions, model.norm
    llama = isinstance(positions, Rotary) and positions.table is rotary_table and not positions.interleaved
    pre = all(one.placement == "pre" for one in model.modules() if isinstance(one, Residual))
    parts = llama and pre and isinstance(layer_norm, nn.RMSNorm) and model.kinds == ("softmax", "swiglu")
    routed = any(isinstance(one, MoE) for one in model.modules()) and not model.experts
    if not parts or routed:
        raise SensoriumError(
            "Llama has rotary positions, softmax attention, SwiGLU and RMS norms, Mixtral experts besides; this model has "
            "other parts, and its run's own model.safetensors is what there is of it."
        )
    assert isinstance(positions, Rotary)
    assert isinstance(layer_norm, nn.RMSNorm)
    config: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM" if model.experts else "LlamaForCausalLM"],
        "model_type": "mixtral" if model.experts else "llama",
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.hidden,
        "hidden_act": "silu",
        "rms_norm_eps": layer_norm.eps,
        "rope_theta": positions.theta,
        "tie_word_embeddings": model.tied,
    }
    if model.experts:
        config |= {
            "num_local_experts": model.experts,
            "num_experts_per_tok": model.active,
            "router_aux_loss_coef": model.balance,
            "sliding_window": None,
        }
    out.mkdir(parents=True, exist_ok=True)
    rows = [heads * model.head_dim for heads in (model.heads, model.kv_heads, model.kv_heads)]
    state = names.write(model.state_dict(), names.hf_llama(model.experts), {"attn.qkv.weight": rows})
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1))
    return out


def vit_numbers(vit: ViT) -> dict[str, Any]:
    """The arguments that rebuild a ViT."""
    return {
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "width": vit.dim,
        "depth": vit.depth,
        "heads": vit.heads,
        "mlp_ratio": vit.mlp_ratio,
        "eps": vit.norm.eps,
        "qkv_bias": vit.qkv_bias,
        "registers": vit.registers,
        "pool": vit.pool,
        "positions": vit.positions,
        "antialias": vit.antialias,
        "parts": vit.parts,
    }


def clip_vision_numbers(tower: CLIPVision) -> dict[str, Any]:
    """The arguments that rebuild the image tower of a CLIP."""
    return {
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
        "width": tower.dim,
        "depth": tower.depth,
        "heads": tower.heads,
        "hidden": tower.hidden,
        "activation": tower.activation,
        "eps": tower.eps,
    }


def resnet_numbers(net: ResNet) -> dict[str, Any]:
    """The arguments that rebuild a ResNet."""
    stages: list[Any] = [net.get_submodule(name) for name in net.stages]
    bottleneck = isinstance(stages[0][0], Bottleneck)
    return {
        "layers": [len(stage) for stage in stages],
        "width": [stage[0].conv1.out_channels for stage in stages],
        "bottleneck": bottleneck,
        "stem": net.stem,
        "stem_width": net.conv1.out_channels,
        "patch": net.conv1.stride[0] if net.stem == "patch" else 4,
        "first_stride": (stages[0][0].conv1 if net.early_stride or not bottleneck else stages[0][0].conv2).stride[0],
        "early_stride": net.early_stride,
    }


def _own(network: nn.Module) -> tuple[dict[str, Any], names.Names]:
    if isinstance(network, ViT):
        return {"model_type": "sensorium_vit", "numbers": vit_numbers(network)}, names.same()
    if isinstance(network, CLIPVision):
        return {"model_type": "sensorium_clip_vision", "numbers": clip_vision_numbers(network)}, names.same()
    assert isinstance(network, ResNet)
    return {"model_type": "sensorium_resnet", "numbers": resnet_numbers(network)}, names.same()


def _hugging_face(network: nn.Module) -> tuple[dict[str, Any], names.Names]:
    if isinstance(network, ResNet):
        n = resnet_numbers(network)
        if n["stem"] != "imagenet":
            raise SensoriumError(
                f"Hugging Face's ResNet has a 7x7 stem only; this network has the '{n['stem']}' one for small pictures. "
                "Use --to safetensors, timm or onnx."
            )
        times = 4 if n["bottleneck"] else 1
        return {
            "architectures": ["ResNetModel"],
            "model_type": "resnet",
            "num_channels": 3,
            "embedding_size": n["stem_width"],
            "hidden_sizes": [w * times for w in n["width"]],
            "depths": n["layers"],
            "layer_type": "bottleneck" if n["bottleneck"] else "basic",
            "hidden_act": "relu",
            "downsample_in_first_stage": n["first_stride"] == 2,
            "downsample_in_bottleneck": n["early_stride"],
        }, names.hf_resnet("")
    vit = network.backbone if isinstance(network, MAE) else network
    assert isinstance(vit, ViT)
    if vit.registers:
        raise SensoriumError("Hugging Face's ViT has no register tokens. Use --to safetensors, timm or onnx.")
    _published(vit, "Hugging Face's")
    n = vit_numbers(vit)
    config: dict[str, Any] = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "num_channels": 3,
        "hidden_size": vit.dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.heads,
        "intermediate_size": round(n["mlp_ratio"] * vit.dim),
        "hidden_act": "gelu",
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "layer_norm_eps": n["eps"],
        "qkv_bias": n["qkv_bias"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "sensorium_pool": vit.pool,
    }
    if not isinstance(network, MAE):
        return config, names.hf_vit("")
    block: Any = network.decoder_blocks[0]
    return config | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": network.decoder_embed.out_features,
        "decoder_num_hidden_layers": len(network.decoder_blocks),
        "decoder_num_attention_heads": block.attn.heads,
        "decoder_intermediate_size": block.mlp.fc1.out_features,
        "mask_ratio": network.mask_ratio,
        "norm_pix_loss": network.normalize_targets,
    }, names.hf_vit_mae()


def _timm(network: nn.Module) -> tuple[dict[str, Any], names.Names]:
    """timm's own names; ``model_args`` are those of timm's VisionTransformer or ResNet."""
    if isinstance(network, ViT):
        _published(network, "timm's")
        n = vit_numbers(network)
        arguments = {
            "img_size": n["image_size"], "patch_size": n["patch_size"], "embed_dim": n["width"], "depth": n["depth"], "num_heads": n["heads"],
            "mlp_ratio": n["mlp_ratio"], "qkv_bias": n["qkv_bias"], "reg_tokens": n["registers"], "num_classes": 0,
            "no_embed_class": False, "global_pool": "token",
        }  # fmt: skip
        return {"architecture": "vision_transformer", "num_classes": 0, "model_args": arguments}, names.same()
    assert isinstance(network, ResNet)
    return {"architecture": "resnet", "num_classes": 0, "model_args": resnet_numbers(network)}, names.same()


def _published(vit: ViT, whose: str) -> None:
    """Raises SensoriumError for a ViT with parts that the published one has not."""
    other = [*(["rope"] if vit.rope is not None else []), *vit.parts]
    if other:
        raise SensoriumError(f"{whose} ViT has no {', '.join(other)}. Use --to safetensors or onnx.")


class _Features(nn.Module):
    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.features(images)


def _onnx(network: nn.Module, out: Path, size: int | None) -> Path:
    """images [B, 3, S, S], normalised -> features [B, D]; any batch size."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SensoriumError(f"--to onnx needs the package '{error.name}': pip install 'sensorium[export]'") from None
    path = out if out.suffix == ".onnx" else out / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    side = size or getattr(network, "image_size", 224)
    side = side if isinstance(side, int) else side[0]
    example = torch.zeros(2, 3, side, side)
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        _Features(network).eval(), (example,), path, dynamo=True, external_data=False, verbose=False,
        input_names=["images"], output_names=["features"], dynamic_shapes={"images": {0: batch}},
    )  # fmt: skip
    return path
