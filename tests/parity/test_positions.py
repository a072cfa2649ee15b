"""Schemes of positions against transformers and timm, and against loops over the papers' equations where there is no peer."""

from functools import partial
from typing import Any

import pytest
import torch
from timm.models.twins import PosConv
from torch import Tensor, nn
from transformers import BloomConfig, DebertaConfig, DebertaV2Config, LlamaConfig, RoFormerConfig, T5Config, XLNetConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.deberta import modeling_deberta
from transformers.models.deberta_v2 import modeling_deberta_v2
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.roformer.modeling_roformer import RoFormerSelfAttention, RoFormerSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

from sensorium.parts.positions.absolute import ComplexWords, Convolutional, Recursive, Sinusoidal
from sensorium.parts.positions.disentangled import Disentangled
from sensorium.parts.positions.relative import T5, ALiBi, Shaw
from sensorium.parts.positions.rotary import rotary_table
from sensorium.parts.positions.transformer_xl import TransformerXL
from sensorium.parts.positions.turning import Rotary, Rotary2D, Table, interpolated, ntk_aware, yarn

OUTPUTS, GRADIENTS = 1e-5, 1e-4


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def close(ours: Tensor, theirs: Tensor, atol: float = OUTPUTS) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def same_gradients(pairs: list[tuple[Tensor, Tensor]], ours: Tensor, theirs: Tensor) -> None:
    """Of one random projection of both outputs, with respect to each pair (ours, theirs)."""
    mine, peers = zip(*pairs, strict=True)
    to = torch.randn_like(ours)
    a = torch.autograd.grad((ours * to).sum(), mine, retain_graph=True)
    b = torch.autograd.grad((theirs * to).sum(), peers, retain_graph=True)
    for one, other in zip(a, b, strict=True):
        close(one, other, GRADIENTS)


