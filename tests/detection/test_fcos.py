"""FCOS by hand: which place gets which box, what an empty image costs, mirrors, points, and learning one picture."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.detection.fcos.method import FCOS, Places, assign, best, centerness, focal_loss
from sensorium.networks.fpn import FPN
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT


def places(side: int, strides: tuple[int, ...] = (8, 16), offset: float = 0.5) -> Places:
    """Of a square image of ``side`` pixels."""
    points, each, ranges = [], [], []
    for i, s in enumerate(strides):
        at = (torch.arange(side // s) + offset) * s
        y, x = torch.meshgrid(at, at, indexing="ij")
        points.append(torch.stack([x, y], -1).flatten(0, 1))
        each.append(torch.full((len(points[-1]),), float(s)))
        low, high = 0.0 if i == 0 else 4.0 * s, math.inf if i == len(strides) - 1 else 8.0 * s
        ranges.append(torch.tensor([low, high]).expand(len(points[-1]), 2))
    return Places(torch.cat(points), torch.cat(each), torch.cat(ranges), tuple(map(len, points)))


def small(points="paper", **numbers) -> FCOS:
    torch.manual_seed(0)
    body = ResNet((1, 1, 1), 16, stem="half")
    return FCOS(FPN(body, width=16, **numbers), 3, convs=1, groups=4, points=points)


def test_assignment_by_hand() -> None:
    """One level of stride 8 on 32 x 32: places at 4, 12, 20, 28."""
    grid = places(32, (8,))
    whole, tiny, left = [0.0, 0, 32, 32], [10.0, 10, 14, 14], [0.0, 0, 8, 32]
    owner = assign(grid, torch.tensor([whole, tiny, left]), radius=1.5).view(4, 4)
    # The tiny box owns the one place inside it; the left one those nearer than 12 to its center (4, 16), |y - 16| < 12;
    # the whole one what is nearer than 12 to (16, 16), which is the middle four, but for the tiny one's.
    assert owner.tolist() == [[-1, -1, -1, -1], [2, 1, 0, -1], [2, 0, 0, -1], [-1, -1, -1, -1]]


def test_levels_share_boxes_by_size() -> None:
    """Strides 8 and 16: a place whose farthest edge is nearer than 64 is the fine level's, beyond 64 the coarse one's."""
    grid = places(256)
    boxes = torch.tensor([[20.0, 20, 60, 60], [100.0, 100, 240, 240]])
    owner = assign(grid, boxes, radius=1.5)
    fine, coarse = owner.split(grid.counts)
    assert set(fine.tolist()) == {-1, 0}
    assert set(coarse.tolist()) == {-1, 1}
    # Exactly 64 from a place to an edge is neither's, as in torchvision: (12, 12) is fine, (8, 8) coarse.
    fine, coarse = assign(grid, torch.tensor([[12.0 - 64, 4, 8 + 64, 20]]), radius=1.5).split(grid.counts)
    assert fine.eq(-1).all()
    assert [grid.points[grid.counts[0] + i].tolist() for i in coarse.eq(0).nonzero().flatten()] == [[24, 8]]
    assert assign(grid, torch.zeros(0, 4), radius=1.5).eq(-1).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 96)] * 4), min_size=1, max_size=6), st.sampled_from([0.0, 0.5]))
def test_assignment_mirrors_with_the_boxes(corners: list[tuple[int, int, int, int]], offset: float) -> None:
    side = 96
    sorted_by_area = sorted(
        {(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners},
        key=lambda x: (x[2] - x[0]) * (x[3] - x[1]),
    )
    boxes = torch.tensor(sorted_by_area, dtype=torch.float32)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    boxes = boxes[torch.cat([torch.tensor([True]), areas[1:] != areas[:-1]])]  # the smallest is not a matter of order
    for s in (8, 16, 32):
        grid = places(side, (s,), offset)
        across = 2 * (offset * s) + (side // s - 1) * s  # mirrored about the middle of the places
        mirrored = torch.stack([across - boxes[:, 2], boxes[:, 1], across - boxes[:, 0], boxes[:, 3]], 1)
        rows = assign(grid, boxes, 1.5).view(side // s, -1)
        assert torch.equal(assign(grid, mirrored, 1.5).view(side // s, -1), rows.flip(1))


def test_centerness() -> None:
    box = torch.tensor([0.0, 0, 8, 4])
    at = centerness(torch.tensor([[4.0, 2.0], [2.0, 2.0], [4.0, 1.0], [2.0, 1.0]]), box)
    torch.testing.assert_close(at, torch.tensor([1.0, (1 / 3) ** 0.5, (1 / 3) ** 0.5, 1 / 3]))


def test_focal_loss_is_cross_entropy_without_focus_and_finite_everywhere() -> None:
    z, t = torch.randn(100), torch.rand(100) < 0.5
    want = torch.nn.functional.binary_cross_entropy_with_logits(z, t.float(), reduction="none")
    torch.testing.assert_close(focal_loss(z, t, 0.5, 0.0) * 2, want)
    far = torch.tensor([-200.0, 200.0], requires_grad=True)
    loss = focal_loss(far, torch.tensor([True, False]), 0.25, 2.0)
    torch.testing.assert_close(loss, torch.tensor([50.0, 150.0]))
    loss.sum().backward()
    torch.testing.assert_close(far.grad, torch.tensor([-0.25, 0.75]))


def test_best() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.5, 0.2]])
    assert best(scores, 0.1, 9).tolist() == [1, 2, 3]
    assert best(scores, 0.1, 2).tolist() == [1, 2]
    assert best(scores, 0.95, 2).tolist() == []


@pytest.mark.parametrize("counts", [(0, 0), (0, 3)])
def test_images_without_boxes(counts: tuple[int, int]) -> None:
    net = small()
    boxes = [torch.tensor([[2.0, 3.0, 40.0, 30.0]]).repeat(n, 1) for n in counts]
    got = net({"image": torch.randn(2, 3, 48, 56), "boxes": boxes, "labels": [torch.zeros(n).long() for n in counts]})
    assert all(x.isfinite() for x in got.values())
    got["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    if not any(counts):
        assert got["regression"] == 0
        assert got["centerness"] == 0
        assert got["classification"] > 0


def test_labels_out_of_range_are_refused() -> None:
    with pytest.raises(RuntimeError):
        small()(
            {
                "image": torch.randn(1, 3, 32, 32),
                "boxes": [torch.tensor([[2.0, 2, 30, 30]])],
                "labels": [torch.tensor([3])],
            }
        )


def test_places_of_the_paper_and_of_torchvision() -> None:
    for points, first, step in (("paper", 2.0, 4), ("torchvision", 0.0, 4)):
        net = small(points)
        assert net.backbone.strides == (2, 4, 8, 16, 32)
        found = net.places((64, 64), net.backbone.maps(torch.zeros(1, 3, 64, 64)))
        level = found.points.split(found.counts)[1].view(16, 16, 2)
        assert level[0, 0].tolist() == [first, first]
        assert level[3, 5].tolist() == [first + 5 * step, first + 3 * step]
        assert found.ranges.unique(dim=0).tolist() == [[0, 16], [16, 32], [32, 64], [64, 128], [128, math.inf]]
    with pytest.raises(ValueError, match="points"):
        small("elsewhere")


def test_a_vit_and_bodies_of_few_maps() -> None:
    net = FCOS(FPN(ViT(32, 8, 24, 1, 2), levels=1, width=16), 2, convs=1, groups=4)
    assert net.backbone.strides == (8, 16, 32)
    assert [len(m[0, 0]) for m in net.backbone.maps(torch.randn(1, 3, 64, 64))] == [8, 4, 2]
    with pytest.raises(ValueError, match="1 to 1"):
        FPN(ViT(32, 8, 24, 1, 2), levels=2)
    with pytest.raises(TypeError, match="FPN needs"):
        FPN(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_boxes_end_where_the_image_does_and_order_in_the_batch_is_no_matter() -> None:
    net = small().eval()
    torch.nn.init.normal_(net.head.logits.weight, std=0.5)
    torch.nn.init.constant_(net.head.distances.bias, 3.0)
    torch.nn.init.zeros_(net.head.logits.bias)
    images, sizes = torch.randn(2, 3, 64, 96), torch.tensor([[64, 96], [33, 50]])
    found = net.detect(images, 0.3, sizes=sizes, most=20)
    for result, (h, w) in zip(found, sizes.tolist(), strict=True):
        assert 0 < len(result["scores"]) <= 20
        assert (result["scores"].diff() <= 0).all()
        assert result["boxes"].min() >= 0
        assert (result["boxes"].amax(0) <= torch.tensor([w, h, w, h])).all()
    for one, other in zip(found, net.detect(images.flip(0), 0.3, sizes=sizes.flip(0), most=20)[::-1], strict=True):
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-3, rtol=0)
    assert net.detect(images, threshold=0.999)[0]["boxes"].shape == (0, 4)


def test_a_picture_is_learnt() -> None:
    torch.manual_seed(0)
    net = FCOS(FPN(ResNet((1, 1), 16, stem="half"), levels=1, width=16, extra=1), 3, convs=1, groups=4)
    image = torch.zeros(1, 3, 48, 48)
    boxes, labels = torch.tensor([[4.0, 8, 20, 28], [26.0, 18, 46, 30]]), torch.tensor([2, 0])
    image[0, 0, 8:28, 4:20] = 2.0
    image[0, 2, 18:30, 26:46] = 2.0
    batch = {"image": image, "boxes": [boxes], "labels": [labels]}
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        net(batch)["loss"].backward()
        optimizer.step()
    found = net.detect(image, threshold=0.5)[0]
    assert sorted(found["labels"].tolist()) == [0, 2]
    order = found["labels"].argsort(descending=True)
    assert (found["boxes"][order] - boxes).abs().max() < 3


def test_halves_of_a_batch_average_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two processes compute: each divides by half the places of both, and wrappers average."""
    net = small().eval()
    counts = (4, 1, 0, 2)
    corner = [torch.rand(n, 2) * 20 for n in counts]
    batch = {
        "image": torch.randn(4, 3, 48, 48),
        "boxes": [torch.cat([c, c + 8 + torch.rand(len(c), 2) * 20], 1) for c in corner],
        "labels": [torch.randint(3, (n,)) for n in counts],
    }
    whole = net(batch)["loss"]
    places = net.predict(batch["image"]).places
    total = sum((assign(places, b, net.radius) >= 0).sum() for b in batch["boxes"])
    monkeypatch.setattr("sensorium.detection.fcos.method.world_size", lambda: 2)
    monkeypatch.setattr("sensorium.detection.fcos.method.sum_over_processes", lambda x: torch.as_tensor(total).to(x))
    halves = [net({k: v[rows] for k, v in batch.items()})["loss"] for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole)


def test_frozen_norms_stay_as_they_came() -> None:
    net = small(frozen_norms=True).train()
    before = {k: v.clone() for k, v in net.backbone.body.state_dict().items() if "bn" in k}
    net({"image": torch.randn(1, 3, 32, 32), "boxes": [torch.zeros(0, 4)], "labels": [torch.zeros(0)]})[
        "loss"
    ].backward()
    after = net.backbone.body.state_dict()
    assert all(torch.equal(x, after[k]) for k, x in before.items())
    assert net.backbone.body.get_submodule("bn1").weight.grad is None
    assert net.backbone.body.get_submodule("conv1").weight.grad is not None
