"""Fine-tuning and baselines: what learns, what is left alone, what repeats, and at which rates."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from sensorium.abilities import Encoder
from sensorium.errors import SensoriumError
from sensorium.judge import baselines
from sensorium.judge.encode import encode, normalised
from sensorium.judge.finetune import Tuned, Tuning, _groups, _init_head, _ordered, batch_rows, finetune, length
from sensorium.metrics.linear import fit_probe
from sensorium.metrics.logistic import Probe
from sensorium.recipe.optim import depths


@dataclass
class Pixels:
    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple = ("dark", "bright", "striped")
    mean: tuple = (0.5, 0.5, 0.5)
    std: tuple = (0.25, 0.25, 0.25)


def pictures(n, seed=0, size=8):
    """Dark, bright and striped noise."""
    rng, labels = np.random.default_rng(seed), np.arange(n) % 3
    images = rng.integers(0, 200, (n, 3, size, size))
    images += 35 * (labels == 1)[:, None, None, None] + 70 * (
        (labels == 2)[:, None, None, None] & (np.arange(size) % 2 > 0)
    )
    return Pixels(np.clip(images, 0, 255).astype(np.uint8), labels)


class Net(nn.Module, Encoder):
    def __init__(self, dim=8, drop=0.0):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, dim, 3, bias=False), nn.BatchNorm2d(dim)
        self.layer1, self.layer2 = nn.Sequential(nn.Conv2d(dim, dim, 3)), nn.Sequential(nn.Conv2d(dim, dim, 3))
        self.drop, self.dim = nn.Dropout(drop), dim

    def layers_for_decay(self):
        return {name: int(name[5]) if name.startswith("layer") else 0 for name, _ in self.named_parameters()}

    def features(self, x):
        x = self.layer1(self.bn1(self.conv1(x)).relu()).relu()
        return self.drop(self.layer2(x).relu().mean((2, 3)))


def net(seed=0, **numbers):
    torch.manual_seed(seed)
    return Net(**numbers)


TRAIN, TEST = pictures(240), pictures(90, seed=1)


def test_it_learns_reports_and_leaves_everything_else_alone():
    backbone = net(drop=0.2).eval()
    backbone.layer1.requires_grad_(False)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    state, seen = torch.get_rng_state(), []
    got = finetune(
        backbone, TRAIN, TEST, fractions=(0.1, 1.0), seeds=(0, 1), steps=40, lr=1e-2,
        on_progress=lambda name, seed, share: seen.append((name, seed, share)),
    )  # fmt: skip
    assert list(got) == ["10%", "100%"]
    assert (got["10%"]["labels"], got["10%"]["n"], got["10%"]["seeds"], got["10%"]["steps"]) == (24, 90, [0, 1], 40)
    assert (got["100%"]["labels"], got["100%"]["seeds"], got["100%"]["std"]) == (240, [0], 0.0)
    assert got["100%"]["top1"] > 0.9
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert not backbone.training
    assert not backbone.layer1[0].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert len(seen) == 120
    assert ("100%", 0, 1.0) in seen


def test_the_same_seed_gives_the_same_numbers_and_another_does_not():
    logits, judged = [], []

    class Watched(Net):
        def features(self, x):
            found = super().features(x)
            if not self.training:
                judged.append(found.clone())
            return found

    torch.manual_seed(0)
    backbone = Watched(drop=0.3)
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        judged.clear()
        finetune(backbone, TRAIN, TEST, fractions=(0.2,), seeds=(seed,), steps=8)
        logits.append(torch.cat(judged)[-90:])
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_a_frozen_teacher_is_tuned_all_the_same():
    got = finetune(net().requires_grad_(False), TRAIN, TEST, fractions=(1.0,), steps=60, lr=1e-2)
    assert got["100%"]["top1"] > 0.9


def test_the_head_starts_as_the_probe_or_the_class_means():
    backbone = net()
    features = encode(backbone, TRAIN)
    labels = torch.from_numpy(TRAIN.labels)
    model = Tuned(backbone, 8, 3, Tuning())
    _init_head(model, TRAIN, np.arange(240), labels, 0, Tuning())
    probe, _ = fit_probe(features, labels, seed=0)
    assert torch.equal(model.head.weight, probe.weight)
    assert torch.equal(model.head.bias, probe.bias)
    _init_head(model, TRAIN, np.arange(240), labels, 0, Tuning(head_init="means"))
    means = torch.stack([features[labels == c].mean(0) for c in range(3)])
    nearest = torch.cdist(features, means).argmin(1)
    assert torch.equal(model.head(features).argmax(1), nearest)
    with pytest.raises(ValueError, match="head_init is 'best'"):
        _init_head(model, TRAIN, np.arange(240), labels, 0, Tuning(head_init="best"))


def test_the_augmentation_sees_pixels_and_its_draws_belong_to_the_step():
    calls = []

    def augment(images, labels, draw):
        calls.append((images.dtype, draw.count, draw.rand()))
        return {"image": normalised(images.flip(-1), TRAIN.mean, TRAIN.std), "label": labels}

    for _ in range(2):
        finetune(net(), TRAIN, TEST, fractions=(1.0,), steps=3, augment=augment, batch_size=32)
    assert [c[:2] for c in calls] == [(torch.uint8, 32)] * 6
    assert all(torch.equal(calls[i][2], calls[i + 3][2]) for i in range(3))
    assert not torch.equal(calls[0][2], calls[1][2])


def test_steps_follow_from_the_labels_within_bounds():
    assert length(200, Tuning()) == (64, 150)
    assert length(900, Tuning()) == (64, 282)
    assert length(20_000, Tuning()) == (128, 400)
    assert length(20_000, Tuning(max_steps=3000)) == (128, 3000)
    assert length(30, Tuning(max_steps=20)) == (30, 20)
    assert length(2000, Tuning(steps=7, batch_size=256)) == (256, 7)
    assert finetune(net(), TRAIN, TEST, fractions=(1.0,), max_steps=3)["100%"]["steps"] == 3


def test_what_would_not_end_in_time_is_left_out():
    assert finetune(net(), TRAIN, TEST, fractions=(0.5, 1.0), steps=10**6, deadline=time.monotonic() + 0.3) == {}
    spans = {"fractions": (0.5, 1.0), "seeds": (0, 1), "steps": 5}
    in_time = finetune(net(), TRAIN, TEST, **spans, first=1.0, deadline=time.monotonic() + 600)
    assert in_time == finetune(net(), TRAIN, TEST, **spans)
    assert list(in_time) == ["50%", "100%"]


def test_what_is_as_long_as_one_that_did_not_fit_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    said: list[str] = []

    def too_long(backbone, train, subset, *rest):
        begun.append(len(subset))

    monkeypatch.setattr("sensorium.judge.finetune._tune", too_long)
    found = finetune(
        net(), TRAIN, TEST, fractions=(0.5, 1.0), seeds=(0, 1, 2), steps=7, batch_size=4, first=1.0, deadline=0.0,
        on_progress=lambda share, seed, done: said.append(share),
    )  # fmt: skip
    assert found == {}
    assert len(begun) == 1
    assert said == []


def test_the_fraction_that_decides_is_trained_first_then_one_seed_of_each():
    order = _ordered((0.01, 0.1, 1.0), (0, 1), 1.0)
    assert order == [(1.0, 0), (0.01, 0), (0.1, 0), (0.01, 1), (0.1, 1)]
    assert _ordered((0.01, 1.0), (0, 1), None) == [(0.01, 0), (1.0, 0), (0.01, 1)]


def test_a_probe_that_is_known_is_where_the_head_begins():
    asked = []

    def probe(subset, seed):
        asked.append((len(subset), seed))
        return Probe(torch.ones(3, net().dim), torch.zeros(3))

    kept = []
    finetune(
        net(), TRAIN, TEST, fractions=(1.0,), steps=1, lr=1e-9, probe=probe,
        keep_network=lambda share, seed, tuned: kept.append((share, seed, tuned)),
    )  # fmt: skip
    ((share, seed, tuned),) = kept
    assert (share, seed) == ("100%", 0)
    assert torch.allclose(tuned.head.weight, torch.ones(()), atol=1e-6)
    assert asked == [(len(TRAIN.images), 0)]


def test_batches_are_shuffled_passes_end_to_end():
    rows = torch.cat([batch_rows(10, 4, seed=3, step=s) for s in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert not torch.equal(rows[:10], rows[10:])
    assert len(batch_rows(3, 8, seed=0, step=2)) == 8


def test_rates_shrink_towards_the_input_and_vectors_do_not_decay():
    from sensorium.networks.vit import ViT

    vit = ViT(image_size=8, patch_size=4, width=16, depth=3, heads=2)
    model = Tuned(vit, 16, 3, Tuning())
    named = {id(p): name for name, p in model.named_parameters()}
    groups = {named[id(p)]: g for g in _groups(model, Tuning(lr=1.0), fresh=False) for p in g["params"]}
    assert set(groups) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert groups["head.weight"]["lr"] == groups["backbone.norm.weight"]["lr"] == 1
    assert groups["backbone.blocks.2.attn.proj.weight"]["lr"] == pytest.approx(0.75)
    assert groups["backbone.blocks.0.attn.proj.weight"]["lr"] == pytest.approx(0.75**3)
    assert groups["backbone.cls_token"]["lr"] == pytest.approx(0.75**4)
    assert groups["backbone.cls_token"]["weight_decay"] == groups["head.bias"]["weight_decay"] == 0
    assert groups["backbone.blocks.0.attn.proj.weight"]["weight_decay"] == 0.05
    assert all(g["lr"] == 1 for g in _groups(model, Tuning(lr=1.0), fresh=True))


def test_depth_of_stages_and_of_anything_else():
    at = depths(Net())
    assert (at["conv1.weight"], at["bn1.bias"], at["layer1.0.weight"], at["layer2.0.bias"], at["head"]) == (
        0,
        0,
        1,
        2,
        3,
    )
    assert set(depths(nn.Linear(2, 2)).values()) == {0}


def test_divergence_no_test_labels_and_one_class_are_errors():
    with pytest.raises(SensoriumError, match="diverged at step"):
        finetune(net(), TRAIN, TEST, fractions=(1.0,), steps=50, lr=1e30)
    with pytest.raises(SensoriumError, match="No test image has a label"):
        finetune(net(), TRAIN, Pixels(TEST.images, None), fractions=(1.0,))
    with pytest.raises(SensoriumError, match="one class"):
        finetune(net(), Pixels(TRAIN.images, np.zeros(240, int)), TEST, fractions=(1.0,))


def test_unlabelled_test_images_do_not_count():
    labels = TEST.labels.copy()
    labels[::2] = -1
    assert finetune(net(), TRAIN, Pixels(TEST.images, labels), fractions=(1.0,), steps=2)["100%"]["n"] == 45


def test_bf16_tunes_too():
    assert finetune(net(), TRAIN, TEST, fractions=(1.0,), steps=40, lr=1e-2, precision="bf16")["100%"]["top1"] > 0.8


def test_scratch_starts_anew_for_each_seed_from_that_seed_alone():
    firsts = []

    def build():
        backbone = Net()
        firsts.append(backbone.conv1.weight.detach().clone())
        return backbone

    scores = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        scores.append(baselines.scratch(build, TRAIN, TEST, fractions=(0.5,), seeds=(0, 1), steps=30, lr=1e-2))
    assert scores[0] == scores[1]
    assert scores[0]["50%"]["top1"] > 0.6
    assert torch.equal(firsts[0], firsts[2])
    assert not torch.equal(firsts[0], firsts[1])


def test_majority_pixels_and_random_networks():
    assert baselines.majority(np.array([1, 1, 0, -1]), np.array([1, 0, 0, 1, -1])) == {"top1": 0.5, "n": 4}
    with pytest.raises(SensoriumError, match="labels in both"):
        baselines.majority(np.array([-1]), np.array([1]))
    found = baselines.pixels(TRAIN, TEST, fractions=(1.0,))
    assert found["linear"]["100%"]["top1"] > 0.7
    assert found["knn"]["n"] == 90
    one, two = (baselines.random_network(Net, TRAIN, TEST, fractions=(1.0,), batch_size=100) for _ in range(2))
    assert one == two
    assert 1 <= one["rankme"] <= 8
    assert one != baselines.random_network(Net, TRAIN, TEST, fractions=(1.0,), seed=1)


def test_pixel_features_are_shrunk_to_32_pixels():
    small = baselines.pixel_features(TEST)
    want = normalised(torch.from_numpy(TEST.images), TEST.mean, TEST.std).flatten(1)
    assert torch.equal(small, want)
    flat = Pixels(np.full((5, 3, 48, 48), 77, np.uint8), None)
    large = baselines.pixel_features(flat, batch_size=2)
    assert large.shape == (5, 3 * 32 * 32)
    assert torch.allclose(large, torch.full_like(large, (77 / 255 - 0.5) / 0.25), atol=1e-4)
