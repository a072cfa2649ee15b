"""Margin contrastive against eq. 4 of its paper, written plainly, pair by pair."""

from itertools import combinations

import pytest
import torch

from sensorium.selfsup.margin_contrastive.method import margin_loss


def largest(a, b):
    return (a - b).abs().max().item()


def plain(z1, z2, m):
    """The mean of eq. 4 over similar pairs, plus that over dissimilar ones."""

    def loss(Y, a, b):
        D = torch.linalg.vector_norm(a - b)
        return (1 - Y) * D**2 / 2 + Y * torch.relu(m - D) ** 2 / 2

    views = [(i, z) for z_v in (z1, z2) for i, z in enumerate(z_v)]
    similar = [loss(0, a, b) for (i, a), (j, b) in combinations(views, 2) if i == j]
    dissimilar = [loss(1, a, b) for (i, a), (j, b) in combinations(views, 2) if i != j]
    return torch.stack(similar).mean() + torch.stack(dissimilar).mean()


@pytest.mark.parametrize("batch, width", [(2, 5), (3, 1), (7, 33), (12, 2)])
@pytest.mark.parametrize("margin", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("scale", [0.05, 0.5, 3])
def test_values_and_gradients(batch, width, margin, scale):
    torch.manual_seed(batch)
    drawn = scale * torch.randn(2, batch, width)
    ours = [z.clone().requires_grad_() for z in drawn]
    theirs = [z.double().requires_grad_() for z in drawn]
    got, want = margin_loss(*ours, margin), plain(*theirs, margin)
    assert got.dtype == torch.float32
    assert largest(got, want) <= 1e-5 * max(1, want.item())
    got.backward()
    want.backward()
    assert all(w.grad.abs().max() > 0 for w in theirs)
    assert all(largest(z.grad, w.grad) <= 1e-4 for z, w in zip(ours, theirs, strict=True))


def test_bfloat16_autocast():
    torch.manual_seed(1)
    z1, z2 = torch.randn(2, 7, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = margin_loss(z1, z2, 3.0)
    assert got.dtype == torch.float32
    assert largest(got, plain(z1.double(), z2.double(), 3.0)) <= 1e-4
