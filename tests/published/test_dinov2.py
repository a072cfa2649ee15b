"""DINOv2: directories that transformers wrote, timm's files and the authors' names give the same outputs and gradients, and
go back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)

from sensorium.errors import SensoriumError
from sensorium.networks.formats.dinov2 import AUTHORS, HF
from sensorium.networks.vit import ViT
from sensorium.published import export, load, load_backbone
from sensorium.published.format import IMAGENET, write
from sensorium.published.opening import save

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
CONFIGS: list[dict[str, Any]] = [
    SMALL,
    {
        "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 42, "patch_size": 14,
        "mlp_ratio": 3, "qkv_bias": False, "layer_norm_eps": 1e-5,
    },
    {
        "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 5, "image_size": 20, "patch_size": 4,
        "use_swiglu_ffn": True,
    },
    {**SMALL, "num_register_tokens": 4},
    {
        "hidden_size": 28, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 45, "patch_size": 6,
        "use_swiglu_ffn": True, "mlp_ratio": 2, "num_register_tokens": 1,
    },
]  # fmt: skip
IDS = ["plain", "odd", "swiglu", "registers", "swiglu, registers, cut"]
# Names of transformers' modules, and of the files that it writes.
IN_FILES = {
    **{f"attention.{new}_proj": f"attention.attention.{old}" for new, old in zip("qkv", ("query", "key", "value"), strict=True)},
    "attention.o_proj": "attention.output.dense",
    "mlp.gate_proj": "mlp.weights_in",
    "mlp.up_proj": "mlp.weights_in",
    "mlp.down_proj": "mlp.weights_out",
}  # fmt: skip


def shaken(model: nn.Module) -> Any:
    """Every number its own, so that nothing agrees by being zero or one."""
    torch.manual_seed(1)
    for tensor in model.state_dict().values():
        tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def transformers_model(numbers: dict[str, Any], head: bool = False) -> Any:
    if "num_register_tokens" in numbers:
        config = Dinov2WithRegistersConfig(**numbers)
        return shaken(Dinov2WithRegistersForImageClassification(config) if head else Dinov2WithRegistersModel(config))
    return shaken(
        Dinov2ForImageClassification(Dinov2Config(**numbers)) if head else Dinov2Model(Dinov2Config(**numbers))
    )


def sizes_of(numbers: dict[str, Any]) -> list[tuple[int, int]]:
    """The size of the positions, and others: larger, smaller, not square, of as many patches."""
    patch = numbers["patch_size"]
    side = numbers["image_size"] // patch
    grids = [(side, side), (side + 3, side + 3), (side - 1, side - 1), (side + 2, side - 1), (1, side * side)]
    return [(rows * patch, columns * patch) for rows, columns in grids]


def no_registers(tokens: Tensor, count: int) -> Tensor:
    return torch.cat([tokens[:, :1], tokens[:, 1 + count :]], dim=1)


@pytest.mark.parametrize("head", [False, True], ids=["backbone", "head"])
@pytest.mark.parametrize("numbers", CONFIGS, ids=IDS)
def test_what_transformers_wrote_gives_the_same_and_goes_back(numbers: dict, head: bool, tmp_path: Path) -> None:
    theirs = transformers_model(numbers, head)
    theirs.save_pretrained(tmp_path / "theirs")
    base = theirs.base_model if head else theirs
    ours: Any = load(tmp_path / "theirs")
    assert isinstance(ours, ViT)
    assert ours.normalization == IMAGENET
    export(ours, "hf", tmp_path / "back")
    kind = Dinov2WithRegistersModel if ours.registers else Dinov2Model
    again, told = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    back: Any = load(tmp_path / "back")
    for size in sizes_of(numbers):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            wanted = base(images)
            tokens = no_registers(wanted.last_hidden_state, ours.registers)
            assert (ours.tokens(images) - tokens).abs().max() <= 1e-5
            assert (ours.features(images) - wanted.pooler_output).abs().max() <= 1e-5
            assert (again.eval()(images).last_hidden_state - wanted.last_hidden_state).abs().max() <= 1e-5
            assert torch.equal(back.tokens(images), ours.tokens(images))


def gradients_in_files(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name == "embeddings.mask_token"
            continue
        for new, old in IN_FILES.items():
            name = name.replace(new, old)
        found[name] = torch.cat([found[name], parameter.grad]) if name in found else parameter.grad
    return found


@pytest.mark.parametrize("numbers", CONFIGS, ids=IDS)
def test_gradients_are_those_of_transformers(numbers: dict, tmp_path: Path) -> None:
    theirs = transformers_model(numbers)
    theirs.save_pretrained(tmp_path)
    for size in sizes_of(numbers)[:4:3]:  # its own, and one that is not square
        theirs.zero_grad()
        ours: Any = load(tmp_path).train()
        images = torch.randn(2, 3, *size)
        got = ours.tokens(images)
        wanted = no_registers(theirs(images).last_hidden_state, ours.registers)
        way = torch.randn_like(wanted) / wanted.numel() ** 0.5
        (got * way).sum().backward()
        (wanted * way).sum().backward()
        found = write(HF, ours, {name: p.grad for name, p in ours.named_parameters()})
        expected = gradients_in_files(theirs)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (found[name] - gradient).abs().max() <= 1e-4, name
            assert gradient.abs().max() > 0 or "key.bias" in name, name


def test_attention_is_that_of_transformers(tmp_path: Path) -> None:
    theirs = transformers_model(CONFIGS[3])
    theirs.save_pretrained(tmp_path)
    theirs.set_attn_implementation("eager")
    images = torch.randn(2, 3, 28, 28)
    looks = theirs(images, output_attentions=True).attentions[-1][:, :, 0, 5:].unflatten(-1, (4, 4))
    assert (load(tmp_path).attention(images) - looks).abs().max() <= 1e-5  # type: ignore[operator]


# --- the authors' files ---


def authors(width: int, depth: int, side: int, patch: int, registers: int = 0, gated: int = 0) -> dict[str, Tensor]:
    """A state dict as facebookresearch/dinov2 publishes them, of random numbers. gated: hidden channels of SwiGLU."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side * side, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    linear = {"attn.qkv": (width, 3 * width), "attn.proj": (width, width)}
    if gated:
        linear |= {"mlp.w12": (width, 2 * gated), "mlp.w3": (gated, width)}
    else:
        linear |= {"mlp.fc1": (width, 4 * width), "mlp.fc2": (4 * width, width)}
    for i in range(depth):
        for name in ("norm1.weight", "norm1.bias", "ls1.gamma", "norm2.weight", "norm2.bias", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (width,)
        for name, (inputs, outputs) in linear.items():
            shapes[f"blocks.{i}.{name}.weight"] = (outputs, inputs)
            shapes[f"blocks.{i}.{name}.bias"] = (outputs,)
    torch.manual_seed(2)
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


def timms(side: int, registers: int = 0, gated: int = 0, **more: Any) -> Any:
    """timm's model of that name, small; it takes images of any size."""
    name = f"vit_{'giant' if gated else 'small'}_patch14_{'reg4_' if registers else ''}dinov2"
    arguments: dict[str, Any] = {
        "img_size": 14 * side, "embed_dim": 128, "depth": 2, "num_heads": 2, "dynamic_img_size": True, "num_classes": 0,
    }  # fmt: skip
    arguments |= {"mlp_ratio": 2 * gated / 128} if gated else {}
    arguments |= {"reg_tokens": registers} if registers else {}
    return timm.create_model(name, pretrained=False, **arguments, **more).eval()


KINDS = [{}, {"registers": 4}, {"gated": 88}, {"registers": 2, "gated": 40}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_authors_files_give_what_timm_makes_of_them(kind: dict, tmp_path: Path) -> None:
    """timm converts the authors' names itself. With registers both antialias; without, the authors do as below."""
    state = authors(128, 2, 3, 14, **kind)
    torch.save(state, tmp_path / "dinov2.pth")
    ours: Any = load(tmp_path / "dinov2.pth")
    theirs = timms(3, **kind)
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs))
    sizes = [(42, 42), (70, 56), (28, 98)] if kind.get("registers") else [(42, 42)]
    for size in sizes:
        images = torch.randn(2, 3, *size)
        wanted = no_registers(theirs.forward_features(images), kind.get("registers", 0))
        assert (ours.tokens(images) - wanted).abs().max() <= 1e-5
    assert write(AUTHORS, ours).keys() == state.keys()
    assert all(
        torch.equal(tensor, state[name]) for name, tensor in write(AUTHORS, ours).items() if name != "mask_token"
    )
    assert ours.normalization == IMAGENET
    assert (ours.resampling, ours.patch_size, ours.image_size) == (
        "antialias" if kind.get("registers") else "offset",
        14,
        42,
    )


