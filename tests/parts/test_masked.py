"""Masked perceptrons: dependencies are exactly those asked for, in an order they are MADE's."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sensorium.parts.density.masked import MaskedMLP, in_order, layer_masks


def depends(network: MaskedMLP, inputs: int) -> Tensor:
    """Which outputs change with which inputs at some of a few points, bool [O, I]."""
    points = torch.randn(8, inputs, dtype=torch.float64)
    return sum(torch.autograd.functional.jacobian(lambda x: network(x[None])[0], x).abs() for x in points) > 0


def random_(network: MaskedMLP) -> MaskedMLP:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    return network.double()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 7), st.booleans(), st.sampled_from([(), (24,), (30, 40)])
)
def test_an_output_depends_on_its_inputs_alone(seed: int, outputs: int, inputs: int, direct: bool, hidden) -> None:
    torch.manual_seed(seed)
    adjacency = torch.rand(outputs, inputs) < torch.rand(())
    network = random_(MaskedMLP(adjacency, hidden, direct=direct, seeds=(seed,), activation=torch.tanh))
    found = depends(network, inputs)
    assert not (found & ~adjacency).any()
    if direct or not hidden:
        assert torch.equal(found, adjacency)


@pytest.mark.parametrize("hidden", [(200,), (300, 300)], ids=str)
def test_wide_layers_leave_no_pair_unconnected(hidden) -> None:
    torch.manual_seed(0)
    adjacency = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    assert torch.equal(depends(random_(MaskedMLP(adjacency, hidden, activation=torch.tanh)), 4), adjacency)


@pytest.mark.parametrize(
    "inputs, hidden", [(1, (3,)), (2, (5,)), (10, (90, 150))], ids=str
)  # narrow layers don't show their degrees
def test_in_an_order_the_sets_are_degrees(inputs: int, hidden) -> None:
    """M_l[k, k'] = 1 where m_l(k) >= m_{l-1}(k'), the last without equality (MADE, section 4)."""
    for seed in range(5):
        places = torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))
        before, low = places + 1, 1
        *inner, last = layer_masks(in_order(places), hidden, seed)
        for mask in inner:
            # the degree of a unit is the largest of what it sees; MADE draws it from the least of the layer before to D - 1
            degree = (mask * before).amax(1)
            assert torch.equal(mask, degree[:, None] >= before)
            assert inputs == 1 or (int(degree.min()) >= low and int(degree.max()) <= inputs - 1)
            before, low = degree, int(degree.min())
        if inputs > 1:
            assert torch.equal(last, places[:, None] + 1 > before)


def test_a_thousand_inputs_are_masked_in_a_moment() -> None:
    began = time.perf_counter()
    layer_masks(in_order(torch.randperm(1024)), (500, 500), 0)
    assert time.perf_counter() - began < 5


def test_masks_stay_out_of_checkpoints_and_shapes_are_known_without_data() -> None:
    network = MaskedMLP(in_order(torch.arange(5)), (7,), direct=True)
    assert set(network.state_dict()) == {
        "direct",
        *(f"layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")),
    }
    with torch.device("meta"):
        empty = MaskedMLP(in_order(torch.arange(5)), (7,), direct=True)
    assert {n: x.shape for n, x in empty.named_buffers()} == {n: x.shape for n, x in network.named_buffers()}
