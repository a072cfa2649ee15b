"""MoCo v3: the loss and heads against the authors' formulas, written plainly, and lightly's head; the authors' checkpoints.

facebookresearch/moco-v3: ``MoCo.contrastive_loss``, ``_build_mlp``, ``MoCo_ResNet``, ``MoCo_ViT`` (moco/builder.py),
``VisionTransformerMoCo`` (vits.py), ``main_moco.py``, ``main_lincls.py``. Their encoders are torchvision's and timm's.
"""

import pytest
import torch
from lightly.models.modules.heads import MoCoProjectionHead
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.heads import mlp_head
from sensorium.published import export, load, load_backbone
from sensorium.selfsup.moco_v3.method import MoCoV3, contrast
from sensorium.selfsup.moco_v3.recipe import heads, start_


def largest(a, b):
    return (a - b).abs().max().item()


def their_loss(q, k, temperature):
    """``contrastive_loss`` in one process."""
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    logits = torch.einsum("nc,mc->nm", q, k) / temperature
    return nn.CrossEntropyLoss()(logits, torch.arange(len(q))) * (2 * temperature)


def their_mlp(layers, inputs, hidden, outputs, last_norm=True):
    """``_build_mlp``."""
    parts = []
    for i in range(layers):
        before, after = inputs if i == 0 else hidden, outputs if i == layers - 1 else hidden
        parts.append(nn.Linear(before, after, bias=False))
        if i < layers - 1:
            parts += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        elif last_norm:
            parts.append(nn.BatchNorm1d(after, affine=False))
    return nn.Sequential(*parts)


@pytest.mark.parametrize("batch, width", [(1, 5), (2, 16), (7, 33), (64, 256)])
@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("near", [False, True])
def test_values_and_gradients(batch, width, temperature, near):
    torch.manual_seed(batch)
    q = torch.randn(batch, width)
    k = q + 0.1 * torch.randn(batch, width) if near else 3 * torch.randn(batch, width)
    q1, q2 = q.clone().requires_grad_(), q.clone().requires_grad_()
    k1 = k.clone().requires_grad_()
    got, want = contrast(q1, k1, temperature)["loss"], their_loss(q2, k, temperature)
    assert largest(got, want) <= 1e-5
    got.backward()
    want.backward()
    assert k1.grad is None
    assert largest(q1.grad, q2.grad) <= 1e-4 * q2.grad.abs().max() + 1e-9 / temperature


@pytest.mark.parametrize("vit", [False, True])
def test_heads_are_the_authors(vit):
    torch.manual_seed(0)
    ours = heads(19, 31, 13, vit=vit)
    theirs = their_mlp(3 if vit else 2, 19, 31, 13), their_mlp(2, 13, 31, 13, last_norm=vit)
    for mine, other, width in zip(ours, theirs, (19, 13), strict=True):
        assert [str(part) for part in mine] == [str(part) for part in other]
        other.load_state_dict(mine.state_dict())
        for training in (True, False):
            x1 = torch.randn(9, width, requires_grad=True)
            x2 = x1.detach().clone().requires_grad_()
            got, want = mine.train(training)(x1), other.train(training)(x2)
            assert largest(got, want) <= 1e-5
            weight = torch.randn_like(got)
            (got * weight).mean().backward()
            (want * weight).mean().backward()
            assert largest(x1.grad, x2.grad) <= 1e-4


@pytest.mark.parametrize("layers", [2, 3])
def test_head_is_lightlys_before_its_last_scale(layers):
    torch.manual_seed(0)
    theirs = MoCoProjectionHead(19, 31, 13, layers, batch_norm=True)
    ours = mlp_head(19, *[31] * (layers - 1), 13, standardized=True)
    state = {name.removeprefix("layers."): tensor for name, tensor in theirs.state_dict().items()}
    absent = ours.load_state_dict(state, strict=False)
    assert not absent.missing_keys
    assert absent.unexpected_keys == [f"{3 * layers - 2}.weight", f"{3 * layers - 2}.bias"]  # one and zero at first
    x = torch.randn(9, 19)
    assert largest(ours(x), theirs(x)) <= 1e-5


