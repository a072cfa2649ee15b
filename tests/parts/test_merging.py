"""Token merging: what a loop over pairs gives, and what merging must leave as it was."""

import pytest
import torch
from torch import Tensor, nn

from sensorium.networks.vit import ViT
from sensorium.parts.block import Block
from sensorium.parts.merging import Groups, encode_merged, match, merge, merging_block, ungrouped, unmerge

CASES = [(7, 2, 0), (8, 3, 1), (9, 4, 1), (10, 99, 1), (11, 3, 2), (12, 99, 3), (3, 1, 1), (2, 5, 1), (4, 2, 5)]


def spread(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def vit(registers: int = 0, **more) -> ViT:
    torch.manual_seed(0)
    made = ViT((12, 15), 3, 24, 3, 3, registers=registers, **more)
    spread(made)
    return made


def by_loop(metric: Tensor, r: int, protected: int) -> list[list[int]]:
    """Algorithm of the paper's appendix D for one image, one pair at a time: what each token that is left consists of."""
    T = len(metric)
    a = [i for i in range(protected, T) if i % 2 == 0]
    b = [i for i in range(protected, T) if i % 2 == 1]
    pairs = []
    for i in a:
        best = max(b, key=lambda j: torch.cosine_similarity(metric[i], metric[j], dim=0).item(), default=None)
        if best is not None:
            pairs.append((torch.cosine_similarity(metric[i], metric[best], dim=0).item(), i, best))
    pairs = sorted(pairs, reverse=True)[: min(r, max(0, T - protected) // 2)]
    into = {i: j for _, i, j in pairs}
    left = [[i] for i in range(min(protected, T))] + [[i] for i in a if i not in into]
    return left + [[j, *(i for i in a if into.get(i) == j)] for j in b]


@pytest.mark.parametrize(("T", "r", "protected"), CASES)
def test_matching_is_the_loop_over_pairs(T: int, r: int, protected: int) -> None:
    make = torch.Generator().manual_seed(T)
    metric, x = torch.randn(3, T, 5, generator=make), torch.randn(3, T, 4, generator=make, requires_grad=True)
    size = torch.randint(1, 6, (3, T), generator=make).float()
    groups = match(metric, r, protected)
    assert groups.count == T - min(r, max(0, T - protected) // 2)
    means, sizes = merge(x, groups, size)
    expected, counts = [], []
    for one in range(3):
        members = by_loop(metric[one], r, protected)
        if groups.count == T:  # nothing to merge: the order stays
            members = [[i] for i in range(T)]
        expected.append(torch.stack([(x[one, m] * size[one, m, None]).sum(0) / size[one, m].sum() for m in members]))
        counts.append(torch.stack([size[one, m].sum() for m in members]))
    torch.testing.assert_close(means, torch.stack(expected), atol=1e-5, rtol=0)
    assert torch.equal(sizes, torch.stack(counts))
    weight = torch.randn(means.shape, generator=make)
    found, wanted = (torch.autograd.grad(y, x, weight)[0] for y in (means, torch.stack(expected)))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("protected", [0, 1, 2])
def test_what_merging_keeps(protected: int) -> None:
    make = torch.Generator().manual_seed(protected)
    x, T = torch.randn(2, 13, 6, generator=make), 13
    size, every, now = None, ungrouped(x), x
    for r in (2, 3, 1):
        groups = match(now, r, protected)
        now, size = merge(now, groups, size)
        every = every.then(groups)
        T -= r
        assert now.shape[1] == every.count == T
        assert size.shape == (2, T)
        assert torch.equal(size.sum(1), torch.full((2,), 13.0))
        mean = (now * size[..., None]).sum(1) / 13
        torch.testing.assert_close(mean, x.mean(1), atol=1e-6, rtol=0)
        assert torch.equal(now[:, :protected], x[:, :protected])
    # each token is given the mean of those that it went together with
    back = unmerge(now, every)
    for one in range(2):
        for token in range(13):
            same = every.of[one] == every.of[one, token]
            assert same.sum() == size[one, every.of[one, token]]  # type: ignore[index]
            torch.testing.assert_close(back[one, token], x[one, same].mean(0), atol=1e-6, rtol=0)


def test_the_most_similar_are_merged_whatever_their_length() -> None:
    x = torch.eye(8)[None].clone()
    x[0, 6] = 5 * x[0, 3] + 0.1 * x[0, 6]
    groups = match(x, 1, protected=1)
    assert groups.of[0, 6] == groups.of[0, 3]
    assert len(groups.of[0].unique()) == 7
    with pytest.raises(ValueError, match="negative"):
        match(x, -1)


@pytest.mark.parametrize("registers", [0, 1, 2])
def test_without_merging_it_is_the_vit(registers: int) -> None:
    net, images = vit(registers), torch.randn(2, 3, 12, 15)
    tokens, groups = encode_merged(net, images, 0)
    assert torch.equal(tokens, net.tokens(images))
    assert torch.equal(groups.of, torch.arange(21).expand(2, -1))
    assert groups.count == 21


@pytest.mark.parametrize("registers", [0, 1, 2])
@pytest.mark.parametrize("r", [1, 3, (4, 0, 5), 20])
def test_encoding_with_merging(registers: int, r: int | tuple[int, ...]) -> None:
    net, images = vit(registers), torch.randn(2, 3, 12, 15, requires_grad=True)
    tokens, groups = encode_merged(net, images, r)
    left = 20
    for fewer in [r] * 3 if isinstance(r, int) else r:
        left -= min(fewer, left // 2)
    assert tokens.shape == (2, 1 + left, 24)
    assert groups.count == 1 + left
    assert all(torch.equal(of.unique(), torch.arange(1 + left)) for of in groups.of)
    assert torch.equal(groups.of[:, 0], torch.zeros(2, dtype=torch.int64))
    assert (groups.of[:, 1:] > 0).all()
    assert unmerge(tokens, groups).shape == (2, 21, 24)
    gradient = torch.autograd.grad(tokens[:, 0].sum(), images)[0]
    assert (gradient.unfold(2, 3, 3).unfold(3, 3, 3).abs().amax(dim=(1, 4, 5)) > 0).all()  # each patch still counts


def test_one_r_a_block() -> None:
    with pytest.raises(ValueError):
        encode_merged(vit(), torch.randn(1, 3, 12, 15), (1, 2))


def test_tokens_that_are_the_same_may_be_merged_for_free() -> None:
    """With proportional attention a network cannot tell s equal tokens from one of size s; without it, it can."""
    torch.manual_seed(1)
    blocks = [Block(24, 3) for _ in range(2)]
    for block in blocks:
        spread(block)
    few = torch.randn(2, 5, 24)
    many = few[:, [0, 1, 1, 2, 2, 3, 3, 4, 4]]
    plain = blocks[1](blocks[0](many))

    def merged(proportional: bool) -> tuple[Tensor, Groups]:
        x, size, first = merging_block(blocks[0], many, None, 4, protected=1, proportional=proportional)
        assert x.shape[1] == 5
        x, _, second = merging_block(blocks[1], x, size, 0, protected=1, proportional=proportional)
        return x, first.then(second)

    torch.testing.assert_close(unmerge(*merged(True)), plain, atol=1e-5, rtol=0)
    assert (unmerge(*merged(False)) - plain).abs().max() > 1e-2


def test_proportional_attention_is_its_equation() -> None:
    torch.manual_seed(2)
    block, x, size = Block(24, 3), torch.randn(2, 7, 24), torch.randint(1, 5, (2, 7)).float()
    spread(block)
    found, sizes, groups = merging_block(block, x, size, 0)
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    weight = (q @ k.mT / 8**0.5).exp() * size[:, None, None]
    y = x + block.attn.proj((weight / weight.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, y + block.mlp(block.norm2(y)), atol=1e-5, rtol=0)
    assert sizes is size
    assert groups.count == 7


def test_sums_are_float32_in_bfloat16() -> None:
    x = torch.full((1, 1000, 2), 1.0, dtype=torch.bfloat16)
    x[:, ::2] = 3.0
    mean, size = merge(x, Groups(torch.zeros(1, 1000, dtype=torch.int64), 1))
    assert mean.dtype == torch.bfloat16
    assert mean.tolist() == [[[2.0, 2.0]]]
    assert size.tolist() == [[1000.0]]
    net = vit().bfloat16()
    tokens, _ = encode_merged(net, torch.randn(2, 3, 12, 15, dtype=torch.bfloat16), 3)
    assert tokens.dtype == torch.bfloat16
    assert tokens.isfinite().all()
