"""The decoder against transformers' DeepSeek-V3 (latents, experts after a dense layer) and BLIP's text model (attention to a
picture, norms behind the layers, causal or not): same weights, same outputs and gradients, cached as whole."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, DeepseekV3Config, DeepseekV3ForCausalLM

from sensorium.networks.decoder import Cache, Decoder, Layer
from sensorium.networks.mixing import CrossAttention, Latent, SoftmaxAttention
from sensorium.parts.attention.latent import LatentAttention
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.moe.layer import MoE
from sensorium.parts.moe.route import deepseek
from sensorium.parts.norms import Residual, norm
from sensorium.parts.positions.turning import Rotary

OUTPUTS, GRADIENTS = 1e-5, 1e-4
Names = dict[str, tuple[str, ...]]  # of ours -> of theirs, one above the other


def load(ours: nn.Module, theirs: nn.Module, names: Names) -> None:
    found = theirs.state_dict()
    ours.load_state_dict({mine: torch.cat([found[one] for one in parts]) for mine, parts in names.items()})


def alike(ours: nn.Module, theirs: nn.Module, names: Names) -> None:
    """Gradients of all parameters."""
    reached = 0
    for mine, parameter in ours.named_parameters():
        each = [theirs.get_parameter(one).grad for one in names[mine]]
        expected = torch.cat([g for g in each if g is not None])
        assert parameter.grad is not None, mine
        torch.testing.assert_close(parameter.grad, expected, atol=GRADIENTS, rtol=0)
        reached += bool(parameter.grad.abs().max() > 1e-3)
    assert reached > 10


def lively(module: nn.Module, std: float) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, std)


def deepseek_pair(heads: int, width: int, depth: int) -> tuple[Decoder, DeepseekV3ForCausalLM, Names]:
    config: Any = DeepseekV3Config(
        vocab_size=31, hidden_size=width, intermediate_size=26, moe_intermediate_size=10, num_hidden_layers=depth,
        first_k_dense_replace=1, num_attention_heads=heads, num_key_value_heads=heads, kv_lora_rank=14, q_lora_rank=None,
        qk_nope_head_dim=8, qk_rope_head_dim=6, v_head_dim=9, n_routed_experts=4, n_shared_experts=2, num_experts_per_tok=2,
        n_group=1, topk_group=1, routed_scaling_factor=1.7, rope_interleave=False, tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation, config._experts_implementation = "eager", "eager"
    theirs = DeepseekV3ForCausalLM(config).eval()
    lively(theirs, 0.3)
    joint = partial(Residual, kind="rms", eps=config.rms_norm_eps)

    def layer(i: int) -> Layer:
        attention = Latent(LatentAttention(width, heads, latent=14, rotary=6, plain=8, value=9))
        route = partial(deepseek, k=2, scale=1.7)
        experts = MoE(width, 10, 4, route, shared=20, bias=True)
        return Layer(attention, experts if i else FeedForward(width, 26), joint, width)

    head = nn.Linear(width, 31, bias=False)
    positions = Rotary(theta=config.rope_parameters["rope_theta"])
    layers = [layer(i) for i in range(depth)]
    last = norm("rms", width, config.rms_norm_eps)
    ours = Decoder(nn.Embedding(31, width), layers, last, positions=positions, head=head)
    names: Names = {"embed.weight": ("model.embed_tokens.weight",), "norm.weight": ("model.norm.weight",)}
    names["head.weight"] = ("lm_head.weight",)
    for i in range(depth):
        a, b = f"layers.{i}", f"model.layers.{i}"
        names[f"{a}.norm1.norm.weight"] = (f"{b}.input_layernorm.weight",)
        names[f"{a}.norm2.norm.weight"] = (f"{b}.post_attention_layernorm.weight",)
        inside = {"q": "q_proj", "kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj"}
        for mine, other in (inside | {"proj": "o_proj"}).items():
            names[f"{a}.attn.unit.{mine}.weight"] = (f"{b}.self_attn.{other}.weight",)
        dense, its = (f"{a}.ffn.shared", f"{b}.mlp.shared_experts") if i else (f"{a}.ffn", f"{b}.mlp")
        names[f"{dense}.gate_up.weight"] = (f"{its}.gate_proj.weight", f"{its}.up_proj.weight")
        names[f"{dense}.down.weight"] = (f"{its}.down_proj.weight",)
        if i:
            names[f"{a}.ffn.router.weight"] = (f"{b}.mlp.gate.weight",)
            names[f"{a}.ffn.bias"] = (f"{b}.mlp.gate.e_score_correction_bias",)
            names[f"{a}.ffn.gate_up"] = (f"{b}.mlp.experts.gate_up_proj",)
            names[f"{a}.ffn.down"] = (f"{b}.mlp.experts.down_proj",)
    load(ours, theirs, names)
    return ours, theirs, names


@pytest.mark.parametrize("heads, width, depth, shape", [(4, 32, 3, (2, 11)), (3, 21, 2, (3, 1)), (1, 15, 2, (1, 17))])
def test_latents_and_experts_are_deepseeks(heads: int, width: int, depth: int, shape: tuple[int, int]) -> None:
    ours, theirs, names = deepseek_pair(heads, width, depth)
    tokens = torch.randint(31, shape)
    expected = theirs(tokens).logits
    found = ours(tokens)
    size = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, atol=OUTPUTS * max(1.0, size), rtol=0)
    weight = torch.randn(expected.shape) / expected.numel()
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for parameter in theirs.parameters():  # an expert that no token chose
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    alike(ours, theirs, names)
    with torch.no_grad():
        cache = Cache(ours, shape[0], shape[1])
        pieces = [
            ours(part, cache=cache) for part in tokens.split([shape[1] - shape[1] // 2] + [1] * (shape[1] // 2), 1)
        ]
    torch.testing.assert_close(torch.cat(pieces, 1), found.detach(), atol=OUTPUTS * max(1.0, size), rtol=0)


def blip_pair(width: int, heads: int, depth: int, seen: int) -> tuple[Decoder, BlipTextModel, Names, Any]:
    config: Any = BlipTextConfig(
        vocab_size=29, hidden_size=width, encoder_hidden_size=seen, intermediate_size=2 * width + 3, num_hidden_layers=depth,
        num_attention_heads=heads, max_position_embeddings=20, hidden_act="gelu", attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0, is_decoder=True,
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = BlipTextModel(config, add_pooling_layer=False).eval()
    lively(theirs, 0.2)
    names: Names = {}
    for i in range(depth):
        a, b = f"layers.{i}", f"encoder.layer.{i}"
        for kind in ("weight", "bias"):
            self, cross = f"{b}.attention", f"{b}.crossattention"
            names[f"{a}.attn.qkv.{kind}"] = tuple(f"{self}.self.{one}.{kind}" for one in ("query", "key", "value"))
            names[f"{a}.attn.proj.{kind}"] = (f"{self}.output.dense.{kind}",)
            names[f"{a}.norm1.norm.{kind}"] = (f"{self}.output.LayerNorm.{kind}",)
            names[f"{a}.cross.q.{kind}"] = (f"{cross}.self.query.{kind}",)
            names[f"{a}.cross.kv.{kind}"] = (f"{cross}.self.key.{kind}", f"{cross}.self.value.{kind}")
            names[f"{a}.cross.proj.{kind}"] = (f"{cross}.output.dense.{kind}",)
            names[f"{a}.norm_cross.norm.{kind}"] = (f"{cross}.output.LayerNorm.{kind}",)
            names[f"{a}.ffn.gate_up.{kind}"] = (f"{b}.intermediate.dense.{kind}",)
            names[f"{a}.ffn.down.{kind}"] = (f"{b}.output.dense.{kind}",)
            names[f"{a}.norm2.norm.{kind}"] = (f"{b}.output.LayerNorm.{kind}",)
    joint = partial(Residual, placement="post", eps=config.layer_norm_eps)

    def stack(causal: bool) -> Decoder:
        layers = [
            Layer(
                SoftmaxAttention(width, heads, heads, width // heads, bias=True),
                FeedForward(width, 2 * width + 3, "gelu", bias=True),
                joint, width, cross=CrossAttention(width, heads, memory=seen, bias=True),
            )
            for _ in range(depth)
        ]  # fmt: skip
        ours = Decoder(None, layers, nn.Identity(), head=None, causal=causal)
        load(ours, theirs, names)
        return ours

    return stack(True), theirs, names, stack


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width, heads, depth, seen, length", [(24, 3, 2, 20, 7), (8, 2, 1, 13, 1), (30, 5, 3, 30, 12)])
def test_a_memory_is_read_as_by_blip(width: int, heads: int, depth: int, seen: int, length: int, causal: bool) -> None:
    ours, theirs, names, stack = blip_pair(width, heads, depth, seen)
    ours = ours if causal else stack(False)
    tokens = torch.randint(29, (3, length))
    mask, there = torch.ones(3, length, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)
    mask[1, max(1, length - 2) :], there[2, 4:] = False, False
    memory = torch.randn(3, 6, seen, requires_grad=True)
    words = theirs.embeddings(tokens).detach()
    each = []
    for row, last in enumerate(
        there.sum(1).tolist()
    ):  # transformers 5 loses the mask of a memory on the way: cut it instead
        one, of = slice(row, row + 1), {"is_decoder": causal}
        seen_there = memory[one, :last]
        each.append(theirs(tokens[one], attention_mask=mask[one].long(), encoder_hidden_states=seen_there, **of)[0])
    expected = torch.cat(each)
    found = ours(words, mask=mask, memory=memory, memory_mask=there)
    torch.testing.assert_close(found[mask], expected[mask], atol=OUTPUTS, rtol=0)
    weight = torch.randn(expected.shape) * mask[..., None]
    gradients: list[Tensor] = []
    for y in (found, expected):
        memory.grad = None
        (y * weight).mean().backward()
        assert memory.grad is not None
        gradients.append(memory.grad)
    torch.testing.assert_close(*gradients, atol=GRADIENTS, rtol=0)
    alike(ours, theirs, names)
    if causal:
        with torch.no_grad():
            cache = Cache(ours, 3, length, memory=memory, memory_mask=there)
            pieces = [ours(x, mask=m, cache=cache) for x, m in zip(words.split(3, 1), mask.split(3, 1), strict=True)]
        torch.testing.assert_close(torch.cat(pieces, 1)[mask], expected[mask].detach(), atol=OUTPUTS, rtol=0)