def test_steps_are_the_authors():
    """Loss, gradients and the momentum encoder over steps; theirs moves it at the start of a step, by that step's m."""
    torch.manual_seed(0)
    ours = MoCoV3(ResNet((1, 1), 8, stem="small"), *heads(16, 12, 6, vit=True), temperature=0.2, momentum=0.9)
    k = [p.clone() for p in ours.teacher.parameters()]
    momentum = nn.ModuleDict({"backbone": ResNet((1, 1), 8, stem="small"), "head": heads(16, 12, 6, vit=True)[0]})
    for step in range(3):
        at = Progress(step, 0, 0.0)
        k = [b * 0.9 + a.detach() * (1.0 - 0.9) for a, b in zip(ours.base.parameters(), k, strict=True)]
        for p, value in zip(momentum.parameters(), k, strict=True):
            p.data.copy_(value)
        x1, x2 = torch.randn(2, 6, 3, 8, 8).unbind()
        ours.zero_grad()
        ours.before_step(at)
        got = ours({"views": [x1, x2]})["loss"]
        q1, q2 = (ours.predictor(ours.base["head"](ours.base["backbone"].features(x))) for x in (x1, x2))
        with torch.no_grad():
            k1, k2 = (momentum["head"](momentum["backbone"].features(x)) for x in (x1, x2))
        want = their_loss(q1, k2, 0.2) + their_loss(q2, k1, 0.2)
        assert largest(got, want) <= 1e-5
        learned = [p for p in ours.parameters() if p.requires_grad]
        expected = torch.autograd.grad(want, learned)
        got.backward()
        assert max(largest(p.grad, g) for p, g in zip(learned, expected, strict=True)) <= 1e-4
        with torch.no_grad():
            for p in learned:
                p.sub_(0.1 * p.grad)
        ours.after_step(at)


def test_a_vit_starts_with_the_authors_positions_and_scales():
    """Their table, for square grids: of token n the row, n div w, is the first half of the channels, sines before cosines."""
    torch.manual_seed(0)
    width, side = 48, 5
    ours = ViT(40, 8, width, 2, 12, positions="sincos", init="xavier")
    start_(ours)
    down, across = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    omega = 1.0 / 10000 ** (torch.arange(width // 4) / (width // 4))
    first, second = (torch.einsum("m,d->md", place.flatten(), omega) for place in (down, across))
    table = torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], 1)
    assert largest(ours.pos_embed[0, 1:], table) <= 1e-6
    assert ours.pos_embed[0, 0].abs().max() == 0
    assert not ours.pos_embed.requires_grad
    bound = (6 / (width + width)) ** 0.5
    weight = ours.blocks[0].attn.qkv.weight
    assert 0.95 * bound < weight.abs().max() <= bound
    assert ours.cls_token.abs().max() < 1e-5


# --- checkpoints ---


