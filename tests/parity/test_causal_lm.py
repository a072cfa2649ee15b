"""The decoder language model against transformers' Llama and Mixtral: logits, losses, gradients, decoding; files both ways."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import sensorium
from sensorium.errors import SensoriumError
from sensorium.language.causal_lm.method import CausalLM
from sensorium.published import export

COMMON = {"max_position_embeddings": 256, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
LLAMAS = [
    {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4},
    {
        "vocab_size": 97,
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
    },
    {
        "vocab_size": 33,
        "hidden_size": 21,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 10,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
]
MIXTRALS = [
    {**LLAMAS[0], "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    {**LLAMAS[1], "num_local_experts": 5, "num_experts_per_tok": 3, "router_aux_loss_coef": 0.5},
]


def theirs(numbers: dict, seed: int = 0) -> LlamaForCausalLM | MixtralForCausalLM:
    torch.manual_seed(seed)
    if "num_local_experts" in numbers:
        config = MixtralConfig(**numbers, **COMMON, output_router_logits=True)
        model = MixtralForCausalLM(config)
    else:
        model = LlamaForCausalLM(LlamaConfig(**numbers, **COMMON))
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at their start, so that an error in one part shows
            parameter.normal_(std=0.25 if parameter.ndim > 1 else 1.0)
    return model.eval()


@pytest.fixture(params=[*LLAMAS, *MIXTRALS], ids=lambda n: f"{n['hidden_size']}x{n.get('num_local_experts', 0)}")
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[CausalLM, torch.nn.Module]:
    model = theirs(request.param)
    model.save_pretrained(tmp_path / "theirs")
    ours = sensorium.load(tmp_path / "theirs")
    assert isinstance(ours, CausalLM)
    return ours, model


@pytest.mark.parametrize("shape", [(2, 17), (1, 1), (3, 40)], ids=str)
def test_logits(pair, shape: tuple[int, int]) -> None:
    ours, model = pair
    tokens = torch.randint(ours.vocab, shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens, output_router_logits=False).logits if ours.experts else model(tokens).logits
    torch.testing.assert_close(ours.logits(tokens), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_loss_and_gradients(pair) -> None:
    ours, model = pair
    tokens = torch.randint(ours.vocab, (3, 23), generator=torch.Generator().manual_seed(2))
    mine = ours({"tokens": tokens})
    out = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), tokens[:, 1:].flatten())
    if ours.experts:
        torch.testing.assert_close(mine["balance"], out.aux_loss.detach(), atol=1e-5, rtol=0)
        loss = loss + ours.balance * out.aux_loss
    torch.testing.assert_close(mine["loss"], loss, atol=1e-5, rtol=1e-6)
    mine["loss"].backward()
    loss.backward()
    same = [
        (ours.embed.weight, model.get_input_embeddings().weight),
        (ours.layers[0].norm2.norm.weight, model.model.layers[0].post_attention_layernorm.weight),
        (ours.norm.weight, model.model.norm.weight),
    ]
    if ours.experts:
        moe = model.model.layers[0].mlp
        same.append((ours.layers[0].ffn.router.weight, moe.gate.weight))
        same.append((ours.layers[0].ffn.down, moe.experts.down_proj))
    else:
        same.append((ours.layers[0].ffn.down.weight, model.model.layers[0].mlp.down_proj.weight))
    joined = [(mine_.grad, theirs_.grad) for mine_, theirs_ in same]
    for mine_, theirs_ in zip(ours.layers, model.model.layers, strict=True):
        attention = theirs_.self_attn
        parts = [attention.q_proj.weight.grad, attention.k_proj.weight.grad, attention.v_proj.weight.grad]
        joined.append((mine_.attn.qkv.weight.grad, torch.cat(parts)))
    for grad, expected in joined:
        expected = expected.reshape(grad.shape)
        torch.testing.assert_close(grad, expected, atol=1e-4 * max(1.0, float(expected.abs().max())), rtol=0)


def test_greedy_decoding(pair) -> None:
    ours, model = pair
    prompt = torch.randint(ours.vocab, (2, 5), generator=torch.Generator().manual_seed(3))
    written = torch.stack(list(ours.generate(prompt, temperature=0, most=12)), dim=1)
    model.generation_config.eos_token_id = None
    expected = model.generate(prompt, max_new_tokens=12, do_sample=False)[:, 5:]
    assert torch.equal(written, expected)


def test_export_is_the_inverse(pair, tmp_path: Path) -> None:
    ours, _ = pair
    export(ours, "hf", tmp_path / "ours")
    tokens = torch.randint(ours.vocab, (2, 9))
    again = sensorium.load(tmp_path / "ours")
    assert torch.equal(again.logits(tokens), ours.logits(tokens))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    expected = model(tokens).logits
    torch.testing.assert_close(ours.logits(tokens), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_shards(tmp_path: Path) -> None:
    model = theirs(LLAMAS[0])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(sensorium.load(tmp_path).logits(tokens), model(tokens).logits, atol=1e-4, rtol=1e-5)
    victim = next(tmp_path.glob("model-0*.safetensors"))
    victim.unlink()
    with pytest.raises(SensoriumError, match=f"the shard '{victim.name}' is missing"):
        sensorium.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_act", "gelu", "hidden_act"),
        ("num_hidden_layers", 3, "num_hidden_layers says 3, the weights have 2"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "rope_type 'yarn'"),
        ("attention_bias", True, "attention_bias"),
        ("vocab_size", 62, "embed_tokens"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path: Path, field: str, value: object, said: str) -> None:
    import json

    theirs(LLAMAS[0]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(SensoriumError, match=said):
        sensorium.load(tmp_path)
