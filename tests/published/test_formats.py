"""One test for every format: each tensor of ours is written once, reading what was written changes nothing, and names that
are unknown, missing, of another shape or ambiguous are errors that say which."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sensorium.base.reading import read_object
from sensorium.detection.detr.method import DETR
from sensorium.detection.fcos.method import FCOS
from sensorium.errors import SensoriumError
from sensorium.generative.vqgan.method import VQGAN
from sensorium.language.causal_lm.method import CausalLM
from sensorium.multimodal.clip.method import CLIP
from sensorium.networks.airbench import Airbench
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.beit import BEiT
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.convnext import ConvNeXt
from sensorium.networks.dinov3 import DINOv3
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.networks.dit import DiT
from sensorium.networks.eva import EVA
from sensorium.networks.fpn import FPN
from sensorium.networks.kl_autoencoder import KLAutoencoder
from sensorium.networks.mean_vit import MeanViT
from sensorium.networks.mmdit import MMDiT
from sensorium.networks.resnet import ResNet
from sensorium.networks.siglip import SigLIPVision
from sensorium.networks.swin import Swin
from sensorium.networks.swinv2 import SwinV2
from sensorium.networks.text import TextTower
from sensorium.networks.text_unet import TextUNet
from sensorium.networks.unet import UNet
from sensorium.networks.vit import ViT
from sensorium.parts.heads import mlp_head
from sensorium.parts.perceptual import LPIPS
from sensorium.parts.quantize import Quantizer
from sensorium.published import load
from sensorium.published.files import read_weights, unwrap
from sensorium.published.format import Format, read, write
from sensorium.published.opening import fill, recognized, save
from sensorium.published.registry import formats
from sensorium.published.source import Source
from sensorium.selfsup.barlow_twins.method import BarlowTwins
from sensorium.selfsup.i_jepa.method import IJEPA
from sensorium.selfsup.i_jepa.predictor import Predictor
from sensorium.selfsup.mae.method import MAE
from sensorium.selfsup.moby.method import MoBY
from sensorium.selfsup.moco_v1.method import MoCo
from sensorium.selfsup.moco_v3.method import MoCoV3
from sensorium.selfsup.moco_v3.recipe import heads
from sensorium.selfsup.simmim.method import SimMIM
from sensorium.selfsup.simsiam.method import SimSiam
from sensorium.selfsup.supervised.method import Supervised
from sensorium.selfsup.swav.method import SwAV
from sensorium.selfsup.vicreg.method import VICReg
from sensorium.streaming.oadtr.method import OadTR

TEXT = (17, 5, 64, 1, 1)


def clip() -> CLIP:
    return CLIP(CLIPVision(14, 7, 64, 2, 1), TextTower(*TEXT), 12)


def detr() -> DETR:
    return DETR(ResNet((1, 2), (8, 16)), 3, queries=4, width=32, hidden=24, heads=8, encoder_depth=1, decoder_depth=2)


def mae() -> MAE:
    return MAE(
        ViT(32, 8, 64, 2, 1, positions="sincos", pool="mean"), decoder_width=32, decoder_depth=2, decoder_heads=1
    )


def i_jepa() -> IJEPA:
    network = MeanViT(32, 8, 64, 2, 1, positions="sincos", resampling="bicubic")
    return IJEPA(network, Predictor(64, network.grid, 24, 2, 1))


def moby(backbone: Any) -> MoBY:
    heads = mlp_head(backbone.dim, 12, 6, bias=True), mlp_head(6, 12, 6, bias=True)
    return MoBY(backbone, *heads, dim_keys=6, negatives=10)


def simsiam() -> SimSiam:
    projector = mlp_head(16, 16, 16, 12, standardized=True)
    return SimSiam(ResNet((1, 1, 2, 1), (8, 12, 8, 16), stem_width=64), projector, mlp_head(12, 5, 12))


def swav() -> SwAV:
    return SwAV(ResNet((1, 2, 1, 1), 8), mlp_head(64, 12, 10, bias=True), nn.Linear(10, 7, bias=False))


def vqgan(groups: int, mults: tuple[int, ...], discriminator: nn.Module | None, seen: LPIPS | None = None) -> VQGAN:
    """As wide as there are groups; attention at the coarsest level."""
    attention = (*(False for _ in mults[1:]), True)
    coders = (
        kind(groups, mults, latent=5, layers=1, attention=attention, groups=groups) for kind in (Encoder, Decoder)
    )
    return VQGAN(*coders, Quantizer(7, 6), discriminator, (16, 24), perceptual=seen)


def kl_autoencoder(groups: int, mults: tuple[int, ...], **convolutions: bool) -> KLAutoencoder:
    numbers: dict[str, Any] = {"layers": 1, "groups": groups, "attention": (*(False for _ in mults[1:]), True)}
    coders = Encoder(groups, mults, latent=6, **numbers), Decoder(groups, mults, latent=3, **numbers)
    return KLAutoencoder(*coders, **convolutions)


def moco(head: Callable[[int], nn.Module]) -> MoCo:
    """With a full queue, as every file's is."""
    network = ResNet((1, 2), (8, 16), bottleneck=True)
    method = MoCo(network, head(network.dim), projection=6, queue=5)
    for rows in (torch.randn(3, 6), torch.randn(5, 6)):
        method.queue.push(rows)
    return method


