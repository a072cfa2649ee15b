"""Mixtures of experts against transformers' Mixtral, Switch Transformers, NLLB and DeepSeek-V3 layers, and its MLPs."""

from functools import partial
from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config, MixtralConfig, NllbMoeConfig, SwitchTransformersConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral import modeling_mixtral
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from sensorium.parts.moe import experts
from sensorium.parts.moe.layer import MoE
from sensorium.parts.moe.route import balance_loss, deepseek, sequence_balance_loss, top1, top2, top_k, z_loss

WAYS = ["loop", "grouped", "batched"]
OUTPUT, GRADIENT = 1e-5, 1e-4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def close(got: Any, want: Any, most: float) -> None:
    torch.testing.assert_close(got, want, atol=most, rtol=0)


def gradient(module: torch.nn.Module, name: str) -> torch.Tensor:
    """Zero where nothing reached the parameter."""
    found = module.get_parameter(name)
    return torch.zeros_like(found) if found.grad is None else found.grad


def randomise(module: torch.nn.Module, std: float = 0.3) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)
    return module.eval()


def both(ours: MoE, theirs: torch.nn.Module, x: torch.Tensor) -> None:
    """Outputs compared, backward run with the same gradient, and what reached the inputs compared."""
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    (got, _), want = ours(mine), theirs(other)
    close(got, want, OUTPUT)
    away = torch.randn_like(got)
    got.backward(away)
    want.backward(away)
    close(mine.grad, other.grad, GRADIENT)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("width, hidden, experts, k, shape", [(32, 24, 8, 2, (2, 17)), (12, 20, 5, 3, (1, 9))])
def test_mixtral(width, hidden, experts, k, shape, way):
    config = MixtralConfig(
        hidden_size=width, intermediate_size=hidden, num_local_experts=experts, num_experts_per_tok=k
    )
    config._experts_implementation = "eager"
    theirs = randomise(modeling_mixtral.MixtralSparseMoeBlock(config))
    ours = MoE(width, hidden, experts, partial(top_k, k=k), way=way)
    names = {"router.weight": "gate.weight", "gate_up": "experts.gate_up_proj", "down": "experts.down_proj"}
    ours.load_state_dict({a: theirs.state_dict()[b] for a, b in names.items()})
    both(ours, theirs, torch.randn(*shape, width))
    for a, b in names.items():
        close(gradient(ours, a), gradient(theirs, b), GRADIENT)


@pytest.mark.parametrize("layers, k", [(1, 1), (3, 2)])
def test_mixtrals_balance_with_padding_left_out(layers, k):
    scores = [torch.randn(26, 6, requires_grad=True) for _ in range(layers)]
    mask = torch.ones(2, 13).index_fill(1, torch.arange(9, 13), 0)
    for real, words in ((None, torch.arange(26)), (mask, mask.flatten().nonzero().squeeze(1))):
        want: Any = modeling_mixtral.load_balancing_loss_func(tuple(scores), 6, k, real)  # pyright: ignore
        routings = [top_k(layer[words], k=k) for layer in scores]
        load, share = (torch.stack([getattr(r, name) for r in routings]).mean(0) for name in ("load", "share"))
        got = balance_loss(load, share)
        close(got, want, OUTPUT)
        for a, b in zip(torch.autograd.grad(got, scores), torch.autograd.grad(want, scores), strict=True):
            close(a, b, GRADIENT)


@pytest.mark.parametrize("width, hidden, experts, room, shape", [(16, 24, 4, 3, (3, 14)), (11, 7, 5, 1, (2, 9))])
def test_switch_and_its_drops(width, hidden, experts, room, shape):
    config = SwitchTransformersConfig(
        d_model=width, d_ff=hidden, num_experts=experts, expert_capacity=room, router_jitter_noise=0.0
    )
    theirs = randomise(switch.SwitchTransformersSparseMLP(config))
    ours = MoE(width, hidden, experts, partial(top1, factor=room * experts / shape[1]), kind="relu")
    state, each = theirs.state_dict(), range(experts)
    ours.load_state_dict(
        {
            "router.weight": state["router.classifier.weight"],
            "gate_up": torch.stack([state[f"experts.expert_{e}.wi.weight"] for e in each]),
            "down": torch.stack([state[f"experts.expert_{e}.wo.weight"] for e in each]),
        }
    )
    x = torch.randn(*shape, width)
    both(ours, theirs, x)
    close(gradient(ours, "router.weight"), gradient(theirs, "router.classifier.weight"), GRADIENT)
    for name, theirs_name in (("gate_up", "wi"), ("down", "wo")):
        want = torch.stack([gradient(theirs, f"experts.expert_{e}.{theirs_name}.weight") for e in each])
        close(gradient(ours, name), want, GRADIENT)

    record = ours(x)[1]
    placed, _, scores = theirs.get_submodule("router")(x)
    assert record.dropped == x[..., 0].numel() - placed.sum() > 0
    assert record.counts.tolist() == placed.sum((0, 1)).tolist()
    close(z_loss(record.scores), switch.router_z_loss_func(scores), OUTPUT)
    probability, chosen = scores.softmax(-1), scores.argmax(-1)
    of_groups = [top1(s) for s in scores]
    got = torch.stack([balance_loss(r.load, r.share) for r in of_groups]).mean()
    close(got, switch.load_balancing_loss_func(probability, chosen), OUTPUT)
    whole = switch.load_balancing_loss_func(probability.flatten(0, 1)[None], chosen.flatten()[None])
    close(balance_loss(record.load, record.share), whole, OUTPUT)
    close(sequence_balance_loss(record.probability, 1), got, OUTPUT)


