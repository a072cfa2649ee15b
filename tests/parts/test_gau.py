"""The gated attention unit equals the paper's equations written with loops; its forms agree, and padding adds nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from sensorium.parts.attention import gau
from sensorium.parts.attention.gau import (
    LEARNT,
    DistanceBias,
    GatedAttentionUnit,
    RotaryBias,
    document_runs,
    document_slots,
)

WIDTH, SHARED = 6, 4


def unit(length: int, dtype: torch.dtype = torch.float64, **numbers) -> GatedAttentionUnit:
    """Weights so large that every term tells."""
    torch.manual_seed(0)
    made = GatedAttentionUnit(WIDTH, length, **{"shared": SHARED, "expansion": 1.5, **numbers})
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    return made.to(dtype)


def table(gau: GatedAttentionUnit) -> Tensor:
    assert isinstance(gau.bias, DistanceBias)
    return gau.bias.weight


def rope(x: Tensor, at: int) -> Tensor:
    """The appendix's: halves are the two coordinates of a turn."""
    half = len(x) // 2
    turned = x.clone()
    for i in range(half):
        angle = at * 10_000 ** (-i / half)
        cos, sin = math.cos(angle), math.sin(angle)
        turned[i], turned[i + half] = x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin
    return turned


def written_out(gau: GatedAttentionUnit, x: Tensor) -> Tensor:
    """The pseudocode of the paper's appendix for one row [T, D], a token, a pair and a chunk at a time."""
    n, e = gau.length, gau.hidden
    total, weight = len(x), table(gau)
    u, v, heads = [], [], []
    for t in range(total):
        row = gau.uvz.weight @ x[t] + gau.uvz.bias
        row = row * torch.sigmoid(row)
        u.append(row[:e])
        v.append(row[e : 2 * e])
        heads.append(
            [rope(row[2 * e :] * g[0] + b[0], t) for g, b in zip(gau.heads.gamma, gau.heads.beta, strict=True)]
        )

    def quadratic(i: int, j: int) -> Tensor:
        return torch.relu(heads[i][0] @ heads[j][1] / n + weight[j - i + n - 1]) ** 2 * v[j]

    found = []
    for i in range(total):
        of = i // n
        if not gau.mixed:
            y = sum(quadratic(i, j) for j in range(i + 1 if gau.causal else total))
        else:
            end = i + 1 if gau.causal else min(total, (of + 1) * n)
            y = sum(quadratic(i, j) for j in range(of * n, end))
            chunks = range(of if gau.causal else math.ceil(total / n))
            tokens = [j for h in chunks for j in range(h * n, min(total, (h + 1) * n))]
            for j in tokens:
                y = y + heads[i][2] @ heads[j][3] * v[j] / len(tokens)
        found.append(gau.out.weight @ (u[i] * y) + gau.out.bias)
    return torch.stack(found)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mixed, length", [(False, 7), (False, 10), (True, 3), (True, 7), (True, 1), (True, 20)])
def test_equals_the_equations_written_out(mixed: bool, length: int, causal: bool) -> None:
    gau = unit(length, torch.float32, mixed=mixed, causal=causal)
    x = torch.randn(1, 7, WIDTH, requires_grad=True)
    found, said = gau(x)[0], written_out(gau, x[0])
    scale = float(said.detach().abs().max())
    torch.testing.assert_close(found, said, atol=1e-5 * max(1, scale), rtol=0)
    weight = torch.randn_like(said)
    wanted = [x, gau.heads.gamma, gau.heads.beta, table(gau), gau.uvz.weight]
    for mine, theirs in zip(
        *(torch.autograd.grad((y * weight).sum(), wanted) for y in (found, said)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4 * max(1, float(theirs.abs().max())), rtol=0)


def test_many_chunks_are_summed_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made = unit(3, mixed=True)
    x = torch.randn(2, 20, WIDTH, dtype=torch.float64, requires_grad=True)
    found = []
    for few in (0, 7):
        monkeypatch.setattr(gau, "FEW", few)
        y = made(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *made.parameters()])))
    torch.testing.assert_close(*found)


def test_one_chunk_is_the_quadratic_form() -> None:
    mixed, quad = unit(9, mixed=True), unit(9)
    for name, weight in quad.state_dict().items():
        weight.copy_(mixed.state_dict()[name][: len(weight)])  # of the heads the first two
    for length in (1, 8, 9):
        x = torch.randn(2, length, WIDTH, dtype=torch.float64)
        torch.testing.assert_close(mixed(x), quad(x))
    x = torch.randn(2, 10, WIDTH, dtype=torch.float64)
    assert not torch.allclose(mixed(x)[:, 9], quad(x)[:, 9])