VGG = ((2, 3), (4, 3), (2, 3, 4), (3, 2, 3), (2, 2, 3))  # as deep as LPIPS's
PLACED = ("timm ViT", "timm ViT with fc_norm", "Hugging Face DeiT")  # their registers have positions, ours don't
READ = ("authors' Swin V2",)  # with tables that tell its windows and which only their code writes: test_swin.py
FRESH = (  # of training, which begins anew with what was read; and what a configuration tells or the reader
    "adversarial", "usage", "queue.count", "scaling", "shift",
)  # fmt: skip

SAMPLES: dict[str, Callable[[], nn.Module]] = {
    "Hugging Face ViT": lambda: ViT((16, 24), 8, 24, 2, 3, qkv_bias=False, pool="mean", eps=1e-12),
    "Hugging Face DINOv2": lambda: ViT(21, 7, 24, 2, 3, registers=2, parts=("swiglu", "layerscale"), eps=1e-5),
    "authors' DINOv2": lambda: ViT(28, 7, 64, 2, 1, registers=2, parts=("layerscale", "swiglu")),
    "Hugging Face BEiT": lambda: BEiT(21, 7, 24, 2, 3, pool="cls", absolute=True, relative="shared", hidden=20),
    "Hugging Face BEiT with mean pooling": lambda: BEiT(14, 7, 24, 2, 2, eps=1e-12),
    "timm BEiT": lambda: BEiT((14, 21), 7, 24, 2, 2, pool="mean", relative="shared", scaled=False, biased=False),
    "timm BEiT with fc_norm": lambda: BEiT((14, 21), 7, 24, 2, 3, absolute=True),
    "Sensorium BEiT": lambda: BEiT((14, 21), 7, 24, 1, 3, eps=1e-3, hidden=30),
    "timm EVA": lambda: EVA((14, 21), 7, 64, 2, 1, pool="mean", gated=False, reference=0, hidden=30),
    "timm EVA with fc_norm": lambda: EVA(21, 7, 64, 2, 1, inner_norm=True, reference=5),
    "timm EVA-02 with sub-norm": lambda: EVA(21, 7, 64, 2, 1, sub_norm=True, inner_norm=True, pool="cls"),
    "timm EVA-02 with sub-norm and fc_norm": lambda: EVA((14, 21), 7, 24, 2, 2, sub_norm=True),
    "Sensorium EVA": lambda: EVA((14, 21), 7, 24, 1, 3, sub_norm=True, eps=1e-3, hidden=30),
    "Hugging Face DINOv3": lambda: DINOv3(21, 7, 24, 2, 3, hidden=20, gated=True, biased=False, pool="mean", theta=50.0),
    "timm DINOv3": lambda: DINOv3((256, 252), 4, 64, 2, 1, registers=2),
    "Sensorium DINOv3": lambda: DINOv3((14, 21), 7, 24, 1, 3, registers=1, eps=1e-3),
    "Hugging Face SigLIP": lambda: SigLIPVision(14, 7, 24, 2, 3, hidden=20),
    "Hugging Face SigLIP 2 (NaFlex)": lambda: SigLIPVision(21, 7, 24, 1, 2, resampling="bilinear"),
    "Sensorium SigLIP image tower": lambda: SigLIPVision((14, 21), 7, 24, 1, 3, activation="gelu", resampling="antialias"),
    "timm ViT with fc_norm": lambda: ViT(32, 8, 64, 2, 1, registers=3, pool="fc_norm", parts=("layerscale",)),
    "Hugging Face DeiT": lambda: ViT(24, 8, 24, 2, 3, registers=1, eps=1e-12, parts=("quick_gelu",)),
    "timm ViT without class token": lambda: MeanViT(32, 8, 64, 2, 1, registers=2, parts=("layerscale",), qkv_bias=False),
    "timm ViT without class token, with fc_norm": lambda: MeanViT(32, 8, 64, 2, 1, pool="fc_norm", parts=("gelu_tanh",)),
    "Hugging Face I-JEPA": lambda: MeanViT(24, 8, 24, 2, 3, eps=1e-5, resampling="bicubic", parts=("gelu_tanh",)),
    "Sensorium ViT without class token": lambda: MeanViT((16, 24), 8, 24, 2, 3, registers=1, parts=("swiglu",)),
    "timm ViT": lambda: ViT(32, 8, 64, 2, 1, registers=3, pool="mean"),
    "Sensorium ViT": lambda: ViT(16, 8, 24, 2, 3, registers=1, positions="rope", parts=("gau", "swiglu")),
    "Hugging Face ResNet": lambda: ResNet((1, 2), (8, 16), bottleneck=True, early_stride=True, stem="half"),
    "torchvision and timm ResNet": lambda: ResNet((2, 1, 1, 1), (8, 16, 8, 16), stem_width=64),
    "Sensorium ResNet": lambda: ResNet((1, 1), 8, stem="patch", patch=2),
    "Hugging Face ConvNeXt": lambda: ConvNeXt((1, 2), (8, 12), patch=3, pool_eps=1e-12),
    "Hugging Face ConvNeXt V2": lambda: ConvNeXt((2, 1, 1), (8, 12, 8), patch=2, grn=True, layer_scale=0),
    "timm ConvNeXt": lambda: ConvNeXt((1, 1, 2, 1), (8, 12, 8, 12), grn=True, norm_first=True),
    "authors' ConvNeXt": lambda: ConvNeXt((1, 2, 1, 1), (8, 12, 8, 12), grn=True, layer_scale=0),
    "torchvision ConvNeXt": lambda: ConvNeXt((2, 1), (8, 12)),
    "Hugging Face airbench": lambda: Airbench((6, 10, 8)),
    "Sensorium airbench": lambda: Airbench((8, 12)),
    "Sensorium ConvNeXt": lambda: ConvNeXt((1, 2), (8, 12), patch=2, grn=True, norm_first=True, eps=1e-5),
    "Hugging Face Swin": lambda: Swin((2, 1), 8, (1, 2), (3, 3), patch=2, mlp_ratio=1.5),
    "timm Swin": lambda: Swin((2, 1), 8, (1, 2), (4, 2), qkv_bias=False),
    "authors' Swin": lambda: Swin((2, 1, 1), 8, (1, 2, 2), (3, 2, 2)),
    "torchvision Swin": lambda: Swin((2, 1), 8, (1, 2), (3, 2)),
    "Sensorium Swin": lambda: Swin((2, 1), 8, (1, 2), (3, 5), patch=2, eps=1e-6, qkv_bias=False),
    "Hugging Face Swin V2": lambda: SwinV2((2, 1), 8, (1, 2), (4, 2), references=(3, 3), patch=2),
    "timm Swin V2": lambda: SwinV2((2, 1), 8, (1, 2), (3, 3), qkv_bias=False),
    "authors' Swin V2": lambda: SwinV2((2, 1), 8, (1, 2), (3, 2)),
    "Sensorium Swin V2": lambda: SwinV2((2, 1), 8, (1, 2), (3, 5), references=(2, 4), mlp_ratio=2.0),
    "authors' MoBY on a Swin": lambda: moby(Swin((2, 1), 8, (1, 2), (4, 2))),
    "authors' MoBY on a ViT": lambda: moby(ViT(32, 8, 64, 2, 1)),
    "Sensorium classifier": lambda: Supervised(ResNet((1, 1), 8, stem="small"), 3),
    "Hugging Face ViTMAE": mae,
    "Hugging Face ViTMAE encoder": lambda: ViT(32, 8, 24, 2, 3, positions="sincos", pool="mean"),
    "Hugging Face SimMIM on a ViT": lambda: SimMIM(ViT(24, 8, 24, 2, 3, qkv_bias=False, pool="mean"), mask_unit=16),
    "Hugging Face SimMIM on a Swin": lambda: SimMIM(Swin((2, 1), 8, (1, 2), (3, 3), patch=2), mask_unit=4, mask_ratio=0.5),
    "Hugging Face SimMIM on a Swin V2": lambda: SimMIM(SwinV2((2, 1), 8, (1, 2), (4, 2), references=(3, 3), patch=2), mask_unit=2),
    "authors' MAE": mae,
    "authors' I-JEPA": i_jepa,
    "authors' SwAV": swav,
    "authors' DINO on a ViT": lambda: ViT(32, 8, 64, 2, 1),
    "authors' DINO on a ResNet": lambda: ResNet((1, 2), (8, 16), bottleneck=True),
    "authors' Barlow Twins": lambda: BarlowTwins(
        ResNet((1, 1, 2, 1), (8, 16, 8, 16)), mlp_head(16, 10, 7, last_bias=False)
    ),
    "authors' VICReg": lambda: VICReg(
        ResNet((1, 2, 1, 1), (4, 8, 4, 8), bottleneck=True), mlp_head(32, 10, 9, 7, bias=True, last_bias=False)
    ),
    "authors' SimSiam": simsiam,
    "authors' MoCo v1": lambda: moco(lambda dim: mlp_head(dim, 6)),
    "authors' MoCo v2": lambda: moco(lambda dim: mlp_head(dim, 10, 6, norm=False)),
    "authors' MoCo v3 on a ResNet": lambda: MoCoV3(ResNet((1, 2), (8, 16)), *heads(16, 10, 6, vit=False)),
    "authors' MoCo v3 on a ViT": lambda: MoCoV3(
        ViT(32, 8, 48, 2, 12, positions="sincos"), *heads(48, 10, 6, vit=True)
    ),
    "Hugging Face Llama": lambda: CausalLM(23, 24, 2, 4, hidden=20, kv_heads=2, tied=False),
    "Hugging Face Mixtral": lambda: CausalLM(23, 24, 2, 4, hidden=20, kv_heads=1, head_dim=10, experts=3),
    "Hugging Face CLIP image tower": lambda: CLIPVision(14, 7, 24, 2, 3, hidden=20, activation="gelu", eps=1e-3),
    "timm CLIP image tower": lambda: CLIPVision((14, 21), 7, 64, 2, 1, activation="gelu_pytorch_tanh", resampling="antialias"),
    "OpenCLIP image tower": lambda: CLIPVision(14, 7, 64, 2, 1, activation="gelu"),
    "Hugging Face CLIP": clip,
    "Sensorium CLIP image tower": lambda: CLIPVision(14, 7, 24, 2, 3, activation="gelu"),
    "OpenCLIP": clip,
    "OpenAI's CLIP": clip,
    "Hugging Face DETR": detr,
    "Hugging Face DETR on timm's ResNet": detr,
    "authors' DETR": detr,
    "torchvision FCOS": lambda: FCOS(FPN(ResNet((1, 1, 1), (8, 8, 16)), width=32), 3, convs=1, points="torchvision"),
    "authors' OadTR": lambda: OadTR(
        10, 5, width=24, length=7, depth=2, heads=8, hidden=16, future=3, decoder_depth=2, decoder_heads=4, decoder_hidden=20
    ),
    "diffusers UNet2DModel": lambda: UNet((8, 16), layers=1, attention=(False, True), labels=4, groups=4),
    "diffusers UNet2DConditionModel": lambda: TextUNet((8, 16, 12), 6, attention=(True, False, True), heads=(2, 4, 3), groups=4),
    "authors' Stable Diffusion U-Net": lambda: TextUNet((64, 32), 768, layers=1, attention=(True, False), matrices=False),
    "diffusers SD3Transformer2DModel": lambda: MMDiT(
        24, 3, 2, 6, pooled_width=5, channels=4, positions=6, qk_norm=True, dual=(0, 1)
    ),
    "authors' Stable Diffusion 3": lambda: MMDiT(128, 2, 2, 6, pooled_width=5, positions=3, sample_size=128),
    "diffusers VQModel": lambda: vqgan(4, (1, 2, 3), None),
    "authors' VQGAN": lambda: vqgan(32, (2, 1), PatchDiscriminator(3, 4, 2), LPIPS(VGG)),
    "diffusers AutoencoderKL": lambda: kl_autoencoder(4, (1, 2, 3), quant=False),
    "authors' AutoencoderKL": lambda: kl_autoencoder(32, (2, 1), post_quant=False),
    "diffusers DiTTransformer2DModel": lambda: DiT(8, 2, 32, 3, 2, labels=4, freq_shift=1),
}  # fmt: skip


