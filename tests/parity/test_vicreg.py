"""VICReg's loss and head against lightly's; its files against the authors' names (facebookresearch/vicreg, main_vicreg.py and
resnet.py)."""

from pathlib import Path

import pytest
import torch
import torchvision
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import nn
from torch.nn import functional as F

from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.heads import mlp_head
from sensorium.published import load
from sensorium.published.export import export
from sensorium.selfsup.vicreg.method import VICReg, vicreg_loss


def largest(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("batch, width", [(2, 3), (7, 33), (64, 16), (33, 33), (32, 257)])
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("scale", [0.02, 0.9])
def test_values_and_gradients(batch, width, weights, scale):
    torch.manual_seed(batch)
    a = scale * torch.randn(batch, width) + 1
    b = a + 0.3 * scale * torch.randn(batch, width)
    ours, theirs = ([z.clone().requires_grad_() for z in (a, b)] for _ in range(2))
    got, want = vicreg_loss(*ours, *weights)["loss"], VICRegLoss(*weights)(*theirs)
    assert largest(got, want) <= 1e-5 * max(1, want.item())
    got.backward()
    want.backward()
    for z, w in zip(ours, theirs, strict=True):
        assert largest(z.grad, w.grad) <= 1e-4 * max(1, w.grad.abs().max().item())


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_head(layers, training):
    """lightly's layers before a batch norm have no bias, as the authors' have, and its last one has; set to 0 in both."""
    torch.manual_seed(0)
    theirs = VICRegProjectionHead(19, 31, 13, layers)
    ours = mlp_head(19, *[31] * (layers - 1), 13, bias=True, last_bias=False)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    nn.init.zeros_(theirs.layers[-1].bias)
    named = {name.removeprefix("layers."): value for name, value in theirs.state_dict().items()}
    found = ours.load_state_dict(named, strict=False)
    assert found.missing_keys == [f"{3 * i}.bias" for i in range(layers - 1)]
    assert found.unexpected_keys == [f"{3 * (layers - 1)}.bias"]
    for name in found.missing_keys:
        nn.init.zeros_(ours.get_parameter(name))
    x = torch.randn(9, 19)
    assert largest(ours.train(training)(x), theirs.train(training)(x)) <= 1e-5


# --- files of the authors' ---


class Authors(nn.Module):
    """The modules of their ``VICReg`` by name, on a shallower ResNet of torchvision's, whose names theirs has."""

    def __init__(self, block: type, mlp: str) -> None:
        super().__init__()
        self.backbone = torchvision.models.ResNet(block, [1, 1, 1, 1])
        self.backbone.fc = nn.Identity()
        # theirs pads the picture by one pixel, and its first convolution by one less
        self.backbone.conv1.padding = (2, 2)
        f = [512 * block.expansion, *map(int, mlp.split("-"))]
        layers: list[nn.Module] = []
        for i in range(len(f) - 2):
            layers += [nn.Linear(f[i], f[i + 1]), nn.BatchNorm1d(f[i + 1]), nn.ReLU(True)]
        self.projector = nn.Sequential(*layers, nn.Linear(f[-2], f[-1], bias=False))

    def features(self, x):
        return self.backbone(F.pad(x, (1, 1, 1, 1)))

    def forward(self, x, y):
        x, y = self.projector(self.features(x)), self.projector(self.features(y))
        total = 25 * F.mse_loss(x, y)
        for z in (x, y):
            cov = torch.cov(z.T)
            total = total + 25 * F.relu(1 - torch.sqrt(z.var(0) + 0.0001)).mean() / 2
            total = total + (cov - torch.diag(torch.diagonal(cov))).pow(2).sum() / z.shape[1]
        return total


def authors(block: type, mlp: str) -> Authors:
    torch.manual_seed(0)
    model = Authors(block, mlp)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


BLOCKS = [torchvision.models.resnet.BasicBlock, torchvision.models.resnet.Bottleneck]


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("block, mlp", [(BLOCKS[0], "24-24-17"), (BLOCKS[1], "9-12"), (BLOCKS[0], "10-11-12-13")])
def test_the_authors_checkpoint_there_and_back(block: type, mlp: str, wrapped: bool, tmp_path: Path) -> None:
    theirs = authors(block, mlp)
    prefix = "module." if wrapped else ""
    state = {f"{prefix}{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"epoch": 3, "model": state, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "model.pth")
    ours = load(tmp_path / "model.pth")
    assert isinstance(ours, VICReg)
    views = torch.randn(2, 5, 3, 64, 64).unbind()
    with torch.no_grad():
        want = theirs(*views)
        torch.testing.assert_close(ours.features(views[0]), theirs.features(views[0]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours({"views": views})["loss"], want, atol=1e-5, rtol=1e-5)

    back = authors(block, mlp)
    for parameter in back.parameters():
        nn.init.zeros_(parameter)
    kept = torch.load(export(ours, "authors", tmp_path / "back.pth"), weights_only=True)["model"]
    nn.ModuleDict({"module": back}).load_state_dict(kept)  # strict: every name of theirs, under their DDP's prefix
    with torch.no_grad():
        torch.testing.assert_close(back(*views), want, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in authors(BLOCKS[0], "8-8-8").state_dict().items()}
    torch.save(
        {"model": {k: v for k, v in state.items() if not k.startswith("module.projector.3")}}, tmp_path / "a.pth"
    )
    with pytest.raises(SensoriumError, match=r"a.pth: 'module.projector."):
        load(tmp_path / "a.pth")
    bare = {k: v for k, v in state.items() if not (k.startswith("module.projector") and v.ndim == 2)}
    torch.save({"model": bare}, tmp_path / "b.pth")
    with pytest.raises(SensoriumError, match=r"b.pth: 'module.projector.\*.weight' has 0 linear layers"):
        load(tmp_path / "b.pth")
    head = mlp_head(16, 8, 8, bias=True, last_bias=False)
    for backbone, why in (
        (ViT(8, 4, 16, 2, 2), "the authors' code has a ResNet, not a ViT"),
        (ResNet((1, 1), 8, stem="small"), "the authors' ResNet has no 'small' stem"),
        (ResNet((1, 1), 8), "the authors' ResNet has four stages, this network 2"),
        (ResNet((1,) * 4, 2, stem_width=4), "the authors' ResNet has a stem of 2 channels, this network 4"),
        (ResNet((1,) * 4, 2, first_stride=2), "the authors' ResNet has its strides in other layers"),
    ):
        with pytest.raises(SensoriumError, match=why):
            export(VICReg(backbone, head), "authors", tmp_path / "c.pth")
