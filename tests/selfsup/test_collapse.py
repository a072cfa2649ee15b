"""What each method calls a collapse: constructed outputs that have collapsed give a warning, healthy ones none."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.catalogue import systems
from sensorium.method import Method
from sensorium.parts.learning.gaussianity import directions
from sensorium.parts.learning.sinkhorn import sinkhorn
from sensorium.parts.similarity import spread
from sensorium.selfsup.barlow_twins.method import BarlowTwins, barlow_loss
from sensorium.selfsup.byol.method import BYOL
from sensorium.selfsup.cpc.method import CPC
from sensorium.selfsup.deep_infomax.method import DeepInfoMax
from sensorium.selfsup.dino.method import DINO, dino_loss
from sensorium.selfsup.distill.method import Distill
from sensorium.selfsup.emp_ssl.method import EMPSSL
from sensorium.selfsup.i_jepa.method import IJEPA
from sensorium.selfsup.lejepa.method import LeJEPA, lejepa_loss
from sensorium.selfsup.mae.method import MAE
from sensorium.selfsup.margin_contrastive.method import MarginContrastive
from sensorium.selfsup.moby.method import MoBY
from sensorium.selfsup.moco_v1.method import MoCo
from sensorium.selfsup.moco_v3.method import MoCoV3
from sensorium.selfsup.self_training.method import SelfTraining
from sensorium.selfsup.simclr.method import SimCLR
from sensorium.selfsup.simclr_v2.method import SimCLRv2
from sensorium.selfsup.simmim.method import SimMIM
from sensorium.selfsup.simsiam.method import SimSiam
from sensorium.selfsup.supcon.method import SupCon
from sensorium.selfsup.supervised.method import Supervised
from sensorium.selfsup.swav.method import SwAV, swav_loss
from sensorium.selfsup.vicreg.method import VICReg, vicreg_loss
from sensorium.training.monitor import collapse, collapsed

Scalars = Mapping[str, float | Tensor]
N, D, K = 64, 16, 24


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def near(scale: float = 1e-3) -> Tensor:
    """Features that all images have, nearly."""
    return torch.ones(N, D) + scale * noise(N, D)


def line() -> Tensor:
    """Features of one direction, of either sign: not equal, but of rank 1."""
    return noise(N, 1) * torch.ones(1, D)


HEALTHY = collapse(noise(N, D))
EQUAL, LINE = collapse(near()), collapse(line())


def output_spread(z: Tensor) -> Scalars:
    return {"output_spread": spread(z)}


def dino(t: Tensor, s: Tensor) -> Scalars:
    return dino_loss(t, s, torch.zeros(K), tau_t=0.04, tau_s=0.1)


def swav(z: Tensor) -> Scalars:
    """z [N, D], which both global crops have, and prototypes that it is near to."""
    prototypes = F.normalize(noise(K, D), dim=1)
    s = (F.normalize(z, dim=1) @ prototypes.T).expand(2, N, K)
    return swav_loss(s, torch.stack([sinkhorn(one, 0.05, 3) for one in s]))


def lejepa(z: Tensor) -> Scalars:
    return lejepa_loss(z.expand(2, *z.shape), directions(D, 32, 0), global_views=2, trade_off=0.05)


def standardized(z: Tensor) -> Tensor:
    return (z - z.mean(0)) / z.std(0, correction=0)


one_hot = 3 * F.one_hot(torch.zeros(2, N, dtype=torch.int64), K).float()
# What a method logs: when it has collapsed, in each way that it can, and when it has not.
LOGGED: dict[type[Method], tuple[list[Scalars], Scalars]] = {
    SimSiam: ([output_spread(near())], output_spread(noise(N, D))),
    BYOL: ([output_spread(near())], output_spread(noise(N, D))),
    DINO: (
        [dino(one_hot, one_hot), dino(torch.zeros(2, N, K), torch.zeros(2, N, K))],
        dino(noise(2, N, K), noise(2, N, K)),
    ),
    SwAV: ([swav(near()), {"kl": 0.001, "in_use": 0.5}], swav(noise(N, D))),
    VICReg: ([vicreg_loss(near(), near(), 25, 25, 1)], vicreg_loss(noise(N, D), noise(N, D), 25, 25, 1)),
    BarlowTwins: (
        [barlow_loss(standardized(line()), standardized(line()), 0.005)],
        barlow_loss(standardized(noise(N, D)), standardized(noise(N, D)), 0.005),
    ),
    LeJEPA: ([lejepa(1e-3 * noise(N, D))], lejepa(noise(N, D))),
}
# What is none: features with a large common part, which a reconstruction may have, and those of two classes.
COMMON = collapse(near(0.03))
FORGIVEN: dict[type[Method], list[Scalars]] = {
    MAE: [COMMON, LINE],
    SimMIM: [COMMON, LINE],
    SupCon: [LINE],
    Supervised: [LINE],
    SelfTraining: [LINE],
    SimSiam: [EQUAL | {"rank": 9.0}],
    DINO: [EQUAL | {"rank": 9.0}],
}
BY_FEATURES = (SimCLR, SimCLRv2, MoCo, MoCoV3, MoBY, MarginContrastive, CPC, DeepInfoMax, EMPSSL, IJEPA, Distill)


def said(method: type[Method], *rows: Scalars) -> str | None:
    return collapsed({"step": 7} | {name: float(value) for row in rows for name, value in row.items()}, method.signs)


@pytest.mark.parametrize("method", LOGGED, ids=lambda m: m.__name__)
def test_a_method_that_has_collapsed_says_so_by_what_it_logs(method: type[Method]) -> None:
    bad, good = LOGGED[method]
    assert said(method, HEALTHY, good) is None
    for row in bad:
        assert "have collapsed at step 7" in str(said(method, HEALTHY, row))


@pytest.mark.parametrize("method", BY_FEATURES, ids=lambda m: m.__name__)
def test_other_methods_are_judged_by_their_features(method: type[Method]) -> None:
    assert said(method, HEALTHY) is None
    assert "nearly equal" in str(said(method, EQUAL))
    assert "one direction" in str(said(method, LINE))


def test_what_is_forgiven_is_a_collapse_of_others() -> None:
    assert all("have collapsed" in str(said(Method, row)) for row in (COMMON, LINE, EQUAL))


@pytest.mark.parametrize("method", FORGIVEN, ids=lambda m: m.__name__)
def test_what_is_no_collapse_of_a_method_is_not_told(method: type[Method]) -> None:
    good = LOGGED.get(method, ([], {}))[1]
    for row in FORGIVEN[method]:
        assert said(method, good, row) is None


@pytest.mark.parametrize("method", [MAE, SimMIM, SupCon, Supervised, SelfTraining], ids=lambda m: m.__name__)
def test_equal_features_of_all_images_are_a_collapse(method: type[Method]) -> None:
    assert "nearly equal" in str(said(method, EQUAL))


def test_every_method_of_the_family_is_tested() -> None:
    found = set()
    for system in systems():
        where = f"sensorium.{system.family}.{system.name}.method"
        if system.family == "selfsup" and system.data == "images" and system.trains and find_spec(where):
            one = import_module(where)
            found |= {
                kind
                for kind in vars(one).values()
                if isinstance(kind, type) and kind.__module__ == where and issubclass(kind, Method)
            }
    assert found == {*LOGGED, *FORGIVEN, *BY_FEATURES}
