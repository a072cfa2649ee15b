"""Batch normalization in groups: equal to a pass of the network for each group, and over when it is over."""

import copy

import pytest
import torch
from torch import nn

from sensorium.parts.batchnorm import in_groups, synchronize_batchnorm


def network(momentum=0.1):
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, momentum=momentum), nn.GELU()]
    layers = [*convolutions, nn.Flatten(), nn.Linear(45, 7), nn.BatchNorm1d(7, affine=False, momentum=momentum)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("synchronized", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sizes, momentum", [((4, 4, 4), 0.1), ((2, 7), None), ((6,), 0.1)])
def test_it_is_a_pass_for_each_group(sizes, momentum, layout, synchronized):
    one = network(momentum)
    if synchronized:
        synchronize_batchnorm(one)
    many = copy.deepcopy(one)
    x = torch.randn(sum(sizes), 3, 5, 5, dtype=torch.float64).to(memory_format=layout)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn(sum(sizes), 7, dtype=torch.float64)
    with in_groups(one, sizes):
        got = one(x1)
    want = torch.cat([many(rows) for rows in x2.split(sizes)])
    assert (got - want).abs().max() <= 1e-12
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    assert (x1.grad - x2.grad).abs().max() <= 1e-10
    for (name, a), b in zip(one.named_parameters(), many.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-10, name
    for name, a in one.named_buffers():
        assert torch.allclose(a, many.get_buffer(name), atol=1e-12), name


def test_after_it_the_batch_is_normalized_whole_again():
    model, x = network(), torch.randn(6, 3, 5, 5, dtype=torch.float64)
    want = copy.deepcopy(model)(x)
    with pytest.raises(RuntimeError), in_groups(model, (2, 3)):
        model(x)  # of six samples
    assert not any("forward" in layer.__dict__ for layer in model.modules())
    assert torch.equal(model(x), want)
