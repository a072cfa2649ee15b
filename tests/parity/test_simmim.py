"""SimMIM against transformers' networks for masked image modeling, read from files that they wrote; and the authors' masks."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    SwinConfig,
    SwinForMaskedImageModeling,
    Swinv2Config,
    Swinv2ForMaskedImageModeling,
    ViTConfig,
    ViTForMaskedImageModeling,
)

import sensorium
from sensorium.errors import SensoriumError
from sensorium.networks.swin import Swin
from sensorium.networks.swinv2 import SwinV2
from sensorium.networks.vit import ViT
from sensorium.published import export, load_backbone
from sensorium.published.format import HALF, IMAGENET, write
from sensorium.published.registry import formats
from sensorium.selfsup.simmim.method import SimMIM, usual_unit

KINDS: dict[str, tuple[Any, Any, type]] = {
    "vit": (ViTConfig, ViTForMaskedImageModeling, ViT),
    "swin": (SwinConfig, SwinForMaskedImageModeling, Swin),
    "swinv2": (Swinv2Config, Swinv2ForMaskedImageModeling, SwinV2),
}
THREE: dict[str, Any] = {"depths": [2, 2, 2], "num_heads": [1, 2, 4], "embed_dim": 8, "image_size": 64, "patch_size": 4}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {  # kind, configuration, mask unit in patches
    "ViT 32/4": ("vit", {"image_size": 32, "patch_size": 4, "hidden_size": 48, "num_hidden_layers": 3,
                         "num_attention_heads": 3, "intermediate_size": 96, "encoder_stride": 4}, 2),
    "ViT 33/11": ("vit", {"image_size": 33, "patch_size": 11, "hidden_size": 40, "num_hidden_layers": 2,
                          "num_attention_heads": 5, "intermediate_size": 60, "encoder_stride": 11, "qkv_bias": False}, 1),
    "ViT 21/3": ("vit", {"image_size": 21, "patch_size": 3, "hidden_size": 24, "num_hidden_layers": 1,
                         "num_attention_heads": 2, "intermediate_size": 96, "encoder_stride": 3}, 1),
    "Swin of three stages": ("swin", {**THREE, "window_size": 4, "encoder_stride": 16}, 4),
    "Swin of two stages": ("swin", {"depths": [2, 3], "num_heads": [2, 2], "embed_dim": 12, "image_size": 12, "patch_size": 2,
                                    "window_size": 3, "mlp_ratio": 2.0, "qkv_bias": False, "encoder_stride": 4}, 1),
    "Swin with patches of 3": ("swin", {"depths": [1, 2, 1, 2], "num_heads": [1, 1, 2, 4], "embed_dim": 4, "image_size": 48,
                                        "patch_size": 3, "window_size": 2, "encoder_stride": 24}, 2),
    "Swin V2": ("swinv2", {**THREE, "window_size": 4, "encoder_stride": 16}, 2),
}  # fmt: skip


def shaken(model: nn.Module) -> Any:
    """Every number its own, so that nothing agrees by being zero or one; what is fixed stays."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def pair(case: str, folder: Path) -> tuple[SimMIM, Any]:
    kind, numbers, times = CASES[case]
    config, model, _ = KINDS[kind]
    theirs = shaken(model(config(**numbers)))
    theirs.save_pretrained(folder)
    ours: Any = sensorium.load(folder)
    ours.mask_unit = times * numbers["patch_size"]
    return ours, theirs


def batch(ours: SimMIM, side: int) -> tuple[Tensor, Tensor]:
    rows, columns = ours.units(side, side)
    return torch.randn(3, 3, side, side), torch.rand(3, rows * columns)


