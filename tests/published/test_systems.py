"""Whole systems by path alone: directories that transformers and diffusers wrote load, give the same, and go back."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from safetensors.torch import save_file
from torchvision.models.detection import fcos_resnet50_fpn
from transformers import CLIPConfig, CLIPModel, DetrConfig, DetrForObjectDetection, ResNetConfig

import sensorium
from sensorium.errors import SensoriumError
from sensorium.published import load


def clip() -> CLIPModel:
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": 48, "eos_token_id": 49}
    vision = tower | {"image_size": 21, "patch_size": 7}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()


def test_clip_there_and_back(tmp_path: Path) -> None:
    theirs = clip()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = sensorium.load(tmp_path / "theirs")
    images, tokens = torch.randn(3, 3, 21, 21), torch.randint(1, 48, (4, 9))
    tokens[:, -1] = 49
    with torch.no_grad():
        out = theirs(input_ids=tokens, pixel_values=images)
        torch.testing.assert_close(ours.embed_image(images), out.image_embeds, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.embed_text(tokens), out.text_embeds, atol=1e-5, rtol=0)
        sensorium.export(ours, "hf", tmp_path / "back")
        back = CLIPModel.from_pretrained(tmp_path / "back").eval()
        again = back(input_ids=tokens, pixel_values=images)
    torch.testing.assert_close(again.logits_per_image, out.logits_per_image, atol=1e-5, rtol=0)


def test_detr_finds_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"])  # fmt: skip
    config = DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=body, use_pretrained_backbone=False, num_queries=7, d_model=16,
        encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, num_labels=5,
    )  # fmt: skip
    theirs = DetrForObjectDetection(config).eval()
    theirs.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        out = theirs(pixel_values=images)
    found = sensorium.load(tmp_path).detect(images, 0.0)
    scores = out.logits.softmax(-1)[..., :-1].amax(-1)
    for one, score in zip(found, scores, strict=True):
        assert one["boxes"].shape == (7, 4)
        torch.testing.assert_close(one["scores"], score.sort(descending=True).values, atol=1e-5, rtol=0)


def test_a_unet_of_diffusers_there_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    ours = sensorium.load(tmp_path / "theirs")
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        want = theirs(x, t).sample
        torch.testing.assert_close(ours.velocity(x, t), want, atol=1e-5, rtol=0)
        sensorium.export(ours, "hf", tmp_path / "back")
        back = UNet2DModel.from_pretrained(tmp_path / "back").eval()
        torch.testing.assert_close(back(x, t).sample, want, atol=1e-5, rtol=0)


def test_fcos_of_torchvision_by_its_keys(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4).eval()
    torch.save(theirs.state_dict(), tmp_path / "fcos.pth")
    ours = sensorium.load(tmp_path / "fcos.pth")
    assert type(ours).__name__ == "FCOS"
    assert ours.classes == 4


def diffusers_dit() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    numbers = {"num_attention_heads": 2, "attention_head_dim": 16, "sample_size": 8, "num_embeds_ada_norm": 10}
    theirs = DiTTransformer2DModel(**numbers, in_channels=4, out_channels=8, num_layers=2).eval()
    theirs.transformer_blocks[1].norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    return theirs


def test_the_published_dit_and_a_pipeline(tmp_path: Path) -> None:
    theirs = diffusers_dit()
    theirs.save_pretrained(tmp_path / "pipe" / "transformer")
    config = tmp_path / "pipe" / "transformer" / "config.json"
    told = json.loads(config.read_text()) | {"_class_name": "Transformer2DModel"}  # as the published one calls itself
    config.write_text(json.dumps(told))
    (tmp_path / "pipe" / "vae").mkdir()
    (tmp_path / "pipe" / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "Transformer2DModel"]}
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index))
    x, t, label = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([1, 9])
    with torch.no_grad():
        want = theirs(x, t, class_labels=label).sample
        for path in (tmp_path / "pipe", tmp_path / "pipe" / "transformer"):
            torch.testing.assert_close(sensorium.load(path)(x, t, label), want, atol=1e-5, rtol=0)
    config.write_text(json.dumps(told | {"norm_type": "layer_norm"}))
    with pytest.raises(SensoriumError, match="norm_type 'layer_norm'"):
        sensorium.load(tmp_path / "pipe")


@pytest.mark.parametrize("quick", [False, True])
def test_open_clip_by_path(quick: bool, tmp_path: Path) -> None:
    openclip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}
    text = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 4, "layers": 1}
    theirs = openclip.model.CLIP(24, vision, text, quick_gelu=quick).eval()
    model = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text} | ({"quick_gelu": True} if quick else {})
    told = {"model_cfg": model, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    state = theirs.state_dict()
    save_file(state, tmp_path / "open_clip_model.safetensors")
    trained = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    torch.save(trained, tmp_path / "epoch_3.pt")
    with pytest.warns(
        UserWarning, match=r"epoch_3\.pt: .*does not contain its activation; assumed gelu.*open_clip_config"
    ):
        assert load(tmp_path / "epoch_3.pt").backbone.activation == "gelu"
    assert load(tmp_path / "epoch_3.pt", activation="quick_gelu").backbone.activation == "quick_gelu"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(100, (2, 16))
    for path in (tmp_path, tmp_path / "epoch_3.pt"):
        ours = load(path)
        assert ours.normalization == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        with torch.no_grad():
            want = theirs.encode_image(images, normalize=True), theirs.encode_text(tokens, normalize=True)
            torch.testing.assert_close(ours.embed_image(images), want[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(ours.embed_text(tokens), want[1], atol=1e-5, rtol=0)
