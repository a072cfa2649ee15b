"""DETR's checkpoints, in and out: Hugging Face's directories (``DetrForObjectDetection``) and the authors' files.

Both hold the same numbers under other names. Our fused ``qkv`` is the authors' ``in_proj`` and Hugging Face's three
projections; our transformer's ``norm`` is their decoder's; batch norms are frozen there and have no step counter.
Hugging Face's ResNet is its own or, in its oldest and best known checkpoints, timm's; the authors' is torchvision's.
Both tables are total: each of their names is used once or refused, each of ours filled, shapes equal. Sizes are read
off the tensors; what a configuration says of them must agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sensorium.detection.detr.method import DETR
from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.published import names
from sensorium.published.export import resnet_numbers
from sensorium.published.files import locate, read_config, read_weights

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIDES = (800, 1333)  # pixels of the shorter side, and of the longer one at most
HF_BACKBONE = "model.backbone.conv_encoder.model."
AUTHORS_BACKBONE = "backbone.0.body."
COUNTER = ".num_batches_tracked"  # of a batch norm: frozen ones have none, evaluation reads none

_LAYER = re.compile(r"transformer\.(encoder|decoder)\.(\d+)\.(.+)\.(weight|bias)")
_HEAD = re.compile(r"bbox_embed\.([024])\.(weight|bias)")
_AUTHORS = {
    "attn.qkv": "self_attn.in_proj_", "attn.proj": "self_attn.out_proj.", "cross.qkv": "multihead_attn.in_proj_",
    "cross.proj": "multihead_attn.out_proj.", "fc1": "linear1.", "fc2": "linear2.",
}  # fmt: skip
_HF_STEM = {
    "input_proj": "model.input_projection",
    "query_embed": "model.query_position_embeddings",
    "class_embed": "class_labels_classifier",
}
_HF = {
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "cross.qkv": ("encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross.proj": ("encoder_attn.out_proj",),
    "fc1": ("fc1",),
    "fc2": ("fc2",),
}
_SAID = {
    "d_model": "width", "num_queries": "queries", "encoder_layers": "encoder_depth", "decoder_layers": "decoder_depth",
    "encoder_ffn_dim": "hidden", "decoder_ffn_dim": "hidden",
}  # fmt: skip
_HF_NORMS = {
    "encoder": {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"},
    "decoder": {"norm1": "self_attn_layer_norm", "norm2": "encoder_attn_layer_norm", "norm3": "final_layer_norm"},
}


def authors_detr(ours: str) -> tuple[str, ...]:
    """facebookresearch/detr: our name -> theirs."""
    if ours.startswith("backbone."):
        return (AUTHORS_BACKBONE + ours.removeprefix("backbone."),)
    if layer := _LAYER.fullmatch(ours):
        part = _AUTHORS.get(layer[3], f"{layer[3]}.")  # norms are called alike
        return (f"transformer.{layer[1]}.layers.{layer[2]}.{part}{layer[4]}",)
    if head := _HEAD.fullmatch(ours):
        return (f"bbox_embed.layers.{int(head[1]) // 2}.{head[2]}",)
    return (ours.replace("transformer.norm.", "transformer.decoder.norm."),)


def hf_detr(timm: bool = False) -> names.Names:
    """Hugging Face's files: our name -> theirs. timm: the ResNet inside is timm's."""
    backbone = names.same(HF_BACKBONE) if timm else names.hf_resnet(HF_BACKBONE)

    def theirs(ours: str) -> tuple[str, ...]:
        if ours.startswith("backbone."):
            return backbone(ours.removeprefix("backbone."))
        if layer := _LAYER.fullmatch(ours):
            where, part = f"model.{layer[1]}.layers.{layer[2]}", layer[3]
            parts = _HF.get(part) or (_HF_NORMS[layer[1]][part],)
            return tuple(f"{where}.{their}.{layer[4]}" for their in parts)
        if head := _HEAD.fullmatch(ours):
            return (f"bbox_predictor.layers.{int(head[1]) // 2}.{head[2]}",)
        stem, _, kind = ours.rpartition(".")
        return (f"{_HF_STEM.get(stem, 'model.decoder.layernorm')}.{kind}",)

    return theirs


def hf_file_name(name: str) -> str:
    """A name in the memory of transformers 5 -> in its files, which kept the older names."""
    name = name.replace("model.backbone.model.", HF_BACKBONE).replace(".o_proj.", ".out_proj.")
    return re.sub(r"(layers\.\d+)\.mlp\.(fc\d)\.", r"\1.\2.", name)


def load_detr(path: str | Path, *, heads: int = 8) -> DETR:
    """A DETR in evaluation mode from a Hugging Face directory or hub id, or from an authors' ``.pth`` file.

    heads: attention heads, where a file does not say (the authors' are 8). ``.normalization`` is its (mean, std) in
    0..1 scale, ``.sides`` the pixels of the shorter side of its images and of the longer one at most,
    ``.class_names`` what its labels are called, if it says so. Raises SensoriumError that names the file.
    """
    where = locate(path)
    network = _from_directory(where) if where.is_dir() else _from_file(where, heads)
    return network.eval()


def export_detr(
    network: DETR,
    to: Literal["hf", "authors"],
    out: Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
) -> Path:
    """Write a DETR as a Hugging Face directory, or as the authors' file: ``out``, or ``detr.pth`` in it.

    mean, std: of the pixels in 0..1 scale (the network's own, or ImageNet's). image_size: the shorter side that images
    are resized to, in the authors' proportion to the longer one (the network's own sides, or 800 and 1333). Raises
    SensoriumError where the backbone is no ResNet with a 7x7 stem: neither format holds another.
    """
    backbone = network.backbone
    if not isinstance(backbone, ResNet) or backbone.stem != "imagenet":
        raise SensoriumError(
            "DETR is exported with a ResNet of a 7x7 stem only: neither format holds another backbone."
        )
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(COUNTER)}
    if to == "authors":
        numbers = resnet_numbers(backbone)
        if numbers["first_stride"] != 1 or numbers["early_stride"]:
            raise SensoriumError("the authors' DETR has torchvision's ResNet, which strides elsewhere. Use --to hf.")
        path = out / "detr.pth" if not out.suffix else out
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": names.write(state, authors_detr)}, path)
        return path
    if to != "hf":
        raise SensoriumError(f"a DETR is exported to hf or authors, not to {to}.")
    from safetensors.torch import save_file

    told: Any = getattr(network, "normalization", IMAGENET)
    sides: tuple[int, int] = getattr(network, "sides", SIDES)
    if image_size is not None:
        sides = image_size, round(image_size * SIDES[1] / SIDES[0])
    out.mkdir(parents=True, exist_ok=True)
    save_file(names.write(state, hf_detr()), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(_hf_config(network), indent=1))
    processor = {
        "image_processor_type": "DetrImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": sides[0], "longest_edge": sides[1]},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(told[0] if mean is None else mean),
        "image_std": list(told[1] if std is None else std),
        "do_pad": True,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    return out


def export_hf(network: DETR, out: Path) -> Path:
    """Write a DETR as a directory of transformers' DetrForObjectDetection and DetrImageProcessor; give the path."""
    return export_detr(network, "hf", out)


