"""Hugging Face directories with random weights: what we load equals transformers, what we export loads there and back."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

import sensorium
from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.published import export, load
from sensorium.selfsup.mae.method import MAE

VITS = [
    {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 32,
        "patch_size": 8,
    },
    {
        "hidden_size": 36,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 50,
        "image_size": 30,
        "patch_size": 6,
        "qkv_bias": False,
    },
    {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 28,
        "patch_size": 7,
        "layer_norm_eps": 1e-6,
    },
]
RESNETS = [
    {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
    {"embedding_size": 12, "hidden_sizes": [16, 32, 24], "depths": [1, 1, 2], "layer_type": "bottleneck"},
    {
        "embedding_size": 8,
        "hidden_sizes": [16, 32],
        "depths": [2, 1],
        "layer_type": "bottleneck",
        "downsample_in_bottleneck": True,
        "downsample_in_first_stage": True,
    },
]


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random values everywhere, biases and statistics too, so that nothing agrees by being zero."""
    torch.manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(0.05 * torch.rand_like(tensor) if name.endswith("var") else 0.05 * torch.randn_like(tensor))
    return model.eval()


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("numbers", VITS)
def test_vit(numbers: dict, head: bool, tmp_path: Path) -> None:
    config = ViTConfig(**numbers)
    theirs = shaken(ViTForImageClassification(config) if head else ViTModel(config))
    theirs.save_pretrained(tmp_path / "hf")
    ours = sensorium.load(tmp_path / "hf")
    images = torch.randn(3, 3, numbers["image_size"], numbers["image_size"])
    expected = (theirs.vit if head else theirs)(images).last_hidden_state
    assert (ours.tokens(images) - expected).abs().max() <= 1e-5
    export(ours, "hf", tmp_path / "back")
    again = ViTModel.from_pretrained(tmp_path / "back").eval()
    assert (again(images).last_hidden_state - expected).abs().max() <= 1e-5
    assert torch.equal(load(tmp_path / "back").tokens(images), ours.tokens(images))


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("numbers", RESNETS)
def test_resnet(numbers: dict, head: bool, tmp_path: Path) -> None:
    config = ResNetConfig(**numbers)
    theirs = shaken(ResNetForImageClassification(config) if head else ResNetModel(config))
    theirs.save_pretrained(tmp_path / "hf")
    ours = sensorium.load(tmp_path / "hf")
    for size in (33, 64):
        images = torch.randn(2, 3, size, size)
        expected = (theirs.resnet if head else theirs)(images).last_hidden_state
        assert (ours.maps(images)[-1] - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    export(ours, "hf", tmp_path / "back")
    again = ResNetModel.from_pretrained(tmp_path / "back").eval()
    assert (again(images).last_hidden_state - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("numbers", VITS)
def test_vit_mae(numbers: dict, normalised: bool, tmp_path: Path) -> None:
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 40,
    }
    theirs = shaken(ViTMAEForPreTraining(ViTMAEConfig(**numbers, **decoder, norm_pix_loss=normalised, mask_ratio=0.6)))
    theirs.save_pretrained(tmp_path / "hf")
    ours = sensorium.load(tmp_path / "hf")
    assert isinstance(ours, MAE)
    size = numbers["image_size"]
    images, noise = torch.randn(4, 3, size, size), torch.rand(4, (size // numbers["patch_size"]) ** 2)
    expected = theirs(images, noise=noise).loss
    assert (ours({"image": images, "noise": noise})["loss"] - expected).abs() <= 1e-5
    export(ours, "hf", tmp_path / "back")
    again = ViTMAEForPreTraining.from_pretrained(tmp_path / "back").eval()
    assert (again(images, noise=noise).loss - expected).abs() <= 1e-5


def test_a_configuration_that_lies_about_its_sizes_costs_nothing(tmp_path: Path) -> None:
    shaken(ViTModel(ViTConfig(**VITS[0]))).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for field, value in (
        ("hidden_size", 1 << 20),
        ("num_hidden_layers", 1 << 30),
        ("image_size", 1 << 16),
        ("intermediate_size", 3),
        ("patch_size", 0),
    ):
        path.write_text(json.dumps(honest | {field: value}))
        with pytest.raises(SensoriumError, match=r"config\.json|shape|image|patch"):
            load(tmp_path)
    path.write_text(json.dumps(honest | {"hidden_act": "relu"}))
    with pytest.raises(SensoriumError, match="hidden_act"):
        load(tmp_path)
    path.write_text(json.dumps(honest | {"model_type": "gpt2"}))
    with pytest.raises(SensoriumError, match="gpt2"):
        load(tmp_path)
    path.write_text("{")
    with pytest.raises(SensoriumError, match="JSON"):
        load(tmp_path)


def test_own_format_keeps_everything(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    for name, network in {
        "vit": ViT(32, 8, 48, 2, 3, registers=2, pool="mean"),
        "resnet": ResNet((1, 2), (8, 24), stem="half"),
        "deep": ResNet((1, 1, 1), 8, bottleneck=True, stem="small", early_stride=True),
        "patch": ResNet((1, 1), 8, stem="patch", patch=2),
    }.items():
        network = shaken(network)
        network.normalization = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))  # type: ignore[assignment]
        export(network, "safetensors", tmp_path / name)
        again = load(tmp_path / name)
        assert torch.equal(again.features(images), network.features(images))
        assert again.normalization == network.normalization


def test_own_files_with_numbers_of_other_types(tmp_path: Path) -> None:
    export(ResNet((1, 2), 8, stem="half"), "safetensors", tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"model_type": {}}, "model_type '{}' is not one of"),
        ({"numbers": 1}, "numbers 1 is not an object"),
        ({"numbers": honest["numbers"] | {"layers": float("inf")}}, r"numbers\.layers inf is not a list of integers"),
        ({"numbers": honest["numbers"] | {"width": 1 << 62}}, r"config\.json"),
        ({"numbers": honest["numbers"] | {"stem": "other"}}, r"numbers\.stem 'other' is not one of imagenet"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=said):
            load(tmp_path)
    path.write_text("{" + '"a":{' * 5000 + "}" * 5001)
    with pytest.raises(SensoriumError, match=r"config\.json: not readable as JSON"):
        load(tmp_path)
