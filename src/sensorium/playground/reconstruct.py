"""Reconstruct: a picture through an autoencoder, and where it errs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import Autoencoder, Latent, Reconstructor, Tokenizer
from sensorium.base.words import counted
from sensorium.judge.reconstruction import there_and_back
from sensorium.metrics.likeness import psnr
from sensorium.playground.common import (
    Played,
    Upload,
    as_image,
    center,
    chooser,
    examples,
    found_pictures,
    picture_input,
    told,
)

TITLE = "Reconstruct"
ABILITY = Autoencoder
SHOWN = 256  # pixels


def fits(method: Any) -> bool:
    """Whether the tab can show a method: an autoencoder, or one with latents of a distribution, as a VAE's."""
    return isinstance(method, Autoencoder) or (isinstance(method, Latent) and isinstance(method, Reconstructor))


def tab(runs: Sequence[Played]) -> None:
    """Draw the tab."""
    gr.Markdown("Give a picture: it is encoded as fewer numbers and decoded again.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs)
            picture = picture_input()
            examples(runs, which, picture)
        with gr.Column(scale=3, min_width=360):
            said, drawn = found_pictures("Reconstruction", columns=3)

    def shown(index: int, upload: Upload | None) -> list[Any]:
        if upload is None:
            return ["Nothing to see yet.", None]
        played = runs[index]
        given = torch.from_numpy(center(upload, played.run.situation))[None]
        with played.lock:
            panels, words = reconstructed(played.method, given)
        return [words, panels]

    given = [which, picture]
    changes = [picture.change, which.input]
    gr.on(changes, told(shown), given, [said, drawn], trigger_mode="always_last", show_progress_on=drawn)


def reconstructed(method: Any, given: Tensor) -> tuple[list[tuple[Any, str]], str]:
    """uint8 [1, 3, S, S] -> the picture as the method takes it, its reconstruction and the error, each with its caption; and what can be
    said of them."""
    device = next(method.parameters()).device
    seen = method.to_pixels(method.from_pixels(given.to(device))).cpu()
    drawn, encoded = there_and_back(method, given, device)
    error = (drawn.float() - seen.float()).abs().mean(1, keepdim=True)
    most = float(error.max())
    map_of = (error * (255 / max(most, 1e-6))).round().to(torch.uint8).expand(-1, 3, -1, -1)
    captions = ("picture", "reconstruction", f"error; white: {most:.0f} of 255")
    pictures = [_large(one[0].numpy()) for one in (seen, drawn, map_of)]
    decibels = float(psnr(drawn, seen)[0])
    words = f"**PSNR {decibels:.1f} dB**. {_size(method, encoded)}"
    return list(zip(pictures, captions, strict=True)), words


def _large(pixels: np.ndarray) -> Any:
    return as_image(pixels, SHOWN)


def _size(method: Any, encoded: Tensor) -> str:
    """How much the picture is encoded as."""
    sides = " x ".join(str(side) for side in encoded.shape[1:])
    if isinstance(method, Tokenizer):
        bits = encoded.numel() * math.log2(method.codes)
        return f"Encoded as {sides} codes of a codebook of {method.codes:,}, {len(encoded.unique())} of them different: {bits:,.0f} bits."
    return f"Encoded as {counted(encoded.numel(), 'number')}" + (f" ({sides})." if encoded.ndim > 2 else ".")
