"""DINO's loss, center and head against lightly's."""

import pytest
import torch
from lightly.loss import DINOLoss
from lightly.loss.swav_loss import sinkhorn
from lightly.models.modules.heads import DINOProjectionHead
from torch import nn

from sensorium.abilities import Encoder
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import DINOHead
from sensorium.selfsup.dino.method import DINO, dino_loss


def largest(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("crops", [2, 3, 8])
@pytest.mark.parametrize("batch, prototypes", [(1, 7), (5, 64), (16, 301)])
@pytest.mark.parametrize("tau_t, tau_s", [(0.04, 0.1), (0.07, 0.2)])
def test_loss_and_gradients(crops, batch, prototypes, tau_t, tau_s):
    torch.manual_seed(crops)
    # Cosines, as the head gives them.
    teacher, student = torch.rand(2, batch, prototypes) * 2 - 1, torch.rand(crops, batch, prototypes) * 2 - 1
    center = torch.randn(prototypes) / 10
    s1, s2 = student.clone().requires_grad_(), student.clone().requires_grad_()
    theirs = DINOLoss(prototypes, tau_t, tau_t, student_temp=tau_s)
    theirs.center.copy_(center)
    got = dino_loss(teacher, s1, center, tau_t=tau_t, tau_s=tau_s)
    want = theirs(list(teacher), list(s2))
    assert largest(got["loss"], want) <= 1e-5
    got["loss"].backward()
    want.backward()
    assert largest(s1.grad, s2.grad) <= 1e-4
    assert s1.grad.abs().max() > 1e-5


@pytest.mark.parametrize("crops", [2, 5])
@pytest.mark.parametrize("batch, prototypes", [(1, 7), (5, 64), (16, 301)])
@pytest.mark.parametrize("tau_t, tau_s", [(0.04, 0.1), (0.07, 0.2)])
def test_loss_and_gradients_by_sinkhorn(crops, batch, prototypes, tau_t, tau_s):
    """DINOv2's: both global crops are spread over the prototypes together."""
    torch.manual_seed(crops)
    teacher, student = torch.rand(2, batch, prototypes) * 2 - 1, torch.rand(crops, batch, prototypes) * 2 - 1
    s1, s2 = student.clone().requires_grad_(), student.clone().requires_grad_()
    got = dino_loss(teacher, s1, None, tau_t=torch.tensor(tau_t), tau_s=tau_s)
    p_t = sinkhorn(teacher.flatten(0, 1).double(), epsilon=tau_t).unflatten(0, (2, batch))
    log_s = (s2 / tau_s).log_softmax(-1).double()
    pairs = [-(p_t[g] * log_s[v]).sum(-1).mean() for g in range(2) for v in range(crops) if v != g]
    want = torch.stack(pairs).mean()
    assert largest(got["loss"], want) <= 1e-5
    assert largest(got["entropy"], -torch.xlogy(p_t, p_t).sum(-1).mean()) <= 1e-5
    got["loss"].backward()
    want.backward()
    assert largest(s1.grad, s2.grad) <= 1e-4
    assert s1.grad.abs().max() > 1e-5


class Net(nn.Module, Encoder):
    """The smallest encoder that takes any size and has no batch statistics."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(3, dim)

    def features(self, images):
        return self.layer(images.mean((2, 3))).tanh()


@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 4, 4), (9, 9, 5, 7, 5)])
def test_three_steps_of_the_method(sizes):
    torch.manual_seed(0)
    ours = DINO(Net(11), DINOHead(11, 37, hidden=16, bottleneck=8), tau_t=(0.04, 0.07), tau_warmup=0.5, momentum=0.9)
    theirs = DINOLoss(37, 0.04, 0.07, 30, student_temp=0.1, center_momentum=0.9)
    nn.init.normal_(ours.student["head"].mlp[-1].bias)
    for k in range(3):
        at = Progress(k, 0, 0.5 * k / 29)
        ours.zero_grad()
        ours.before_step(at)
        crops = [torch.randn(6, 3, n, n) + torch.randn(6, 3, 1, 1) for n in sizes]
        got = ours({"crops": crops})["loss"]
        teacher = [ours.teacher["head"](ours.teacher["backbone"].features(x)) for x in crops[:2]]
        student = [ours.student["head"](ours.student["backbone"].features(x)) for x in crops]
        want = theirs(teacher, student, epoch=k)
        assert largest(got, want) <= 1e-5
        parameters = [p for p in ours.parameters() if p.requires_grad]
        expected = torch.autograd.grad(want, parameters, retain_graph=True)
        got.backward()
        assert max(largest(p.grad, g) for p, g in zip(parameters, expected, strict=True)) <= 1e-4
        assert largest(ours.center, theirs.center.flatten()) > 0
        with torch.no_grad():
            for p in parameters:
                p.sub_(0.1 * p.grad)
        ours.after_step(at)
        assert largest(ours.center, theirs.center.flatten()) <= 1e-6


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("norm_last_layer", [False, True])
@pytest.mark.parametrize("dims", [(17, 23, 9, 41), (64, 128, 32, 300)])
def test_head(norm, norm_last_layer, dims):
    torch.manual_seed(0)
    dim, hidden, bottleneck, out = dims
    theirs = DINOProjectionHead(dim, hidden, bottleneck, out, norm, -1, norm_last_layer)
    ours = DINOHead(dim, out, hidden=hidden, bottleneck=bottleneck, norm=norm, norm_last_layer=norm_last_layer)
    for p in theirs.layers.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    state = {name.replace("layers.", "mlp."): value for name, value in theirs.state_dict().items()}
    # The authors' linear layers have biases before a normalization too; lightly's have none.
    absent = ours.load_state_dict(state, strict=False)
    assert absent.unexpected_keys == []
    assert absent.missing_keys == (["mlp.0.bias", "mlp.3.bias"] if norm else [])
    x1 = torch.randn(13, dim, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    got, want = ours(x1), theirs(x2)
    assert largest(got, want) <= 1e-5
    weight = torch.randn_like(got)
    (got * weight).mean().backward()
    (want * weight).mean().backward()
    assert largest(x1.grad, x2.grad) <= 1e-4
    named = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        if name in absent.missing_keys:
            assert p.abs().max() == 0
            continue
        other = named[name.replace("mlp.", "layers.")]
        assert p.requires_grad == other.requires_grad
        if p.requires_grad:
            assert largest(p.grad, other.grad) <= 1e-4, name


def test_head_starts_as_the_authors():
    torch.manual_seed(0)
    ours, theirs = DINOHead(64, 500, hidden=256), DINOProjectionHead(64, 256, 256, 500)
    state = theirs.state_dict()
    for name, value in ours.state_dict().items():
        other = state[name.replace("mlp.", "layers.")]
        assert value.shape == other.shape
        assert value.std().item() == pytest.approx(other.std().item(), rel=0.05, abs=1e-8), name
        assert value.mean().item() == pytest.approx(other.mean().item(), abs=1e-3), name


def test_the_crops_of_one_size_share_their_batch_statistics():
    """As the authors do: one pass for all global crops, one for all local ones, the head once for everything."""
    torch.manual_seed(0)
    ours = DINO(ResNet((1,), 8, stem="small"), DINOHead(8, 19, hidden=8, bottleneck=4, norm=True))
    crops = [torch.randn(5, 3, n, n) for n in (8, 8, 4, 4, 4)]
    backbone, head = ours.student["backbone"], ours.student["head"]
    student = head(torch.cat([backbone(torch.cat(crops[:2])), backbone(torch.cat(crops[2:]))])).chunk(5)
    teacher = ours.teacher["head"](ours.teacher["backbone"](torch.cat(crops[:2]))).chunk(2)
    want = DINOLoss(19)(list(teacher), list(student), teacher_temp=0.04)
    assert largest(ours({"crops": crops})["loss"], want) <= 1e-5
