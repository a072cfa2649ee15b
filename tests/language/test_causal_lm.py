"""What the maths of a causal language model promises: causality, documents apart, decoding equal to the whole, experts."""

import math
from functools import partial

import pytest
import torch

from sensorium.language.causal_lm.method import Cache, CausalLM
from sensorium.method import Progress
from sensorium.networks.mixing import mixer
from sensorium.parts.moe.layer import MoE
from sensorium.parts.moe.route import deepseek, top1, top_k
from sensorium.parts.norms import Residual
from sensorium.parts.positions import Positions
from sensorium.parts.positions.absolute import Learned, Recursive, Sinusoidal
from sensorium.parts.positions.disentangled import Disentangled
from sensorium.parts.positions.relative import T5, ALiBi, Shaw
from sensorium.parts.positions.rotary import rotary_table, rotate
from sensorium.parts.positions.transformer_xl import TransformerXL


def small(**numbers) -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(50, 24, 2, 4, **{"hidden": 40, "kv_heads": 2, **numbers}).double().eval()


@pytest.mark.parametrize("experts", [0, 4])
def test_a_token_does_not_see_what_comes_after(experts: int) -> None:
    model = small(experts=experts)
    tokens = torch.randint(50, (2, 11))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    torch.testing.assert_close(model.logits(tokens)[:, :7], model.logits(changed)[:, :7])
    assert not torch.allclose(model.logits(tokens)[:, 7:], model.logits(changed)[:, 7:])


def test_documents_in_one_row_do_not_meet() -> None:
    model = small()
    first, second = torch.randint(50, (1, 6)), torch.randint(50, (1, 9))
    row, documents = torch.cat([first, second], 1), torch.tensor([[0] * 6 + [1] * 9])
    together = model.logits(row, documents)
    torch.testing.assert_close(together[:, :6], model.logits(first))
    torch.testing.assert_close(together[:, 6:], model.logits(second))
    apart = [-model.log_prob(part) for part in (first, second)]
    mean = torch.cat(apart, 1).mean()
    torch.testing.assert_close(model({"tokens": row, "documents": documents})["loss"], mean)


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 3, 2]], ids=str)
@pytest.mark.parametrize("experts", [0, 3])
def test_cached_pieces_equal_the_whole(pieces: list[int], experts: int) -> None:
    model = small(experts=experts)
    tokens = torch.randint(50, (3, 9))
    cache = Cache(model, 3, 9)
    found = [model.logits(part, cache=cache) for part in tokens.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(found, 1), model.logits(tokens))
    with pytest.raises(ValueError, match="holds 9 tokens, not 10"):
        model.logits(tokens[:, :1], cache=cache)


def test_log_prob_is_a_distribution_and_the_loss_its_mean() -> None:
    model = small(tied=False)
    tokens = torch.randint(50, (2, 8))
    each = torch.stack(
        [model.log_prob(torch.cat([tokens[:, :-1], torch.full((2, 1), t)], 1))[:, -1] for t in range(50)]
    )
    torch.testing.assert_close(each.exp().sum(0), torch.ones(2, dtype=torch.float64))
    found = model({"tokens": tokens})
    torch.testing.assert_close(found["loss"], -model.log_prob(tokens).mean())
    assert float(found["bits_per_token"]) == pytest.approx(float(found["loss"].detach()) / math.log(2))


def test_generation_follows_its_generator_and_top_k() -> None:
    model, prompt = small(), torch.randint(50, (2, 3))

    def write(seed: int, **how) -> torch.Tensor:
        return torch.stack(list(model.generate(prompt, most=6, generator=torch.Generator().manual_seed(seed), **how)))

    assert torch.equal(write(0), write(0))
    assert not torch.equal(write(0), write(1))
    assert torch.equal(write(0, top_k=1), write(1, temperature=0))


