"""MoCo v2: the head and steps of the method against lightly's; the authors' checkpoints. The method is v1's."""

import importlib.util
from pathlib import Path

import pytest
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead

from sensorium.data.images.prepare import Situation
from sensorium.parts.heads import mlp_head
from sensorium.selfsup.moco_v1.method import MoCo
from sensorium.selfsup.moco_v2.recipe import moco_v2

_spec = importlib.util.spec_from_file_location("parity_moco_v1", Path(__file__).with_name("test_moco_v1.py"))
assert _spec is not None
assert _spec.loader is not None
v1 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(v1)


@pytest.mark.parametrize("dim, hidden, out", [(17, 17, 9), (64, 128, 32)])
def test_head(dim, hidden, out):
    torch.manual_seed(0)
    theirs = MoCoProjectionHead(dim, hidden, out)
    ours = mlp_head(dim, hidden, out, norm=False)
    ours.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in theirs.state_dict().items()})
    x1 = torch.randn(13, dim, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    got, want = ours(x1), theirs(x2)
    assert v1.largest(got, want) <= 1e-5
    weight = torch.randn_like(got)
    (got * weight).mean().backward()
    (want * weight).mean().backward()
    assert v1.largest(x1.grad, x2.grad) <= 1e-4
    named = dict(theirs.named_parameters())
    assert all(v1.largest(p.grad, named[f"layers.{name}"].grad) <= 1e-4 for name, p in ours.named_parameters())


@pytest.mark.parametrize("size, batch", [(12, 4), (10, 4)])
def test_steps_of_the_method(size, batch):
    torch.manual_seed(0)
    head = mlp_head(11, 11, 9, norm=False)
    v1.steps(MoCo(v1.Net(11), head, projection=9, queue=size, temperature=0.2, momentum=0.9), size, batch)


def test_the_recipes_method_on_lightlys_loss():
    on = Situation(32, 400, (), (0.5,) * 3, (0.25,) * 3)
    method = moco_v2(on, backbone="resnet-micro").method.eval()
    theirs = NTXentLoss(method.temperature, memory_bank_size=tuple(method.queue.rows.shape))
    theirs.memory_bank.bank.copy_(method.queue.rows)
    x_q, x_k = torch.randn(2, 5, 3, 24, 24).unbind()
    q, k = method.query["head"](method.features(x_q)), method.key["head"](method.key["backbone"].features(x_k))
    assert v1.largest(method({"views": [x_q, x_k]})["loss"], theirs(q, k)) <= 1e-5


@pytest.mark.parametrize("kind, projection, size", [("basic", 16, 12), ("bottleneck", 9, 5)])
def test_the_authors_checkpoints(tmp_path, kind, projection, size):
    ours = v1.reads_and_writes(tmp_path, kind, projection, size, mlp=True)
    assert (ours.temperature, ours.momentum) == (0.2, 0.999)
