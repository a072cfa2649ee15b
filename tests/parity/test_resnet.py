"""ResNet against torchvision's: outputs, maps, gradients, running statistics."""

import pytest
import torch
import torchvision

from sensorium.networks.resnet import ResNet, resnet

CASES = [
    ("18", "imagenet", (2, 3, 33, 33)),
    ("18", "imagenet", (3, 3, 64, 47)),
    ("18", "small", (2, 3, 17, 14)),
    ("50", "imagenet", (2, 3, 49, 35)),
]
THEIRS = {"18": torchvision.models.resnet18, "50": torchvision.models.resnet50}


def pair(size, stem="imagenet"):
    """Ours and torchvision's of one size, the same random weights and statistics in both."""
    torch.manual_seed(0)
    theirs = THEIRS[size]()
    if stem == "small":
        theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        theirs.maxpool = torch.nn.Identity()
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Branches that end small keep the outputs of a random deep network near one.
            ends_branch = name.endswith("bn3" if size == "50" else "bn2")
            module.weight.data.uniform_(0.5, 1.5).mul_(0.1 if ends_branch else 1)
            module.bias.data.normal_(std=0.3).mul_(0.1 if ends_branch else 1)
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    with torch.device("meta"):
        ours = resnet(size, 224, stem=stem)
    state = {name: value.clone() for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    ours.load_state_dict(state, strict=True, assign=True)
    return ours, theirs


def their_maps(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    maps = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        maps.append(x)
    return maps


def largest(a, b):
    return (a - b).abs().max().item()


def compare(size, stem, shape, training, *, dtype, last, outputs, gradients):
    """Hold ours to theirs in everything that a step computes. ``last``: give theirs channels-last memory too."""
    ours, theirs = (net.train(training).to(dtype) for net in pair(size, stem))
    x1 = torch.randn(shape, dtype=dtype, requires_grad=True)
    x2 = x1.detach().clone(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    got, want = ours.maps(x1), their_maps(theirs, x2)
    assert [m.shape for m in got] == [m.shape for m in want]
    for a, b in [*zip(got, want, strict=True), (got[-1].mean((2, 3)), theirs.avgpool(want[-1]).flatten(1))]:
        assert b.abs().max() > 0.1
        assert largest(a, b) <= outputs

    weights = [torch.randn_like(m) / m.numel() for m in want]
    sum((m * w).sum() for m, w in zip(got, weights, strict=True)).backward()
    sum((m * w).sum() for m, w in zip(want, weights, strict=True)).backward()
    named = dict(theirs.named_parameters())
    assert largest(x1.grad, x2.grad) <= gradients
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        assert largest(parameter.grad, named[name].grad) <= gradients, name
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        assert largest(buffer, buffers[name]) <= outputs, name


@pytest.mark.parametrize("size, stem, shape", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_maps_gradients_and_statistics(size, stem, shape, training):
    # Both in one memory format: kernels of two formats round differently, and where rounding moves a value over the
    # kink of a ReLU a gradient jumps, whoever wrote the network.
    compare(size, stem, shape, training, dtype=torch.float32, last=True, outputs=1e-5, gradients=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_memory_format_is_no_part_of_the_result(training):
    compare("18", "imagenet", (2, 3, 33, 37), training, dtype=torch.float64, last=False, outputs=1e-11, gradients=1e-11)


def test_features_are_what_the_classifier_sees():
    ours, theirs = pair("18")
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 61, 64)
    with torch.no_grad():
        assert largest(ours.eval().features(x), theirs.eval()(x)) <= 1e-5


@pytest.mark.parametrize("size", ["18", "34", "50", "101"])
def test_names_and_shapes_are_torchvisions(size):
    with torch.device("meta"):
        want = getattr(torchvision.models, f"resnet{size}")().state_dict()
        got = resnet(size, 224).state_dict()
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in want.items() if not k.startswith("fc.")}


def test_initial_weights_are_drawn_as_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(zero_init_residual=True).state_dict()
    ours = ResNet(zero_init=True).state_dict()
    for name, value in ours.items():
        other = theirs[name].float()
        if value.ndim == 4:
            assert value.std() == pytest.approx(other.std().item(), rel=0.05), name
        else:
            assert torch.equal(value.float(), other), name
