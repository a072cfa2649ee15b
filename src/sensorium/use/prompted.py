"""Pictures of a prompt, by a published pipeline of Stable Diffusion."""

from __future__ import annotations

from pathlib import Path

import torch

from sensorium.base.files import check_writable
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.terminal import bar
from sensorium.base.whole import checked
from sensorium.errors import SensoriumError
from sensorium.generative.pipeline import INDEX, load_pipeline
from sensorium.judge.generated import grid
from sensorium.parts.denoising.paths import STEPS
from sensorium.pictures.images import save

PICTURES, USUAL, GUIDANCE = 4, 25, 7.5


def is_pipeline(path: Path) -> bool:
    """Whether it is a folder of a diffusers pipeline."""
    return (path / INDEX).is_file()


def sample_prompt(
    path: Path,
    out: Path | None,
    prompt: str | None,
    *,
    negative: str = "",
    n: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> str:
    """Write ``n`` pictures of ``prompt`` in one grid, of seeds from ``seed`` on, ``size`` pixels a side; return the path written. On a GPU
    weights have half precision."""
    where = printable(str(path))
    if not is_pipeline(path):
        raise SensoriumError(f"--prompt: '{where}' is no folder of a diffusers pipeline ({INDEX} is missing).")
    if not prompt:
        raise SensoriumError(f"'{where}' draws what a text says: give it with --prompt.")
    count, many = checked(n or PICTURES, "--n", least=1), checked(steps or USUAL, "--steps", least=1)
    if many > STEPS:
        raise SensoriumError(f"--steps {many}: at most the {STEPS} of its training.")
    target = check_writable(out or Path("samples.png"))
    pipeline, device = load_pipeline(path), device_name()
    if size is not None and size % pipeline.autoencoder.factor:
        near = max(1, round(size / pipeline.autoencoder.factor)) * pipeline.autoencoder.factor
        raise SensoriumError(f"--size {size}: must be a multiple of {pipeline.autoencoder.factor}, such as {near}.")
    pipeline.to(device, torch.float16 if device == "cuda" else torch.float32)
    if device == "mps":  # torch has no attention without whole matrices of scores there
        pipeline.unet.attend_at_once = 1024
    drawn = []
    with bar("drawing", progress) as report:
        for k in range(count):  # one at a time, so that memory does not grow with n

            def told(done: int, total: int, before: int = k) -> None:
                if report:
                    report(before * total + done, count * total)

            drawn.append(
                pipeline.draw(
                    [prompt], unwanted=negative, seed=seed + k, steps=many, on_step=told,
                    guidance=GUIDANCE if guidance is None else guidance, size=None if size is None else (size, size),
                ).float().cpu()
            )  # fmt: skip
    save(grid(torch.cat(drawn) / 2 + 0.5, min(count, 8)), target)
    return str(target)