def cubic(t: float) -> list[float]:
    """Weights of the four neighbors at distance t from the second (Keys, 1981, with a = -0.75, as torch's bicubic)."""
    a, weights = -0.75, []
    for distance in (1 + t, t, 1 - t, 2 - t):
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weights.append(near if distance <= 1 else far)
    return weights


def matrix(old: int, new: int) -> Tensor:
    """Resampling of one axis by a factor of (new + 0.1) / old, [new, old]."""
    found = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        at = (i + 0.5) * old / (new + 0.1) - 0.5
        first = math.floor(at)
        for k, weight in enumerate(cubic(at - first)):
            found[i, min(max(first - 1 + k, 0), old - 1)] += weight
    return found


@pytest.mark.parametrize("size", [(28, 28), (56, 56), (70, 28), (14, 98)])
def test_the_authors_positions_are_resampled_by_a_factor_with_an_offset(size: tuple[int, int], tmp_path: Path) -> None:
    state = authors(64, 1, 3, 14)
    torch.save(state, tmp_path / "dinov2.pth")
    ours: Any = load(tmp_path / "dinov2.pth")
    rows, columns = (matrix(3, pixels // 14) for pixels in size)
    table = state["pos_embed"][0, 1:].double().unflatten(0, (3, 3))
    wanted = torch.einsum("ir,jc,rcd->ijd", rows, columns, table).flatten(0, 1)
    black = torch.zeros(1, 3, *size)
    assert (ours.embed(black)[0] - state["patch_embed.proj.bias"] - wanted).abs().max() <= 1e-5
    ours.resampling = "bicubic"
    assert (ours.embed(black)[0] - state["patch_embed.proj.bias"] - wanted).abs().max() > 1e-3


def test_the_teacher_of_a_training_checkpoint_in_chunks(tmp_path: Path) -> None:
    state = authors(64, 4, 3, 14)
    chunked = {
        f"backbone.{name}".replace("blocks.", f"blocks.{int(name.split('.')[1]) // 2}.") if "blocks." in name else f"backbone.{name}": t
        for name, t in state.items()
    }  # fmt: skip
    head = {"dino_head.mlp.0.weight": torch.zeros(4, 64), "dino_head.last_layer.weight_g": torch.zeros(4, 1)}
    torch.save({"teacher": chunked | head, "iteration": 3}, tmp_path / "teacher_checkpoint.pth")
    torch.save(state, tmp_path / "plain.pth")
    with pytest.warns(UserWarning, match="read the network in 'teacher > backbone'; not read: 'dino_head"):
        ours: Any = load(tmp_path / "teacher_checkpoint.pth")
    images = torch.randn(1, 3, 56, 42)
    assert torch.equal(ours.tokens(images), load(tmp_path / "plain.pth").tokens(images))  # type: ignore[operator]


def test_the_authors_files_go_to_transformers(tmp_path: Path) -> None:
    torch.save(authors(64, 2, 3, 14, gated=176), tmp_path / "dinov2.pth")
    ours: Any = load_backbone(tmp_path / "dinov2.pth")
    with pytest.warns(UserWarning, match="resamples this network's positions otherwise"):
        export(ours, "hf", tmp_path / "hf")
    images = torch.randn(2, 3, 42, 42)
    again = Dinov2Model.from_pretrained(tmp_path / "hf").eval()
    assert (again(images).last_hidden_state - ours.tokens(images)).abs().max() <= 1e-5
    told = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert (tuple(told["image_mean"]), tuple(told["image_std"])) == IMAGENET


# --- timm's files, ours, and broken ones ---


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_timms_files_there_and_back(kind: dict, tmp_path: Path) -> None:
    theirs = shaken(timms(4, **kind))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours: Any = load(tmp_path / "timm.pth")
    export(ours, "timm", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    again = timm.create_model(
        told["architecture"], pretrained=False, **told["model_args"], dynamic_img_size=True
    ).eval()
    again.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    for size in [(56, 56), (70, 42)]:
        images, count = torch.randn(2, 3, *size), kind.get("registers", 0)
        wanted = no_registers(theirs.forward_features(images), count)
        assert (ours.tokens(images) - wanted).abs().max() <= 1e-5
        assert (no_registers(again.forward_features(images), count) - wanted).abs().max() <= 1e-5
        assert torch.equal(load(tmp_path / "out").tokens(images), ours.tokens(images))  # type: ignore[operator]


def test_our_files_keep_parts_and_resampling(tmp_path: Path) -> None:
    ours = shaken(ViT(21, 7, 24, 2, 3, registers=1, parts=("layerscale", "geglu"), mlp_ratio=2.9, resampling="offset"))
    export(ours, "safetensors", tmp_path)
    images = torch.randn(1, 3, 35, 28)
    assert torch.equal(load(tmp_path).tokens(images), ours.tokens(images))  # type: ignore[operator]
    path = tmp_path / "config.json"
    told = json.loads(path.read_text())
    for antialias, how in ((True, "antialias"), (False, "bicubic")):  # files from before
        numbers = {key: value for key, value in told["numbers"].items() if key != "resampling"}
        path.write_text(json.dumps(told | {"numbers": numbers | {"antialias": antialias}}))
        assert load(tmp_path).resampling == how


def test_what_a_broken_configuration_has_wrong_is_said(tmp_path: Path) -> None:
    transformers_model(CONFIGS[4]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"num_hidden_layers": 7}, "num_hidden_layers says 7, the weights have 1"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"num_channels": 1}, "num_channels '1' is not supported"),
        ({"image_size": [45, 30]}, r"image_size \(45, 30\) is not supported"),
        ({"image_size": 5}, "image_size 5 is less than patch_size 6"),
        ({"patch_size": "6"}, "patch_size '6' is not an integer"),
        ({"num_attention_heads": 3}, "heads 3 must divide the width 28"),
        ({"mlp_ratio": "2"}, "mlp_ratio '2' is not a number"),
        ({"use_swiglu_ffn": 1}, "use_swiglu_ffn 1 is not true or false"),
        ({"layer_norm_eps": -1}, "layer_norm_eps -1 is not a number"),
        ({"num_register_tokens": 0}, "num_register_tokens 0 is not an integer"),
        ({"sensorium_pool": "max"}, "sensorium_pool 'max' is not one of cls, mean"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=rf"config\.json: {said}"):
            load(tmp_path)
    for change, said in (
        ({"mlp_ratio": 3}, r"model\.safetensors|'encoder\.layer\.0\.mlp\.weights_in\.weight' has shape"),
        ({"num_register_tokens": 2}, r"'embeddings\.register_tokens' has shape \[1, 1, 28\], expected \[1, 2, 28\]"),
        ({"model_type": "dinov2"}, r"'embeddings\.register_tokens' is unknown to the format Hugging Face DINOv2"),
        ({"image_size": 60}, r"'embeddings\.position_embeddings' has shape"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=said):
            load(tmp_path)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (ViT((14, 21), 7, 24, 1, 2, parts=("layerscale",)), "square images only"),
        (ViT(14, 7, 24, 1, 2, parts=("layerscale",), mlp_ratio=2.5), "60 channels, and a width of 24"),
        (ViT(14, 7, 24, 1, 2, parts=("layerscale", "gau")), "has no gau"),
        (ViT(14, 7, 24, 1, 2, parts=("layerscale",), positions="rope"), "has no rope"),
    ],
)
def test_what_transformers_cannot_hold_is_said(network: ViT, said: str, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=f"Hugging Face's DINOv2 .*{said}.*--to safetensors"):
        export(network, "hf", tmp_path)


def test_broken_files_of_the_authors(tmp_path: Path) -> None:
    state, path = authors(64, 1, 3, 14), tmp_path / "dinov2.pth"
    for broken, said in (
        ({**state, "pos_embed": torch.zeros(1, 12, 64)}, "'pos_embed' has 12 positions"),
        ({**state, "blocks.0.ls2.gamma": torch.zeros(3)}, r"'blocks\.0\.ls2\.gamma' has shape \[3\], expected \[64\]"),
        ({**state, "blocks.0.extra": torch.zeros(3)}, r"'blocks\.0\.extra' is unknown to the format authors' DINOv2"),
        ({name: t for name, t in state.items() if name != "norm.bias"}, r"'norm\.bias' is missing"),
    ):
        torch.save(broken, path)
        with pytest.raises(SensoriumError, match=rf"dinov2\.pth: {said}"):
            load(path)


def test_it_is_saved_as_the_authors_name_it(tmp_path: Path) -> None:
    ours = shaken(ViT(21, 7, 64, 1, 1, registers=3, parts=("layerscale", "swiglu")))
    kept = torch.load(save(AUTHORS, ours, tmp_path), weights_only=True)
    assert kept.keys() == authors(64, 1, 3, 7, registers=3, gated=170).keys()
