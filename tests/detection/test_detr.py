"""DETR: the matching against brute force, what its loss owes to sets, padding, learning, and two processes.

Run as a script this file is one of the processes: ``test_detr.py RANK WORLD FOLDER``.
"""

import itertools
import sys

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sensorium.abilities import MapEncoder
from sensorium.detection.detr.method import DETR
from sensorium.detection.detr.transformer import sine_positions
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.parts.batchnorm import synchronize_batchnorm
from sensorium.parts.boxes import iou
from sensorium.parts.gather import rank, sum_over_processes, world_size
from sensorium.parts.matcher import assign, match, matching_cost

WORLD = 2
SMALL = {"queries": 6, "width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 2, "hidden": 24, "dropout": 0.0}


def detr(classes=3, **more):
    backbone = ResNet((1, 1), 8, stem="patch", patch=4)
    return DETR(backbone, classes, **{**SMALL, **more})


def batch(counts=(2, 0, 4, 1), classes=3, size=32, dtype=torch.float32, seed=0):
    made = torch.Generator().manual_seed(seed)
    corners = [torch.rand(n, 2, generator=made) * 0.6 for n in counts]
    extents = [torch.rand(n, 2, generator=made) * 0.35 + 0.05 for n in counts]
    return {
        "image": torch.randn(len(counts), 3, size, size, generator=made).to(dtype),
        "boxes": [(torch.cat([a, a + b], 1) * size).to(dtype) for a, b in zip(corners, extents, strict=True)],
        "labels": [torch.randint(classes, (n,), generator=made) for n in counts],
    }


# -- the matching


def guesses(images, queries, classes, seed):
    made = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, queries, classes, generator=made) * 2
    boxes = torch.rand(images, queries, 4, generator=made) * 0.4 + 0.1
    return logits, boxes


def least(cost):
    """The least cost of any one-to-one pairing, by trying them all."""
    cost = cost if cost.shape[0] >= cost.shape[1] else cost.T
    rows = itertools.permutations(range(cost.shape[0]), cost.shape[1])
    return min(cost[list(chosen), range(cost.shape[1])].sum().item() for chosen in rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("queries", [1, 3, 5])
def test_no_pairing_is_cheaper(queries, seed):
    counts = [3, 0, 1, 4]
    logits, boxes = guesses(4, queries, 4, seed)
    labels = [torch.randint(3, (n,)) for n in counts]
    targets = [torch.rand(n, 4) * 0.4 + 0.1 for n in counts]
    costs = (1.5, 4.0, 2.5)
    for b, (rows, columns) in enumerate(match(logits, boxes, labels, targets, costs)):
        n = min(queries, counts[b])
        assert len(set(rows.tolist())) == len(set(columns.tolist())) == n
        assert rows.dtype == columns.dtype == torch.int64
        assert rows.tolist() == sorted(rows.tolist())
        if n:
            cost = matching_cost(logits[b : b + 1], boxes[b : b + 1], labels[b][None], targets[b][None], costs)[0]
            assert cost[rows, columns].sum().item() == pytest.approx(least(cost), abs=1e-5)


def test_the_cost_is_the_papers():
    logits = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.25, 0.25, 0.5, 0.5]]])
    cost = matching_cost(logits, boxes, torch.tensor([[0]]), torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]), (1.0, 5.0, 2.0))
    overlap = 0.1 * 0.1 / (0.04 + 0.25 - 0.01) - (0.36 - 0.28) / 0.36
    probability = torch.tensor([2.0, 0.0]).softmax(-1)[0].item()
    assert cost.flatten().tolist() == pytest.approx(
        [-0.5 - 2, -probability + 5 * (4 * 0.25 + 0.1) - 2 * overlap], abs=1e-5
    )


def test_the_same_matching_each_time_ties_included():
    cost = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    first = assign(cost)
    assert all(torch.equal(a, b) for _ in range(5) for a, b in zip(assign(cost), first, strict=True))


def test_numbers_that_are_none_are_matched_last():
    cost = torch.rand(4, 3)
    cost[1] = torch.nan
    cost[2, 0] = torch.inf
    rows, columns = assign(cost)
    assert rows.tolist() == [0, 2, 3]
    assert sorted(columns.tolist()) == [0, 1, 2]
    assert columns[1] != 0
    good = torch.rand(3, 2)
    spoilt = torch.cat([good, torch.full((1, 2), torch.nan)])
    assert all(torch.equal(a, b) for a, b in zip(assign(spoilt), assign(good), strict=True))


