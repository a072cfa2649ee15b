"""Cosines of two views and the spread of outputs."""

import pytest
import torch
from torch.nn import functional as F

from sensorium.parts.similarity import mean_cosine, spread, view_cosines


def test_view_cosines_are_of_all_pairs_of_views():
    torch.manual_seed(0)
    z1, z2 = torch.randn(5, 7), 3 * torch.randn(5, 7)
    cosines, own, other = view_cosines(z1, z2)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    torch.testing.assert_close(cosines, z @ z.T)
    assert own.tolist() == list(range(10))
    assert other.tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]


def test_the_spread_is_1_on_the_sphere_and_0_at_one_point():
    torch.manual_seed(0)
    assert spread(torch.randn(4000, 33) * 7).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(9, 4)).item() == pytest.approx(0, abs=1e-6)
    along = torch.randn(4000, 1) * torch.ones(1, 16)  # both directions of one axis
    assert spread(along).item() == pytest.approx(1, abs=0.01)
    z = torch.randn(8, 5, requires_grad=True)
    want = F.normalize(z, dim=1).std(0, correction=0).mean() * 5**0.5
    assert spread(z).item() == pytest.approx(want.item(), rel=1e-5)
    assert not spread(z).requires_grad


def test_half_precision_is_computed_in_float32():
    torch.manual_seed(0)
    a, b = torch.randn(16, 8).bfloat16(), torch.randn(16, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = mean_cosine(a, b), spread(a), view_cosines(a, b)[0]
    want = mean_cosine(a.float(), b.float()), spread(a.float()), view_cosines(a.float(), b.float())[0]
    assert all(one.dtype == torch.float32 for one in got)
    assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
    assert mean_cosine(a.double(), b.double()).dtype == torch.float64
