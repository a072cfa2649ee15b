"""MoCo v1: InfoNCE against a queue, and steps of the method, against lightly's; the authors' checkpoints.

facebookresearch/moco: ``MoCo`` (moco/builder.py), ``save_checkpoint`` (main_moco.py), and how ``main_lincls.py`` takes the
query encoder out of a checkpoint. Their encoders are torchvision's.
"""

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from sensorium.abilities import Encoder
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.parts.learning.info_nce import info_nce
from sensorium.published import export, load, load_backbone
from sensorium.selfsup.moco_v1.method import MoCo


def largest(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("batch, width, size", [(1, 5, 1), (2, 16, 7), (7, 33, 64), (64, 128, 1000)])
@pytest.mark.parametrize("temperature", [0.05, 0.07, 0.2, 1.0])
@pytest.mark.parametrize("near", [False, True])
def test_values_and_gradients(batch, width, size, temperature, near):
    torch.manual_seed(batch)
    q = torch.randn(batch, width)
    k = q + 0.1 * torch.randn(batch, width) if near else 3 * torch.randn(batch, width)
    theirs = NTXentLoss(temperature, memory_bank_size=(size, width))
    queue = theirs.memory_bank.bank.clone()
    q1, q2 = q.clone().requires_grad_(), q.clone().requires_grad_()
    got = info_nce(F.normalize(q1, dim=1), F.normalize(k, dim=1), queue, temperature)
    want = theirs(q2, k)
    assert largest(got["loss"], want) <= 1e-5
    got["loss"].backward()
    want.backward()
    # Relative to the largest gradient, which is nearly zero where the keys are found already.
    assert largest(q1.grad, q2.grad) <= 1e-4 * q2.grad.abs().max() + 1e-9 / temperature
    nearest = torch.cat(
        [(F.normalize(q, dim=1) * F.normalize(k, dim=1)).sum(1)[:, None], F.normalize(q, dim=1) @ queue.T], 1
    )
    assert got["contrast_top1"].item() == pytest.approx((nearest.argmax(1) == 0).float().mean().item())


class Net(nn.Module, Encoder):
    """The smallest encoder, without batch statistics."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(3, dim)

    def features(self, images):
        return self.layer(images.mean((2, 3))).tanh()


def steps(ours, size, batch, count=5):
    """Loss, gradients and queue of several steps against lightly's, whose bank is made equal where it drops keys: at its
    end it takes what fits of a batch and starts again, where ours wraps around."""
    theirs = NTXentLoss(ours.temperature, memory_bank_size=(size, ours.queue.rows.shape[1]))
    theirs.memory_bank.bank.copy_(ours.queue.rows)
    for step in range(count):
        at = Progress(step, 0, step / count)
        ours.zero_grad()
        ours.before_step(at)
        x_q, x_k = (torch.randn(batch, 3, 4, 4) + torch.randn(batch, 3, 1, 1) for _ in range(2))
        got = ours({"views": [x_q, x_k]})["loss"]
        q = ours.query["head"](ours.query["backbone"].features(x_q))
        with torch.no_grad():
            k = ours.key["head"](ours.key["backbone"].features(x_k))
        want = theirs(q, k)
        assert largest(got, want) <= 1e-5
        parameters = [p for p in ours.parameters() if p.requires_grad]
        expected = torch.autograd.grad(want, parameters)
        got.backward()
        assert max(largest(p.grad, g) for p, g in zip(parameters, expected, strict=True)) <= 1e-4
        with torch.no_grad():
            for p in parameters:
                p.sub_(0.5 * p.grad)
        ours.after_step(at)
        if size % batch == 0:
            assert largest(ours.queue.rows, theirs.memory_bank.bank) <= 1e-6
        else:
            theirs.memory_bank.bank.copy_(ours.queue.rows)
    assert ours.queue.full


@pytest.mark.parametrize("size, batch", [(12, 4), (10, 4), (5, 5), (7, 3)])
def test_steps_of_the_method(size, batch):
    torch.manual_seed(0)
    steps(MoCo(Net(11), mlp_head(11, 9), projection=9, queue=size, temperature=0.07, momentum=0.9), size, batch)


def momentum_by_the_authors(q, k, m):
    return [b * m + a * (1.0 - m) for a, b in zip(q, k, strict=True)]


def test_the_key_encoder_and_the_queue_are_the_authors_over_steps():
    """Their order: the key encoder moves at the start of a step, the queue takes the keys at its end, both written plainly."""
    torch.manual_seed(0)
    ours = MoCo(Net(7), mlp_head(7, 5), projection=5, queue=12, temperature=0.07, momentum=0.9)
    k = [p.clone() for p in ours.key.parameters()]
    queue, pointer = ours.queue.rows.T.clone(), 0  # theirs has a key a column
    for step in range(5):
        q = [p.detach().clone() for p in ours.query.parameters()]
        k = momentum_by_the_authors(q, k, 0.9)
        x_q, x_k = torch.randn(2, 4, 3, 4, 4).unbind()
        ours.before_step(Progress(step, 0, step / 5))
        got = ours({"views": [x_q, x_k]})["loss"]
        # parameters in the order of their modules: the layer's weight and bias, the head's
        unit_q = F.normalize((x_q.mean((2, 3)) @ q[0].T + q[1]).tanh() @ q[2].T + q[3], dim=1)
        unit_k = F.normalize((x_k.mean((2, 3)) @ k[0].T + k[1]).tanh() @ k[2].T + k[3], dim=1)
        logits = torch.cat(
            [torch.einsum("nc,nc->n", unit_q, unit_k)[:, None], torch.einsum("nc,ck->nk", unit_q, queue)], 1
        )
        assert largest(got, F.cross_entropy(logits / 0.07, torch.zeros(4, dtype=torch.long))) <= 1e-5
        queue[:, pointer : pointer + 4] = unit_k.T
        pointer = (pointer + 4) % 12
        got.backward()
        with torch.no_grad():
            for p in ours.query.parameters():
                p.sub_(0.5 * p.grad)
                p.grad = None
        ours.after_step(Progress(step, 0, step / 5))
        assert largest(ours.queue.rows, queue.T) <= 1e-6
        assert int(ours.queue.at) == pointer


# --- checkpoints ---

LAYERS = {"basic": (BasicBlock, [1, 2, 1, 1]), "bottleneck": (Bottleneck, [1, 1, 1, 1])}


def randomized(network):
    """Norms about one, running variances above zero, so that nothing agrees by being small."""
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight", "downsample.1.weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.1)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    return network.eval()


def theirs(kind, projection, mlp=False):
    """An encoder as ``MoCo.__init__`` makes it."""
    block, layers = LAYERS[kind]
    encoder = TorchvisionResNet(block, layers, num_classes=projection)
    if mlp:
        width = encoder.fc.in_features
        encoder.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), encoder.fc)
    return randomized(encoder)


def checkpoint(path, query, key, queue, pointer, *, prefix="module."):
    state = {"queue": queue, "queue_ptr": torch.tensor([pointer])}
    state |= {f"encoder_q.{name}": tensor for name, tensor in query.state_dict().items()}
    state |= {f"encoder_k.{name}": tensor for name, tensor in key.state_dict().items()}
    kept = {"epoch": 200, "arch": "resnet50", "state_dict": {prefix + name: tensor for name, tensor in state.items()}}
    torch.save(kept | {"optimizer": {"state": {}, "param_groups": []}}, path)
    return kept["state_dict"]


def reads_and_writes(tmp_path, kind, projection, size, mlp):
    """Both encoders, the queue and the loss of a checkpoint are theirs, and what is written opens in their code."""
    torch.manual_seed(0)
    query, key = theirs(kind, projection, mlp), theirs(kind, projection, mlp)
    queue = F.normalize(torch.randn(projection, size), dim=0)
    state = checkpoint(tmp_path / "checkpoint_0199.pth.tar", query, key, queue, 3)
    ours = load(tmp_path / "checkpoint_0199.pth.tar")
    assert isinstance(ours, MoCo)
    x_q, x_k = torch.randn(2, 3, 3, 40, 40).unbind()
    with torch.no_grad():
        q, k = F.normalize(query(x_q), dim=1), F.normalize(key(x_k), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1) / ours.temperature
        want = F.cross_entropy(logits, torch.zeros(3, dtype=torch.long))
        assert largest(ours.eval()({"views": [x_q, x_k]})["loss"], want) <= 1e-5
        assert largest(ours.query["head"](ours.features(x_q)), query(x_q)) <= 1e-5 * query(x_q).abs().max()
    assert torch.equal(ours.queue.rows, queue.T)
    assert (int(ours.queue.at), int(ours.queue.count)) == (3, size)
    assert ours.queue.full

    backbone = load_backbone(tmp_path / "checkpoint_0199.pth.tar")
    assert isinstance(backbone, ResNet)
    assert backbone.normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(backbone.features(x_q), ours.features(x_q))

    path = export(ours, "authors", tmp_path / "back.pth")
    back = torch.load(path, weights_only=True)["state_dict"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    # as main_lincls.py does
    taken = {n.removeprefix("module.encoder_q."): t for n, t in back.items() if n.startswith("module.encoder_q")}
    other = theirs(kind, projection, mlp)
    other.load_state_dict(taken)
    with torch.no_grad():
        assert torch.equal(other(x_q), query(x_q))

    checkpoint(tmp_path / "bare.pth", query, key, queue, 3, prefix="")
    assert torch.equal(load(tmp_path / "bare.pth").features(x_q), ours.features(x_q))
    for file in tmp_path.glob("*.pth*"):  # torchvision's smallest are large
        file.unlink()
    return ours


@pytest.mark.parametrize("kind, projection, size", [("basic", 16, 12), ("bottleneck", 9, 5)])
def test_the_authors_checkpoints(tmp_path, kind, projection, size):
    ours = reads_and_writes(tmp_path, kind, projection, size, mlp=False)
    assert (ours.temperature, ours.momentum) == (0.07, 0.999)
    ours.train()
    ours.before_step(Progress(0, 0, 0.0))
    ours({"views": list(torch.randn(2, 4, 3, 40, 40))})["loss"].backward()  # training goes on
    ours.after_step(Progress(0, 0, 0.0))
    assert int(ours.queue.at) == (3 + 4) % size
    assert all((p.grad is not None) == p.requires_grad for p in ours.parameters())


def test_broken_checkpoints_are_named(tmp_path):
    query, key = theirs("basic", 6), theirs("basic", 6)
    path = tmp_path / "moco.pth.tar"

    def saved(queue, **changes):
        state = checkpoint(path, query, key, queue, 0)
        state |= changes
        torch.save({"state_dict": {name: tensor for name, tensor in state.items() if tensor is not None}}, path)

    saved(torch.randn(5, 8))
    with pytest.raises(
        SensoriumError, match=r"moco\.pth\.tar: 'module\.encoder_q\.fc\.weight' says 6, the weights have 5"
    ):
        load(path)
    saved(torch.randn(6, 8), **{"module.encoder_k.conv1.weight": None})
    with pytest.raises(SensoriumError, match=r"moco\.pth\.tar: 'module\.encoder_k\.conv1\.weight' is missing"):
        load(path)
    saved(torch.randn(6, 8), **{"module.predictor.weight": torch.zeros(1)})
    with pytest.raises(SensoriumError, match=r"moco\.pth\.tar: 'module\.predictor\.weight' is unknown"):
        load(path)
    saved(torch.full((6, 8), torch.nan))
    with pytest.raises(SensoriumError, match=r"'module\.queue' has 48 numbers that are NaN"):
        load(path)


def test_what_the_authors_format_cannot_hold(tmp_path):
    small = MoCo(ResNet((1, 1), 8, stem="half"), mlp_head(16, 6), projection=6, queue=4)
    with pytest.raises(SensoriumError, match="torchvision's ResNet, which has no 'half' stem"):
        export(small, "authors", tmp_path / "x.pth")
    with pytest.raises(SensoriumError, match="needs a ResNet, not a Net"):
        export(MoCo(Net(5), mlp_head(5, 6), projection=6, queue=4), "authors", tmp_path / "x.pth")
    odd = MoCo(ResNet((1, 1), 8), mlp_head(16, 6, 6), projection=6, queue=4)  # a norm in its head
    with pytest.raises(SensoriumError, match="no format 'authors'"):
        export(odd, "authors", tmp_path / "x.pth")
