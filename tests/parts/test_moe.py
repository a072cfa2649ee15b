"""Mixtures of experts: routing against a literal loop, the ways to run experts, the layer, and two processes.

Run as a script this file is one of the processes: ``test_moe.py RANK WORLD FOLDER``.
"""

import sys
from functools import partial

import pytest
import torch
from torch import distributed as dist

from sensorium.parts.feedforward import FeedForward, activate, rows
from sensorium.parts.gather import rank, sum_over_processes, world_size
from sensorium.parts.moe.experts import apply_experts, groupable, run_experts
from sensorium.parts.moe.layer import MoE
from sensorium.parts.moe.route import (
    balance_loss,
    capacity,
    deepseek,
    expert_choice,
    sequence_balance_loss,
    top1,
    top2,
    top_k,
    update_bias_,
    z_loss,
)

WORLD = 2
ROUTERS = {
    "top1": partial(top1, factor=1.0),
    "top2": partial(top2, factor=0.8),
    "top_k": partial(top_k, k=3),
    "expert_choice": expert_choice,
    "deepseek": partial(deepseek, k=3, groups=2, best_groups=1, scale=1.7),
}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_placed(routing, want: list[tuple[int, int, float]]) -> None:
    """The same assignments (token, expert, weight), in whatever order within an expert."""
    got = sorted(zip(routing.token.tolist(), routing.expert.tolist(), routing.weight.tolist(), strict=True))
    assert [row[:2] for row in got] == [row[:2] for row in sorted(want)]
    assert [row[2] for row in got] == pytest.approx([row[2] for row in sorted(want)])
    assert (routing.expert.diff() >= 0).all()
    assert routing.counts.tolist() == routing.expert.bincount(minlength=len(routing.counts)).tolist()


def by_hand(scores, k, factor, normalise, uniform=None):
    """Each group by itself, one choice after another: (token, expert, weight) of those placed, and the drops."""
    placed, dropped = [], 0
    for g, group in enumerate(scores):
        p = group.softmax(-1)
        room = [capacity(len(group), group.shape[1], factor * k)] * group.shape[1]
        best = p.topk(k)
        for choice in range(k):
            for t in range(len(group)):
                expert, weight = int(best.indices[t, choice]), best.values[t, choice]
                token = g * len(group) + t
                weight = float(weight / best.values[t].sum()) if normalise else float(weight)
                if choice and uniform is not None and not 2 * weight > float(uniform[token]):
                    continue
                if room[expert]:
                    room[expert] -= 1
                    placed.append((token, expert, weight))
                else:
                    dropped += 1
    return placed, dropped


