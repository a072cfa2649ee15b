"""SimSiam's loss, heads and gradients against lightly's."""

import copy

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from torch import nn

from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.simsiam.method import SimSiam, simsiam_loss


def largest(a, b):
    return (a - b).abs().max().item()


def theirs_loss(p1, p2, z1, z2):
    criterion = NegativeCosineSimilarity()
    return 0.5 * (criterion(p1, z2.detach()) + criterion(p2, z1.detach()))


@pytest.mark.parametrize("batch, width", [(1, 5), (2, 16), (7, 33), (64, 256)])
@pytest.mark.parametrize("scale", [0.01, 1, 30])
def test_loss_and_gradients(batch, width, scale):
    torch.manual_seed(batch)
    drawn = scale * torch.randn(4, batch, width)
    ours = [t.clone().requires_grad_() for t in drawn]
    theirs = [t.clone().requires_grad_() for t in drawn]
    got, want = simsiam_loss(*ours), theirs_loss(*theirs)
    assert largest(got, want) <= 1e-5
    got.backward()
    want.backward()
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert b.grad.abs().max() > 0
        assert largest(a.grad, b.grad) <= 1e-4 * b.grad.abs().max() + 1e-9
    assert ours[2].grad is ours[3].grad is None  # stop-gradient


def projectors(dim, hidden, out):
    return mlp_head(dim, hidden, hidden, out, standardized=True), SimSiamProjectionHead(dim, hidden, out)


def predictors(dim, hidden, out):
    return mlp_head(out, hidden, out), SimSiamPredictionHead(out, hidden, out)


@pytest.mark.parametrize("pair", [projectors, predictors])
@pytest.mark.parametrize("widths", [(19, 31, 13), (64, 48, 32)])
@pytest.mark.parametrize("training", [False, True])
def test_heads(pair, widths, training):
    torch.manual_seed(0)
    ours, theirs = pair(*widths)
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
            if layer.affine:
                layer.weight.data.uniform_(0.5, 1.5)
                layer.bias.data.normal_(std=0.1)
    ours.load_state_dict({name.removeprefix("layers."): value for name, value in theirs.state_dict().items()})
    x1 = torch.randn(9, ours[0].in_features, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    got, want = ours.train(training)(x1), theirs.train(training)(x2)
    assert largest(got, want) <= 1e-5
    weight = torch.randn_like(got)
    (got * weight).mean().backward()
    (want * weight).mean().backward()
    assert largest(x1.grad, x2.grad) <= 1e-4
    named = dict(theirs.named_parameters())
    assert all(largest(p.grad, named[f"layers.{name}"].grad) <= 1e-4 for name, p in ours.named_parameters())


@pytest.mark.parametrize("batch, side", [(5, 8), (8, 11)])
def test_a_step_of_the_method(batch, side):
    """Each view is a batch of its own, as in the authors' code."""
    torch.manual_seed(0)
    projector, other_projector = projectors(16, 12, 9)
    predictor, other_predictor = predictors(16, 5, 9)
    ours = SimSiam(ResNet((1, 1), 8, stem="small"), projector, predictor)
    theirs = nn.ModuleList([copy.deepcopy(ours.backbone), other_projector, other_predictor])
    for mine, other in ((projector, other_projector), (predictor, other_predictor)):
        other.load_state_dict({f"layers.{name}": value for name, value in mine.state_dict().items()})
    for _ in range(2):
        x1, x2 = torch.randn(2, batch, 3, side, side)
        got = ours({"views": [x1, x2]})["loss"]
        z1, z2 = (theirs[1](theirs[0](x)) for x in (x1, x2))
        want = theirs_loss(theirs[2](z1), theirs[2](z2), z1, z2)
        assert largest(got, want) <= 1e-5
        ours.zero_grad()
        theirs.zero_grad()
        got.backward()
        want.backward()
        pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
        assert all(largest(p.grad, q.grad) <= 1e-4 for p, q in pairs)
        states = ours.state_dict().values(), theirs.state_dict().values()
        assert all(largest(a, b) <= 1e-5 for a, b in zip(*states, strict=True))
        with torch.no_grad():
            for p, q in pairs:
                p.sub_(0.1 * p.grad)
                q.sub_(0.1 * q.grad)


def test_bfloat16_autocast():
    torch.manual_seed(1)
    drawn = torch.randn(4, 16, 32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = simsiam_loss(*drawn)
    assert got.dtype == torch.float32
    assert largest(got, theirs_loss(*drawn.float())) <= 1e-5
