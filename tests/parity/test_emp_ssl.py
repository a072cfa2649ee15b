"""EMP-SSL against the authors' formula (tsb0601/EMP-SSL, main.py and loss.py) and lightly's two parts of it.

lightly adds the coding rate where the paper and the authors' code subtract it, so that its whole loss is not compared.
"""

import pytest
import torch
from lightly.loss.emp_ssl_loss import invariance_loss, tcr_loss
from torch import nn
from torch.nn import functional as F

from sensorium.parts.heads import mlp_head
from sensorium.parts.learning.coding_rate import coding_rate
from sensorium.selfsup.emp_ssl.method import emp_loss

CASES = [(2, 2, 3), (3, 7, 33), (5, 64, 16), (2, 33, 33), (4, 16, 257)]  # crops, batch, projections


def largest(a, b):
    return (a - b).abs().max().item()


def projections(crops: int, batch: int, width: int) -> torch.Tensor:
    torch.manual_seed(batch)
    return torch.randn(batch, width) + 0.5 * torch.randn(crops, batch, width)


def authors(z_list: list[torch.Tensor], patch_sim: float, eps: float) -> torch.Tensor:
    """Their ``Similarity_Loss``, ``cal_TCR`` and ``TotalCodingRate``, of projections that their encoder has normalized."""
    z_list = [F.normalize(z, p=2) for z in z_list]
    z_avg = torch.stack(z_list).mean(0)
    contract = -sum(F.cosine_similarity(z, z_avg, dim=1).mean() for z in z_list) / len(z_list)
    rates = []
    for z in z_list:
        m, p = z.shape
        rates.append(torch.logdet(torch.eye(p, dtype=z.dtype) + p / (m * eps) * z.T @ z) / 2)
    return patch_sim * contract - sum(rates) / len(rates)


@pytest.mark.parametrize("crops, batch, width", CASES)
@pytest.mark.parametrize("weight, eps", [(200.0, 0.2), (1.0, 0.01), (0.0, 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_the_authors(crops, batch, width, weight, eps, dtype):
    z = projections(crops, batch, width).to(dtype)
    z1, z2 = z.clone().requires_grad_(), z.clone().requires_grad_()
    got, want = emp_loss(z1, weight, eps)["loss"], authors(list(z2), weight, eps)
    tight = 1e-5 if dtype == torch.float32 else 1e-12
    assert largest(got, want) <= tight * max(1, abs(want.item()))
    got.backward()
    want.backward()
    assert largest(z1.grad, z2.grad) <= 10 * tight * max(1, z2.grad.abs().max().item())


@pytest.mark.parametrize("crops, batch, width", CASES)
@pytest.mark.parametrize("eps", [0.05, 0.2])
def test_the_parts_are_lightlys(crops, batch, width, eps):
    z = F.normalize(projections(crops, batch, width), dim=-1)
    out = emp_loss(z, 1.0, eps)
    assert largest(out["coding_rate"], tcr_loss(z, eps)) <= 1e-5 * max(1, out["coding_rate"].item())
    assert largest(-out["alignment"], invariance_loss(z)) <= 1e-5


@pytest.mark.parametrize("width", [3, 20])
def test_the_coding_rate_of_each_shape_is_its_eigenvalues(width):
    z = torch.randn(2, 3, 9, width, dtype=torch.float64)
    values = torch.linalg.eigvalsh(z.mT @ z)
    want = torch.log1p(width / (9 * 0.2) * values).sum(-1) / 2
    assert coding_rate(z, 0.2).shape == (2, 3)
    assert largest(coding_rate(z, 0.2), want) <= 1e-10


@pytest.mark.parametrize("training", [False, True])
def test_head(training):
    """The authors' ``pre_feature`` and ``projection``, one after the other (model/model.py)."""
    torch.manual_seed(0)
    pre = nn.Sequential(nn.Linear(19, 31), nn.BatchNorm1d(31), nn.ReLU())
    projection = nn.Sequential(nn.Linear(31, 31), nn.BatchNorm1d(31), nn.ReLU(), nn.Linear(31, 13))
    theirs, ours = nn.Sequential(*pre, *projection), mlp_head(19, 31, 31, 13, bias=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(9, 19)
    assert largest(ours.train(training)(x), theirs.train(training)(x)) <= 1e-6
