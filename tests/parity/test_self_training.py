"""Self-training's loss against torch's cross-entropy of soft targets, and the equations written plainly."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium.abilities import Encoder
from sensorium.selfsup.self_training.method import SelfTraining, distillation_loss


def largest(a, b):
    return (a.double() - b.double()).abs().max().item()


def written_out(student, teacher, tau):
    """Equation 2, image by image and class by class."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p_s, p_t = torch.exp(s / tau) / torch.exp(s / tau).sum(), torch.exp(t / tau) / torch.exp(t / tau).sum()
        total = total - sum(p_t[y] * torch.log(p_s[y]) for y in range(len(s)))
    return total / len(student)


def torchs(student, teacher, tau):
    return F.cross_entropy(student / tau, (teacher / tau).softmax(1))


@pytest.mark.parametrize("reference", [written_out, torchs])
@pytest.mark.parametrize("batch, classes", [(1, 2), (7, 10), (5, 33)])
@pytest.mark.parametrize("tau", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equation_2(reference, batch, classes, tau, dtype):
    torch.manual_seed(batch)
    student, teacher = 0.5 * torch.randn(2, batch, classes, dtype=dtype)
    a, b = student.clone().requires_grad_(), student.clone().requires_grad_()
    got, want = distillation_loss(a, teacher, tau)[0], reference(b, teacher, tau)
    assert largest(got, want) <= 1e-5
    got.backward()
    want.backward()
    assert largest(a.grad, b.grad) <= 1e-4
    assert b.grad.abs().max() > 1e-4


class Net(nn.Module, Encoder):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(3, dim)

    def features(self, images):
        return self.layer(images.mean((2, 3))).tanh()


class Fixed:
    def __init__(self, classes):
        self.net, self.head = Net(5).requires_grad_(False), nn.Linear(5, classes).requires_grad_(False)

    def logits(self, images):
        return 5 * self.head(self.net.features(images))


@pytest.mark.parametrize("labels", [[0, 2, -1, -1, 1, -1], [-1] * 6, [2, 1, 0, 0, 1, 2]])
@pytest.mark.parametrize("alpha, tau", [(1.0, 1.0), (0.3, 0.5)])
def test_equation_3_of_a_whole_step(labels, alpha, tau):
    torch.manual_seed(0)
    teacher = Fixed(3)
    model, images, labels = (
        SelfTraining(Net(7), 3, teacher, temperature=tau, alpha=alpha),
        torch.randn(6, 3, 4, 4),
        torch.tensor(labels),
    )
    got = model({"image": images, "label": labels})["loss"]
    s, t = model.head(model.backbone.features(images)), teacher.logits(images)
    want = alpha * torchs(s, t, tau)
    if alpha < 1 and (labels >= 0).any():
        want = want + (1 - alpha) * F.cross_entropy(s[labels >= 0], labels[labels >= 0])
    expected = torch.autograd.grad(want, list(model.parameters()), retain_graph=True)
    assert largest(got, want) <= 1e-5
    got.backward()
    assert max(largest(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True)) <= 1e-4
