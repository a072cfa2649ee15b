"""CLIP's image tower alone, as transformers, timm and OpenCLIP write it: the same outputs and gradients, and it goes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer
from timm.models._hub import save_for_hf
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from sensorium.errors import SensoriumError
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.formats.clip_vision import HF, OPEN, OPENAI, TIMM
from sensorium.published import export, load, load_backbone
from sensorium.recipe.optim import depths

SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "patch_size": 7, "image_size": 28,
}  # fmt: skip
CONFIGS: list[dict[str, Any]] = [
    SMALL,
    {**SMALL, "hidden_size": 36, "num_attention_heads": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-3, "image_size": 38},
]  # fmt: skip


@pytest.mark.parametrize("numbers", CONFIGS, ids=["quick_gelu", "gelu, cut"])
@pytest.mark.parametrize("model", [CLIPVisionModel, CLIPVisionModelWithProjection])
def test_what_transformers_wrote_gives_the_same_and_goes_back(
    model: Any, numbers: dict, shaken: Callable, agrees: Callable, sizes_of: Callable, tmp_path: Path
) -> None:
    theirs = shaken(model(CLIPVisionConfig(**numbers, projection_dim=10)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load(tmp_path / "theirs")
    assert isinstance(ours, CLIPVision)
    assert ours.normalization == OPENAI
    tower = theirs if model is CLIPVisionModel else theirs.vision_model
    norm = ours.norm

    def last(images: torch.Tensor) -> Any:
        return tower(images, interpolate_pos_encoding=True)

    pairs = [
        (ours.hidden_states, lambda images: last(images).last_hidden_state),
        (ours.features, lambda images: last(images).pooler_output),
    ]
    for size in sizes_of(7, numbers["image_size"] // 7, numbers["image_size"] // 7):
        if size[0] == size[1] or numbers["image_size"] % 7 == 0:
            agrees(ours, theirs, HF, pairs, size, tmp_path / "gradients")
    images = torch.randn(2, 3, 28, 28)
    assert (ours.tokens(images) - norm(last(images).last_hidden_state)).abs().max() <= 1e-5
    export(ours, "hf", tmp_path / "back")
    again, told = CLIPVisionModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = again.eval()(images, interpolate_pos_encoding=True).pooler_output
    assert (found - last(images).pooler_output).abs().max() <= 1e-6
    export(ours, "safetensors", tmp_path / "own")
    assert all(
        torch.equal(load_backbone(tmp_path / at).features(images), ours.features(images)) for at in ("back", "own")
    )


def test_the_towers_of_a_whole_model_and_of_a_classifier(shaken: Callable, tmp_path: Path) -> None:
    text = {key: SMALL[key] for key in SMALL if "size" not in key or key.startswith(("hid", "int"))}
    words = text | {"vocab_size": 11, "max_position_embeddings": 5, "eos_token_id": 10, "bos_token_id": 9}
    config = CLIPConfig(text_config=words, vision_config=SMALL, projection_dim=10, num_labels=3)
    images = torch.randn(2, 3, 28, 28)
    whole = shaken(CLIPModel(config))
    whole.save_pretrained(tmp_path / "whole")
    ours: Any = load_backbone(tmp_path / "whole")
    assert (ours.features(images) - whole.vision_model(images).pooler_output).abs().max() <= 1e-5
    sorter = shaken(CLIPForImageClassification(config))
    sorter.save_pretrained(tmp_path / "classifier")
    ours = load_backbone(tmp_path / "classifier")
    wanted = sorter.vision_model(images)
    assert (ours.features(images) - wanted.pooler_output).abs().max() <= 1e-5
    pooled = ours.hidden_states(images)[:, 1:].mean(dim=1)
    assert (sorter.classifier(pooled) - sorter(images).logits).abs().max() <= 1e-5


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("vit_base_patch32_clip_224", {}),
    "quick_gelu, with projection": ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 10}),
    "not square, gelu_tanh": (
        "vit_base_patch16_clip_224", {"img_size": (21, 35), "act_layer": "gelu_tanh", "embed_dim": 36, "num_heads": 3, "mlp_ratio": 2.7},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_timms_files_there_and_back(
    kind: str, shaken: Callable, agrees: Callable, sizes_of: Callable, tmp_path: Path
) -> None:
    name, more = KINDS[kind]
    arguments = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "num_heads": 2, "depth": 2, "num_classes": 0} | more
    theirs = shaken(timm.create_model(name, pretrained=False, **arguments, dynamic_img_size=True))
    save_for_hf(theirs, tmp_path / "theirs", model_args=arguments)
    theirs.head = nn.Identity()
    ours: Any = load(tmp_path / "theirs")
    height, width = arguments["img_size"] if isinstance(arguments["img_size"], tuple) else (28, 28)
    for size in sizes_of(7, height // 7, width // 7):
        pairs = [(ours.tokens, theirs.forward_features), (ours.features, theirs)]
        agrees(ours, theirs, TIMM, pairs, size, tmp_path)
    export(ours, "timm", tmp_path / "back")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True, dynamic_img_size=True).eval()
    images = torch.randn(2, 3, 35, 14)
    assert (again(images) - theirs(images)).abs().max() <= 1e-5
    assert torch.equal(load_backbone(tmp_path / "back").features(images), ours.features(images))


@pytest.mark.parametrize("quick", [True, False])
def test_open_clips_visual(quick: bool, shaken: Callable, agrees: Callable, tmp_path: Path) -> None:
    from open_clip.transformer import QuickGELU

    act: Any = QuickGELU if quick else nn.GELU
    theirs = shaken(VisionTransformer(28, 7, 128, 2, 2, 3.0, output_dim=10, act_layer=act, output_tokens=True))
    torch.save({f"visual.{name}": tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "visual.pt")
    if quick:
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
        ours: Any = load(tmp_path / "visual.pt")
    else:
        with pytest.warns(UserWarning, match=r"visual\.pt: .* does not contain its activation; assumed gelu"):
            ours = load(tmp_path / "visual.pt")
    assert ours.heads == 2
    theirs.proj = None
    agrees(ours, theirs, OPEN, [(ours.features, lambda images: theirs(images)[0])], (28, 28), tmp_path)
    theirs.output_tokens = False
    images = torch.randn(2, 3, 28, 28)
    told = load(tmp_path / "visual.pt", activation="quick_gelu")
    assert told.activation == "quick_gelu"
    assert torch.equal(ours.features(images), load_backbone(tmp_path / "visual.pt").features(images))


def test_attention_and_depths(shaken: Callable, tmp_path: Path) -> None:
    theirs = shaken(CLIPVisionModel(CLIPVisionConfig(**SMALL, attn_implementation="eager")))
    theirs.save_pretrained(tmp_path)
    ours: Any = load(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    looks = theirs(images, output_attentions=True).attentions[-1][:, :, 0, 1:]
    assert (ours.attention(images) - looks.unflatten(-1, (4, 4))).abs().max() <= 1e-5
    layers = depths(ours)
    assert layers.keys() == dict(ours.named_parameters()).keys() | {"head"}
    assert (layers["norm_pre.bias"], layers["blocks.1.norm1.weight"], layers["norm.bias"], layers["head"]) == (
        0,
        2,
        3,
        3,
    )


def test_broken_files(tmp_path: Path) -> None:
    CLIPVisionModel(CLIPVisionConfig(**SMALL)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"num_hidden_layers": 7}, "num_hidden_layers says 7, the weights have 2"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not one of"),
        ({"num_channels": 1}, "num_channels '1' is not supported"),
        ({"image_size": [28, 35]}, r"image_size \(28, 35\) is not supported"),
        ({"num_attention_heads": 5}, "heads 5 must divide the width 24"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=rf"config\.json: {said}"):
            load(tmp_path)
    arguments = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "num_heads": 2, "depth": 1, "num_classes": 0}
    theirs = timm.create_model("vit_base_patch32_clip_224", pretrained=False, **arguments)
    torch.save(theirs.state_dict() | {"pos_embed": torch.zeros(1, 12, 24)}, tmp_path / "timm.pth")
    with pytest.raises(SensoriumError, match=r"timm\.pth: 'pos_embed' has 12 positions"):
        load(tmp_path / "timm.pth")
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(SensoriumError, match="activation 'relu' is not one of"):
        load(tmp_path / "timm.pth", activation="relu")
    with pytest.raises(SensoriumError, match="has square images only"):
        export(CLIPVision((14, 21), 7, 24, 1, 2), "hf", tmp_path / "out")


def test_onnx_takes_any_number_of_images(shaken: Callable, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    ours = shaken(CLIPVision(28, 7, 24, 1, 2))
    path = export(ours, "onnx", tmp_path / "m.onnx", image_size=28)
    images = torch.randn(3, 3, 28, 28)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})[0]
    assert (torch.from_numpy(found) - ours.features(images)).abs().max() <= 1e-5