def randomised(module: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.eval()


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def test_sinusoids_are_the_table_of_distilbert() -> None:
    table = torch.empty(77, 20)
    create_sinusoidal_embeddings(77, 20, table)
    close(Sinusoidal(20).rows(torch.arange(77)), table)


@pytest.mark.parametrize("grid", [(4, 7), (1, 3)])
def test_conditional_positions_are_timms(grid: tuple[int, int]) -> None:
    theirs, x = randomised(PosConv(6, 6)), torch.randn(2, grid[0] * grid[1], 6)
    ours = Convolutional(6)
    ours.conv.load_state_dict(theirs.proj[0].state_dict())
    y, y_theirs = ours.embed(x, torch.cartesian_prod(*map(torch.arange, grid))), theirs(x, grid)
    close(y, y_theirs)
    same_gradients([(ours.conv.weight, theirs.proj[0].weight)], y, y_theirs)


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("heads, buckets, distance", [(4, 32, 128), (3, 10, 21)])
def test_t5_bias(decoder: bool, heads: int, buckets: int, distance: int) -> None:
    config = T5Config(
        d_model=8 * heads, d_kv=8, num_heads=heads, is_decoder=decoder,
        relative_attention_num_buckets=buckets, relative_attention_max_distance=distance,
    )  # fmt: skip
    theirs = randomised(T5Attention(config, has_relative_attention_bias=True, layer_idx=0))
    ours = T5(heads, buckets=buckets, distance=distance, bidirectional=not decoder)
    ours.table.load_state_dict(theirs.relative_attention_bias.state_dict())
    q = torch.zeros(1, heads, 150, 8)
    bias, expected = ours.bias(q, q, torch.arange(150), torch.arange(201)), theirs.compute_bias(150, 201)
    close(bias, expected, 0)
    same_gradients([(ours.table.weight, theirs.relative_attention_bias.weight)], bias, expected)
    behind = ours.bias(q[:, :, :7], q, torch.arange(130, 137), torch.arange(137))
    close(behind, theirs.compute_bias(7, 137, past_seen_tokens=130), 0)


@pytest.mark.parametrize("heads", [1, 4, 6, 8, 12])
def test_alibi_is_blooms_after_a_causal_softmax(heads: int) -> None:
    config = BloomConfig(n_head=heads)
    theirs = build_alibi_tensor(torch.ones(1, 19), config.n_head, torch.float32).view(1, heads, 1, 19)
    scores, at = torch.randn(2, heads, 19, 19), torch.arange(19)
    hidden = at > at[:, None]
    weights = (scores + ALiBi(heads).bias(scores, scores, at, at)).masked_fill(hidden, -torch.inf).softmax(-1)
    close(weights, (scores + theirs).masked_fill(hidden, -torch.inf).softmax(-1))


@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_is_that_of_x_transformers(heads: int) -> None:
    from x_transformers.x_transformers import AlibiPositionalBias

    at, q = torch.arange(13), torch.zeros(1, heads, 13, 8)
    close(ALiBi(heads).bias(q, q, at, at)[0], AlibiPositionalBias(heads=heads, total_heads=heads)(13, 13))


SCALINGS = [
    ("default", {}, rotary_table),
    ("linear", {"factor": 3.0}, partial(interpolated, factor=3.0)),
    ("dynamic", {"factor": 2.0}, partial(ntk_aware, factor=2.0 * 40 / 20 - 1)),  # 40 positions, where 20 were learned
    ("yarn", {"factor": 4.0, "original_max_position_embeddings": 20}, partial(yarn, factor=4.0, length=20)),
    ("yarn", {"factor": 16.0, "original_max_position_embeddings": 2048}, partial(yarn, factor=16.0, length=2048)),
]


@pytest.mark.parametrize("kind, numbers, table", SCALINGS)
@pytest.mark.parametrize("d, theta", [(16, 10_000.0), (10, 500_000.0), (64, 10_000.0)])
def test_rotary_and_its_scalings_are_llamas(kind: str, numbers: dict, table: Table, d: int, theta: float) -> None:
    config = LlamaConfig(
        hidden_size=4 * d, num_attention_heads=4, head_dim=d, max_position_embeddings=20,
        rope_parameters={"rope_type": kind, "rope_theta": theta, **numbers},
    )  # fmt: skip
    q, k, at = torch.rand(2, 4, 40, d) - 0.5, torch.rand(2, 2, 40, d) - 0.5, torch.arange(40)
    cos, sin = LlamaRotaryEmbedding(config)(q, at[None])
    expected = apply_rotary_pos_emb(q, k, cos, sin)
    for ours, theirs in zip(Rotary(theta=theta, table=table).rotate(q, k, at, at), expected, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("tokens, d", [(9, 8), (33, 6)])
def test_interleaved_rotary_is_roformers(tokens: int, d: int) -> None:
    config = RoFormerConfig(hidden_size=3 * d, num_attention_heads=3, attention_probs_dropout_prob=0.0)
    table = RoFormerSinusoidalPositionalEmbedding(tokens, d)
    theirs, at, x = randomised(RoFormerSelfAttention(config)), torch.arange(tokens), torch.randn(2, tokens, 3 * d)
    table = table.create_weight()[None, None]
    q, k, v = (heads_of(project(x), 3) for project in (theirs.query, theirs.key, theirs.value))
    turned = Rotary(interleaved=True).rotate(q, k, at, at)
    for ours, expected in zip(turned, theirs.apply_rotary_position_embeddings(table, q, k), strict=True):
        close(ours, expected)
    y = ((turned[0] @ turned[1].mT * d**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = theirs(x, sinusoidal_pos=table)[0]
    close(y, expected)
    weights = [theirs.query.weight, theirs.key.weight]
    same_gradients([(weight, weight) for weight in weights], y, expected)


def test_rotary_of_pictures_is_that_of_qwen2_vl() -> None:
    """Theirs turns channels i and i + d / 2: quarters (row, column, row, column), ours (row, row, column, column)."""
    d, at = 16, torch.cartesian_prod(torch.arange(5), torch.arange(7))
    config = Qwen2VLVisionConfig(embed_dim=2 * d, num_heads=2)
    q, k = torch.randn(2, 1, 2, len(at), d)
    cos, sin = modeling_qwen2_vl.Qwen2VLVisionRotaryEmbedding(config)(q, at)
    expected = modeling_qwen2_vl.apply_rotary_pos_emb_vision(q[0].transpose(0, 1), k[0].transpose(0, 1), cos, sin)
    mine = [x.unflatten(-1, (2, 2, -1)).transpose(-2, -3).flatten(-3) for x in (q, k)]
    for ours, theirs in zip(Rotary2D().rotate(mine[0], mine[1], at, at), expected, strict=True):
        back = ours.unflatten(-1, (2, 2, -1)).transpose(-2, -3).flatten(-3)
        close(back[0].transpose(0, 1), theirs)


@pytest.mark.parametrize("memory, clamp", [(0, None), (5, None), (5, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_transformer_xl_scores_are_xlnets(memory: int, clamp: int | None, causal: bool) -> None:
    tokens, heads, d = 7, 3, 6
    width, keys = heads * d, memory + tokens
    config = XLNetConfig(
        d_model=width, n_head=heads, d_inner=8, n_layer=1, vocab_size=7, clamp_len=clamp or -1, dropout=0
    )
    theirs, h = randomised(XLNetRelativeAttention(config)), torch.randn(tokens, 2, width)
    mems = torch.randn(memory, 2, width) if memory else None
    waves = XLNetModel(config).relative_positional_encoding(tokens, keys, bsz=2)
    r = theirs.r.detach().flatten(1).mT.clone().requires_grad_()  # in our layout, a leaf of their graph
    del theirs.r
    theirs.r = r.mT.unflatten(1, (heads, d))
    ours = TransformerXL(width, heads, d, clamp=clamp)
    with torch.no_grad():
        ours.proj.weight.copy_(r)
        ours.u.copy_(theirs.r_w_bias)
        ours.v.copy_(theirs.r_r_bias)
    at_q, at_k = torch.arange(memory, keys), torch.arange(keys)
    hidden = at_k > at_q[:, None] if causal else torch.zeros(tokens, keys, dtype=torch.bool)
    seen = h if mems is None else torch.cat([mems, h])
    q, k, v = (torch.einsum("tbw,whd->bhtd", x, p) for x, p in ((h, theirs.q), (seen, theirs.k), (seen, theirs.v)))
    scores = q @ k.mT * d**-0.5 + ours.bias(q, k, at_q, at_k)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    y = theirs.post_attention(h, torch.einsum("bhts,bhsd->tbhd", weights, v))
    mask = hidden.float()[:, :, None, None] if causal else None
    expected, _, expected_weights = theirs(h, None, mask, None, waves, None, mems=mems, output_attentions=True)
    close(weights, expected_weights.permute(2, 3, 0, 1))
    close(y, expected)
    same_gradients([(ours.u, theirs.r_w_bias), (ours.v, theirs.r_r_bias), (theirs.q, theirs.q)], y, expected)
    same_gradients([(ours.proj.weight, r)], y, expected)


@pytest.mark.parametrize("tokens", [5, 23])
@pytest.mark.parametrize("version", [1, 2])
def test_disentangled_scores_are_debertas(tokens: int, version: int) -> None:
    heads, d, span, farthest = 3, 4, 8, 20
    common = {
        "hidden_size": heads * d, "num_attention_heads": heads, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    x, padding = torch.randn(2, tokens, heads * d), torch.ones(2, 1, 1, tokens)
    padding[1, ..., -2:] = 0
    mask, table = padding * padding.mT, nn.Embedding(2 * span, heads * d)
    if version == 1:
        config = DebertaConfig(max_relative_positions=span, **common)
        theirs = randomised(modeling_deberta.DisentangledSelfAttention(config))
        q, k, v = heads_of(theirs.in_proj(x), heads).chunk(3, dim=-1)
        q, v = q + heads_of(theirs.q_bias[None, None], heads), v + heads_of(theirs.v_bias[None, None], heads)
        away = modeling_deberta.build_relative_position(q, k)
        ours, key, query = Disentangled(table, heads, d), theirs.pos_proj, theirs.pos_q_proj
    else:
        config = DebertaV2Config(**{**common, "max_relative_positions": farthest, "position_buckets": span})
        theirs = randomised(modeling_deberta_v2.DisentangledSelfAttention(config))
        q, k, v = (heads_of(p(x), heads) for p in (theirs.query_proj, theirs.key_proj, theirs.value_proj))
        away = modeling_deberta_v2.build_relative_position(q, k, span, farthest)
        ours, key, query = Disentangled(table, heads, d, farthest=farthest), theirs.pos_key_proj, theirs.pos_query_proj
    ours.key.load_state_dict({"weight": key.weight})
    ours.query.load_state_dict(query.state_dict())
    scores = q @ k.mT * d**-0.5 * ours.scale + ours.bias(q, k, torch.arange(tokens), torch.arange(tokens))
    weights = scores.masked_fill(mask == 0, torch.finfo(torch.float32).min).softmax(-1)
    y = (weights @ v).transpose(1, 2).flatten(2)
    expected, expected_weights = theirs(x, mask, True, relative_pos=away, rel_embeddings=table.weight)
    close(weights, expected_weights)
    close(y, expected)
    pairs = [(ours.key.weight, key.weight), (ours.query.weight, query.weight), (ours.query.bias, query.bias)]
    same_gradients([*pairs, (table.weight, table.weight)], y, expected)


def test_shaw_is_the_loop_over_pairs() -> None:
    """Equations 3 and 4 with an edge from every query i to every key j."""
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4)
    at_q, at_k, clip = torch.arange(4, 9), torch.arange(9), 2
    ours = randomised(Shaw(4, clip))
    weights = (q @ k.mT * 0.5 + ours.bias(q, k, at_q, at_k)).softmax(-1)
    y = weights @ v + ours.read(weights, at_q, at_k)
    rows = []
    for i in at_q.tolist():
        kinds = [max(-clip, min(clip, j - i)) + clip for j in at_k.tolist()]
        e = torch.stack([(q[:, :, i - 4] * (k[:, :, j] + ours.keys[n])).sum(-1) / 2 for j, n in enumerate(kinds)], -1)
        alpha = e.softmax(-1)
        rows.append(
            torch.stack([alpha[..., j, None] * (v[:, :, j] + ours.values[n]) for j, n in enumerate(kinds)]).sum(0)
        )
    expected = torch.stack(rows, 2)
    close(y, expected)
    same_gradients([(p, p) for p in ours.parameters()], y, expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_floater_is_the_loop_over_its_dynamics(steps: int) -> None:
    ours = randomised(Recursive(4, 6, delta=0.2, steps=steps, solver="euler"))
    p, rows = ours.start, [ours.start]
    for i in range(8):
        for n in range(steps):
            t = torch.tensor([0.2 * (i + n / steps)])
            hidden = (ours.fc1.weight[:, :4] @ p + ours.fc1.weight[:, 4] * t + ours.fc1.bias).relu()
            p = p + 0.2 / steps * (ours.fc2.weight @ hidden + ours.fc2.bias)
        rows.append(p)
    at, expected = torch.tensor([8, 0, 3, 3]), torch.stack(rows)
    close(ours.rows(at), expected[at])
    same_gradients([(p, p) for p in ours.parameters()], ours.rows(at), expected[at])


def test_complex_words_are_the_exponential_of_their_equation() -> None:
    ours = randomised(ComplexWords(7, 6))
    tokens, at = torch.tensor([[2, 6, 0], [1, 1, 3]]), torch.tensor([0, 1, 9])
    expected = torch.empty(2, 3, 3, dtype=torch.complex64)
    for b in range(2):
        for t in range(3):
            j = tokens[b, t]
            phase = 1j * (ours.frequency.weight[j] * at[t] + ours.phase.weight[j])
            expected[b, t] = ours.amplitude.weight[j] * torch.exp(phase)
    y = ours(tokens, at)
    close(y, torch.cat([expected.real, expected.imag], dim=-1))
    same_gradients([(p, p) for p in ours.parameters()], y, torch.cat([expected.real, expected.imag], dim=-1))
