"""Formats of DETR: Hugging Face's directories (``DetrForObjectDetection``) and the files of the authors' code
(facebookresearch/detr): {"model": ...}.

All hold the same tensors under different names. Our fused ``qkv`` is the authors' ``in_proj`` and Hugging Face's three
projections; our transformer's ``norm`` is their decoder's; their batch norms are frozen and have no step counter.
Hugging Face's ResNet is its own or, in the oldest and best known checkpoints, timm's; the authors' is torchvision's.
Sizes come from the tensors; a configuration must agree with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sensorium.detection.detr.method import DETR
from sensorium.errors import SensoriumError
from sensorium.networks.formats import resnet
from sensorium.networks.resnet import ResNet
from sensorium.published import usage
from sensorium.published.format import IMAGENET, Dropped, Entry, Format, Preparation, layers, under
from sensorium.published.opening import open_path, save
from sensorium.published.source import Source, shown

SIDES = (800, 1333)  # pixels of the shorter side, and maximum of the longer one
_HINT = "this is not a DETR for detection in this format"
_COUNTED = (Dropped(r".+\.num_batches_tracked", "a counter that evaluation does not read"),)

_QKV = tuple(f"self_attn.{part}_proj" for part in "qkv")
_CROSS = tuple(f"encoder_attn.{part}_proj" for part in "qkv")
_HF_BACKBONE, _AUTHORS_BACKBONE = "model.backbone.conv_encoder.model.", "backbone.0.body."


def _heads(stem: str, of: str, boxes: str) -> tuple[Entry, ...]:
    """The rest of a table: the projection, the queries, the heads."""
    return (
        Entry("input_proj.{kind}", f"{stem}.{{kind}}"),
        Entry("query_embed.{kind}", f"{of}.{{kind}}"),
        *(Entry(f"bbox_embed.{2 * i}.{{kind}}", f"{boxes}.layers.{i}.{{kind}}") for i in range(3)),
    )


def _hf_table(backbone: Sequence[Entry]) -> tuple[Entry, ...]:
    common = {
        "attn.qkv": _QKV,
        "attn.proj": "self_attn.out_proj",
        "norm1": "self_attn_layer_norm",
        "fc1": "fc1",
        "fc2": "fc2",
    }
    cross = {"cross.qkv": _CROSS, "cross.proj": "encoder_attn.out_proj", "norm2": "encoder_attn_layer_norm"}
    return (
        *under("backbone.", _HF_BACKBONE, backbone),
        *layers("transformer.encoder.{i}.", "model.encoder.layers.{i}.", common | {"norm2": "final_layer_norm"}),
        *layers(
            "transformer.decoder.{i}.", "model.decoder.layers.{i}.", common | cross | {"norm3": "final_layer_norm"}
        ),
        Entry("transformer.norm.{kind}", "model.decoder.layernorm.{kind}"),
        *_heads("model.input_projection", "model.query_position_embeddings", "bbox_predictor"),
        Entry("class_embed.{kind}", "class_labels_classifier.{kind}"),
    )


def _authors_table() -> tuple[Entry, ...]:
    def attention(at: str, ours: str, theirs: str) -> tuple[Entry, ...]:
        ours, theirs = f"transformer.{at}.{{i}}.{ours}", f"transformer.{at}.layers.{{i}}.{theirs}"
        return (
            Entry(f"{ours}.qkv.{{kind}}", f"{theirs}.in_proj_{{kind}}"),
            Entry(f"{ours}.proj.{{kind}}", f"{theirs}.out_proj.{{kind}}"),
        )

    rest = {"fc1": "linear1", "fc2": "linear2", "norm1": "norm1", "norm2": "norm2"}
    return (
        *under("backbone.", _AUTHORS_BACKBONE, resnet.table(counted=False)),
        *attention("encoder", "attn", "self_attn"),
        *attention("decoder", "attn", "self_attn"),
        *attention("decoder", "cross", "multihead_attn"),
        *layers("transformer.encoder.{i}.", "transformer.encoder.layers.{i}.", rest),
        *layers("transformer.decoder.{i}.", "transformer.decoder.layers.{i}.", rest | {"norm3": "norm3"}),
        Entry("transformer.norm.{kind}", "transformer.decoder.norm.{kind}"),
        *_heads("input_proj", "query_embed", "bbox_embed"),
        Entry("class_embed.{kind}", "class_embed.{kind}"),
    )


# --- reading the numbers ---


def _sizes(source: Source, queries: str, classes: str, hidden: str, encoder: str) -> dict[str, int]:
    """Sizes of the transformer and the heads from the tensors of the given names, and a pattern of the layers'
    names."""
    count, width = source.shape(queries, 2, _HINT)
    return {
        "classes": source.shape(classes, 2, _HINT)[0] - 1,
        "queries": count,
        "width": width,
        "hidden": source.shape(hidden, 2, _HINT)[0],
        "encoder_depth": source.count(encoder.format("encoder")),
        "decoder_depth": source.count(encoder.format("decoder")),
    }


_SAID = {
    "d_model": "width", "num_queries": "queries", "encoder_layers": "encoder_depth", "decoder_layers": "decoder_depth",
    "encoder_ffn_dim": "hidden", "decoder_ffn_dim": "hidden",
}  # fmt: skip


def _hf_numbers(source: Source) -> dict[str, Any]:
    config = source.config
    for field, legal in (("activation_function", "relu"), ("position_embedding_type", "sine"), ("dilation", False)):
        source.only(field, legal)
    heads = source.whole("encoder_attention_heads", 8)
    if source.whole("decoder_attention_heads", 8) != heads:
        raise SensoriumError(f"{source.told}: decoder_attention_heads must equal encoder_attention_heads, {heads}.")
    sizes = _sizes(
        source, "model.query_position_embeddings.weight", "class_labels_classifier.weight",
        "model.decoder.layers.0.fc1.weight", r"model\.{}\.layers\.(\d+)\.",
    )  # fmt: skip
    for field, ours in _SAID.items():
        if field in config:
            source.agree(config[field], sizes[ours], field)

    def number(name: str, default: float) -> float:
        return source.number(name, default, low=0, high=1e6)

    training = {
        "dropout": number("dropout", 0.1),
        "no_object": number("eos_coefficient", 0.1),
        "weights": (1.0, number("bbox_loss_coefficient", 5), number("giou_loss_coefficient", 2)),
        "costs": (number("class_cost", 1), number("bbox_cost", 5), number("giou_cost", 2)),
    }
    return {"backbone": _hf_resnet(source)} | sizes | {"heads": heads} | training


def _hf_resnet(source: Source) -> dict[str, Any]:
    """The arguments of the ResNet that a configuration describes; its depths are those of the weights."""
    if f"{_HF_BACKBONE}conv1.weight" in source.state:  # timm's
        return resnet.sniffed(source, _HF_BACKBONE)
    body = source.within("backbone_config")
    if body.config.get("model_type") != "resnet":
        raise SensoriumError(f"{source.told}: backbone_config is not that of a ResNet, and the weights are not timm's.")
    numbers = resnet.hf_numbers(body, _HF_BACKBONE.replace(".", r"\."))
    stages = len(numbers["layers"])
    last, given = f"stage{stages}", body.config.get("out_features") or body.config.get("out_indices")
    if given and (not isinstance(given, list) or given[-1] not in (last, stages)):
        raise SensoriumError(
            f"{source.told}: out_features {shown(given, '')} does not end with '{last}', which DETR needs."
        )
    return numbers


def _authors_numbers(source: Source) -> dict[str, Any]:
    sizes = _sizes(
        source, "query_embed.weight", "class_embed.weight", "transformer.decoder.layers.0.linear1.weight",
        r"transformer\.{}\.layers\.(\d+)\.",
    )  # fmt: skip
    heads = source.options.get("heads") or source.argued("nheads") or 8
    return {"backbone": resnet.sniffed(source, _AUTHORS_BACKBONE)} | sizes | {"heads": heads}


def _build(backbone: dict[str, Any], **numbers: Any) -> DETR:
    return DETR(ResNet(**backbone), **numbers)


# --- settings after building ---


def _settle(network: Any, source: Source) -> None:
    """Frozen norms; class names and image sizes from the files beside the weights."""
    if network.freeze_norms:
        for norm in network._norms():
            norm.requires_grad_(False)
    named = source.config.get("id2label")
    found = [named.get(str(i)) for i in range(network.classes)] if isinstance(named, Mapping) else [None]
    network.class_names = tuple(map(str, found)) if all(isinstance(name, str) for name in found) else ()
    network.sides, network.divisor = _sides(source.json("preprocessor_config.json") or {})


def _sides(how: Mapping[str, Any]) -> tuple[tuple[int, int], int]:
    """The sides of the pictures and the square that they are padded to, 1 for none, from the processor's settings."""

    def stated(field: str, *names: str) -> tuple[int, ...]:
        size = how.get(field)
        given = [size.get(name) for name in names] if isinstance(size, Mapping) else []
        found = tuple(side for side in given if type(side) is int and 0 < side < 1 << 14)
        return found if len(found) == len(names) else ()

    most, square = stated("size", "max_height", "max_width"), stated("pad_size", "height", "width")
    sides = most if len(set(most)) == 1 else stated("size", "shortest_edge", "longest_edge")
    fits = len(set(square)) == 1 and len(sides) == 2 and square[0] >= max(sides)
    return (sides[0], sides[1]) if sides else SIDES, square[0] if fits else 1