def sample(form: Format) -> nn.Module:
    """A small network whose every learned number is its own."""
    torch.manual_seed(0)
    network = SAMPLES[form.name]().eval()
    fixed = {name for name, p in network.named_parameters() if not p.requires_grad and "pos_embed" in name}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and name not in fixed and name not in FRESH:
            tensor.add_(torch.rand_like(tensor))
    return network


def equal(network: nn.Module, other: nn.Module) -> bool:
    ours, theirs = network.state_dict(), other.state_dict()
    same = {name: torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if "num_batches" not in name}
    return ours.keys() == theirs.keys() and type(network) is type(other) and all(same.values())


@pytest.fixture(params=[form for form in formats() if form.name not in READ], ids=lambda form: form.name)
def form(request: pytest.FixtureRequest) -> Format:
    return request.param


def test_each_tensor_is_written_once(form: Format) -> None:
    network = sample(form)
    written = write(form, network)
    places: dict[str, str] = {}
    for name, tensor in network.state_dict().items():
        theirs = form.theirs(name, network)
        assert theirs or name.endswith(("num_batches_tracked", "pos_embed", *FRESH)), f"{name} is not written"
        for their in theirs:
            assert places.setdefault(their, name) == name
        found = [written[their] for their in theirs]
        once = found[:1] if len(found) > 1 and torch.equal(found[0], found[-1]) else found
        placed = form.name in PLACED and name == "pos_embed"
        extra = network.registers * tensor.shape[-1] if placed else 0
        assert not theirs or sum(part.numel() for part in once) == tensor.numel() + extra
    assert set(written) - set(places) == {one.name for one in form.dropped if one.made}
    assert not any(one.fits(name) for one in form.dropped for name in places if "lm_head" not in name)


