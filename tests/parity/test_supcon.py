"""SupCon against eq. 2 of its paper, written plainly, and against NT-Xent of lightly where no two images share a class."""

import pytest
import torch
from lightly.loss import NTXentLoss
from torch.nn import functional as F

from sensorium.selfsup.supcon.method import supcon_loss


def largest(a, b):
    return (a - b).abs().max().item()


def plain(z1, z2, labels, tau):
    """L_out, view by view: every term as the paper writes it, divided by the number of views."""
    z, classes = F.normalize(torch.cat([z1, z2]), dim=1), labels.tolist() * 2
    B, total = len(z1), 0.0
    for i in range(2 * B):
        A = [a for a in range(2 * B) if a != i]
        own_other = (i + B) % (2 * B)
        P = [p for p in A if p == own_other or (classes[p] == classes[i] and classes[i] >= 0)]
        below = sum(torch.exp(z[i] @ z[a] / tau) for a in A)
        total = total - sum(torch.log(torch.exp(z[i] @ z[p] / tau) / below) for p in P) / len(P)
    return total / (2 * B)


LABELS = {
    "classes": [0, 1, 2, 0, 1, 0, 3],
    "some unknown": [0, -1, 2, 0, -1, -1, 2],
    "none known": [-1] * 7,
    "one class": [4] * 7,
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("batch, width", [(1, 5), (2, 16), (7, 33)])
@pytest.mark.parametrize("tau", [0.07, 0.1, 0.5])
@pytest.mark.parametrize("near", [False, True])
def test_values_and_gradients(labels, batch, width, tau, near):
    torch.manual_seed(batch)
    label = torch.tensor(LABELS[labels][:batch])
    a = torch.randn(batch, width)
    b = a + 0.1 * torch.randn(batch, width) if near else 3 * torch.randn(batch, width)
    ours = [z.clone().requires_grad_() for z in (a, b)]
    theirs = [z.clone().double().requires_grad_() for z in (a, b)]
    got, want = supcon_loss(*ours, label, tau), plain(*theirs, label, tau)
    assert got.dtype == torch.float32
    assert largest(got, want) <= 1e-5
    got.backward()
    want.backward()
    for z, w in zip(ours, theirs, strict=True):
        assert largest(z.grad, w.grad) <= 1e-4 * max(1e-3, w.grad.abs().max())
    assert batch == 1 or max(w.grad.abs().max() for w in theirs) > 0


@pytest.mark.parametrize("labels", [torch.arange(9), torch.full((9,), -1)])
def test_without_shared_classes_it_is_nt_xent(labels):
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 9, 12)
    assert largest(supcon_loss(z1, z2, labels, 0.2), NTXentLoss(0.2)(z1, z2)) <= 1e-5


def test_bfloat16_autocast():
    torch.manual_seed(1)
    z1, z2 = torch.randn(2, 7, 32).bfloat16()
    label = torch.tensor(LABELS["some unknown"])
    with torch.autocast("cpu", torch.bfloat16):
        got = supcon_loss(z1, z2, label)
    assert got.dtype == torch.float32
    assert largest(got, plain(z1.double(), z2.double(), label, 0.1)) <= 1e-5
