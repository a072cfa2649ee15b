"""LeJEPA against lightly's loss on the same directions, the paper's formula in float64, and SciPy's integral of the statistic."""

import numpy as np
import pytest
import torch
from lightly.loss.lejepa_loss import LeJEPALoss, SIGReg
from scipy.integrate import quad

from sensorium.parts.learning.gaussianity import KNOTS, REACH, directions, epps_pulley, sigreg
from sensorium.selfsup.lejepa.method import lejepa_loss

CASES = [(1, 2, 3, 5), (2, 7, 16, 33), (4, 64, 8, 64), (3, 33, 65, 17)]  # views, batch, dimensions, directions


def largest(a, b):
    return (a - b).abs().max().item()


def drawn_by(theirs: SIGReg, vectors: torch.Tensor) -> None:
    """lightly draws its vectors in ``forward``: it is given ours."""
    theirs._generate_unit_vectors = lambda device, dtype, num_features: vectors.to(dtype)  # type: ignore[method-assign]


def samples(views: int, batch: int, width: int) -> torch.Tensor:
    torch.manual_seed(batch)
    return 1.5 * torch.randn(views, batch, width) + 0.3


def written_plainly(z: np.ndarray, a: np.ndarray, global_views: int, weight: float) -> float:
    """Algorithms 1 and 2 of the paper: the integrand on both sides of 0, complex numbers, one view at a time."""
    t = np.linspace(-REACH, REACH, 2 * KNOTS - 1)
    target = np.exp(-(t**2) / 2)
    statistics = []
    for view in z:
        for direction in a.T:
            ecf = np.exp(1j * np.outer(view @ direction, t)).mean(0)
            statistics.append(len(view) * np.trapezoid(np.abs(ecf - target) ** 2 * target, t))
    center = z[:global_views].mean(0)
    return (1 - weight) * float(((center - z) ** 2).mean()) + weight * float(np.mean(statistics))


@pytest.mark.parametrize("views, batch, width, count", CASES)
def test_sigreg_is_lightlys(views, batch, width, count):
    z, a = samples(views, batch, width), directions(width, count, 3)
    theirs = SIGReg(num_vectors=count)
    drawn_by(theirs, a)
    z1, z2 = z.clone().requires_grad_(), z.clone().requires_grad_()
    got, want = sigreg(z1, a), theirs(z2)
    assert largest(got, want) <= 1e-5 * max(1, want.item())
    got.backward()
    want.backward()
    assert largest(z1.grad, z2.grad) <= 1e-4 * max(1, z2.grad.abs().max().item())


@pytest.mark.parametrize("views, batch, width, count", CASES[1:])
@pytest.mark.parametrize("weight", [0.0, 0.05, 1.0])
def test_the_loss_is_lightlys_and_the_papers(views, batch, width, count, weight):
    z, a = samples(views, batch, width), directions(width, count, 3)
    for global_views in range(1, views):  # lightly's has at least one local view
        theirs = LeJEPALoss(weight, sigreg_num_vectors=count)
        drawn_by(theirs.sigreg, a)
        z1, z2 = z.clone().requires_grad_(), z.clone().requires_grad_()
        got = lejepa_loss(z1, a, global_views=global_views, trade_off=weight)["loss"]
        want = theirs(global_proj=z2[:global_views], local_proj=z2[global_views:])
        assert largest(got, want) <= 1e-5 * max(1, want.item())
        got.backward()
        want.backward()
        assert largest(z1.grad, z2.grad) <= 1e-4 * max(1, z2.grad.abs().max().item())
    for global_views in range(1, views + 1):
        got = lejepa_loss(z.double(), a.double(), global_views=global_views, trade_off=weight)["loss"]
        assert got.item() == pytest.approx(written_plainly(z.double().numpy(), a.double().numpy(), global_views, weight), rel=1e-12)  # fmt: skip


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (1.0, 0.5), (-0.3, 2.0), (0.0, 0.01)])
def test_the_statistic_is_the_integral(mean, std):
    """The exact one from -3 to 3 by SciPy; with many knots to nine digits, with the paper's 17 within 0.2 %."""
    x = mean + std * np.random.default_rng(0).standard_normal(40)

    def integrand(t: float) -> float:
        return abs(np.exp(1j * t * x).mean() - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)

    exact = len(x) * quad(integrand, -REACH, REACH, epsabs=1e-12, limit=200)[0]
    column = torch.tensor(x)[:, None]
    fine = epps_pulley(column, knots=40_001).item()
    assert fine == pytest.approx(exact, rel=1e-6)
    assert epps_pulley(column).item() == pytest.approx(exact, rel=2e-3)
