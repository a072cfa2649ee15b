"""CLIP against transformers' CLIPModel and OpenCLIP's CLIP: embeddings, logits, loss, gradients; files both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from sensorium.errors import SensoriumError
from sensorium.multimodal.clip.formats import HF, OPENAI, export_hf, from_open_clip, load_hf, to_open_clip
from sensorium.multimodal.clip.method import CLIP
from sensorium.multimodal.clip.open_clip import OPEN
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.text import TextTower
from sensorium.networks.vit import ViT
from sensorium.published.format import write

openclip = pytest.importorskip("open_clip")

# image, patch, (width, depth, heads, hidden) of both towers, context, vocabulary, E, activation, eps, end of text
CONFIGS = [
    (32, 8, (48, 2, 3, 192), (32, 2, 4, 128), 11, 61, 24, "quick_gelu", 1e-5, 60),
    (35, 7, (40, 3, 5, 90), (36, 1, 2, 70), 7, 37, 19, "gelu", 1e-5, 30),
    (27, 9, (33, 1, 3, 51), (20, 3, 1, 33), 16, 101, 33, "quick_gelu", 1e-6, None),
    (14, 7, (24, 2, 1, 96), (56, 2, 7, 224), 5, 29, 8, "gelu", 1e-3, 28),
]
IDS = [f"{c[0]}px {c[7]}" for c in CONFIGS]


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random values everywhere, biases and norms too, large enough that an error in one part shows."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name != "logit_scale":
                p.add_(torch.randn_like(p) * (0.2 if p.ndim == 1 else 0.7 * p.shape[-1] ** -0.5))
    return model.eval()


def texts(batch: int, context: int, vocab: int, end: int | None) -> Tensor:
    """Rows of tokens, each with its end at another place and anything after it (for transformers: first end counts)."""
    made = torch.Generator().manual_seed(batch)
    last = vocab - 1 if end is None else end
    tokens = torch.randint(1 if last else 0, last, (batch, context), generator=made)
    for row, at in enumerate(torch.randint(1, context, (batch,), generator=made)):
        tokens[row, at] = last
        tokens[row, at + 1 :] = 0
    return tokens


def of_transformers(config) -> CLIPModel:
    image, patch, (w, d, h, m), (tw, td, th, tm), context, vocab, dim, activation, eps, end = config
    torch.manual_seed(0)
    common = {"hidden_act": activation, "layer_norm_eps": eps, "projection_dim": dim}
    return shaken(
        CLIPModel(
            CLIPConfig(
                vision_config={
                    "image_size": image, "patch_size": patch, "hidden_size": w, "num_hidden_layers": d,
                    "num_attention_heads": h, "intermediate_size": m, **common,
                },
                text_config={
                    "vocab_size": vocab, "max_position_embeddings": context, "hidden_size": tw, "num_hidden_layers": td,
                    "num_attention_heads": th, "intermediate_size": tm, "bos_token_id": 0, "pad_token_id": 0,
                    "eos_token_id": 2 if end is None else end, **common,
                },
                projection_dim=dim,
            )
        )
    )  # fmt: skip


@pytest.fixture(params=CONFIGS, ids=IDS)
def pair(request, tmp_path: Path):
    theirs = of_transformers(request.param)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_hf(tmp_path / "theirs")
    image, _, _, _, context, vocab, _, _, _, end = request.param
    return ours, theirs, torch.randn(6, 3, image, image), texts(6, context, vocab, end)


def near(got: Tensor, wanted: Tensor, most: float = 1e-5) -> None:
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, atol=most * max(1.0, float(wanted.detach().abs().max())), rtol=0)


def test_hidden_states_embeddings_and_logits(pair):
    ours, theirs, images, tokens = pair
    with torch.no_grad():
        wanted = theirs(input_ids=tokens, pixel_values=images, return_loss=True)
        near(ours.backbone.hidden_states(images), wanted.vision_model_output.last_hidden_state)
        near(ours.features(images), theirs.vision_model(images).pooler_output)
        near(ours.text.encode(tokens), wanted.text_model_output.last_hidden_state)
        near(ours.text.features(tokens), theirs.text_model(tokens).pooler_output)
        i, t = ours.embed_image(images), ours.embed_text(tokens)
        near(i, wanted.image_embeds)
        near(t, wanted.text_embeds)
        near(ours.logits(i, t), wanted.logits_per_image)
    assert (tokens[:, -1] == 0).any()  # some texts end early
    assert wanted.image_embeds.std(0).max() > 0.01  # and are not all alike


def theirs_gradient(names: tuple[str, ...], grown: dict[str, Tensor]) -> Tensor:
    return torch.cat([grown[part] for part in names]) if len(names) > 1 else grown[names[0]]


def test_loss_and_gradients(pair):
    ours, theirs, images, tokens = pair
    got, wanted = ours({"image": images, "tokens": tokens}), theirs(tokens, images, return_loss=True)
    near(got["loss"], wanted.loss)
    assert got["temperature"].item() == pytest.approx(float((-theirs.logit_scale.detach()).exp()))
    right = torch.arange(6)
    hits = [(wanted.logits_per_image.argmax(d) == right).float().mean() for d in (1, 0)]
    assert got["accuracy"].item() == pytest.approx(float(sum(hits)) / 2)
    got["loss"].backward()
    wanted.loss.backward()
    grown = {name: p.grad for name, p in theirs.named_parameters()}
    used = set()
    for name, p in ours.named_parameters():
        names = HF.theirs(name, ours)
        gradient = theirs_gradient(names, grown)
        near(p.grad.reshape(gradient.shape), gradient, 1e-4)
        used.update(names)
        if "qkv.bias" not in name:  # a key's bias changes nothing
            assert gradient.abs().max() > 0, name
    assert used == set(grown)


def test_images_of_another_size(pair):
    ours, theirs, _, _ = pair
    patch = ours.backbone.patch_size
    other = torch.randn(2, 3, 4 * patch, 6 * patch)
    with torch.no_grad():
        wanted = theirs.vision_model(other, interpolate_pos_encoding=True)
    near(ours.features(other), wanted.pooler_output)
    near(ours.backbone.tokens(other)[:, 0], wanted.pooler_output)


def test_files_there_and_back(pair, tmp_path: Path):
    ours, theirs, images, tokens = pair
    assert ours.normalization == OPENAI
    ours.normalization = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    export_hf(ours, tmp_path / "ours")
    model = CLIPModel.from_pretrained(tmp_path / "ours").eval()
    assert {n: tuple(p.shape) for n, p in model.state_dict().items()} == {
        n: tuple(p.shape) for n, p in theirs.state_dict().items()
    }
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with torch.no_grad():
        near(model(tokens, images).logits_per_text, theirs(tokens, images).logits_per_text, 0)
    again = load_hf(tmp_path / "ours")
    assert again.normalization == ours.normalization
    assert again.text.eot == ours.text.eot
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def of_open_clip(config) -> torch.nn.Module:
    image, patch, (w, d, h, m), (tw, td, th, tm), context, vocab, dim, activation, eps, _ = config
    torch.manual_seed(0)
    norm = {"norm_kwargs": {"eps": eps}}
    vision = {
        "layers": d,
        "width": w,
        "head_width": w // h,
        "patch_size": patch,
        "image_size": image,
        "mlp_ratio": m / w,
    }
    text = {
        "layers": td,
        "width": tw,
        "heads": th,
        "context_length": context,
        "vocab_size": vocab,
        "mlp_ratio": tm / tw,
    }
    return shaken(openclip.model.CLIP(dim, vision | norm, text | norm, quick_gelu=activation == "quick_gelu"))


@pytest.fixture(params=CONFIGS, ids=IDS)
def open_pair(request):
    _, _, (_, _, heads, _), (_, _, text_heads, _), _, _, _, activation, eps, _ = request.param
    theirs = of_open_clip(request.param)
    ours = from_open_clip(theirs.state_dict(), activation=activation, heads=heads, text_heads=text_heads, eps=eps)
    image, context, vocab = request.param[0], request.param[4], request.param[5]
    return ours, theirs, torch.randn(5, 3, image, image), texts(5, context, vocab, None)


def test_open_clip(open_pair):
    ours, theirs, images, tokens = open_pair
    i, t, scale = theirs(images, tokens)
    near(ours.embed_image(images), i)
    near(ours.embed_text(tokens), t)
    near(ours.backbone.features(images) @ theirs.visual.proj, theirs.encode_image(images))
    wanted = openclip.loss.ClipLoss()(i, t, scale)
    got = ours({"image": images, "tokens": tokens})["loss"]
    near(got, wanted)
    got.backward()
    wanted.backward()
    grown = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        gradient = grown[OPEN.theirs(name, ours)[0]]
        gradient = gradient.T if name.endswith("projection.weight") else gradient
        near(p.grad.reshape(gradient.shape), gradient, 1e-4)


def test_open_clip_back(open_pair):
    ours, theirs, _, _ = open_pair
    state = to_open_clip(ours)
    assert state.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(state)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_openai_layout_in_half_precision_with_its_three_sizes():
    theirs = of_open_clip(CONFIGS[0]).half()
    state = dict(theirs.state_dict()) | {
        "input_resolution": torch.tensor(32), "context_length": torch.tensor(11), "vocab_size": torch.tensor(61)
    }  # fmt: skip
    ours = from_open_clip(state, activation="quick_gelu", heads=3, text_heads=4)
    assert ours.normalization == OPENAI
    assert all(p.dtype == torch.float32 for p in ours.parameters())
    images = torch.randn(2, 3, 32, 32)
    near(ours.embed_image(images), F.normalize(theirs.float().encode_image(images), dim=-1))


def test_what_cannot_be_read_is_named(tmp_path: Path):
    of_transformers(CONFIGS[0]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())

    def lie(kind: str, field: str, value: object) -> None:
        path.write_text(json.dumps(honest | {kind: honest[kind] | {field: value}}))

    for kind, field, value, said in (
        ("vision_config", "hidden_size", 3 << 18, "shape"),
        (
            "vision_config",
            "num_hidden_layers",
            1 << 19,
            "vision_config.num_hidden_layers says 524288, the weights have 2",
        ),
        ("vision_config", "patch_size", 0, "patch_size 0"),
        ("vision_config", "image_size", 33, "patch_size 8 does not divide"),
        ("vision_config", "num_attention_heads", 7, "heads 7"),
        ("vision_config", "num_channels", 1, "num_channels"),
        ("text_config", "hidden_act", "relu", "hidden_act 'relu'"),
        ("text_config", "vocab_size", 62, "token_embedding"),
        ("text_config", "vocab_size", "many", "config.json"),
        ("text_config", "max_position_embeddings", 1 << 60, "config.json|shape"),
        ("text_config", "eos_token_id", 99, "eot 99"),
    ):
        lie(kind, field, value)
        with pytest.raises(SensoriumError, match=said):
            load_hf(tmp_path)
    path.write_text(json.dumps(honest | {"model_type": "siglip"}))
    with pytest.raises(SensoriumError, match="'siglip' is not 'clip'"):
        load_hf(tmp_path)


def test_every_source_key_is_used_once_or_refused(tmp_path: Path):
    state = of_open_clip(CONFIGS[0]).state_dict()
    how = {"activation": "quick_gelu", "heads": 3, "text_heads": 4}
    for extra, said in (
        ({"logit_bias": torch.zeros(())}, "not of its class CLIP"),
        ({"visual.attnpool.c_proj.weight": torch.zeros(1)}, "ResNet"),
        ({"visual.something": torch.zeros(1)}, "'visual.something' is unknown"),
        ({"ln_final.weight": torch.zeros(31)}, r"'ln_final.weight' has shape \[31\], expected \[32\]"),
        ({"visual.conv1.weight": torch.zeros(3)}, "dimensions"),
        ({"visual.positional_embedding": torch.zeros(18, 48)}, "not a square grid"),
    ):
        with pytest.raises(SensoriumError, match=said):
            from_open_clip(state | extra, **how)
    for name in ("visual.proj", "transformer.resblocks.1.ln_1.bias", "logit_scale"):
        with pytest.raises(SensoriumError, match=f"'{name}' is missing"):
            from_open_clip({k: v for k, v in state.items() if k != name}, **how)
    ours = from_open_clip(state, **how)
    for form in (HF, OPEN):
        with pytest.raises(SensoriumError, match="has no place"):
            write(form, ours, {"backbone.blocks.0.mlp.gate.extra.weight": torch.zeros(1)})
    with pytest.raises(SensoriumError, match="no published format"):
        to_open_clip(CLIP(ViT(8, 4, 8, 1, 1), TextTower(9, 4, 8, 1, 1), 4))
    with pytest.raises(SensoriumError, match="square"):
        export_hf(CLIP(CLIPVision((8, 12), 4, 8, 1, 1), TextTower(9, 4, 8, 1, 1), 4), tmp_path)
    with pytest.raises(SensoriumError, match="another pooling rule"):
        export_hf(CLIP(CLIPVision(8, 4, 8, 1, 1), TextTower(9, 4, 8, 1, 1, eot=2), 4), tmp_path)
