"""SigLIP's image tower: directories that transformers wrote give the same outputs and gradients, and go back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from sensorium.errors import SensoriumError
from sensorium.networks.formats.siglip import HF, NAFLEX
from sensorium.networks.siglip import SigLIPVision
from sensorium.parts.patches import patchify
from sensorium.published import export, load, load_backbone
from sensorium.published.format import HALF, Format, write
from sensorium.selfsup.supervised.method import Supervised

SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "patch_size": 7,
}  # fmt: skip
CONFIGS: list[dict[str, Any]] = [
    {**SMALL, "image_size": 28},
    {
        "hidden_size": 36, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 50, "image_size": 45,
        "patch_size": 14, "layer_norm_eps": 1e-5,
    },
    {**SMALL, "image_size": 35, "num_attention_heads": 4, "num_hidden_layers": 3, "hidden_act": "gelu"},
]  # fmt: skip
IDS = ["plain", "cut", "gelu"]


def shaken(model: nn.Module) -> Any:
    """Every number its own, so that nothing agrees by being zero or one."""
    torch.manual_seed(1)
    for tensor in model.state_dict().values():
        tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def sizes_of(numbers: dict[str, Any]) -> list[tuple[int, int]]:
    """The size of the positions, and others: larger, smaller, not square, of as many patches."""
    patch = numbers["patch_size"]
    side = numbers["image_size"] // patch
    grids = [(side, side), (side + 3, side + 3), (side - 1, side - 1), (side + 2, side - 1), (1, side * side)]
    return [(rows * patch, columns * patch) for rows, columns in grids]


@pytest.mark.parametrize("numbers", CONFIGS, ids=IDS)
def test_what_transformers_wrote_gives_the_same_and_goes_back(numbers: dict, tmp_path: Path) -> None:
    theirs = shaken(SiglipVisionModel(SiglipVisionConfig(**numbers)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load(tmp_path / "theirs")
    assert isinstance(ours, SigLIPVision)
    assert ours.normalization == HALF
    export(ours, "hf", tmp_path / "back")
    again, told = SiglipVisionModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    export(ours, "safetensors", tmp_path / "own")
    others: list[Any] = [load(tmp_path / "back"), load(tmp_path / "own")]
    for size in sizes_of(numbers):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            wanted = theirs(images, interpolate_pos_encoding=True)
            found = again.eval()(images, interpolate_pos_encoding=True)
            assert (ours.tokens(images) - wanted.last_hidden_state).abs().max() <= 1e-5
            assert (ours.features(images) - wanted.pooler_output).abs().max() <= 1e-5
            assert (found.pooler_output - wanted.pooler_output).abs().max() <= 1e-5
            assert all(torch.equal(other.features(images), ours.features(images)) for other in others)


def assert_gradients(ours: Any, form: Format, theirs: Any) -> None:
    found = write(form, ours, {name: p.grad for name, p in ours.named_parameters()})
    expected = {f"vision_model.{name}": p.grad for name, p in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-4, name
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("numbers", CONFIGS, ids=IDS)
def test_gradients_are_those_of_transformers(numbers: dict, tmp_path: Path) -> None:
    theirs = shaken(SiglipVisionModel(SiglipVisionConfig(**numbers)))
    theirs.save_pretrained(tmp_path)
    for size in sizes_of(numbers)[:4:3]:  # its own, and one that is not square
        theirs.zero_grad()
        ours: Any = load(tmp_path).train()
        images = torch.randn(2, 3, *size)
        got, wanted = ours.features(images), theirs(images, interpolate_pos_encoding=True).pooler_output
        way = torch.randn_like(wanted) / wanted.numel() ** 0.5
        (got * way).sum().backward()
        (wanted * way).sum().backward()
        assert_gradients(ours, HF, theirs)


def test_attention_is_that_of_the_probe(tmp_path: Path) -> None:
    theirs = shaken(SiglipVisionModel(SiglipVisionConfig(**CONFIGS[0])))
    theirs.save_pretrained(tmp_path)
    ours: Any = load(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    tokens, head = theirs(images).last_hidden_state, theirs.head
    _, looks = head.attention(head.probe.expand(2, -1, -1), tokens, tokens, average_attn_weights=False)
    found = ours.attention(images)
    assert (found - looks[:, :, 0].unflatten(-1, (4, 4))).abs().max() <= 1e-5
    encoded = ours.encode(ours.embed(images))
    assert torch.equal(encoded, torch.cat([ours.features(images)[:, None], ours.tokens(images)], dim=1))
    keep = torch.tensor([[3, 0, 9], [15, 2, 1]])
    chosen = ours.embed(images).gather(1, keep[..., None].expand(-1, -1, 24))
    assert (ours.embed(images, keep) - chosen).abs().max() <= 1e-6
    (features,) = ours.maps(images)
    assert features.shape == (2, 24, 4, 4)
    assert (features.flatten(2).transpose(1, 2) - tokens).abs().max() <= 1e-5


def whole(vision: dict[str, Any]) -> SiglipConfig:
    text = {key: SMALL[key] for key in SMALL if key != "patch_size"} | {"vocab_size": 11, "max_position_embeddings": 5}
    return SiglipConfig(text_config=text | {"bos_token_id": 9, "eos_token_id": 10}, vision_config=vision)


def test_the_tower_of_a_whole_model(tmp_path: Path) -> None:
    theirs = shaken(SiglipModel(whole(CONFIGS[0])))
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="read the image tower; not read: the text tower"):
        ours: Any = load_backbone(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    assert (ours.features(images) - theirs.vision_model(images).pooler_output).abs().max() <= 1e-5
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {"vision_config": {"hidden_size": 24, "patch_size": 7}}))
    with (  # the rest has transformers' defaults
        pytest.warns(UserWarning, match="read the image tower"),
        pytest.raises(SensoriumError, match=r"vision_config\.num_hidden_layers says 12, the weights have 2"),
    ):
        load(tmp_path)


def test_the_tower_of_a_classifier(tmp_path: Path) -> None:
    theirs = shaken(SiglipForImageClassification(whole(CONFIGS[1])))
    theirs.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 42, 42)
    ours: Any = load(tmp_path)
    assert (ours.features(images) - theirs.vision_model(images).pooler_output).abs().max() <= 1e-5


# --- for images of any shape ---

NAFLEXES = [{**SMALL, "num_patches": 16}, {**SMALL, "num_patches": 9, "patch_size": 4, "num_hidden_layers": 1}]


def of_any_shape(theirs: Any, images: Tensor) -> Any:
    """What transformers makes of images without padding, cut as by its processor."""
    patch = theirs.config.patch_size
    grid = torch.tensor([[images.shape[-2] // patch, images.shape[-1] // patch]] * len(images))
    pixels = patchify(images, patch)
    return theirs(pixels, torch.ones(pixels.shape[:2], dtype=torch.long), grid)


@pytest.mark.parametrize("numbers", NAFLEXES, ids=["16 patches", "9 patches"])
def test_towers_for_any_shape(numbers: dict, tmp_path: Path) -> None:
    theirs = shaken(Siglip2VisionModel(Siglip2VisionConfig(**numbers)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load(tmp_path / "theirs")
    export(ours, "hf", tmp_path / "back")
    again, told = Siglip2VisionModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for rows, columns in (
        (3, 3),
        (4, 4),
        (2, 5),
        (1, 7),
        (6, 6),
    ):  # for one column theirs are wrong, by an error of torch
        images = torch.randn(2, 3, rows * ours.patch_size, columns * ours.patch_size)
        theirs.zero_grad()
        ours.zero_grad()
        got, wanted = ours.features(images), of_any_shape(theirs, images).pooler_output
        assert (got - wanted).abs().max() <= 1e-5
        assert (of_any_shape(again.eval(), images).pooler_output - wanted).abs().max() <= 1e-5
        way = torch.randn_like(wanted) / wanted.numel() ** 0.5
        (got * way).sum().backward()
        (wanted * way).sum().backward()
        assert_gradients(ours, NAFLEX, theirs)


def test_what_a_broken_configuration_has_wrong_is_said(tmp_path: Path) -> None:
    shaken(SiglipVisionModel(SiglipVisionConfig(**CONFIGS[0]))).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"num_hidden_layers": 7}, "num_hidden_layers says 7, the weights have 2"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not one of"),
        ({"num_channels": 1}, "num_channels '1' is not supported"),
        ({"vision_use_head": False}, "vision_use_head 'False' is not supported"),
        ({"image_size": [28, 35]}, r"image_size \(28, 35\) is not supported"),
        ({"image_size": 6}, "image_size 6 is less than patch_size 7"),
        ({"num_attention_heads": 5}, "heads 5 must divide the width 24"),
        ({"layer_norm_eps": "0"}, "layer_norm_eps '0' is not a number"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=rf"config\.json: {said}"):
            load(tmp_path)
    path.write_text(json.dumps(honest | {"intermediate_size": 48}))
    with pytest.raises(SensoriumError, match=r"'.*mlp\.fc1\.weight' has shape \[40, 24\], expected \[48, 24\]"):
        load(tmp_path)


def test_what_transformers_cannot_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="has a square of positions"):
        export(SigLIPVision((14, 21), 7, 24, 1, 2), "hf", tmp_path)


def test_a_classifier_on_it_there_and_back_and_onnx(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    ours = shaken(Supervised(SigLIPVision(14, 7, 24, 1, 2), 3))
    export(ours, "safetensors", tmp_path / "own")
    images = torch.rand(5, 3, 14, 14)
    again: Any = load(tmp_path / "own")
    assert torch.equal(again.logits(images), ours.logits(images))
    path = export(ours.backbone, "onnx", tmp_path / "m.onnx", image_size=14)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})[0]
    assert (torch.from_numpy(found) - ours.backbone.features(images)).abs().max() <= 1e-5


def test_layers_and_what_is_not_decayed() -> None:
    from sensorium.recipe.optim import undecayed

    network = SigLIPVision(14, 7, 24, 2, 2)
    layers = network.layers_for_decay()
    assert layers.keys() == dict(network.named_parameters()).keys()
    assert (layers["pos_embed"], layers["blocks.1.norm1.weight"], layers["pool.probe"]) == (0, 2, 3)
    assert {"pool.probe", "pos_embed", "pool.norm.weight"} <= undecayed(network)
    assert "pool.qkv.weight" not in undecayed(network)
