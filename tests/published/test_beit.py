"""BEiT: transformers' directories and timm's files, with a bias by distance of each layer and a shared one, give the same outputs
and gradients, and go back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import nn
from transformers import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling, BeitModel

from sensorium.errors import SensoriumError
from sensorium.networks.beit import BEiT
from sensorium.networks.formats.beit import HF, HF_MEAN, TIMM, TIMM_MEAN
from sensorium.published import export, load, load_backbone
from sensorium.published.format import HALF
from sensorium.recipe.optim import depths, undecayed

SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "patch_size": 7, "image_size": 28,
    "use_relative_position_bias": True,
}  # fmt: skip
SHARED = {"use_relative_position_bias": False, "use_shared_relative_position_bias": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "each layer, mean": SMALL,
    "shared, class token": {**SMALL, **SHARED, "use_mean_pooling": False, "layer_norm_eps": 1e-3},
    "positions as well, without LayerScale": {
        **SMALL, "use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0, "hidden_size": 36, "num_attention_heads": 3,
        "image_size": 38, "use_mean_pooling": False,
    },
    "shared, positions": {**SMALL, **SHARED, "use_absolute_position_embeddings": True, "num_hidden_layers": 1, "patch_size": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_wrote_gives_the_same_and_goes_back(
    name: str, shaken: Callable, agrees: Callable, sizes_of: Callable, tmp_path: Path
) -> None:
    numbers = CONFIGS[name]
    theirs = shaken(BeitModel(BeitConfig(**numbers)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load(tmp_path / "theirs")
    assert isinstance(ours, BEiT)
    assert ours.normalization == HALF
    pairs = [
        (ours.tokens, lambda images: theirs(images).last_hidden_state),
        (ours.features, lambda images: theirs(images).pooler_output),
    ]
    patch = numbers["patch_size"]
    side = numbers["image_size"] // patch
    form = HF if ours.pool == "cls" else HF_MEAN
    for size in sizes_of(patch, side, side):
        if size[0] == size[1] or side * patch == numbers["image_size"]:
            agrees(ours, theirs, form, pairs, size, tmp_path / "gradients")
    export(ours, "hf", tmp_path / "back")
    again, told = BeitModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    export(ours, "safetensors", tmp_path / "own")
    images = torch.randn(2, 3, 5 * patch, 2 * patch)
    assert (again.eval()(images).pooler_output - theirs(images).pooler_output).abs().max() <= 1e-6
    assert all(
        torch.equal(load_backbone(tmp_path / at).features(images), ours.features(images)) for at in ("back", "own")
    )


KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "each layer, fc_norm": ({"use_rel_pos_bias": True, "init_values": 0.1}, TIMM_MEAN),
    "not square, positions as well, class token": (
        {"img_size": (21, 35), "use_abs_pos_emb": True, "global_pool": "token", "num_heads": 3}, TIMM,
    ),
    "shared, mean of normed patches, without biases": (
        {
            "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False, "global_pool": "avg",
            "qkv_bias": False, "init_values": None, "num_classes": 3,
        },
        TIMM,
    ),
    "shared, fc_norm": ({"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "mlp_ratio": 2.7}, TIMM_MEAN),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_timms_files_there_and_back(kind: str, shaken: Callable, agrees: Callable, tmp_path: Path) -> None:
    more, form = KINDS[kind]
    arguments = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "num_heads": 2, "depth": 2, "num_classes": 0} | more
    theirs = shaken(timm.create_model("beit_base_patch16_224", pretrained=False, **arguments))
    save_for_hf(theirs, tmp_path / "theirs", model_args=arguments)
    theirs.head = nn.Identity()
    ours: Any = load(tmp_path / "theirs")
    size = arguments["img_size"] if isinstance(arguments["img_size"], tuple) else (28, 28)
    agrees(ours, theirs, form, [(ours.tokens, theirs.forward_features), (ours.features, theirs)], size, tmp_path)
    export(ours, "timm", tmp_path / "back")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    images = torch.randn(2, 3, *size)
    assert (again(images) - theirs(images)).abs().max() <= 1e-5
    assert torch.equal(load_backbone(tmp_path / "back").features(images), ours.features(images))
    torch.save(theirs.state_dict(), tmp_path / "alone.pth")
    if size == (28, 28) and "mean of" not in kind:  # a file alone doesn't say how it pools without fc_norm
        assert torch.equal(load_backbone(tmp_path / "alone.pth").features(images), ours.features(images))


def test_at_other_sizes_all_files_of_the_same_weights_agree(shaken: Callable, tmp_path: Path) -> None:
    theirs = shaken(BeitModel(BeitConfig(**SMALL | {"layer_norm_eps": 1e-6})))
    theirs.save_pretrained(tmp_path / "hf")
    export(load_backbone(tmp_path / "hf"), "timm", tmp_path / "timm")
    images = torch.randn(2, 3, 42, 21)
    assert (load_backbone(tmp_path / "timm").features(images) - theirs(images).pooler_output).abs().max() <= 1e-5


def test_the_backbones_of_a_classifier_and_of_masked_training(shaken: Callable, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 28, 28)
    theirs = shaken(BeitForImageClassification(BeitConfig(**SMALL, num_labels=3)))
    theirs.save_pretrained(tmp_path / "classifier")
    ours: Any = load(tmp_path / "classifier")
    assert (theirs.classifier(ours.features(images)) - theirs(images).logits).abs().max() <= 1e-5
    masked = shaken(BeitForMaskedImageModeling(BeitConfig(**SMALL, use_mask_token=True, vocab_size=11)))
    masked.save_pretrained(tmp_path / "masked")
    ours = load(tmp_path / "masked")
    assert ours.pool == "mean"
    assert (masked.lm_head(ours.tokens(images)[:, 1:]) - masked(images).logits).abs().max() <= 1e-5


def test_attention_depths_and_what_is_not_decayed(shaken: Callable, tmp_path: Path) -> None:
    theirs = shaken(BeitModel(BeitConfig(**SMALL, attn_implementation="eager")))
    theirs.save_pretrained(tmp_path)
    ours: Any = load(tmp_path)
    images = torch.randn(2, 3, 28, 35)
    looks = theirs(images, output_attentions=True).attentions[-1][:, :, 0, 1:]
    assert (ours.attention(images) - looks.unflatten(-1, (4, 5))).abs().max() <= 1e-5
    with pytest.raises(SensoriumError, match="BEiT has its positions in its attention"):
        ours.encode(ours.embed(images))
    shared = BEiT(28, 7, 24, 2, 2, relative="shared")
    for network in (ours, shared):
        layers = depths(network)
        assert layers.keys() == dict(network.named_parameters()).keys() | {"head"}
        assert (layers["cls_token"], layers["blocks.1.norm1.weight"], layers["norm.bias"], layers["head"]) == (
            0,
            2,
            3,
            3,
        )
    assert depths(shared)["distances.table"] == 0
    assert {"distances.table", "blocks.0.attn.v_bias"} <= undecayed(shared)
    assert "blocks.1.attn.distances.table" in undecayed(ours)


def test_what_a_broken_configuration_has_wrong_is_said(tmp_path: Path) -> None:
    BeitModel(BeitConfig(**SMALL)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    honest = json.loads(path.read_text())
    for change, said in (
        ({"num_hidden_layers": 7}, "num_hidden_layers says 7, the weights have 2"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        (
            {"use_relative_position_bias": False},
            "use_relative_position_bias or use_shared_relative_position_bias must be true",
        ),
        ({"use_shared_relative_position_bias": True}, ".* and not both"),
        ({"image_size": [28, 35]}, r"image_size \(28, 35\) is not supported"),
        ({"use_mean_pooling": "yes"}, "use_mean_pooling 'yes' is not true or false"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=rf"config\.json: {said}"):
            load(tmp_path)
    for change, said in (
        ({"image_size": 35}, r"relative_position_bias_table' has shape \[52, 2\], expected \[84, 2\]"),
        ({"layer_scale_init_value": 0}, r"'encoder\.layer\.0\.lambda_1' is unknown"),
    ):
        path.write_text(json.dumps(honest | change))
        with pytest.raises(SensoriumError, match=said):
            load(tmp_path)
    theirs = timm.create_model(
        "beit_base_patch16_224", pretrained=False, embed_dim=24, num_heads=2, depth=1, img_size=32
    )
    state = theirs.state_dict()
    name = "blocks.0.attn.relative_position_bias_table"
    torch.save(state | {name: torch.zeros(11, 2)}, tmp_path / "less.pth")
    with pytest.raises(SensoriumError, match=r"less\.pth: '.*' has 11 entries, which is not a table of a square grid"):
        load(tmp_path / "less.pth")


def test_onnx_gives_the_same_features(shaken: Callable, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    ours = shaken(BEiT(28, 7, 24, 1, 2))
    path = export(ours, "onnx", tmp_path / "m.onnx", image_size=28)
    images = torch.randn(3, 3, 28, 28)
    found = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images.numpy()})[0]
    assert (torch.from_numpy(found) - ours.features(images)).abs().max() <= 1e-5