def test_lists_that_do_not_fit_are_refused():
    logits, boxes = guesses(2, 3, 4, 0)
    with pytest.raises(ValueError, match="2 logits, 2 boxes, 1 labels"):
        match(logits, boxes, [torch.zeros(1).long()], [torch.rand(1, 4)])


# -- the loss


def test_objects_are_a_set():
    torch.manual_seed(0)
    method = detr().double()
    first = batch((4, 0, 3, 1), dtype=torch.float64)
    order = [torch.randperm(len(own)) for own in first["labels"]]
    second = {
        "image": first["image"],
        **{key: [own[o] for own, o in zip(first[key], order, strict=True)] for key in ("boxes", "labels")},
    }
    got, want = method(second), method(first)
    for key in want:
        assert got[key].item() == pytest.approx(want[key].item(), abs=1e-12)
    other = {**second, "labels": [(own + 1) % 3 for own in second["labels"]]}
    assert abs(method(other)["loss"] - want["loss"]) > 1e-3


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (9, 2)])
def test_no_objects_and_more_objects_than_queries(counts):
    torch.manual_seed(0)
    method = detr()
    given = batch(counts)
    given["labels"] = [own if len(own) else torch.tensor([]) for own in given["labels"]]  # of no kind in particular
    out = method(given)
    assert set(out) == {"loss", "class", "box", "giou", "cardinality"}
    assert all(value.ndim == 0 and value.isfinite() for value in out.values())
    assert (out["box"] == 0) == (out["giou"] == 0) == (sum(counts) == 0)
    out["loss"].backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:  # without objects too every parameter has a gradient, or processes would wait
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_what_the_loss_counts():
    """Guesses written by hand: one right, one right but elsewhere, the rest surely nothing."""
    method = detr(auxiliary=False)
    logits = torch.full((1, 1, 6, 4), -20.0)
    logits[..., 3] = 20.0
    logits[0, 0, 1], logits[0, 0, 4] = torch.tensor([20.0, -20, -20, -20]), torch.tensor([-20.0, -20, 20, -20])
    boxes = torch.full((1, 1, 6, 4), 0.9)
    boxes[0, 0, 1], boxes[0, 0, 4] = torch.tensor([0.3, 0.3, 0.2, 0.2]), torch.tensor([0.5, 0.5, 0.2, 0.2])
    labels, targets = [torch.tensor([2, 0])], [torch.tensor([[0.6, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]])]
    found = method.set_loss(logits, boxes, labels, targets)
    assert found["class"].item() == pytest.approx(0, abs=1e-6)
    assert found["box"].item() == pytest.approx(0.1 / 2, abs=1e-6)
    assert found["giou"].item() == pytest.approx((1 - 1 / 3) / 2, abs=1e-6)
    # "No object" where there is one costs 40, of a weight of 2 + 4 * 0.1; the other way round a tenth of that.
    logits[0, 0, 4] = torch.tensor([-20.0, -20, -20, 20])
    assert method.set_loss(logits, boxes, labels, targets)["class"].item() == pytest.approx(40 / 2.4, rel=1e-5)
    logits[0, 0, 4], logits[0, 0, 0] = torch.tensor([-20.0, -20, 20, -20]), torch.tensor([20.0, -20, -20, -20])
    assert method.set_loss(logits, boxes, labels, targets)["class"].item() == pytest.approx(40 * 0.1 / 2.4, rel=1e-5)


def test_half_precision_keeps_the_loss_precise():
    torch.manual_seed(0)
    method = detr()
    want = method(batch())["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        logits, boxes = method.predict(batch()["image"])
        out = method(batch())
    assert logits.dtype == boxes.dtype == out["loss"].dtype == torch.float32
    assert abs(out["loss"] - want) <= 0.1 * want
    out["loss"].backward()


# -- the network


class Patches(nn.Module, MapEncoder):
    """A backbone whose places see nothing of their neighbors."""

    dim = 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, 8)

    def maps(self, images):
        return [self.conv(images)]

    def features(self, images):
        return self.maps(images)[-1].mean((2, 3))


