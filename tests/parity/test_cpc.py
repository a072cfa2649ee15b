"""CPC's loss against the paper's formula as loops, and what its context sees."""

import math

import pytest
import torch

from sensorium.networks.resnet import ResNet
from sensorium.parts.learning.ahead import contrast
from sensorium.selfsup.cpc.method import CPC, Context, patches


def largest(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (3, 7, 6, 1), (1, 4, 3, 5)])
@pytest.mark.parametrize("k", [1, 2])
def test_the_loss_of_a_step_is_equation_4(shape, k):
    torch.manual_seed(0)
    B, E, h, w = shape
    t = torch.randn(shape, requires_grad=True)
    p = torch.randn(B, E, h - k, w, requires_grad=True)
    total, right = 0.0, 0
    for b in range(B):
        for i in range(h - k):
            for j in range(w):
                scores = torch.stack(
                    [p[b, :, i, j] @ t[n, :, y, x] for n in range(B) for y in range(h) for x in range(w)]
                )
                own = p[b, :, i, j] @ t[b, :, i + k, j]
                total = total - (own.exp() / scores.exp().sum()).log()
                right += bool(own == scores.max())
    want = total / (B * (h - k) * w)
    got, found = contrast(p, t, k)
    assert largest(got, want) <= 1e-5
    assert found.item() == pytest.approx(right / (B * (h - k) * w))
    for one, other in zip(torch.autograd.grad(got, (p, t)), torch.autograd.grad(want, (p, t)), strict=True):
        assert largest(one, other) <= 1e-4


def method(**numbers):
    torch.manual_seed(0)
    given = {"skip": 1, "steps": 3, "context_width": 6, "context_depth": 2, "targets": 5} | numbers
    return CPC(ResNet((1, 1), 8, stem="small"), 4, 2, **given)


def test_the_whole_loss_by_patches_one_at_a_time():
    """Every patch cut out by hand and encoded alone."""
    model = method(scale=0.7).eval()
    x = torch.randn(3, 3, 12, 13)
    rows, columns = range(0, 9, 2), range(0, 10, 2)
    z = torch.stack(
        [torch.stack([model.backbone.features(x[:, :, i : i + 4, j : j + 4]) for j in columns], -1) for i in rows], -2
    )
    assert largest(model.vectors(x), z) <= 1e-5
    c, t = model.context(z), model.target(z)
    losses = []
    for k, W in zip((2, 3), model.predict, strict=True):
        weight, bias = W.weight[:, :, 0, 0], W.bias
        terms = []
        for b in range(3):
            for i in range(5 - k):
                for j in range(5):
                    p = 0.7 * (weight @ c[b, :, i, j] + bias)
                    terms.append(torch.einsum("e,nehw->nhw", p, t).logsumexp((0, 1, 2)) - p @ t[b, :, i + k, j])
        losses.append(torch.stack(terms).mean())
    want = torch.stack(losses).mean()
    out = model({"image": x})
    assert largest(out["loss"], want) <= 1e-5
    assert out["ceiling"].item() == pytest.approx(math.log(75))
    assert out["information"].item() == pytest.approx(math.log(75) - out["loss"].item(), abs=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(out["loss"], parameters)
    theirs = torch.autograd.grad(want, parameters)
    assert max(largest(a, b) for a, b in zip(ours, theirs, strict=True)) <= 1e-4


@pytest.mark.parametrize("depth", [1, 3])
def test_the_context_of_a_row_sees_no_row_below(depth):
    torch.manual_seed(0)
    context = Context(5, 64, depth)
    z = torch.randn(1, 5, 6, 4, requires_grad=True)
    c = context(z)
    for row in range(6):
        (slope,) = torch.autograd.grad(c[:, :, row].square().sum(), z, retain_graph=True)
        seen = slope.abs().sum((0, 1, 3)) > 0
        assert not seen[row + 1 :].any()
        assert seen[row]
        assert seen[max(0, row - depth) : row].all()
        # In a row it sees both sides.
        (slope,) = torch.autograd.grad(c[:, :, row, 1].square().sum(), z, retain_graph=True)
        assert (slope[0, :, row].abs().sum(0)[:3] > 0).all()


def test_patches_are_those_of_the_grid():
    x = torch.randn(2, 3, 11, 9)
    found = patches(x, 4, 3)
    assert found.shape == (2, 3, 2, 3, 4, 4)
    assert torch.equal(found[1, 2, 1], x[1, :, 6:10, 3:7])
    with pytest.raises(ValueError, match="8x3 pixels is smaller than a patch of 4"):
        patches(torch.zeros(1, 3, 8, 3), 4, 2)