def _from_directory(folder: Path) -> DETR:
    config, where = read_config(folder), str(folder)
    if config.get("model_type") != "detr":
        raise SensoriumError(f"{where}/config.json: model_type '{config.get('model_type')}' is not 'detr'.")
    state = {hf_file_name(name): tensor for name, tensor in read_weights(folder).items() if isinstance(tensor, Tensor)}
    for field, legal in (("activation_function", "relu"), ("position_embedding_type", "sine"), ("dilation", False)):
        if config.get(field, legal) != legal:
            raise SensoriumError(
                f"{where}/config.json: {field} '{config[field]}' is not supported; it must be {legal!r}."
            )
    heads = _whole(config, "encoder_attention_heads", 8, where)
    if _whole(config, "decoder_attention_heads", 8, where) != heads:
        raise SensoriumError(
            f"{where}/config.json: decoder_attention_heads must equal encoder_attention_heads, {heads}."
        )

    timm = f"{HF_BACKBONE}conv1.weight" in state
    sizes = _sizes(state, hf_detr(timm), where)
    for field, ours in _SAID.items():
        if field in config and config[field] != sizes[ours]:
            raise SensoriumError(f"{where}/config.json: {field} says {config[field]}, the weights have {sizes[ours]}.")
    numbers = _sniffed_resnet(state, HF_BACKBONE, where) if timm else _hf_resnet(config, state, where)
    number = partial(_number, config, where)
    training = {
        "dropout": number("dropout", 0.1),
        "no_object": number("eos_coefficient", 0.1),
        "weights": (1.0, number("bbox_loss_coefficient", 5), number("giou_loss_coefficient", 2)),
        "costs": (number("class_cost", 1), number("bbox_cost", 5), number("giou_cost", 2)),
    }  # fmt: skip
    network = _filled(state, hf_detr(timm), numbers, sizes | {"heads": heads} | training, where)
    network.class_names = _class_names(config, network.classes)
    network.normalization, network.sides = _preparation(folder)  # type: ignore[assignment]
    return network