# --- writing ---


def _fits(network: DETR) -> None:
    if not isinstance(network.backbone, ResNet) or network.backbone.stem != "imagenet":
        raise SensoriumError(
            "DETR is exported with a ResNet of a 7x7 stem only: neither format holds another backbone."
        )


def _plain_fits(network: Any) -> None:
    _fits(network)
    numbers = resnet.resnet_numbers(network.backbone)
    if numbers["first_stride"] != 1 or numbers["early_stride"]:
        raise SensoriumError(
            "the authors' DETR has torchvision's ResNet, which has its strides in other layers. Use --to hf."
        )


def _hf_config(network: Any) -> dict[str, Any]:
    body = resnet.hf_config(network.backbone)
    labels = network.class_names or tuple(f"LABEL_{i}" for i in range(network.classes))
    training = {
        "bbox_loss_coefficient": network.weights[1],
        "giou_loss_coefficient": network.weights[2],
        "class_cost": network.costs[0],
        "bbox_cost": network.costs[1],
        "giou_cost": network.costs[2],
    }
    del body["architectures"]
    return {
        "architectures": ["DetrForObjectDetection"],
        "model_type": "detr",
        "num_channels": 3,
        "use_timm_backbone": False,
        "backbone": None,
        "backbone_config": body | {"out_features": [f"stage{len(network.backbone.stages)}"]},
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
        "auxiliary_loss": False,  # if True, transformers gives each layer the normed output of the previous one
        "eos_coefficient": network.no_object,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        # transformers needs integers here; they only matter for further training
        **{field: int(value) for field, value in training.items() if value == int(value)},
    }


