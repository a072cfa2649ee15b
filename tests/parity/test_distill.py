"""The losses of distillation against lightly's negative cosine similarity, torch's smooth L1, and the equations written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.selfsup.distill.method import ALPHA, BETA, Distill, cosine_loss, smaller, spatial_loss

SHAPES = [(1, 5), (2, 16), (7, 33), (64, 256)]
MAPS = [(1, 3, 1, 1), (2, 8, 4, 4), (5, 17, 3, 7)]


def largest(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def written_out(p: Tensor, u: Tensor) -> Tensor:
    """1 - cos of each row, over the second dimension."""
    dot, lengths = (p * u).sum(1), p.square().sum(1).sqrt() * u.square().sum(1).sqrt()
    return (1 - dot / lengths).mean()


def both_ways(ours, theirs, *inputs: Tensor) -> None:
    """Outputs within 1e-5, gradients of the prediction within 1e-4."""
    found = []
    for loss in (ours, theirs):
        first, *others = (x.clone() for x in inputs)
        value = loss(first.requires_grad_(), *others)
        (gradient,) = torch.autograd.grad(value, first)
        found.append((value.detach(), gradient))
    (a, da), (b, db) = found
    tight = inputs[0].dtype == torch.float64
    assert largest(a, b) <= (1e-12 if tight else 1e-5)
    assert largest(da, db) <= (1e-12 if tight else 1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("near", [False, True])
def test_cosine_loss_is_lightlys_and_the_equation(shape: tuple[int, ...], dtype: torch.dtype, near: bool) -> None:
    torch.manual_seed(shape[0])
    u = torch.randn(shape, dtype=dtype)
    p = u + 0.1 * torch.randn_like(u) if near else 3 * torch.randn_like(u)
    theirs = NegativeCosineSimilarity()
    both_ways(cosine_loss, lambda a, b: 1 + theirs(a, b), p, u)
    both_ways(cosine_loss, written_out, p, u)


@pytest.mark.parametrize("shape", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_spatial_loss_is_the_equation(shape: tuple[int, ...], dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(shape[1])
    g, v = scale * torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)

    def reference(g: Tensor, v: Tensor) -> Tensor:
        each = g.movedim(1, -1).flatten(0, 2), v.movedim(1, -1).flatten(0, 2)
        off = (g - v).abs()
        smooth = torch.where(off < 1, off.square() / 2, off - 0.5).mean()
        return 0.9 * (1 + NegativeCosineSimilarity()(*each)) + 0.1 * smooth

    both_ways(spatial_loss, reference, g, v)
    assert (ALPHA, BETA) == (0.9, 0.1)


@pytest.mark.parametrize("ours, theirs", [((4, 4), (7, 7)), ((6, 3), (2, 9)), ((5, 5), (5, 5)), ((1, 1), (14, 14))])
def test_both_maps_are_averaged_to_the_smaller_grid(ours: tuple[int, int], theirs: tuple[int, int]) -> None:
    torch.manual_seed(0)
    a, b = smaller(torch.randn(2, 3, *ours), torch.randn(2, 3, *theirs))
    assert a.shape == b.shape == (2, 3, min(ours[0], theirs[0]), min(ours[1], theirs[1]))
    whole = torch.randn(2, 3, 6, 6)
    assert largest(smaller(whole, torch.zeros(1, 3, 2, 3))[0], F.avg_pool2d(whole, (3, 2))) <= 1e-6


class Plain:
    """The teacher of a test: a network and nothing else."""

    def __init__(self, network: nn.Module) -> None:
        self.network: Any = network.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        return self.network.features(images)

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.features(images), self.network.maps(images)[-1]


def pair(student: str, teacher: str, side: int, spatial: float, dtype: torch.dtype) -> tuple[Distill, Plain, Tensor]:
    torch.manual_seed(side)
    made = {
        "resnet": lambda width: ResNet((1, 1), width, stem="small"),
        "vit": lambda width: ViT(side, side // 4, 4 * width, 2, 2),
        "vit of means": lambda width: ViT(side, side // 2, 4 * width, 2, 2, pool="mean"),
        "vit with fc_norm": lambda width: ViT(side, side // 4, 4 * width, 1, 2, pool="fc_norm"),
    }
    master = Plain(made[teacher](6).to(dtype))
    network = made[student](4).to(dtype)
    width = master.network.dim
    method = Distill(network, nn.Linear(network.dim, width), master, width, spatial=spatial).to(dtype)
    return method, master, torch.randn(6, 3, side, side, dtype=dtype)


PAIRS = [("resnet", "vit"), ("vit", "resnet"), ("resnet", "resnet"), ("vit of means", "vit with fc_norm")]


@pytest.mark.parametrize("student, teacher", PAIRS)
@pytest.mark.parametrize("side", [8, 12])
@pytest.mark.parametrize("spatial", [0.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_whole_step_against_the_equations(
    student: str, teacher: str, side: int, spatial: float, dtype: torch.dtype
) -> None:
    """Loss, and the gradient of every parameter of the student and its heads, written with torch alone."""
    method, master, x = pair(student, teacher, side, spatial, dtype)
    method.train()
    loss = method({"image": x})["loss"]
    names, parameters = zip(*((n, p) for n, p in method.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(loss, parameters)

    def standardized(t: Tensor) -> Tensor:
        over = [0, *range(2, t.ndim)]
        mean, var = t.mean(over, keepdim=True), t.var(over, correction=0, keepdim=True)
        return (t - mean) / (var + 1e-5).sqrt()

    network, targets = method.backbone, master.network
    want = written_out(method.head(network.features(x)), standardized(targets.features(x)))
    if spatial:
        g = F.conv2d(network.maps(x)[-1], method.map_head.weight, method.map_head.bias)
        v = standardized(targets.maps(x)[-1])
        size = [min(a, b) for a, b in zip(g.shape[-2:], v.shape[-2:], strict=True)]
        g, v = (F.adaptive_avg_pool2d(m, size) for m in (g, v))
        want = want + spatial * (0.9 * written_out(g, v) + 0.1 * F.smooth_l1_loss(g, v))
    theirs = torch.autograd.grad(want, parameters)
    tight = dtype == torch.float64
    assert largest(loss, want) <= (1e-12 if tight else 1e-5)
    for name, a, b in zip(names, found, theirs, strict=True):
        assert largest(a, b) <= (1e-10 if tight else 1e-4), name


@pytest.mark.parametrize("spatial", [0.0, 1.0])
def test_under_bfloat16_the_loss_is_of_float32(spatial: float) -> None:
    """Only the networks are in bfloat16: standardization, cosine and smooth L1 are as of the same outputs in float32."""
    method, master, x = pair("resnet", "resnet", 8, spatial, torch.float32)
    method.train()
    with torch.autocast("cpu", torch.bfloat16):
        whole = method({"image": x})
        with torch.no_grad():
            t, t_map = (one.float() for one in master.features_and_map(x))
            s, s_map = method.backbone.features_and_map(x)
            p, g = method.head(s).float(), method.map_head(s_map).float() if spatial else None
    want = written_out(p, (t - t.mean(0)) / (t.var(0, correction=0) + 1e-5).sqrt())
    if spatial:
        v = (t_map - t_map.mean((0, 2, 3), keepdim=True)) / (
            t_map.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
        ).sqrt()
        want = want + 0.9 * written_out(g, v) + 0.1 * F.smooth_l1_loss(g, v)
    assert whole["loss"].dtype == torch.float32
    assert largest(whole["loss"], want) <= 1e-5
    exact = method({"image": x})["loss"]
    assert largest(whole["loss"], exact) <= 0.05 * exact.item()