@pytest.mark.parametrize("groups, size, experts, factor", [(1, 40, 4, 1.0), (3, 7, 5, 0.5), (2, 1, 3, 1.25)])
@pytest.mark.parametrize("name", ["top1", "top2", "random top2", "top3"])
def test_drops_are_those_of_a_literal_loop(name, groups, size, experts, factor):
    scores = noise(groups, size, experts, dtype=torch.float64) + torch.linspace(0, 3, experts, dtype=torch.float64)
    uniform = torch.rand(groups * size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    numbers = {"uniform": uniform} if name == "random top2" else {}
    route, k = {"top1": (top1, 1), "top3": (partial(top_k, k=3), 3)}.get(name, (top2, 2))
    got = route(scores, factor=factor, **numbers)
    placed, dropped = by_hand(scores, k, factor, k > 1, **numbers)
    assert_placed(got, placed)
    assert got.dropped == dropped
    assert got.chosen.sum() == dropped + len(placed)
    assert dropped > 0 or size == 1


def test_room():
    assert capacity(100, 10, 1.0) == 10
    assert capacity(100, 10, 0.29) == 2
    assert capacity(3, 7, 1.0) == 1
    assert all(capacity(s, e, c * e / s) == c for s in range(1, 30) for e in range(1, 12) for c in range(1, s + 1))


@pytest.mark.parametrize("groups, size, experts, factor", [(1, 12, 4, 2.0), (3, 7, 3, 1.0), (2, 2, 4, 8.0)])
def test_experts_choose(groups, size, experts, factor):
    scores = noise(groups, size, experts)
    routing = expert_choice(scores, factor=factor)
    room = min(size, capacity(size, experts, factor))
    want = []
    for g in range(groups):
        p = scores[g].softmax(-1)
        for e in range(experts):
            best = sorted(range(size), key=lambda t: -float(p[t, e]))[:room]
            want += [(g * size + t, e, float(p[t, e])) for t in best]
    assert_placed(routing, want)
    assert routing.counts.tolist() == [groups * room] * experts
    assert routing.dropped == groups * size - len({t for t, _, _ in want})


def test_deepseeks_bias_chooses_and_never_weighs():
    scores, bias = noise(11, 6).requires_grad_(), torch.zeros(6).index_fill(0, torch.tensor([4]), 10.0)
    routing = deepseek(scores, bias, k=2, scale=1.5)
    assert routing.counts[4] == 11
    torch.testing.assert_close(torch.zeros(11).index_add(0, routing.token, routing.weight), torch.full((11,), 1.5))
    plain = deepseek(scores, bias, k=2, normalise=False)
    torch.testing.assert_close(plain.weight, scores.sigmoid()[plain.token, plain.expert])


def test_the_bias_update_evens_the_load():
    scores = noise(400, 8) * 0.3 + torch.linspace(-1, 1, 8)
    bias = torch.zeros(8)
    before = deepseek(scores, bias, k=2).load
    for _ in range(300):
        update_bias_(bias, deepseek(scores, bias, k=2).chosen, rate=2e-3)
    after = deepseek(scores, bias, k=2).load
    assert before.max() > 0.7
    assert after.max() - after.min() < 0.05
    update = torch.zeros(3)
    update_bias_(update, torch.tensor([5, 1, 3]), rate=0.5)
    assert update.tolist() == [-0.5, 0.5, 0.0]


@pytest.mark.parametrize("name", ROUTERS)
def test_routing_is_float32_for_low_precision_scores(name):
    routing = ROUTERS[name](noise(16, 8).bfloat16())
    assert (
        routing.weight.dtype == routing.probability.dtype == routing.scores.dtype == routing.load.dtype == torch.float32
    )


def test_losses_of_the_even_and_the_uneven():
    """All alike: the balance is k, a sequence's 1; all to one expert: E and E / k times its P."""
    routing = top1(torch.eye(6).repeat(4, 1) * 1e-3)
    assert balance_loss(routing.load, routing.share).item() == pytest.approx(1)
    collapsed = top1(torch.eye(6)[:1].repeat(24, 1) * 50)
    assert balance_loss(collapsed.load, collapsed.share).item() == pytest.approx(6)
    assert sequence_balance_loss(routing.probability[None], 1).item() == pytest.approx(1)
    assert z_loss(torch.zeros(5, 7)).item() == pytest.approx(torch.tensor(7.0).log().item() ** 2)


def test_sequence_balance_is_the_papers_sum():
    probability = noise(3, 9, 5).softmax(-1)
    want = 0.0
    for p in probability:
        best = p.topk(2).indices.tolist()
        f = [5 / (2 * 9) * sum(e in row for row in best) for e in range(5)]
        want += sum(f[e] * float(p[:, e].mean()) for e in range(5)) / 3
    assert sequence_balance_loss(probability, 2).item() == pytest.approx(want)


# -- experts


@pytest.mark.parametrize("kind", ["swiglu", "relu2"])
@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("tokens, width, hidden, experts", [(37, 16, 24, 8), (10, 8, 4, 6), (2, 12, 20, 8)])
def test_all_ways_are_the_sum_over_experts(name, kind, tokens, width, hidden, experts):
    x = noise(tokens, width, seed=1).requires_grad_()
    gate_up = noise(experts, rows(kind, hidden), width, seed=2).mul(0.3).requires_grad_()
    down = noise(experts, width, hidden, seed=3).mul(0.3).requires_grad_()
    scores = noise(tokens, experts, seed=4).requires_grad_()
    routing = ROUTERS[name](scores)
    assert groupable(gate_up)
    assert groupable(down)

    each = torch.stack([activate(x @ w.T, kind) @ v.T for w, v in zip(gate_up, down, strict=True)])
    weight = torch.zeros(tokens, experts).index_put((routing.token, routing.expert), routing.weight)
    want = torch.einsum("end,ne->nd", each, weight)
    leaves, away = (x, gate_up, down, scores), noise(tokens, width, seed=5)
    gradients = torch.autograd.grad(want, leaves, away, retain_graph=True)
    for way in ("loop", "grouped", "batched"):
        got = apply_experts(x, routing, gate_up, down, kind=kind, way=way)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        for a, b in zip(torch.autograd.grad(got, leaves, away, retain_graph=True), gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", ["loop", "batched"])
@pytest.mark.parametrize("name", ROUTERS)
def test_gradients_are_the_finite_differences(name, way):
    scores, x = noise(5, 4, dtype=torch.float64), noise(5, 3, seed=1, dtype=torch.float64)
    weights = noise(4, 4, 3, seed=2, dtype=torch.float64), noise(4, 3, 2, seed=3, dtype=torch.float64)

    def run(scores, x, gate_up, down):
        routing = ROUTERS[name](scores)
        return apply_experts(x, routing, gate_up, down, way=way), routing.probability, z_loss(scores)

    inputs = [leaf.requires_grad_() for leaf in (scores, x, *weights)]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("way", ["loop", "grouped", "batched"])
def test_frozen_experts_take_part_and_do_not_learn(way):
    routing, frozen = top_k(noise(20, 4), k=2), torch.tensor([True, False, False, True])
    weights = [noise(4, 8, 8, seed=1).requires_grad_(), noise(4, 8, 4, seed=2).requires_grad_()]
    x = noise(20, 8, seed=3).requires_grad_()
    found = []
    for still in (frozen, None):
        y = apply_experts(x, routing, *weights, way=way, frozen=still)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, *weights))))
    (y, dx, *dw), (free_y, free_dx, *free_dw) = found
    assert torch.equal(y, free_y)
    assert torch.equal(dx, free_dx)
    for got, free in zip(dw, free_dw, strict=True):
        assert (got[frozen] == 0).all()
        assert torch.equal(got[~frozen], free[~frozen])
        assert (free[frozen] != 0).any()


