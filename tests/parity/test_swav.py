"""SwAV's codes, loss, head and prototypes against lightly's, whole steps against the loop of the authors written plainly, and
files of the authors' code (facebookresearch/swav: ``ResNet`` of src/resnet50.py, ``save_dict`` of main_swav.py)."""

import math

import pytest
import torch
import torchvision
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn as theirs_sinkhorn
from lightly.models.modules.heads import SwaVProjectionHead, SwaVPrototypes
from torch import nn
from torch.nn import functional as F

from sensorium.abilities import Encoder
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.parts.learning.sinkhorn import sinkhorn
from sensorium.published import load, load_backbone
from sensorium.published.format import write
from sensorium.published.opening import save
from sensorium.selfsup.swav.formats import AUTHORS
from sensorium.selfsup.swav.method import SwAV, swav_loss


def largest(a, b):
    return (a - b).abs().max().item()


def cosines(*shape):
    return torch.rand(*shape) * 2 - 1


# --- the codes ---


@pytest.mark.parametrize("batch, prototypes", [(1, 5), (7, 33), (64, 10), (16, 300)])
@pytest.mark.parametrize("epsilon, iterations", [(0.05, 3), (0.05, 1), (0.1, 5), (1.0, 3)])
def test_codes(batch, prototypes, epsilon, iterations):
    torch.manual_seed(batch)
    scores = cosines(batch, prototypes)
    got = sinkhorn(scores, epsilon, iterations)
    assert largest(got, theirs_sinkhorn(scores, iterations, epsilon)) <= 1e-5
    assert largest(got, authors_codes(scores, epsilon, iterations)) <= 1e-5
    assert largest(got.sum(1), torch.ones(batch)) <= 1e-5


def authors_codes(out, epsilon=0.05, iterations=3):
    """As ``distributed_sinkhorn`` does with one process: Q is K by B."""
    q = torch.exp(out / epsilon).T
    k, b = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / k
        q = q / q.sum(0, keepdim=True) / b
    return (q * b).T


# --- the loss ---


@pytest.mark.parametrize("local_crops", [0, 1, 6])
@pytest.mark.parametrize("batch, prototypes", [(1, 7), (5, 64), (16, 301)])
@pytest.mark.parametrize("temperature, queued", [(0.1, 0), (0.2, 0), (0.1, 11)])
def test_loss_and_gradients(local_crops, batch, prototypes, temperature, queued):
    torch.manual_seed(batch)
    scores, earlier = cosines(2 + local_crops, batch, prototypes), cosines(2, queued, prototypes)
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    codes = [sinkhorn(torch.cat([earlier[g], scores[g]]))[queued:] for g in range(2)]
    got = swav_loss(ours, torch.stack(codes), temperature)
    queue = list(earlier) if queued else None
    want = SwaVLoss(temperature)(list(theirs[:2]), list(theirs[2:]), queue)
    assert largest(got["loss"], want) <= 1e-5
    got["loss"].backward()
    want.backward()
    assert largest(ours.grad, theirs.grad) <= 1e-4
    assert theirs.grad.abs().max() > 1e-5


# --- the heads ---


