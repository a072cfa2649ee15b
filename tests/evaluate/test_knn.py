"""kNN and neighbors: oracles, chunks, permutations, ties; duplicates."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.errors import SensoriumError
from sensorium.metrics.knn import knn, predict, whitened
from sensorium.metrics.neighbors import duplicates, identical, neighbors


def clusters(n, d=16, classes=5, seed=0, spread=1.5):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(n, d, generator=g), labels


@pytest.mark.parametrize(
    "n, q, d, k, temperature", [(500, 101, 16, 20, 0.07), (37, 5, 3, 7, 0.5), (2100, 64, 33, 50, 0.1)]
)
def test_predictions_equal_those_of_lightly(n, q, d, k, temperature):
    benchmarking = pytest.importorskip("lightly.utils.benchmarking")
    train, labels = clusters(n, d)
    test, _ = clusters(q, d, seed=1)
    order = benchmarking.knn_predict(
        F.normalize(test), F.normalize(train).T, labels, num_classes=5, knn_k=k, knn_t=temperature
    )
    got, used = predict(train, labels, test, 5, k=k, temperature=temperature)
    assert used == k
    assert torch.equal(got, order[:, 0])


def test_accuracy_equals_scikit_learn_with_the_same_weights():
    from sklearn.neighbors import KNeighborsClassifier

    train, labels = clusters(700)
    test, truth = clusters(300, seed=1)
    peer = KNeighborsClassifier(
        20, weights=lambda distance: np.exp((1 - distance) / 0.07), algorithm="brute", metric="cosine"
    ).fit(train, labels)
    got = knn(train, labels, test, truth, 5)
    assert got == {"top1": pytest.approx(peer.score(test, truth)), "n": 300, "k": 20}
    assert 0.3 < got["top1"] < 0.99


@pytest.mark.parametrize("n, d", [(700, 16), (300, 33)])
def test_whitened_cosines_equal_scikit_learns_where_nothing_is_shrunk(n, d):
    from sklearn.decomposition import PCA

    mixed = (torch.eye(d) + 0.3 * torch.randn(d, d)).double()
    train, others = torch.randn(n, d).double() @ mixed + 3, torch.randn(20, d).double() @ mixed
    peer = PCA(whiten=True, svd_solver="full").fit(train)
    want = [F.normalize(torch.as_tensor(peer.transform(x))) for x in (train, others)]
    got = [F.normalize(x) for x in whitened(train, torch.zeros(n), others, grid=(1e-12,))[0]]
    assert torch.allclose(got[1] @ got[0].T, want[1] @ want[0].T, atol=1e-8)


def test_whitened_cosines_are_those_of_the_shrunk_covariance_whatever_the_rotation_and_the_origin():
    train, others = (
        torch.randn(200, 9).double() @ torch.diag(torch.arange(1.0, 10)).double(),
        torch.randn(30, 9).double(),
    )
    mean, covariance = train.mean(0), torch.as_tensor(np.cov(train.T.numpy(), bias=True))
    inverse = torch.linalg.inv(covariance + 0.1 * covariance.trace() / 9 * torch.eye(9).double())
    a, b = others - mean, train - mean
    between = lambda x, y: torch.einsum("id,de,je->ij", x, inverse, y)  # noqa: E731
    want = between(a, b) / (between(a, a).diagonal()[:, None] * between(b, b).diagonal()[None]).sqrt()
    turn = torch.linalg.qr(torch.randn(9, 9).double())[0]
    for move in (lambda x: x, lambda x: 5 * x @ turn + 2):
        white, asked = map(F.normalize, whitened(move(train), torch.zeros(200), move(others), grid=(0.1,))[0])
        assert torch.allclose(asked @ white.T, want, atol=1e-9)


def test_whitening_finds_what_a_direction_that_all_share_hides():
    common = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))

    def hidden(n, seed):
        features, labels = clusters(n, seed=seed)
        g = torch.Generator().manual_seed(seed + 100)
        return features + 40 * torch.randn(n, 4, generator=g) @ common, labels

    (train, labels), (test, truth) = hidden(700, 0), hidden(300, 1)
    plain = knn(train, labels, test, truth, 5)["top1"]
    (white, asked), shrinkage = whitened(train, labels, test)
    assert shrinkage < 0.01
    assert knn(white, labels, asked, truth, 5)["top1"] > plain + 0.2


def test_a_shrinkage_that_rounding_undoes_is_not_chosen():
    """One direction of 10^5 times the others' deviation: in float32 their covariance is lost."""
    train, labels = clusters(400, d=300)
    train += 1e5 * torch.randn(400, 1) * torch.randn(300)
    (white, _), shrinkage = whitened(train, labels, train[:5], grid=(1e-12, 0.1))
    assert torch.isfinite(white).all()
    assert shrinkage == 0.1
    with pytest.raises(ValueError, match="shrunk by 1e-12 has no inverse"):
        whitened(train, labels, grid=(1e-12,))


@pytest.mark.parametrize("n, d", [(1, 4), (2, 4), (3, 4), (10, 40)])
def test_few_features_or_equal_ones_are_whitened_too(n, d):
    for train in (torch.ones(n, d), torch.randn(n, d)):
        found, _ = whitened(train, torch.arange(n) % 2, train[:1])
        assert [len(x) for x in found] == [n, 1]
        assert all(torch.isfinite(x).all() for x in found)


