"""CPC of streams against the paper's formulas as loops: convolutions, GRU, contexts, and the choice among all moments."""

import math

import pytest
import torch
from torch.nn import functional as F

from sensorium.selfsup.cpc_streams.method import StreamCPC
from sensorium.selfsup.predictive import moments, reach


def method(features=3, **numbers):
    torch.manual_seed(0)
    return StreamCPC(features, **{"width": 6, "state": 5, "depth": 2, "halvings": 1, "steps": 2} | numbers)


def largest(a, b):
    return (a - b).abs().max().item()


def encoded(model, frames):
    """z of one window [T, F], each moment from its own frames alone."""
    for i, layer in enumerate(model.encoder):
        size, stride = (4, 2) if i < model.halvings else (1, 1)
        weight, bias = layer.conv.weight, layer.conv.bias  # [D, C, size]
        rows = []
        for at in range(0, len(frames) - size + 1, stride):
            y = sum(weight[:, :, j] @ frames[at + j] for j in range(size)) + bias
            y = (y - y.mean()) / (y.var(correction=0) + 1e-5).sqrt()
            rows.append((y * layer.norm.weight + layer.norm.bias).relu())
        frames = torch.stack(rows)
    return frames


def summed_up(gru, z):
    """c of one window [S, D], by the equations of the gated recurrent unit (Cho et al., 2014) as torch documents them."""
    h, found = torch.zeros(gru.hidden_size, dtype=z.dtype), []
    for x in z:
        of_x = (gru.weight_ih_l0 @ x + gru.bias_ih_l0).chunk(3)
        of_h = (gru.weight_hh_l0 @ h + gru.bias_hh_l0).chunk(3)
        r, u = (of_x[0] + of_h[0]).sigmoid(), (of_x[1] + of_h[1]).sigmoid()
        n = (of_x[2] + r * of_h[2]).tanh()
        h = (1 - u) * n + u * h
        found.append(h)
    return torch.stack(found)


@pytest.mark.parametrize(
    "B, length, features, numbers",
    [
        (3, 12, 3, {}),
        (2, 7, 1, {"halvings": 0, "depth": 1, "steps": 5}),
        (4, 23, 5, {"halvings": 2, "depth": 3, "steps": 1, "width": 9, "state": 4}),
    ],
)
def test_the_loss_and_its_gradients(B, length, features, numbers):
    model = method(features, **numbers)
    frames = torch.randn(B, length, features)
    out = model({"frames": frames})
    z = torch.stack([encoded(model, one) for one in frames])
    assert largest(model.vectors(frames), z) <= 1e-5
    c = torch.stack([summed_up(model.gru, one) for one in z])
    assert largest(model.features(frames), c[:, -1]) <= 1e-5
    S, losses, right = z.shape[1], [], []
    for k, W in enumerate((layer.weight for layer in model.predict), 1):
        terms = []
        for b in range(B):
            for t in range(S - k):
                f = torch.stack([(z[n, s] @ W @ c[b, t]).exp() for n in range(B) for s in range(S)])  # eq. 3
                terms.append(-(f[b * S + t + k] / f.sum()).log())  # eq. 4
                right.append(float(f.argmax() == b * S + t + k) / (B * (S - k)))
        losses.append(torch.stack(terms).mean())
    want = torch.stack(losses).mean()
    assert largest(out["loss"], want) <= 1e-5
    assert out["contrast_top1"].item() == pytest.approx(sum(right) / len(losses), abs=1e-6)
    assert out["ceiling"].item() == pytest.approx(math.log(B * S))
    assert out["information"].item() == pytest.approx(math.log(B * S) - want.item(), abs=1e-5)
    parameters = list(model.parameters())
    ours, theirs = torch.autograd.grad(out["loss"], parameters), torch.autograd.grad(want, parameters)
    assert max(largest(a, b) for a, b in zip(ours, theirs, strict=True)) <= 1e-4


@pytest.mark.parametrize("halvings", [0, 1, 3])
def test_a_context_sees_what_has_been_and_nothing_else(halvings):
    model = method(2, depth=3, halvings=halvings, width=32)
    length = reach(halvings) + 5 * 2**halvings
    frames = torch.randn(1, length, 2, requires_grad=True)
    z = model.vectors(frames)
    assert z.shape[1] == moments(length, halvings) == 6
    for t in range(6):
        (slope,) = torch.autograd.grad(model.gru(z)[0][:, t].square().sum(), frames, retain_graph=True)
        seen, end = slope[0].abs().sum(1) > 0, t * 2**halvings + reach(halvings)
        assert not seen[end:].any()
        assert seen[end - 1]
        assert seen[0]


@pytest.mark.parametrize("halvings", range(5))
@pytest.mark.parametrize("length", [1, 2, 5, 16, 23, 64])
def test_moments_are_counted(length, halvings):
    model = method(1, depth=5, halvings=halvings)
    if length < reach(halvings):
        assert moments(length, halvings) == 0
        with pytest.raises(ValueError, match=f"is made of {reach(halvings)}, and a sequence has {length}"):
            model.vectors(torch.zeros(1, length, 1))
    else:
        assert model.vectors(torch.zeros(1, length, 1)).shape[1] == moments(length, halvings)


def test_a_constant_score_is_worth_the_logarithm_of_the_candidates():
    model = method()
    for layer in model.predict:
        torch.nn.init.zeros_(layer.weight)
    out = model({"frames": torch.randn(4, 14, 3)})
    assert out["loss"].item() == pytest.approx(math.log(4 * 6), abs=1e-5)
    assert F.relu(out["information"].abs() - 1e-5) == 0