def _processor(network: Any, how: Preparation) -> dict[str, dict[str, Any]]:
    mean, std = how.normalization or network.normalization or IMAGENET
    sides = network.sides
    if how.image_size is not None:
        sides = how.image_size, round(how.image_size * SIDES[1] / SIDES[0])
    size: dict[str, Any] = {"shortest_edge": sides[0], "longest_edge": sides[1]}
    square: dict[str, Any] = {}
    if sides[0] == sides[1]:  # this rule rounds down, as ours, and the other doesn't
        size = {"max_height": sides[0], "max_width": sides[0]}
        square = {"pad_size": {"height": network.divisor, "width": network.divisor}}
    told = {
        "image_processor_type": "DetrImageProcessor", "format": "coco_detection", "do_resize": True, "size": size,
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(mean),
        "image_std": list(std), "do_pad": True, **square,
    }  # fmt: skip
    return {"preprocessor_config.json": told}


def _hf_usage(network: DETR, how: Preparation) -> str:
    return f"""import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForObjectDetection

model = AutoModelForObjectDetection.from_pretrained(folder).eval()
prepare = AutoImageProcessor.from_pretrained(folder)
{usage.READ}
with torch.inference_mode():
    found = model(**prepare(picture, return_tensors="pt"))
sizes = [(picture.height, picture.width)]
objects = prepare.post_process_object_detection(found, threshold=0.3, target_sizes=sizes)[0]
for score, label, box in zip(objects["scores"].tolist(), objects["labels"].tolist(), objects["boxes"].tolist()):
    print(model.config.id2label[label], score, box)"""


