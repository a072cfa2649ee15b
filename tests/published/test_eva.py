"""EVA and EVA-02: timm's files give the same outputs and gradients, and go back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from timm.models.eva import Eva
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.networks.eva import EVA
from sensorium.networks.formats.eva import SPLIT, SPLIT_MEAN, TIMM, TIMM_MEAN
from sensorium.published import export, load, load_backbone
from sensorium.recipe.optim import depths

COMMON = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "num_heads": 2, "depth": 2, "num_classes": 0}
KINDS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "EVA": ("eva_giant_patch14_224", {"mlp_ratio": 3.1, "num_classes": 3}, TIMM_MEAN),
    "EVA-CLIP": ("eva_giant_patch14_clip_224", {"img_size": (21, 35)}, TIMM),
    "tiny": ("eva02_tiny_patch14_224", {}, TIMM_MEAN),
    "small, class token, another grid": ("eva02_small_patch14_224", {"global_pool": "token", "ref_feat_shape": (5, 5)}, TIMM),
    "base": ("eva02_base_patch14_224", {"embed_dim": 36, "num_heads": 3}, SPLIT_MEAN),
    "CLIP, a norm in attention": ("eva02_base_patch16_clip_224", {"img_size": (21, 35)}, SPLIT),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_timms_files_there_and_back(
    kind: str, shaken: Callable, agrees: Callable, sizes_of: Callable, tmp_path: Path
) -> None:
    name, more, form = KINDS[kind]
    arguments = COMMON | more
    theirs = shaken(timm.create_model(name, pretrained=False, **arguments, dynamic_img_size=True))
    assert isinstance(theirs, Eva)
    # timm's configuration has only what differs from its model's: what this test made smaller
    save_for_hf(theirs, tmp_path / "theirs", model_args=arguments | {"global_pool": theirs.global_pool})
    theirs.head = nn.Identity()
    ours: Any = load(tmp_path / "theirs")
    assert isinstance(ours, EVA)
    pairs = [(ours.tokens, theirs.forward_features), (ours.features, theirs)]
    height, width = arguments["img_size"] if isinstance(arguments["img_size"], tuple) else (28, 28)
    for size in sizes_of(7, height // 7, width // 7):
        agrees(ours, theirs, form, pairs, size, tmp_path)
    export(ours, "timm", tmp_path / "back")
    export(ours, "safetensors", tmp_path / "own")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True, dynamic_img_size=True).eval()
    images = torch.randn(2, 3, 35, 14)
    assert (again(images) - theirs(images)).abs().max() <= 1e-5
    assert all(
        torch.equal(load_backbone(tmp_path / at).features(images), ours.features(images)) for at in ("back", "own")
    )


def test_a_file_alone(shaken: Callable, tmp_path: Path) -> None:
    theirs = shaken(timm.create_model("eva02_tiny_patch14_224", pretrained=False, depth=1, num_classes=0, img_size=56))
    torch.save(theirs.state_dict(), tmp_path / "eva.pth")
    ours: Any = load(tmp_path / "eva.pth")
    assert (ours.heads, ours.reference, ours.gated) == (3, 16, True)
    images = torch.randn(2, 3, 56, 56)
    assert (ours.features(images) - theirs(images)).abs().max() <= 1e-5


def test_attention_and_depths(shaken: Callable) -> None:
    ours = shaken(EVA(28, 7, 24, 2, 2, sub_norm=True, inner_norm=True))
    seen = ours.attention(torch.randn(2, 3, 28, 35))
    assert seen.shape == (2, 2, 4, 5)
    assert (seen.flatten(2).sum(-1) < 1).all()
    assert (seen >= 0).all()
    with pytest.raises(SensoriumError, match="EVA has its positions in its attention"):
        ours.encode(ours.embed(torch.randn(1, 3, 28, 28)))
    layers = depths(ours)
    assert layers.keys() == dict(ours.named_parameters()).keys() | {"head"}
    assert (layers["pos_embed"], layers["blocks.1.mlp.down.0.bias"], layers["norm.bias"], layers["head"]) == (
        0,
        2,
        3,
        3,
    )


def test_what_is_not_supported_is_said(tmp_path: Path) -> None:
    theirs = timm.create_model("eva02_tiny_patch14_224", pretrained=False, **COMMON)
    save_for_hf(theirs, tmp_path, model_args=COMMON)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"use_post_norm": True}, "use_post_norm 'True' is not supported"),
        ({"rope_type": "mixed"}, "rope_type 'mixed' is not supported"),
        ({"num_heads": 5}, "heads 5 must divide the width 24"),
        ({"num_heads": 12}, "rotated heads have channels divisible by 4"),
        ({"ref_feat_shape": [4, 5]}, r"ref_feat_shape \(4, 5\) is not supported"),
        ({"global_pool": "max"}, "global_pool 'max' is not supported"),
        ({"img_size": 35}, "'pos_embed' has 17 positions"),
    ):
        path.write_text(json.dumps(honest | {"model_args": honest["model_args"] | change}))
        with pytest.raises(SensoriumError, match=said):
            load(tmp_path)
    path.write_text(json.dumps(honest | {"architecture": "eva02_enormous_patch14_clip_224"}))
    with pytest.raises(SensoriumError, match="norms after its blocks"):
        load(tmp_path)
    with pytest.raises(ValueError, match="sub_norm needs a gated"):
        EVA(28, 7, 24, 1, 2, gated=False, sub_norm=True)


def test_onnx_gives_the_same_features(shaken: Callable, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    ours = shaken(EVA(28, 7, 24, 1, 2, sub_norm=True))
    path = export(ours, "onnx", tmp_path / "m.onnx", image_size=28)
    images = torch.randn(3, 3, 28, 28)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})[0]
    assert (torch.from_numpy(found) - ours.features(images)).abs().max() <= 1e-5
