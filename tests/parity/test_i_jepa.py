"""I-JEPA: the encoder against transformers' IJepaModel and timm's ViT, the predictor against lightly's, loss and moving average
against the authors' formulas, written plainly; the authors' checkpoints.

facebookresearch/ijepa: ``train_step``, ``save_checkpoint`` (src/train.py), ``VisionTransformer``, ``VisionTransformerPredictor``,
``get_2d_sincos_pos_embed`` (src/models/vision_transformer.py), ``init_model`` (src/helper.py), ``apply_masks`` (src/masks/utils.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import IJepaConfig, IJepaModel

from sensorium.base.draw import Draw
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.networks.mean_vit import MeanViT
from sensorium.networks.vit import ViT
from sensorium.published import export, load, load_backbone
from sensorium.published.format import write
from sensorium.selfsup.i_jepa.formats import AUTHORS
from sensorium.selfsup.i_jepa.masks import MultiBlock
from sensorium.selfsup.i_jepa.method import IJEPA
from sensorium.selfsup.i_jepa.predictor import Predictor

SIZES = [  # image, patch, (width, depth, heads), (width, depth) of the predictor
    (32, 4, (64, 2, 1), (32, 2)),
    (33, 11, (128, 1, 2), (24, 1)),
    (35, 5, (192, 2, 3), (60, 3)),
    (16, 4, (64, 3, 1), (20, 1)),
]


def largest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def their_positions(width: int, side: int) -> Tensor:
    """Of each patch, row by row: sines and cosines of its column, then of its row."""
    rate = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
    table = [
        np.concatenate([wave(place * rate) for place in (column, row) for wave in (np.sin, np.cos)])
        for row in range(side)
        for column in range(side)
    ]
    return torch.from_numpy(np.stack(table)).float()[None]


def random(net: nn.Module) -> Any:
    """Every number its own, but the fixed positions."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not name.endswith("pos_embed"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def their_encoder(image: int, patch: int, width: int, depth: int, heads: int) -> Any:
    """timm's, whose names and layers are the authors'."""
    net = VisionTransformer(
        image, patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, class_token=False, global_pool="avg", fc_norm=False,
    )  # fmt: skip
    net.pos_embed = nn.Parameter(their_positions(width, image // patch), requires_grad=False)
    return random(net)


def their_predictor(image: int, patch: int, encoder: tuple[int, int, int], width: int, depth: int) -> Any:
    net = random(IJEPAPredictorTIMM((image // patch) ** 2, depth, encoder[0], width, encoder[2]))
    assert largest(net.decoder.pos_embed, their_positions(width, image // patch)) <= 1e-6
    return net


def authors(theirs: nn.Module) -> dict[str, Tensor]:
    """lightly's names of a predictor -> the authors'."""
    state = theirs.state_dict()
    moved = {name.replace("decoder.mask_token", "mask_token").replace("decoder.", "predictor_"): name for name in state}
    return {ours: state[name] for ours, name in moved.items()}


def named(
    width: int, depth: int, predictor_width: int, predictor_depth: int, patch: int, patches: int
) -> dict[str, tuple]:
    """The names and shapes in ``save_checkpoint``'s three dictionaries, joined."""

    def linear(name: str, out: int, inputs: int) -> dict[str, tuple]:
        return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}

    def norm(name: str, wide: int) -> dict[str, tuple]:
        return {f"{name}.weight": (wide,), f"{name}.bias": (wide,)}

    def block(name: str, wide: int) -> dict[str, tuple]:
        return (
            norm(f"{name}.norm1", wide) | linear(f"{name}.attn.qkv", 3 * wide, wide) | linear(f"{name}.attn.proj", wide, wide)
            | norm(f"{name}.norm2", wide) | linear(f"{name}.mlp.fc1", 4 * wide, wide) | linear(f"{name}.mlp.fc2", wide, 4 * wide)
        )  # fmt: skip

    found: dict[str, tuple] = {}
    for one in ("encoder.module", "target_encoder.module"):
        found |= {f"{one}.pos_embed": (1, patches, width), f"{one}.patch_embed.proj.weight": (width, 3, patch, patch)}
        found |= {f"{one}.patch_embed.proj.bias": (width,)} | norm(f"{one}.norm", width)
        for i in range(depth):
            found |= block(f"{one}.blocks.{i}", width)
    p = "predictor.module"
    found |= {f"{p}.mask_token": (1, 1, predictor_width), f"{p}.predictor_pos_embed": (1, patches, predictor_width)}
    found |= linear(f"{p}.predictor_embed", predictor_width, width) | norm(f"{p}.predictor_norm", predictor_width)
    found |= linear(f"{p}.predictor_proj", width, predictor_width)
    for i in range(predictor_depth):
        found |= block(f"{p}.predictor_blocks.{i}", predictor_width)
    return found


def checkpoint(path: Any, encoder: Any, target: Any, predictor: Any, prefix: str = "module.") -> dict[str, Any]:
    """As ``save_checkpoint`` writes it."""
    states = {"encoder": encoder.state_dict(), "predictor": authors(predictor), "target_encoder": target.state_dict()}
    kept: dict[str, Any] = {part: {prefix + n: t.clone() for n, t in state.items()} for part, state in states.items()}
    more = {"opt": {"state": {}, "param_groups": []}, "scaler": {"scale": 65536.0}, "epoch": 300, "loss": 0.12}
    torch.save(kept | more | {"batch_size": 128, "world_size": 16, "lr": 0.001}, path)
    return kept


def made(image: int, patch: int, encoder: tuple[int, int, int], predictor: tuple[int, int]) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    encoders = [their_encoder(image, patch, *encoder) for _ in range(2)]
    return (*encoders, their_predictor(image, patch, encoder, *predictor))


def picked(x: Tensor, index: Tensor) -> Tensor:
    return torch.gather(x, 1, index.unsqueeze(-1).repeat(1, 1, x.size(-1)))


def their_loss(encoder: Any, target: Any, predictor: Any, images: Tensor, context: Tensor, targets: Tensor) -> Tensor:
    """``forward_target``, ``forward_context`` and ``loss_fn``; predictions of all first targets come first."""
    masks = list(targets.unbind(1))
    with torch.no_grad():
        h = target.norm(target.blocks(target.patch_embed(images) + target.pos_embed))
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        h = torch.cat([picked(h, mask) for mask in masks])
    z = encoder.norm(encoder.blocks(picked(encoder.patch_embed(images) + encoder.pos_embed, context)))
    off = (predictor(z, context, masks) - h).abs()
    return torch.where(off < 1, 0.5 * off**2, off - 0.5).mean()


def batch(image: int, patch: int, seed: int = 0, count: int = 5) -> dict[str, Tensor]:
    context, targets = MultiBlock((image // patch, image // patch))(Draw.seeded(seed, 0, count))
    return {"image": torch.randn(count, 3, image, image), "context": context, "targets": targets}


@pytest.mark.parametrize("image, patch, encoder, predictor", SIZES)
def test_loss_predictions_and_gradients_of_the_authors_checkpoint(image, patch, encoder, predictor, tmp_path):
    theirs = made(image, patch, encoder, predictor)
    kept = checkpoint(tmp_path / "jepa-ep300.pth.tar", *theirs)
    layout = named(*encoder[:2], *predictor, patch, (image // patch) ** 2)
    flat = {f"{part}.{name}": tensor for part, state in kept.items() for name, tensor in state.items()}
    assert {name: tuple(tensor.shape) for name, tensor in flat.items()} == layout
    ours: Any = load(tmp_path / "jepa-ep300.pth.tar")
    assert isinstance(ours, IJEPA)
    given = batch(image, patch)
    got, want = ours(given)["loss"], their_loss(*theirs, *given.values())
    assert largest(got, want) <= 1e-5
    net, x = theirs[0], given["image"]
    z = net.norm(net.blocks(picked(net.patch_embed(x) + net.pos_embed, given["context"])))
    predicted = theirs[2](z, given["context"], list(given["targets"].unbind(1)))
    assert largest(ours.predict(*given.values()).transpose(0, 1).flatten(0, 1), predicted) <= 1e-5
    assert largest(ours.features(given["image"]), theirs[1](given["image"])) <= 1e-5

    got.backward()
    want.backward()
    assert all(p.grad is None for p in ours.target_encoder.parameters())
    found = write(AUTHORS, ours, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    for net in (theirs[0], theirs[2]):
        for parameter in net.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    wanted = {f"encoder.module.{n}": g for n, g in theirs[0].state_dict().items() if "pos_embed" not in n}
    wanted |= {f"predictor.module.{n}": g for n, g in authors(theirs[2]).items() if "pos_embed" not in n}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert largest(found[name], gradient) <= 1e-4, name
        assert gradient.abs().max() > 0, name


def test_the_authors_checkpoint_goes_back_and_trains_on(tmp_path):
    image, patch, *sizes = SIZES[2]
    theirs = made(image, patch, *sizes)
    kept = checkpoint(tmp_path / "jepa.pth.tar", *theirs)
    ours: Any = load(tmp_path / "jepa.pth.tar")
    back = torch.load(export(ours, "authors", tmp_path / "back.pth"), weights_only=True)
    assert back.keys() == kept.keys()
    for part, state in kept.items():
        assert back[part].keys() == state.keys()
        assert all(torch.equal(back[part][name], tensor) for name, tensor in state.items())
    x = torch.randn(2, 3, image, image)
    for prefix in ("", "module._orig_mod."):
        checkpoint(tmp_path / "other.pth", *theirs, prefix=prefix)
        assert torch.equal(load(tmp_path / "other.pth").features(x), ours.features(x))
    assert load(tmp_path / "jepa.pth.tar", heads=6).encoder.heads == 6

    backbone: Any = load_backbone(tmp_path / "jepa.pth.tar")
    assert isinstance(backbone, MeanViT)
    assert backbone.normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(backbone.features(x), ours.features(x))
    assert all(p.requires_grad for p in backbone.blocks.parameters())  # taken alone it can be trained
    ours.train()
    ours(batch(image, patch))["loss"].backward()
    learns = {name for name, p in ours.named_parameters() if p.grad is not None}
    assert learns == {
        n for n, _ in ours.named_parameters() if not n.startswith("target_encoder") and "pos_embed" not in n
    }


def test_broken_checkpoints_are_named(tmp_path):
    image, patch, *sizes = SIZES[0]
    theirs = made(image, patch, *sizes)
    path = tmp_path / "jepa.pth.tar"
    kept = checkpoint(path, *theirs)

    def refused(match: str, part: str, **changes: Any) -> None:
        state = {name: tensor for name, tensor in (kept[part] | changes).items() if tensor is not None}
        torch.save(kept | {part: state}, path)
        with pytest.raises(SensoriumError, match=rf"jepa\.pth\.tar: {match}"):
            load(path)

    refused(r"'encoder\.module\.norm\.bias' is missing", "encoder", **{"module.norm.bias": None})
    refused(r"'predictor\.module\.head' is unknown", "predictor", **{"module.head": torch.zeros(1)})
    refused(
        r"'target_encoder\.module\.norm\.bias' has shape \[3\]",
        "target_encoder",
        **{"module.norm.bias": torch.zeros(3)},
    )


def test_what_the_authors_format_cannot_hold(tmp_path):
    def exported(backbone: Any, heads: int | None = None) -> Any:
        predictor = Predictor(backbone.dim, backbone.grid, 24, 1, heads or backbone.heads)
        return export(IJEPA(backbone, predictor), "authors", tmp_path / "x.pth")

    fixed: dict[str, Any] = {"positions": "sincos"}
    exported(MeanViT(16, 4, 64, 1, 1, **fixed))
    for backbone, said in (
        (MeanViT(16, 4, 64, 1, 2, **fixed), "has 1 heads at this width, not 2"),
        (MeanViT(16, 4, 64, 1, 1), "has fixed positions"),
        (MeanViT(16, 4, 64, 1, 1, registers=1, **fixed), "has no register tokens"),
        (MeanViT(16, 4, 64, 1, 1, parts=("swiglu",), **fixed), "has no swiglu"),
        (MeanViT((16, 24), 4, 64, 1, 1, **fixed), "sees square images"),
        (MeanViT(16, 4, 64, 1, 1, pool="fc_norm", **fixed), "takes the mean of normed patches"),
        (ViT(16, 4, 64, 1, 1, **fixed), "has no format 'authors'"),
    ):
        with pytest.raises(SensoriumError, match=said):
            exported(backbone)
    with pytest.raises(SensoriumError, match="as many heads in its predictor as in its encoder, 1"):
        exported(MeanViT(16, 4, 64, 1, 1, **fixed), heads=2)


def test_steps_are_the_authors(tmp_path):
    """Losses, weights and the target encoder over steps, by the authors' schedule of the momentum."""
    image, patch, *sizes = SIZES[0]
    encoder, target, predictor = made(image, patch, *sizes)
    target.load_state_dict(encoder.state_dict())
    checkpoint(tmp_path / "start.pth", encoder, target, predictor)
    ours: Any = load(tmp_path / "start.pth")
    ours.train()
    ours.momentum, steps = 0.9, 4
    momenta = (0.9 + i * (1.0 - 0.9) / steps for i in range(steps + 1))
    for step in range(3):
        given = batch(image, patch, seed=step)
        got, want = ours(given)["loss"], their_loss(encoder, target, predictor, *given.values())
        assert largest(got, want) <= 1e-5
        got.backward()
        want.backward()
        for net in (ours, encoder, predictor):
            for p in net.parameters():
                if p.grad is not None:
                    p.data.sub_(0.2 * p.grad)
            net.zero_grad()
        ours.after_step(Progress(step, 0, step / steps))
        m = next(momenta)
        for q, k in zip(encoder.parameters(), target.parameters(), strict=True):
            k.data.mul_(m).add_((1.0 - m) * q.detach().data)
        theirs = target.state_dict()
        assert all(largest(tensor, theirs[name]) <= 1e-5 for name, tensor in ours.target_encoder.state_dict().items())
        assert largest(ours.target_encoder.norm.weight, ours.encoder.norm.weight) > 0


@pytest.mark.parametrize("image, patch, width, heads, change", [
    (32, 4, 48, 3, {}), (33, 11, 40, 5, {"qkv_bias": False}), (30, 6, 24, 2, {"layer_norm_eps": 1e-6, "intermediate_size": 50}),
])  # fmt: skip
def test_the_context_encoder_is_transformers_ijepa_on_a_part_of_its_patches(
    image, patch, width, heads, change, tmp_path
):
    torch.manual_seed(0)
    config = {"image_size": image, "patch_size": patch, "hidden_size": width, "num_hidden_layers": 2}
    config |= {"num_attention_heads": heads, "intermediate_size": 3 * width} | change
    theirs: Any = random(IJepaModel(IJepaConfig(**config)))
    theirs.save_pretrained(tmp_path / "theirs")
    network: Any = load(tmp_path / "theirs")
    assert isinstance(network, MeanViT)
    ours = IJEPA(network.train(), Predictor(width, network.grid, 20, 1, 1)).eval()
    given = batch(image, patch)
    x, context = given["image"], given["context"]
    hidden = picked(theirs.embeddings(x), context)
    for layer in theirs.layers:
        hidden = layer(hidden, None)
    want, got = theirs.layernorm(hidden), ours.encoder.encode(ours.encoder.embed(x, context))[:, 1:]
    assert largest(got, want) <= 1e-5
    weight = torch.randn_like(want) / want.numel() ** 0.5
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    kernel = theirs.embeddings.patch_embeddings.projection.weight.grad
    assert largest(network.patch_embed.proj.weight.grad, kernel) <= 1e-4
    assert kernel.abs().max() > 0

    tokens = theirs(x).last_hidden_state
    assert largest(ours.features(x), tokens.mean(1)) <= 1e-5
    assert largest(ours.normed_targets(x), F.layer_norm(tokens, (width,))) <= 1e-5
    with torch.no_grad():
        ours.target_encoder.norm.bias += 0.1  # the target encoder is what is written
    again = IJepaModel.from_pretrained(export(ours, "hf", tmp_path / "back")).eval()
    assert largest(again(x).last_hidden_state, tokens + 0.1) <= 1e-5


def test_bfloat16_autocast():
    torch.manual_seed(1)
    network = MeanViT(32, 4, 48, 2, 3, positions="sincos", init="xavier")
    ours, given = IJEPA(network, Predictor(48, network.grid, 24, 1, 3)), batch(32, 4)
    want = ours(given)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(given)
    assert all(value.dtype == torch.float32 for value in got.values())
    assert largest(got["loss"], want) <= 0.02 * want.item()