def test_reading_what_was_written_changes_nothing(form: Format, tmp_path: Path) -> None:
    network = sample(form)
    path = save(form, network, tmp_path / "there")
    again = load(path if path.is_file() and form.name != "OpenCLIP" else tmp_path / "there")
    assert equal(network, again)
    assert not again.training
    other = write(form, again)
    assert other.keys() == write(form, network).keys()
    assert all(torch.equal(other[name], tensor) for name, tensor in write(form, network).items())


def source_of(path: Path) -> Source:
    """What is in a file, or in a directory with its configuration."""
    folder = path.parent if path.is_file() else path
    config = next((f for n in ("config.json", "open_clip_config.json") if (f := folder / n).is_file()), None)
    state = next(unwrap(read_weights(path)))
    return Source(str(path), state, path, read_object(config) if config else {}, str(config or ""))


def test_it_is_recognized_and_no_other_is(form: Format, tmp_path: Path) -> None:
    source = source_of(save(form, sample(form), tmp_path))
    assert [found.name for found in recognized(source, formats())] == [form.name]
    assert equal(fill(form, source), sample(form))


def test_each_missing_or_misshapen_tensor_is_named(form: Format) -> None:
    network = sample(form)
    state = write(form, network)
    optional = {one.name for one in form.dropped if one.made} | {n for n in state if n.endswith("num_batches_tracked")}
    assert read(form, state, network, "file").keys() == network.state_dict().keys()
    for name in state.keys() - optional:
        with pytest.raises(SensoriumError, match=f"^file: '{name}' is missing"):
            read(form, {n: t for n, t in state.items() if n != name}, network, "file")
        with pytest.raises(SensoriumError, match=f"^file: '{name}' has shape"):
            read(form, state | {name: torch.zeros(3, 1, 4)}, network, "file")