def _from_file(path: Path, heads: int) -> DETR:
    loaded, where = read_weights(path), str(path)
    state = loaded.get("model", loaded)
    state = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    sizes = _sizes(state, authors_detr, where)
    numbers = _sniffed_resnet(state, AUTHORS_BACKBONE, where)
    network = _filled(state, authors_detr, numbers, sizes | {"heads": heads}, where)
    network.normalization = IMAGENET  # type: ignore[assignment]
    return network


def _filled(
    state: Mapping[str, Tensor], table: names.Names, backbone: Mapping[str, Any], numbers: Mapping[str, Any], where: str
) -> DETR:
    """Built without memory, then filled; every tensor of ``state`` has its place or is refused."""
    try:
        with torch.device("meta"):
            network = DETR(ResNet(**backbone), **numbers)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise SensoriumError(f"{where}: no DETR has these sizes ({str(error).splitlines()[0][:160]}).") from None
    wanted = network.state_dict()
    known = {theirs for ours in wanted for theirs in table(ours)}
    strange = [name for name in state if name not in known and not name.endswith(COUNTER)]
    if strange:
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise SensoriumError(f"{where}: '{strange[0]}' is unknown{more}.")
    network.load_state_dict(names.read(state, wanted, table, where), assign=True)
    if network.freeze_norms:
        for norm in network._norms():
            norm.requires_grad_(False)
    return network


def _sizes(state: Mapping[str, Tensor], table: names.Names, where: str) -> dict[str, int]:
    """What the tensors say of the transformer and the heads."""

    def shape(ours: str, dimensions: int) -> torch.Size:
        theirs = table(ours)[0]
        if theirs not in state:
            raise SensoriumError(f"{where}: '{theirs}' is missing: this is no DETR for detection in this format.")
        if state[theirs].ndim != dimensions:
            raise SensoriumError(f"{where}: '{theirs}' has shape {list(state[theirs].shape)}.")
        return state[theirs].shape

    queries, width = shape("query_embed.weight", 2)
    return {
        "classes": shape("class_embed.weight", 2)[0] - 1,
        "queries": queries,
        "width": width,
        "hidden": shape("transformer.decoder.0.fc1.weight", 2)[0],
        "encoder_depth": _run(state, lambda i: table(f"transformer.encoder.{i}.norm1.weight")[0]),
        "decoder_depth": _run(state, lambda i: table(f"transformer.decoder.{i}.norm1.weight")[0]),
    }


def _sniffed_resnet(state: Mapping[str, Tensor], prefix: str, where: str) -> dict[str, Any]:
    """The arguments of a ResNet in torchvision's (and timm's) names, from its tensors."""
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    stem = inner.get("conv1.weight")
    if stem is None or stem.ndim != 4 or stem.shape[1:] != (3, 7, 7):
        found = "missing" if stem is None else f"of shape {list(stem.shape)}"
        raise SensoriumError(f"{where}: '{prefix}conv1.weight' is {found}; a ResNet's 7x7 convolution is expected.")
    layers, widths = [], []
    while (first := inner.get(f"layer{len(layers) + 1}.0.conv1.weight")) is not None:
        widths.append(first.shape[0])
        layers.append(_run(inner, lambda i, stage=len(widths): f"layer{stage}.{i}.conv1.weight"))
    bottleneck = "layer1.0.conv3.weight" in inner
    return {"layers": tuple(layers), "width": tuple(widths), "bottleneck": bottleneck, "stem_width": stem.shape[0]}