@pytest.mark.parametrize("tokens, experts, room", [(40, 4, 20), (40, 4, 12), (19, 5, 3), (6, 3, 1)])
def test_two_experts_with_drops_as_in_nllb(tokens, experts, room):
    config = NllbMoeConfig(
        d_model=experts, num_experts=experts, expert_capacity=room, normalize_router_prob_before_dropping=True
    )
    router = NllbMoeTop2Router(config).train()
    mine, other = (torch.randn(tokens, experts).mul(2).requires_grad_() for _ in range(2))
    other.data.copy_(mine.data)
    want = router.route_tokens(other)[1]
    routing = top2(mine, factor=room * experts / (2 * tokens))
    got = torch.zeros(tokens, experts).index_put((routing.token, routing.expert), routing.weight)
    close(got, want, OUTPUT)
    assert routing.dropped == 2 * tokens - (want > 0).sum()
    away = torch.randn_like(got)
    got.backward(away)
    want.backward(away)
    close(mine.grad, other.grad, GRADIENT)
    assert other.grad is not None
    assert other.grad.abs().max() > 0.1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "width, hidden, experts, k, groups, best, normalise, shape",
    [(32, 12, 16, 4, 4, 2, True, (2, 15)), (12, 8, 9, 3, 3, 1, False, (1, 7)), (8, 4, 6, 2, 1, 1, True, (3, 5))],
)
def test_deepseek(width, hidden, experts, k, groups, best, normalise, shape, way):
    config = DeepseekV3Config(
        hidden_size=width,
        moe_intermediate_size=hidden,
        n_routed_experts=experts,
        num_experts_per_tok=k,
        n_group=groups,
        topk_group=best,
        norm_topk_prob=normalise,
        n_shared_experts=2,
        routed_scaling_factor=2.5,
    )
    config._experts_implementation = "eager"
    theirs = randomise(DeepseekV3MoE(config))
    theirs.get_buffer("gate.e_score_correction_bias").normal_(std=0.3)
    route = partial(deepseek, k=k, groups=groups, best_groups=best, normalise=normalise, scale=2.5)
    ours = MoE(width, hidden, experts, route, shared=2 * hidden, bias=True, way=way)
    names = {"router.weight": "gate.weight", "gate_up": "experts.gate_up_proj", "down": "experts.down_proj"}
    names |= {"bias": "gate.e_score_correction_bias", "shared.down.weight": "shared_experts.down_proj.weight"}
    state = theirs.state_dict()
    fused = torch.cat([state[f"shared_experts.{part}_proj.weight"] for part in ("gate", "up")])
    ours.load_state_dict({a: state[b] for a, b in names.items()} | {"shared.gate_up.weight": fused})
    both(ours, theirs, torch.randn(*shape, width))
    for a, b in names.items():
        if a != "bias":
            close(gradient(ours, a), gradient(theirs, b), GRADIENT)
    shared = torch.cat([gradient(theirs, f"shared_experts.{part}_proj.weight") for part in ("gate", "up")])
    close(gradient(ours, "shared.gate_up.weight"), shared, GRADIENT)


@pytest.mark.parametrize("units", [True, False], ids=["a processor with units for it", "one without"])
@pytest.mark.parametrize("way", WAYS)
def test_mixtral_in_bfloat16(way, units, monkeypatch):
    """Within 2 % of the largest output; both choose in float32 from the same rounded inputs."""
    monkeypatch.setattr(experts, "fast_bf16", lambda device: units)
    config = MixtralConfig(hidden_size=32, intermediate_size=24, num_local_experts=4, num_experts_per_tok=4)
    config._experts_implementation = "eager"
    theirs = randomise(modeling_mixtral.MixtralSparseMoeBlock(config)).bfloat16()
    ours = MoE(32, 24, 4, partial(top_k, k=4), way=way).bfloat16()
    names = {"router.weight": "gate.weight", "gate_up": "experts.gate_up_proj", "down": "experts.down_proj"}
    ours.load_state_dict({a: theirs.state_dict()[b] for a, b in names.items()})
    x = torch.randn(2, 17, 32).bfloat16()
    got, want = ours(x)[0], theirs(x)
    assert got.dtype == torch.bfloat16
    assert (got - want).abs().max() <= 0.02 * want.abs().max()
    got.square().mean().backward()
    want.square().mean().backward()
    for a, b in names.items():
        assert gradient(ours, a).dtype == torch.bfloat16
        mine, other = (gradient(model, name).float() for model, name in ((ours, a), (theirs, b)))
        assert (mine - other).norm() <= 0.03 * other.norm()