@pytest.mark.parametrize(
    "stranger", ["stranger.weight", "decoder.layers.0.cross_attn.weight", "vision.pooler.dense.weight"]
)
def test_an_unknown_name_is_an_error_that_names_file_and_tensor(form: Format, stranger: str, tmp_path: Path) -> None:
    path = save(form, sample(form), tmp_path / "there")
    file = path if path.is_file() else path / form.file
    if file.suffix == ".safetensors":
        save_file(load_file(file) | {stranger: torch.zeros(1)}, file)
    else:
        kept = torch.load(file, weights_only=True)
        (kept[form.container] if form.container else kept)[stranger] = torch.zeros(1)
        torch.save(kept, file)
    with pytest.raises(SensoriumError, match=f"there.*'{stranger}' is unknown"):
        load(file if file.suffix != ".safetensors" else tmp_path / "there")


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[dict[str, Tensor]], dict]] = {
    "DDP": prefixed("module."),
    "compiled in DDP": prefixed("module._orig_mod."),
    "DDP compiled": lambda state: {"model": prefixed("_orig_mod.module.")(state), "epoch": 3},
    "Lightning": lambda state: {"state_dict": prefixed("model.")(state), "epoch": 3, "pytorch-lightning_version": "2.4"},
    "timm's average": lambda state: {
        "state_dict": {name: torch.zeros_like(tensor) for name, tensor in state.items()}, "state_dict_ema": state,
    },
    "averaged by torch": lambda state: {
        "model": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        "model_ema": prefixed("module.")(state) | {"n_averaged": torch.tensor(7)},
    },
}  # fmt: skip


