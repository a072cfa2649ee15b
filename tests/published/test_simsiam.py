"""Checkpoints of SimSiam's authors (facebookresearch/simsiam: ``SimSiam`` in simsiam/builder.py, ``save_checkpoint`` in
main_simsiam.py): their names and shapes, at random; read by us, and held to torchvision's ResNet with their projector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.heads import mlp_head
from sensorium.published import load
from sensorium.published.format import IMAGENET
from sensorium.published.load import load_backbone
from sensorium.published.opening import save
from sensorium.selfsup.simsiam.formats import AUTHORS
from sensorium.selfsup.simsiam.method import SimSiam

Layout = dict[str, tuple[int, ...]]
ENCODERS = {"18": torchvision.models.resnet18, "50": torchvision.models.resnet50}
SIZES = [("18", 24, 6), ("50", 33, 10)]  # resnet, dim, pred_dim


def batch_norm(name: str, width: int, affine: bool = True) -> Layout:
    learned = {f"{name}.weight": (width,), f"{name}.bias": (width,)} if affine else {}
    return learned | {
        f"{name}.running_mean": (width,),
        f"{name}.running_var": (width,),
        f"{name}.num_batches_tracked": (),
    }


def layout(size: str, dim: int, pred_dim: int) -> Layout:
    """torchvision's encoder, whose ``fc`` is the projector, as wide as the features; a bias only in its last layer."""
    resnet = ENCODERS[size]()
    width = resnet.fc.in_features
    body = {f"encoder.{n}": tuple(t.shape) for n, t in resnet.state_dict().items() if not n.startswith("fc.")}
    return body | {
        "encoder.fc.0.weight": (width, width),
        **batch_norm("encoder.fc.1", width),
        "encoder.fc.3.weight": (width, width),
        **batch_norm("encoder.fc.4", width),
        "encoder.fc.6.weight": (dim, width),
        "encoder.fc.6.bias": (dim,),
        **batch_norm("encoder.fc.7", dim, affine=False),
        "predictor.0.weight": (pred_dim, dim),
        **batch_norm("predictor.1", pred_dim),
        "predictor.3.weight": (dim, pred_dim),
        "predictor.3.bias": (dim,),
    }


def filled(shapes: Layout) -> dict[str, Tensor]:
    """Random values of a usual size; the frozen bias is as large as what is added to it."""
    g = torch.Generator().manual_seed(0)

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        x = torch.randn(shape, generator=g)
        if name.endswith("running_var") or (x.ndim == 1 and name.endswith("weight")):
            return 1 + (0.1 * x).clamp(-0.5, 0.5)
        return x * x[0].numel() ** -0.5 if x.ndim > 1 else x * (1.0 if name.endswith("fc.6.bias") else 0.1)

    return {name: tensor(name, shape) for name, shape in shapes.items()}


def reference(size: str, dim: int, pred_dim: int, state: dict[str, Tensor]) -> nn.ModuleDict:
    """torchvision's network with the layers that the names tell."""
    encoder = ENCODERS[size]()
    width = encoder.fc.in_features
    encoder.fc = nn.Sequential(
        nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, dim), nn.BatchNorm1d(dim, affine=False),
    )  # fmt: skip
    predictor = nn.Sequential(
        nn.Linear(dim, pred_dim, bias=False), nn.BatchNorm1d(pred_dim), nn.ReLU(), nn.Linear(pred_dim, dim)
    )
    theirs = nn.ModuleDict({"encoder": encoder, "predictor": predictor})
    theirs.load_state_dict(state)
    return theirs.eval()


def save_theirs(path: Path, size: str, state: dict[str, Tensor], prefix: str = "module.") -> Path:
    kept = {"epoch": 100, "arch": f"resnet{size}", "state_dict": {prefix + n: t for n, t in state.items()}}
    torch.save(kept | {"optimizer": {"state": {}, "param_groups": []}}, path)
    return path


