"""Precision, recall, density and coverage: by hand, by definition or by their authors' code, and whatever the chunks."""

import pytest
import torch
from prdc import compute_prdc

from sensorium.metrics.coverage import density_coverage, inside, precision_recall, radii


def test_by_hand() -> None:
    """On a line: balls of k = 1 around 0, 1, 3 reach 1, 1, 2 far; 5.1 is outside them."""
    real = torch.tensor([[0.0], [1.0], [3.0]])
    assert radii(real, 1).tolist() == [1, 1, 2]
    assert radii(real, 2).tolist() == [3, 2, 3]
    made = torch.tensor([[-1.0], [5.0], [5.1], [0.5]])
    assert inside(made, real, radii(real, 1)).tolist() == [True, True, False, True]
    found = precision_recall(real, made, k=1)
    # generated balls reach 1.5, 0.1, 0.1, 1.5 far: 0 and 1 are inside, 3 is not
    assert found == {"precision": 0.75, "recall": pytest.approx(2 / 3), "n": 4, "n_real": 3, "k": 1}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_equals_the_definition_whatever_the_chunks(k: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    real, made = torch.randn(30, 4, generator=generator), 0.7 * torch.randn(25, 4, generator=generator) + 0.4

    def share(queries: torch.Tensor, centres: torch.Tensor) -> float:
        hits = 0
        for q in queries:
            away = (centres - q).square().sum(1).sqrt()
            reach = [(centres - c).square().sum(1).sqrt().sort().values[k] for c in centres]  # its own 0 comes first
            hits += any(d <= r for d, r in zip(away.tolist(), map(float, reach), strict=True))
        return hits / len(queries)

    found = precision_recall(real, made, k, chunk=chunk)
    if chunk == 7:
        assert (found["precision"], found["recall"]) == pytest.approx((share(made, real), share(real, made)))
    assert found == precision_recall(real, made, k)
    assert 0 < found["recall"] < 1


def test_copies_and_collapse() -> None:
    generator = torch.Generator().manual_seed(1)
    around_zero = torch.randn(50, 6, generator=generator)
    real = around_zero + 1e3  # where differences of products would have no digit left
    torch.testing.assert_close(radii(real, 3), radii(around_zero, 3), atol=1e-3, rtol=0)
    found = precision_recall(real, real.flip(0))
    assert (found["precision"], found["recall"]) == (1, 1)
    far = precision_recall(real, real + 1e3)
    assert (far["precision"], far["recall"]) == (0, 0)
    one = precision_recall(real, real[:1].expand(50, -1))  # one good sample, again and again: its balls are points
    assert one["precision"] == 1
    assert one["recall"] == pytest.approx(1 / 50)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="between 1 and 2"):
        precision_recall(torch.randn(3, 2), torch.randn(9, 2))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        precision_recall(torch.randn(9, 2), torch.randn(9, 3))


@pytest.mark.parametrize("real, made, k", [(40, 40, 5), (31, 57, 3), (60, 20, 1)])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_density_and_coverage_are_their_authors(real: int, made: int, k: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(real, 4, generator=generator), 0.7 * torch.randn(made, 4, generator=generator) + 0.4
    theirs = compute_prdc(a.numpy(), b.numpy(), k)
    found = density_coverage(a, b, k, chunk=chunk) | precision_recall(a, b, k, chunk=chunk)
    for name in ("density", "coverage", "precision", "recall"):
        assert found[name] == pytest.approx(theirs[name], abs=1e-6)


def test_density_and_coverage_by_hand() -> None:
    """Of balls of k = 1 around 0, 1, 3, that reach less than 1, 1, 2 far: 0.5 is in two, 2.9 in one, 9 in none."""
    real, made = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [2.9], [9.0]])
    assert density_coverage(real, made, 1) == {"density": pytest.approx(1), "coverage": pytest.approx(1)}
    assert density_coverage(real, made[2:], 1) == {"density": 0, "coverage": 0}