HF = Format(
    name="Hugging Face DETR",
    network=DETR,
    kinds=("detr",),
    keys=(r"model\.query_position_embeddings\.weight", rf"{_HF_BACKBONE}embedder\..+"),
    table=_hf_table(resnet.hf_table(counted=False)),
    spellings=(  # of transformers 5, in memory
        (r"^model\.backbone\.model\.", _HF_BACKBONE),
        (r"\.o_proj\.", ".out_proj."),
        (r"(layers\.\d+)\.mlp\.(fc\d)\.", r"\1.\2."),
    ),
    dropped=_COUNTED,
    numbers=_hf_numbers,
    build=_build,
    settle=_settle,
    to="hf",
    fits=_fits,
    config=_hf_config,
    beside=_processor,
    usage=_hf_usage,
)
HF_TIMM = replace(
    HF,
    name="Hugging Face DETR on timm's ResNet",
    keys=(r"model\.query_position_embeddings\.weight", rf"{_HF_BACKBONE}conv1\.weight"),
    table=_hf_table(resnet.table(counted=False)),
    to="",
    fits=_plain_fits,
    config=lambda network: _hf_config(network) | {"use_timm_backbone": True, "backbone_config": None},
)
AUTHORS = Format(
    name="authors' DETR",
    network=DETR,
    keys=(r"transformer\.decoder\.norm\.weight", r"query_embed\.weight"),
    table=_authors_table(),
    dropped=_COUNTED,
    numbers=_authors_numbers,
    build=_build,
    settle=_settle,
    to="authors",
    fits=_plain_fits,
    file="detr.pth",
    container="model",
)

FORMATS: tuple[Format, ...] = (HF, HF_TIMM, AUTHORS)


def load_detr(path: str | Path, *, heads: int | None = None) -> DETR:
    """A DETR in evaluation mode from a Hugging Face directory or hub id, or from an authors' ``.pth`` file.

    heads: attention heads, if a file does not contain them (the authors' are 8). ``.normalization`` is its (mean, std)
    in 0..1 scale, ``.sides`` the pixels of the shorter side of its images and the maximum of the longer one,
    ``.class_names`` the names of its labels, if known. Raises SensoriumError that names the file.
    """
    return open_path(path, FORMATS, heads=heads)


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
    SensoriumError if the backbone is not a ResNet with a 7x7 stem: neither format holds another.
    """
    form = {"hf": HF, "authors": AUTHORS}.get(to)
    if form is None:
        raise SensoriumError(f"a DETR is exported to hf or authors, not to {to}.")
    own = network.normalization or IMAGENET
    pixels = (tuple(own[0] if mean is None else mean), tuple(own[1] if std is None else std))
    return save(form, network, out, Preparation(pixels, image_size))