def randomized(network):
    """Norms about one, running variances above zero, so that nothing agrees by being small."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias", "cls_token")):
            tensor.normal_(std=0.1)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    return network.eval()


def their_resnet(block, layers):
    encoder = TorchvisionResNet(block, layers)
    encoder.fc = their_mlp(2, encoder.fc.in_features, 24, 10)
    return randomized(encoder)


def their_vit(side, patch, width, depth):
    encoder = VisionTransformer(side, patch, embed_dim=width, depth=depth, num_heads=12)
    encoder.head = their_mlp(3, width, 24, 10)
    return randomized(encoder)


def checkpoint(path, base, momentum, predictor, *, prefix="module."):
    state = {f"base_encoder.{name}": tensor for name, tensor in base.state_dict().items()}
    state |= {f"momentum_encoder.{name}": tensor for name, tensor in momentum.state_dict().items()}
    state |= {f"predictor.{name}": tensor for name, tensor in predictor.state_dict().items()}
    kept = {"epoch": 300, "arch": "vit_small", "state_dict": {prefix + name: tensor for name, tensor in state.items()}}
    torch.save(kept | {"optimizer": {"state": {}, "param_groups": []}, "scaler": {"scale": 65536.0}}, path)
    return kept["state_dict"]


MADE = {
    "a ResNet of basic blocks": (lambda: their_resnet(BasicBlock, [1, 2, 1, 1]), False, 40),
    "a ResNet of bottlenecks": (lambda: their_resnet(Bottleneck, [1, 1, 1, 1]), False, 33),
    "a ViT": (lambda: their_vit(32, 8, 48, 2), True, 32),
    "a ViT with other patches": (lambda: their_vit(33, 11, 96, 3), True, 33),
}


@pytest.mark.parametrize("made, vit, side", MADE.values(), ids=MADE)
def test_the_authors_checkpoints(made, vit, side, tmp_path):
    torch.manual_seed(0)
    base, momentum = made(), made()
    predictor = randomized(their_mlp(2, 10, 24, 10, last_norm=vit))
    path = tmp_path / "vit-s-300ep.pth.tar"
    state = checkpoint(path, base, momentum, predictor)
    ours = load(path)
    assert isinstance(ours, MoCoV3)
    assert (ours.temperature, ours.momentum) == (0.2 if vit else 1.0, 0.99)
    x1, x2 = torch.randn(2, 5, 3, side, side).unbind()
    tau = ours.temperature
    with torch.no_grad():
        want = their_loss(predictor(base(x1)), momentum(x2), tau) + their_loss(predictor(base(x2)), momentum(x1), tau)
        assert largest(ours({"views": [x1, x2]})["loss"], want) <= 1e-5
        if vit:
            assert largest(ours.features(x1), base.forward_head(base.forward_features(x1), pre_logits=True)) <= 1e-5
    backbone = load_backbone(path)
    assert isinstance(backbone, ViT if vit else ResNet)
    assert backbone.normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(backbone.features(x1), ours.features(x1))

    back = torch.load(export(ours, "authors", tmp_path / "back.pth"), weights_only=True)["state_dict"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    # as main_lincls.py does, but with the projector
    other = made()
    other.load_state_dict(
        {n.removeprefix("module.base_encoder."): t for n, t in back.items() if n.startswith("module.base_encoder")}
    )
    with torch.no_grad():
        assert torch.equal(other(x1), base(x1))
    checkpoint(tmp_path / "bare.pth", base, momentum, predictor, prefix="")
    assert torch.equal(load(tmp_path / "bare.pth").features(x1), ours.features(x1))

    ours.train()
    ours({"views": [x1, x2]})["loss"].backward()  # training goes on
    assert all(p.grad is not None for p in ours.parameters() if p.requires_grad)
    if vit:
        assert not any(p.requires_grad for p in ours.backbone.patch_embed.parameters())
        assert load(path, heads=6).backbone.heads == 6
    for file in tmp_path.glob("*.pth*"):  # torchvision's smallest are large
        file.unlink()


def test_broken_checkpoints_are_named(tmp_path):
    base = their_vit(32, 8, 48, 1)
    path, predictor = tmp_path / "moco.pth.tar", their_mlp(2, 10, 24, 10)
    state = checkpoint(path, base, base, predictor)

    def refused(match, **changes):
        changed = {name: tensor for name, tensor in (state | changes).items() if tensor is not None}
        torch.save({"state_dict": changed}, path)
        with pytest.raises(SensoriumError, match=rf"moco\.pth\.tar: {match}"):
            load(path)

    refused(r"'module\.momentum_encoder\.norm\.bias' is missing", **{"module.momentum_encoder.norm.bias": None})
    refused(r"'module\.predictor\.9\.weight' is unknown", **{"module.predictor.9.weight": torch.zeros(1)})
    refused(
        "a ViT with a stem of convolutions",
        **{"module.base_encoder.patch_embed.proj.weight": None, "module.base_encoder.patch_embed.proj.0.weight": torch.zeros(6, 3, 3, 3)},
    )  # fmt: skip
    refused(
        r"'module\.base_encoder\.head\.6\.weight' has shape \[10, 23\]",
        **{"module.base_encoder.head.6.weight": torch.zeros(10, 23)},
    )


def test_what_the_authors_format_cannot_hold(tmp_path):
    def exported(backbone, **changes):
        parts = heads(backbone.dim, 10, 6, vit=changes.get("vit", isinstance(backbone, ViT)))
        return export(MoCoV3(backbone, *parts), "authors", tmp_path / "x.pth")

    with pytest.raises(SensoriumError, match="has 12 heads, this network 3"):
        exported(ViT(32, 8, 48, 1, 3))
    with pytest.raises(SensoriumError, match="features from the class token"):
        exported(ViT(32, 8, 48, 1, 12, pool="mean"))
    with pytest.raises(SensoriumError, match="no register tokens"):
        exported(ViT(32, 8, 48, 1, 12, registers=2))
    with pytest.raises(
        SensoriumError, match="a projector of other layers than Linear, BatchNorm1d, ReLU, Linear, BatchNorm1d"
    ):
        exported(ViT(32, 8, 48, 1, 12), vit=False)
    with pytest.raises(SensoriumError, match="no 'small' stem"):
        exported(ResNet((1, 1), 8, stem="small"))