def test_padding_changes_nothing():
    torch.manual_seed(0)
    method = DETR(Patches(), 3, **SMALL).eval()
    image = torch.randn(1, 3, 40, 24)
    padded = torch.randn(2, 3, 64, 48)
    padded[0, :, :40, :24] = image
    sizes = torch.tensor([[40, 24], [64, 48]])
    for got, want in zip(method.predict(padded, sizes), method.predict(image), strict=True):
        assert (got[:, :1] - want).abs().max() <= 1e-5
    looks = method.attention(padded, sizes)
    assert looks.shape == (2, 6, 8, 6)
    assert (looks[0, :, :5, :3] - method.attention(image)[0]).abs().max() <= 1e-6
    assert looks[0, :, 5:].abs().max() == looks[0, :, :, 3:].abs().max() == 0
    assert (looks.sum((2, 3)) - 1).abs().max() <= 1e-5
    alone = method.detect(image, threshold=0)[0]
    found = method.detect(padded, 0, sizes=sizes)[0]
    assert all((found[key] - alone[key]).abs().max() <= 1e-3 for key in alone)
    # The same objects, too, cost the same.
    whole = {"image": image, "boxes": [torch.tensor([[2.0, 3.0, 20.0, 39.0]])], "labels": [torch.tensor([1])]}
    part = {**whole, "image": padded[:1], "sizes": sizes[:1]}
    assert abs(method(part)["loss"] - method(whole)["loss"]) <= 1e-5


def test_positions_are_shares_of_the_image():
    valid = torch.zeros(2, 6, 5, dtype=torch.bool)
    valid[0, :3, :4] = True
    valid[1] = True
    table = sine_positions(valid, 16).view(2, 6, 5, 16)
    assert table[0, 2, 3, 0].item() == pytest.approx(0, abs=1e-5)  # sin(2 pi), the last row
    assert table[0, 2, 3, 1].item() == pytest.approx(1, abs=1e-5)
    assert (table[0, 2, :4, :8] - table[1, 5, :4, :8]).abs().max() <= 1e-5  # last rows alike, whatever the height
    assert (table[0, :3, 3, 8:] - table[1, :3, 4, 8:]).abs().max() <= 1e-5
    half = 2 * torch.pi / 3  # the first of three rows
    rates = 10_000.0 ** (-torch.arange(4) / 4)
    want = torch.stack([(half * rates).sin(), (half * rates).cos()], 1).flatten()
    assert (table[0, 0, 0, :8] - want).abs().max() <= 1e-5
    with pytest.raises(ValueError, match="divisible by 4"):
        sine_positions(valid, 10)


def test_frozen_norms_stay():
    images = torch.randn(2, 3, 32, 32) * 3 + 1
    for frozen in (True, False):
        method = detr(freeze_norms=frozen)
        method.predict(images)
        method.train().predict(images)
        moved = method.backbone.bn1.running_mean.abs().max() > 0
        assert moved != frozen
        assert method.backbone.bn1.weight.requires_grad != frozen
        assert method.backbone.bn1.training != frozen
        assert method.transformer.training
        assert not method.eval().backbone.bn1.training


def test_dropout_is_for_training():
    torch.manual_seed(0)
    method = detr(dropout=0.3)
    images = batch()["image"]
    assert (method.predict(images)[0] - method.predict(images)[0]).abs().max() > 0.1
    method.eval()
    assert torch.equal(method.predict(images)[0], method.predict(images)[0])


def test_any_backbone_with_maps():
    torch.manual_seed(0)
    method = DETR(ViT(32, 8, 16, 1, 2), 3, **SMALL)
    method(batch())["loss"].backward()
    assert method.attention(batch()["image"]).shape == (4, 6, 4, 4)
    assert method.backbone.patch_embed.proj.weight.grad.abs().max() > 0


def test_detections_are_sorted_and_above_the_threshold():
    torch.manual_seed(0)
    method = detr().eval()
    images = batch()["image"]
    every = method.detect(images, threshold=0)
    assert [len(found["scores"]) for found in every] == [6] * 4
    middle = torch.cat([found["scores"] for found in every]).median().item()
    logits, boxes = method.predict(images)
    for found, all_, guess in zip(method.detect(images, threshold=middle), every, boxes[-1], strict=True):
        n = int((all_["scores"] > middle).sum())
        assert all(torch.equal(found[key], all_[key][:n]) for key in found)
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
        assert found["labels"].dtype == torch.int64
        centres = (all_["boxes"][:, :2] + all_["boxes"][:, 2:]) / 2 / 32
        assert torch.allclose(centres.sort(0).values, guess[:, :2].sort(0).values, atol=1e-5)
    assert logits.shape == (2, 4, 6, 4)


