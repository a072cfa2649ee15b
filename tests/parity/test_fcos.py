"""FCOS against torchvision's: what the head says, where and for which box, losses, gradients, detections, checkpoints.

torchvision normalizes and resizes inside its model; both are switched off, so that both networks see the same pixels.
"""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FCOS as Theirs
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from sensorium.detection.fcos.formats import TORCHVISION, from_torchvision, load_fcos, to_torchvision
from sensorium.detection.fcos.method import FCOS, assign
from sensorium.errors import SensoriumError
from sensorium.networks.fpn import FPN
from sensorium.networks.resnet import resnet
from sensorium.published.format import read

CASES = [  # body, pyramid's width, classes, layers of a tower, (height, width) of each image, padded to multiples of
    ("18", 64, 3, 2, ((128, 128), (128, 128)), 32),
    ("18", 32, 1, 4, ((75, 101), (90, 64)), 1),
    ("18", 96, 20, 1, ((97, 205), (33, 40), (64, 130)), 32),
    ("50", 64, 5, 2, ((77, 50), (61, 63)), 1),
]


def peer(size: str, width: int, classes: int, convs: int, divisible: int) -> Theirs:
    """torchvision's FCOS of random weights that make its outputs vary; no normalization, no resizing."""
    body = getattr(torchvision.models, f"resnet{size}")()
    expansion = 4 if size == "50" else 1
    returned = {f"layer{i + 2}": str(i) for i in range(3)}
    pyramid = BackboneWithFPN(
        body, returned, [c * expansion for c in (128, 256, 512)], width, LastLevelP6P7(width, width)
    )
    theirs = Theirs(pyramid, classes, image_mean=[0.0] * 3, image_std=[1.0] * 3, size_divisible=divisible)
    for branch in (theirs.head.classification_head, theirs.head.regression_head):
        branch.conv = branch.conv[: 3 * convs]
    theirs.transform.resize = lambda image, target: (image, target)
    for name, module in theirs.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            ends_branch = name.endswith("bn3" if size == "50" else "bn2")
            module.weight.data.uniform_(0.5, 1.5).mul_(0.1 if ends_branch else 1)
            module.bias.data.normal_(std=0.3).mul_(0.1 if ends_branch else 1)
        elif isinstance(module, nn.GroupNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.3)
        elif isinstance(module, nn.Conv2d) and name.startswith("head."):
            nn.init.normal_(module.weight, std=(1 / module.weight[0].numel()) ** 0.5)
    theirs.head.regression_head.bbox_reg.bias.data.copy_(torch.tensor([0.3, 1.0, 2.0, 3.0]))
    theirs.head.classification_head.cls_logits.bias.data.fill_(-1.5)
    return theirs


def mine(theirs: Theirs, size: str, width: int, classes: int, convs: int) -> FCOS:
    """Ours with torchvision's weights, its batch norms alive as those of ``peer`` are."""
    with torch.device("meta"):
        ours = FCOS(FPN(resnet(size, 224), width=width), classes, convs=convs, points="torchvision")
    state = read(TORCHVISION, theirs.state_dict(), ours, "peer")
    ours.load_state_dict({name: x.clone() for name, x in state.items()}, assign=True)
    return ours


def pair(size, width, classes, convs, divisible, dtype):
    torch.manual_seed(0)
    theirs = peer(size, width, classes, convs, divisible)
    return mine(theirs, size, width, classes, convs).to(dtype), theirs.to(dtype)


