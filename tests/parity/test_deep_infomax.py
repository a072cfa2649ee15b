"""Deep InfoMax against the formulas of the authors' code (rdevon/DIM: dim_losses.py, mi_networks.py), written plainly."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium.parts.learning import information
from sensorium.selfsup.deep_infomax.critics import ConcatLocal, DotGlobal, DotLocal, FlatProjection, Projection, dots


def largest(a, b):
    return (a - b).abs().max().item()


def scores(l, m):
    """Their outer product: m [N, U], l [N, U, L] -> u[i, j, place], of vector i and map j."""
    return torch.stack([torch.stack([m[i] @ l[j] for j in range(len(l))]) for i in range(len(m))])


def fenchel_dual_loss(l, m):
    """With the measure JSD: means over places, then over the pairs of a picture and over the others."""
    u, N = scores(l, m), len(l)
    positive = (math.log(2) - F.softplus(-u)).mean(2)
    negative = (F.softplus(-u) + u - math.log(2)).mean(2)
    mask = torch.eye(N)
    return (negative * (1 - mask)).sum() / (1 - mask).sum() - (positive * mask).sum() / N


def infonce_loss(l, m, own=-10.0):
    """A picture's own places are among its negatives, with the score ``own``."""
    u, N = scores(l, m), len(l)
    mask = torch.eye(N)[:, :, None]
    negatives = torch.where(mask > 0, own, u).reshape(N, 1, -1)
    positives = u[torch.arange(N), torch.arange(N)]
    logits = torch.cat([positives[:, :, None], negatives.expand(-1, l.shape[2], -1)], 2)
    return -logits.log_softmax(2)[:, :, 0].mean()


def donsker_varadhan_loss(l, m):
    u, N = scores(l, m), len(l)
    own = torch.eye(N, dtype=torch.bool)
    return u[~own].exp().mean().log() - u[own].mean()