@pytest.mark.parametrize("how", WRAPPED)
def test_what_training_code_wraps_weights_in_is_taken_off(form: Format, how: str, tmp_path: Path) -> None:
    network = sample(form)
    path = save(form, network, tmp_path / "there")
    folder = path.parent if path.is_file() else path
    for file in folder.glob("*.*"):
        if file.suffix != ".json":
            file.unlink()
    target = folder / ("pytorch_model.bin" if form.config else "checkpoint.pth")
    torch.save(WRAPPED[how](write(form, network)), target)
    if how == "compiled in DDP" and not form.config:  # a file's arguments are plain
        import argparse

        torch.save({"model": WRAPPED[how](write(form, network)), "args": argparse.Namespace(lr=0.1)}, target)
    assert equal(network, load(folder if form.config else target))


def test_compiled_parts_and_shards(tmp_path: Path) -> None:
    form = next(one for one in formats() if one.name == "Hugging Face ViT")
    network = sample(form)
    save(form, network, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    names = {name: name.replace("encoder.layer.1.", "encoder.layer.1._orig_mod.") for name in state}
    (tmp_path / "model.safetensors").unlink()
    halves = list(state)[::2], list(state)[1::2]
    for i, half in enumerate(halves):
        torch.save({names[name]: state[name] for name in half}, tmp_path / f"part{i}.bin")
    where = {names[name]: f"part{i}.bin" for i, half in enumerate(halves) for name in half}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert equal(network, load(tmp_path))
    index.write_text(json.dumps({"weight_map": where | {"x": "../part0.bin"}}))
    with pytest.raises(SensoriumError, match=r"'\.\./part0\.bin' is not a bin file beside it"):
        load(tmp_path)


def test_every_format_has_a_sample_and_a_name_of_its_own() -> None:
    assert sorted(form.name for form in formats()) == sorted(SAMPLES)


def test_knowing_every_format_costs_no_library_of_detection() -> None:
    """Whoever loads one network imports the modules of all: what takes seconds must wait until it is used."""
    code = "import sys; from sensorium.published.registry import formats; formats(); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torchvision", "scipy", "transformers", "diffusers", "timm"} & set(said)