@pytest.mark.parametrize("case", CASES)
def test_mask_prediction_loss_and_gradients(case: str, tmp_path: Path) -> None:
    ours, theirs = pair(case, tmp_path / "theirs")
    kind, numbers, _ = CASES[case]
    assert type(ours.backbone) is KINDS[kind][2]
    assert ours.normalization == (HALF if kind == "vit" else IMAGENET)
    images, noise = batch(ours, numbers["image_size"])
    mask = ours.mask(images, noise)
    assert 0 < int(mask.sum()) < mask.numel()
    wanted = theirs(images, bool_masked_pos=mask.flatten(1))
    got = ours({"image": images, "noise": noise})
    torch.testing.assert_close(ours.predict(images, mask), wanted.reconstruction, atol=1e-5, rtol=0)
    torch.testing.assert_close(got["loss"], wanted.loss, atol=1e-5, rtol=0)

    got["loss"].backward()
    wanted.loss.backward()
    graded = copy.deepcopy(theirs)
    for mine, their in zip(graded.parameters(), theirs.parameters(), strict=True):
        mine.data = torch.zeros_like(their) if their.grad is None else their.grad
    graded.save_pretrained(tmp_path / "graded")
    expected = load_file(tmp_path / "graded" / "model.safetensors")
    form = next(one for one in formats() if one.kinds == (kind,) and one.network is SimMIM)
    found = write(form, ours, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert gradient.abs().max() > 0 or name.endswith("key.bias"), name


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case: str, tmp_path: Path) -> None:
    ours, theirs = pair(case, tmp_path / "theirs")
    kind, numbers, _ = CASES[case]
    ours.mask_ratio = 0.3
    export(ours, "hf", tmp_path / "back")
    again, told = KINDS[kind][1].from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images, noise = batch(ours, numbers["image_size"])
    mask = ours.mask(images, noise).flatten(1)
    with torch.no_grad():
        assert torch.equal(again.eval()(images, bool_masked_pos=mask).loss, theirs(images, bool_masked_pos=mask).loss)
    read: Any = sensorium.load(tmp_path / "back")
    assert (read.mask_unit, read.mask_ratio) == (ours.mask_unit, 0.3)
    assert torch.equal(load_backbone(tmp_path / "back").features(images), ours.features(images))


def test_a_head_for_another_stride_is_refused(tmp_path: Path) -> None:
    config, model, _ = KINDS["vit"]
    model(config(**CASES["ViT 32/4"][1] | {"encoder_stride": 8})).save_pretrained(tmp_path)
    with pytest.raises(SensoriumError, match="encoder_stride says 8, the weights have 4"):
        sensorium.load(tmp_path)


@pytest.mark.parametrize(
    "side, unit, patch, ratio", [(192, 32, 4, 0.6), (224, 32, 16, 0.6), (64, 8, 4, 0.4), (33, 11, 11, 0.5)]
)
def test_masks_are_the_authors(side: int, unit: int, patch: int, ratio: float) -> None:
    """``MaskGenerator`` of microsoft/SimMIM (data/data_simmim.py): a permutation of the units, of which the first
    ceil(units * ratio) are masked, and each unit's patches with it."""
    torch.manual_seed(0)
    method = SimMIM(ViT(side, patch, 16, 1, 1), mask_unit=unit, mask_ratio=ratio)
    rows, noise = side // unit, torch.rand(5, (side // unit) ** 2)
    count = math.ceil(rows**2 * ratio)
    for found, ranked in zip(method.mask(torch.zeros(5, 3, side, side), noise), noise, strict=True):
        mask = np.zeros(rows**2, dtype=bool)
        mask[np.argsort(-ranked.numpy())[:count]] = True
        wanted = mask.reshape(rows, rows).repeat(unit // patch, axis=0).repeat(unit // patch, axis=1)
        assert np.array_equal(found.numpy(), wanted)


@pytest.mark.parametrize(
    "side, patch, unit", [(192, 4, 32), (192, 16, 32), (224, 4, 32), (224, 16, 32), (32, 4, 4), (8, 2, 2)]
)
def test_the_usual_unit_is_the_papers(side: int, patch: int, unit: int) -> None:
    assert usual_unit(side, patch) == unit
    assert usual_unit(33, 2) == 6  # no multiple of the patch divides the side