def data(shapes, divisible, classes, dtype, counts=(6, 0, 2)):
    """Images of several sizes, their padded stack, and boxes of every size; one image has none."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, h, w, generator=generator, dtype=dtype) for h, w in shapes]
    height, width = (-(-max(s[i] for s in shapes) // divisible) * divisible for i in (0, 1))
    stack = torch.stack([nn.functional.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images])
    boxes, labels = [], []
    for (h, w), n in zip(shapes, counts, strict=False):
        # Extents from a few pixels to the whole image, so that every level gets some.
        extent = torch.rand(n, 2, generator=generator, dtype=dtype) ** 2 * 0.95 + 0.05
        corner = torch.rand(n, 2, generator=generator, dtype=dtype) * (1 - extent)
        boxes.append(torch.cat([corner, corner + extent], 1) * torch.tensor([w, h, w, h], dtype=dtype))
        labels.append(torch.randint(classes, (n,), generator=generator))
    return images, stack, boxes, labels


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item() if a.numel() else 0.0


def their_head(theirs: Theirs, stack: torch.Tensor):
    maps = list(theirs.backbone(stack).values())
    return maps, theirs.head(maps)


@pytest.mark.parametrize("size, width, classes, convs, shapes, divisible", CASES)
def test_pyramid_head_and_places(size, width, classes, convs, shapes, divisible):
    ours, theirs = (x.eval() for x in pair(size, width, classes, convs, divisible, torch.float32))
    _, stack, _, _ = data(shapes, divisible, classes, torch.float32)
    with torch.no_grad():
        maps, want = their_head(theirs, stack.contiguous(memory_format=torch.channels_last))
        got = ours.predict(stack)
        for a, b in zip(ours.backbone.maps(stack), maps, strict=True):
            assert b.abs().max() > 0.1
            assert largest(a, b) <= 1e-5
    sizes = torchvision.models.detection.image_list.ImageList(stack, [tuple(s) for s in shapes])
    anchors = theirs.anchor_generator(sizes, maps)[0]
    assert torch.equal(got.places.points, (anchors[:, :2] + anchors[:, 2:]) / 2)
    assert torch.equal(got.places.strides, anchors[:, 2] - anchors[:, 0])
    assert largest(got.logits, want["cls_logits"]) <= 1e-5
    assert largest(got.centerness, want["bbox_ctrness"][..., 0]) <= 1e-5
    assert largest(got.distances / got.places.strides[:, None], want["bbox_regression"]) <= 1e-5
    assert (want["bbox_regression"] == 0).any()
    assert want["cls_logits"].std() > 0.1


@pytest.mark.parametrize("height, width, count", [(800, 1088, 60), (512, 640, 9), (250, 333, 25)])
def test_every_level_gets_the_same_boxes(height, width, count):
    """torchvision's matching alone, on images large enough for the coarsest level. float64: its areas are 1e8 - area."""
    body = nn.Identity()
    body.out_channels = 32
    theirs = Theirs(body, 2)
    theirs.head.compute_loss = lambda targets, outputs, anchors, owners: owners
    ours = FCOS(FPN(resnet("10", 224), width=32), 2, convs=1, points="torchvision")
    maps = [torch.empty(1, 1, -(-height // s), -(-width // s), dtype=torch.float64) for s in ours.backbone.strides]
    _, _, (boxes,), (labels,) = data([(height, width)], 1, 2, torch.float64, [count])
    boxes = torch.cat([boxes, boxes[:1] + 0.5, torch.tensor([[0.0, 0, width, height]], dtype=torch.float64)])
    images = torchvision.models.detection.image_list.ImageList(torch.empty(1, 3, height, width), [(height, width)])
    anchors = theirs.anchor_generator(images, maps)
    (want,) = theirs.compute_loss([{"boxes": boxes, "labels": labels}], {}, anchors, [m[0, 0].numel() for m in maps])
    places = ours.places((height, width), maps)
    got = assign(places, boxes, 1.5)
    assert torch.equal(got, want)
    levels = [int((level >= 0).sum()) for level in got.split(places.counts)]
    assert sum(map(bool, levels)) >= (5 if height == 800 else 2), levels


@pytest.mark.parametrize("size, width, classes, convs, shapes, divisible", CASES)
def test_losses_and_gradients(size, width, classes, convs, shapes, divisible):
    # float64: batch norms over the few places of the last stage make the gradients of random weights jump.
    ours, theirs = (x.train() for x in pair(size, width, classes, convs, divisible, torch.float64))
    images, stack, boxes, labels = data(shapes, divisible, classes, torch.float64)
    want = theirs(images, [{"boxes": b, "labels": x} for b, x in zip(boxes, labels, strict=True)])
    got = ours({"image": stack, "boxes": boxes, "labels": labels})
    for mine, other in (("classification",) * 2, ("regression", "bbox_regression"), ("centerness", "bbox_ctrness")):
        assert want[other] > 0.01
        assert largest(got[mine], want[other].detach()) <= 1e-6, mine
    got["loss"].backward()
    sum(want.values()).backward()
    named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        other = named[TORCHVISION.theirs(name, ours)[0]].grad
        assert other.abs().max() > 0, name
        assert largest(parameter.grad, other) <= 1e-6 * max(1.0, other.abs().max().item()), name


@pytest.mark.parametrize("counts", [(9, 4), (0, 0), (1, 0)])
def test_losses_in_float32_and_without_boxes(counts):
    size, width, classes, convs, shapes, divisible = CASES[0]
    ours, theirs = pair(size, width, classes, convs, divisible, torch.float32)
    ours.backbone.eval(), theirs.backbone.eval()
    images, stack, boxes, labels = data(shapes, divisible, classes, torch.float32, counts)
    want = theirs(images, [{"boxes": b, "labels": x} for b, x in zip(boxes, labels, strict=True)])
    got = ours({"image": stack, "boxes": boxes, "labels": labels})
    for mine, other in (("classification",) * 2, ("regression", "bbox_regression"), ("centerness", "bbox_ctrness")):
        torch.testing.assert_close(got[mine], want[other].detach(), atol=1e-5, rtol=1e-6)
    got["loss"].backward()
    sum(want.values()).backward()
    scale = max(1.0, want["classification"].item())
    named = dict(theirs.named_parameters())
    for name, parameter in ours.head.named_parameters():
        other = named[TORCHVISION.theirs(f"head.{name}", ours)[0]].grad
        assert largest(parameter.grad, other) <= 1e-4 * scale, name


@pytest.mark.parametrize("threshold, candidates", [(0.2, 1000), (0.4, 7)])
@pytest.mark.parametrize("size, width, classes, convs, shapes, divisible", CASES)
def test_detections(size, width, classes, convs, shapes, divisible, threshold, candidates):
    ours, theirs = (x.eval() for x in pair(size, width, classes, convs, divisible, torch.float64))
    images, stack, _, _ = data(shapes, divisible, classes, torch.float64)
    theirs.score_thresh, theirs.topk_candidates = threshold, candidates
    with torch.no_grad():
        want = theirs(images)
    got = ours.detect(stack, threshold, sizes=torch.tensor(shapes), candidates=candidates)
    assert sum(len(w["scores"]) for w in want) > 5
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a["labels"], b["labels"])
        assert largest(a["scores"], b["scores"]) <= 1e-9
        assert largest(a["boxes"], b["boxes"]) <= 1e-6


def test_checkpoint_of_the_published_network_there_and_back(tmp_path):
    """The names and shapes of fcos_resnet50_fpn, without counters, as the frozen batch norms of its weights have none."""
    with torch.device("meta"):
        theirs = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7)
    every = theirs.state_dict()
    state = {k: torch.rand(x.shape) for k, x in every.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "fcos.pth")
    ours = load_fcos(tmp_path / "fcos.pth")
    back = to_torchvision(ours)
    assert {k: x.shape for k, x in back.items()} == {k: x.shape for k, x in every.items()}
    for name, x in state.items():
        assert torch.equal(back[name], x), name
    assert not any(m.training for m in ours.train().backbone.body.modules() if isinstance(m, nn.BatchNorm2d))
    del state["head.regression_head.bbox_reg.bias"]
    with pytest.raises(SensoriumError, match=r"'head\.regression_head\.bbox_reg\.bias' is missing"):
        from_torchvision(state)
    with pytest.raises(SensoriumError, match=r"'stranger' is unknown"):
        from_torchvision({**back, "stranger": torch.zeros(1)})
    with pytest.raises(SensoriumError, match=r"not torchvision's FCOS"):
        from_torchvision({"conv1.weight": torch.zeros(1)})


def test_what_torchvision_has_not_is_not_exported():
    small = FCOS(FPN(resnet("10", 32), width=32), 2, convs=1, points="torchvision")
    with pytest.raises(SensoriumError, match="7x7"):
        to_torchvision(small)
    elsewhere = FCOS(FPN(resnet("10", 224), width=32), 2, convs=1)
    with pytest.raises(SensoriumError, match="other locations"):
        to_torchvision(elsewhere)
    coarse = FCOS(FPN(resnet("10", 224), width=32, extra=1), 2, convs=1, points="torchvision")
    with pytest.raises(SensoriumError, match="two extra levels"):
        to_torchvision(coarse)
