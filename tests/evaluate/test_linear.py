"""The linear probe: scikit-learn's optimum, invariances, honest choice of strength, errors."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sensorium.errors import SensoriumError
from sensorium.metrics.linear import FOLDS, GRID, ROUGHLY, UNDECIDED, fit_probe, folds, linear
from sensorium.metrics.logistic import Logistic

FEW = (0.3, 0.03, 0.003)


def clusters(n, d=12, classes=4, seed=0, spread=2.0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(98)) + torch.eye(d)  # correlated, ill-conditioned
    return (centres[labels] + spread * torch.randn(n, d, generator=g)) @ mix, labels


def loss_of(logits, weight, labels, l2):
    return float(F.cross_entropy(logits.double(), labels) + l2 / 2 * weight.double().square().sum())


@pytest.mark.parametrize("n, d, classes", [(400, 12, 4), (60, 90, 3), (33, 33, 2), (1000, 5, 7)])
@pytest.mark.parametrize("l2", [1.0, 0.01, 0.0005])
def test_the_optimum_is_scikit_learns(n, d, classes, l2):
    from sklearn.linear_model import LogisticRegression

    train, labels = clusters(n, d, classes)
    test, _ = clusters(50, d, classes, seed=1)
    z = (train - train.mean(0)) / train.std(0, correction=0)
    zt = (test - train.mean(0)) / train.std(0, correction=0)
    peer = LogisticRegression(C=(2 if classes == 2 else 1) / (l2 * n), tol=1e-9, max_iter=5000)
    peer.fit(z.double().numpy(), labels)
    probe = Logistic(train, labels, classes).fit(l2)
    ours = probe.logits(test).softmax(1).double()
    assert torch.allclose(ours, torch.from_numpy(peer.predict_proba(zt.double().numpy())), atol=1e-3)
    if classes > 2:
        weight = torch.from_numpy(peer.coef_)
        best = loss_of(z.double() @ weight.T + torch.from_numpy(peer.intercept_), weight, labels, l2)
        mine = loss_of(probe.logits(train), probe.weight * train.std(0, correction=0), labels, l2)
        assert mine == pytest.approx(best, abs=1e-6)


def test_warm_and_cold_starts_end_at_the_same_optimum():
    train, labels = clusters(300)
    problem = Logistic(train, labels, 4)
    for l2 in GRID:
        warm = problem.fit(l2)
    cold = Logistic(train, labels, 4).fit(GRID[-1])
    assert torch.allclose(warm.logits(train), cold.logits(train), atol=5e-3)


def test_scale_and_shift_of_the_features_change_nothing():
    train, labels = clusters(400)
    test, truth = clusters(200, seed=1)
    want = linear(train, labels, test, truth, fractions=(0.2,), seeds=(0,), grid=FEW)
    scale, shift = torch.logspace(-2, 2, 12), torch.arange(12.0)
    got = linear(train * scale + shift, labels, test * scale + shift, truth, fractions=(0.2,), seeds=(0,), grid=FEW)
    assert got["20%"]["top1"] == pytest.approx(want["20%"]["top1"], abs=0.006)
    assert got["20%"]["regularisation"] == want["20%"]["regularisation"]


def test_what_is_reported():
    train, labels = clusters(1000)
    test, truth = clusters(300, seed=1)
    truth[::3] = -1
    got = linear(train, labels.numpy(), test, truth.numpy(), fractions=(0.05, 1.0), seeds=(4, 5, 6), grid=FEW)
    assert list(got) == ["5%", "100%"]
    few, whole = got["5%"], got["100%"]
    assert (few["n"], few["labels"], few["seeds"], len(few["regularisation"])) == (200, 52, [4, 5, 6], 3)
    assert (whole["n"], whole["labels"], whole["seeds"], whole["std"]) == (200, 1000, [4], 0.0)
    assert whole["stderr"] == pytest.approx(math.sqrt(whole["top1"] * (1 - whole["top1"]) / 200))
    assert 0.25 < few["top1"] < whole["top1"] < 1
    assert few["std"] > 0
    assert set(few["regularisation"]) <= set(FEW)
    assert got == linear(train, labels, test, truth, fractions=(0.05, 1.0), seeds=(4, 5, 6), grid=FEW)


def test_std_is_the_sample_deviation_of_the_seeds():
    train, labels = clusters(400)
    test, truth = clusters(200, seed=1)
    alone = [
        linear(train, labels, test, truth, fractions=(0.1,), seeds=(s,), grid=FEW)["10%"]["top1"] for s in range(3)
    ]
    both = linear(train, labels, test, truth, fractions=(0.1,), seeds=(0, 1, 2), grid=FEW)["10%"]
    assert both["top1"] == pytest.approx(np.mean(alone))
    assert both["std"] == pytest.approx(np.std(alone, ddof=1))


def test_the_strength_is_chosen_on_the_training_labels_alone():
    train, labels = clusters(500)
    test, truth = clusters(100, seed=1)
    want = linear(train, labels, test, truth, fractions=(1.0,), grid=FEW)["100%"]["regularisation"]
    assert linear(train, labels, -test, truth, fractions=(1.0,), grid=FEW)["100%"]["regularisation"] == want


def test_folds_spread_every_class_evenly_and_never_take_a_lone_label():
    labels = np.repeat([0, 1, 2], [50, 7, 1])
    fold = folds(labels, 0)
    assert [int((fold[labels == 0] == f).sum()) for f in range(FOLDS)] == [10] * 5
    assert {int((fold[labels == 1] == f).sum()) for f in range(FOLDS)} == {1, 2}
    assert fold[labels == 2].tolist() == [-1]
    assert np.array_equal(fold, folds(labels, 0))
    assert not np.array_equal(fold, folds(labels, 1))


def test_one_label_a_class_still_gives_a_probe():
    train, labels = clusters(4)
    probe, strength = fit_probe(train, labels)
    assert strength == UNDECIDED
    assert probe.accuracy(train, labels) == 1


def test_constant_and_collapsed_features_give_the_prior():
    labels = torch.tensor([0, 0, 0, 1] * 20)
    for features in (torch.ones(80, 5), torch.full((80, 5), 1e6), torch.zeros(80, 5)):
        probe, _ = fit_probe(features, labels)
        assert torch.allclose(probe.logits(features).softmax(1)[0], torch.tensor([0.75, 0.25]), atol=1e-3)
    train, labels = clusters(200)
    padded = torch.cat([train, torch.full((200, 3), 5.0)], dim=1)
    a, b = Logistic(train, labels, 4).fit(0.01), Logistic(padded, labels, 4).fit(0.01)
    assert torch.allclose(a.logits(train), b.logits(padded), atol=2e-3)


def test_a_class_that_is_only_in_the_test_set_is_missed():
    train, labels = clusters(200)
    test, truth = clusters(100, seed=1)
    truth[:50] = 9
    got = linear(train, labels, test, truth, fractions=(1.0,), grid=FEW)["100%"]
    assert got["n"] == 100
    assert got["top1"] <= 0.5


def test_errors_teach():
    train, labels = clusters(40)
    with pytest.raises(SensoriumError, match="of one class"):
        linear(train, labels * 0, train, labels, fractions=(1.0,))
    with pytest.raises(SensoriumError, match=r"class 'b' .*minimum fraction is 5%"):
        linear(train, (labels == 0).long(), train, labels, fractions=(0.01,), classes=("b", "b"))


def test_of_few_labels_the_choice_is_steady_and_near_the_best():
    train, labels = clusters(2000, d=40, spread=3.0)
    test, truth = clusters(1000, d=40, seed=1, spread=3.0)
    chosen = linear(train, labels, test, truth, fractions=(0.03,), seeds=range(6))["3%"]
    fixed = [linear(train, labels, test, truth, fractions=(0.03,), seeds=range(6), grid=(l2,))["3%"] for l2 in GRID]
    assert max(chosen["regularisation"]) <= 10 * min(chosen["regularisation"])
    assert chosen["top1"] > max(one["top1"] for one in fixed) - 0.01


@pytest.mark.parametrize("seed, width, spread", [(0, 8, 4.0), (1, 64, 1.0), (2, 300, 0.5), (3, 300, 3.0), (4, 20, 0.2)])
def test_the_grid_ends_where_the_likelihood_has_fallen_twice(seed, width, spread):
    """With many labels the weak strengths are not tried in vain: the choice is that of the whole grid."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(2500) % 10
    train = torch.randn(10, width, generator=generator)[labels] * spread
    train += torch.randn(2500, width, generator=generator) * torch.logspace(0, 1, width)
    fold = torch.from_numpy(folds(labels.numpy(), 0))
    problem, likely = Logistic(train, labels, 10), []
    for l2 in GRID:
        problem.solve(l2, fold != 0, ROUGHLY)
        likely.append(problem.log_likelihood(fold == 0))
    assert fit_probe(train, labels)[1] == GRID[int(np.argmax(likely))]
