"""DINOv3: directories that transformers wrote and timm's files give the same outputs and gradients, and go back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from sensorium.errors import SensoriumError
from sensorium.networks.dinov3 import DINOv3
from sensorium.networks.formats.dinov3 import HF, TIMM
from sensorium.published import export, load, load_backbone
from sensorium.published.format import IMAGENET
from sensorium.recipe.optim import depths
from sensorium.selfsup.mae.method import MAE

pytestmark = pytest.mark.filterwarnings("ignore:.*DINOv3 License")

SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "patch_size": 7,
    "image_size": 28, "num_register_tokens": 4,
}  # fmt: skip
CONFIGS: list[dict[str, Any]] = [
    SMALL,
    {**SMALL, "use_gated_mlp": True, "hidden_act": "silu", "query_bias": False, "value_bias": False},
    {
        **SMALL, "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 1, "patch_size": 6, "image_size": [24, 33],
        "num_register_tokens": 1, "rope_theta": 37.0, "layer_norm_eps": 1e-3, "intermediate_size": 50,
    },
]  # fmt: skip
IDS = ["plain", "gated, without bias", "odd"]
KINDS: list[dict[str, Any]] = [
    {"qkv_bias": True, "num_reg_tokens": 4, "mlp_ratio": 3, "global_pool": "token"},
    {"qkv_bias": False, "num_reg_tokens": 4, "swiglu_mlp": True, "swiglu_align_to": 8, "mlp_ratio": 2.1, "global_pool": "avg"},
    {"qkv_bias": True, "num_reg_tokens": 2, "global_pool": "avg", "num_heads": 3, "embed_dim": 36, "img_size": (21, 35)},
]  # fmt: skip


def rows_and_columns(numbers: dict[str, Any]) -> tuple[int, int, int]:
    side, patch = numbers["image_size"], numbers["patch_size"]
    height, width = side if isinstance(side, list) else (side, side)
    return patch, height // patch, width // patch


@pytest.mark.parametrize("numbers", CONFIGS, ids=IDS)
def test_what_transformers_wrote_gives_the_same_and_goes_back(
    numbers: dict, shaken: Callable, agrees: Callable, sizes_of: Callable, without_extras: Callable, tmp_path: Path
) -> None:
    theirs = shaken(DINOv3ViTModel(DINOv3ViTConfig(**numbers)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load(tmp_path / "theirs")
    assert isinstance(ours, DINOv3)
    assert ours.normalization == IMAGENET
    count = numbers["num_register_tokens"]
    pairs = [
        (ours.tokens, lambda images: without_extras(theirs(images).last_hidden_state, 1, count)),
        (ours.features, lambda images: theirs(images).pooler_output),
    ]
    for size in sizes_of(*rows_and_columns(numbers)):
        agrees(ours, theirs, HF, pairs, size, tmp_path / "gradients")
    export(ours, "hf", tmp_path / "back")
    again, told = DINOv3ViTModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    export(ours, "safetensors", tmp_path / "own")
    images = torch.randn(2, 3, *sizes_of(*rows_and_columns(numbers))[3])
    assert torch.equal(again.eval()(images).pooler_output, theirs(images).pooler_output)
    assert all(
        torch.equal(load_backbone(tmp_path / at).features(images), ours.features(images)) for at in ("back", "own")
    )


def timms(**kind: Any) -> Any:
    arguments = {"patch_size": 7, "img_size": 28, "embed_dim": 24, "num_heads": 2, "depth": 2, "num_classes": 0} | kind
    return timm.create_model("vit_small_patch16_dinov3", pretrained=False, **arguments), arguments


@pytest.mark.parametrize("kind", KINDS, ids=["plain", "gated, without bias", "odd"])
def test_timms_files_there_and_back(
    kind: dict, shaken: Callable, agrees: Callable, sizes_of: Callable, without_extras: Callable, tmp_path: Path
) -> None:
    theirs, arguments = timms(**kind)
    shaken(theirs)
    save_for_hf(theirs, tmp_path / "theirs", model_args=arguments)
    ours: Any = load(tmp_path / "theirs")
    pairs = [
        (ours.tokens, lambda images: without_extras(theirs.forward_features(images), 1, kind["num_reg_tokens"])),
        (ours.features, theirs),
    ]
    height, width = kind.get("img_size", (28, 28))
    for size in sizes_of(7, height // 7, width // 7):
        agrees(ours, theirs, TIMM, pairs, size, tmp_path)
    export(ours, "timm", tmp_path / "back")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    images = torch.randn(2, 3, 35, 14)
    assert (again(images) - theirs(images)).abs().max() <= 1e-5
    assert torch.equal(load_backbone(tmp_path / "back").features(images), ours.features(images))


def test_timms_file_alone_and_from_one_library_to_the_other(
    shaken: Callable, without_extras: Callable, tmp_path: Path
) -> None:
    theirs = shaken(timms(embed_dim=128, num_reg_tokens=4, qkv_bias=True, swiglu_mlp=True, swiglu_align_to=8)[0])
    torch.save(theirs.state_dict(), tmp_path / "dinov3.pth")
    ours: Any = load(tmp_path / "dinov3.pth")
    assert (ours.heads, ours.pool) == (2, "cls")  # 64 channels each; the feature of the paper
    images = torch.randn(2, 3, 21, 28)
    assert (ours.tokens(images) - without_extras(theirs.forward_features(images), 1, 4)).abs().max() <= 1e-5
    export(ours, "hf", tmp_path / "hf")
    there = DINOv3ViTModel.from_pretrained(tmp_path / "hf").eval()
    assert (there(images).last_hidden_state - theirs.forward_features(images)).abs().max() <= 1e-5
    export(load_backbone(tmp_path / "hf"), "timm", tmp_path / "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert (again.forward_features(images) - theirs.forward_features(images)).abs().max() <= 1e-5


def test_the_license_is_told(shaken: Callable, tmp_path: Path) -> None:
    DINOv3ViTModel(DINOv3ViTConfig(**SMALL)).save_pretrained(tmp_path / "hf")
    with pytest.warns(UserWarning, match="hf: DINOv3's weights are under the DINOv3 License"):
        load(tmp_path / "hf")
    theirs, arguments = timms(num_reg_tokens=1)
    save_for_hf(theirs, tmp_path / "timm", model_args=arguments)
    path = tmp_path / "timm" / "config.json"
    told = json.loads(path.read_text())
    for license, said in (("dinov3-license", "the DINOv3 License"), ("apache-2.0", "license 'apache-2.0'")):
        told["pretrained_cfg"]["license"] = license
        path.write_text(json.dumps(told))
        with pytest.warns(UserWarning, match=f"timm: .* under {said}|timm: .* under the {said}"):
            load(tmp_path / "timm")


def test_attention_maps_and_what_needs_the_whole_grid(shaken: Callable, tmp_path: Path) -> None:
    config = DINOv3ViTConfig(**SMALL, attn_implementation="eager")
    theirs = shaken(DINOv3ViTModel(config))
    theirs.save_pretrained(tmp_path)
    ours: Any = load(tmp_path)
    images = torch.randn(2, 3, 28, 35)
    looks = theirs(images, output_attentions=True).attentions[-1][:, :, 0, 5:]
    assert (ours.attention(images) - looks.unflatten(-1, (4, 5))).abs().max() <= 1e-5
    (features,) = ours.maps(images)
    assert torch.equal(features.flatten(2).transpose(1, 2), ours.tokens(images)[:, 1:])
    with pytest.raises(SensoriumError, match="DINOv3 has its positions in its attention"):
        MAE(ours, decoder_width=32, decoder_depth=1, decoder_heads=1)({"image": torch.rand(2, 3, 28, 28)})


def test_depths_and_what_is_not_decayed() -> None:
    from sensorium.recipe.optim import undecayed

    network = DINOv3(28, 7, 24, 2, 2)
    layers = depths(network)
    assert layers.keys() == dict(network.named_parameters()).keys() | {"head"}
    assert (layers["reg_token"], layers["blocks.1.attn.q_bias"], layers["norm.bias"], layers["head"]) == (0, 2, 3, 3)
    assert {"reg_token", "cls_token", "blocks.0.attn.q_bias", "blocks.0.ls1.gamma"} <= undecayed(network)


def test_what_a_broken_configuration_has_wrong_is_said(tmp_path: Path) -> None:
    DINOv3ViTModel(DINOv3ViTConfig(**CONFIGS[1])).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"num_hidden_layers": 7}, "num_hidden_layers says 7, the weights have 2"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not one of silu"),
        ({"num_channels": 1}, "num_channels '1' is not supported"),
        ({"key_bias": True}, "key_bias 'True' is not supported"),
        ({"value_bias": True}, "value_bias 'True' is not supported"),
        ({"mlp_bias": False}, "mlp_bias 'False' is not supported"),
        ({"image_size": 6}, "image_size 6 is less than patch_size 7"),
        ({"patch_size": [7, 6]}, r"patch_size \[7, 6\] is not an integer"),
        ({"num_attention_heads": 5}, "heads 5 must divide the width 24"),
        ({"num_attention_heads": 4}, "rotated heads have channels divisible by 4"),
        ({"rope_theta": "100"}, "rope_theta '100' is not a number"),
        ({"num_register_tokens": 0}, "num_register_tokens 0 is not an integer from 1"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=rf"config\.json: {said}"):
            load(tmp_path)
    for change, said in (
        ({"intermediate_size": 48}, r"'layer\.0\.mlp\.gate_proj\.weight' has shape \[40, 24\], expected \[48, 24\]"),
        ({"num_register_tokens": 2}, r"'embeddings\.register_tokens' has shape \[1, 4, 24\], expected \[1, 2, 24\]"),
        ({"query_bias": True, "value_bias": True}, r"'layer\.0\.attention\.q_proj\.bias' is missing"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=said):
            load(tmp_path)


def test_broken_files_of_timm(tmp_path: Path) -> None:
    theirs, arguments = timms(num_reg_tokens=4)
    save_for_hf(theirs, tmp_path, model_args=arguments)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"rope_type": "cat"}, "rope_type 'cat' is not supported"),
        ({"rope_rotate_half": False}, "rope_rotate_half 'False' is not supported"),
        ({"num_heads": "2"}, "num_heads '2' is not an integer"),
        ({"global_pool": "map"}, "global_pool 'map' is not supported"),
        ({"img_size": 3}, "image_size 3 is less than patch_size 7"),
    ):
        path.write_text(json.dumps(honest | {"model_args": honest["model_args"] | change}))
        with pytest.raises(SensoriumError, match=said):
            load(tmp_path)
    state = theirs.state_dict()
    torch.save({name: t for name, t in state.items() if name != "cls_token"}, tmp_path / "less.pth")
    with pytest.raises(SensoriumError, match=r"less\.pth: 'cls_token' is missing"):
        load(tmp_path / "less.pth")


def test_onnx_gives_the_same_features(shaken: Callable, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    ours = shaken(DINOv3(28, 7, 24, 2, 2, gated=True))
    path = export(ours, "onnx", tmp_path / "m.onnx", image_size=28)
    images = torch.randn(3, 3, 28, 28)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})[0]
    assert (torch.from_numpy(found) - ours.features(images)).abs().max() <= 1e-5
