"""NT-Xent and SimCLR's head against lightly's."""

import pytest
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead

from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import ProjectionHead
from sensorium.parts.learning.nt_xent import nt_xent
from sensorium.selfsup.simclr.method import SimCLR


def largest(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("batch, width", [(1, 5), (2, 16), (7, 33), (64, 128)])
@pytest.mark.parametrize("temperature", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("near", [False, True])
def test_values_and_gradients(batch, width, temperature, swap, near):
    torch.manual_seed(batch)
    a = torch.randn(batch, width)
    b = a + 0.1 * torch.randn(batch, width) if near else 3 * torch.randn(batch, width)
    ours = [z.clone().requires_grad_() for z in ((b, a) if swap else (a, b))]
    theirs = [z.clone().requires_grad_() for z in ((b, a) if swap else (a, b))]
    got, want = nt_xent(*ours, temperature)["loss"], NTXentLoss(temperature)(*theirs)
    assert largest(got, want) <= 1e-5
    got.backward()
    want.backward()
    for z, w in zip(ours, theirs, strict=True):
        # Relative to the largest gradient, which shrinks with the batch and where positives are found already.
        assert largest(z.grad, w.grad) <= 1e-4 * w.grad.abs().max() + 1e-9 / temperature


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_projection_head(layers, training):
    torch.manual_seed(0)
    ours = ProjectionHead(19, 31, 13, layers=layers)
    theirs = SimCLRProjectionHead(19, 31, 13, layers)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    # lightly's last normalization has a shift too (zero here); the authors' has none.
    assert missing.missing_keys == []
    assert missing.unexpected_keys == [f"layers.{3 * layers - 2}.bias"]

    x1 = torch.randn(9, 19, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    got, want = ours.train(training)(x1), theirs.train(training)(x2)
    assert largest(got, want) <= 1e-5
    weight = torch.randn_like(got)
    (got * weight).mean().backward()
    (want * weight).mean().backward()
    assert largest(x1.grad, x2.grad) <= 1e-4
    named = dict(theirs.named_parameters())
    assert all(largest(p.grad, named[name].grad) <= 1e-4 for name, p in ours.named_parameters())


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_method(temperature):
    torch.manual_seed(0)
    ours = SimCLR(ResNet((1, 1), 8, stem="small"), ProjectionHead(16, 12, 7), temperature=temperature)
    views = [torch.randn(5, 3, 9, 9) for _ in range(2)]
    want = NTXentLoss(temperature)(*ours.head(ours.backbone(torch.cat(views))).chunk(2))
    assert largest(ours({"views": views})["loss"], want) <= 1e-5
