"""mixup and CutMix: the formulas of their papers, and the losses of timm's targets."""

import pytest
import torch
from torch.nn import functional as F

from sensorium.abilities import Encoder
from sensorium.base.draw import Draw
from sensorium.data.augment.mixing import mixed
from sensorium.data.augment.views import supervised_views
from sensorium.selfsup.supervised.method import Supervised


def pictures(count: int, height: int = 12, width: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of one value each, so that a pixel says whose it is, and their labels."""
    values = torch.arange(1.0, count + 1)
    return values[:, None, None, None].expand(count, 3, height, width).clone(), torch.arange(count)


def partners(count: int) -> torch.Tensor:
    return torch.tensor([i ^ 1 if i ^ 1 < count else i for i in range(count)])


@pytest.mark.parametrize("count", [1, 4, 7])
def test_mixup_is_a_weighted_mean_of_neighbors(count: int) -> None:
    images, labels = pictures(count)
    found, others, weight = mixed(images, labels, Draw.seeded(0, 3, count), mixup=0.8)
    theirs = images[partners(count)]
    w = weight[:, None, None, None]
    torch.testing.assert_close(found, w * images + (1 - w) * theirs)
    assert torch.equal(others, partners(count))
    assert weight.dtype == torch.float32
    assert count == 1 or len(set(weight.tolist())) > 1
    assert count % 2 == 0 or weight[-1] == 1


@pytest.mark.parametrize("height, width", [(8, 8), (13, 7), (1, 1)])
def test_cutmix_fills_one_box_whose_area_is_the_others_weight(height: int, width: int) -> None:
    images, labels = pictures(64, height, width)
    found, _, weight = mixed(images, labels, Draw.seeded(1, 0, 64), cutmix=1.0)
    theirs = images[partners(64)]
    assert torch.equal(torch.where(found == images, images, theirs), found)
    changed = (found != images)[:, 0]
    torch.testing.assert_close(changed.float().mean((1, 2)), 1 - weight)
    for one in changed:  # a box: what is in its rows and columns
        assert torch.equal(one, one.any(1)[:, None] & one.any(0)[None])


def test_the_box_has_the_drawn_area_if_it_is_not_cut_off() -> None:
    images, labels = pictures(2_000, 64, 64)
    found, _, weight = mixed(images, labels, Draw.seeded(2, 0, 2_000), cutmix=1.0)
    whole = (found != images)[:, 0]
    edge = whole[:, 0].any(1) | whole[:, -1].any(1) | whole[:, :, 0].any(1) | whole[:, :, -1].any(1)
    inner = whole[~edge & whole.any(2).any(1)]
    assert len(inner) > 100
    sides = torch.stack([inner.any(2).sum(1), inner.any(1).sum(1)])
    assert torch.equal(sides[0], sides[1])  # 64 sqrt(1 - w) both, rounded to an even number
    assert 0.5 < weight.mean() < 0.8  # Beta(1, 1) has mean 1/2, and boxes that are cut off are smaller


def test_weights_are_drawn_from_the_beta_distribution() -> None:
    images, labels = pictures(20_000, 1, 1)
    weight = mixed(images, labels, Draw.seeded(3, 0, 20_000), mixup=0.8)[2]
    assert weight.mean() == pytest.approx(0.5, abs=0.01)
    assert weight.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.03)


def test_both_share_the_pictures() -> None:
    images, labels = pictures(2_000)
    found, _, weight = mixed(images, labels, Draw.seeded(4, 0, 2_000), mixup=0.8, cutmix=1.0)
    theirs = images[partners(2_000)]
    blended = ((found != images) & (found != theirs)).flatten(1).any(1)
    assert blended.float().mean() == pytest.approx(0.5, abs=0.04)
    torch.testing.assert_close(
        found.mean((1, 2, 3)), weight * images.mean((1, 2, 3)) + (1 - weight) * theirs.mean((1, 2, 3))
    )


@pytest.mark.parametrize("how", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_two_processes_mix_as_one(how: dict) -> None:
    images, labels = pictures(12)
    whole = mixed(images, labels, Draw.seeded(5, 7, 12), **how)
    parts = [mixed(images[a:b], labels[a:b], Draw.seeded(5, 7, 12, a, b), **how) for a, b in ((0, 6), (6, 12))]
    for i, found in enumerate(whole):
        assert torch.equal(found, torch.cat([part[i] for part in parts]))


@pytest.mark.parametrize("mixup, cutmix", [(0.0, 0.0), (-0.1, 1.0), (1.0, -1.0)])
def test_what_mixes_nothing_is_refused(mixup: float, cutmix: float) -> None:
    with pytest.raises(ValueError, match="must not be negative, and one of them be above 0"):
        mixed(*pictures(2), Draw.seeded(0, 0, 2), mixup=mixup, cutmix=cutmix)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_and_its_gradient_are_those_of_timms_targets(smoothing: float, share: float) -> None:
    targets = pytest.importorskip("timm.data.mixup", reason="the reference is timm")
    losses = pytest.importorskip("timm.loss", reason="the reference is timm")
    torch.manual_seed(0)
    labels, weight = torch.tensor([2, 0]), torch.full((2,), share)
    method = Supervised(Means(), 5, label_smoothing=smoothing)
    images = torch.randn(2, 3, 4, 4)
    batch = {"image": images, "label": labels, "other": labels.flip(0), "weight": weight}
    ours = method(batch)["loss"]
    target = targets.mixup_target(labels, 5, lam=share, smoothing=smoothing)
    logits = method.logits(images)
    theirs = losses.SoftTargetCrossEntropy()(logits, target)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    first, second = (torch.autograd.grad(loss, list(method.head.parameters())) for loss in (ours, theirs))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    plain = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert share != 1 or torch.allclose(ours, plain)


def test_views_mix_only_if_they_are_asked_to() -> None:
    fields = {"image": torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8), "label": torch.arange(4)}
    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    plain = supervised_views(mean, std, 16)(fields, Draw.seeded(0, 0, 4))
    both = supervised_views(mean, std, 16, mixup=0.8, cutmix=1.0)(fields, Draw.seeded(0, 0, 4))
    assert set(plain) == {"image", "label"}
    assert set(both) == {"image", "label", "other", "weight"}
    assert not torch.equal(plain["image"], both["image"])


class Means(torch.nn.Module, Encoder):
    """The means of the three colors."""

    dim = 3

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))
