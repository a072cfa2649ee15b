"""ViTs of other kinds: without class token, with other activations, without bias of queries, keys and values, with registers
and positions of the patches alone: what timm and transformers wrote gives the same outputs and gradients, and goes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import nn
from transformers import IJepaConfig, IJepaModel, ViTConfig, ViTForImageClassification, ViTModel

from sensorium.errors import SensoriumError
from sensorium.networks.formats.mean_vit import HF as IJEPA
from sensorium.networks.formats.mean_vit import TIMM_FC_NORM, TIMM_MEAN
from sensorium.networks.formats.vit import HF, TIMM
from sensorium.networks.mean_vit import MeanViT
from sensorium.networks.vit import ViT
from sensorium.published import export, load, load_backbone
from sensorium.recipe.optim import depths
from sensorium.selfsup.mae.method import MAE

COMMON = {
    "img_size": 28,
    "patch_size": 7,
    "embed_dim": 24,
    "num_heads": 2,
    "depth": 2,
    "dynamic_img_size": True,
    "num_classes": 0,
}
GAP = {"class_token": False, "global_pool": "avg"}
# name: (timm's model, arguments, format, network)
KINDS: dict[str, tuple[str, dict[str, Any], Any, type]] = {
    "gap": ("vit_base_patch16_gap_224", {**GAP, "fc_norm": False}, TIMM_MEAN, MeanViT),
    "gap with fc_norm, odd": ("vit_base_patch16_gap_224", {**GAP, "fc_norm": True, "img_size": (21, 35)}, TIMM_FC_NORM, MeanViT),
    "reg4 gap, positions of patches, no bias": (
        "vit_medium_patch16_reg4_gap_256", {**GAP, "qkv_bias": False, "num_heads": 3}, TIMM_FC_NORM, MeanViT,
    ),
    "reg2 gap, positions of registers": (
        "vit_base_patch16_reg4_gap_256", {**GAP, "reg_tokens": 2, "no_embed_class": False, "fc_norm": False, "init_values": 0.1},
        TIMM_MEAN, MeanViT,
    ),
    "siglip gap": ("vit_base_patch32_siglip_gap_256", {}, TIMM_MEAN, MeanViT),
    "gelu_tanh": ("vit_base_patch16_224", {"act_layer": "gelu_tanh", "mlp_ratio": 2.6}, TIMM, ViT),
    "no bias, quick_gelu": ("vit_base_patch16_224_miil", {"qkv_bias": False, "act_layer": "quick_gelu"}, TIMM, ViT),
    "no_embed_class, registers": ("flexivit_small", {"reg_tokens": 3, "img_size": (35, 14)}, TIMM, ViT),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_timms_files_there_and_back(
    kind: str, shaken: Callable, agrees: Callable, sizes_of: Callable, without_extras: Callable, tmp_path: Path
) -> None:
    name, more, form, network = KINDS[kind]
    arguments = COMMON | more
    theirs = shaken(timm.create_model(name, pretrained=False, **arguments))
    save_for_hf(theirs, tmp_path / "theirs", model_args=arguments)
    ours: Any = load(tmp_path / "theirs")
    assert type(ours) is network
    first = int(ours.cls_token is not None)

    def tokens(images: torch.Tensor) -> torch.Tensor:
        return without_extras(theirs.forward_features(images), first, ours.registers)

    pairs = [(lambda images: ours.tokens(images)[:, 1 - first :], tokens), (ours.features, theirs)]
    height, width = arguments["img_size"] if isinstance(arguments["img_size"], tuple) else (28, 28)
    for size in sizes_of(7, height // 7, width // 7):
        agrees(ours, theirs, form, pairs, size, tmp_path, "pos_embed")
    export(ours, "timm", tmp_path / "back")
    export(ours, "safetensors", tmp_path / "own")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True, dynamic_img_size=True).eval()
    images = torch.randn(2, 3, 35, 14)
    assert (again(images) - theirs(images)).abs().max() <= 1e-5
    assert all(
        torch.equal(load_backbone(tmp_path / at).features(images), ours.features(images)) for at in ("back", "own")
    )


def test_the_activation_follows_from_timms_model(tmp_path: Path) -> None:
    theirs = timm.create_model(
        "vit_base_patch32_siglip_gap_256", pretrained=False, embed_dim=64, depth=1, img_size=64, num_heads=1
    )
    save_for_hf(theirs, tmp_path, model_args={"embed_dim": 64, "depth": 1, "img_size": 64, "num_heads": 1})
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for name, more, parts in (
        ("vit_base_patch32_siglip_gap_256", {}, ("gelu_tanh",)),
        ("vit_base_patch16_siglip_gap_256", {}, ()),
        ("vit_base_patch16_siglip_gap_256", {"act_layer": "gelu_tanh"}, ("gelu_tanh",)),
        ("vit_so400m_patch16_siglip_gap_384", {}, ("gelu_tanh",)),
        ("vit_base_patch16_clip_quickgelu_224", {}, ("quick_gelu",)),
    ):
        path.write_text(json.dumps(honest | {"architecture": name, "model_args": honest["model_args"] | more}))
        assert load(tmp_path).parts == parts


SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "patch_size": 7, "image_size": 28,
}  # fmt: skip
CHANGES: list[dict[str, Any]] = [
    {"hidden_act": "gelu_new"},
    {"hidden_act": "gelu_pytorch_tanh", "qkv_bias": False},
    {"hidden_act": "quick_gelu", "hidden_size": 36, "num_attention_heads": 3, "layer_norm_eps": 1e-4},
    {"qkv_bias": False},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("kind", ["ViT", "I-JEPA"])
def test_transformers_activations_and_biases(
    kind: str, change: dict, shaken: Callable, agrees: Callable, sizes_of: Callable, tmp_path: Path
) -> None:
    jepa = kind == "I-JEPA"
    model, config, form = (IJepaModel, IJepaConfig, IJEPA) if jepa else (ViTModel, ViTConfig, HF)
    theirs = shaken(model(config(**(SMALL | change)), add_pooling_layer=False))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load(tmp_path / "theirs")
    assert type(ours) is (MeanViT if jepa else ViT)

    def tokens(images: torch.Tensor) -> torch.Tensor:
        return theirs(images, interpolate_pos_encoding=True).last_hidden_state

    pairs = [(lambda images: ours.tokens(images)[:, int(jepa) :], tokens)]
    pairs.append((ours.features, lambda images: tokens(images).mean(dim=1) if jepa else tokens(images)[:, 0]))
    for size in sizes_of(7, 4, 4):
        agrees(ours, theirs, form, pairs, size, tmp_path / "gradients")
    export(ours, "hf", tmp_path / "back")
    again, told = model.from_pretrained(tmp_path / "back", add_pooling_layer=False, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.randn(2, 3, 28, 28)
    assert (again.eval()(images).last_hidden_state - tokens(images)).abs().max() <= 1e-6
    assert torch.equal(load_backbone(tmp_path / "back").features(images), ours.features(images))


def test_attention_encoding_and_depths(shaken: Callable) -> None:
    ours = shaken(MeanViT(28, 7, 24, 2, 2, registers=2, pool="fc_norm", parts=("layerscale",)))
    images = torch.randn(2, 3, 28, 35)
    patches = ours.embed(images)
    encoded = ours.encode(patches)
    assert torch.equal(encoded, ours.tokens(images))
    assert (encoded[:, 0] - ours.features(images)).abs().max() <= 1e-6
    assert (ours.norm(encoded[:, 1:].mean(dim=1)) - ours.features(images)).abs().max() <= 1e-5
    seen = ours.attention(images)
    assert seen.shape == (2, 2, 4, 5)
    block = ours.blocks[-1]
    weights = block.attn.weights(block.norm1(ours._before_last(patches, None)), slice(None), None)
    assert (seen.flatten(2) - weights[:, :, 2:, 2:].mean(dim=2)).abs().max() <= 1e-6
    keep = torch.tensor([[3, 0, 9], [15, 2, 1]])
    chosen = patches.gather(1, keep[..., None].expand(-1, -1, 24))
    assert (ours.embed(images, keep) - chosen).abs().max() <= 1e-6
    layers = depths(ours)
    assert layers.keys() == dict(ours.named_parameters()).keys() | {"head"}
    assert (layers["pos_embed"], layers["blocks.1.norm1.weight"], layers["norm.weight"], layers["head"]) == (0, 2, 3, 3)
    loss = MAE(ours, decoder_width=32, decoder_depth=1, decoder_heads=1)({"image": torch.rand(2, 3, 28, 28)})["loss"]
    assert torch.isfinite(loss)


def test_a_classifier_of_transformers_gives_its_backbone(shaken: Callable, tmp_path: Path) -> None:
    theirs = shaken(ViTForImageClassification(ViTConfig(**(SMALL | {"hidden_act": "quick_gelu"}), num_labels=3)))
    theirs.save_pretrained(tmp_path)
    ours: Any = load(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    assert (theirs.classifier(ours.features(images)) - theirs(images).logits).abs().max() <= 1e-5


def test_broken_files(tmp_path: Path) -> None:
    arguments = COMMON | GAP | {"fc_norm": False}
    theirs = timm.create_model("vit_base_patch16_gap_224", pretrained=False, **arguments)
    save_for_hf(theirs, tmp_path / "timm", model_args=arguments)
    path = tmp_path / "timm" / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"act_layer": "silu"}, r"model_args\.act_layer 'silu' is not one of gelu, gelu_tanh, quick_gelu"),
        ({"num_heads": 5}, "heads 5 must divide the width 24"),
        ({"img_size": 35}, "'pos_embed' has 16 positions, which is not"),
        ({"global_pool": "max"}, "global_pool 'max' without a class token is not supported"),
    ):
        path.write_text(json.dumps(honest | {"model_args": honest["model_args"] | change}))
        with pytest.raises(SensoriumError, match=said):
            load(tmp_path / "timm")
    state = theirs.state_dict()
    torch.save(state | {"pos_embed": torch.zeros(1, 15, 24)}, tmp_path / "less.pth")
    with pytest.raises(SensoriumError, match=r"less\.pth: 'pos_embed' has 15 positions, which is not a square grid\."):
        load(tmp_path / "less.pth")
    pooled = timm.create_model("vit_base_patch16_siglip_224", pretrained=False, embed_dim=24, num_heads=2, depth=1)
    torch.save(pooled.state_dict(), tmp_path / "pooled.pth")
    with pytest.raises(SensoriumError, match=r"pooled\.pth: a ViT whose feature is pooled by attention"):
        load(tmp_path / "pooled.pth")
    with pytest.raises(SensoriumError, match="I-JEPA has no register tokens"):
        export(MeanViT(14, 7, 24, 1, 2, registers=1), "hf", tmp_path / "out")
    with pytest.raises(ValueError, match="without class token"):
        MeanViT(14, 7, 24, 1, 2, pool="cls")


def test_onnx_gives_the_same_features(shaken: Callable, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    ours: nn.Module = shaken(MeanViT(28, 7, 24, 1, 2, registers=1, parts=("gelu_tanh",)))
    path = export(ours, "onnx", tmp_path / "m.onnx", image_size=28)
    images = torch.randn(3, 3, 28, 28)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})[0]
    assert (torch.from_numpy(found) - ours.features(images)).abs().max() <= 1e-5  # type: ignore[operator]
