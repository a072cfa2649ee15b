"""ViT against timm's VisionTransformer and transformers' ViTModel: same weights, same outputs, same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sensorium.networks.vit import ViT
from sensorium.parts.drop import patch_dropout_

timm_vit = pytest.importorskip("timm.models.vision_transformer")
transformers = pytest.importorskip("transformers")

SIZES = [  # image, patch, width, depth, heads
    (32, 4, 48, 3, 3),
    (28, 4, 64, 2, 4),
    (30, 6, 36, 2, 2),
    (33, 11, 40, 1, 5),
    ((24, 40), 8, 32, 2, 2),
    ((9, 21), 3, 24, 2, 1),
]


def spread(module: nn.Module) -> None:
    """Weights far from initial values, so that every parameter, biases and norms too, bears on the output."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def images_of(size: int | tuple[int, int], batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, *((size, size) if isinstance(size, int) else size))


def assert_gradients(ours: nn.Module, theirs: dict[str, Tensor], names: dict[str, str] | None = None) -> None:
    seen = 0
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            continue
        wanted = theirs[name if names is None else names[name]]
        torch.testing.assert_close(
            parameter.grad, wanted.reshape(parameter.shape), atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert wanted.abs().max() > 0 or name.endswith("qkv.bias"), name
        seen += 1
    assert seen > 10


def from_timm(image, patch, width, depth, heads, **more):
    theirs = timm_vit.VisionTransformer(
        img_size=image,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        num_classes=0,
        fc_norm=False,
        **more,
    )
    spread(theirs)
    return theirs.eval()


@pytest.mark.parametrize("image, patch, width, depth, heads", SIZES)
def test_timm_tokens_and_gradients(image, patch, width, depth, heads):
    torch.manual_seed(0)
    theirs = from_timm(image, patch, width, depth, heads)
    ours = ViT(image, patch, width, depth, heads)
    ours.load_state_dict(theirs.state_dict())  # strict: the names are timm's
    x = images_of(image)
    got, wanted = ours.tokens(x), theirs.forward_features(x)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    way = torch.randn_like(wanted) / wanted.numel() ** 0.5
    (got * way).sum().backward()
    (wanted * way).sum().backward()
    assert_gradients(ours, {n: p.grad for n, p in theirs.named_parameters()})


@pytest.mark.parametrize("pool, theirs_pool", [("cls", "token"), ("mean", "avg")])
@pytest.mark.parametrize("image, patch, width, depth, heads", SIZES[2:5])
def test_timm_features_and_gradients(pool, theirs_pool, image, patch, width, depth, heads):
    """``features`` computes the last block for its own rows only; timm computes all of it."""
    torch.manual_seed(1)
    theirs = from_timm(image, patch, width, depth, heads, global_pool=theirs_pool, qkv_bias=False, mlp_ratio=2.5)
    ours = ViT(image, patch, width, depth, heads, pool=pool, qkv_bias=False, mlp_ratio=2.5)
    ours.load_state_dict(theirs.state_dict())
    x = images_of(image)
    got, wanted = ours.features(x), theirs(x)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    way = torch.randn_like(wanted) / wanted.numel() ** 0.5
    (got * way).sum().backward()
    (wanted * way).sum().backward()
    assert_gradients(ours, {n: p.grad for n, p in theirs.named_parameters()})


def test_timm_registers():
    """timm gives no position to the class token here; ours has one, which is set to zero."""
    torch.manual_seed(2)
    theirs = from_timm(30, 5, 32, 2, 2, reg_tokens=3, no_embed_class=True)
    ours = ViT(30, 5, 32, 2, 2, registers=3, pool="mean")
    state = dict(theirs.state_dict())
    state["pos_embed"] = torch.nn.functional.pad(state["pos_embed"], (0, 0, 1, 0))
    ours.load_state_dict(state)
    x = images_of(30)
    wanted = theirs.forward_features(x)
    wanted = torch.cat([wanted[:, :1], wanted[:, 4:]], dim=1)
    torch.testing.assert_close(ours.tokens(x), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.features(x), wanted[:, 1:].mean(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(48, 48), (16, 40), (32, 24)])
def test_timm_other_image_sizes(size):
    torch.manual_seed(3)
    theirs = from_timm(32, 8, 32, 2, 2, dynamic_img_size=True)
    ours = ViT(32, 8, 32, 2, 2, resampling="antialias")
    ours.load_state_dict(theirs.state_dict())
    x = images_of(size)
    torch.testing.assert_close(ours.tokens(x), theirs.forward_features(x), atol=1e-5, rtol=0)


def test_timm_bfloat16_autocast():
    """bf16 keeps 8 bits: normed outputs (size about 1) differ by at most 0.1, on average by 0.01."""
    torch.manual_seed(4)
    theirs = from_timm(30, 6, 48, 2, 3)
    ours = ViT(30, 6, 48, 2, 3)
    ours.load_state_dict(theirs.state_dict())
    x = images_of(30)
    with torch.autocast("cpu", torch.bfloat16):
        difference = (ours.tokens(x) - theirs.forward_features(x)).float().abs()
    assert difference.max() < 0.1
    assert difference.mean() < 0.01


def hf_names(depth: int) -> dict[str, str]:
    """Ours -> transformers' ViTModel; the fused projection is made of three of theirs."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "attn.qkv": "attention.{}_proj",
    }
    for i in range(depth):
        for ours, theirs in parts.items():
            for kind in ("weight", "bias"):
                names[f"blocks.{i}.{ours}.{kind}"] = f"layers.{i}.{theirs}.{kind}"
    return names


def renamed(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    return {
        ours: torch.cat([theirs[name.format(part)] for part in "qkv"]) if "{}" in name else theirs[name]
        for ours, name in hf_names(depth).items()
    }


@pytest.mark.parametrize("eps", [1e-12, 1e-6])
@pytest.mark.parametrize("image, patch, width, depth, heads", SIZES[:5])
def test_transformers_tokens_and_gradients(image, patch, width, depth, heads, eps):
    torch.manual_seed(5)
    config = transformers.ViTConfig(
        image_size=image, patch_size=patch, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width, layer_norm_eps=eps,
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    spread(theirs)
    ours = ViT(image, patch, width, depth, heads, eps=eps)
    ours.load_state_dict(renamed(theirs.state_dict(), depth))
    x = images_of(image)
    got, wanted = ours.tokens(x), theirs(x).last_hidden_state
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    way = torch.randn_like(wanted) / wanted.numel() ** 0.5
    (got * way).sum().backward()
    (wanted * way).sum().backward()
    assert_gradients(ours, renamed({n: p.grad for n, p in theirs.named_parameters()}, depth))


@pytest.mark.parametrize("size", [(48, 48), (16, 40)])
def test_transformers_other_image_sizes_and_attention(size):
    torch.manual_seed(6)
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, layer_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    spread(theirs)
    ours = ViT(32, 8, 32, 2, 2)
    ours.load_state_dict(renamed(theirs.state_dict(), 2))
    x = images_of(size)
    wanted = theirs(x, interpolate_pos_encoding=True, output_attentions=True)
    torch.testing.assert_close(ours.tokens(x), wanted.last_hidden_state, atol=1e-5, rtol=0)
    looks = wanted.attentions[-1][:, :, 0, 1:].unflatten(-1, (size[0] // 8, size[1] // 8))
    torch.testing.assert_close(ours.attention(x), looks, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pool, theirs_pool", [("cls", "token"), ("mean", "avg")])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("image, patch, width, depth, heads", SIZES[2:5])
def test_timm_patch_dropout(monkeypatch, image, patch, width, depth, heads, rate, pool, theirs_pool):
    """Of the same draws the same patches are kept; timm ranks them by normal ones, and drops them once all are embedded."""
    torch.manual_seed(6)
    theirs = from_timm(image, patch, width, depth, heads, global_pool=theirs_pool, patch_drop_rate=rate).train()
    ours = ViT(image, patch, width, depth, heads, pool=pool).train()
    ours.load_state_dict(theirs.state_dict())
    patch_dropout_(ours, rate)
    x = images_of(image)
    monkeypatch.setattr(torch, "randn", torch.rand)
    torch.manual_seed(7)
    got = ours.features(x)
    torch.manual_seed(7)
    wanted = theirs(x)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(wanted, theirs.eval()(x))
    way = torch.randn_like(wanted) / wanted.numel() ** 0.5
    (got * way).sum().backward()
    (wanted * way).sum().backward()
    assert_gradients(ours, {n: p.grad for n, p in theirs.named_parameters()})
