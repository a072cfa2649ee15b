"""MoBY's loss, heads, queues and moving average, as the authors' code has them (SwinTransformer/Transformer-SSL,
models/moby.py), written plainly; and files of their names, for whose encoder timm's Swin and ViT are the reference."""

import math

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import nn
from torch.nn import functional as F

from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.networks.swin import Swin
from sensorium.parts.heads import mlp_head
from sensorium.parts.learning.info_nce import info_nce
from sensorium.published import export, load, load_backbone
from sensorium.published.format import write
from sensorium.selfsup.moby.formats import SWIN
from sensorium.selfsup.moby.method import MoBY


def largest(a, b):
    return (a - b).abs().max().item()


def authors_loss(q, k, queue, temperature):
    """``contrastive_loss``: q, k [N, C], queue [C, K]."""
    logits = torch.cat([torch.einsum("nc,nc->n", q, k)[:, None], torch.einsum("nc,ck->nk", q, queue)], dim=1)
    return F.cross_entropy(logits / temperature, torch.zeros(len(q), dtype=torch.long))


@pytest.mark.parametrize("batch, dim, entries", [(1, 3, 1), (5, 16, 33), (8, 256, 512)])
@pytest.mark.parametrize("temperature", [0.2, 0.07])
def test_loss_and_gradients(batch, dim, entries, temperature):
    torch.manual_seed(batch)
    q, k, queue = torch.randn(batch, dim), torch.randn(batch, dim), F.normalize(torch.randn(entries, dim), dim=1)
    q1, q2 = q.clone().requires_grad_(), q.clone().requires_grad_()
    got = info_nce(q1, k, queue, temperature)["loss"]
    want = authors_loss(F.normalize(q2, dim=1), F.normalize(k, dim=1), queue.T, temperature)
    got.backward()
    want.backward()
    assert largest(got, want) <= 1e-5
    assert largest(q1.grad, q2.grad) <= 1e-4
    assert q1.grad.abs().max() > 0


class Head(nn.Module):
    """``MoBYMLP``, with the batch norm of one process."""

    def __init__(self, inputs, inner, out):
        super().__init__()
        self.linear_hidden = nn.Sequential(
            nn.Identity(), nn.Linear(inputs, inner), nn.BatchNorm1d(inner), nn.ReLU(inplace=True)
        )
        self.linear_out = nn.Linear(inner, out)

    def forward(self, x):
        return self.linear_out(self.linear_hidden(x))