@pytest.mark.parametrize("dims", [(17, 23, 9, 41), (64, 128, 32, 300)])
@pytest.mark.parametrize("training", [False, True])
def test_head_and_prototypes(dims, training):
    torch.manual_seed(0)
    dim, hidden, out, many = dims
    theirs_head, theirs_prototypes = SwaVProjectionHead(dim, hidden, out), SwaVPrototypes(out, many)
    nn.init.zeros_(theirs_prototypes.heads[0].bias)  # the authors' have none
    head, prototypes = mlp_head(dim, hidden, out, bias=True), nn.Linear(out, many, bias=False)
    state = {name.removeprefix("layers."): value for name, value in theirs_head.state_dict().items()}
    absent = head.load_state_dict(state, strict=False)
    assert absent.unexpected_keys == []
    assert absent.missing_keys == ["0.bias"]  # the authors' first layer has a bias, lightly's has none
    nn.init.zeros_(head[0].bias)
    prototypes.load_state_dict({"weight": theirs_prototypes.heads[0].weight})
    x1 = torch.randn(13, dim, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    got = prototypes(F.normalize(head.train(training)(x1), dim=1))
    want = theirs_prototypes(F.normalize(theirs_head.train(training)(x2), dim=1))
    assert largest(got, want) <= 1e-5
    weight = torch.randn_like(got)
    (got * weight).mean().backward()
    (want * weight).mean().backward()
    assert largest(x1.grad, x2.grad) <= 1e-4
    assert largest(prototypes.weight.grad, theirs_prototypes.heads[0].weight.grad) <= 1e-4
    assert largest(head[0].weight.grad, theirs_head.layers[0].weight.grad) <= 1e-4


def test_normalized_prototypes_are_lightlys():
    theirs, ours = SwaVPrototypes(9, 23), method(prototypes=23)
    ours.prototypes.weight.data.copy_(theirs.heads[0].weight.data)
    theirs.normalize()
    ours.before_step(Progress(0, 0, 0.0))
    assert largest(ours.prototypes.weight, theirs.heads[0].weight) <= 1e-6


# --- whole steps ---


class Net(nn.Module, Encoder):
    """The smallest encoder that takes any size and has no batch statistics."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(3, dim)

    def features(self, images):
        return self.layer(images.mean((2, 3))).tanh()


def method(backbone=None, *, prototypes=23, **numbers):
    torch.manual_seed(0)
    backbone = backbone or Net(11)
    return SwAV(backbone, mlp_head(backbone.dim, 16, 9, bias=True), nn.Linear(9, prototypes, bias=False), **numbers)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 4, 4), (9, 9, 5, 7, 5)])
@pytest.mark.parametrize("length", [0, 12])
def test_steps_of_the_authors_loop(sizes, length):
    """Six steps of batches of 6: prototypes normalized before each, frozen in the first two; a queue from step 1 on, which
    is full, and used, after two steps."""
    model, theirs = method(queue=length, queue_start=0.1, freeze=0.15), method()
    queue, used = None, 0
    for k in range(6):
        at = Progress(k, 0, 0.1 * k)
        torch.manual_seed(10 + k)
        crops = [torch.randn(6, 3, n, n) + torch.randn(6, 3, 1, 1) for n in sizes]
        model.zero_grad()
        model.before_step(at)
        got = model({"crops": crops})
        got["loss"].backward()
        model.before_update(at)

        if length and k >= 1 and queue is None:
            queue = torch.zeros(2, length, 9)
        with torch.no_grad():
            theirs.prototypes.weight.copy_(F.normalize(theirs.prototypes.weight, dim=1))
        embedding = F.normalize(theirs.head(torch.cat([theirs.backbone.features(x) for x in crops])), dim=1)
        output, loss = theirs.prototypes(embedding), 0
        for i in range(2):
            with torch.no_grad():
                out = output[6 * i : 6 * (i + 1)]
                if queue is not None:
                    if not torch.all(queue[i, -1] == 0):
                        used += 1
                        out = torch.cat([queue[i] @ theirs.prototypes.weight.T, out])
                    queue[i, 6:] = queue[i, :-6].clone()
                    queue[i, :6] = embedding[6 * i : 6 * (i + 1)]
                q = authors_codes(out)[-6:]
            others = [v for v in range(len(sizes)) if v != i]
            for v in others:
                log_p = F.log_softmax(output[6 * v : 6 * (v + 1)] / 0.1, dim=1)
                loss = loss - (q * log_p).sum(1).mean() / len(others) / 2
        theirs.zero_grad()
        loss.backward()
        if k < 2:
            theirs.prototypes.weight.grad = None

        assert largest(got["loss"], loss) <= 1e-5
        for (name, a), b in zip(model.named_parameters(), theirs.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), name
            if a.grad is not None:
                assert largest(a.grad, b.grad) <= 1e-4, name
                a.data.sub_(0.5 * a.grad)
                b.data.sub_(0.5 * b.grad)
        model.after_step(at)
    assert used == (6 if length else 0)
    assert largest(model.prototypes.weight, theirs.prototypes.weight) <= 1e-5
    for ours, other in zip(model.queues, queue if length else [], strict=True):
        turned = ours.rows.roll(-int(ours.at), 0).view(-1, 6, 9).flip(0).flatten(0, 1)  # the newest batch first
        assert largest(turned, other) <= 1e-5


def test_the_crops_of_one_size_share_their_batch_statistics():
    """As the authors do: one pass for all global crops, one for all local ones, the head once for everything."""
    model = method(ResNet((1,), 8, stem="small"))
    model.before_step(Progress(0, 0, 0.0))
    crops = [torch.randn(5, 3, n, n) for n in (8, 8, 4, 4, 4)]
    features = torch.cat([model.backbone(torch.cat(crops[:2])), model.backbone(torch.cat(crops[2:]))])
    scores = model.prototypes(F.normalize(model.head(features), dim=1)).chunk(5)
    want = SwaVLoss()(list(scores[:2]), list(scores[2:]))
    assert largest(model({"crops": crops})["loss"], want) <= 1e-5


# --- files of the authors ---


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def batch_norm(name, width):
    shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width,)) | {"num_batches_tracked": ()}
    return {f"{name}.{kind}": shape for kind, shape in shapes.items()}


def layout(blocks, widen, hidden, out, many):
    """Names and shapes of ``ResNet(Bottleneck, blocks, widen=..., hidden_mlp=..., output_dim=..., nmb_prototypes=...)``."""
    width = 64 * widen
    found = {"conv1.weight": (width, 3, 7, 7), **batch_norm("bn1", width)}
    inputs = width
    for i, count in enumerate(blocks):
        planes = width * 2**i
        for j in range(count):
            name = f"layer{i + 1}.{j}"
            found |= {f"{name}.conv1.weight": (planes, inputs, 1, 1), **batch_norm(f"{name}.bn1", planes)}
            found |= {f"{name}.conv2.weight": (planes, planes, 3, 3), **batch_norm(f"{name}.bn2", planes)}
            found |= {f"{name}.conv3.weight": (4 * planes, planes, 1, 1), **batch_norm(f"{name}.bn3", 4 * planes)}
            if j == 0:
                found |= {f"{name}.downsample.0.weight": (4 * planes, inputs, 1, 1)}
                found |= batch_norm(f"{name}.downsample.1", 4 * planes)
            inputs = 4 * planes
    head = {**linear("projection_head.0", inputs, hidden), **batch_norm("projection_head.1", hidden)}
    found |= {**head, **linear("projection_head.3", hidden, out), "prototypes.weight": (many, out)}
    return {f"module.{name}": shape for name, shape in found.items()}


def filled(shapes, seed=0):
    """Random values, norms about one and variances above zero, so that nothing agrees by being small."""
    g = torch.Generator().manual_seed(seed)

    def tensor(name, shape):
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        x = torch.randn(shape, generator=g)
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            return 1 + (0.1 * x).clamp(-0.5, 0.5)
        return x * (x[0].numel() ** -0.5 if x.ndim in (2, 4) else 0.1)

    return {name: tensor(name, shape) for name, shape in shapes.items()}


def theirs_of(state, blocks, x):
    """What the authors' network computes: projections and scores. torchvision's ResNet stands for theirs but for the padding,
    done here as they do it."""
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    net = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(blocks))
    net.fc = nn.Identity()
    net.load_state_dict({n: v for n, v in bare.items() if not n.startswith(("projection_head", "prototypes"))})
    net.conv1.padding = (2, 2)
    hidden, out = bare["projection_head.0.weight"].shape[0], bare["projection_head.3.weight"].shape[0]
    head = nn.Sequential(nn.Linear(2048, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))
    head.load_state_dict({n.removeprefix("projection_head."): v for n, v in bare.items() if "projection_head" in n})
    with torch.no_grad():
        features = net.eval()(nn.ConstantPad2d(1, 0.0)(x))
        z = F.normalize(head.eval()(features), dim=1)
        return features, z @ bare["prototypes.weight"].T


@pytest.mark.parametrize(
    "blocks, hidden, out, many, side", [((1, 1, 1, 1), 96, 24, 31, 64), ((1, 2, 1, 1), 48, 8, 300, 37)]
)
@pytest.mark.parametrize("published", [False, True])
def test_files_of_the_authors(blocks, hidden, out, many, side, published, tmp_path):
    state = filled(layout(blocks, 1, hidden, out, many))
    kept = {
        "epoch": 3,
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": []},
        "amp": {"loss_scaler0": {}},
    }
    torch.save(state if published else kept, tmp_path / "swav_pretrain.pth.tar")
    ours = load(tmp_path / "swav_pretrain.pth.tar")
    assert isinstance(ours, SwAV)
    assert ours.normalization == ((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))
    x = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(5))
    features, scores = theirs_of(state, blocks, x)
    with torch.no_grad():
        got = ours.features(x)
        assert largest(got / features.std(), features / features.std()) <= 1e-5
        assert largest(ours.prototypes(F.normalize(ours.head(got), dim=1)), scores) <= 1e-5
    bare = load_backbone(tmp_path / "swav_pretrain.pth.tar")
    assert torch.equal(bare.features(x), ours.features(x))

    written = save(AUTHORS, ours, tmp_path / "back.pth")
    again = torch.load(written, weights_only=True)["state_dict"]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_the_wide_ones_and_other_heads(tmp_path):
    """RN50w2 is twice as wide everywhere; DeepCluster-v2 and SeLa-v2 have several heads of prototypes: the network is read."""
    state = filled(layout((1, 1, 1, 1), 2, 20, 8, 5))
    torch.save(state, tmp_path / "w2.pth.tar")
    wide = load(tmp_path / "w2.pth.tar")
    assert (wide.backbone.conv1.out_channels, wide.dim) == (128, 4096)
    assert write(AUTHORS, wide).keys() == state.keys()
    several = {
        name: value for name, value in filled(layout((1, 1, 1, 1), 1, 20, 8, 5)).items() if "prototypes" not in name
    }
    several |= {f"module.prototypes.prototypes{i}.weight": torch.randn(7, 8) for i in range(3)}
    torch.save(several, tmp_path / "deepclusterv2.pth.tar")
    assert isinstance(load(tmp_path / "deepclusterv2.pth.tar"), ResNet)


def test_a_trained_one_is_written_for_their_code(tmp_path):
    """With a queue, which they keep in another file."""
    ours = SwAV(ResNet((1, 1, 1, 1), 8), mlp_head(64, 12, 10, bias=True), nn.Linear(10, 7, bias=False), queue=6)
    again = load(save(AUTHORS, ours, tmp_path / "swav.pth"))
    assert len(again.queues) == 0
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.features(x), ours.eval().features(x))


@pytest.mark.parametrize(
    "build, said",
    [
        (
            lambda: (ResNet((1, 1), 8, stem="small"), mlp_head(16, 4, 3, bias=True)),
            "the stem of a ResNet for large pictures",
        ),
        (lambda: (ResNet((1, 1, 1), 8), mlp_head(32, 4, 3, bias=True)), "four stages"),
        (lambda: (ResNet((1, 1, 1, 1), 8), mlp_head(64, 4, 3)), "two linear layers with biases"),
        (lambda: (Net(5), mlp_head(5, 4, 3, bias=True)), "needs a ResNet, not a Net"),
    ],
)
def test_what_their_code_does_not_have_is_said(build, said, tmp_path):
    network, head = build()
    with pytest.raises(SensoriumError, match=said):
        save(AUTHORS, SwAV(network, head, nn.Linear(3, 7, bias=False)), tmp_path / "swav.pth")


def test_a_damaged_file_names_its_tensor(tmp_path):
    state = filled(layout((1, 1, 1, 1), 1, 20, 8, 5))
    path = tmp_path / "swav.pth"
    torch.save(state | {"module.stranger.weight": torch.zeros(1)}, path)
    with pytest.raises(SensoriumError, match=r"swav\.pth: 'module\.stranger\.weight' is unknown"):
        load(path)
    torch.save(state | {"module.prototypes.weight": torch.zeros(5, 9)}, path)
    with pytest.raises(
        SensoriumError, match=r"swav\.pth: 'module\.prototypes\.weight' has shape \[5, 9\], expected \[5, 8\]"
    ):
        load(path)
    torch.save(state | {"module.conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(SensoriumError, match="a first convolution of 7x7, this file 3x3"):
        load(path)


def test_log_k_is_the_most_that_codes_can_have():
    flat = swav_loss(torch.zeros(2, 4, 16), torch.full((2, 4, 16), 1 / 16))
    assert flat["entropy"].item() == pytest.approx(math.log(16), abs=1e-5)