def test_a_window_is_all_that_it_looks_back_on() -> None:
    """Each token is the likeliest after the tokens that it may see: all until the window is full, then its later half."""
    model, prompt, room = small(), torch.randint(50, (2, 3)), 7
    text, begin = prompt, 0
    for chosen in model.generate(prompt, most=20, temperature=0, window=room):
        if text.shape[1] - begin > room:
            begin = text.shape[1] - room // 2
        seen = text[:, begin:]
        assert torch.equal(chosen, model.logits(seen)[:, -1].argmax(-1))
        text = torch.cat([text, chosen[:, None]], dim=1)
    assert text.shape[1] == 23
    whole = [list(model.generate(prompt, most=9, temperature=0, window=w)) for w in (None, 12)]
    assert all(torch.equal(a, b) for a, b in zip(*whole, strict=True))
    long = torch.randint(50, (1, 30))
    assert len(list(model.generate(long, most=3, window=8))) == 3


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    near = [
        rotate(q, rotary_table(torch.tensor([m]), 16)) @ rotate(k, rotary_table(torch.tensor([m - 3]), 16)).mT
        for m in (3, 5, 40)
    ]
    torch.testing.assert_close(near[0], near[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(near[0], near[2], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="even number"):
        rotary_table(torch.arange(3), 7)


@pytest.mark.parametrize("active", [1, 2, 4])
def test_experts_equal_the_loop_over_tokens(active: int) -> None:
    torch.manual_seed(1)
    moe = MoE(10, 14, 4, partial(top_k, k=active)).double()
    torch.nn.init.normal_(moe.router.weight)
    x = torch.randn(3, 5, 10, dtype=torch.float64)
    with torch.no_grad():
        y, record = moe(x)
    (gate, up), down = moe.gate_up.unflatten(1, (2, -1)).unbind(1), moe.down
    for row, out in zip(x.flatten(0, 1), y.flatten(0, 1), strict=True):
        p = (moe.router.weight @ row).softmax(0)
        best = p.topk(active)
        said = [down[e] @ (torch.nn.functional.silu(gate[e] @ row) * (up[e] @ row)) for e in best.indices]
        weights = best.values / best.values.sum()
        torch.testing.assert_close(out, sum(w * s for w, s in zip(weights, said, strict=True)), atol=1e-6, rtol=1e-5)
    assert float(record.load.sum()) == pytest.approx(active)
    assert float(record.share.sum()) == pytest.approx(1)


def test_experts_are_in_the_logs() -> None:
    model = small(ffn=lambda: MoE(24, 16, 4, partial(top1, factor=0.5)))
    found = model({"tokens": torch.randint(50, (3, 9))})
    assert sum(float(found[f"load_{e}"]) for e in range(4)) == pytest.approx(1)
    assert 0.4 < float(found["dropped"]) < 1  # half the room that an even choice would want
    added = float(found["loss"].detach() - found["bits_per_token"] * math.log(2))
    assert added == pytest.approx(0.01 * float(found["balance"]), rel=1e-4)


def test_a_bias_balances_in_place_of_a_loss() -> None:
    model = small(ffn=lambda: MoE(24, 16, 4, partial(deepseek, k=2), bias=True)).train()
    batch = {"tokens": torch.randint(50, (3, 9))}
    model(batch)
    found = model(batch)  # two micro-batches of a step
    assert float(found["loss"].detach()) == pytest.approx(float(found["bits_per_token"]) * math.log(2))
    chosen = torch.stack([found[f"load_{e}"] for e in range(4)])
    model.after_step(Progress(1, 0, 0.1))
    moved = torch.stack([layer.ffn.bias for layer in model.layers])
    assert (moved.abs() <= 1e-3 + 1e-9).all()
    assert moved.mean(0)[chosen.argmax()] < moved.mean(0)[chosen.argmin()]
    model.after_step(Progress(2, 0, 0.2))  # nothing was seen: nothing moves
    assert torch.equal(moved, torch.stack([layer.ffn.bias for layer in model.layers]))


def test_numbers_that_do_not_fit() -> None:
    for numbers, said in (({"kv_heads": 3}, "kv_heads 3"), ({"experts": 2, "active": 3}, "active")):
        with pytest.raises(ValueError, match=said):
            small(**numbers)
    with pytest.raises(ValueError, match="heads 5"):
        CausalLM(9, 24, 1, 5, hidden=8)


KINDS: dict[str, dict] = {
    "rope": {},
    "sinusoidal": {"positions": lambda: Sinusoidal(24)},
    "learned": {"positions": lambda: Learned(24, 40)},
    "recursive": {"positions": lambda: Recursive(24, 8)},
    "alibi": {"positions": lambda: ALiBi(4)},
    "t5": {"positions": lambda: T5(4, bidirectional=False)},
    "shaw": {"positions": lambda: Shaw(6, 5)},
    "xl": {"positions": lambda: TransformerXL(24, 4, 6)},
    "deberta": {"positions": lambda: Disentangled(torch.nn.Embedding(16, 24), 4, 6)},
    "none": {"positions": Positions},
    "linear": {"attention": "linear"},
    "relu features": {"attention": "relu"},
    "performer": {"attention": "performer"},
    "cosformer": {"attention": lambda: mixer("cosformer", 24, 4, 2, 6, length=13)},
    "gau": {"attention": "gau"},
    "flash": {"attention": lambda: mixer("flash", 24, 4, 2, 6, length=16)},
    "linear, grouped": {"attention": "linear", "kv_heads": 1, "positions": lambda: Sinusoidal(24)},
    "geglu, layer norm": {"ffn": "geglu", "joint": partial(Residual, kind="layer")},
    "relu2, post": {"ffn": "relu2", "joint": partial(Residual, placement="post")},
    "deepnorm": {"joint": partial(Residual, placement="deepnorm", alpha=1.7)},
    "scale norm": {"joint": partial(Residual, kind="scale")},
}


def of(name: str) -> CausalLM:
    torch.manual_seed(0)
    built = {key: value() if key == "positions" else value for key, value in KINDS[name].items()}
    model = small(**built)
    for parameter in model.parameters():  # what begins at zero must be seen to act
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", KINDS)
def test_every_part_sees_the_past_alone_and_its_cache_equals_the_whole(name: str) -> None:
    model, tokens = of(name), torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(1))
    whole = model.logits(tokens)
    later = tokens.clone()
    later[:, 8:] = (later[:, 8:] + 1) % 50
    torch.testing.assert_close(model.logits(later)[:, :8], whole[:, :8], atol=1e-10, rtol=0)
    assert (model.logits(later)[:, 8:] - whole[:, 8:]).abs().amax(-1).min() > 1e-6
    cache = Cache(model, 2, 13)
    parts = [model.logits(part, cache=cache) for part in tokens.split([5, 1, 1, 4, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-10, rtol=0)
    model.train()({"tokens": tokens})["loss"].backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", ["alibi", "t5", "shaw", "xl", "none", "gau", "flash"])
def test_documents_do_not_see_each_other_whatever_the_positions(name: str) -> None:
    model, tokens = of(name), torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(1))
    documents = (torch.arange(12) >= 5).long()[None]
    other = tokens.clone()
    other[:, :5] = (other[:, :5] + 3) % 50
    torch.testing.assert_close(
        model.logits(other, documents)[:, 5:], model.logits(tokens, documents)[:, 5:], atol=1e-10, rtol=0
    )


def test_a_state_of_linear_attention_does_not_grow() -> None:
    model, tokens = of("linear"), torch.randint(50, (1, 40))
    cache, sizes = Cache(model, 1, 40), set()
    for token in tokens.split(1, dim=1):
        model.logits(token, cache=cache)
        sizes.add(sum(one.numel() for layer in cache.layers for one in layer.own.state))
    assert len(sizes) == 1


def test_pairs_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="ALiBi positions work with softmax attention, not with linear"):
        small(attention="linear", positions=ALiBi(4))
    with pytest.raises(ValueError, match="experts are SwiGLU"):
        small(experts=4, ffn="relu")
    with pytest.raises(ValueError, match="Sinusoidal positions work with linear and softmax attention, not with gated"):
        small(attention="gau", positions=Sinusoidal(24))
    with pytest.raises(ValueError, match="softmax, linear"):
        small(attention="quadratic")


def test_words_are_multiplied_by_their_gain() -> None:
    torch.manual_seed(0)
    plain, large = (CausalLM(11, 8, 2, 2, hidden=12, tied=False, gain=gain) for gain in (1.0, 3.0))
    state = plain.state_dict()
    large.load_state_dict(state | {"embed.weight": state["embed.weight"] / 3})
    tokens = torch.randint(11, (2, 5))
    torch.testing.assert_close(large.logits(tokens), plain.logits(tokens))