SHAPES = [(2, 3, 1), (3, 5, 4), (7, 16, 9), (8, 32, 36)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bound", ["jsd", "infonce", "donsker_varadhan"])
def test_losses_and_gradients(shape, bound):
    torch.manual_seed(0)
    N, U, L = shape
    l, m = torch.randn(shape) / U**0.25, torch.randn(N, U) / U**0.25
    l.requires_grad_()
    m.requires_grad_()
    ours = -getattr(information, bound)(*dots(m, l))
    if bound == "infonce":
        # Their loss has no log K, and ours leaves out what they score as -10.
        ours = ours + math.log(1 + (N - 1) * L)
        theirs = infonce_loss(l, m, -torch.inf)
    else:
        theirs = {"jsd": fenchel_dual_loss, "donsker_varadhan": donsker_varadhan_loss}[bound](l, m)
    assert largest(ours, theirs) <= 1e-5
    for a, b in zip(torch.autograd.grad(ours, (l, m)), torch.autograd.grad(theirs, (l, m)), strict=True):
        assert largest(a, b) <= 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_authors_masking_adds(shape):
    """Each of a picture's L own places adds e^-10 to the sum: where the others' scores are small, the losses are close."""
    torch.manual_seed(0)
    N, U, L = shape
    l, m = torch.randn(shape) / U**0.25, torch.randn(N, U) / U**0.25
    exact, theirs = infonce_loss(l, m, -torch.inf), infonce_loss(l, m)
    assert 0 < theirs - exact < L * math.exp(-10) * 10
    cold = 40 * torch.ones(2, 1, 3), torch.tensor([[1.0], [-1.0]])
    assert infonce_loss(*cold) > infonce_loss(*cold, -torch.inf) + 10  # where all others score below it


def weights(module):
    torch.manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(std=0.3)
    return dict(module.named_parameters())


@pytest.mark.parametrize("channels, units", [(5, 5), (3, 11), (9, 4)])
def test_mi_1x1_conv_net(channels, units):
    ours = Projection(channels, units)
    w = weights(ours)
    x = torch.randn(4, channels, 3, 5, requires_grad=True)
    rows = x.movedim(1, -1)  # 1x1 convolutions are linear maps of the channels
    h = rows @ w["block_nonlinear.0.weight"].flatten(1).T
    h = (h - h.mean((0, 1, 2))) / (h.var((0, 1, 2), correction=0) + 1e-5).sqrt()
    h = (h * w["block_nonlinear.1.weight"] + w["block_nonlinear.1.bias"]).relu()
    h = h @ w["block_nonlinear.3.weight"].flatten(1).T + w["block_nonlinear.3.bias"]
    h = h + rows @ w["linear_shortcut.weight"].flatten(1).T
    h = F.layer_norm(h, (units,), w["block_ln.weight"], w["block_ln.bias"]).movedim(-1, 1)
    got = ours(x)
    assert largest(got, h) <= 1e-5
    target = torch.randn_like(got)
    (a,), (b,) = (torch.autograd.grad((y * target).mean(), x) for y in (got, h))
    assert largest(a, b) <= 1e-4


@pytest.mark.parametrize("inputs, units", [(5, 5), (3, 11), (9, 4)])
def test_mi_fc_net(inputs, units):
    ours = FlatProjection(inputs, units)
    w = weights(ours)
    x = torch.randn(6, inputs, requires_grad=True)
    h = x @ w["block_nonlinear.0.weight"].T
    h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()
    h = (h * w["block_nonlinear.1.weight"] + w["block_nonlinear.1.bias"]).relu()
    h = h @ w["block_nonlinear.3.weight"].T + w["block_nonlinear.3.bias"]
    h = h + x @ w["linear_shortcut.weight"].T + w["linear_shortcut.bias"]
    got = ours(x)
    assert largest(got, h) <= 1e-5
    target = torch.randn_like(got)
    (a,), (b,) = (torch.autograd.grad((y * target).mean(), x) for y in (got, h))
    assert largest(a, b) <= 1e-4


@pytest.mark.parametrize("make", [Projection, FlatProjection])
def test_the_shortcut_begins_as_nearly_the_identity(make):
    weight = make(5, 8).linear_shortcut.weight.flatten(1)
    assert weight.shape == (8, 5)
    assert torch.equal(weight.diagonal(), torch.ones(5))
    rest = weight[~torch.eye(8, 5, dtype=torch.bool)]
    assert 0 < rest.abs().max() <= 0.01
    narrow = make(8, 5).linear_shortcut.weight.flatten(1)
    assert narrow.diagonal().abs().max() < 1


def test_encode_and_dot_scores_every_pairing():
    torch.manual_seed(0)
    critic = DotLocal(6, 5, 8)
    y, found = torch.randn(4, 5), torch.randn(4, 6, 3, 2)
    u = scores(critic.local_net(found).flatten(2), critic.global_net(y[:, :, None, None]).flatten(1))
    joint, marginal = critic(y, found)
    assert largest(joint, torch.stack([u[i, i] for i in range(4)])) <= 1e-5
    others = torch.stack([torch.stack([u[i, j] for j in range(4) if j != i]) for i in range(4)])
    assert largest(marginal, others) <= 1e-5
    whole = DotGlobal(6, (3, 2), 5, 8)
    u = scores(whole.map_net(found.flatten(1))[:, :, None], whole.global_net(y))
    assert largest(whole(y, found)[0], torch.stack([u[i, i] for i in range(4)])) <= 1e-5


@pytest.mark.parametrize("others", [1, 2, 9])
def test_concatenate_and_convolve_is_a_network_of_both(others):
    torch.manual_seed(0)
    critic = ConcatLocal(6, 5, 8, others=others)
    y, found = torch.randn(4, 5), torch.randn(4, 6, 3, 2)
    weight = torch.cat([critic.of_place.weight.flatten(1), critic.of_vector.weight], 1)

    def score(i, j):
        both = torch.cat([found[j].flatten(1).T, y[i].expand(6, -1)], 1)
        return critic.rest(both @ weight.T + critic.of_place.bias).squeeze(-1)

    joint, marginal = critic(y, found)
    assert marginal.shape == (4, min(others, 3), 6)
    assert largest(joint, torch.stack([score(i, i) for i in range(4)])) <= 1e-5
    for i in range(4):
        for j in range(marginal.shape[1]):
            assert largest(marginal[i, j], score(i, (i + 1 + j) % 4)) <= 1e-5
