"""SimMIM by itself: what it masks, predicts, shows and refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sensorium.abilities import Encoder, Reconstructor
from sensorium.networks.beit import BEiT
from sensorium.networks.resnet import ResNet
from sensorium.networks.swin import Swin
from sensorium.networks.vit import ViT
from sensorium.selfsup.simmim.method import SimMIM


def small(backbone: Any = None, unit: int = 8, **more: Any) -> SimMIM:
    torch.manual_seed(0)
    method = SimMIM(backbone or ViT((12, 20), 4, 24, 2, 2, pool="mean"), mask_unit=unit, **more)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


def plain(method: SimMIM, images: Tensor, noise: Tensor) -> Tensor:
    """The paper's steps, pixel by pixel: tokens of masked patches replaced, L1 of masked pixels, each image by itself."""
    network: Any = method.backbone
    _, _, height, width = images.shape
    columns = -(-width // method.mask_unit)
    losses = []
    for image, ranked in zip(images, noise, strict=True):
        masked = set(ranked.argsort(descending=True)[: method.masked(len(ranked))].tolist())
        tokens = network.embed(image[None])[0]
        place = network.pos_embed[0, 1:]
        for i in range(len(tokens)):
            row, column = divmod(i, width // 4)
            if row * 4 // method.mask_unit * columns + column * 4 // method.mask_unit in masked:
                tokens[i] = method.mask_token[0, 0] + place[i]
        found = network.encode(tokens[None])[0, 1:] @ method.head.weight[:, :, 0, 0].T + method.head.bias
        errors = [
            (found[y // 4 * (width // 4) + x // 4, color * 16 + y % 4 * 4 + x % 4] - image[color, y, x]).abs()
            for y in range(height)
            for x in range(width)
            for color in range(3)
            if y // method.mask_unit * columns + x // method.mask_unit in masked
        ]
        losses.append(torch.stack(errors).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("unit", [4, 8])  # units of 8 reach beyond the image below and at the right
def test_equals_the_plain_form(unit: int) -> None:
    method = small(unit=unit)
    rows, columns = method.units(12, 20)
    x, noise = torch.randn(3, 3, 12, 20), torch.rand(3, rows * columns)
    got, wanted = method({"image": x, "noise": noise})["loss"], plain(method, x, noise)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    names = [name for name, p in method.named_parameters() if p.requires_grad]
    parameters = [method.get_parameter(name) for name in names]
    pairs = zip(torch.autograd.grad(got, parameters), torch.autograd.grad(wanted, parameters), strict=True)
    for name, (ours, theirs) in zip(names, pairs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


NETWORKS: dict[str, Any] = {
    "vit": lambda: ViT((16, 24), 4, 24, 2, 2),
    "beit": lambda: BEiT((16, 24), 4, 24, 2, 2),
    "swin": lambda: Swin((2, 1), 8, (1, 2), (2, 2), patch=2),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_masked_does_not_reach_the_prediction(network: str) -> None:
    method = small(NETWORKS[network]()).eval()
    x = torch.randn(2, 3, 16, 24)
    mask = method.mask(x, torch.rand(2, 6))
    hidden = method.pixels(mask, x)
    before = method.predict(x, mask)
    assert before.shape == x.shape
    assert torch.equal(method.predict(torch.where(hidden, 9.0, x), mask), before)
    assert (method.predict(torch.where(hidden, x, 9.0), mask) != before).any()


def test_units_that_do_not_divide_the_image() -> None:
    method = small(Swin((2, 1), 8, (1, 2), (2, 2), patch=2), unit=6)
    x = torch.randn(2, 3, 33, 21)  # 17 x 11 patches, the last ones of half a pixel's padding
    mask = method.mask(x)
    assert mask.shape == (2, 17, 11)
    assert method.pixels(mask, x).shape == (2, 1, 33, 21)
    assert method({"image": x})["loss"].isfinite()
    assert method.reconstruct(x).shape == (2, 3, 33, 63)


def test_entries_to_log_are_detached_scalars() -> None:
    method = small()
    x = torch.randn(2, 3, 12, 20)
    first, second = method({"image": x}), method({"image": x})
    assert first["loss"] != second["loss"]  # drawn anew where no noise is given
    assert first["loss"].requires_grad
    assert first["explained"].ndim == 0
    assert not first["explained"].requires_grad
    assert all(value.isfinite() for value in method({"image": torch.zeros(2, 3, 12, 20)}).values())
    torch.nn.init.zeros_(method.head.weight)
    torch.nn.init.zeros_(method.head.bias)
    assert method({"image": x})["explained"].abs() < 1e-6


@pytest.mark.parametrize("masking", ["random", "block", "grid"])
def test_pictures_show_truth_gaps_and_prediction(masking: Any) -> None:
    method = small(masking=masking, unit=4).eval()
    assert isinstance(method, Encoder)
    assert isinstance(method, Reconstructor)
    x = torch.rand(2, 3, 12, 20) + 3
    image, gaps, filled = method.reconstruct(x, seed=3).split(20, dim=-1)
    assert torch.equal(image, x)
    hidden = (gaps == 0).all(1, keepdim=True)
    assert hidden.flatten(1).sum(1).tolist() == [9 * 16, 9 * 16]  # ceil(0.6 * 15) patches of 4 x 4 pixels
    assert torch.equal(torch.where(hidden, x, gaps), x)
    mask = hidden[:, 0, ::4, ::4]
    assert torch.equal(filled, torch.where(hidden, method.predict(x, mask), x))
    assert torch.equal(method.reconstruct(x, seed=3), method.reconstruct(x, seed=3))
    assert not torch.equal(method.reconstruct(x, seed=4), method.reconstruct(x, seed=3))


@pytest.mark.parametrize("noise", [torch.rand(2, 5), torch.rand(1, 6), torch.rand(6)])
def test_noise_of_another_shape_is_refused(noise: Tensor) -> None:
    with pytest.raises(ValueError, match=r"noise must be \[2, 6\]"):
        small()({"image": torch.zeros(2, 3, 12, 20), "noise": noise})


@pytest.mark.parametrize(
    "more, told",
    [({"unit": 6}, "multiple of the patch"), ({"unit": 0}, "multiple of the patch"), ({"mask_ratio": 0.0}, "mask_ratio"),
     ({"mask_ratio": 1.0}, "mask_ratio"), ({"masking": "stripes"}, "stripes")],
)  # fmt: skip
def test_settings_that_mask_nothing_sensible_are_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        small(**more)


def test_a_mask_of_all_is_refused() -> None:
    with pytest.raises(ValueError, match="mask all of an image"):
        small(unit=20)({"image": torch.zeros(2, 3, 12, 20)})


def test_a_backbone_that_cannot_mask_is_refused() -> None:
    with pytest.raises(TypeError, match="Choose a ViT or a Swin"):
        small(ResNet((1, 1), 8))
