"""Our Inception equals pytorch-fid's: features of the same random weights, small and large pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.judge.inception import Inception
from sensorium.metrics.frechet import frechet


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """As of a network just built, with batch norms that do something and features that differ."""
    inception = pytest.importorskip("torchvision.models.inception")
    torch.manual_seed(0)
    net = inception.Inception3(1008, aux_logits=False, init_weights=False)
    state = net.state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("bn.bias"):
            value.normal_(std=0.1)
    return state


@pytest.fixture(scope="module")
def both(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory):
    peer = pytest.importorskip("pytorch_fid.inception")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer, "load_state_dict_from_url", lambda *_, **__: weights)
        theirs = peer.InceptionV3([peer.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    return Inception(path), theirs


@pytest.mark.parametrize("size", [(32, 32), (45, 61), (310, 300)], ids=str)
def test_features(both, size: tuple[int, int]) -> None:
    ours, theirs = both
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = ours.features(images), theirs(images)[0].flatten(1)
    assert found.shape == (2, 2048)
    assert expected.std(0).max() > 0
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_distance_is_pytorch_fids() -> None:
    peer = pytest.importorskip("pytorch_fid.fid_score")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 30)), rng.normal(0.3, 1.2, size=(300, 30)) @ np.diag(np.linspace(0.5, 1.5, 30))
    theirs = peer.calculate_frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert frechet(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(float(theirs), rel=1e-6)


def test_other_weights_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for name, state, said in (
        ("net", {k: v[:1000] if k.startswith("fc.") else v for k, v in weights.items()}, "1000 classes"),
        ("none", {"a": torch.zeros(2)}, "no Inception weights"),
        ("torn", {k: v for k, v in weights.items() if k != "Mixed_7c.branch1x1.conv.weight"}, "Mixed_7c.branch1x1"),
    ):
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(SensoriumError, match=said):
            Inception(tmp_path / f"{name}.pth")
    with pytest.raises(SensoriumError, match="missing"):
        Inception(tmp_path / "missing.pth")
