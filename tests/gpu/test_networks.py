"""Networks compute on a GPU what they compute on the CPU: in float32 the same, in bfloat16 as closely as the CPU does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sensorium.language.causal_lm.method import CausalLM
from sensorium.networks.autoencoder import autoencoder
from sensorium.networks.dit import DiT
from sensorium.networks.resnet import resnet
from sensorium.networks.unet import UNet
from sensorium.networks.vit import vit

pytestmark = pytest.mark.gpu

Case = tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor], Tensor]


def features(network: nn.Module, x: Tensor) -> Tensor:
    return network.features(x)  # type: ignore[operator]


def velocity(network: nn.Module, x: Tensor) -> Tensor:
    return network(x, torch.linspace(0, 900, len(x), device=x.device))


def codes(network: nn.Module, x: Tensor) -> Tensor:
    encoder, decoder = network
    return decoder(encoder(x))


def logits(network: nn.Module, x: Tensor) -> Tensor:
    return network.logits(x)  # type: ignore[operator]


def pictures(side: int, count: int = 4) -> Tensor:
    return torch.randn(count, 3, side, side)


CASES: dict[str, Callable[[], Case]] = {
    "resnet-micro": lambda: (resnet("micro", 32), features, pictures(33)),
    "resnet-18": lambda: (resnet("18", 32), features, pictures(32)),
    "resnet-50": lambda: (resnet("50", 96), features, pictures(75)),
    "vit-micro": lambda: (vit("micro", 32, 4), features, pictures(32)),
    "vit-tiny, other parts": lambda: (
        vit("tiny", 48, 16, positions="rope", registers=4, parts=("gau", "layerscale")),
        features,
        pictures(48),
    ),
    "unet": lambda: (UNet((32, 64), attention=(False, True)), velocity, pictures(24)),
    "dit": lambda: (DiT(16, 4, 64, 3, 4), velocity, pictures(16)),
    "autoencoder": lambda: (nn.ModuleList(autoencoder("micro", 32)), codes, pictures(32)),
    "causal_lm": lambda: (CausalLM(50, 64, 3, 4, hidden=128, kv_heads=2), logits, torch.randint(50, (3, 37))),
}


def made(name: str) -> Case:
    """With weights that leave no branch at its initial zero."""
    torch.manual_seed(0)
    network, call, x = CASES[name]()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return network.eval(), call, x


@torch.no_grad()
def computed(case: Case, device: torch.device, *, low: bool) -> Tensor:
    network, call, x = case
    network.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
        return call(network, x.to(device)).float().cpu()


@pytest.mark.parametrize("name", CASES)
def test_float32_is_the_same(name: str, gpu: torch.device) -> None:
    case = made(name)
    here, there = (computed(case, device, low=False) for device in (torch.device("cpu"), gpu))
    assert here.std() > 1e-3
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_rounds_no_more_than_on_the_cpu(name: str, gpu: torch.device) -> None:
    """Both round each product to eight bits, but add in another order, so their errors differ and are compared by size.
    A GPU's autocast keeps norms and softmax in float32, so that its error should be the smaller; twice the CPU's, and
    2^-9, the rounding of the output itself, are allowed."""
    case = made(name)
    exact = computed(case, torch.device("cpu"), low=False)
    here, there = (computed(case, device, low=True) for device in (torch.device("cpu"), gpu))
    error, allowed = ((x - exact).norm() / exact.norm() for x in (there, here))
    assert allowed > 1e-5, "bfloat16 was not used"
    assert error <= 2 * allowed + 2**-9


@pytest.mark.parametrize("size, side", [("18", 32), ("50", 65)])
def test_a_resnet_computes_channels_last(size: str, side: int, gpu: torch.device) -> None:
    torch.manual_seed(0)
    network, x = resnet(size, 32).to(gpu).eval(), pictures(side).to(gpu)
    last = torch.channels_last
    kernels = [p for p in network.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=last) for p in kernels)
    with torch.no_grad():
        maps, others = network.maps(x), network.maps(x.contiguous(memory_format=last))
    for one, other in zip(maps, others, strict=True):
        assert one.is_contiguous(memory_format=last)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    network.features(x).sum().backward()
    assert all(p.grad is not None and p.grad.is_contiguous(memory_format=last) for p in kernels)
