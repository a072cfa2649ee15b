"""Networks that encode an image some of whose patches are masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sensorium.abilities import MaskedEncoder
from sensorium.networks.beit import BEiT
from sensorium.networks.dinov3 import DINOv3
from sensorium.networks.eva import EVA
from sensorium.networks.mean_vit import MeanViT
from sensorium.networks.swin import Swin
from sensorium.networks.swinv2 import SwinV2
from sensorium.networks.vit import ViT

NETWORKS: dict[str, Callable[[], Any]] = {
    "vit": lambda: ViT((12, 20), 4, 24, 2, 3, registers=2),
    "vit with rope": lambda: ViT((12, 20), 4, 24, 2, 3, positions="rope"),
    "vit with fc_norm": lambda: ViT((12, 20), 4, 24, 2, 3, pool="fc_norm"),
    "beit": lambda: BEiT((12, 20), 4, 24, 2, 3, absolute=True),
    "dinov3": lambda: DINOv3((12, 20), 4, 24, 2, 3, registers=1),
    "eva": lambda: EVA((12, 20), 4, 24, 2, 3),
    "mean_vit": lambda: MeanViT((12, 20), 4, 24, 2, 3, registers=1),
    "swin": lambda: Swin((2, 1), 8, (1, 2), (2, 2), patch=4),
    "swinv2": lambda: SwinV2((2, 1), 8, (1, 2), (2, 2), patch=4),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    made = NETWORKS[request.param]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def test_without_a_mask_it_is_the_normed_last_map(network: Any) -> None:
    assert isinstance(network, MaskedEncoder)
    images, token = torch.randn(2, 3, 12, 20), torch.randn(1, 1, network.channels[0])
    found = network.masked_map(images, torch.zeros(2, 3, 5, dtype=torch.bool), token)
    last = network.maps(images)[-1]
    if network.strides[0] != network.strides[-1]:  # a Swin's maps are not normed
        last = network.norm(last.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(found, last, atol=1e-6, rtol=0)


def test_a_token_that_is_a_patchs_own_embedding_changes_nothing(network: Any) -> None:
    """Of a gray image all patches have one embedding."""
    gray = torch.full((1, 3, 12, 20), 0.3)
    token = (
        network.patch_embed(gray)[:, :1]
        if hasattr(network, "patch_embed")
        else network.stem[1](network.stem[0](gray).movedim(1, -1))[:, :1, 0]
    )
    nothing, some = torch.zeros(1, 3, 5, dtype=torch.bool), torch.rand(1, 3, 5) < 0.5
    wanted = network.masked_map(gray, nothing, token)
    torch.testing.assert_close(network.masked_map(gray, some, token), wanted, atol=1e-5, rtol=0)
    assert (network.masked_map(gray, some, token + torch.randn_like(token)) - wanted).abs().max() > 1e-3
