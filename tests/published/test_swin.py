"""Swin and Swin V2: files that transformers, timm and torchvision wrote, and the authors' names, give the same outputs and
gradients, and go back."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2 import checkpoint_filter_fn as checkpoint_filter_fn_v2
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer as VisionSwin
from torchvision.models.swin_transformer import swin_v2_t
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2Model,
)

from sensorium.errors import SensoriumError
from sensorium.networks.formats import swin, swinv2
from sensorium.networks.swin import Swin
from sensorium.networks.swinv2 import SwinV2
from sensorium.published import export, load, load_backbone
from sensorium.published.format import IMAGENET, write
from sensorium.selfsup.supervised.method import Supervised

Size = tuple[int, int]
THREE: dict[str, Any] = {"depths": [2, 2, 2], "num_heads": [1, 2, 4], "embed_dim": 8, "patch_size": 4}


def shaken(model: nn.Module) -> Any:
    """Every number its own, so that nothing agrees by being zero, one or tiny."""
    torch.manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def pictures(size: Size) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(size[1]))


def backward(network: Any, feature: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """A feature, and the gradient of the images; those of the weights are left in the network."""
    network.zero_grad()
    x = images.clone().requires_grad_()
    found = feature(x)
    way = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)) / found.numel() ** 0.5
    (found * way).sum().backward()
    assert x.grad is not None
    return found.detach(), x.grad


def compare(ours: Any, form: Any, theirs: Any, feature: Any, size: Size, gradients: dict[str, Tensor]) -> None:
    """Features and gradients of pictures and weights. gradients: theirs, filled by ``feature``'s backward."""
    got, moved = backward(ours, ours.features, pictures(size))
    wanted, theirs_moved = backward(theirs, feature, pictures(size))
    assert (got - wanted).abs().max() <= 1e-5
    assert (moved - theirs_moved).abs().max() <= 1e-4
    assert theirs_moved.abs().max() > 0
    found = write(form, ours, {name: p.grad for name, p in ours.named_parameters()})
    gradients |= {name: p.grad for name, p in theirs.named_parameters() if not name.startswith("head.")}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (found[name] - gradient).abs().max() <= 1e-4, name
        assert gradient.abs().max() > 0, name


# --- transformers: of sizes at which it shifts both sides of a stage, or neither because the stage is one window ---