def test_what_is_refused():
    for numbers, message in [
        ({"width": 18}, "divisible by 4"),
        ({"heads": 3}, "heads 3 must divide"),
        ({"decoder_depth": 0}, "decoder layer"),
        ({"queries": 0}, "one class and one query"),
        ({"no_object": 0.0}, "must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            detr(**numbers)
    with pytest.raises(TypeError, match="needs a backbone with MapEncoder"):
        DETR(nn.Linear(2, 2), 3)  # type: ignore[arg-type]
    method = detr()
    for change, message in [
        ({"labels": [torch.tensor([0, 3])]}, r"labels 0..3 are not in 0..2"),
        ({"labels": [torch.tensor([0, -1])]}, r"labels -1..0 are not in 0..2"),
        ({"labels": [torch.tensor([0])]}, r"1 images, labels \[1\], boxes \[2\]"),
        ({"sizes": torch.tensor([3, 4])}, r"sizes must be \[1, 2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            method({**batch((2,)), **change})


# -- learning


def pictures():
    """Two pictures of colored rectangles, one with two of them."""
    images = torch.zeros(2, 3, 64, 64)
    boxes = [torch.tensor([[8.0, 12.0, 36.0, 52.0]]), torch.tensor([[4.0, 4.0, 28.0, 24.0], [32.0, 28.0, 60.0, 60.0]])]
    labels = [torch.tensor([0]), torch.tensor([1, 0])]
    for image, of_image, kinds in zip(images, boxes, labels, strict=True):
        for (x1, y1, x2, y2), kind in zip(of_image.int().tolist(), kinds.tolist(), strict=True):
            image[kind, y1:y2, x1:x2] = 2
    return {"image": images, "boxes": boxes, "labels": labels}


def test_it_learns_two_pictures_by_heart():
    torch.manual_seed(0)
    method = DETR(
        ResNet((1,), 16, stem="patch", patch=8), 2, queries=4, width=32, heads=4, encoder_depth=1, decoder_depth=1,
        hidden=64, dropout=0.0,
    )  # fmt: skip
    given = pictures()
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3, weight_decay=0)
    before = method(given)
    for _ in range(60):
        optimizer.zero_grad()
        method(given)["loss"].backward()
        nn.utils.clip_grad_norm_(method.parameters(), 0.5)
        optimizer.step()
    after = method.eval()(given)
    assert after["loss"] < 0.2 * before["loss"]
    assert after["cardinality"] == 0
    detected = method.detect(given["image"], threshold=0.5)
    for found, boxes, labels in zip(detected, given["boxes"], given["labels"], strict=True):
        overlap = iou(boxes, found["boxes"])
        assert len(found["labels"]) == len(labels)
        assert overlap.max(1).values.min() > 0.6
        assert torch.equal(found["labels"][overlap.argmax(1)], labels)


# -- processes


def share(value):
    chunk = len(value) // world_size()
    return value[rank() * chunk : (rank() + 1) * chunk]


def train(counts, frozen, dtype=torch.float64):
    """Two steps on this process's share of a batch: everything computed, averaged as a trainer would."""
    torch.manual_seed(0)
    method = detr(freeze_norms=frozen).to(dtype)
    if not frozen:
        synchronize_batchnorm(method)
    network = DistributedDataParallel(method) if world_size() > 1 else method
    told = {}
    for step in range(2):
        given = batch(counts, dtype=dtype, seed=step) | {"sizes": torch.tensor([[32, 20], [32, 32], [9, 32], [16, 16]])}
        method.zero_grad()
        out = network({key: share(value) for key, value in given.items()})
        out["loss"].backward()
        logs = torch.stack([value.detach() for value in out.values()])
        told[f"logs {step}"] = sum_over_processes(logs) / world_size()
        told |= {f"gradient {step} {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p -= 0.01 * p.grad
    return told


CASES = {
    "uneven": lambda: train((3, 1, 0, 2), True),
    "one has none": lambda: train((0, 0, 5, 1), True),
    "nobody has any": lambda: train((0, 0, 0, 0), True),
    "fewer objects than processes": lambda: train((1, 0, 0, 0), True),
    "norms of the global batch": lambda: train((2, 1, 1, 1), False),
}


def worker(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save({name: case() for name, case in CASES.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(in_processes):
    return in_processes(__file__, WORLD)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(results, name):
    want = CASES[name]()
    assert sum("gradient" in key for key in want) > 60
    for got in (told[name] for told in results):
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert (got[key] - value).abs().max() <= 1e-9 * max(1, value.abs().max().item()), key


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