@pytest.mark.parametrize("way", ["loop", "grouped", "batched"])
def test_dropout_inside_the_experts_keeps_the_mean(way):
    torch.manual_seed(0)
    counts, ones = torch.tensor([300, 0, 500]), torch.ones(800, 4)
    y = run_experts(ones, counts, torch.ones(3, 4, 4), torch.eye(4).repeat(3, 1, 1), kind="relu", way=way, dropout=0.25)
    assert y.unique().tolist() == pytest.approx([0, 4 / 0.75])
    assert y.mean().item() == pytest.approx(4, rel=0.05)
    with pytest.raises(ValueError, match="loop, grouped, batched"):
        run_experts(ones, counts, torch.ones(3, 4, 4), torch.ones(3, 4, 4), kind="relu", way="fast")  # type: ignore


@pytest.mark.parametrize("way", ["loop", "grouped", "batched"])
def test_no_rows_leave_the_graph_whole(way):
    weights = [torch.ones(3, 8, 4, requires_grad=True), torch.ones(3, 4, 4, requires_grad=True)]
    y = run_experts(torch.empty(0, 4), torch.zeros(3, dtype=torch.int64), *weights, way=way)
    y.backward(torch.empty(0, 4))
    assert y.shape == (0, 4)
    assert all((w.grad == 0).all() for w in weights)


# -- the layer


@pytest.mark.parametrize("name", ROUTERS)
def test_under_autocast_the_router_stays_in_float32(name):
    layer = MoE(16, 24, 8, ROUTERS[name], shared=24, std=0.3)
    x = noise(2, 9, 16)
    y, record = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        low, low_record = layer(x)
        low.float().sum().backward()
    assert low.dtype == torch.bfloat16
    assert torch.equal(record.scores, low_record.scores)
    assert torch.equal(record.token, low_record.token)
    assert torch.equal(record.weight, low_record.weight)
    assert (low - y).abs().max() <= 0.02 * y.abs().max()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("name", ["top_k", "deepseek", "expert_choice"])
def test_without_drops_the_order_of_tokens_does_not_matter(name):
    layer, x, turn = MoE(8, 12, 4, ROUTERS[name], shared=8, std=0.4), noise(30, 8), torch.arange(30).flip(0)
    (y, record), (turned, turned_record) = layer(x), layer(x[turn])
    torch.testing.assert_close(turned, y[turn], atol=1e-6, rtol=0)
    assert torch.equal(record.counts, turned_record.counts)


def test_with_drops_the_first_tokens_have_priority():
    layer, x = MoE(8, 12, 1, partial(top1, factor=0.5), std=0.4), noise(10, 8)
    y, record = layer(x)
    assert record.dropped == 5
    assert record.token.tolist() == list(range(5))
    assert (y[5:] == 0).all()
    assert (y[:5] != 0).all()


def test_sequences_have_room_of_their_own():
    layer, x = MoE(8, 12, 4, partial(top2, factor=0.6), std=0.4), noise(3, 10, 8)
    y, record = layer(x)
    assert record.dropped > 0
    for i in range(3):
        torch.testing.assert_close(y[i], layer(x[i])[0], atol=1e-6, rtol=0)
    assert layer(x.view(3, 5, 2, 8))[0].shape == (3, 5, 2, 8)


