"""SimCLR v2's head and loss against lightly's, and its loss with a memory against the equation written plainly."""

import pytest
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import nn
from torch.nn import functional as F

from sensorium.abilities import Encoder
from sensorium.method import Progress
from sensorium.parts.heads import ProjectionHead
from sensorium.parts.learning.nt_xent import nt_xent
from sensorium.selfsup.simclr_v2.method import Extended, SimCLRv2


def largest(a, b):
    return (a - b).abs().max().item()


class Net(nn.Module, Encoder):
    """The smallest encoder, without batch statistics."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(3, dim)

    def features(self, images):
        return self.layer(images.mean((2, 3))).tanh()


@pytest.mark.parametrize("layers, kept", [(3, 1), (3, 2), (4, 1), (2, 1)])
@pytest.mark.parametrize("dim, out", [(19, 13), (64, 32)])
@pytest.mark.parametrize("training", [False, True])
def test_a_step_with_lightlys_head(layers, kept, dim, out, training):
    """The layers that belong to the network and the others are one head of lightly's; loss and all gradients."""
    torch.manual_seed(0)
    ours = SimCLRv2(Extended(Net(dim), kept), ProjectionHead(dim, dim, out, layers=layers - kept), temperature=0.2)
    theirs = SimCLRProjectionHead(dim, dim, out, layers)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    state = theirs.state_dict()
    split = {}
    for name, value in state.items():
        place, kind = name.removeprefix("layers.").split(".")
        inside = int(place) < 3 * kept
        split[f"backbone.layers.{place}.{kind}" if inside else f"head.layers.{int(place) - 3 * kept}.{kind}"] = value
    absent = ours.load_state_dict(split, strict=False)
    # lightly's last normalization has a shift too (zero here); the authors' has none.
    assert absent.unexpected_keys == [f"head.layers.{3 * (layers - kept) - 2}.bias"]
    assert all(name.startswith("backbone.body") for name in absent.missing_keys)

    ours.train(training)
    theirs.train(training)
    views = [torch.randn(9, 3, 4, 4) + 2 * torch.randn(9, 3, 1, 1) for _ in range(2)]
    features = ours.backbone.body.features(torch.cat(views))
    z = theirs(features)
    want = NTXentLoss(0.2)(*z.chunk(2))
    parameters = [*ours.backbone.body.parameters(), *(p for n, p in theirs.named_parameters())]
    expected = torch.autograd.grad(want, parameters, retain_graph=True)
    got = ours({"views": views})["loss"]
    assert largest(got, want) <= 1e-5
    got.backward()
    grads = dict(zip((n for n, _ in theirs.named_parameters()), expected[2:], strict=True))
    for name, p in ours.named_parameters():
        if name.startswith("backbone.body"):
            continue
        place, kind = name.rpartition("layers.")[2].split(".")
        other = f"layers.{int(place) + (0 if name.startswith('backbone') else 3 * kept)}.{kind}"
        assert largest(p.grad, grads[other]) <= 1e-4, name
    for p, g in zip(ours.backbone.body.parameters(), expected, strict=False):
        assert largest(p.grad, g) <= 1e-4
    found = ours.eval().features(views[0])
    assert found.shape == (9, dim)
    assert largest(found, theirs.eval().layers[: 3 * kept](features[:9])) <= 1e-5


def written_out(z1, z2, temperature, negatives):
    """The loss of every view, one by one."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    n, losses = len(z1), []
    for i in range(2 * n):
        others = [torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i]
        more = [torch.exp(z[i] @ one / temperature) for one in negatives]
        positive = torch.exp(z[i] @ z[(i + n) % (2 * n)] / temperature)
        losses.append(-torch.log(positive / torch.stack([*others, *more]).sum()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("batch, width, more", [(1, 5, 3), (2, 16, 1), (7, 33, 20)])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_more_negatives(batch, width, more, temperature):
    torch.manual_seed(batch)
    z1, z2 = torch.randn(batch, width), torch.randn(batch, width)
    negatives = F.normalize(torch.randn(more, width), dim=1)
    found = []
    for loss in (lambda *given: nt_xent(*given)["loss"], written_out):
        a, b = z1.clone().requires_grad_(), z2.clone().requires_grad_()
        value = loss(a, b, temperature, negatives)
        found.append((value, *torch.autograd.grad(value, (a, b))))
    assert largest(found[0][0], found[1][0]) <= 1e-5
    assert max(largest(x, y) for x, y in zip(found[0][1:], found[1][1:], strict=True)) <= 1e-4


def test_steps_with_a_memory():
    """Three steps against a memory network and a list of its projections, kept here."""
    torch.manual_seed(0)
    ours = SimCLRv2(Extended(Net(11)), ProjectionHead(11, 11, 7, layers=2), temperature=0.2, memory=8, momentum=0.9)
    slow = {name: p.detach().clone() for name, p in ours.named_parameters() if p.requires_grad}
    kept = torch.zeros(0, 7)
    for k in range(4):
        at = Progress(k, 0, 0.1 * k)
        x1, x2 = (torch.randn(4, 3, 5, 5) + 2 * torch.randn(4, 3, 1, 1) for _ in range(2))
        ours.zero_grad()
        ours.before_step(at)
        got = ours({"views": [x1, x2]})["loss"]
        z1, z2 = ours.head(ours.features(torch.cat([x1, x2]))).chunk(2)
        want = written_out(z1, z2, 0.2, kept if len(kept) == 8 else torch.zeros(0, 7))
        assert largest(got, want) <= 1e-5
        parameters = {name: p for name, p in ours.named_parameters() if p.requires_grad}
        expected = torch.autograd.grad(want, parameters.values())
        got.backward()
        assert max(largest(p.grad, g) for p, g in zip(parameters.values(), expected, strict=True)) <= 1e-4

        call = lambda x: ours.head(ours.features(x))  # noqa: E731
        fast = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(slow[name])
            now = F.normalize(call(x2), dim=1)
            for name, p in parameters.items():
                p.copy_(fast[name] - 0.1 * p.grad)
                slow[name] = 0.9 * slow[name] + 0.1 * p
        kept = torch.cat([kept, now])[-8:]
        ours.after_step(at)
        assert largest(ours.memory.rows.roll(-int(ours.memory.at), 0)[-len(kept) :], kept) <= 1e-5
    network = dict(ours.memory_network.named_parameters())
    assert max(largest(network[name], value) for name, value in slow.items()) <= 1e-6
