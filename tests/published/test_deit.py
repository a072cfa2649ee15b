"""DeiT: transformers' directories and timm's files, with the distillation token and without, give the same outputs and
gradients, and go back; DeiT III's files of timm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, DeiTModel

from sensorium.errors import SensoriumError
from sensorium.networks.formats.deit import DEIT
from sensorium.networks.formats.vit import TIMM
from sensorium.networks.vit import ViT
from sensorium.published import export, load, load_backbone
from sensorium.published.format import IMAGENET

SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "patch_size": 7, "image_size": 28,
}  # fmt: skip
CONFIGS: list[dict[str, Any]] = [
    SMALL,
    {**SMALL, "hidden_size": 36, "num_attention_heads": 3, "qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
]  # fmt: skip


def tokens(images: Tensor, theirs: Any) -> Tensor:
    return theirs(images, interpolate_pos_encoding=True).last_hidden_state


@pytest.mark.parametrize("numbers", CONFIGS, ids=["plain", "odd"])
def test_what_transformers_wrote_gives_the_same_and_goes_back(
    numbers: dict, shaken: Callable, agrees: Callable, sizes_of: Callable, without_extras: Callable, tmp_path: Path
) -> None:
    theirs = shaken(DeiTModel(DeiTConfig(**numbers), add_pooling_layer=False))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load(tmp_path / "theirs")
    assert isinstance(ours, ViT)
    assert ours.normalization == IMAGENET
    pairs = [
        (ours.tokens, lambda images: without_extras(tokens(images, theirs), 1, 1)),
        (ours.features, lambda images: tokens(images, theirs)[:, 0]),
    ]
    for size in sizes_of(7, 4, 4):
        agrees(ours, theirs, DEIT, pairs, size, tmp_path / "gradients", "embeddings.position_embeddings")
    export(ours, "hf", tmp_path / "back")
    again, told = DeiTModel.from_pretrained(tmp_path / "back", add_pooling_layer=False, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.randn(2, 3, 35, 14)
    assert (tokens(images, again.eval()) - tokens(images, theirs)).abs().max() <= 1e-5
    assert torch.equal(load_backbone(tmp_path / "back").features(images), ours.features(images))


def test_the_backbone_of_two_heads(shaken: Callable, tmp_path: Path) -> None:
    theirs = shaken(DeiTForImageClassificationWithTeacher(DeiTConfig(**SMALL)))
    theirs.save_pretrained(tmp_path)
    ours: Any = load(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    first = theirs.deit(images).last_hidden_state[:, 0]
    assert (ours.features(images) - first).abs().max() <= 1e-5
    assert (theirs(images).cls_logits - theirs.cls_classifier(ours.features(images))).abs().max() <= 1e-5


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "distilled": ("deit_tiny_distilled_patch16_224", {"num_classes": 5}),
    "distilled, no_embed_class": (
        "deit_small_distilled_patch16_224",
        {"num_classes": 0, "embed_dim": 36, "num_heads": 3},
    ),
    "not distilled": ("deit_tiny_patch16_224", {"num_classes": 0}),
    "III": ("deit3_small_patch16_224", {"num_classes": 3}),
    "III, not square": ("deit3_medium_patch16_224", {"num_classes": 0, "img_size": (21, 35)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_timms_files_there_and_back(
    kind: str, shaken: Callable, agrees: Callable, sizes_of: Callable, without_extras: Callable, tmp_path: Path
) -> None:
    name, more = KINDS[kind]
    arguments = {
        "img_size": 28,
        "patch_size": 7,
        "embed_dim": 24,
        "num_heads": 2,
        "depth": 2,
        "dynamic_img_size": True,
    } | more
    theirs = shaken(timm.create_model(name, pretrained=False, **arguments))
    save_for_hf(theirs, tmp_path / "theirs", model_args=arguments)
    ours: Any = load(tmp_path / "theirs")
    theirs.head = theirs.head_dist = nn.Identity()
    extra = int("distilled" in name)
    pairs = [
        (ours.tokens, lambda images: without_extras(theirs.forward_features(images), 1, extra)),
        (ours.features, lambda images: theirs.forward_features(images)[:, 0]),
    ]
    height, width = arguments["img_size"] if isinstance(arguments["img_size"], tuple) else (28, 28)
    for size in sizes_of(7, height // 7, width // 7):
        agrees(ours, theirs, TIMM, pairs, size, tmp_path, "pos_embed")
    export(ours, "timm", tmp_path / "back")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True, dynamic_img_size=True).eval()
    images = torch.randn(2, 3, 35, 14)
    assert (again.forward_features(images) - theirs.forward_features(images)).abs().max() <= 1e-5
    assert torch.equal(load_backbone(tmp_path / "back").features(images), ours.features(images))


def test_the_mean_of_both_tokens_is_what_timm_gives_to_its_heads(shaken: Callable, tmp_path: Path) -> None:
    theirs = shaken(timm.create_model("deit_tiny_distilled_patch16_224", pretrained=False, img_size=32, depth=1))
    torch.save({"model": theirs.state_dict()}, tmp_path / "deit.pth")
    ours: Any = load(tmp_path / "deit.pth")
    assert (ours.registers, ours.pool, ours.heads) == (1, "cls", 3)
    images = torch.randn(2, 3, 32, 32)
    both = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    encoded = ours.normed(ours.blocks[-1](ours._before_last(ours.embed(images), None), None, None))
    assert (encoded[:, :2].mean(dim=1) - both).abs().max() <= 1e-5
    assert (ours.features(images) - encoded[:, 0]).abs().max() <= 1e-5


def test_broken_files(tmp_path: Path) -> None:
    DeiTModel(DeiTConfig(**SMALL)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"num_hidden_layers": 3}, r"config\.json: num_hidden_layers says 3, the weights have 2"),
        ({"hidden_act": "relu"}, r"config\.json: hidden_act 'relu' is not one of gelu"),
        ({"image_size": 35}, r"'embeddings\.position_embeddings' has shape \[1, 18, 24\], expected \[1, 27, 24\]"),
        ({"model_type": "vit"}, r"'embeddings\.position_embeddings' has shape \[1, 18, 24\], expected \[1, 17, 24\]"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=said):
            load(tmp_path)
    with pytest.raises(SensoriumError, match="register"):
        export(ViT(14, 7, 24, 1, 2, registers=2), "hf", tmp_path / "out")