HF_CASES: dict[str, tuple[dict[str, Any], list[Size]]] = {
    "v1, three stages": ({**THREE, "window_size": 4}, [(64, 64), (96, 80), (67, 93)]),
    "v1, patches of 2": (
        {"depths": [2, 3], "num_heads": [2, 2], "embed_dim": 12, "patch_size": 2, "window_size": 3, "mlp_ratio": 2.0,
         "qkv_bias": False},
        [(12, 12), (19, 33), (50, 27)],
    ),
    "v1, patches of 3": (
        {"depths": [1, 2, 1, 2], "num_heads": [1, 1, 2, 4], "embed_dim": 4, "patch_size": 3, "window_size": 2},
        [(48, 48), (77, 100)],
    ),
    "v2, one window at last": ({**THREE, "window_size": 4, "image_size": 64}, [(64, 64), (57, 61), (33, 64)]),
    "v2, shifted at last": ({**THREE, "window_size": 4, "image_size": 96, "qkv_bias": False}, [(96, 96), (75, 101)]),
    "v2, other windows before": (
        {**THREE, "window_size": 8, "image_size": 64, "pretrained_window_sizes": [4, 6, 3], "mlp_ratio": 2.0},
        [(64, 64), (53, 64)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HF_CASES)
def test_what_transformers_wrote_gives_the_same_and_goes_back(case: str, tmp_path: Path) -> None:
    numbers, sizes = HF_CASES[case]
    config, model, form, kind = (
        (Swinv2Config, Swinv2Model, swinv2.HF, SwinV2)
        if case.startswith("v2")
        else (SwinConfig, SwinModel, swin.HF, Swin)
    )
    fresh = shaken(model(config(**numbers)))
    fresh.save_pretrained(tmp_path / "theirs")
    ours: Any = load(tmp_path / "theirs")
    assert type(ours) is kind
    assert ours.normalization == IMAGENET
    export(ours, "hf", tmp_path / "back")
    export(ours, "safetensors", tmp_path / "own")
    others: list[Any] = [load(tmp_path / "back"), load(tmp_path / "own")]
    for size in sizes:
        theirs = copy.deepcopy(fresh)  # its Swin keeps a smaller window and no shift once it has seen a small picture
        backward(theirs, lambda x, net=theirs: net(x).pooler_output, pictures(size))
        graded = copy.deepcopy(theirs)
        for mine, their in zip(graded.parameters(), theirs.parameters(), strict=True):
            mine.data = their.grad.clone()  # written, so that they have the names of a file
        graded.save_pretrained(tmp_path / "graded")
        found = load_file(tmp_path / "graded" / "model.safetensors")
        got, moved = backward(ours, ours.features, pictures(size))
        wanted, theirs_moved = backward(theirs, lambda x, net=theirs: net(x).pooler_output, pictures(size))
        assert (got - wanted).abs().max() <= 1e-5
        assert (moved - theirs_moved).abs().max() <= 1e-4
        mine = write(form, ours, {name: p.grad for name, p in ours.named_parameters()})
        assert mine.keys() == found.keys()
        for name, gradient in found.items():
            assert (mine[name] - gradient).abs().max() <= 1e-4, name
            assert gradient.abs().max() > 0 or name.endswith("key.bias"), name
        again, told = model.from_pretrained(tmp_path / "back", output_loading_info=True)
        assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            assert (again.eval()(pictures(size)).pooler_output - wanted).abs().max() <= 1e-5
            same = ours.features(pictures(size))
            assert all(torch.equal(other.features(pictures(size)), same) for other in others)
            hidden = copy.deepcopy(fresh)(pictures(size), output_hidden_states=True).reshaped_hidden_states
            maps = ours.maps(pictures(size))
            assert [tuple(one.shape[2:]) for one in maps] == [
                tuple(math.ceil(n / s) for n in size) for s in ours.strides
            ]
            assert (maps[-1] - hidden[-1]).abs().max() <= 1e-5 * max(1, hidden[-1].abs().max())


@pytest.mark.parametrize("second", [False, True])
def test_the_backbone_of_transformers_classifier_and_a_classifier_of_ours(second: bool, tmp_path: Path) -> None:
    config, classifier, name = (
        (Swinv2Config, Swinv2ForImageClassification, "swinv2")
        if second
        else (SwinConfig, SwinForImageClassification, "swin")
    )
    theirs = shaken(classifier(config(**THREE, window_size=4, image_size=64, num_labels=5)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load_backbone(tmp_path / "theirs")
    method = Supervised(ours, 5)
    method.head.load_state_dict(theirs.classifier.state_dict())
    export(method, "hf", tmp_path / "back", classes=[*"abcde"])
    again, told = classifier.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.id2label == dict(enumerate("abcde"))
    assert again.config.model_type == name
    images = pictures((64, 64))
    with torch.no_grad():
        wanted = theirs(images).logits
        assert (method.eval().logits(images) - wanted).abs().max() <= 1e-5
        assert (again.eval()(images).logits - wanted).abs().max() <= 1e-5


# --- timm: of sizes whose shifted stages are whole windows, because it shifts before it pads ---

TIMM_CASES: dict[str, tuple[type, dict[str, Any], list[Size]]] = {
    "v1": (SwinTransformer, {"depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 4, "img_size": 64}, [(64, 64)]),
    "v1, wide": (SwinTransformer, {"depths": (2, 2, 1), "num_heads": (1, 2, 4), "window_size": 4, "img_size": 64}, [(64, 128), (96, 64)]),
    "v1, odd": (SwinTransformer, {"depths": (2, 1, 1), "num_heads": (1, 2, 2), "window_size": 3, "img_size": 36}, [(36, 36), (36, 60)]),
    "v1, smaller windows at last": (
        SwinTransformer,
        {"depths": (2, 2, 2), "num_heads": (2, 2, 4), "window_size": 4, "img_size": 16, "patch_size": 2, "qkv_bias": False,
         "mlp_ratio": 3.0},
        [(16, 16)],
    ),
    "v2": (SwinTransformerV2, {"depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 4, "img_size": 64}, [(64, 64)]),
    "v2, odd": (SwinTransformerV2, {"depths": (2, 1, 1), "num_heads": (1, 2, 2), "window_size": 3, "img_size": 36}, [(36, 36), (36, 60)]),
    "v2, other windows before": (
        SwinTransformerV2,
        {"depths": (2, 2), "num_heads": (1, 2), "window_size": 8, "img_size": 32, "pretrained_window_sizes": (4, 2)},
        [(32, 32)],
    ),
}  # fmt: skip


def timms(case: str, classes: int = 0) -> Any:
    kind, how, _ = TIMM_CASES[case]
    return shaken(kind(**{"patch_size": 4, "embed_dim": 8, "num_classes": classes, "strict_img_size": False} | how))


@pytest.mark.parametrize("case", TIMM_CASES)
def test_what_timm_wrote_gives_the_same_and_goes_back(case: str, tmp_path: Path) -> None:
    theirs, (kind, how, sizes) = timms(case), TIMM_CASES[case]
    form, name = (
        (swin.TIMM, "swin_tiny_patch4_window7_224")
        if kind is SwinTransformer
        else (swinv2.TIMM, "swinv2_tiny_window8_256")
    )
    theirs.pretrained_cfg = timm.get_pretrained_cfg(name).to_dict()
    told = {"architecture": name, "model_args": {"embed_dim": 8, "patch_size": 4, "num_classes": 0} | how}
    save_for_hf(theirs, str(tmp_path / "theirs"), told, safe_serialization=True)
    ours: Any = load(tmp_path / "theirs")
    assert ours.normalization == IMAGENET
    for size in sizes:
        compare(ours, form, theirs, theirs, size, {})
    export(ours, "timm", tmp_path / "back", image_size=how["img_size"])
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    read: Any = load(tmp_path / "back")
    for size in sizes:
        assert (again(pictures(size)) - theirs(pictures(size))).abs().max() <= 1e-5
        assert torch.equal(read.features(pictures(size)), ours.features(pictures(size)))


@pytest.mark.parametrize("name, window, side, before", [
    ("swinv2_tiny_window8_256", 8, 256, None),
    ("swinv2_base_window12_192", 12, 192, None),
    ("swinv2_base_window12to16_192to256", 16, 256, (12, 12, 12, 6)),
])  # fmt: skip
def test_timms_named_models_tell_their_windows_by_name(
    name: str, window: int, side: int, before: Any, tmp_path: Path
) -> None:
    theirs = timm.create_model(name, embed_dim=8, num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1), num_classes=3)
    save_file(shaken(theirs).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(SensoriumError, match=r"don't tell its windows; load the directory with timm's config\.json"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 3}))
    ours: Any = load(tmp_path)
    assert ours.windows == tuple(block.blocks[0].attn.window_size[0] for block in theirs.layers)
    assert ours.windows[0] == window
    assert ours.references == (before or ours.windows)
    feature = theirs.forward_head(theirs.forward_features(pictures((side, side))), pre_logits=True)
    assert (ours.features(pictures((side, side))) - feature).abs().max() <= 1e-5


@pytest.mark.parametrize("case", ["v1", "v2"])
def test_a_classifier_of_ours_opens_in_timm(case: str, tmp_path: Path) -> None:
    theirs = timms(case, 5)
    told = {"architecture": "swinv2_tiny_window8_256", "model_args": TIMM_CASES[case][1]}
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    if case == "v2":
        (tmp_path / "config.json").write_text(json.dumps(told))
    method = Supervised(load_backbone(tmp_path if case == "v2" else tmp_path / "model.safetensors"), 5).eval()
    method.head.load_state_dict(theirs.head.fc.state_dict())
    export(method, "timm", tmp_path / "back", classes=[*"abcde"], image_size=64)
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    with torch.no_grad():
        wanted = theirs(pictures((64, 64)))
        assert (method.logits(pictures((64, 64))) - wanted).abs().max() <= 1e-5
        assert (again(pictures((64, 64))) - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("change, why", [
    ({"act_layer": "silu"}, r"model_args\.act_layer 'silu' is not supported"),
    ({"norm_layer": "rmsnorm"}, r"model_args\.norm_layer 'rmsnorm' is not supported"),
    ({"always_partition": True}, r"model_args\.always_partition 'True' is not supported"),
])  # fmt: skip
def test_arguments_of_timm_that_change_numbers_are_refused(change: dict, why: str, tmp_path: Path) -> None:
    save_file(timms("v1").state_dict(), tmp_path / "model.safetensors")
    told = {"architecture": "swin_tiny_patch4_window7_224", "model_args": change}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(SensoriumError, match=rf"config\.json: {why}"):
        load(tmp_path)


# --- torchvision ---


@pytest.mark.parametrize(
    "depths, heads, window", [([2, 2], [1, 2], 4), ([2, 1, 3], [2, 2, 4], 3), ([1, 2, 2], [1, 1, 2], 7)]
)
def test_what_torchvision_wrote_gives_the_same(
    depths: list[int], heads: list[int], window: int, tmp_path: Path
) -> None:
    """Of whole patches; odd maps and any number of windows."""
    theirs = shaken(VisionSwin([4, 4], 8, depths, heads, [window, window], num_classes=3))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours: Any = load(tmp_path / "w.pth")
    assert ours.windows == (window,) * len(depths)
    theirs.head = nn.Identity()
    for size in ((64, 64), (36, 52), (100, 28)):
        compare(ours, swin.TORCHVISION, theirs, theirs, size, {})
    back, state = write(swin.TORCHVISION, ours), theirs.state_dict()
    assert all("relative_position_index" in name for name in state.keys() - back.keys())
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


def test_torchvisions_second_version_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = swin_v2_t().state_dict()
    state = {
        name: torch.zeros(tensor.shape[:1])
        for name, tensor in shapes.items()
        if name.startswith(("features.0", "features.1.0"))
    }
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(SensoriumError, match=r"w\.pth: torchvision's Swin V2; take timm's or Hugging Face's"):
        load(tmp_path / "w.pth")


# --- the authors ---


def authors(second: bool, windows: tuple[int, int] = (4, 4), before: int = 0, head: bool = True) -> dict[str, Tensor]:
    """A state dict of the names and shapes of the authors' code, with its buffers: two stages of two blocks, patches of 4."""
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (8, 3, 4, 4), "patch_embed.proj.bias": (8,)}
    norms, state = ["patch_embed.norm", "norm"], {}
    for s, (width, heads, window) in enumerate(zip((8, 16), (1, 2), windows, strict=True)):
        for i in (0, 1):
            at = f"layers.{s}.blocks.{i}."
            for name, out, into in (
                ("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.fc1", 4 * width, width),
                ("mlp.fc2", width, 4 * width),
            ):  # fmt: skip
                shapes |= {f"{at}{name}.weight": (out, into)}
                shapes |= {} if second and name == "attn.qkv" else {f"{at}{name}.bias": (out,)}
            norms += [f"{at}norm1", f"{at}norm2"]
            if second:
                shapes |= {
                    f"{at}attn.logit_scale": (heads, 1, 1),
                    f"{at}attn.q_bias": (width,),
                    f"{at}attn.v_bias": (width,),
                }
                shapes |= {f"{at}attn.cpb_mlp.0.weight": (512, 2), f"{at}attn.cpb_mlp.0.bias": (512,)}
                shapes |= {f"{at}attn.cpb_mlp.2.weight": (heads, 512)}
                far = torch.arange(1.0 - window, window) / ((before or window) - 1) * 8
                far = torch.stack(torch.meshgrid(far, far, indexing="ij"), dim=-1)[None]
                state[f"{at}attn.relative_coords_table"] = far.sign() * torch.log2(far.abs() + 1) / math.log2(8)
            else:
                shapes[f"{at}attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
            state[f"{at}attn.relative_position_index"] = torch.zeros(window**2, window**2, dtype=torch.long)
        state[f"layers.{s}.blocks.1.attn_mask"] = torch.zeros(4, window**2, window**2)
    shapes |= {"layers.0.downsample.reduction.weight": (16, 32)}
    vectors = {
        f"{name}.{kind}": (16,) if name == "norm" or "layers.1" in name else (8,)
        for name in norms
        for kind in ("weight", "bias")
    }
    merged = 16 if second else 32
    shapes |= vectors | {f"layers.0.downsample.norm.{kind}": (merged,) for kind in ("weight", "bias")}
    shapes |= {"head.weight": (7, 16), "head.bias": (7,)} if head else {}
    return state | {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("windows, side, before", [((4, 4), 32, 0), ((8, 4), 32, 0), ((4, 4), 32, 3)])
@pytest.mark.parametrize("second", [False, True])
def test_the_authors_files(
    second: bool, windows: tuple[int, int], side: int, before: int, head: bool, tmp_path: Path
) -> None:
    """Held to timm, whose own conversion fills its network with the same file."""
    torch.manual_seed(2)
    state = authors(second, windows, before, head)
    torch.save({"model": state, "epoch": 3}, tmp_path / "swin.pth")
    how = {"img_size": side, "window_size": max(windows), "depths": (2, 2), "num_heads": (1, 2), "embed_dim": 8}
    if second:
        theirs: Any = SwinTransformerV2(**how, num_classes=7 * head, pretrained_window_sizes=(before, before)).eval()
        theirs.load_state_dict(checkpoint_filter_fn_v2({"model": dict(state)}, theirs))
    else:
        theirs = SwinTransformer(**how, num_classes=7 * head).eval()
        theirs.load_state_dict(checkpoint_filter_fn({"model": dict(state)}, theirs))
    ours: Any = load(tmp_path / "swin.pth")
    assert ours.windows == windows
    assert not second or ours.references == ((before, before) if before else windows)
    images = pictures((side, side))
    wanted = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    assert (ours.features(images) - wanted).abs().max() <= 1e-5
    back = write(swinv2.AUTHORS if second else swin.AUTHORS, ours)
    assert {n for n in state if "relative_" not in n and "mask" not in n and "head" not in n} == {
        n for n in back if not n.endswith("bias_table")
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


# --- broken files, and what a format does not hold ---


def test_what_a_broken_configuration_has_wrong_is_said(tmp_path: Path) -> None:
    shaken(SwinModel(SwinConfig(**THREE, window_size=4))).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"depths": [2, 1, 2]}, r"depths says \[2, 1, 2\], the weights have \[2, 2, 2\]"),
        ({"num_heads": [1, 2]}, "the number of num_heads says 2, the weights have 3"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"num_channels": 1}, "num_channels '1' is not supported"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings 'True' is not supported"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps '1e-06' is not supported"),
        ({"patch_size": "4"}, "patch_size '4' is not an integer"),
        ({"window_size": 1 << 15}, r"windows of \(32768, .*\): at most 64 tokens"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=rf"config\.json: .*{said}"):
            load(tmp_path)
    for change, said in (
        ({"window_size": 5}, r"'encoder\.layers\.0\.blocks\.0\.attention\.self\.relative_position_bias_table' has shape \[49, 1\]"),
        ({"embed_dim": 16}, r"'embeddings\.patch_embeddings\.projection\.weight' has shape \[8, 3, 4, 4\]"),
        ({"qkv_bias": False}, r"'encoder\.layers\.0\.blocks\.0\.attention\.self\.key\.bias' is unknown"),
        ({"model_type": "swinv2"}, r"'encoder\.layers\.0\.blocks\.0\.attention\.self\.logit_scale' is missing"),
    ):  # fmt: skip
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=rf"{tmp_path.name}: {said}"):
            load(tmp_path)


@pytest.mark.parametrize("name", ["patch_embed.norm.bias", "layers.2.downsample.reduction.weight", "norm.weight"])
def test_damaged_files_of_timm_name_the_tensor(name: str, tmp_path: Path) -> None:
    state = timms("v1").state_dict()
    torch.save({n: t for n, t in state.items() if n != name}, tmp_path / "w.pth")
    with pytest.raises(SensoriumError, match=rf"w\.pth: '{name}' is missing"):
        load(tmp_path / "w.pth")
    torch.save(state | {name: torch.zeros(5)}, tmp_path / "w.pth")
    with pytest.raises(SensoriumError, match=rf"w\.pth: '{name}' has shape \[5\]"):
        load(tmp_path / "w.pth")
    table = "layers.1.blocks.0.attn.relative_position_bias_table"
    torch.save(state | {table: torch.zeros(48, 2)}, tmp_path / "w.pth")
    with pytest.raises(
        SensoriumError, match=rf"w\.pth: '{table}' has 48 rows, which are the distances of no square window"
    ):
        load(tmp_path / "w.pth")
    torch.save(state | {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 5)}, tmp_path / "w.pth")
    with pytest.raises(
        SensoriumError, match=r"w\.pth: 'patch_embed\.proj\.weight' has 3 input channels and patches of 4x5"
    ):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize("network, to, why", [
    (Swin((1, 1), 8, (1, 1), (4, 2)), "hf", r"one window for all stages; this network \(4, 2\)"),
    (Swin((1, 1), 8, (1, 1), (2, 4)), "timm", r"windows no larger than its maps, and else equal; this network \(2, 4\)"),
    (SwinV2((1, 1), 8, (1, 1), (2, 4)), "hf", r"windows no larger than its maps, and else equal; this network \(2, 4\)"),
    (Swin((1, 1), 8, (1, 1), (2, 2), eps=1e-6), "timm", "norms with an epsilon of 1e-05, this network of 1e-06"),
])  # fmt: skip
def test_what_a_library_cannot_hold_is_refused(network: nn.Module, to: str, why: str, tmp_path: Path) -> None:
    for part in (network, Supervised(network, 3)):
        with pytest.raises(SensoriumError, match=rf"{why}.*Use --to safetensors"):
            export(part, to, tmp_path / "x")
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", [Swin, SwinV2])
def test_a_classifier_there_and_back_and_onnx(kind: type, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="ONNX is an extra")
    ours = shaken(Supervised(kind((2, 2), 8, (1, 2), (4, 3), patch=2), 3))
    export(ours, "safetensors", tmp_path / "own", image_size=21)
    images = torch.rand(5, 3, 21, 21)
    again: Any = load(tmp_path / "own")
    assert torch.equal(again.logits(images), ours.logits(images))
    path = export(ours.backbone, "onnx", tmp_path / "m.onnx", image_size=21)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})[0]
    assert (torch.from_numpy(found) - ours.backbone.features(images)).abs().max() <= 1e-5
    assert load_file(tmp_path / "own" / "model.safetensors").keys() == ours.state_dict().keys()
