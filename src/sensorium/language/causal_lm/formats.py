"""Formats of the decoder language model: Hugging Face's Llama, and with experts Mixtral."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sensorium.data.text.hugging_face import export_tokenizer
from sensorium.data.text.open import read_tokenizer
from sensorium.errors import SensoriumError
from sensorium.language.causal_lm.method import CausalLM
from sensorium.parts.moe.layer import MoE
from sensorium.parts.norms import Residual
from sensorium.parts.positions.rotary import rotary_table
from sensorium.parts.positions.turning import Rotary
from sensorium.published.format import Dropped, Entry, Format, Preparation
from sensorium.published.source import Source
from sensorium.recipe.trained import Trained


def _rows(model: CausalLM) -> list[int]:
    """Queries may have more heads than keys and values."""
    return [heads * model.head_dim for heads in (model.heads, model.kv_heads, model.kv_heads)]


_OURS, _THEIRS = "layers.{i}.", "model.layers.{i}."
_ATTENTION = tuple(f"{_THEIRS}self_attn.{part}_proj.weight" for part in "qkv")
_EXPERT = _THEIRS + "block_sparse_moe.experts.{each}."
_COMMON = (
    Entry("embed.weight", "model.embed_tokens.weight"),
    Entry(_OURS + "norm1.norm.weight", _THEIRS + "input_layernorm.weight"),
    Entry(_OURS + "attn.qkv.weight", _ATTENTION, rows=_rows),
    Entry(_OURS + "attn.proj.weight", _THEIRS + "self_attn.o_proj.weight"),
    Entry(_OURS + "norm2.norm.weight", _THEIRS + "post_attention_layernorm.weight"),
    Entry("norm.weight", "model.norm.weight"),
    Entry("head.weight", "lm_head.weight"),
)
_DENSE = (
    Entry(_OURS + "ffn.gate_up.weight", (_THEIRS + "mlp.gate_proj.weight", _THEIRS + "mlp.up_proj.weight")),
    Entry(_OURS + "ffn.down.weight", _THEIRS + "mlp.down_proj.weight"),
)
_EXPERTS = (
    Entry(_OURS + "ffn.router.weight", _THEIRS + "block_sparse_moe.gate.weight"),
    Entry(_OURS + "ffn.gate_up", (_EXPERT + "w1.weight", _EXPERT + "w3.weight")),
    Entry(_OURS + "ffn.down", _EXPERT + "w2.weight"),
)


def _numbers(source: Source) -> dict[str, Any]:
    source.only("hidden_act", "silu")
    source.only("attention_bias", False, None)
    source.only("mlp_bias", False, None)
    rope = source.within("rope_parameters" if source.object("rope_parameters") else "rope_scaling")
    rope.only("rope_type" if "rope_type" in rope.config else "type", "default")
    longest = source.whole("max_position_embeddings", 0, low=0, high=1 << 30)
    window = source.whole("sliding_window", longest, high=1 << 30, low=0)
    if window < longest:
        raise SensoriumError(f"{source.told}: sliding_window {window} is not supported; it must be null.")
    depth, experts = source.whole("num_hidden_layers"), source.whole("num_local_experts", 0, low=0)
    source.agree(depth, source.count(r"model\.layers\.(\d+)\."), "num_hidden_layers")
    found = source.count(r"model\.layers\.0\.block_sparse_moe\.experts\.(\d+)\.")
    source.agree(experts, found, "num_local_experts")
    heads, width = source.whole("num_attention_heads"), source.whole("hidden_size")
    return {
        "vocab": source.whole("vocab_size"),
        "width": width,
        "depth": depth,
        "heads": heads,
        "hidden": source.whole("intermediate_size"),
        "kv_heads": source.whole("num_key_value_heads", heads),
        "head_dim": source.whole("head_dim", max(1, width // heads)),
        "experts": experts,
        "active": source.whole("num_experts_per_tok", 2),
        "balance": source.number("router_aux_loss_coef", 0.01),
        "tied": source.flag("tie_word_embeddings", False),
        "theta": rope.number("rope_theta", source.number("rope_theta", 10_000.0, low=1), low=1, high=1e12),
        "eps": source.eps("rms_norm_eps", 1e-6),
    }


def _build(theta: float, eps: float, **numbers: Any) -> CausalLM:
    return CausalLM(**numbers, positions=Rotary(theta=theta), joint=partial(Residual, kind="rms", eps=eps))


def _fits(model: CausalLM) -> None:
    positions = model.positions
    llama = isinstance(positions, Rotary) and positions.table is rotary_table and not positions.interleaved
    pre = all(one.placement == "pre" for one in model.modules() if isinstance(one, Residual))
    parts = llama and pre and isinstance(model.norm, nn.RMSNorm) and model.kinds == ("softmax", "swiglu")
    routed = any(isinstance(one, MoE) for one in model.modules()) and not model.experts
    if not parts or routed:
        raise SensoriumError(
            "Llama has rotary positions, softmax attention, SwiGLU and RMS norms, Mixtral also experts; this model has "
            "other parts, so its only format is its run's model.safetensors."
        )


def _config(model: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab,
        "hidden_size": model.width,
        "num_hidden_layers": len(model.layers),
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.hidden,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm.eps,
        "rope_theta": model.positions.theta,
        "tie_word_embeddings": model.tied,
    }


def _mixtral_config(model: Any) -> dict[str, Any]:
    return _config(model) | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": model.experts,
        "num_experts_per_tok": model.active,
        "router_aux_loss_coef": model.balance,
        "sliding_window": None,
    }


def _usage(model: Any, how: Preparation) -> str:
    return """from transformers import pipeline

write = pipeline("text-generation", model=folder)
text = write("It was", max_new_tokens=40, do_sample=False)[0]["generated_text"]
print(text)"""


_DROPPED = (
    Dropped(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "follows from the rotary base"),
    Dropped(r"lm_head\.weight", "a copy of the embedding if the two are tied; otherwise it is the head"),
)
LLAMA = Format(
    name="Hugging Face Llama",
    network=CausalLM,
    kinds=("llama",),
    keys=(r"model\.embed_tokens\.weight",),
    table=_COMMON + _DENSE,
    dropped=_DROPPED,
    numbers=_numbers,
    build=_build,
    normalization=None,
    to="hf",
    of=lambda thing: thing if isinstance(thing, CausalLM) and not thing.experts else None,
    fits=_fits,
    config=_config,
    usage=_usage,
)
MIXTRAL = Format(
    name="Hugging Face Mixtral",
    network=CausalLM,
    kinds=("mixtral",),
    keys=(r"model\.embed_tokens\.weight",),
    table=_COMMON + _EXPERTS,
    dropped=_DROPPED,
    numbers=_numbers,
    build=_build,
    normalization=None,
    to="hf",
    of=lambda thing: thing if isinstance(thing, CausalLM) and thing.experts else None,
    fits=_fits,
    config=_mixtral_config,
    usage=_usage,
)

FORMATS: tuple[Format, ...] = (LLAMA, MIXTRAL)


def take_along(run: Trained, to: str, out: Path) -> None:
    """Write a run's tokenizer beside its export, so that transformers' pipeline("text-generation") opens it."""
    if to == "hf":
        export_tokenizer(read_tokenizer(run.folder / "tokenizer.json"), run.situation.length, out)
