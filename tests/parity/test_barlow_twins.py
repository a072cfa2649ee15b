"""Barlow Twins' loss and head against lightly's; its files against the authors' names (facebookresearch/barlowtwins, main.py)."""

from pathlib import Path

import pytest
import torch
import torchvision
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.published import load
from sensorium.published.export import export
from sensorium.published.load import load_backbone
from sensorium.selfsup.barlow_twins.method import BarlowTwins, barlow_loss


def largest(a, b):
    return (a - b).abs().max().item()


def standardized(z):
    return nn.BatchNorm1d(z.shape[1], affine=False)(z)


@pytest.mark.parametrize("batch, width", [(2, 3), (7, 33), (64, 16), (33, 33), (32, 257)])
@pytest.mark.parametrize("redundancy", [0.0, 0.0051, 0.2])
@pytest.mark.parametrize("near", [False, True])
def test_values_and_gradients(batch, width, redundancy, near):
    torch.manual_seed(batch)
    a = 3 * torch.randn(batch, width) + 1
    b = a + 0.1 * torch.randn(batch, width) if near else torch.randn(batch, width) - 2
    ours, theirs = ([z.clone().requires_grad_() for z in (a, b)] for _ in range(2))
    got = barlow_loss(*map(standardized, ours), redundancy)["loss"]
    want = BarlowTwinsLoss(redundancy)(*theirs)
    assert largest(got, want) <= 1e-5 * max(1, want.item())
    got.backward()
    want.backward()
    for z, w in zip(ours, theirs, strict=True):
        assert largest(z.grad, w.grad) <= 1e-4 * max(1, w.grad.abs().max().item())


@pytest.mark.parametrize("training", [False, True])
def test_head(training):
    """lightly's last layer has a bias, which the standardization takes away again; the authors' has none."""
    torch.manual_seed(0)
    theirs, ours = BarlowTwinsProjectionHead(19, 31, 13), mlp_head(19, 31, 31, 13, last_bias=False)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    nn.init.zeros_(theirs.layers[-1].bias)
    named = {name.removeprefix("layers."): value for name, value in theirs.state_dict().items()}
    assert ours.load_state_dict(named, strict=False).unexpected_keys == ["6.bias"]
    x = torch.randn(9, 19)
    assert largest(ours.train(training)(x), theirs.train(training)(x)) <= 1e-5


# --- files of the authors' ---


class Authors(nn.Module):
    """The modules of their ``BarlowTwins`` by name, on a shallower ResNet of torchvision's."""

    def __init__(self, sizes: str) -> None:
        super().__init__()
        self.backbone = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
        self.backbone.fc = nn.Identity()
        widths = [2048, *map(int, sizes.split("-"))]
        layers: list[nn.Module] = []
        for i in range(len(widths) - 2):
            layers += [nn.Linear(widths[i], widths[i + 1], bias=False), nn.BatchNorm1d(widths[i + 1]), nn.ReLU()]
        self.projector = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False))
        self.bn = nn.BatchNorm1d(widths[-1], affine=False)

    def forward(self, y1, y2, redundancy):
        z1, z2 = self.projector(self.backbone(y1)), self.projector(self.backbone(y2))
        c = self.bn(z1).T @ self.bn(z2) / len(y1)
        on = torch.diagonal(c).add(-1).pow(2).sum()
        return on + redundancy * (c - torch.diag(torch.diagonal(c))).pow(2).sum()


def authors(sizes: str) -> Authors:
    torch.manual_seed(0)
    model = Authors(sizes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def save(model: nn.Module, path: Path, **more: torch.Tensor) -> None:
    """``checkpoint.pth`` as their script writes it: the state of the model in DistributedDataParallel."""
    state = {f"module.{name}": value for name, value in model.state_dict().items()} | more
    torch.save({"epoch": 3, "model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0}]}}, path)


@pytest.mark.parametrize("sizes", ["24-24-17", "9-12", "10-11-12-13"])
def test_the_authors_checkpoint_there_and_back(sizes: str, tmp_path: Path) -> None:
    theirs = authors(sizes)
    save(theirs, tmp_path / "checkpoint.pth")
    ours = load(tmp_path / "checkpoint.pth")
    assert isinstance(ours, BarlowTwins)
    views = torch.randn(2, 5, 3, 64, 64).unbind()
    with torch.no_grad():
        want = theirs(*views, 0.0051)
        torch.testing.assert_close(ours.features(views[0]), theirs.backbone(views[0]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours({"views": views})["loss"], want, atol=1e-5, rtol=1e-5)
    assert ours.train().bn.running_mean.abs().max() > 0

    back = authors(sizes)
    for parameter in back.parameters():
        nn.init.zeros_(parameter)
    kept = torch.load(export(ours, "authors", tmp_path / "back.pth"), weights_only=True)["model"]
    nn.ModuleDict({"module": back}).load_state_dict(kept)  # strict: every name of theirs, under their DDP's prefix
    with torch.no_grad():
        torch.testing.assert_close(back(*views, 0.0051), want, atol=1e-5, rtol=1e-5)


def test_the_authors_backbone_alone(tmp_path: Path) -> None:
    """``resnet50.pth``, torchvision's names without a classifier."""
    theirs = authors("8-8")
    torch.save(theirs.backbone.state_dict(), tmp_path / "resnet50.pth")
    ours, x = load_backbone(tmp_path / "resnet50.pth"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(x), theirs.backbone(x), atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    theirs = authors("8-8-8")
    save(theirs, tmp_path / "more.pth", **{"module.projector.3.weight": torch.zeros(8, 9)})
    with pytest.raises(
        SensoriumError, match=r"more.pth: 'module.projector.3.weight' has shape \[8, 9\], expected \[8, 8\]"
    ):
        load(tmp_path / "more.pth")
    save(theirs, tmp_path / "strange.pth", **{"module.extra.weight": torch.zeros(3, 4)})
    with pytest.raises(SensoriumError, match=r"'module.extra.weight' is unknown to the format authors' Barlow Twins"):
        load(tmp_path / "strange.pth")
    small = BarlowTwins(ResNet((1, 1), 8, stem="small"), mlp_head(16, 8, 8, last_bias=False))
    with pytest.raises(SensoriumError, match="the authors' ResNet has no 'small' stem"):
        export(small, "authors", tmp_path / "small.pth")
