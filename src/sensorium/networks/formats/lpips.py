"""Formats of LPIPS (:mod:`sensorium.parts.perceptual`): torchvision's VGG16 and the heads of
richzhang/PerceptualSimilarity, in two files, or in one, which a checkpoint of an autoencoder that was trained with it
may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.parts.perceptual import LPIPS, VGG16
from sensorium.published.files import read_weights, unwrap
from sensorium.published.format import Dropped, Entry, Format
from sensorium.published.opening import fill, recognized
from sensorium.published.source import Source


def _places() -> list[tuple[int, int]]:
    """(block from 1, index of the layer) of each convolution of VGG16: a ReLU follows each, a pooling each block."""
    found, layer = [], 0
    for block, widths in enumerate(VGG16, 1):
        found += [(block, layer + 2 * i) for i in range(len(widths))]
        layer += 2 * len(widths) + 1
    return found


_HEADS = Entry("heads.{i}.weight", "lin{i}.model.1.weight")
_TORCHVISION = "features.{layer}"
WHOLE = "net.slice{block}.{layer}"


def lpips_table(name: str) -> tuple[Entry, ...]:
    features = (
        Entry(f"features.{layer}.{{kind}}", name.format(block=block, layer=layer) + ".{kind}")
        for block, layer in _places()
    )
    return (*features, _HEADS)


def blocks_of(source: Source, name: str) -> tuple[tuple[int, ...], ...]:
    """The convolutions' channels, one entry per block."""
    found: list[list[int]] = [[] for _ in VGG16]
    for block, layer in _places():
        found[block - 1].append(source.shape(f"{name.format(block=block, layer=layer)}.weight", 4)[0])
    return tuple(map(tuple, found))


def described(network: Any, source: Source) -> None:
    network.described = "LPIPS (VGG16, heads learned from judgments)"


LPIPS_WHOLE = Format(
    name="LPIPS in one file",
    network=LPIPS,
    keys=(r"net\.slice1\.0\.weight",),
    table=lpips_table(WHOLE),
    dropped=(
        Dropped(r"scaling_layer\.(shift|scale)", "constants, the same as ours"),
        Dropped(r"lins\.\d\..+", "a copy of the heads"),
    ),
    numbers=lambda source: {"blocks": blocks_of(source, WHOLE)},
    settle=described,
    normalization=None,
)
LPIPS_PARTS = replace(
    LPIPS_WHOLE,
    name="LPIPS of torchvision's VGG16 and the heads",
    keys=(r"features\.0\.weight",),
    table=lpips_table(_TORCHVISION),
    dropped=(Dropped(r"classifier\..+", "VGG16's classifier is not part of the distance"),),
    numbers=lambda source: {"blocks": blocks_of(source, _TORCHVISION)},
)
INSIDE = "loss.perceptual_loss."  # in a checkpoint of the authors of VQGAN


def load_lpips(vgg: str | Path, heads: str | Path | None = None) -> LPIPS:
    """LPIPS from files: torchvision's VGG16 and the heads; or the whole of it from one, as in a checkpoint of VQGAN.

    .pth or .safetensors. Raises SensoriumError that names the file and the entry.
    """
    state, where = next(unwrap(read_weights(Path(vgg))), {}), str(vgg)
    if any(name.startswith(INSIDE) for name in state):
        state = {name.removeprefix(INSIDE): x for name, x in state.items() if name.startswith(INSIDE)}
    if heads is not None:
        state, where = state | next(unwrap(read_weights(Path(heads))), {}), f"{vgg} and {heads}"
    source = Source(where, state)
    forms = recognized(source, (LPIPS_WHOLE, LPIPS_PARTS))
    if not forms:
        raise SensoriumError(f"{where}: neither LPIPS in one file nor torchvision's VGG16 with LPIPS's heads.")
    return fill(forms[0], source)
