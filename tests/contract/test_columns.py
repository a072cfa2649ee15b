"""What the catalogue's columns say of files and of others' code: the formats that are read are those that are listed, and the
test that a parity column names does hold the system to what the column names."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sensorium.catalogue import NETWORKS, Network, System, systems
from sensorium.errors import SensoriumError
from sensorium.published import load
from sensorium.published.format import Format
from sensorium.published.opening import recognized
from sensorium.published.registry import formats
from sensorium.published.source import Source

HOME = Path(__file__).parents[2]
ROWS = [*systems(), *NETWORKS]
OURS = "Sensorium "  # what is not published by others
# How a file of each format is known: by its configuration, and by names of its tensors.
VIT = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed", "cls_token")
HF_VIT = ("embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layernorm_before.weight")
BIASES = "blocks.0.attn.relative_position_bias_table"
HF_BEIT = (HF_VIT[0], "encoder.relative_position_bias.relative_position_bias_table")
EVA02 = ("patch_embed.proj.weight", "blocks.0.attn.q_proj.weight", "blocks.0.mlp.norm.weight", "pos_embed")
SIGLIP = ("vision_model.embeddings.patch_embedding.weight", "vision_model.head.probe")
TWINS = tuple(
    f"module.{name}" for name in ("backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "projector.0.weight")
)
CONVNEXT = ("embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0.dwconv.weight")
SWIN, AFTER = (
    ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table"),
    "layers.0.downsample.reduction.weight",
)
SWINV2 = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.logit_scale", "layers.0.blocks.0.attn.cpb_mlp.2.weight")
HF_SWIN = ("embeddings.patch_embeddings.projection.weight", "encoder.layers.0.blocks.0.layernorm_before.weight")
OPEN_CLIP = ("visual.class_embedding", "visual.conv1.weight", "token_embedding.weight")
MARKS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "Hugging Face ViT": ({"model_type": "vit"}, HF_VIT),
    "timm ViT": ({}, VIT),
    "timm ViT with fc_norm": ({}, (*VIT, "fc_norm.weight")),
    "Hugging Face DINOv2": ({"model_type": "dinov2"}, (HF_VIT[0], "encoder.layer.0.layer_scale1.lambda1")),
    "authors' DINOv2": ({}, (*VIT, "blocks.0.ls1.gamma", "mask_token")),
    "Hugging Face BEiT": ({"model_type": "beit"}, HF_BEIT),
    "Hugging Face BEiT with mean pooling": ({"model_type": "beit"}, (*HF_BEIT, "pooler.layernorm.weight")),
    "timm BEiT": ({}, (*VIT[:2], "cls_token", BIASES)),
    "timm BEiT with fc_norm": ({}, (*VIT[:2], "cls_token", BIASES, "fc_norm.weight")),
    "timm EVA": ({}, (*VIT, "blocks.0.attn.q_bias")),
    "timm EVA with fc_norm": ({}, (*VIT, "blocks.0.attn.q_bias", "fc_norm.weight")),
    "timm EVA-02 with sub-norm": ({}, EVA02),
    "timm EVA-02 with sub-norm and fc_norm": ({}, (*EVA02, "fc_norm.weight")),
    "Hugging Face DINOv3": ({"model_type": "dinov3_vit"}, (
        "embeddings.patch_embeddings.weight", "layer.0.layer_scale1.lambda1",
    )),
    "timm DINOv3": ({}, (*VIT[:2], "blocks.0.gamma_1", "reg_token", "norm.weight", "cls_token")),
    "Hugging Face DeiT": ({"model_type": "deit"}, (*HF_VIT, "embeddings.distillation_token")),
    "timm ViT without class token": ({}, VIT[:3]),
    "timm ViT without class token, with fc_norm": ({}, (*VIT[:3], "fc_norm.weight")),
    "Hugging Face I-JEPA": ({"model_type": "ijepa"}, HF_VIT),
    "Hugging Face SigLIP": ({"model_type": "siglip_vision_model"}, SIGLIP),
    "Hugging Face SigLIP 2 (NaFlex)": ({"model_type": "siglip2_vision_model"}, SIGLIP),
    "Hugging Face ResNet": ({"model_type": "resnet"}, ("embedder.embedder.convolution.weight",)),
    "torchvision and timm ResNet": ({}, ("conv1.weight", "layer1.0.conv1.weight")),
    "Hugging Face airbench": ({"model_type": "airbench"}, ("groups.0.conv1.weight",)),
    "Hugging Face ConvNeXt": ({"model_type": "convnext"}, CONVNEXT),
    "Hugging Face ConvNeXt V2": ({"model_type": "convnextv2"}, CONVNEXT),
    "timm ConvNeXt": ({}, ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight")),
    "authors' ConvNeXt": ({}, ("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight")),
    "torchvision ConvNeXt": ({}, ("features.0.0.weight", "features.1.0.layer_scale")),
    "Hugging Face Swin": ({"model_type": "swin"}, HF_SWIN),
    "Hugging Face Swin V2": ({"model_type": "swinv2"}, HF_SWIN),
    "timm Swin": ({}, SWIN),
    "timm Swin V2": ({}, SWINV2),
    "authors' Swin": ({}, (*SWIN, AFTER)),
    "authors' Swin V2": ({}, (*SWINV2, AFTER)),
    "torchvision Swin": ({}, ("features.0.0.weight", "features.1.0.attn.relative_position_bias_table")),
    "Hugging Face ViTMAE": ({"model_type": "vit_mae"}, (*(f"vit.{name}" for name in HF_VIT), "decoder.mask_token")),
    "Hugging Face ViTMAE encoder": ({"model_type": "vit_mae"}, HF_VIT),
    "Hugging Face SimMIM on a ViT": ({"model_type": "vit"}, (*(f"vit.{name}" for name in HF_VIT), "decoder.0.weight")),
    "Hugging Face SimMIM on a Swin": ({"model_type": "swin"}, (*(f"swin.{name}" for name in HF_SWIN), "decoder.0.weight")),
    "Hugging Face SimMIM on a Swin V2": ({"model_type": "swinv2"}, (*(f"swinv2.{name}" for name in HF_SWIN), "decoder.0.weight")),
    "authors' MAE": ({}, (*VIT, "decoder_embed.weight")),
    "authors' I-JEPA": ({}, (
        *(f"{one}.module.patch_embed.proj.weight" for one in ("encoder", "target_encoder")), "predictor.module.predictor_embed.weight",
    )),
    "authors' MoBY on a Swin": ({}, ("encoder.layers.0.blocks.0.attn.relative_position_bias_table", "encoder_k.norm.weight", "queue1")),
    "authors' MoBY on a ViT": ({}, (*(f"encoder.{name}" for name in VIT), "encoder_k.norm.weight", "queue1")),
    "authors' DINO on a ViT": ({}, tuple(f"backbone.{name}" for name in VIT)),
    "authors' DINO on a ResNet": ({}, ("backbone.conv1.weight", "backbone.layer1.0.conv1.weight")),
    "authors' Barlow Twins": ({}, (*TWINS, "module.bn.running_mean")),
    "authors' VICReg": ({}, (*TWINS, "module.projector.0.bias")),
    "authors' SimSiam": ({}, tuple(f"module.{name}" for name in (
        "encoder.conv1.weight", "encoder.fc.7.running_mean", "predictor.3.weight",
    ))),
    "authors' SwAV": ({}, ("module.conv1.weight", "module.projection_head.0.weight", "module.prototypes.weight")),
    "authors' MoCo v1": ({}, ("module.queue", *(f"module.encoder_{one}.fc.weight" for one in "qk"))),
    "authors' MoCo v2": ({}, ("module.queue", *(f"module.encoder_{one}.fc.2.weight" for one in "qk"))),
    "authors' MoCo v3 on a ResNet": ({}, (
        "module.base_encoder.conv1.weight", "module.momentum_encoder.conv1.weight", "module.predictor.0.weight",
    )),
    "authors' MoCo v3 on a ViT": ({}, (
        "module.base_encoder.blocks.0.attn.qkv.weight", "module.momentum_encoder.blocks.0.attn.qkv.weight",
        "module.predictor.0.weight",
    )),
    "Hugging Face Llama": ({"model_type": "llama"}, ("model.embed_tokens.weight",)),
    "Hugging Face Mixtral": ({"model_type": "mixtral"}, ("model.embed_tokens.weight",)),
    "Hugging Face CLIP image tower": (
        {"model_type": "clip_vision_model"}, ("vision_model.embeddings.class_embedding",),
    ),
    "timm CLIP image tower": ({}, (*VIT, "norm_pre.weight")),
    "OpenCLIP image tower": ({}, ("class_embedding", "conv1.weight", "ln_pre.weight")),
    "Hugging Face CLIP": ({"model_type": "clip"}, ("logit_scale", "vision_model.embeddings.class_embedding")),
    "OpenCLIP": ({}, OPEN_CLIP),
    "OpenAI's CLIP": ({}, (*OPEN_CLIP, "input_resolution", "context_length", "vocab_size")),
    "Hugging Face DETR": ({"model_type": "detr"}, (
        "model.query_position_embeddings.weight",
        "model.backbone.conv_encoder.model.embedder.embedder.convolution.weight",
    )),
    "Hugging Face DETR on timm's ResNet": ({"model_type": "detr"}, (
        "model.query_position_embeddings.weight", "model.backbone.conv_encoder.model.conv1.weight",
    )),
    "authors' DETR": ({}, (
        "transformer.decoder.norm.weight", "query_embed.weight", "class_embed.weight", "backbone.0.body.conv1.weight",
    )),
    "torchvision FCOS": ({}, (
        "head.classification_head.cls_logits.weight", "head.regression_head.bbox_ctrness.weight",
    )),
    "authors' OadTR": ({}, ("decoder_cls_token", "position_encoding.pe.weight")),
    "diffusers UNet2DModel": ({"_class_name": "UNet2DModel"}, ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight")),
    "diffusers UNet2DConditionModel": ({"_class_name": "UNet2DConditionModel"}, (
        "conv_in.weight", "down_blocks.0.resnets.0.conv1.weight",
    )),
    "authors' Stable Diffusion U-Net": ({}, tuple(
        f"model.diffusion_model.{name}.weight" for name in ("input_blocks.0.0", "middle_block.1.proj_in")
    )),
    "diffusers SD3Transformer2DModel": ({"_class_name": "SD3Transformer2DModel"}, (
        "pos_embed.proj.weight", "transformer_blocks.0.attn.add_q_proj.weight",
    )),
    "authors' Stable Diffusion 3": ({}, tuple(
        f"model.diffusion_model.{name}" for name in ("pos_embed", "joint_blocks.0.x_block.attn.qkv.weight")
    )),
    "diffusers DiTTransformer2DModel": ({"_class_name": "DiTTransformer2DModel"}, (
        "pos_embed.proj.weight", "transformer_blocks.0.attn1.to_q.weight", "proj_out_2.weight",
    )),
    "diffusers VQModel": ({"_class_name": "VQModel"}, (
        "encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight", "quantize.embedding.weight",
    )),
    "diffusers AutoencoderKL": ({"_class_name": "AutoencoderKL"}, (
        "encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight",
        "decoder.up_blocks.0.resnets.0.conv1.weight",
    )),
    "authors' AutoencoderKL": ({}, (
        "encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight", "quant_conv.weight",
    )),
    "authors' VQGAN": ({}, (
        "encoder.down.0.block.0.conv1.weight", "quantize.embedding.weight", "post_quant_conv.weight",
    )),
}  # fmt: skip


def own(row: System | Network) -> tuple[Format, ...]:
    """The formats that stand in a system's folder, or in a network's file."""
    name = f"sensorium.networks.formats.{row.name}" if isinstance(row, Network) else f"{package(row)}.formats"
    return import_module(name).FORMATS if find_spec(name) else ()


def package(row: System | Network) -> str:
    return f"sensorium.networks.{row.name}" if isinstance(row, Network) else f"sensorium.{row.family}.{row.name}"


# Of parts of published pipelines, which no system has as a row of its own.
PARTS = (
    "diffusers UNet2DConditionModel", "authors' Stable Diffusion U-Net", "diffusers SD3Transformer2DModel", "authors' Stable Diffusion 3",
)  # fmt: skip


def test_every_format_that_is_read_is_listed_once() -> None:
    listed = [claim for row in ROWS for claim in row.loads]
    assert sorted([*listed, *PARTS]) == sorted(form.name for form in formats() if not form.name.startswith(OURS))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_it_lists_the_formats_of_its_own(row: System | Network) -> None:
    assert {form.name for form in own(row) if not form.name.startswith(OURS)} <= set(row.loads)


@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row.name)
def test_a_backbone_exports_what_its_formats_write(row: Network) -> None:
    assert set(row.exports) == {form.to for form in own(row) if form.to} | {"onnx"}


@pytest.mark.parametrize("claim", [*(claim for row in ROWS for claim in row.loads), *PARTS])
def test_what_is_said_to_load_is_recognized(claim: str, tmp_path: Path) -> None:
    """A file that has no more than the marks of its format is known for it alone, and refused for what it lacks."""
    config, names = MARKS[claim]
    state = {name: torch.zeros(1) for name in ("other", *names)}
    assert [form.name for form in recognized(Source("a file", state, config=config), formats())] == [claim]
    save_file(state, tmp_path / "model.safetensors")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((SensoriumError, KeyError, ValueError)) as refused:
        load(tmp_path if config else tmp_path / "model.safetensors")
    assert not re.search("is not one of|no network known here", str(refused.value)), refused.value


# --- parity ---


def peers(parity: str) -> tuple[list[tuple[str, str]], Path]:
    """A column -> (package, what of it) pairs, none where nobody else has the system; and the test."""
    found = re.fullmatch(r"(.+) \((tests/\S+/test_\w+\.py)\)", parity)
    assert found, f"'{parity}' is not 'PACKAGE NAME, NAME (tests/.../test_*.py)'"
    said, named, at = found[1], [], ""
    for words in () if said.startswith("its own ") else map(str.split, said.split(", ")):
        at = words[0] if len(words) == 2 else at
        assert at, f"'{said}' names no package"
        assert len(words) <= 2, f"'{' '.join(words)}' is not a package and a name"
        named.append((at, words[-1]))
    return named, HOME / found[2]


def bound(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """(the local name, the package that it comes from, its name there) of all that a file imports, also by importorskip."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((one.asname or root(one.name), root(one.name), "") for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((one.asname or one.name, node.module, one.name) for one in node.names)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            call = next((c for c in ast.walk(node.value) if isinstance(c, ast.Call)), None)
            if call and isinstance(call.func, ast.Attribute) and call.func.attr == "importorskip":
                first = call.args[0]
                assert isinstance(first, ast.Constant)
                yield node.targets[0].id, root(str(first.value)), ""


def root(name: str) -> str:
    return name.split(".")[0]


def used(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(package, name) of what a file uses of what it imports: ``F.cross_entropy``, ``VisionTransformer(...)``."""
    names = {local: (root(where), name) for local, where, name in bound(tree)}
    for node in ast.walk(tree):
        inner = node
        while isinstance(inner, ast.Attribute):
            inner = inner.value
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load) and inner.id in names:
            where, name = names[inner.id]
            yield where, node.attr if isinstance(node, ast.Attribute) else name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_parity_is_tested_where_and_with_what_is_named(row: System | Network) -> None:
    """The test exists, imports the system, and uses each class or function of others that the column names."""
    named, path = peers(row.parity)
    assert path.is_file(), f"{row.name}: there is no {path}"
    tree = ast.parse(path.read_text())
    ours = package(row)
    assert [where for _, where, _ in bound(tree) if f"{where}.".startswith(f"{ours}.")], (
        f"{path} imports nothing of {ours}"
    )
    missing = set(named) - set(used(tree))
    assert not missing, f"{path} does not use {missing}"
    assert [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")]