class Authors(nn.Module):
    """``MoBY``, its steps in the authors' order."""

    def __init__(self, encoder, encoder_k, dim, inner, out, entries, steps, momentum, temperature):
        super().__init__()
        self.encoder, self.encoder_k = encoder, encoder_k
        self.projector, self.projector_k, self.predictor = (
            Head(dim, inner, out),
            Head(dim, inner, out),
            Head(out, inner, out),
        )
        for online, key in ((self.encoder, self.encoder_k), (self.projector, self.projector_k)):
            for p_q, p_k in zip(online.parameters(), key.parameters(), strict=True):
                p_k.data.copy_(p_q.data)
                p_k.requires_grad = False
        self.register_buffer("queue1", F.normalize(torch.randn(out, entries), dim=0))
        self.register_buffer("queue2", F.normalize(torch.randn(out, entries), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self.k, self.K, self.momentum, self.temperature = 0, steps, momentum, temperature

    def forward(self, x1, x2):
        pred1 = F.normalize(self.predictor(self.projector(self.encoder(x1))), dim=1)
        pred2 = F.normalize(self.predictor(self.projector(self.encoder(x2))), dim=1)
        with torch.no_grad():
            m = 1 - (1 - self.momentum) * (math.cos(math.pi * self.k / self.K) + 1) / 2
            self.k += 1
            for online, key in ((self.encoder, self.encoder_k), (self.projector, self.projector_k)):
                for p_q, p_k in zip(online.parameters(), key.parameters(), strict=True):
                    p_k.data = p_k.data * m + p_q.data * (1 - m)
            key1 = F.normalize(self.projector_k(self.encoder_k(x1)), dim=1)
            key2 = F.normalize(self.projector_k(self.encoder_k(x2)), dim=1)
        loss = authors_loss(pred1, key2, self.queue2.clone(), self.temperature)
        loss = loss + authors_loss(pred2, key1, self.queue1.clone(), self.temperature)
        place = int(self.queue_ptr)
        self.queue1[:, place : place + len(x1)] = key1.T
        self.queue2[:, place : place + len(x1)] = key2.T
        self.queue_ptr[0] = (place + len(x1)) % self.queue1.shape[1]
        return loss


def pair(entries=24, momentum=0.9, temperature=0.2, steps=6):
    """Ours on a network with batch norms, and the authors' with the same weights."""
    torch.manual_seed(0)
    heads = mlp_head(16, 20, 12, bias=True), mlp_head(12, 20, 12, bias=True)
    ours = MoBY(
        ResNet((1, 1), 8, stem="small"), *heads, dim_keys=12, negatives=entries, momentum=momentum, temperature=temperature
    )  # fmt: skip
    nets = [ResNet((1, 1), 8, stem="small") for _ in range(2)]
    for net in nets:
        net.load_state_dict(ours.backbone.state_dict())
    theirs = Authors(*nets, 16, 20, 12, entries, steps, momentum, temperature)
    places = {"0": "linear_hidden.1", "1": "linear_hidden.2", "3": "linear_out"}
    for name in ("projector", "predictor", "projector_k"):
        state = (ours.predictor if name == "predictor" else ours.projector).state_dict()
        getattr(theirs, name).load_state_dict(
            {f"{places[key.partition('.')[0]]}.{key.partition('.')[2]}": value.clone() for key, value in state.items()}
        )
    theirs.queue1.copy_(ours.queue.rows[:, :12].T)
    theirs.queue2.copy_(ours.queue.rows[:, 12:].T)
    return ours, theirs


@pytest.mark.parametrize("batch, entries", [(4, 24), (8, 24), (3, 9)])
@pytest.mark.parametrize("momentum", [0.5, 0.99])
def test_steps_of_the_method(batch, entries, momentum):
    """Two rounds of the queue, with descent in between: losses, gradients, queues, moving averages, running statistics.
    In float64, or batch norms over so few samples would magnify rounding from step to step."""
    steps = 2 * entries // batch
    ours, theirs = (network.double() for network in pair(entries, momentum, steps=steps))
    for step in range(steps):
        made = torch.Generator().manual_seed(step)
        x1, x2 = (torch.randn(batch, 3, 9, 8, generator=made, dtype=torch.float64) for _ in range(2))
        at = Progress(step, 0, step / steps)
        ours.zero_grad()
        theirs.zero_grad()
        ours.before_step(at)
        got, want = ours({"views": [x1, x2]})["loss"], theirs(x1, x2)
        assert largest(got, want) <= 1e-8
        got.backward()
        want.backward()
        for mine, their in (
            (ours.backbone, theirs.encoder),
            (ours.projector, theirs.projector),
            (ours.predictor, theirs.predictor),
        ):
            for p, q in zip(mine.parameters(), their.parameters(), strict=True):
                assert largest(p.grad, q.grad) <= 1e-7
                assert q.grad.abs().max() > 0
        with torch.no_grad():
            for net in (ours, theirs):
                for p in net.parameters():
                    if p.grad is not None:
                        p -= 0.02 * p.grad
        ours.after_step(at)
        assert largest(ours.queue.rows, torch.cat([theirs.queue1, theirs.queue2]).T) <= 1e-8
        assert int(ours.queue.at) == int(theirs.queue_ptr)
        for mine, their in (
            (ours.teacher["backbone"], theirs.encoder_k),
            (ours.teacher["projector"], theirs.projector_k),
            (ours.backbone, theirs.encoder),
        ):
            for a, b in zip(mine.state_dict().values(), their.state_dict().values(), strict=True):
                assert largest(a.double(), b.double()) <= 1e-8
    assert ours.queue.full


def authors_file(path):
    """A training checkpoint: timm's Swin moved to the authors' names, all numbers random. Returns the network, too."""
    torch.manual_seed(3)
    how = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 0}
    nets = [SwinTransformer(**how).eval() for _ in range(2)]
    theirs = Authors(nn.Identity(), nn.Identity(), 16, 20, 12, 10, 5, 0.9, 0.2)
    state = {
        name: tensor + 0.1 * torch.rand_like(tensor.float()).to(tensor.dtype)
        for name, tensor in theirs.state_dict().items()
    }
    state["queue_ptr"] = torch.tensor([7])
    for prefix, net in zip(("encoder.", "encoder_k."), nets, strict=True):
        for tensor in net.state_dict().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
        moved = {
            name.replace("layers.1.downsample", "layers.0.downsample"): tensor
            for name, tensor in net.state_dict().items()
        }
        index = {
            f"layers.{s}.blocks.{i}.attn.relative_position_index": torch.zeros(16, 16).long()
            for s in (0, 1)
            for i in (0, 1)
        }
        mask = {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
        assert checkpoint_filter_fn({"model": moved | index | mask}, net).keys() == net.state_dict().keys()
        state |= {prefix + name: tensor for name, tensor in (moved | index | mask).items()}
    torch.save({"model": state, "epoch": 299, "max_accuracy": 0.0}, path)
    return state, nets


def test_the_authors_checkpoint_in_and_out(tmp_path):
    state, (online, key) = authors_file(tmp_path / "checkpoint.pth")
    ours = load(tmp_path / "checkpoint.pth")
    assert isinstance(ours, MoBY)
    assert isinstance(ours.backbone, Swin)
    images = torch.randn(2, 3, 32, 32)
    assert largest(ours.features(images), online(images)) <= 1e-5
    assert largest(ours.teacher["backbone"].features(images), key(images)) <= 1e-5
    assert torch.equal(ours.queue.rows, torch.cat([state["queue1"], state["queue2"]]).T)
    assert int(ours.queue.at) == 7
    head = Head(12, 20, 12).eval()
    head.load_state_dict({n.removeprefix("predictor."): t for n, t in state.items() if n.startswith("predictor.")})
    x = torch.randn(5, 12)
    assert largest(ours.predictor(x), head(x)) <= 1e-6
    back = write(SWIN, ours)
    assert all("relative_position_index" in name or "attn_mask" in name for name in state.keys() - back.keys())
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())
    assert back["queue_ptr"].shape == (1,)
    export(ours, "authors", tmp_path / "moby.pth")
    kept = torch.load(tmp_path / "moby.pth", weights_only=True)["model"]
    assert all(torch.equal(kept[name], tensor) for name, tensor in back.items())
    backbone = load_backbone(tmp_path / "checkpoint.pth")
    assert isinstance(backbone, Swin)
    assert backbone.normalization == ours.normalization


def test_the_authors_checkpoint_on_a_deit(tmp_path):
    """Their DeiT-small is timm's; its feature is the normed class token."""
    torch.manual_seed(3)
    numbers = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}
    nets = [timm.models.VisionTransformer(**numbers).eval() for _ in range(2)]
    state = Authors(nn.Identity(), nn.Identity(), 128, 20, 12, 10, 5, 0.9, 0.2).state_dict()
    for prefix, net in zip(("encoder.", "encoder_k."), nets, strict=True):
        state |= {prefix + name: tensor for name, tensor in net.state_dict().items()}
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    ours = load(tmp_path / "checkpoint.pth")
    images = torch.randn(2, 3, 32, 32)
    assert largest(ours.features(images), nets[0](images)) <= 1e-5