@pytest.mark.parametrize("mixed", [True, False])
def test_nothing_looks_ahead(mixed: bool) -> None:
    gau = unit(3, mixed=mixed)
    torch.nn.init.constant_(table(gau), 9)  # no weight is zero behind the relu
    reach = jacobian(gau, torch.randn(1, 8, WIDTH, dtype=torch.float64)).abs().amax(dim=(0, 2, 3, 5))
    assert reach.triu(1).max() == 0
    assert reach.tril().gt(0).sum() == 8 * 9 // 2


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal: bool) -> None:
    """A row of 7 and the same as the only document of longer chunks; and one behind another of any length."""
    gau = unit(4, mixed=True, causal=causal)
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(gau(x, torch.zeros(2, 7, dtype=torch.long)), gau(x))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_documents_come_out_as_if_alone(mixed: bool, causal: bool) -> None:
    gau = unit(4, mixed=mixed, causal=causal)
    table(gau).data.add_(9)  # no weight is zero behind the relu
    rows = [[6, 1, 5], [3, 9], [1] * 12]
    x = torch.randn(3, 12, WIDTH, dtype=torch.float64, requires_grad=True)
    documents = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) % 2 for row in rows])
    found = gau(x, documents)
    apart = torch.stack(
        [torch.cat([gau(part[None])[0] for part in row.split(sizes)]) for row, sizes in zip(x, rows, strict=True)]
    )
    # positions run on in a row, and rotary tables are float32
    torch.testing.assert_close(found, apart, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found[1, :3].sum(), x)
    assert gradient[1, 3:].abs().max() == 0
    assert gradient[1, :3].abs().min() > 0


def test_documents_take_their_own_chunks() -> None:
    documents = torch.tensor([[5, 5, 5, 5, 7, 5, 5], [1, 1, 1, 1, 1, 1, 1]])
    run, within = document_runs(documents)
    assert run.tolist() == [[1, 1, 1, 1, 2, 3, 3], [1] * 7]
    assert within.tolist() == [[0, 1, 2, 3, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6]]
    assert document_slots(documents, 3).tolist() == [[0, 1, 2, 3, 6, 9, 10], [0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("pieces", [[11], [1] * 11, [2, 6, 3]], ids=str)
@pytest.mark.parametrize("mixed", [True, False])
def test_extending_equals_the_whole(mixed: bool, pieces: list[int]) -> None:
    gau, past, found = unit(4, mixed=mixed), None, []
    x = torch.randn(2, 11, WIDTH, dtype=torch.float64)
    for part in x.split(pieces, dim=1):
        y, past = gau.extend(part, past)
        found.append(y)
        assert not mixed or past.k.shape[1] < 4
    torch.testing.assert_close(torch.cat(found, 1), gau(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("made", [DistanceBias(9), RotaryBias(8)], ids=["weights", "rotary"])
def test_biases_depend_on_the_distance_alone(made: torch.nn.Module) -> None:
    torch.nn.init.normal_(next(made.parameters()))
    whole = made(torch.arange(9), torch.arange(9))
    for offset in range(-8, 9):
        along = whole.diagonal(offset)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-5, rtol=1e-5)
    assert len({round(float(whole.diagonal(offset)[0].detach()), 6) for offset in range(-8, 9)}) == 17
    torch.testing.assert_close(made(torch.arange(4, 6), torch.arange(9)), whole[4:6])


def test_long_rows_learn_two_vectors_in_place_of_a_table() -> None:
    assert isinstance(unit(LEARNT).bias, DistanceBias)
    gau = unit(LEARNT + 1)
    assert isinstance(gau.bias, RotaryBias)
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(gau.extend(x)[0], gau(x))


def test_bfloat16_stays_near() -> None:
    """Three significant digits in, two out."""
    gau = unit(4, mixed=True)
    x = torch.randn(2, 13, WIDTH, dtype=torch.float64)
    said = gau(x)
    found = gau.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert (found.double() - said).norm() < 0.02 * said.norm()


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="shared 5 is odd"):
        unit(4, shared=5)
    with pytest.raises(ValueError, match="1 or more tokens"):
        unit(0)
    with pytest.raises(ValueError, match="only a causal unit"):
        unit(4, causal=False).extend(torch.zeros(1, 1, WIDTH, dtype=torch.float64))