def close(got: Tensor, wanted: Tensor) -> None:
    """Within 1e-5 of the outputs' own size, which the random weights of a deep ResNet make large."""
    assert wanted.std() > 1e-2
    torch.testing.assert_close(got / wanted.std(), wanted / wanted.std(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size, dim, pred_dim", SIZES)
def test_it_is_read_and_written_back_whole(size: str, dim: int, pred_dim: int, tmp_path: Path) -> None:
    shapes = layout(size, dim, pred_dim)
    state = filled(shapes)
    theirs = reference(size, dim, pred_dim, state)
    path = save_theirs(tmp_path / "checkpoint_0099.pth.tar", size, state)
    ours = load(path)
    assert isinstance(ours, SimSiam)
    assert ours.normalization == ours.backbone.normalization == IMAGENET
    x = torch.randn(3, 3, 41, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z, wanted = ours.projector(ours.features(x)), theirs["encoder"](x)
        close(z, wanted)
        close(ours.predictor(z), theirs["predictor"](wanted))

        written = torch.load(save(AUTHORS, ours, tmp_path / "back"), weights_only=True)["state_dict"]
        assert {n: tuple(t.shape) for n, t in written.items()} == {f"module.{n}": s for n, s in shapes.items()}
        again = reference(size, dim, pred_dim, {n.removeprefix("module."): t for n, t in written.items()})
        assert not again["encoder"].fc[6].bias.any()
        close(again["encoder"](x), wanted)
        close(again["predictor"](again["encoder"](x)), theirs["predictor"](wanted))


def test_without_its_wrapper_and_as_a_backbone(tmp_path: Path) -> None:
    state = filled(layout(*SIZES[0]))
    wrapped = load(save_theirs(tmp_path / "wrapped.pth.tar", "18", state))
    plain = load(save_theirs(tmp_path / "plain.pth", "18", state, prefix=""))
    assert isinstance(plain, SimSiam)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), wrapped.state_dict().values(), strict=True)
    )
    network = load_backbone(tmp_path / "wrapped.pth.tar")
    assert isinstance(network, ResNet)
    assert network.normalization == IMAGENET
    assert torch.equal(network.conv1.weight, state["encoder.conv1.weight"])


def test_the_last_bias_changes_nothing_in_training(tmp_path: Path) -> None:
    """A normalization follows, which takes it away: gradients, too, are those of their network."""
    state = filled(layout(*SIZES[0]))
    theirs = reference(*SIZES[0], state).train()
    ours = load(save_theirs(tmp_path / "checkpoint.pth.tar", "18", state)).train()
    x1, x2 = torch.randn(2, 4, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    z1, z2 = theirs["encoder"](x1), theirs["encoder"](x2)
    cos = nn.CosineSimilarity(dim=1)
    want = -(cos(theirs["predictor"](z1), z2.detach()).mean() + cos(theirs["predictor"](z2), z1.detach()).mean()) * 0.5
    got = ours({"views": [x1, x2]})["loss"]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    got.backward()
    want.backward()
    named = dict(theirs.named_parameters())
    for part, prefix in ((ours.backbone, "encoder."), (ours.projector, "encoder.fc."), (ours.predictor, "predictor.")):
        for name, p in part.named_parameters():
            torch.testing.assert_close(p.grad, named[prefix + name].grad, atol=1e-4, rtol=0)


def test_what_is_wrong_with_a_file_is_told(tmp_path: Path) -> None:
    state = filled(layout(*SIZES[0]))
    for change, told in (
        ({"encoder.fc.6.bias": torch.zeros(5)}, r"bad\.pth: 'module\.encoder\.fc\.6\.bias' has shape \[5\]"),
        (
            {"encoder.fc.3.weight": torch.zeros(512, 5)},
            r"bad\.pth: 'module\.encoder\.fc\.3\.weight' has shape \[512, 5\]",
        ),
        ({"predictor.0.weight": torch.zeros(6)}, r"bad\.pth: 'module\.predictor\.0\.weight' has shape \[6\]"),
        ({"encoder.more.weight": torch.zeros(1)}, r"bad\.pth: 'module\.encoder\.more\.weight' is unknown"),
    ):
        with pytest.raises(SensoriumError, match=told) as error:
            load(save_theirs(tmp_path / "bad.pth", "18", state | change))
        assert "\n" not in str(error.value)


def test_what_their_code_cannot_build_is_refused(tmp_path: Path) -> None:
    def simsiam(backbone, width):
        return SimSiam(backbone, mlp_head(backbone.dim, width, width, 8, standardized=True), mlp_head(8, 4, 8))

    wide = {"layers": (1, 1, 1, 1), "width": (8, 8, 8, 16), "stem_width": 64}
    for network, told in (
        (simsiam(ViT(8, 4, 16, 1, 2), 16), "needs a ResNet, not a ViT"),
        (simsiam(ResNet(**wide, stem="small"), 16), "four stages and a stem for large pictures"),
        (simsiam(ResNet((1, 1, 1), (8, 8, 16), stem_width=64), 16), "four stages and a stem for large pictures"),
        (simsiam(ResNet(**wide), 12), "as wide as the features, 16: train with --hidden 16"),
    ):
        with pytest.raises(SensoriumError, match=told):
            save(AUTHORS, network, tmp_path / "out")
