"""RankMe against its formula; the map of features."""

import numpy as np
import pytest
import torch

from sensorium.metrics.project import project
from sensorium.metrics.rankme import rankme


def formula(z):
    s = np.linalg.svd(z.double().numpy(), compute_uv=False)
    p = s / s.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("n, d", [(200, 32), (31, 77), (64, 64), (5000, 3), (1, 9), (9000, 20)])
def test_it_is_the_papers_formula(n, d):
    z = torch.randn(n, d) * torch.logspace(0, -3, d)
    assert rankme(z) == pytest.approx(formula(z), rel=1e-4)


def test_known_ranks():
    assert rankme(torch.eye(16)) == pytest.approx(16, rel=1e-3)
    assert rankme(torch.ones(100, 16)) == pytest.approx(1, abs=0.01)
    assert rankme(torch.randn(400, 3) @ torch.randn(3, 64)) < 3.01
    assert rankme(torch.zeros(10, 4)) == 0.0


def test_scale_rotation_and_order_do_not_matter():
    z = torch.randn(300, 12)
    q, _ = torch.linalg.qr(torch.randn(12, 12))
    for other in (z * 50, z @ q, z[torch.randperm(300)]):
        assert rankme(other) == pytest.approx(rankme(z), rel=1e-4)


def test_at_most_25600_samples_are_read_from_all_over():
    z = torch.cat([torch.ones(25_600, 4), torch.randn(25_600, 4)])
    assert rankme(z) == pytest.approx(rankme(z[::2]), rel=1e-6)


def test_a_map_keeps_clusters_together_and_is_the_same_again():
    labels = np.arange(90) % 3
    features = torch.randn(90, 20) + 12 * torch.randn(3, 20)[labels]
    where = project(features, seed=3)
    assert where.shape == (90, 2)
    assert where.dtype == np.float32
    assert np.array_equal(where, project(features, seed=3))
    distance = np.linalg.norm(where[:, None] - where[None], axis=-1) + np.eye(90) * 1e9
    assert (labels[distance.argmin(1)] == labels).all()


@pytest.mark.parametrize("n", [0, 1, 2, 4])
def test_few_points_have_finite_places(n):
    where = project(torch.randn(n, 6))
    assert where.shape == (n, 2)
    assert np.isfinite(where).all()


def test_collapsed_features_have_one_place():
    assert (project(torch.ones(30, 8)) == 0).all()
    assert np.isfinite(project(torch.randn(30, 1))).all()


def test_too_many_points_are_refused():
    with pytest.raises(ValueError, match="sample 2000"):
        project(torch.randn(2001, 2))
