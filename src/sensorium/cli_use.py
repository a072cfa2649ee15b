"""The commands that use what was trained: each one function whose signature is the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from rich.console import Console


def show(thing: object) -> None:
    """Without a terminal to measure there is room: a table cut to 80 columns tells nobody anything."""
    Console(width=None if sys.stdout.isatty() else 160).print(thing)


def embed(run: Path, *, data: str | None = None, out: Path | None = None, limit: int | None = None) -> None:
    """Write one feature vector a picture to a Parquet file: columns path, label, features.

    Example: sensorium embed sensorium-runs/simclr --data photos/ --out features.parquet

    Args:
        run: folder of a run, or a checkpoint.
        data: what to embed; the run's own data if left out.
        out: the Parquet file; features.parquet in the run's folder if left out.
        limit: only the first N pictures.
    """
    from sensorium.use import embed as write

    show(write(run, data, out, limit))


def neighbors(run: Path, image: Path, *, data: str | None = None, k: int = 9, picture: Path | None = None) -> None:
    """The pictures most similar to IMAGE, and its exact duplicates, in the run's data or in --data.

    Example: sensorium neighbors sensorium-runs/simclr photo.jpg --data photos/ --picture found.png

    Args:
        run: folder of a run, or a checkpoint.
        image: the picture to look for.
        data: where to look; the run's own data if left out.
        k: how many to show.
        picture: also write the query and what was found as one picture.
    """
    from sensorium.use import neighbors as find_neighbors

    show(find_neighbors(run, image, data, k, picture))


def generate(
    run: Path,
    *,
    prompt: str = "",
    most: int = 400,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> None:
    """Let a language model write on from a prompt, as it goes.

    Example: sensorium generate sensorium-runs/causal_lm --prompt "It was" --temperature 0.7

    Args:
        run: folder of a run that learnt from text.
        prompt: what the text begins with.
        most: tokens to write at most.
        temperature: 0 takes the likeliest token, 1 draws as the model says.
        top_k: choose among so many tokens.
        seed: of the drawing.
    """
    from sensorium.use import generate as write

    print(prompt, end="")
    for piece in write(run, prompt, most=most, temperature=temperature, top_k=top_k, seed=seed):
        print(piece, end="", flush=True)
    print()


def sample(
    run: Path,
    *,
    n: int = 64,
    steps: int = 25,
    label: str | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    trace: bool = False,
    out: Path | None = None,
) -> None:
    """Draw new pictures into one grid.

    Example: sensorium sample sensorium-runs/rectified_flow --label Sneaker --guidance 2 --trace

    Args:
        run: folder of a run of a system that draws.
        n: how many.
        steps: of the way from noise to picture, for systems that go one.
        label: draw this class.
        guidance: how strongly to insist on the class; 1 is as learnt.
        seed: of the noise.
        trace: also show the way, from noise to picture.
        out: the PNG; samples.png in the run's folder if left out.
    """
    from sensorium.use import sample as draw

    show(draw(run, out, n=n, steps=steps, label=label, guidance=guidance, seed=seed, trace=trace))


def export(
    run: Path, *, to: Literal["safetensors", "hf", "timm", "onnx"] = "safetensors", out: Path | None = None
) -> None:
    """Take the trained network away, for Sensorium, Hugging Face transformers, timm or an ONNX runtime.

    Example: sensorium export sensorium-runs/mae --to hf --out mae-hf

    Args:
        run: folder of a run, or a checkpoint.
        to: the format.
        out: folder or file to write; beside the run if left out.
    """
    from sensorium.use import export as write

    show(f"wrote {write(run, to, out)}")


COMMANDS = (embed, neighbors, generate, sample, export)
