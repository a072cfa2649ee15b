"""Exact attention against torch's and transformers', windows against torchvision's Swin, latents against DeepSeek-V3's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from torchvision.models.swin_transformer import ShiftedWindowAttention
from transformers import DeepseekV3Config, DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.llama.modeling_llama import eager_attention_forward

from sensorium.parts.attention.exact import Attend, fused, naive
from sensorium.parts.attention.latent import LatentAttention, LatentCache
from sensorium.parts.attention.tiled import tiled
from sensorium.parts.attention.window import WindowAttention
from sensorium.parts.positions.rotary import rotary_table

KINDS = pytest.mark.parametrize("attend", [naive, fused, tiled])


def alike(found: list[Tensor], expected: list[Tensor]) -> None:
    """An output within 1e-5, then gradients within 1e-4."""
    for a, b, tolerance in zip(found, expected, [1e-5] + [1e-4] * (len(expected) - 1), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def with_gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    return [y, *torch.autograd.grad(y, inputs, weight)]


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    make = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=make).requires_grad_() for shape in shapes]


@KINDS
@pytest.mark.parametrize("shape", [(2, 3, 17, 17, 8), (1, 2, 5, 150, 16), (2, 1, 1, 9, 4)], ids=str)
@pytest.mark.parametrize("way", ["plain", "causal", "mask", "bias"])
def test_torch(attend: Attend, shape: tuple[int, ...], way: str) -> None:
    B, h, T, S, d = shape
    q, k, v, bias = random((B, h, T, d), (B, h, S, d), (B, h, S, d), (1, h, T, S))
    mask = torch.rand(B, 1, T, S, generator=torch.Generator().manual_seed(1)) > 0.3
    ours, theirs, more = {
        "plain": ({}, None, []),
        "causal": ({"causal": True}, causal_lower_right(T, S), []),
        "mask": ({"mask": mask}, mask, []),
        "bias": ({"bias": bias, "scale": 0.5}, bias, [bias]),
    }[way]
    expected = F.scaled_dot_product_attention(q, k, v, theirs, scale=ours.get("scale"))
    alike(with_gradients(attend(q, k, v, **ours), [q, k, v, *more]), with_gradients(expected, [q, k, v, *more]))


@KINDS
@pytest.mark.parametrize("heads", [(4, 2), (6, 1), (3, 3)], ids=str)
def test_grouped_heads_are_transformers(attend: Attend, heads: tuple[int, int]) -> None:
    h, g = heads
    q, k, v = random((2, h, 13, 8), (2, g, 13, 8), (2, g, 13, 8))
    module: Any = SimpleNamespace(num_key_value_groups=h // g, training=False)
    ahead = torch.full((13, 13), -torch.inf).triu(1)[None, None]
    expected, _ = eager_attention_forward(module, q, k, v, ahead, scaling=8**-0.5)
    y = attend(q, k, v, causal=True).transpose(1, 2)
    alike(with_gradients(y, [q, k, v]), with_gradients(expected, [q, k, v]))


WINDOWS = [  # H, W, window, shift
    (8, 8, (4, 4), (0, 0)),
    (8, 12, (4, 4), (2, 2)),
    (7, 10, (4, 3), (2, 1)),
    (4, 9, (4, 4), (2, 2)),
    (3, 3, (4, 4), (2, 2)),
    (9, 5, (2, 3), (1, 0)),
]


@pytest.mark.parametrize(("height", "width", "window", "shift"), WINDOWS, ids=str)
def test_windows_are_torchvisions(height: int, width: int, window: tuple[int, int], shift: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = ShiftedWindowAttention(12, list(window), list(shift), 3)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = WindowAttention(12, 3, window, shift)
    renamed = {name.replace("relative_position_bias_table", "bias_table"): x for name, x in theirs.state_dict().items()}
    assert torch.equal(renamed.pop("relative_position_index"), ours.distance.flatten())
    ours.load_state_dict(renamed)
    x = torch.randn(2, height, width, 12, requires_grad=True)
    mine = dict(ours.named_parameters())
    names = [name.replace("relative_position_bias_table", "bias_table") for name, _ in theirs.named_parameters()]
    alike(
        with_gradients(ours(x), [x, *(mine[name] for name in names)]),
        with_gradients(theirs(x), [x, *theirs.parameters()]),
    )


LATENTS: list[dict[str, Any]] = [
    {"q_lora_rank": None, "rope_interleave": False},
    {"q_lora_rank": 18, "rope_interleave": False},
    {"q_lora_rank": None, "rope_interleave": True},
    {"q_lora_rank": 11, "rope_interleave": True, "qk_nope_head_dim": 7, "v_head_dim": 9, "num_attention_heads": 3},
]


def deepseek(numbers: dict[str, Any]) -> tuple[DeepseekV3Attention, DeepseekV3RotaryEmbedding, Any]:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 12,
        "v_head_dim": 10,
    }
    heads = (sizes | numbers)["num_attention_heads"]
    config: Any = DeepseekV3Config(**sizes | numbers, num_key_value_heads=heads, qk_rope_head_dim=6)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = DeepseekV3Attention(config, 0).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 1.0)
    return theirs, DeepseekV3RotaryEmbedding(config), config


def ours_from(theirs: DeepseekV3Attention, config: Any) -> tuple[LatentAttention, list[tuple[str, str]]]:
    """Our layer with their weights, and the names of each, of those that need no reordering."""
    h, r, n = config.num_attention_heads, config.qk_rope_head_dim, config.qk_nope_head_dim
    ours = LatentAttention(
        config.hidden_size, h, latent=config.kv_lora_rank, rotary=r, plain=n, value=config.v_head_dim,
        query_latent=config.q_lora_rank,
    )  # fmt: skip
    names = [("kv_norm", "kv_a_layernorm"), ("kv_up", "kv_b_proj"), ("proj", "o_proj")]
    if config.q_lora_rank is not None:
        names += [("q.0", "q_a_proj"), ("q.1", "q_a_layernorm")]
    query = "q" if config.q_lora_rank is None else "q.2"
    pairs = [*names, (query, "q_proj" if query == "q" else "q_b_proj"), ("kv_down", "kv_a_proj_with_mqa")]
    state = {f"{mine}.weight": theirs.get_parameter(f"{name}.weight").detach().clone() for mine, name in pairs}
    if config.rope_interleave:  # neighbors there, half a head apart here
        apart = torch.cat([torch.arange(0, r, 2), torch.arange(1, r, 2)])
        by_head = state[f"{query}.weight"].unflatten(0, (h, -1))
        by_head[:, n:] = by_head[:, n + apart]
        turned = state["kv_down.weight"][config.kv_lora_rank :]
        turned[:] = turned[apart]
    ours.load_state_dict(state)
    return ours, names if config.rope_interleave else pairs


@pytest.mark.parametrize("tokens", [1, 7, 16])
@pytest.mark.parametrize("numbers", LATENTS, ids=str)
def test_latents_are_deepseeks(numbers: dict, tokens: int) -> None:
    theirs, turn, config = deepseek(numbers)
    ours, names = ours_from(theirs, config)
    x = torch.randn(2, tokens, 32, requires_grad=True)
    ahead = torch.full((tokens, tokens), -torch.inf).triu(1)[None, None]
    expected, _ = theirs(x, turn(x, torch.arange(tokens)[None]), ahead)
    found = ours(x, rotary_table(torch.arange(tokens), 6, config.rope_parameters["rope_theta"]))
    mine = [x, *(ours.get_parameter(f"{name}.weight") for name, _ in names)]
    alike(
        with_gradients(found, mine),
        with_gradients(expected, [x, *(theirs.get_parameter(f"{name}.weight") for _, name in names)]),
    )


@pytest.mark.parametrize("numbers", LATENTS[:2], ids=str)
@torch.no_grad()
def test_decoding_is_deepseeks(numbers: dict) -> None:
    theirs, turn, config = deepseek(numbers)
    ours, _ = ours_from(theirs, config)
    x = torch.randn(2, 12, 32)
    cache, kept = DynamicCache(config=config), LatentCache(2, 12, 20 + 6)
    table = rotary_table(torch.arange(12), 6, config.rope_parameters["rope_theta"])
    for low, high in [(0, 9), (9, 10), (10, 11), (11, 12)]:
        here = x[:, low:high]
        ahead = torch.full((high - low, high), -torch.inf).triu(1 + low)[None, None]
        expected, _ = theirs(here, turn(here, torch.arange(low, high)[None]), ahead, cache)
        found = ours(here, (table[0][low:high], table[1][low:high]), kept)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
