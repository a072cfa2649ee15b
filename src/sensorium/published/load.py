"""Loading published checkpoints as our networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sensorium.abilities import HasBackbone
from sensorium.published.opening import open_path
from sensorium.published.registry import formats


def load(path: str | Path, *, heads: int | None = None, activation: str | None = None) -> nn.Module:
    """A checkpoint's network in evaluation mode; ``.normalization`` is the (mean, std) of pixels, if it takes images.

    path: a directory with config.json and weights, whole or in shards, or a pipeline's; a .safetensors, .pth, .pt, .bin or
    .ckpt file, also of training code; or a hub id. All formats of this package are supported
    (:func:`sensorium.published.registry.formats`). heads, activation: of attention and of CLIP, if a file does not
    contain them (by default 64 channels per head).

    Containers and prefixes of training code are taken off. Averaged weights (``model_ema``, ``teacher`` ...) take
    precedence over others in the same file, and of a larger module only the network in it is read; both are told by a
    warning. Weights of float16, bfloat16 and float64 become float32; quantized, sparse, NaN and infinite ones are
    refused. Raises SensoriumError, in one line, that names the file and the error.
    """
    return open_path(path, formats(), heads=heads, activation=activation)


def load_backbone(path: str | Path) -> nn.Module:
    """The backbone of a checkpoint or of a run's folder."""
    folder = Path(path)
    exported = folder / "backbone"
    network: Any = load(exported if (exported / "config.json").is_file() else path)
    if not isinstance(network, HasBackbone):
        return network
    backbone = network.backbone
    if not any(p.requires_grad for p in backbone.parameters()):  # a moving average; alone it may be trained
        backbone.requires_grad_(True)
    return backbone