def _hf_resnet(config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The arguments of the ResNet that a configuration describes; its depths are those of the weights."""
    inner: Any = config.get("backbone_config")
    if not isinstance(inner, dict) or inner.get("model_type") != "resnet":
        raise SensoriumError(
            f"{where}/config.json: backbone_config is not that of a ResNet, and the weights are not timm's."
        )
    for field, legal in (("layer_type", ("bottleneck", "basic")), ("hidden_act", ("relu",)), ("num_channels", (3,))):
        if inner.get(field, legal[0]) not in legal:
            raise SensoriumError(f"{where}/config.json: {field} '{inner[field]}' is not one of {legal}.")
    widths, depths = inner.get("hidden_sizes", [256, 512, 1024, 2048]), inner.get("depths", [3, 4, 6, 3])
    if not isinstance(widths, list) or not all(isinstance(w, int) and 0 < w < 1 << 20 for w in widths):
        raise SensoriumError(f"{where}/config.json: hidden_sizes {str(widths)[:80]} is no list of positive numbers.")
    stages = [f"{HF_BACKBONE}encoder.stages.{stage}.layers" for stage in range(len(widths))]
    found = [_run(state, lambda i, at=at: f"{at}.{i}.layer.0.convolution.weight") for at in stages]
    if depths != found or not found:
        raise SensoriumError(f"{where}/config.json: depths says {str(depths)[:80]}, the weights have {found}.")
    last, given = f"stage{len(found)}", inner.get("out_features") or inner.get("out_indices")
    if given and (not isinstance(given, list) or given[-1] not in (last, len(found))):
        raise SensoriumError(
            f"{where}/config.json: out_features {given} does not end with '{last}', which DETR is read on."
        )
    bottleneck = inner.get("layer_type", "bottleneck") == "bottleneck"
    return {
        "layers": tuple(found),
        "width": tuple(w // 4 for w in widths) if bottleneck else tuple(widths),
        "bottleneck": bottleneck,
        "stem_width": _whole(inner, "embedding_size", 64, where),
        "first_stride": 2 if inner.get("downsample_in_first_stage") else 1,
        "early_stride": bool(inner.get("downsample_in_bottleneck")),
    }


def _hf_config(network: DETR) -> dict[str, Any]:
    n, last = resnet_numbers(network.backbone), f"stage{len(network.backbone.stages)}"
    times = 4 if n["bottleneck"] else 1
    labels = network.class_names or tuple(f"LABEL_{i}" for i in range(network.classes))
    training = {
        "bbox_loss_coefficient": network.weights[1],
        "giou_loss_coefficient": network.weights[2],
        "class_cost": network.costs[0],
        "bbox_cost": network.costs[1],
        "giou_cost": network.costs[2],
    }
    return {
        "architectures": ["DetrForObjectDetection"],
        "model_type": "detr",
        "num_channels": 3,
        "use_timm_backbone": False,
        "backbone": None,
        "backbone_config": {
            "model_type": "resnet",
            "num_channels": 3,
            "embedding_size": n["stem_width"],
            "hidden_sizes": [w * times for w in n["width"]],
            "depths": n["layers"],
            "layer_type": "bottleneck" if n["bottleneck"] else "basic",
            "hidden_act": "relu",
            "downsample_in_first_stage": n["first_stride"] == 2,
            "downsample_in_bottleneck": n["early_stride"],
            "out_features": [last],
        },
        "num_queries": network.queries,
        "d_model": network.width,
        "encoder_layers": len(network.transformer.encoder),
        "decoder_layers": len(network.transformer.decoder),
        "encoder_attention_heads": network.heads,
        "decoder_attention_heads": network.heads,
        "encoder_ffn_dim": network.hidden,
        "decoder_ffn_dim": network.hidden,
        "dropout": network.dropout,
        "attention_dropout": network.dropout,
        "activation_dropout": network.dropout,
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "dilation": False,
        "auxiliary_loss": False,  # transformers gives each layer the normed output of the one before where this is True
        "eos_coefficient": network.no_object,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        # transformers wants whole numbers here; they matter for further training alone
        **{field: int(value) for field, value in training.items() if value == int(value)},
    }


def _run(state: Mapping[str, Tensor], name: Callable[[int], str]) -> int:
    """How many of the names of 0, 1, 2 ... are there, one after the other."""
    return next(i for i in count() if name(i) not in state)


def _whole(config: Mapping[str, Any], field: str, default: int, where: str) -> int:
    value = config.get(field, default)
    if not isinstance(value, int) or not 0 < value < 1 << 20:
        raise SensoriumError(f"{where}/config.json: {field} {str(value)[:80]!r} is no positive whole number.")
    return value


def _number(config: Mapping[str, Any], where: str, field: str, default: float) -> float:
    value = config.get(field, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SensoriumError(f"{where}/config.json: {field} {str(value)[:80]!r} is no number.")
    return float(value)


def _class_names(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """The names of the labels, in their order; () where the configuration does not name each."""
    named = config.get("id2label")
    found = [named.get(str(i)) for i in range(classes)] if isinstance(named, dict) else [None]
    return tuple(map(str, found)) if all(isinstance(name, str) for name in found) else ()


def _preparation(folder: Path) -> tuple[tuple[tuple[float, ...], ...], tuple[int, int]]:
    """(mean, std), and the sides of images, as the directory's processor says."""
    try:
        found = json.loads((folder / "preprocessor_config.json").read_text())
        mean, std = (tuple(float(value) for value in found[field]) for field in ("image_mean", "image_std"))
    except (OSError, ValueError, KeyError, TypeError):
        return IMAGENET, SIDES
    size = found.get("size")
    stated: list[Any] = [size.get(side) for side in ("shortest_edge", "longest_edge")] if isinstance(size, dict) else []
    good = stated and all(isinstance(side, int) and 0 < side < 1 << 14 for side in stated)
    return (mean, std), (stated[0], stated[1]) if good else SIDES