@pytest.mark.parametrize("n, k", [(1, 1), (31, 31), (640, 20), (641, 20), (1500, 3), (5000, 40), (50, 200)])
@pytest.mark.parametrize("chunk, query_chunk", [(16384, 1024), (700, 7), (33, 1000), (1, 50)])
def test_neighbours_are_the_exact_ones_for_any_chunks(n, k, chunk, query_chunk):
    if chunk == 1 and n > 640:
        chunk = 501
    bank, queries = torch.randn(n, 9), torch.randn(53, 9)
    index, similarity = neighbors(bank, queries, k, chunk=chunk, query_chunk=query_chunk)
    every = F.normalize(queries.double()) @ F.normalize(bank.double()).T
    want = every.topk(min(k, n), dim=1)
    assert index.shape == similarity.shape == (53, min(k, n))
    assert torch.allclose(similarity.double(), want.values, atol=1e-6)
    assert torch.allclose(every.gather(1, index), want.values, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in index.tolist())


def test_many_equal_similarities_are_still_distinct_images():
    bank = torch.randn(40, 8).repeat(60, 1)
    index, similarity = neighbors(bank, bank[:10], 50, chunk=900)
    assert torch.allclose(similarity, torch.ones(10, 50), atol=1e-5)
    assert all(len(set(row)) == 50 and {i % 40 for i in row} == {q} for q, row in enumerate(index.tolist()))


def test_a_query_can_be_kept_from_finding_itself():
    bank = torch.randn(100, 8)
    own = torch.tensor([0, 57, 99])
    index, similarity = neighbors(bank, bank[own], 200, exclude=own, chunk=30)
    assert index.shape == (3, 99)
    assert similarity.max() < 1 - 1e-4
    assert all(q not in row for q, row in zip(own.tolist(), index.tolist(), strict=True))


def test_zero_features_are_similar_to_nothing():
    index, similarity = neighbors(torch.eye(3), torch.zeros(1, 3), 2)
    assert similarity.tolist() == [[0, 0]]
    assert index.shape == (1, 2)
    assert neighbors(torch.eye(3), torch.zeros(0, 3), 2)[0].shape == (0, 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 300), st.integers(1, 30), st.integers(1, 64))
def test_order_scale_and_chunks_change_no_prediction(seed, n, k, chunk):
    train, labels = clusters(n, seed=seed)
    test, _ = clusters(20, seed=seed + 1)
    first, _ = predict(train, labels, test, 5, k=k)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(predict(train[order], labels[order], test, 5, k=k)[0], first)
    assert torch.equal(predict(train * 7, labels, test * 0.1, 5, k=k, chunk=chunk)[0], first)


def test_weights_count_not_heads():
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    labels = torch.tensor([1, 0, 0])
    query = torch.tensor([[1.0, 0.0]])
    assert predict(train, labels, query, k=3, temperature=0.07)[0].item() == 1
    assert predict(train, labels, query, k=3, temperature=10.0)[0].item() == 0
    assert predict(train, labels, query, k=3, temperature=1e-4)[0].item() == 1  # no overflow


def test_unlabelled_images_neither_vote_nor_count():
    train, labels = clusters(300)
    test, truth = clusters(100, seed=1)
    want = knn(train[::2], labels[::2], test[::2], truth[::2], 5)
    labels[1::2] = truth[1::2] = -1
    assert knn(train, labels.numpy(), test, truth.numpy(), ("a", "b", "c", "d", "e")) == want
    assert want["n"] == 50


def test_k_is_clipped_and_a_class_of_the_test_set_alone_is_just_missed():
    train, labels = clusters(7)
    got = knn(train, labels, train, torch.full((7,), 9), k=20)
    assert got == {"top1": 0.0, "n": 7, "k": 7}


def test_half_precision_features_are_compared_in_float32():
    train, labels = clusters(300)
    rounded = train.bfloat16()
    assert torch.equal(predict(rounded, labels, rounded, 5)[0], predict(rounded.float(), labels, rounded.float(), 5)[0])


def test_nothing_to_score_is_an_error():
    train, labels = clusters(9)
    with pytest.raises(SensoriumError, match="No test image has a label"):
        knn(train, labels, train, torch.full((9,), -1))
    with pytest.raises(SensoriumError, match="No training image has a label"):
        knn(train, torch.full((9,), -1), train, labels)
    with pytest.raises(ValueError, match="9 training features but 8 labels"):
        knn(train, labels[:8], train, labels)


def test_memory_is_bounded_by_the_chunks():
    from torch.profiler import ProfilerActivity, profile

    bank, queries = torch.randn(30_000, 8), torch.randn(3_000, 8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        neighbors(bank, queries, 10, chunk=2_000, query_chunk=500)
    now = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    block = 500 * 2_000 * 4
    assert block < peak < 2 * block + 3_000 * 10 * 12 + 2_000 * 8 * 4 * 2 + 2**20


def test_duplicates_are_found_whole_and_marked():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 3, 4, 4), dtype=np.uint8)
    images[[5, 11]] = images[2]
    images[19] = images[0]
    assert duplicates(images) == [(0, 19), (2, 5, 11)]
    near = images[2].copy()
    near[0, 0, 0] ^= 1
    images[7] = near
    features = torch.from_numpy(images).float().flatten(1)
    index, similarity = neighbors(features, features[[2]], 4)
    same = identical(images, images[[2]], index, similarity)
    assert set(index[0].tolist()) == {2, 5, 7, 11}
    assert set(index[0][same[0]].tolist()) == {2, 5, 11}