def test_switches_of_the_layer():
    torch.manual_seed(0)
    layer = MoE(8, 12, 4, partial(deepseek, k=2), bias=True, dropout=0.5, frozen=[1])
    x = noise(20, 8)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    y, record = layer.eval()(x)
    assert torch.equal(y, layer(x)[0])
    update_bias_(layer.get_buffer("bias"), record.chosen, rate=3.0)
    assert not torch.equal(layer(x)[1].chosen, record.chosen)
    assert sorted(layer.state_dict()) == ["bias", "down", "gate_up", "router.weight"]
    assert (torch.autograd.grad(y.sum(), layer.down)[0][1] == 0).all()
    with pytest.raises(ValueError, match=r"\[tokens, experts\]"):
        top1(torch.zeros(3))


# -- feed-forward kinds


@pytest.mark.parametrize(
    "kind", ["glu", "bilinear", "reglu", "geglu", "swiglu", "relu", "gelu", "relu2", "gelu_tanh", "quick_gelu"]
)
def test_kinds_are_their_equations(kind):
    layer = FeedForward(6, 5, kind, bias=True)
    x = noise(7, 6)
    first, last = layer.gate_up, layer.down
    a = x @ first.weight[:5].T + first.bias[:5]
    b = x @ first.weight[5:].T + first.bias[5:]  # without channels in a plain kind
    phi = 0.5 * (1 + torch.erf(a / 2**0.5))
    hidden = {
        "glu": lambda: b / (1 + (-a).exp()),
        "bilinear": lambda: a * b,
        "reglu": lambda: a.clamp(min=0) * b,
        "geglu": lambda: a * phi * b,
        "swiglu": lambda: a / (1 + (-a).exp()) * b,
        "relu": lambda: a.clamp(min=0),
        "gelu": lambda: a * phi,
        "relu2": lambda: a.clamp(min=0) ** 2,
        "gelu_tanh": lambda: 0.5 * a * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (a + 0.044715 * a**3))),
        "quick_gelu": lambda: a / (1 + (-1.702 * a).exp()),
    }[kind]()
    torch.testing.assert_close(layer(x), hidden @ last.weight.T + last.bias, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="swiglu, relu"):
        FeedForward(6, 5, "silu")  # type: ignore


# -- processes

OWN = ("gate_up", "down")
CASES = {
    "top_k": (partial(top_k, k=2), "loop", 4),
    "deepseek": (partial(deepseek, k=3), "batched", 8),
    "drops": (partial(top1, factor=0.7), "loop", 4),
    "one expert": (lambda scores: top1(scores + torch.tensor([0.0, 50.0, 0.0, 0.0])), "batched", 4),
}


def train(name: str) -> dict[str, torch.Tensor]:
    """The loss and gradients of this process's sequences; those of shared weights averaged as a trainer would."""
    torch.manual_seed(0)
    route, way, experts = CASES[name]
    options = {"shared": 6, "way": way, "std": 0.5, "frozen": [0]}
    layer = MoE(6, 8, experts, route, parallel=True, **options).double()
    x = noise(4, 5, 6, dtype=torch.float64).chunk(world_size())[rank()].requires_grad_()
    weight = noise(4, 5, 6, seed=1, dtype=torch.float64).chunk(world_size())[rank()]
    y, record = layer(x)
    loss = (y.square() * weight).mean() + z_loss(record.scores)
    names, leaves = zip(*layer.named_parameters(), strict=True)
    dx, *gradients = torch.autograd.grad(loss, (x, *leaves))
    told = {"x": dx / world_size(), "y": y.detach(), "loss": sum_over_processes(loss.detach()) / world_size()}
    for key, gradient in zip(names, gradients, strict=True):
        told[key] = gradient if key in OWN else sum_over_processes(gradient) / world_size()
    return told


def worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save({name: train(name) for name in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(in_processes):
    return in_processes(__file__, WORLD)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(results, name):
    want = train(name)
    parts = [result[name] for result in results]
    for key, value in want.items():
        got = torch.cat([part[key] for part in parts]) if key in ("x", "y", *OWN) else parts[0][key]
        assert got.shape == value.shape, key
        assert (got - value).abs().max() <= 1e-12 * max(1.0, value.abs().max().item()), key
        assert value.abs().max() > 0, key


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
