"""Seeds of a mutation test: small valid checkpoints, and how each is opened.

``SEEDS[name](folder)`` writes a checkpoint below ``folder`` and returns the path to open, ``OPEN[name](path)`` opens it.
Whatever bytes of the written files are changed, opening returns or raises SensoriumError. ``python
tests/faults/fuzz_published.py [COUNT [NAME ...]]`` tries COUNT mutations of each.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sensorium.detection.detr.method import DETR
from sensorium.errors import SensoriumError
from sensorium.language.causal_lm.method import CausalLM
from sensorium.multimodal.clip.method import CLIP
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.convnext import ConvNeXt
from sensorium.networks.mmdit import MMDiT
from sensorium.networks.resnet import ResNet
from sensorium.networks.siglip import SigLIPVision
from sensorium.networks.swin import Swin
from sensorium.networks.swinv2 import SwinV2
from sensorium.networks.text import TextTower
from sensorium.networks.text_unet import TextUNet
from sensorium.networks.unet import UNet
from sensorium.networks.vit import ViT
from sensorium.published import load
from sensorium.published.format import write
from sensorium.published.opening import save
from sensorium.published.registry import formats


def _vit() -> ViT:
    return ViT(8, 4, 16, 1, 2)


def _dinov2() -> ViT:
    return ViT(8, 4, 16, 1, 1, mlp_ratio=3, registers=1, parts=("swiglu", "layerscale"))


def _clip() -> CLIP:
    return CLIP(CLIPVision(8, 4, 16, 1, 1), TextTower(11, 5, 16, 1, 1), 8)


def _detr() -> DETR:
    return DETR(ResNet((1, 1), (4, 4)), 2, queries=2, width=8, hidden=8, heads=1, encoder_depth=1, decoder_depth=1)


def _saved(name: str, network: Callable[[], torch.nn.Module]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        form = next(form for form in formats() if form.name == name)
        return save(form, network(), folder)

    return make


def _trained(folder: Path) -> Path:
    """A training checkpoint: weights of a compiled network, arguments, an optimizer's state."""
    torch.manual_seed(0)
    form = next(form for form in formats() if form.name == "timm ViT")
    state = {f"module._orig_mod.{name}": tensor for name, tensor in write(form, _vit()).items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    path = folder / "checkpoint.pth"
    torch.save({"model": state, "optimizer": optimizer, "epoch": 3, "args": Namespace(lr=0.1, out=Path("x"))}, path)
    return path


def _legacy(folder: Path) -> Path:
    """A PyTorch file as before version 1.6: pickles one after another, not a zip archive."""
    torch.manual_seed(0)
    path = folder / "old.pth"
    torch.save(_vit().state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def _alone(folder: Path) -> Path:
    return _saved("timm ViT", _vit)(folder) / "model.safetensors"


SEEDS: dict[str, Callable[[Path], Path]] = {
    "hf vit folder": _saved("Hugging Face ViT", _vit),
    "timm folder": _saved("timm ViT", lambda: ViT(8, 4, 16, 1, 2, registers=1)),
    "hf dinov2 folder": _saved("Hugging Face DINOv2", _dinov2),
    "dinov2 pth": _saved("authors' DINOv2", _dinov2),
    "hf siglip folder": _saved("Hugging Face SigLIP", lambda: SigLIPVision(8, 4, 16, 1, 2)),
    "own vit folder": _saved("Sensorium ViT", _vit),
    "own resnet folder": _saved("Sensorium ResNet", lambda: ResNet((1, 1), 4, stem="small")),
    "pth": _trained,
    "legacy pth": _legacy,
    "safetensors": _alone,
    "hf resnet folder": _saved("Hugging Face ResNet", lambda: ResNet((1, 1), (4, 8))),
    "hf convnext folder": _saved("Hugging Face ConvNeXt", lambda: ConvNeXt((1, 1), (4, 8), patch=2)),
    "timm convnext folder": _saved("timm ConvNeXt", lambda: ConvNeXt((1, 1, 1, 1), (4, 8, 4, 8), grn=True)),
    "hf swin folder": _saved("Hugging Face Swin V2", lambda: SwinV2((1, 1), 4, (1, 2), (2, 2), patch=2)),
    "timm swin folder": _saved("timm Swin", lambda: Swin((1, 1), 4, (1, 2), (2, 2))),
    "own swin folder": _saved("Sensorium Swin V2", lambda: SwinV2((1, 1), 4, (1, 2), (2, 2), references=(3, 3))),
    "own convnext folder": _saved("Sensorium ConvNeXt", lambda: ConvNeXt((1, 1), (4, 8), patch=2)),
    "llama folder": _saved("Hugging Face Llama", lambda: CausalLM(11, 16, 1, 2, hidden=8)),
    "clip folder": _saved("Hugging Face CLIP", _clip),
    "open_clip folder": _saved("OpenCLIP", _clip),
    "diffusers unet folder": _saved("diffusers UNet2DModel", lambda: UNet((4, 8), layers=1, groups=2)),
    "diffusers text unet folder": _saved(
        "diffusers UNet2DConditionModel", lambda: TextUNet((4, 8), 3, layers=1, heads=2, groups=2)
    ),
    "text unet ckpt": _saved("authors' Stable Diffusion U-Net", lambda: TextUNet((32,), 768, layers=1, matrices=False)),
    "mmdit folder": _saved(
        "diffusers SD3Transformer2DModel",
        lambda: MMDiT(8, 1, 1, 3, pooled_width=2, channels=1, positions=2, qk_norm=True, dual=(0,)),
    ),
    "mmdit safetensors": _saved("authors' Stable Diffusion 3", lambda: MMDiT(64, 1, 1, 3, pooled_width=2, positions=2)),
    "detr folder": _saved("Hugging Face DETR", _detr),
    "detr pth": _saved("authors' DETR", _detr),
}


def _opened(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of assumptions, which the seeds need
        return load(path if path.exists() else path.parent)


OPEN: dict[str, Callable[[Path], object]] = dict.fromkeys(SEEDS, _opened)

_TOKENS = (
    b"-1", b"0", b"1e999", b"1e308", b"-Infinity", b"NaN", b"null", b"true", b"{}", b"[]", b'"1"', b"99999999999",
    b"1048577", b"3.5", b"[[[[", b'"', b"\\ud800", b"\x00", b"\xff\xfe", b"18446744073709551615",
)  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, cut out or inserted; numbers replaced by strange ones, more often near the beginning."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = int(len(data) * draw.random() ** draw.choice((1, 3))) if data else 0
        how = draw.randrange(5)
        if how == 0 and data:
            data[min(at, len(data) - 1)] = draw.randrange(256)
        elif how == 1:
            del data[at : at + draw.choice((1, 8, 1000))]
        elif how == 2:
            data[at:at] = draw.choice(_TOKENS)
        else:  # a number in the text, or a length in the header
            digits = [i for i in range(at, min(len(data), at + 400)) if 48 <= data[i] <= 57]
            if digits:
                end = next((i for i in range(digits[0], len(data)) if not 48 <= data[i] <= 57), len(data))
                data[digits[0] : end] = draw.choice(_TOKENS)
    return bytes(data)


def main(count: int, names: list[str]) -> int:
    wrong = 0
    for name in names or list(SEEDS):
        draw, slowest, opened = random.Random(name), 0.0, 0
        with tempfile.TemporaryDirectory() as folder:
            path = SEEDS[name](Path(folder))
            OPEN[name](path)
            files = {file: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}
            for _ in range(count):
                small = sorted(files, key=lambda file: len(files[file]))
                victim = draw.choice([*files, small[0], *(f for f in files if f.name == "config.json")])
                victim.write_bytes(changed := mutated(files[victim], draw))
                start = time.perf_counter()
                try:
                    OPEN[name](path)
                    opened += 1
                except SensoriumError as error:
                    if "\n" in str(error) or len(str(error)) > 1000:
                        print(f"{name}: {victim.name}: more than a line: {error!r:.300}")
                        wrong += 1
                except BaseException as error:
                    print(f"{name}: {victim.name}: {error!r:.300}\n  {changed[:200]!r}")
                    wrong += 1
                slowest = max(slowest, time.perf_counter() - start)
                victim.write_bytes(files[victim])
        print(f"{name}: {count} mutations, {opened} opened, the slowest in {slowest * 1000:.0f} ms")
    return wrong


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, sys.argv[2:]) > 0)
