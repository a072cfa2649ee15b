"""BYOL's loss, heads and three steps against lightly's."""

import copy

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import update_momentum
from torch import nn

from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.parts.schedules import cosine
from sensorium.selfsup.byol.method import BYOL, byol_loss

BYOL_HEADS = {"projector": BYOLProjectionHead, "predictor": BYOLPredictionHead}


def largest(a, b):
    return (a - b).abs().max().item()


def shaken_(module):
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(std=0.1)
    return module


def theirs_loss(q1, q2, z1, z2):
    """Eq. 2 by lightly's -cos."""
    criterion = NegativeCosineSimilarity()
    return (2 + 2 * criterion(q1, z2.detach())) + (2 + 2 * criterion(q2, z1.detach()))


@pytest.mark.parametrize("batch, width", [(1, 5), (2, 16), (7, 33), (64, 256)])
@pytest.mark.parametrize("scale", [0.01, 1, 30])
@pytest.mark.parametrize("near", [False, True])
def test_loss_and_gradients(batch, width, scale, near):
    torch.manual_seed(batch)
    q1, q2, z1, z2 = torch.randn(4, batch, width)
    if near:
        q1, q2 = z2 + 0.1 * q1, z1 + 0.1 * q2
    ours = [(scale * t).clone().requires_grad_() for t in (q1, q2, z1, z2)]
    theirs = [(scale * t).clone().requires_grad_() for t in (q1, q2, z1, z2)]
    got, want = byol_loss(*ours), theirs_loss(*theirs)
    assert largest(got, want) <= 1e-5
    squares = sum(
        (nn.functional.normalize(q) - nn.functional.normalize(z)).square().sum(1).mean()
        for q, z in ((q1, z2), (q2, z1))
    )
    assert largest(got, squares) <= 1e-5
    got.backward()
    want.backward()
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert b.grad.abs().max() > 0
        assert largest(a.grad, b.grad) <= 1e-4 * b.grad.abs().max() + 1e-9
    assert ours[2].grad is ours[3].grad is None


@pytest.mark.parametrize("head", BYOL_HEADS)
@pytest.mark.parametrize("widths", [(19, 31, 13), (64, 48, 32)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("last_bias", [False, True])
def test_heads(head, widths, training, last_bias):
    """lightly's output layers have a bias, the authors' (``MLP`` in byol/utils/networks.py) none."""
    torch.manual_seed(0)
    theirs = shaken_(BYOL_HEADS[head](*widths))
    if not last_bias:
        nn.init.zeros_(theirs.layers[3].bias)
    ours = mlp_head(*widths, last_bias=last_bias)
    state = {name.removeprefix("layers."): value for name, value in theirs.state_dict().items()}
    left = ours.load_state_dict(state, strict=False)
    assert (left.missing_keys, left.unexpected_keys) == ([], [] if last_bias else ["3.bias"])
    x1 = torch.randn(9, widths[0], requires_grad=True)
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
def test_three_steps_of_the_method(batch, side):
    """Against the same networks in a loop by lightly's parts: its heads, loss and moving average."""
    torch.manual_seed(0)
    ours = BYOL(ResNet((1, 1), 8, stem="small"), mlp_head(16, 12, 9), mlp_head(9, 11, 9), momentum=0.9)
    backbone = copy.deepcopy(ours.backbone)
    projector, predictor = BYOLProjectionHead(16, 12, 9), BYOLPredictionHead(9, 11, 9)
    for mine, other in ((ours.online["projector"], projector), (ours.predictor, predictor)):
        other.load_state_dict({f"layers.{name}": value for name, value in mine.state_dict().items()})
    online = nn.Sequential(backbone, projector).train()
    target = copy.deepcopy(online).requires_grad_(False).train()
    for k in range(3):
        at = Progress(k, 0, k / 3)
        ours.zero_grad()
        predictor.zero_grad()
        online.zero_grad()
        ours.before_step(at)
        x1, x2 = torch.randn(2, batch, 3, side, side)
        got = ours({"views": [x1, x2]})["loss"]
        q1, q2 = predictor(online(x1)), predictor(online(x2))
        want = theirs_loss(q1, q2, target(x1), target(x2))
        assert largest(got, want) <= 1e-5
        got.backward()
        want.backward()
        mine = [*ours.online.parameters(), *ours.predictor.parameters()]
        other = [*online.parameters(), *predictor.parameters()]
        for p, q in zip(mine, other, strict=True):
            assert largest(p.grad, q.grad) <= 1e-4
            with torch.no_grad():
                p.sub_(0.1 * p.grad)
                q.sub_(0.1 * q.grad)
        ours.after_step(at)
        update_momentum(online, target, cosine(0.9, 1.0, k / 3))
        states = ours.target.state_dict().values(), target.state_dict().values()  # its own running statistics too
        assert all(largest(a, b) <= 1e-5 for a, b in zip(*states, strict=True))


def test_bfloat16_autocast():
    torch.manual_seed(1)
    q1, q2, z1, z2 = torch.randn(4, 16, 32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = byol_loss(q1, q2, z1, z2)
    assert got.dtype == torch.float32
    assert largest(got, theirs_loss(*(t.float() for t in (q1, q2, z1, z2)))) <= 1e-5
