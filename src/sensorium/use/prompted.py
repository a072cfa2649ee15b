"""Pictures of a prompt, by a published pipeline of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.base.files import check_writable
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.terminal import bar
from sensorium.base.whole import checked
from sensorium.errors import SensoriumError
from sensorium.generative.pipeline import INDEX, TextToPicture, load_pipeline
from sensorium.judge.generated import grid
from sensorium.parts.denoising.paths import STEPS
from sensorium.pictures.images import save

PICTURES, USUAL, GUIDANCE = 4, 25, 7.5


def is_pipeline(path: Path) -> bool:
    """Whether it is a folder of a diffusers pipeline."""
    return (path / INDEX).is_file()


def check_prompted(
    *, label: str | None, given: object | None, between: object | None = None, trace: bool = False
) -> None:
    """SensoriumError for settings that a prompt is drawn without."""
    if label is not None or given is not None or between is not None or trace:
        raise SensoriumError("a prompt is drawn without --label, --trace, --between and --given: leave them out.")


def check_unprompted(*, negative: str, size: int | None) -> None:
    """SensoriumError for settings of prompts."""
    if negative or size is not None:
        raise SensoriumError("--negative and --size are for prompts: leave them out.")


def sample_prompt(path: Path, out: Path | None, prompt: str | None, **how: Any) -> str:
    """Write the pictures of :func:`drawn_prompt` in one grid; return the path written."""
    target = check_writable(out or Path("samples.png"))
    drawn = drawn_prompt(path, prompt, **how)
    save(grid(drawn.float() / 255, min(len(drawn), 8)), target)
    return str(target)


def drawn_prompt(
    path: Path,
    prompt: str | None,
    *,
    negative: str = "",
    n: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """``n`` pictures of ``prompt``, of seeds from ``seed`` on, ``size`` pixels a side: uint8 [n, 3, H, W]. On a GPU weights have half
    precision."""
    where = printable(str(path))
    if not is_pipeline(path):
        raise SensoriumError(f"--prompt: '{where}' is no folder of a diffusers pipeline ({INDEX} is missing).")
    if not prompt:
        raise SensoriumError(f"'{where}' draws what a text says: give it with --prompt.")
    count, steps = checked(n or PICTURES, "--n", least=1), _steps_of(steps)
    how = {"negative": negative, "steps": steps, "guidance": guidance, "size": size}
    with bar("drawing", progress) as report:
        return torch.stack([*each_drawn(open_pipeline(path), prompt, count, seed=seed, on_step=report, **how)])


def open_pipeline(path: Path) -> TextToPicture:
    """The pipeline of a folder, on the device; on a GPU its weights have half precision."""
    pipeline, device = load_pipeline(path), device_name()
    pipeline.to(device, torch.float16 if device == "cuda" else torch.float32)
    if device == "mps":  # torch has no attention without whole matrices of scores there
        pipeline.unet.attend_at_once = 1024
    return pipeline


def each_drawn(
    pipeline: TextToPicture,
    prompt: str,
    n: int,
    *,
    negative: str = "",
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Pictures of ``prompt``, uint8 [3, H, W], one after the other, so that memory does not grow with ``n``: of the seeds ``seed``,
    ``seed + 1`` ... on_step: is told how many steps are done, and of how many."""
    many, factor = _steps_of(steps), pipeline.autoencoder.factor
    if size is not None and size % factor:
        near = max(1, round(size / factor)) * factor
        raise SensoriumError(f"--size {size}: must be a multiple of {factor}, such as {near}.")
    scale, sides = GUIDANCE if guidance is None else guidance, None if size is None else (size, size)
    for k in range(n):

        def told(done: int, total: int, before: int = k) -> None:
            if on_step:
                on_step(before * total + done, n * total)

        one = pipeline.draw(
            [prompt], unwanted=negative, seed=seed + k, steps=many, guidance=scale, size=sides, on_step=told
        )
        yield (one[0].float().cpu() * 127.5 + 127.5).round().to(torch.uint8)


def _steps_of(steps: int | None) -> int:
    many = checked(steps or USUAL, "--steps", least=1)
    if many > STEPS:
        raise SensoriumError(f"--steps {many}: at most the {STEPS} of its training.")
    return many
