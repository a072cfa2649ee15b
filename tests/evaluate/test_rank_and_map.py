"""RankMe, alpha-ReQ and LiDAR against their formulas; the map of features."""

import numpy as np
import pytest
import torch

from sensorium.metrics.project import project
from sensorium.metrics.spectrum import alpha_req, lidar, rankme


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


@pytest.mark.parametrize("n, d", [(400, 150), (90, 60), (300, 12)])
def test_alpha_is_a_weighted_fit(n, d):
    z = torch.randn(n, d, dtype=torch.float64) * torch.arange(1, d + 1) ** -0.6 + 5
    values = np.linalg.eigvalsh(np.cov(z.numpy().T, bias=True))[::-1]
    ranks = np.arange(4, min(100, d, n - 1) + 1)
    slope = np.polyfit(np.log(ranks), np.log(values[ranks - 1]), 1, w=ranks**-0.5)[0]  # numpy squares its weights
    assert alpha_req(z) == pytest.approx(-slope, rel=1e-6)
    assert alpha_req(z.float()) == pytest.approx(-slope, rel=1e-3)


def test_alpha_of_a_known_spectrum():
    q, _ = torch.linalg.qr(torch.randn(200, 120, dtype=torch.float64))
    q, _ = torch.linalg.qr(q - q.mean(0))
    for alpha in (0.5, 1.0, 2.0):
        assert alpha_req(q * torch.arange(1, 121, dtype=torch.float64) ** (-alpha / 2)) == pytest.approx(
            alpha, rel=1e-6
        )
    assert alpha_req(torch.ones(50, 20)) is None
    assert alpha_req(torch.randn(50, 4)) is None


def lidar_formula(x):
    """With loops over samples and views, and scipy's root of a matrix."""
    from scipy.linalg import fractional_matrix_power

    x = x.double().numpy()
    n, q, d = x.shape
    means, grand = x.mean(1), x.mean((0, 1))
    s_b, s_w = np.zeros((d, d)), np.zeros((d, d))
    for i in range(n):
        s_b += np.outer(means[i] - grand, means[i] - grand) / n
        for j in range(q):
            s_w += np.outer(x[i, j] - means[i], x[i, j] - means[i]) / (n * q)
    root = fractional_matrix_power(s_w + 1e-4 * np.eye(d), -0.5)
    values = np.clip(np.linalg.eigvalsh(root @ s_b @ root), 0, None)
    p = values / values.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("n, q, d", [(30, 5, 7), (12, 3, 20), (50, 2, 1)])
def test_lidar_is_the_papers_formula(n, q, d):
    x = torch.randn(n, 1, d) * torch.logspace(0, -1, d) + 0.3 * torch.randn(n, q, d)
    assert lidar(x) == pytest.approx(lidar_formula(x), rel=1e-6)


def test_lidar_counts_only_directions_that_tell_samples_apart():
    samples = torch.zeros(200, 1, 32)
    samples[..., :5] = torch.randn(200, 1, 5)
    noisy = samples + 0.05 * torch.randn(200, 20, 32)
    assert 4.5 < lidar(noisy) < 5.5
    assert rankme(noisy.flatten(0, 1)) > 10  # which noise raises
    assert lidar(torch.ones(10, 3, 4)) == 0.0


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
